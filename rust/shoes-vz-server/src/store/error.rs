//! Why the store cannot be opened or written, and whether that may pass.

use std::{io, path::PathBuf};

use rusqlite::ErrorCode;

/// Why a store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot create {path} for the fleet's state")]
    Create { path: PathBuf, source: io::Error },
    #[error("{0} is in use by another server; stop that one or choose another --state-dir")]
    InUse(PathBuf),
    /// Not a database, or one that cannot be read.
    #[error(
        "{path} is damaged ({reason}); it was not changed. Start with --replace-damaged-state to quarantine it and start \
         empty: the server then adopts running VMs from their agents, and waiting requests are lost"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("cannot quarantine the damaged {from}: it cannot be renamed to {to}")]
    Quarantine { from: PathBuf, to: PathBuf, source: io::Error },
    #[error("{0} is a database of another program; choose another --state-dir")]
    Foreign(PathBuf),
    #[error(
        "{path} was written by a newer shoes-vz-server (schema {found}, this one knows {known}); upgrade this server"
    )]
    Newer { path: PathBuf, found: usize, known: usize },
    /// The file was moved or removed: what is written now would be lost with the process.
    #[error("{0} is no longer the file that this server opened")]
    Moved(PathBuf),
    #[error("cannot write the fleet's state to {path}")]
    Write { path: PathBuf, source: rusqlite::Error },
}

impl StoreError {
    /// Why nothing can be written for now, and what to do; `None` if waiting does not help.
    ///
    /// What may pass is a condition of the disk below the file (SQLITE_FULL, SQLITE_IOERR and its kinds, SQLITE_READONLY,
    /// SQLITE_CANTOPEN, SQLITE_PERM, SQLITE_NOMEM, a lock). A damaged file does not pass, nor does a bug of the server.
    pub fn may_pass(&self) -> Option<String> {
        use ErrorCode as Code;
        let (path, reason, advice) = match self {
            Self::Write { path, source } => {
                let advice = match source.sqlite_error_code()? {
                    Code::DiskFull => "free space on that file system",
                    Code::ReadOnly | Code::PermissionDenied | Code::CannotOpen => {
                        "make that file system and file writable again"
                    }
                    Code::SystemIoFailure => "free space on that file system, and check its disk",
                    Code::OutOfMemory => "free memory",
                    _ => return None,
                };
                (path, source.to_string(), advice)
            }
            Self::Moved(path) => (
                path,
                "it is no longer the file that this server opened: its directory was moved or removed"
                    .to_owned(),
                "put it back, or restart the server",
            ),
            Self::InUse(path) => (path, "another process has locked it".to_owned(), "stop that process"),
            _ => return None,
        };
        Some(format!(
            "the server cannot write its state to {} ({reason}), so it accepts nothing that must be written: {advice}; it \
             resumes by itself once it can write, so retry the call",
            path.display()
        ))
    }
}
