use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, CloudId, ResourceType, RunnerId};
use shoes_vz_proto::agent as wire;

use super::*;
use crate::fleet::{
    agent::{Agent, Cordon},
    labels::Offers,
    runner::{Delivery, Ended, Live, Phase, Placed, Runner, Termination, TerminationKind},
    values::{Script, VmSize},
};

fn runner(name: &str, phase: Phase) -> Runner {
    Runner {
        id: RunnerId::random(),
        cloud_id: CloudId::random(),
        name: name.parse().unwrap(),
        resource_type: ResourceType::Large,
        size: VmSize { cpus: 3, memory_bytes: 7, disk_bytes: 0 },
        template: "sequoia".into(),
        labels: vec!["self-hosted".into()],
        request_id: "r-1".into(),
        requested_at: Timestamp::UNIX_EPOCH,
        refusals: 2,
        claims: 1,
        phase,
        live: Live::default(),
    }
}

fn placed(agent: AgentId, delivery: Delivery) -> Phase {
    Phase::Placed(Placed {
        agent,
        template: "xcode".into(),
        queued_for: Duration::from_micros(1234),
        delivery,
        report: Some(wire::Runner { ip_address: "10.0.0.2".into(), ..Default::default() }),
        termination: Some(Termination { kind: TerminationKind::Deleted, reason: "for a test".into() }),
    })
}

fn debug(mut all: Vec<Runner>) -> String {
    all.sort_by_key(|r| r.id);
    format!("{all:#?}")
}

fn put(store: &Sqlite, runner: &Runner, script: Option<&Script>) {
    let mut writes = vec![Write::Runner(Box::new(runner.clone()))];
    writes.extend(script.map(|s| Write::Script(runner.id, s.clone())));
    store.write(&writes).unwrap();
}

fn refusal(dir: &Path) -> String {
    Sqlite::open(dir).unwrap_err().to_string()
}

#[test]
fn what_was_written_is_read_back_in_every_phase() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let (store, loaded) = Sqlite::open(&state).unwrap();
    assert!(loaded.runners.is_empty() && loaded.agents.is_empty());
    let script = Script::new("#!/bin/sh\necho token");
    let info = wire::AgentInfo { os: "linux".into(), protocol: 1, ..Default::default() };
    let agent = Agent {
        id: AgentId::random(),
        hostname: "mac-1".into(),
        capacity: wire::AgentCapacity { max_runners: 2, cpu_cores: 8, memory_bytes: 1 << 40 },
        offers: Offers::of(Some(&info)),
        info: Some(info),
        last_seen: Timestamp::UNIX_EPOCH,
        cordon: Some(Cordon { reason: "new disk".into(), since: Timestamp::UNIX_EPOCH }),
        session: None,
        fallbacks: Default::default(),
    };
    let ended = Phase::Ended(Ended {
        agent: Some(agent.id),
        hostname: "mac-1".into(),
        queued_for: Duration::from_micros(9),
        report: wire::Runner { end: Some(wire::RunnerEnd::default()), ..Default::default() },
        at: Timestamp::UNIX_EPOCH,
    });
    let all = vec![
        runner("a", Phase::Queued(script.clone())),
        runner("b", placed(agent.id, Delivery::Pending(script.clone()))),
        runner("c", placed(agent.id, Delivery::Done)),
        runner("d", ended),
    ];
    for (at, r) in all.iter().enumerate() {
        put(&store, r, (at < 2).then_some(&script));
    }
    store.write(&[Write::Agent(Box::new(agent.clone()))]).unwrap();
    drop(store);

    let (store, loaded) = Sqlite::open(&state).unwrap();
    assert_eq!(debug(loaded.runners), debug(all.clone()));
    assert_eq!(format!("{:?}", loaded.agents), format!("[{agent:?}]"));
    store.write(&[Write::RemoveRunner(all[3].id), Write::RemoveAgent(agent.id)]).unwrap();
    drop(store);
    let (_, loaded) = Sqlite::open(&state).unwrap();
    assert_eq!((loaded.runners.len(), loaded.agents.len()), (3, 0));
}

