//! What outlives the server: runners, agents, and scripts until they are delivered.
//!
//! SQLite in WAL mode, synchronous FULL: a committed transaction survives a power cut. The directory is 0700 and the
//! file 0600, since scripts hold registration tokens; a script is zeroed (`secure_delete`) once its agent has it.
//! A damaged file, or one of a newer version, is refused and left as it is; a damaged one may be moved aside.

mod aside;
mod rows;

use std::{
    fs,
    future::Future,
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, Transaction, config::DbConfig, params};

use shoes_vz_model::RunnerId;

use crate::fleet::{
    agent::Agent,
    runner::Runner,
    types::{Script, Write},
};

/// File name inside the state directory.
pub const FILE: &str = "fleet.sqlite3";

/// "svzF": says that a database is ours.
const APPLICATION_ID: i32 = 0x7376_7a46;

/// The schema, one step for each version; a step is never changed once released.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE agents (
        agent_id TEXT PRIMARY KEY,
        hostname TEXT NOT NULL,
        details TEXT NOT NULL,
        info BLOB
    ) STRICT;
    CREATE TABLE runners (
        runner_id TEXT PRIMARY KEY,
        cloud_id TEXT NOT NULL UNIQUE,
        runner_name TEXT NOT NULL,
        phase TEXT NOT NULL CHECK (phase IN ('queued', 'placed', 'ended')),
        agent_id TEXT,
        details TEXT NOT NULL,
        report BLOB
    ) STRICT;
    CREATE INDEX runners_by_name ON runners (runner_name);
    CREATE TABLE scripts (
        runner_id TEXT PRIMARY KEY,
        script TEXT NOT NULL
    ) STRICT;
    ",
    "ALTER TABLE agents ADD COLUMN cordon TEXT",
];

/// Why a store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be made.
    #[error("cannot make {path} for the fleet's state")]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has it.
    #[error("{0} is in use by another server; stop that one or choose another --state-dir")]
    InUse(PathBuf),
    /// No database, or one with holes.
    #[error(
        "{path} is damaged ({what}); it was left as it is. Start with --replace-damaged-state to have it moved aside \
         and begin empty: running VMs are then adopted again from their agents, requests that wait are lost"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// In SQLite's or our words.
        what: String,
    },
    /// A damaged database stays where it is.
    #[error("cannot move the damaged {from} aside to {to}")]
    Aside {
        /// Which.
        from: PathBuf,
        /// Where to.
        to: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else's database.
    #[error("{0} is a database, but not of shoes-vz-server; choose another --state-dir")]
    Foreign(PathBuf),
    /// A downgrade.
    #[error(
        "{path} was written by a newer shoes-vz-server (schema {found}, this one knows {known}); upgrade this server"
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its schema.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// The file is not where it was: what is written now would be lost with the process.
    #[error("{0} is no longer the file that this server opened")]
    Moved(PathBuf),
    /// Disk full, disk gone.
    #[error("cannot write the fleet's state to {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl StoreError {
    /// Why nothing can be written for now, and what to do; `None` when waiting does not help.
    ///
    /// What may pass is a condition of the disk below the file (SQLITE_FULL, SQLITE_IOERR and its kinds, SQLITE_READONLY,
    /// SQLITE_CANTOPEN, SQLITE_PERM, SQLITE_NOMEM, a lock). A damaged file does not pass, nor does a mistake of ours.
    pub fn may_pass(&self) -> Option<String> {
        use ErrorCode as Code;
        let (path, reason, advice) = match self {
            Self::Write { path, source } => {
                let advice = match source.sqlite_error_code()? {
                    Code::DiskFull => "free space on that file system",
                    Code::ReadOnly | Code::PermissionDenied | Code::CannotOpen => {
                        "make that file system and file writable again"
                    }
                    Code::SystemIoFailure => "free space on that file system, and look at the disk below it",
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
            Self::InUse(path) => (path, "another process has it locked".to_owned(), "let that process end"),
            _ => return None,
        };
        Some(format!(
            "the server cannot write its state to {} ({reason}), so it decides nothing new: {advice}; it goes on by itself \
             once it can write, and the call may be repeated",
            path.display()
        ))
    }
}

/// Where decisions are made durable.
pub trait Store: Send + Sync + 'static {
    /// Resolves once all of `writes` are durable, or none. May be asked again with rows that are durable already.
    fn commit(&self, writes: Arc<Vec<Write>>) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Whether there is room for more than a row or two: asked after a commit that failed.
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What is done about a damaged database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    /// The server does not start, and the file is left as it is.
    Refuse,
    /// It is moved aside, and the server begins empty.
    MoveAside,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every agent.
    pub agents: Vec<Agent>,
    /// Every runner, tombstones too.
    pub runners: Vec<Runner>,
}

/// Bytes that the database's write-ahead log keeps when it is empty.
const LONGEST_LOG: i64 = 4 << 20;
/// Bytes that must have room before a store that failed is said to work: more than most setup scripts have.
const PROBE: usize = 256 << 10;

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(what).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// The store on disk.
#[derive(Debug, Clone)]
pub struct Sqlite {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
    /// Device and number of the open file.
    file: (u64, u64),
}

impl Sqlite {
    /// As [`Sqlite::open`], but a damaged database may be moved aside (`now` becomes part of its new name).
    pub fn open_or(dir: &Path, damage: OnDamage, now: Timestamp) -> Result<(Self, Loaded), StoreError> {
        match (Self::open(dir), damage) {
            (Err(StoreError::Damaged { path, what }), OnDamage::MoveAside) => {
                let kept = aside::move_aside(&path, now)?;
                tracing::error!(path = %path.display(), what, kept = %kept.display(),
                    "the database is damaged; it is kept aside and the fleet begins empty");
                Self::open(dir)
            }
            (opened, OnDamage::Refuse | OnDamage::MoveAside) => opened,
        }
    }

    /// Opens the database in `dir`, making both when they are not there.
    pub fn open(dir: &Path) -> Result<(Self, Loaded), StoreError> {
        let path = dir.join(FILE);
        make_private(dir, &path)?;
        let told = |e: rusqlite::Error| classify(&path, e);
        let mut connection = Connection::open(&path).map_err(told)?;
        // What is refused stays as it is, its log too.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(told)?;
        // The lock is held from here on: two servers never share a fleet by accident.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(told)?;
        check(&connection, &path)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(told)?;
        connection.pragma_update(None, "secure_delete", "ON").map_err(told)?;
        let loaded = migrate_and_load(&mut connection, &path)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(told)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(told)?;
        // A log that one large refused script has stretched does not keep the room.
        connection.pragma_update(None, "journal_size_limit", LONGEST_LOG).map_err(told)?;
        let file = identity(&path).map_err(|source| StoreError::Create { path: path.clone(), source })?;
        Ok((Self { connection: Arc::new(Mutex::new(connection)), path, file }, loaded))
    }

    /// On a full disk the room that is missing may be the log's own.
    fn shrink_log(&self) {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::debug!(%error, "the database's log could not be shortened; the next probe tries again");
        }
    }

    /// Writes all of `writes` durably, or none, and blocks until that is done.
    pub fn write(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if identity(&self.path).ok() != Some(self.file) {
            return Err(StoreError::Moved(self.path.clone()));
        }
        let all = |transaction: &Transaction<'_>| writes.iter().try_for_each(|w| apply(transaction, w));
        // A failed transaction whose rollback failed too is still there.
        let rolled_back = match connection.is_autocommit() {
            true => Ok(()),
            false => connection.execute_batch("ROLLBACK"),
        };
        rolled_back
            .and_then(|()| connection.transaction())
            .and_then(|transaction| {
                all(&transaction)?;
                transaction.commit()
            })
            .map_err(|e| classify(&self.path, e))
    }
}

