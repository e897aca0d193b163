use std::collections::BTreeMap;

use super::*;
use crate::fleet::{requirements::VmRequirements, values::VmSize};

/// Reads with a configuration file `c.toml` and a token file `t` where their content is given.
fn read(
    args: &[&str],
    vars: &[(&str, &str)],
    config: Option<&str>,
    token: Option<&str>,
) -> Result<Settings, Unusable> {
    let dir = tempfile::tempdir().unwrap();
    let mut args: Vec<OsString> =
        std::iter::once("shoes-vz-server").chain(args.iter().copied()).map(Into::into).collect();
    for (flag, name, text) in [("--config", "c.toml", config), ("--token-file", "t", token)] {
        if let Some(text) = text {
            std::fs::write(dir.path().join(name), text).unwrap();
            args.extend([flag.into(), dir.path().join(name).into()]);
        }
    }
    let vars =
        vars.iter().chain([&("HOME", "/home/op")]).map(|(n, v)| (OsString::from(n), OsString::from(v)));
    Settings::read(args, vars)
}

fn mistakes(result: Result<Settings, Unusable>) -> Vec<String> {
    match result {
        Err(Unusable::Mistakes(all)) => all.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_anything_it_listens_on_loopback_and_keeps_its_state_with_the_user() {
    let settings = read(&[], &[], None, None).unwrap();
    assert_eq!(settings.grpc_addr, "127.0.0.1:50051".parse().unwrap());
    assert_eq!(settings.metrics_addr, "127.0.0.1:9090".parse().unwrap());
    assert!(settings.state_dir.starts_with("/home/op"), "{:?}", settings.state_dir);
    assert_eq!(settings.policy.grace, Duration::from_secs(30));
    assert_eq!(settings.damaged_state, OnDamage::Refuse);
    let replacing = read(&["--replace-damaged-state"], &[], None, None).unwrap();
    assert_eq!(replacing.damaged_state, OnDamage::Quarantine);
    assert!(settings.keepalive * 2 <= Duration::from_secs(15), "half-open connections are found in 15 s");
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let file = "grpc_addr = '127.0.0.1:1'\nmetrics_addr = '127.0.0.1:2'\ncaller_grace = '3s'\n\
                accepted_labels = ['a', 'B']\n[resource_types.large]\ncpus = 6\nmemory = '12GiB'\n";
    let settings = read(
        &["-grpc-addr", "127.0.0.1:7"],
        &[("SHOESVZ_SERVER_GRPC_ADDR", "127.0.0.1:8"), ("SHOESVZ_SERVER_METRICS_ADDR", "127.0.0.1:9")],
        Some(file),
        None,
    )
    .unwrap();
    assert_eq!((settings.grpc_addr.port(), settings.metrics_addr.port()), (7, 9));
    assert_eq!(settings.policy.grace, Duration::from_secs(3));
    assert_eq!(settings.policy.accepted_labels, Accepted::new(["A", "b"]));
    let size = VmSize { cpus: 6, memory_bytes: 12 << 30, disk_bytes: 0 };
    let large = VmRequirements { template: String::new(), size };
    assert_eq!(settings.policy.requirement_tables.resource_types.get(&ResourceType::Large), Some(&large));
}

#[test]
fn labels_and_resource_types_require_templates_and_sizes_and_such_a_label_is_known() {
    let file = "accepted_labels = 'gpu'\n[resource_types.nano]\ntemplate = 'plain'\n\
                [labels.\"macOS-15\"]\ntemplate = 'sequoia'\ncpus = 4\nmemory = '8GiB'\ndisk = '90GiB'\n";
    let policy = read(&[], &[], Some(file), None).unwrap().policy;
    let size = VmSize { cpus: 4, memory_bytes: 8 << 30, disk_bytes: 90 << 30 };
    let sequoia = VmRequirements { template: "sequoia".into(), size };
    assert_eq!(policy.requirement_tables.labels, BTreeMap::from([("macos-15".to_owned(), sequoia)]));
    assert_eq!(policy.requirement_tables.resource_types[&ResourceType::Nano].template, "plain");
    assert_eq!(policy.accepted_labels, Accepted::new(["gpu", "macos-15"]));
}

#[test]
fn every_mistake_in_the_tables_of_labels_and_types_is_reported_at_once() {
    let file = "[resource_types.nano]\ntemplate = 3\n[labels.a]\ncpu = 1\nmemory = '8 eggs'\ntemplate = ''\n\
                [labels]\nB = 7\n[labels.c]\n[labels.C]\n[labels.\"\"]\n";
    let all = mistakes(read(&[], &[], Some(file), None));
    let text = all.join("\n");
    for part in
        ["nano.template", "a.cpu", "a.memory", "a.template", "labels.B must be a table", "twice", "empty"]
    {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(all.len(), 7, "{text}");
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let file =
        "colour = 1\ntombstones = 'soon'\n[resource_types.huge]\ncpus = 1\n[resource_types.nano]\ncpu = 1\n";
    let all = mistakes(read(
        &["--grpc-addr", "0.0.0.0:1", "--log-format", "xml", "--token-file", "/nope", "--colour"],
        &[
            ("SHOESVZ_SERVER_GRPC_ADR", "x"),
            ("SHOESVZ_SERVER_CALLER_GRACE", "long"),
            ("SHOESVZ_SERVER_ADDR", "fine"),
        ],
        Some(file),
        None,
    ));
    let text = all.join("\n");
    for part in [
        "colour",
        "c.toml: tombstones: ",
        "huge",
        "nano.cpu",
        "--log-format: ",
        "/nope",
        "SHOESVZ_SERVER_GRPC_ADR is not",
        "SHOESVZ_SERVER_CALLER_GRACE: ",
        "'--colour'",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(all.len(), 9, "{text}");
}

#[test]
fn fault_19_an_open_door_is_refused_unless_there_is_a_token_or_it_is_insisted_on() {
    let open = ["--grpc-addr", "0.0.0.0:1"];
    assert!(mistakes(read(&open, &[], None, None))[0].contains("0.0.0.0:1"));
    assert!(read(&[&open[..], &["--insecure-listen"]].concat(), &[], None, None).is_ok());
    let with_token = read(&open, &[], None, Some("s3cret\n")).unwrap();
    assert!(with_token.token.is_some());
    assert!(!format!("{with_token:?}").contains("s3cret"));
}

#[test]
fn the_go_servers_command_line_starts_what_it_says() {
    let settings = read(&["-grpc-addr", ":50051", "-metrics-addr", ":9090"], &[], None, None).unwrap();
    assert_eq!((settings.grpc_addr.port(), settings.metrics_addr.port()), (50051, 9090));
}

#[test]
fn a_state_directory_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = OsString::from_vec(b"/srv/st\xe9".to_vec());
    let settings = Settings::read(["x".into()], [("SHOESVZ_SERVER_STATE_DIR".into(), odd.clone())]).unwrap();
    assert_eq!(settings.state_dir, PathBuf::from(odd));
}
