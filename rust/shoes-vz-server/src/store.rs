//! The durable state of the server: runners, agents, and scripts until they are delivered.
//!
//! SQLite in WAL mode, synchronous FULL: a committed transaction survives a power cut. The directory is 0700 and the
//! file 0600, since scripts hold registration tokens; a script is zeroed (`secure_delete`) once its agent has it.
//! A damaged file, or one of a newer version, is refused and not changed; a damaged one may be quarantined.

mod error;
mod quarantine;
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

use crate::fleet::{event::Write, values::Script};

pub use error::StoreError;
pub use rows::Loaded;

/// File name inside the state directory.
pub const FILE: &str = "fleet.sqlite3";

/// "svzF": marks a database of this server.
const APPLICATION_ID: i32 = 0x7376_7a46;

/// The schema, one step for each version; a released step is never changed.
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

/// Makes decisions durable.
pub trait Store: Send + Sync + 'static {
    /// Resolves once all of `writes` are durable, or none. May be called again with rows that are durable already.
    fn commit(&self, writes: Arc<Vec<Write>>) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Checks, after a failed commit, whether there is room for more than a row or two.
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What to do about a damaged database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    /// The server does not start, and the file is not changed.
    Refuse,
    /// The file is renamed, and the server starts empty.
    Quarantine,
}

/// Bytes that the write-ahead log keeps when it is empty.
const LONGEST_LOG: i64 = 4 << 20;
/// Bytes that must have room before a failed store counts as recovered: more than most setup scripts have.
const PROBE: usize = 256 << 10;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
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
    /// As [`Sqlite::open`], but a damaged database may be quarantined (`now` becomes part of its new name).
    pub fn open_or(dir: &Path, damage: OnDamage, now: Timestamp) -> Result<(Self, Loaded), StoreError> {
        match (Self::open(dir), damage) {
            (Err(StoreError::Damaged { path, reason }), OnDamage::Quarantine) => {
                let kept = quarantine::quarantine(&path, now)?;
                tracing::error!(path = %path.display(), reason, quarantined = %kept.display(),
                    "damaged database quarantined; starting empty");
                Self::open(dir)
            }
            (opened, OnDamage::Refuse | OnDamage::Quarantine) => opened,
        }
    }

    /// Opens the database in `dir`, creating both if needed.
    pub fn open(dir: &Path) -> Result<(Self, Loaded), StoreError> {
        let path = dir.join(FILE);
        make_private(dir, &path)?;
        let failed = |e: rusqlite::Error| classify(&path, e);
        let mut connection = Connection::open(&path).map_err(failed)?;
        // A database that is refused is not changed, nor is its log.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
        // The lock is held from here on, so that two servers never share a fleet by accident.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
        check(&connection, &path)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        connection.pragma_update(None, "secure_delete", "ON").map_err(failed)?;
        let loaded = migrate_and_load(&mut connection, &path)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;
        // Shrinks a log that one large refused script has extended.
        connection.pragma_update(None, "journal_size_limit", LONGEST_LOG).map_err(failed)?;
        let file = identity(&path).map_err(|source| StoreError::Create { path: path.clone(), source })?;
        Ok((Self { connection: Arc::new(Mutex::new(connection)), path, file }, loaded))
    }

    /// On a full disk, the log itself may take the missing room.
    fn shrink_log(&self) {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::debug!(reason = %error, "truncating the database's log failed; the next probe retries");
        }
    }

    /// Writes all of `writes` durably, or none, and blocks until that is done.
    pub fn write(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if identity(&self.path).ok() != Some(self.file) {
            return Err(StoreError::Moved(self.path.clone()));
        }
        let all = |transaction: &Transaction<'_>| writes.iter().try_for_each(|w| apply(transaction, w));
        // A failed transaction whose rollback failed too is still open.
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
            // In two transactions, since within one SQLite would never write the row.
            store.shrink_log();
            let id = RunnerId::from(uuid::Uuid::nil());
            store.write(&[Write::Script(id, Script::new(" ".repeat(PROBE)))])?;
            store.write(&[Write::ForgetScript(id)])
        })
        .await
    }
}

fn apply(transaction: &Transaction<'_>, write: &Write) -> rusqlite::Result<()> {
    let delete = |sql: &str, id: String| transaction.prepare_cached(sql)?.execute([id]);
    match write {
        Write::Runner(runner) => rows::put_runner(transaction, runner)?,
        Write::Agent(agent) => rows::put_agent(transaction, agent)?,
        Write::Script(id, script) => {
            let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO scripts VALUES (?1, ?2)")?;
            put.execute(params![id.to_string(), script.reveal()])?
        }
        Write::ForgetScript(id) => delete("DELETE FROM scripts WHERE runner_id = ?1", id.to_string())?,
        Write::RemoveRunner(id) => delete("DELETE FROM runners WHERE runner_id = ?1", id.to_string())?,
        Write::RemoveAgent(id) => delete("DELETE FROM agents WHERE agent_id = ?1", id.to_string())?,
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

/// Refuses a database that this server must not write. Nothing is written here.
fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |e: rusqlite::Error| classify(path, e);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (id, version) = (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).map_err(failed)?;
    if id != APPLICATION_ID && (tables > 0 || id != 0 || version != 0) {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    let (found, known) = (usize::try_from(version).unwrap_or(usize::MAX), MIGRATIONS.len());
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    let sound: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if sound != "ok" {
        return Err(StoreError::Damaged { path: path.to_owned(), reason: sound });
    }
    Ok(())
}

/// In one transaction, so that a database whose rows cannot be read is not migrated either.
fn migrate_and_load(connection: &mut Connection, path: &Path) -> Result<Loaded, StoreError> {
    let failed = |source| StoreError::Write { path: path.to_owned(), source };
    let version: i32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let done = usize::try_from(version).unwrap_or(0);
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    let transaction = connection.transaction().map_err(failed)?;
    for step in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(step).map_err(failed)?;
    }
    // Writes nothing if nothing changed, so that a server starts on a full disk too.
    if (id, done) != (APPLICATION_ID, MIGRATIONS.len()) {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64).map_err(failed)?;
    }
    let loaded = rows::load(&transaction).map_err(|e| match e {
        rows::LoadError::Sqlite(e) => classify(path, e),
        rows::LoadError::Row(reason) => StoreError::Damaged { path: path.to_owned(), reason },
    })?;
    transaction.commit().map_err(failed)?;
    Ok(loaded)
}

fn classify(path: &Path, e: rusqlite::Error) -> StoreError {
    match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse(path.to_owned()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { path: path.to_owned(), reason: e.to_string() }
        }
        _ => StoreError::Write { path: path.to_owned(), source: e },
    }
}

#[cfg(test)]
mod tests;
