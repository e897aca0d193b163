//! `template install-macos`: a macOS template from one of Apple's restore images (IPSW), by VZCore's installer.
//!
//! ```text
//!  restore image ─▶ details ─▶ <output>.installing grows ─▶ <output> ─▶ Template.json
//!                  (supported?)  progress; Ctrl-C removes everything
//! ```
//! The result boots into the Setup Assistant of macOS; the operator then installs the guest agent and adds the runner user.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use shoes_vz_bridge::Failure;
use shoes_vz_model::template::{Os, Template, Transport, file};
use shoes_vz_terminal::{
    progress::{Progress, ProgressTarget},
    text,
};
use tokio::{sync::oneshot, task::spawn_blocking};

use crate::{cli::InstallMacos, commands::print, files};

/// Reading a restore image takes a second; asking Apple for the latest one takes a few.
const RESTORE_IMAGE_TIMEOUT: Duration = Duration::from_secs(60);

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
    let json = call(move || shoes_vz_bridge::restore_image(&path, RESTORE_IMAGE_TIMEOUT)).await?;
    serde_json::from_str(&json).context("cannot parse the restore image details returned by VZCore")
}

async fn call<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(spawn_blocking(call).await.context("a call into VZCore panicked")??)
}

/// `template restore-image`: details of a restore image, or the URL of the latest one that this host supports.
pub async fn show_restore_image(ipsw: Option<&Path>) -> anyhow::Result<()> {
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

/// # Errors
/// The framework's error; nothing of the template is left then.
pub async fn run(args: InstallMacos) -> anyhow::Result<()> {
    let ipsw =
        std::fs::canonicalize(&args.ipsw).with_context(|| format!("--ipsw: cannot open {:?}", args.ipsw))?;
    let output = std::path::absolute(&args.output).with_context(|| format!("--output: {:?}", args.output))?;
    let image = restore_image(utf8(&ipsw)?.to_owned()).await?;
    ensure!(image.is_supported, "this host cannot run macOS {} ({}) in a VM", image.version, image.build);
    let mut progress = InstallProgress::new();
    let event = format!("installing macOS {} ({}) as {}", image.version, image.build, output.display());
    progress.progress.event(&event);

    let request = serde_json::json!({
        "ipsw": utf8(&ipsw)?, "template": utf8(&output)?, "disk_bytes": args.disk_size,
        "cpus": args.cpus, "memory_bytes": args.memory,
    })
    .to_string();
    let (started, job) = oneshot::channel();
    let installing = call(move || {
        // The receiver is dropped only when the program exits.
        shoes_vz_bridge::install(&request, |job| _ = started.send(job), move |done| progress.show(done))
    });
    tokio::pin!(installing);
    let installed = tokio::select! {
        installed = &mut installing => installed,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot wait for Ctrl-C")?;
            if let Ok(job) = job.await {
                call(move || shoes_vz_bridge::cancel_install(job)).await?;
            }
            installing.await
        }
    };
    installed?;
    describe(&output, &args.name, &image)?;
    print(&format!(
        "template {}: macOS {} ({}); see docs/on-a-mac.md for the next steps",
        output.display(),
        image.version,
        image.build
    ))
}

/// Writes Template.json, without which the directory counts as a template of the Go implementation.
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
    if let Err(error) = files::replace(&path, &json, files::Readers::Owner) {
        bail!(
            "macOS is installed in {output:?}, but cannot write {path:?} ({error}); write the file by hand"
        );
    }
    Ok(())
}

/// A live line on a terminal; elsewhere a line every ten percent.
struct InstallProgress {
    progress: Progress,
    last_shown: Option<u32>,
}

impl InstallProgress {
    fn new() -> Self {
        Self { progress: Progress::new(ProgressTarget::of_stderr()), last_shown: None }
    }

    fn show(&mut self, done: f64) {
        let Some(percent) = self.next(done) else { return };
        if self.progress.is_live() {
            self.progress.now("installing", &format!("{percent} %"));
        } else {
            self.progress.event(&format!("installed {percent:3} %"));
        }
    }

    /// The percentage, if it is to be shown and was not yet.
    fn next(&mut self, done: f64) -> Option<u32> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
        let percent = (done.clamp(0.0, 1.0) * 100.0) as u32;
        let percent = if self.progress.is_live() { percent } else { percent / 10 * 10 };
        (self.last_shown.is_none_or(|last| last < percent)).then(|| {
            self.last_shown = Some(percent);
            percent
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_shown_once_per_step_and_never_backwards() {
        let shown = |place| {
            let mut install = InstallProgress { progress: Progress::new(place), last_shown: None };
            [0.0, 0.004, 0.1, 0.11, 0.05, 0.25, f64::NAN, 1.0, 1.0]
                .into_iter()
                .filter_map(|d| install.next(d))
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(ProgressTarget::Terminal), [0, 10, 11, 25, 100]);
        assert_eq!(shown(ProgressTarget::Plain), [0, 10, 20, 100]);
    }
}
