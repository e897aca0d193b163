//! `template build-linux`: a Linux template from Debian or Ubuntu packages of this machine's release.
//!
//! ```text
//!  arguments ─▶ checks ─▶ locks ─▶ build.sh fills <parent>/.<name>.new ─▶ Template.json ─▶ publish
//!                                                                          (exchanged with an existing template)
//! ```
//! Bundles are overlays over the `Disk.img` of a template. A new version is therefore a new file that replaces the old one
//! and never changes it, so that running guests keep the version that they have open.

mod publish;
mod static_elf;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use shoes_vz_model::template::{Os, Template, Transport, file};
use shoes_vz_terminal::output::note;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{cli::BuildLinux, commands::print};

use publish::{Scratch, publish};
use static_elf::Linkage;

const SCRIPT: &str = include_str!("../../../../guests/linux/build.sh");

/// Boots fast where the processor is emulated. It disables defenses that a VM used once, for one job, does not need
/// (mitigations, LSMs except capabilities); use `--kernel-cmdline` for others. The disabled initcalls are self-tests and key
/// rings that the guest does not use.
const KERNEL_CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t quiet audit=0 mitigations=off init_on_alloc=0 \
     no_timer_check tsc=reliable lsm=capability cryptomgr.notests random.trust_cpu=on \
     initcall_blacklist=bpf_tcp_ca_kfunc_init,load_system_certificate_list,jent_mod_init,bpf_dummy_struct_ops_init,\
     bpf_prog_test_run_init,init_encrypted,crypto_kdf108_init,ecdsa_init";
const SERIAL_CONSOLE: &str = if cfg!(target_arch = "aarch64") { "ttyAMA0" } else { "ttyS0" };

/// Builds the template, unless it is up to date.
///
/// # Errors
/// Every mistake in the arguments, or the build step that failed and what to do.
pub async fn run(args: BuildLinux) -> anyhow::Result<()> {
    ensure!(
        cfg!(target_os = "linux"),
        "a Linux template is built from Debian or Ubuntu packages; build it on such a machine and copy the directory to this host"
    );
    let plan = BuildPlan::check(&args)?;
    tokio::select! {
        built = plan.build(&args) => built,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot wait for Ctrl-C")?;
            bail!("interrupted; only the cache was changed")
        }
    }
}

/// The checked arguments.
#[derive(Debug)]
struct BuildPlan {
    output: PathBuf,
    parent: PathBuf,
    name: String,
    cache: PathBuf,
    guest_agent: PathBuf,
    guest_init: PathBuf,
    overlays: Vec<PathBuf>,
}

impl BuildPlan {
    fn check(args: &BuildLinux) -> anyhow::Result<Self> {
        let mut mistakes = Vec::new();
        let mut collect = |checked: anyhow::Result<PathBuf>| {
            checked.unwrap_or_else(|e| {
                mistakes.push(format!("{e:#}"));
                PathBuf::new()
            })
        };
        let guest_agent =
            collect(guest_program("--guest-agent", args.guest_agent.as_deref(), "shoes-vz-runner-agent"));
        let guest_init =
            collect(guest_program("--guest-init", args.guest_init.as_deref(), "shoes-vz-guest-init"));
        let overlays = args.overlay.iter().map(|dir| collect(overlay(dir))).collect();
        let cache = collect(cache(args.cache.as_deref()));
        let output = collect(std::path::absolute(&args.output).context("--output"));
        let target = output
            .parent()
            .zip(output.file_name())
            .map(|(p, n)| (p.to_owned(), n.to_string_lossy().into_owned()));
        if target.is_none() {
            mistakes.push(format!("--output: {} cannot be a template", output.display()));
        }
        if let Err(e) = publish::may_be_replaced(&output) {
            mistakes.push(format!("--output: {e:#}"));
        }
        if let Some(package) = args.package.iter().find(|p| !is_package_name(p)) {
            mistakes.push(format!("--package: {package:?} is not a valid package name"));
        }
        match target {
            Some((parent, name)) if mistakes.is_empty() => {
                Ok(Self { output, parent, name, cache, guest_agent, guest_init, overlays })
            }
            _ => bail!("{}", mistakes.join("\n")),
        }
    }