#[test]
fn the_state_is_for_its_owner_only_and_a_delivered_script_leaves_no_trace_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (store, _) = Sqlite::open(&state).unwrap();
    let script = Script::new("registration-token-4711");
    let row = runner("a", Phase::Queued(script.clone()));
    put(&store, &row, Some(&script));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    let mut seen = false;
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
        seen |= String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(script.reveal());
    }
    assert!(seen, "it is kept until it is delivered");
    store.write(&[Write::RemoveRunner(row.id), Write::ForgetScript(row.id)]).unwrap();
    // Closing checkpoints the log away.
    drop(store);
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        let left = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        assert!(!left.contains(script.reveal()), "{path:?}");
    }
}

#[test]
fn a_transaction_is_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Sqlite::open(dir.path()).unwrap();
    let good = runner("a", placed(AgentId::random(), Delivery::Done));
    let twin = Runner { id: RunnerId::random(), name: "b".parse().unwrap(), ..good.clone() };
    put(&store, &good, None);
    store
        .connection
        .lock()
        .unwrap()
        .execute_batch("CREATE TRIGGER no BEFORE INSERT ON agents BEGIN SELECT RAISE(ABORT, 'full'); END")
        .unwrap();
    let agent = Agent {
        id: AgentId::random(),
        hostname: String::new(),
        capacity: wire::AgentCapacity::default(),
        info: None,
        last_seen: Timestamp::UNIX_EPOCH,
        offers: Offers::Anything,
        cordon: None,
        session: None,
        fallbacks: Default::default(),
    };
    let twin = Runner { cloud_id: CloudId::random(), ..twin };
    let failed = store.write(&[Write::Runner(Box::new(twin)), Write::Agent(Box::new(agent))]).unwrap_err();
    assert!(failed.to_string().contains("fleet.sqlite3"), "{failed}");
    drop(store);
    assert_eq!(Sqlite::open(dir.path()).unwrap().1.runners.len(), 1);
}

#[test]
fn a_second_server_on_the_same_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = Sqlite::open(dir.path()).unwrap();
    assert!(refusal(dir.path()).contains("in use by another server"));
    drop(first);
    assert!(Sqlite::open(dir.path()).is_ok());
}

#[test]
fn a_damaged_a_foreign_and_a_newer_database_are_refused_with_a_reason_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let unchanged = |part: &str| {
        let before = fs::read(&path).unwrap();
        let reason = refusal(dir.path());
        assert!(reason.contains(part), "{reason}");
        assert!(fs::read(&path).unwrap() == before, "{part}: the file was changed");
    };
    fs::write(&path, "this is not a database, whatever its name says. ".repeat(100)).unwrap();
    unchanged("is damaged");

    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE recipes (soup TEXT)").unwrap();
    unchanged("of another program");

    fs::remove_file(&path).unwrap();
    drop(Sqlite::open(dir.path()).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    unchanged("newer shoes-vz-server");

    fs::remove_file(&path).unwrap();
    let (store, _) = Sqlite::open(dir.path()).unwrap();
    for n in 0..200 {
        put(&store, &runner(&format!("r{n}"), placed(AgentId::random(), Delivery::Done)), None);
    }
    drop(store);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    unchanged("is damaged");
}

#[test]
fn the_refusal_of_a_damaged_database_names_the_file_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), "not a database ".repeat(100)).unwrap();
    let reason = refusal(dir.path());
    for part in [dir.path().join(FILE).to_str().unwrap(), "--replace-damaged-state", "was not changed"] {
        assert!(reason.contains(part), "{reason}");
    }
}

/// Every file in the directory, by its name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    all.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// A database as a server that was killed leaves it, with a log beside it, and a hole in its middle.
fn damaged_with_a_log(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let alive = tempfile::tempdir().unwrap();
    let (store, _) = Sqlite::open(alive.path()).unwrap();
    for n in 0..200 {
        put(&store, &runner(&format!("r{n}"), placed(AgentId::random(), Delivery::Done)), None);
    }
    drop(store);
    let (store, _) = Sqlite::open(alive.path()).unwrap();
    put(&store, &runner("late", placed(AgentId::random(), Delivery::Done)), None);
    let mut left = files(alive.path());
    drop(store);
    assert!(!left[&format!("{FILE}-wal")].is_empty(), "{:?}", left.keys());
    let bytes = left.get_mut(FILE).unwrap();
    // More pages than the log has copies of.
    let quarter = bytes.len() / 4;
    bytes[quarter..3 * quarter].fill(0x5a);
    left.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
    left
}

#[test]
fn a_damaged_database_is_refused_with_its_log_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let before = damaged_with_a_log(dir.path());
    assert!(refusal(dir.path()).contains("is damaged"));
    assert!(files(dir.path()) == before, "{:?}", files(dir.path()).keys());
}

