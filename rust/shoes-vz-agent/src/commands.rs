//! The operator's commands. They talk to the VM processes, so they need no running agent and do not disturb one.

pub mod exec;
pub mod list;
pub mod power;

use std::path::Path;

use anyhow::Context as _;
use shoes_vz_model::id::RunnerId;
use shoes_vz_process::settings::Values;
use shoes_vz_terminal::output;

use crate::{
    bundles::{self, Bundle},
    settings,
};

/// The bundle of the runner that the operator named.
fn bundle(mut values: Values, id: &str) -> anyhow::Result<Bundle> {
    let runners_path = settings::runners_path(&mut values);
    find(&values.finish(runners_path)?, id)
}

/// By runner ID, the name of the bundle's directory; or by what `shoes-vz-client list` shows: runner name or cloud ID.
fn find(runners_path: &Path, given: &str) -> anyhow::Result<Bundle> {
    let given = given.trim_end_matches('/').trim_end_matches(".bundle");
    let found: Vec<_> = match given.parse::<RunnerId>() {
        Ok(runner) => {
            Some(Bundle::of(runners_path, runner)).filter(|b| b.path.is_dir()).into_iter().collect()
        }
        Err(_) => bundles::scan(runners_path)
            .with_context(|| format!("cannot list the VMs below {runners_path:?}"))?
            .bundles
            .into_iter()
            // A bundle whose metadata cannot be read has no known name; its ID still finds it.
            .filter(|b| {
                b.metadata().ok().flatten().is_some_and(|m| m.runner_name == given || m.cloud_id == given)
            })
            .collect(),
    };
    match <[Bundle; 1]>::try_from(found) {
        Ok([bundle]) => Ok(bundle),
        Err(found) if found.is_empty() => anyhow::bail!(
            "there is no VM {given:?} below {runners_path:?}; `shoes-vz-agent list` shows the runner IDs and names of all \
             VMs"
        ),
        Err(found) => {
            let ids: Vec<_> = found.iter().map(|b| b.runner.to_string()).collect();
            anyhow::bail!(
                "several VMs have the name {given:?}; use one of these runner IDs: {}",
                ids.join(", ")
            )
        }
    }
}

/// Prints a line of a command's result to stdout. A reader that closes the pipe early is not a failure.
pub fn print(line: &str) -> anyhow::Result<()> {
    match output::print(line) {
        Err(error) if !output::is_reader_closed(&error) => Err(error).context("writing to stdout failed"),
        _ => Ok(()),
    }
}

fn spec(bundle: &Path) -> anyhow::Result<shoes_vz_vm::spec::VmSpec> {
    shoes_vz_vm::spec::VmSpec::read(bundle).context("the VM's bundle is incomplete: cannot read Vm.json")
}

#[cfg(test)]
mod tests {
    use shoes_vz_model::bundle::RuntimeMetadata;

    use super::*;

    #[test]
    fn a_vm_is_found_by_runner_id_bundle_name_runner_name_and_cloud_id() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, cloud: &str| {
            let bundle = Bundle::of(dir.path(), RunnerId::random());
            std::fs::create_dir(&bundle.path).unwrap();
            let json = format!(
                r#"{{"runner_id":"{}","created_at":"2026-01-02T03:04:05Z","state":"running",
                    "updated_at":"2026-01-02T03:04:06Z","runner_name":"{name}","cloud_id":"{cloud}"}}"#,
                bundle.runner
            );
            bundle.set_metadata(&serde_json::from_str::<RuntimeMetadata>(&json).unwrap()).unwrap();
            bundle
        };
        let (one, two, also_two) =
            (make("one", "shoes-vz-1"), make("two", "shoes-vz-2"), make("two", "shoes-vz-3"));
        let id = one.runner.to_string();
        for given in [&id, &format!("{id}.bundle/"), "one", "shoes-vz-1"] {
            assert_eq!(find(dir.path(), given).unwrap(), one, "{given}");
        }
        let unknown = find(dir.path(), "three").unwrap_err().to_string();
        assert!(unknown.contains("\"three\"") && unknown.contains("shoes-vz-agent list"), "{unknown}");
        let several = find(dir.path(), "two").unwrap_err().to_string();
        assert!([two, also_two].iter().all(|b| several.contains(&b.runner.to_string())), "{several}");
        assert!(find(dir.path(), &RunnerId::random().to_string()).is_err());
    }
}
