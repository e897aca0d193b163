use super::*;
use crate::fleet::{demand::Demand, types::Shape};

fn read(args: &[&str], vars: &[(&str, &str)], files: &[(&str, &str)]) -> Result<Settings, Unusable> {
    let files: BTreeMap<PathBuf, String> =
        files.iter().map(|(p, t)| (PathBuf::from(p), (*t).to_owned())).collect();
    let mut all = vec![("HOME".to_owned(), "/home/op".to_owned())];
    all.extend(vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
    Settings::read(args.iter().map(OsString::from), all, |path| {
        files.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    })
}

fn mistakes(result: Result<Settings, Unusable>) -> Vec<String> {
    match result {
        Err(Unusable::Mistakes(all)) => all,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_anything_it_listens_on_loopback_and_keeps_its_state_with_the_user() {
    let settings = read(&[], &[], &[]).unwrap();
    assert_eq!(settings.grpc_addr, "127.0.0.1:50051".parse().unwrap());
    assert_eq!(settings.metrics_addr, "127.0.0.1:9090".parse().unwrap());
    assert!(settings.state_dir.starts_with("/home/op"), "{:?}", settings.state_dir);
    assert_eq!(settings.policy.grace, Duration::from_secs(30));
    assert_eq!(settings.damaged_state, OnDamage::Refuse);
    let replacing = read(&["--replace-damaged-state"], &[], &[]).unwrap();
    assert_eq!(replacing.damaged_state, OnDamage::MoveAside);
    assert!(settings.keepalive * 2 <= Duration::from_secs(15), "half-open connections are found in 15 s");
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let file = "grpc_addr = '127.0.0.1:1'\nmetrics_addr = '127.0.0.1:2'\ncaller_grace = '3s'\n\
                accepted_labels = ['a', 'B']\n[resource_types.large]\ncpus = 6\nmemory = '12GiB'\n";
    let settings = read(
        &["--config", "/c.toml", "--grpc-addr", "127.0.0.1:7"],
        &[("SHOESVZ_SERVER_GRPC_ADDR", "127.0.0.1:8"), ("SHOESVZ_SERVER_METRICS_ADDR", "127.0.0.1:9")],
        &[("/c.toml", file)],
    )
    .unwrap();
    assert_eq!((settings.grpc_addr.port(), settings.metrics_addr.port()), (7, 9));
    assert_eq!(settings.policy.grace, Duration::from_secs(3));
    assert_eq!(settings.policy.accepted_labels, Accepted::new(["A", "b"]));
    let shape = Shape { cpus: 6, memory_bytes: 12 << 30, disk_bytes: 0 };
    let large = Demand { template: String::new(), shape };
    assert_eq!(settings.policy.demands.resource_types.get(&ResourceType::Large), Some(&large));
}

#[test]
fn labels_and_resource_types_name_templates_and_sizes_and_such_a_label_is_known() {
    let file = "accepted_labels = 'gpu'\n[resource_types.nano]\ntemplate = 'plain'\n\
                [labels.\"macOS-15\"]\ntemplate = 'sequoia'\ncpus = 4\nmemory = '8GiB'\ndisk = '90GiB'\n";
    let policy = read(&["--config", "/c.toml"], &[], &[("/c.toml", file)]).unwrap().policy;
    let shape = Shape { cpus: 4, memory_bytes: 8 << 30, disk_bytes: 90 << 30 };
    let sequoia = Demand { template: "sequoia".into(), shape };
    assert_eq!(policy.demands.labels, BTreeMap::from([("macos-15".to_owned(), sequoia)]));
    assert_eq!(policy.demands.resource_types[&ResourceType::Nano].template, "plain");
    assert_eq!(policy.accepted_labels, Accepted::new(["gpu", "macos-15"]));
}

#[test]
fn every_mistake_in_the_tables_of_labels_and_types_is_told_at_once() {
    let file = "[resource_types.nano]\ntemplate = 3\n[labels.a]\ncpu = 1\nmemory = '8GB'\ntemplate = ''\n\
                [labels]\nB = 7\n[labels.c]\n[labels.C]\n[labels.\"\"]\n";
    let all = mistakes(read(&["--config", "/c.toml"], &[], &[("/c.toml", file)]));
    let text = all.join("\n");
    for part in ["nano.template", "a.cpu", "a.memory", "a.template", "labels.B is no table", "twice", "empty"]
    {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(all.len(), 7, "{text}");
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let file =
        "colour = 1\ntombstones = 'soon'\n[resource_types.huge]\ncpus = 1\n[resource_types.nano]\ncpu = 1\n";
    let all = mistakes(read(
        &["--config", "/c.toml", "--grpc-addr", "0.0.0.0:1", "--log-format", "xml", "--token-file", "/nope"],
        &[
            ("SHOESVZ_SERVER_GRPC_ADR", "x"),
            ("SHOESVZ_SERVER_CALLER_GRACE", "long"),
            ("SHOESVZ_SERVER_ADDR", "fine"),
        ],
        &[("/c.toml", file)],
    ));
    let text = all.join("\n");
    for part in [
        "colour",
        "tombstones (/c.toml)",
        "huge",
        "nano.cpu",
        "log-format (--log-format)",
        "/nope",
        "SHOESVZ_SERVER_GRPC_ADR ",
        "caller-grace (SHOESVZ_SERVER_CALLER_GRACE)",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(all.len(), 8, "{text}");
}

#[test]
fn fault_19_an_open_door_is_refused_unless_there_is_a_token_or_it_is_insisted_on() {
    let open = ["--grpc-addr", "0.0.0.0:1"];
    assert!(mistakes(read(&open, &[], &[]))[0].contains("0.0.0.0:1"));
    assert!(read(&[&open[..], &["--insecure-listen"]].concat(), &[], &[]).is_ok());
    let with_token =
        read(&[&open[..], &["--token-file", "/t"]].concat(), &[], &[("/t", "s3cret\n")]).unwrap();
    assert!(with_token.token.is_some());
    assert!(!format!("{with_token:?}").contains("s3cret"));
}

#[test]
fn an_unknown_flag_is_refused() {
    assert!(matches!(read(&["--grpc-adr", "x"], &[], &[]), Err(Unusable::Flags(_))));
}
