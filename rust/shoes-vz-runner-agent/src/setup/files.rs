//! The files of the setup script.

use std::{
    io,
    path::{Path, PathBuf},
};

use shoes_vz_process::files::{self, Readers};

#[derive(Debug, Clone)]
pub(super) struct Files(pub(super) PathBuf);

impl Files {
    pub(super) fn id(&self) -> PathBuf {
        self.0.join("id")
    }
    pub(super) fn script(&self) -> PathBuf {
        self.0.join("script")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    pub(super) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
    pub(super) fn started(&self) -> PathBuf {
        self.0.join("started")
    }
    pub(super) fn exit(&self) -> PathBuf {
        self.0.join("exit")
    }

    pub(super) fn exit_code(&self) -> Option<i32> {
        files::read_text(&self.exit(), 64).ok()?.trim().parse().ok()
    }
}

/// Replaces a file that only its owner can read. A reader sees it whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    files::replace(path, bytes, Readers::Owner)
}