    async fn build(&self, args: &BuildLinux) -> anyhow::Result<()> {
        fs::create_dir_all(&self.cache)
            .with_context(|| format!("cannot create the cache {}", self.cache.display()))?;
        fs::create_dir_all(&self.parent)
            .with_context(|| format!("cannot create {}", self.parent.display()))?;
        let _cache_lock = lock(self.cache.join("lock")).await?;
        let _parent_lock = lock(self.parent.clone()).await?;

        let old = read_template(&self.output);
        let scratch = Scratch::new(self.parent.join(format!(".{}.new", self.name)))?;
        self.run_script(args, scratch.path(), old.as_ref().map_or("", |t| &t.version)).await?;

        if !scratch.path().exists() {
            let Some(old) = old else {
                bail!("build.sh succeeded without writing a template; this is a bug in build.sh")
            };
            let new = describe(args, old.version.clone(), old.ssh_host_key.clone());
            if new != old {
                write_template(&self.output, &new)?;
                print(&format!("template {}: only Template.json changed", self.output.display()))?;
            }
            return Ok(());
        }
        let take = |name: &str| {
            let path = scratch.path().join(name);
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            anyhow::Ok(text.trim().to_owned())
        };
        let (version, host_key, kernel) = (take("version")?, take("host_key.pub")?, take("kernel.release")?);
        write_template(scratch.path(), &describe(args, version.clone(), host_key))?;
        publish(scratch, &self.output)?;
        print(&format!("template {}: version {version}, Linux {kernel}", self.output.display()))
    }

    async fn run_script(&self, args: &BuildLinux, out: &Path, have_version: &str) -> anyhow::Result<()> {
        let script = self.cache.join("build.sh");
        let mut file = tokio::fs::File::create(&script)
            .await
            .with_context(|| format!("cannot write {}", script.display()))?;
        file.write_all(SCRIPT.as_bytes())
            .await
            .with_context(|| format!("cannot write {}", script.display()))?;
        file.flush().await.with_context(|| format!("cannot write {}", script.display()))?;
        let overlays: Vec<_> = self.overlays.iter().map(|o| o.to_string_lossy().into_owned()).collect();
        let status = Command::new("bash")
            .arg(&script)
            .env("OUT", out)
            .env("CACHE", &self.cache)
            .env("GUEST_AGENT", &self.guest_agent)
            .env("GUEST_INIT", &self.guest_init)
            .env("OVERLAYS", overlays.join("\n"))
            .env("DISK_BYTES", args.disk_size.to_string())
            .env("SUITE", &args.suite)
            .env("PACKAGES", args.package.join(" "))
            .env("HAVE_VERSION", have_version)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .context("cannot start bash")?;
        ensure!(status.success(), "building the guest failed ({status}); see the output above");
        Ok(())
    }
}

fn describe(args: &BuildLinux, version: String, ssh_host_key: String) -> Template {
    let default_cmdline = || KERNEL_CMDLINE.replace("ttyS0", SERIAL_CONSOLE);
    Template {
        name: args.name.clone(),
        version,
        os: Os::Linux,
        labels: args.label.clone(),
        ssh_host_key,
        ssh_key_file: "ssh_key".into(),
        guest_agent: Transport::Channel,
        kernel_cmdline: args.kernel_cmdline.clone().unwrap_or_else(default_cmdline),
        ..Template::default()
    }
}

/// `None` if there is no template, or one that is incomplete or cannot be read and is therefore rebuilt.
fn read_template(dir: &Path) -> Option<Template> {
    let complete = Os::Linux.required_files().iter().chain(&["ssh_key"]).all(|f| dir.join(f).is_file());
    let text = fs::read(dir.join(file::METADATA)).ok().filter(|_| complete)?;
    serde_json::from_slice(&text).ok()
}

