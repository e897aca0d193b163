//! The operator's commands. None needs a running agent, and none gets in its way: they talk to the VM processes.

pub mod exec;
pub mod list;
pub mod power;

use std::path::Path;

use anyhow::Context as _;
use shoes_vz_model::id::RunnerId;
use shoes_vz_process::settings::Values;

use crate::{bundles::Bundle, settings};

/// The bundle of the runner the operator named.
fn bundle(mut values: Values, id: &str) -> anyhow::Result<Bundle> {
    let runners_path = settings::runners_path(&mut values);
    let runners_path = values.finish(runners_path)?;
    let runner: RunnerId = id.trim_end_matches('/').trim_end_matches(".bundle").parse()?;
    let bundle = Bundle::of(&runners_path, runner);
    anyhow::ensure!(
        bundle.path.is_dir(),
        "there is no VM {runner} below {runners_path:?}; `shoes-vz-agent list` shows those there are"
    );
    Ok(bundle)
}

/// The VM's spec, for what the template was.
fn spec(bundle: &Path) -> anyhow::Result<shoes_vz_vm::spec::VmSpec> {
    shoes_vz_vm::spec::VmSpec::read(bundle).context("the VM's bundle is not whole")
}