impl Store for Sqlite {
    async fn commit(&self, writes: Arc<Vec<Write>>) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || store.write(&writes)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            // Written and removed in two transactions: within one, SQLite would never write it.
            store.shrink_log();
            let id = RunnerId::from(uuid::Uuid::nil());
            store.write(&[Write::Script(id, Script::new(" ".repeat(PROBE)))])?;
            store.write(&[Write::ForgetScript(id)])
        })
        .await
    }
}

fn apply(transaction: &Transaction<'_>, write: &Write) -> rusqlite::Result<()> {
    match write {
        Write::Runner(runner) => rows::put_runner(transaction, runner)?,
        Write::Agent(agent) => rows::put_agent(transaction, agent)?,
        Write::Script(id, script) => {
            let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO scripts VALUES (?1, ?2)")?;
            put.execute(params![id.to_string(), script.reveal()])?
        }
        Write::ForgetScript(id) => transaction
            .prepare_cached("DELETE FROM scripts WHERE runner_id = ?1")?
            .execute([id.to_string()])?,
        Write::RemoveRunner(id) => transaction
            .prepare_cached("DELETE FROM runners WHERE runner_id = ?1")?
            .execute([id.to_string()])?,
        Write::RemoveAgent(id) => {
            transaction.prepare_cached("DELETE FROM agents WHERE agent_id = ?1")?.execute([id.to_string()])?
        }
    };
    Ok(())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

fn make_private(dir: &Path, file: &Path) -> Result<(), StoreError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Create { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
    // SQLite gives its side files the mode of the file itself.
    let file_ = fs::File::options().create(true).append(true).mode(0o600).open(file).map_err(at(file))?;
    file_.set_permissions(fs::Permissions::from_mode(0o600)).map_err(at(file))
}

/// Refuses what is not ours to write. Nothing is written here.
fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let told = |e: rusqlite::Error| classify(path, e);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (id, version) = (number("application_id").map_err(told)?, number("user_version").map_err(told)?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).map_err(told)?;
    if id != APPLICATION_ID && (tables > 0 || id != 0 || version != 0) {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    let known = MIGRATIONS.len();
    match usize::try_from(version) {
        Ok(found) if found <= known => {}
        found => {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found: found.unwrap_or(usize::MAX),
                known,
            });
        }
    }
    let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(told)?;
    if sound != "ok" {
        return Err(StoreError::Damaged { path: path.to_owned(), what: sound });
    }
    Ok(())
}

/// One transaction: a database whose rows cannot be read is not brought to a later version either.
fn migrate_and_load(connection: &mut Connection, path: &Path) -> Result<Loaded, StoreError> {
    let told = |source| StoreError::Write { path: path.to_owned(), source };
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(told)?;
    let done = usize::try_from(version).unwrap_or(0);
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(told)?;
    let transaction = connection.transaction().map_err(told)?;
    for step in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(step).map_err(told)?;
    }
    // Nothing is written where nothing changed, so that a server starts on a full disk too.
    if (id, done) != (APPLICATION_ID, MIGRATIONS.len()) {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(told)?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64).map_err(told)?;
    }
    let loaded = rows::load(&transaction).map_err(|e| match e {
        rows::LoadError::Sqlite(e) => classify(path, e),
        rows::LoadError::Row(what) => StoreError::Damaged { path: path.to_owned(), what },
    })?;
    transaction.commit().map_err(told)?;
    Ok(loaded)
}

fn classify(path: &Path, e: rusqlite::Error) -> StoreError {
    match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse(path.to_owned()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { path: path.to_owned(), what: e.to_string() }
        }
        _ => StoreError::Write { path: path.to_owned(), source: e },
    }
}

#[cfg(test)]
mod tests;