fn write_template(dir: &Path, template: &Template) -> anyhow::Result<()> {
    let path = dir.join(file::METADATA);
    let part = dir.join(".Template.json.new");
    let text = serde_json::to_vec_pretty(template).context("cannot write Template.json")?;
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn lock(path: PathBuf) -> anyhow::Result<File> {
    let failure = format!("cannot lock {}", path.display());
    let file =
        if path.is_dir() { File::open(&path) } else { File::options().create(true).append(true).open(&path) }
            .with_context(|| failure.clone())?;
    if file.try_lock().is_ok() {
        return Ok(file);
    }
    note(&format!("another build holds {}; waiting for it", path.display()));
    tokio::task::spawn_blocking(move || file.lock().map(|()| file))
        .await
        .context("cannot wait for the lock")?
        .context(failure)
}

fn guest_program(flag: &str, given: Option<&Path>, default_name: &str) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => std::path::absolute(path).context(flag.to_owned())?,
        None => {
            std::env::current_exe().context("cannot find this program's file")?.with_file_name(default_name)
        }
    };
    match static_elf::linkage(&path).with_context(|| format!("{flag}: {} cannot be read", path.display()))? {
        Linkage::Static => Ok(path),
        Linkage::Dynamic => {
            bail!(
                "{flag}: {} needs shared libraries that the guest may not have; `make guest` links it statically",
                path.display()
            )
        }
        Linkage::NotElf => bail!("{flag}: {} is not a Linux program", path.display()),
    }
}

fn overlay(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.canonicalize().with_context(|| format!("--overlay: {}", dir.display()))?;
    ensure!(path.is_dir(), "--overlay: {} is not a directory", path.display());
    ensure!(
        path.to_str().is_some_and(|p| !p.contains('\n')),
        "--overlay: the path {} must be UTF-8 without line breaks",
        path.display()
    );
    Ok(path)
}

fn cache(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match (given, std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(path), ..) => path.to_owned(),
        (None, Some(cache), _) if !cache.is_empty() => Path::new(&cache).join("shoes-vz/linux-guest"),
        (None, _, Some(home)) => Path::new(&home).join(".cache/shoes-vz/linux-guest"),
        (None, ..) => bail!("--cache is needed: neither XDG_CACHE_HOME nor HOME is set"),
    };
    std::path::absolute(path).context("--cache")
}

/// Debian Policy §5.6.1, with `=version` and `:arch` refused.
fn is_package_name(name: &str) -> bool {
    name.len() >= 2
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path) -> BuildLinux {
        BuildLinux {
            output: dir.join("template"),
            guest_agent: None,
            guest_init: None,
            overlay: Vec::new(),
            cache: Some(dir.join("cache")),
            disk_size: 1 << 30,
            suite: String::new(),
            package: Vec::new(),
            name: "demo".into(),
            label: vec!["linux".into()],
            kernel_cmdline: None,
        }
    }

    #[test]
    fn every_mistake_in_the_arguments_is_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let args = BuildLinux {
            guest_agent: Some(dir.path().join("no-agent")),
            guest_init: Some("/proc/version".into()),
            overlay: vec![dir.path().join("no-overlay")],
            package: vec!["curl".into(), "--oops".into()],
            ..args(dir.path())
        };
        let reported = BuildPlan::check(&args).unwrap_err().to_string();
        for word in ["no-agent", "--guest-init", "no-overlay", "--oops"] {
            assert!(reported.contains(word), "{word}: {reported}");
        }
        assert!(!reported.contains("curl"), "{reported}");
    }

    #[test]
    fn a_program_that_needs_shared_libraries_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let args = BuildLinux { guest_agent: Some("/bin/bash".into()), ..args(dir.path()) };
        let reported = BuildPlan::check(&args).unwrap_err().to_string();
        assert!(
            reported.contains("/bin/bash needs shared libraries") && reported.contains("make guest"),
            "{reported}"
        );
    }

    #[test]
    fn the_agent_accepts_the_description() {
        let dir = tempfile::tempdir().unwrap();
        let template = describe(&args(dir.path()), "v1".into(), "ssh-ed25519 AAAA".into());
        write_template(dir.path(), &template).unwrap();
        for name in ["Disk.img", "kernel", "initrd", "ssh_key"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(read_template(dir.path()), Some(template.clone()));
        assert!(!template.kernel_cmdline.contains("  ") && template.kernel_cmdline.contains("console=tty"));
        assert!(!template.kernel_cmdline.contains("shoesvz.test"));
        fs::remove_file(dir.path().join("initrd")).unwrap();
        assert_eq!(read_template(dir.path()), None, "an incomplete template is rebuilt");
    }

    #[tokio::test]
    async fn two_builds_with_one_cache_run_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path().join("lock")).await.unwrap();
        let path = dir.path().join("lock");
        let mut second = Box::pin(lock(path.clone()));
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), &mut second).await;
        assert!(early.is_err(), "the second got the lock while the first held it");
        drop(first);
        drop(second.await.unwrap());
        File::open(&path).unwrap().try_lock().unwrap();
    }
}