#[test]
fn a_damaged_database_is_quarantined_whole_on_request_and_nothing_is_ever_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let replace = || Sqlite::open_or(dir.path(), OnDamage::Quarantine, Timestamp::UNIX_EPOCH);
    let first = damaged_with_a_log(dir.path());
    let (store, loaded) = replace().unwrap();
    assert!(loaded.runners.is_empty() && loaded.agents.is_empty());
    put(&store, &runner("new", placed(AgentId::random(), Delivery::Done)), None);
    drop(store);
    assert_eq!(replace().unwrap().1.runners.len(), 1, "a sound database stays where it is");

    // A second time in the same second.
    fs::write(dir.path().join(FILE), "not a database").unwrap();
    drop(replace().unwrap());
    let kept = files(dir.path());
    let quarantined = format!("{FILE}.damaged-19700101T000000Z");
    assert!(
        kept[&quarantined] == first[FILE]
            && kept[&format!("{quarantined}-wal")] == first[&format!("{FILE}-wal")]
    );
    assert_eq!(kept[&format!("{quarantined}-2")], b"not a database");
    let mode = fs::metadata(dir.path().join(&quarantined)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "scripts are in it");
}

#[test]
fn a_newer_or_foreign_database_is_never_quarantined() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE recipes (soup TEXT)").unwrap();
    let before = files(dir.path());
    let error = Sqlite::open_or(dir.path(), OnDamage::Quarantine, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(matches!(error, StoreError::Foreign(_)), "{error}");
    assert!(files(dir.path()) == before);
}

#[test]
fn a_database_of_the_first_version_with_an_unreadable_row_is_not_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join(FILE)).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    connection.execute("UPDATE agents SET details = '{}'", []).unwrap();
    drop(connection);
    let before = files(dir.path());
    assert!(refusal(dir.path()).contains("is damaged (agent "));
    assert!(files(dir.path()) == before, "{:?}", files(dir.path()).keys());
}

/// What the first version wrote, verbatim.
const VERSION_1: &str = r#"
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
    INSERT INTO agents VALUES ('00000000-0000-4000-8000-0000000000a1', 'mac-1',
        '{"max_runners":2,"cpu_cores":8,"memory_bytes":17179869184,"last_seen":"2026-11-25T00:00:00Z"}',
        x'12056d61636f73');
    INSERT INTO agents VALUES ('00000000-0000-4000-8000-0000000000a2', 'go-1',
        '{"max_runners":1,"cpu_cores":8,"memory_bytes":0,"last_seen":"2026-11-25T00:00:00Z"}', NULL);
    INSERT INTO runners VALUES ('00000000-0000-4000-8000-000000000001', 'shoes-vz-00000000-0000-4000-8000-000000000011',
        'queued', 'queued', NULL,
        '{"resource_type":"large","shape":{"cpus":3,"memory_bytes":7,"disk_bytes":0},"labels":["self-hosted"],"request_id":"r-1","requested_at":"2026-11-25T00:00:00Z","claims":0,"template":"","queued_us":0,"delivered":false,"doom":null,"hostname":"","ended_at":null}',
        NULL);
    INSERT INTO runners VALUES ('00000000-0000-4000-8000-000000000002', 'shoes-vz-00000000-0000-4000-8000-000000000012',
        'placed', 'placed', '00000000-0000-4000-8000-0000000000a1',
        '{"resource_type":"nano","labels":[],"request_id":"","requested_at":"2026-11-25T00:00:01Z","claims":1,"template":"xcode","queued_us":1234,"delivered":true,"doom":{"kind":"deleted","reason":"why not"},"hostname":"","ended_at":null}',
        x'2004');
    INSERT INTO runners VALUES ('00000000-0000-4000-8000-000000000003', 'shoes-vz-00000000-0000-4000-8000-000000000013',
        'ended', 'ended', '00000000-0000-4000-8000-0000000000a1',
        '{"resource_type":"nano","labels":[],"request_id":"","requested_at":"2026-11-25T00:00:02Z","claims":1,"queued_us":9,"hostname":"mac-1","ended_at":"2026-11-25T00:01:00Z"}',
        x'6a020801');
    INSERT INTO scripts VALUES ('00000000-0000-4000-8000-000000000001', 'echo token');
    PRAGMA application_id = 0x73767a46;
    PRAGMA user_version = 1;
"#;

