//! The user of this guest agent, and the environment of its children.

use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// A clean environment. Children do not inherit the guest agent's, which may hold anything.
#[derive(Debug, Clone)]
pub(crate) struct ChildEnv {
    pub(crate) home: PathBuf,
    pub(crate) user: String,
}

impl ChildEnv {
    pub(crate) fn of_this_process() -> Self {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = passwd_entry(&passwd, Uid::current().as_raw());
        let var = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        let user = var("USER")
            .or_else(|| entry.as_ref().map(|e| e.0.clone()))
            .unwrap_or_else(|| Uid::current().to_string());
        let home = var("HOME").map(PathBuf::from).or_else(|| entry.map(|e| e.1));
        let home = home.unwrap_or_else(|| match user.as_str() {
            user if cfg!(target_os = "macos") => Path::new("/Users").join(user),
            _ => PathBuf::from("/"),
        });
        Self { home, user }
    }

    pub(crate) fn vars(&self) -> [(&'static str, std::ffi::OsString); 6] {
        [
            ("HOME", self.home.clone().into()),
            ("USER", self.user.clone().into()),
            ("LOGNAME", self.user.clone().into()),
            ("SHELL", "/bin/bash".into()),
            ("LANG", if cfg!(target_os = "macos") { "en_US.UTF-8" } else { "C.UTF-8" }.into()),
            ("PATH", PATH.into()),
        ]
    }

    /// The working directory of children: home, if it exists.
    pub(crate) fn cwd(&self) -> &Path {
        if self.home.is_dir() { &self.home } else { Path::new("/") }
    }
}

const PATH: &str =
    "/opt/homebrew/bin:/opt/homebrew/sbin:/usr/local/bin:/usr/local/sbin:/usr/bin:/bin:/usr/sbin:/sbin";

/// Name and home of a user. On macOS, which keeps its users elsewhere, launchd sets USER and HOME.
fn passwd_entry(passwd: &str, uid: u32) -> Option<(String, PathBuf)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 7 && fields[2].parse() == Ok(uid)).then(|| (fields[0].to_owned(), fields[5].into()))
    })
}

/// In memory where that is possible, so that a script with a token is not written to a disk.
pub(crate) fn default_state_dir() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let parent =
        if cfg!(target_os = "linux") && shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    parent.join(format!("shoes-vz-runner-agent-{}", Uid::current()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\nbad line\nrunner:x:1000:1000::/home/runner:/bin/bash\n";
        assert_eq!(passwd_entry(passwd, 1000), Some(("runner".into(), "/home/runner".into())));
        assert_eq!(passwd_entry(passwd, 1), None);
    }
}
