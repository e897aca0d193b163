//! The ends the server has not acknowledged yet, on disk, so that no restart loses a reason.
//!
//! An end is kept from the moment it is decided, which is before the VM is stopped: an agent killed in between goes on
//! with the teardown and with the same reason. The file is a `SyncRequest` whose runners all have an `end`.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use prost::Message as _;
use shoes_vz_model::id::RunnerId;
use shoes_vz_proto::agent as wire;

use crate::files;

/// Kept ends, by runner id.
#[derive(Debug)]
pub struct Ends {
    path: PathBuf,
    ends: Mutex<BTreeMap<RunnerId, wire::Runner>>,
}

impl Ends {
    /// Those kept in `state_dir`.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(".ends");
        let kept = match files::read(&path)? {
            Some(bytes) => wire::SyncRequest::decode(&bytes[..]).map_err(io::Error::other)?.runners,
            None => Vec::new(),
        };
        let typed = kept.into_iter().map(|r| Ok((r.runner_id.parse().map_err(io::Error::other)?, r)));
        Ok(Self { path, ends: Mutex::new(typed.collect::<io::Result<_>>()?) })
    }

    /// Keeps `runner`'s end, in place of an earlier one.
    pub fn keep(&self, id: RunnerId, runner: wire::Runner) {
        self.change(|ends| {
            ends.insert(id, runner);
            true
        });
    }

    pub fn forget(&self, ids: &[RunnerId]) {
        self.change(|ends| ids.iter().filter(|id| ends.remove(*id).is_some()).count() > 0);
    }

    pub fn get(&self, id: RunnerId) -> Option<wire::Runner> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub fn all(&self) -> BTreeMap<RunnerId, wire::Runner> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A disk that cannot be written costs a reason after the next restart, never a runner's teardown.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<RunnerId, wire::Runner>) -> bool) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut ends) {
            return;
        }
        let all = wire::SyncRequest { runners: ends.values().cloned().collect(), ..Default::default() };
        if let Err(error) = files::replace(&self.path, &all.encode_to_vec(), files::Readers::Owner) {
            tracing::error!(path = ?self.path, reason = %error, "writing end reports failed; a restart of the agent would lose them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(id: RunnerId, reason: &str) -> wire::Runner {
        let end = wire::RunnerEnd { reason: reason.into(), ..Default::default() };
        wire::Runner { runner_id: id.to_string(), end: Some(end), ..Default::default() }
    }

    #[test]
    fn an_end_survives_a_restart_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::open(dir.path()).unwrap();
        let (a, b) = (RunnerId::random(), RunnerId::random());
        ends.keep(a, ended(a, "first"));
        ends.keep(a, ended(a, "second"));
        ends.keep(b, ended(b, "other"));
        let again = Ends::open(dir.path()).unwrap();
        assert_eq!(again.get(a), Some(ended(a, "second")));
        again.forget(&[a, RunnerId::random()]);
        assert_eq!(Ends::open(dir.path()).unwrap().all(), BTreeMap::from([(b, ended(b, "other"))]));
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_an_empty_store() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".ends"), b"\xff\xff\xff").unwrap();
        assert!(Ends::open(dir.path()).is_err());
    }
}