#[test]
fn a_database_of_the_first_version_is_migrated_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    Connection::open(&path).unwrap().execute_batch(VERSION_1).unwrap();
    let (store, mut loaded) = Sqlite::open(dir.path()).unwrap();
    loaded.agents.sort_by_key(|a| a.id);
    let agents: Vec<_> = loaded.agents.iter().map(|a| (a.hostname.as_str(), a.cordon.is_some())).collect();
    assert_eq!(agents, [("mac-1", false), ("go-1", false)]);
    assert_eq!((loaded.agents[0].capacity.max_runners, loaded.agents[1].info.is_none()), (2, true));
    assert_eq!(loaded.agents[0].info.as_ref().unwrap().os, "macos");
    loaded.runners.sort_by_key(|r| r.id);
    let [queued, placed, ended] = loaded.runners.as_slice() else { panic!("{:?}", loaded.runners) };
    assert!(matches!(&queued.phase, Phase::Queued(s) if s.reveal() == "echo token"), "{queued:?}");
    assert_eq!((queued.size.cpus, queued.labels.as_slice()), (3, ["self-hosted".to_owned()].as_slice()));
    let was = placed.placed().unwrap();
    assert_eq!((was.agent, was.template.as_str()), (loaded.agents[0].id, "xcode"));
    assert!(was.termination.is_some() && matches!(was.delivery, Delivery::Done));
    assert_eq!(placed.state(), shoes_vz_model::State::Running);
    assert!(matches!(&ended.phase, Phase::Ended(e) if e.hostname == "mac-1" && e.report.end.is_some()));

    // What later versions added can be written.
    let cordon = Some(Cordon { reason: "new disk".into(), since: Timestamp::UNIX_EPOCH });
    let agent = Agent { cordon: cordon.clone(), ..loaded.agents[0].clone() };
    store.write(&[Write::Agent(Box::new(agent))]).unwrap();
    drop(store);
    let (_, loaded) = Sqlite::open(dir.path()).unwrap();
    assert!(loaded.agents.iter().any(|a| a.cordon == cordon));
    let version: i32 =
        Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 2);
}

#[test]
fn a_tombstone_of_an_earlier_version_is_read_and_its_name_is_served_if_it_shows_the_job() {
    // Field 12 is `job`; `job_seen` (16) was not known then.
    let end = wire::RunnerEnd { kind: wire::EndKind::Finished.into(), ..Default::default() };
    let with_job =
        wire::Runner { job: Some(wire::Job::default()), end: Some(end.clone()), ..Default::default() };
    let without = wire::Runner { end: Some(end), ..Default::default() };
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Sqlite::open(dir.path()).unwrap();
    for (name, report) in [("worked", with_job), ("did-not", without)] {
        let ended = Ended {
            agent: None,
            hostname: "mac-1".into(),
            queued_for: Duration::ZERO,
            report,
            at: Timestamp::UNIX_EPOCH,
        };
        put(&store, &runner(name, Phase::Ended(ended)), None);
    }
    drop(store);
    let (_, loaded) = Sqlite::open(dir.path()).unwrap();
    let served: BTreeMap<&str, bool> =
        loaded.runners.iter().map(|r| (r.name.as_str(), r.has_served())).collect();
    assert_eq!(served, BTreeMap::from([("worked", true), ("did-not", false)]));
}

#[test]
fn a_runner_whose_name_would_be_refused_today_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Sqlite::open(dir.path()).unwrap();
    let mut old = runner("a", placed(AgentId::random(), Delivery::Done));
    old.name = shoes_vz_model::RunnerName::recorded("my runner/1").unwrap();
    put(&store, &old, None);
    drop(store);
    assert_eq!(Sqlite::open(dir.path()).unwrap().1.runners[0].name, old.name);
}

#[test]
fn a_database_that_was_moved_away_is_not_written_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (state, elsewhere) = (dir.path().join("state"), dir.path().join("elsewhere"));
    let (store, _) = Sqlite::open(&state).unwrap();
    let write = [Write::Script(RunnerId::random(), Script::new("true"))];
    store.write(&write).unwrap();
    fs::rename(&state, &elsewhere).unwrap();
    let refused = store.write(&write).unwrap_err();
    assert!(
        matches!(refused, StoreError::Moved(_)) && refused.may_pass().unwrap().contains("put it back"),
        "{refused}"
    );
    fs::rename(&elsewhere, &state).unwrap();
    store.write(&write).unwrap();
}
