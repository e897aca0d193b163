use std::time::Duration;

use jiff::Timestamp;
use shoes_vz_model::{AgentId, CloudId, ResourceType, RunnerId};
use shoes_vz_proto::agent as wire;

use super::*;
use crate::fleet::{
    labels::Offers,
    runner::{Delivery, Doom, DoomKind, Ended, Live, Phase, Placed},
    types::{Script, Shape},
};

fn runner(name: &str, phase: Phase) -> Runner {
    Runner {
        id: RunnerId::random(),
        cloud_id: CloudId::random(),
        name: name.parse().unwrap(),
        resource_type: ResourceType::Large,
        shape: Shape { cpus: 3, memory_bytes: 7, disk_bytes: 0 },
        labels: vec!["self-hosted".into()],
        request_id: "r-1".into(),
        requested_at: Timestamp::UNIX_EPOCH,
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
        doom: Some(Doom { kind: DoomKind::Deleted, reason: "why not".into() }),
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
        session: None,
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
        session: None,
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
fn a_damaged_a_foreign_and_a_newer_database_are_refused_in_words_and_left_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let unchanged = |words: &str| {
        let before = fs::read(&path).unwrap();
        let told = refusal(dir.path());
        assert!(told.contains(words), "{told}");
        assert!(fs::read(&path).unwrap() == before, "{words}: the file was changed");
    };
    fs::write(&path, "this is no database, whatever its name says. ".repeat(100)).unwrap();
    unchanged("is damaged");

    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE recipes (soup TEXT)").unwrap();
    unchanged("not of shoes-vz-server");

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
