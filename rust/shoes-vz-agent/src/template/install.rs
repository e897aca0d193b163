//! `template install-macos`: a macOS template from one of Apple's restore images (IPSW), by VZCore's installer.
//!
//! ```text
//!  restore image ─▶ what is it? ─▶ <output>.installing grows ─▶ <output> ─▶ Template.json
//!                   (of this host?)   progress; Ctrl-C takes it all away again
//! ```
//! What comes out boots into macOS' own first set-up; the guest agent and the runner's user are put in then.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Deserialize;
use shoes_vz_bridge::Failure;
use shoes_vz_model::template::{Os, Template, Transport, file};
use shoes_vz_terminal::{
    progress::{Place, Progress},
    text,
};
use tokio::{sync::oneshot, task::spawn_blocking};

use crate::{commands::print, files, template::build::bytes};

/// Reading a restore image takes a second, asking Apple for the latest a few.
const LOOK_DEADLINE: Duration = Duration::from_secs(60);

/// `template install-macos`
#[derive(Debug, Clone, Args)]
pub struct InstallMacos {
    /// The restore image, a file (`template restore-image` tells where Apple has the latest)
    #[arg(long)]
    pub ipsw: PathBuf,
    /// The template's directory, not there yet, on the volume the runners will be on
    #[arg(long)]
    pub output: PathBuf,
    /// Size of the guest's disk; it takes only the room its content needs
    #[arg(long, default_value = "80GiB", value_parser = bytes)]
    pub disk_size: u64,
    /// Virtual CPUs during the installation; the restore image's least number holds
    #[arg(long, default_value_t = 4)]
    pub cpus: u32,
    /// Memory during the installation; the restore image's least holds
    #[arg(long, default_value = "8GiB", value_parser = bytes)]
    pub memory: u64,
    /// The template's name [default: its directory's]
    #[arg(long, default_value = "")]
    pub name: String,
}

/// VZCore's `Installer.RestoreImage`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RestoreImage {
    url: String,
    build: String,
    version: String,
    is_supported: bool,
    #[serde(rename = "minimumCPUs")]
    minimum_cpus: u32,
    minimum_memory_bytes: u64,
}

async fn restore_image(path: String) -> anyhow::Result<RestoreImage> {
    let told = call(move || shoes_vz_bridge::restore_image(&path, LOOK_DEADLINE)).await?;
    serde_json::from_str(&told).context("VZCore's word on the restore image")
}

async fn call<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(spawn_blocking(call).await.context("a call to VZCore was lost")??)
}

/// `template restore-image`: what a restore image is, or where the latest one this host can run is to be had.
pub async fn look(ipsw: Option<&Path>) -> anyhow::Result<()> {
    let path = ipsw.map(|path| utf8(path).map(str::to_owned)).transpose()?.unwrap_or_default();
    let image = restore_image(path).await?;
    print(&format!("macOS {} ({})", image.version, image.build))?;
    print(&text::line(&image.url))?;
    if image.is_supported {
        let memory = image.minimum_memory_bytes >> 20;
        print(&format!("needs at least {} CPUs and {memory} MiB of memory", image.minimum_cpus))
    } else {
        print("this host cannot run it in a VM")
    }
}

fn utf8(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("the path {path:?} is not UTF-8"))
}

/// Installs.
///
/// # Errors
/// With the framework's words; nothing of the template is left then.
pub async fn run(args: InstallMacos) -> anyhow::Result<()> {
    let ipsw =
        std::fs::canonicalize(&args.ipsw).with_context(|| format!("--ipsw: opening {:?}", args.ipsw))?;
    let output = std::path::absolute(&args.output).with_context(|| format!("--output: {:?}", args.output))?;
    let image = restore_image(utf8(&ipsw)?.to_owned()).await?;
    ensure!(image.is_supported, "this host cannot run macOS {} ({}) in a VM", image.version, image.build);
    let mut installed = Installed::new();
    let what = format!("installing macOS {} ({}) as {}", image.version, image.build, output.display());
    installed.progress.event(&what);

    let request = serde_json::json!({
        "ipsw": utf8(&ipsw)?, "template": utf8(&output)?, "disk_bytes": args.disk_size,
        "cpus": args.cpus, "memory_bytes": args.memory,
    })
    .to_string();
    let (started, job) = oneshot::channel();
    let installing = call(move || {
        // The receiver goes only with the whole program.
        shoes_vz_bridge::install(&request, |job| _ = started.send(job), move |done| installed.tell(done))
    });
    tokio::pin!(installing);
    let installed = tokio::select! {
        installed = &mut installing => installed,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("waiting for Ctrl-C")?;
            if let Ok(job) = job.await {
                call(move || shoes_vz_bridge::cancel_install(job)).await?;
            }
            installing.await
        }
    };
    installed?;
    describe(&output, &args.name, &image)?;
    print(&format!(
        "template {}: macOS {} ({}); docs/on-a-mac.md tells how to go on",
        output.display(),
        image.version,
        image.build
    ))
}

/// Without it the directory would be taken for a template of the Go implementation's.
fn describe(output: &Path, name: &str, image: &RestoreImage) -> anyhow::Result<()> {
    let name = match name {
        "" => output.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    let template = Template {
        name,
        version: image.build.clone(),
        os: Os::Macos,
        min_cpus: image.minimum_cpus,
        min_memory_bytes: image.minimum_memory_bytes,
        guest_agent: Transport::Channel,
        ..Template::default()
    };
    let path = output.join(file::METADATA);
    let mut json = serde_json::to_vec_pretty(&template)?;
    json.push(b'\n');
    if let Err(error) = files::write(&path, &json) {
        bail!("macOS is installed in {output:?}, but {path:?} cannot be written ({error}); write it by hand");
    }
    Ok(())
}

/// A live line on a terminal; elsewhere a line every ten percent.
struct Installed {
    progress: Progress,
    told: Option<u32>,
}

impl Installed {
    fn new() -> Self {
        Self { progress: Progress::new(Place::of_stderr()), told: None }
    }

    fn tell(&mut self, done: f64) {
        let Some(percent) = self.next(done) else { return };
        if self.progress.is_live() {
            self.progress.now("installing", &format!("{percent} %"));
        } else {
            self.progress.event(&format!("installed {percent:3} %"));
        }
    }

    /// The percentage, where it is one to tell and not told yet.
    fn next(&mut self, done: f64) -> Option<u32> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
        let percent = (done.clamp(0.0, 1.0) * 100.0) as u32;
        let percent = if self.progress.is_live() { percent } else { percent / 10 * 10 };
        (self.told.is_none_or(|told| told < percent)).then(|| {
            self.told = Some(percent);
            percent
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_once_a_step_and_never_backwards() {
        let told = |place| {
            let mut installed = Installed { progress: Progress::new(place), told: None };
            [0.0, 0.004, 0.1, 0.11, 0.05, 0.25, f64::NAN, 1.0, 1.0]
                .into_iter()
                .filter_map(|d| installed.next(d))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(Place::Terminal), [0, 10, 11, 25, 100]);
        assert_eq!(told(Place::Plain), [0, 10, 20, 100]);
    }
}
