//! Wire compatibility with the Go implementation and myshoes.
//!
//! The bytes are written by hand from the protobuf encoding: a tag is `number << 3 | type` (type 0 varint, 2 length and
//! bytes), fields in order of their numbers, as Go's encoder writes them. Each is decoded, compared with the message it
//! stands for, and encoded again to the same bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use prost::Message;
use prost_types::{
    FileDescriptorSet, Timestamp,
    field_descriptor_proto::{Label, Type},
};
use shoes_vz_proto::{FILE_DESCRIPTOR_SET, agent, fleet, goplugin, myshoes};

/// Bytes of a hex dump; what follows `|` on a line is a comment.
fn bytes(dump: &str) -> Vec<u8> {
    dump.lines()
        .flat_map(|line| line.split('|').next().unwrap_or_default().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap_or_else(|e| panic!("{byte:?}: {e}")))
        .collect()
}

fn is_on_the_wire<M: Message + Default + PartialEq + Debug>(dump: &str, message: M) {
    let bytes = bytes(dump);
    assert_eq!(M::decode(&bytes[..]).unwrap(), message);
    assert_eq!(message.encode_to_vec(), bytes, "{message:?}");
}

fn text(s: &str) -> String {
    s.to_owned()
}

#[test]
fn myshoes_messages_are_what_myshoes_puts_on_the_wire() {
    is_on_the_wire(
        "0a 09 6d 79 73 68 6f 65 73 2d 31       | 1 runner_name: myshoes-1
         12 08 65 63 68 6f 20 c3 a9 0a          | 2 setup_script: echo e-acute, newline
         18 07                                  | 3 resource_type: XLarge2 = 7
         22 01 61                               | 4 labels: a
         22 02 62 63                            | 4 labels: bc",
        myshoes::AddInstanceRequest {
            runner_name: text("myshoes-1"),
            setup_script: text("echo é\n"),
            resource_type: myshoes::ResourceType::XLarge2.into(),
            labels: vec![text("a"), text("bc")],
        },
    );
    is_on_the_wire(
        "0a 0a 73 68 6f 65 73 2d 76 7a 2d 31    | 1 cloud_id: shoes-vz-1
         12 08 73 68 6f 65 73 2d 76 7a          | 2 shoes_type: shoes-vz
         1a 08 31 30 2e 30 2e 30 2e 31          | 3 ip_address: 10.0.0.1
         20 01                                  | 4 resource_type: Nano = 1",
        myshoes::AddInstanceResponse {
            cloud_id: text("shoes-vz-1"),
            shoes_type: text("shoes-vz"),
            ip_address: text("10.0.0.1"),
            resource_type: myshoes::ResourceType::Nano.into(),
        },
    );
    is_on_the_wire(
        "0a 01 78       | 1 cloud_id: x
         12 01 61       | 2 labels: a",
        myshoes::DeleteInstanceRequest { cloud_id: text("x"), labels: vec![text("a")] },
    );
    is_on_the_wire("", myshoes::DeleteInstanceResponse {});
    // A default value is not written: Unknown = 0, no labels.
    is_on_the_wire(
        "0a 01 6e | 1 runner_name: n",
        myshoes::AddInstanceRequest { runner_name: text("n"), ..Default::default() },
    );
}

#[test]
fn the_go_clients_calls_are_what_the_go_implementation_puts_on_the_wire() {
    is_on_the_wire(
        "0a 01 6e                       | 1 runner_name: n
         12 01 73                       | 2 setup_script: s
         1a 07 78 6c 61 72 67 65 32     | 3 resource_type: xlarge2
         22 01 61                       | 4 labels: a",
        fleet::AddInstanceRequest {
            runner_name: text("n"),
            setup_script: text("s"),
            resource_type: text("xlarge2"),
            labels: vec![text("a")],
        },
    );
    // The Go server's reply ends with field 3.
    is_on_the_wire(
        "0a 01 63                       | 1 cloud_id: c
         12 08 73 68 6f 65 73 2d 76 7a  | 2 shoes_type: shoes-vz
         1a 03 3a 3a 31                 | 3 ip_address: ::1",
        fleet::AddInstanceResponse {
            cloud_id: text("c"),
            shoes_type: text("shoes-vz"),
            ip_address: text("::1"),
            resource_type: String::new(),
        },
    );
    is_on_the_wire(
        "0a 01 63 | 1 cloud_id: c",
        fleet::DeleteInstanceRequest { cloud_id: text("c"), ..Default::default() },
    );
    is_on_the_wire("", fleet::DeleteInstanceResponse {});
}

#[test]
fn a_go_agents_registration_is_what_the_go_implementation_puts_on_the_wire() {
    let capacity = agent::AgentCapacity { max_runners: 2, cpu_cores: 12, memory_bytes: 1 << 34 };
    is_on_the_wire(
        "08 02                  | 1 max_runners: 2
         10 0c                  | 2 cpu_cores: 12
         18 80 80 80 80 40      | 3 memory_bytes: 2^34",
        capacity,
    );
    is_on_the_wire(
        "0a 03 6d 61 63         | 1 hostname: mac
         12 04 08 02 10 0c      | 2 capacity: {1: 2, 2: 12}, the Go agent's memory is always 0",
        agent::RegisterAgentRequest {
            hostname: text("mac"),
            capacity: Some(agent::AgentCapacity { memory_bytes: 0, ..capacity }),
            ..Default::default()
        },
    );
    is_on_the_wire(
        "0a 01 61       | 1 agent_id: a
         10 05          | 2 sync_interval_seconds: 5",
        agent::RegisterAgentResponse { agent_id: text("a"), sync_interval_seconds: 5, ..Default::default() },
    );
    // int32: a negative number takes ten bytes.
    is_on_the_wire(
        "10 ff ff ff ff ff ff ff ff ff 01 | 2 sync_interval_seconds: -1",
        agent::RegisterAgentResponse { sync_interval_seconds: -1, ..Default::default() },
    );
    is_on_the_wire(
        "0a 01 61       | 1 agent_id: a
         12 01 68       | 2 hostname: h
         1a 02 08 01    | 3 capacity: {1: 1}
         20 02          | 4 status: AGENT_STATUS_OFFLINE = 2",
        agent::Agent {
            agent_id: text("a"),
            hostname: text("h"),
            capacity: Some(agent::AgentCapacity { max_runners: 1, ..Default::default() }),
            status: agent::AgentStatus::Offline.into(),
        },
    );
}

#[test]
fn a_go_agents_sync_is_what_the_go_implementation_puts_on_the_wire() {
    let runner = agent::Runner {
        runner_id: text("r"),
        runner_name: text("n"),
        agent_id: text("a"),
        state: agent::RunnerState::Error.into(),
        ip_address: text("i"),
        created_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 5 }),
        error_message: text("e"),
        guest_runner_state: agent::GuestRunnerState::Finished.into(),
        ..Default::default()
    };
    let dump = "0a 01 72                            | 1 runner_id: r
                12 01 6e                            | 2 runner_name: n
                1a 01 61                            | 3 agent_id: a
                20 06                               | 4 state: RUNNER_STATE_ERROR = 6
                2a 01 69                            | 5 ip_address: i
                32 08 08 80 e2 cf aa 06 10 05       | 6 created_at: {1 seconds: 1700000000, 2 nanos: 5}
                3a 01 65                            | 7 error_message: e
                40 05                               | 8 guest_runner_state: GUEST_RUNNER_STATE_FINISHED = 5";
    is_on_the_wire(dump, runner.clone());
    let request = format!(
        "0a 01 61       | 1 agent_id: a
         10 01          | 2 active_runners: 1
         1a 1d          | 3 runners: 29 bytes
         {dump}"
    );
    is_on_the_wire(
        &request,
        agent::SyncRequest {
            agent_id: text("a"),
            active_runners: 1,
            runners: vec![runner],
            ..Default::default()
        },
    );
}

#[test]
fn a_go_servers_commands_are_what_the_go_implementation_puts_on_the_wire() {
    use agent::sync_response::Command;
    let says = |command| agent::SyncResponse { command: Some(command), ..Default::default() };
    is_on_the_wire(
        "0a 0c          | 1 create_runner: 12 bytes
         0a 01 72       |   1 runner_id: r
         12 01 6e       |   2 runner_name: n
         1a 01 73       |   3 setup_script: s
         22 01 71       |   4 request_id: q",
        says(Command::CreateRunner(agent::CreateRunnerCommand {
            runner_id: text("r"),
            runner_name: text("n"),
            setup_script: text("s"),
            request_id: text("q"),
            ..Default::default()
        })),
    );
    is_on_the_wire(
        "12 06          | 2 delete_runner: 6 bytes
         0a 01 72       |   1 runner_id: r
         12 01 71       |   2 request_id: q",
        says(Command::DeleteRunner(agent::DeleteRunnerCommand {
            runner_id: text("r"),
            request_id: text("q"),
        })),
    );
    is_on_the_wire("1a 00 | 3 noop: empty, yet there", says(Command::Noop(agent::NoopCommand {})));
    is_on_the_wire("", agent::SyncResponse::default());
}

#[test]
fn go_plugins_side_messages_are_what_go_plugin_puts_on_the_wire() {
    is_on_the_wire(
        "08 02          | 1 channel: STDERR = 2
         12 02 00 ff    | 2 data",
        goplugin::StdioData { channel: goplugin::stdio_data::Channel::Stderr.into(), data: vec![0, 0xff] },
    );
    is_on_the_wire(
        "08 03                  | 1 service_id: 3
         12 01 75               | 2 network: u
         1a 01 2f               | 3 address: /
         22 07 08 01 10 01      | 4 knock: {1 knock, 2 ack,
         1a 01 65               |   3 error: e}",
        goplugin::ConnInfo {
            service_id: 3,
            network: text("u"),
            address: text("/"),
            knock: Some(goplugin::conn_info::Knock { knock: true, ack: true, error: text("e") }),
        },
    );
    is_on_the_wire("", goplugin::Empty {});
}

#[test]
fn fields_of_a_later_version_do_not_stop_an_earlier_one() {
    // Field 2000, a string, after field 1; and an enum value that is not known.
    let newer = bytes("0a 01 72 20 63 82 7d 01 78");
    let read = agent::Runner::decode(&newer[..]).unwrap();
    assert_eq!((read.runner_id.as_str(), read.state), ("r", 0x63));
    assert_eq!(read.state(), agent::RunnerState::Unspecified);
}

/// Number, type and name.
type Field = (i32, &'static str, &'static str);

/// Every message of the Go implementation and myshoes: number, type and name of each field; `*` is repeated. Additions of
/// this project are not listed.
const FIELDS: &[(&str, &[Field])] = &[
    (
        "whywaita.myshoes.AddInstanceRequest",
        &[
            (1, "string", "runner_name"),
            (2, "string", "setup_script"),
            (3, ".whywaita.myshoes.ResourceType", "resource_type"),
            (4, "string*", "labels"),
        ],
    ),
    (
        "whywaita.myshoes.AddInstanceResponse",
        &[
            (1, "string", "cloud_id"),
            (2, "string", "shoes_type"),
            (3, "string", "ip_address"),
            (4, ".whywaita.myshoes.ResourceType", "resource_type"),
        ],
    ),
    ("whywaita.myshoes.DeleteInstanceRequest", &[(1, "string", "cloud_id"), (2, "string*", "labels")]),
    ("whywaita.myshoes.DeleteInstanceResponse", &[]),
    (
        "shoes.vz.shoes.v1.AddInstanceRequest",
        &[
            (1, "string", "runner_name"),
            (2, "string", "setup_script"),
            (3, "string", "resource_type"),
            (4, "string*", "labels"),
        ],
    ),
    (
        "shoes.vz.shoes.v1.AddInstanceResponse",
        &[(1, "string", "cloud_id"), (2, "string", "shoes_type"), (3, "string", "ip_address")],
    ),
    ("shoes.vz.shoes.v1.DeleteInstanceRequest", &[(1, "string", "cloud_id")]),
    ("shoes.vz.shoes.v1.DeleteInstanceResponse", &[]),
    (
        "shoes.vz.agent.v1.RegisterAgentRequest",
        &[(1, "string", "hostname"), (2, ".shoes.vz.agent.v1.AgentCapacity", "capacity")],
    ),
    (
        "shoes.vz.agent.v1.RegisterAgentResponse",
        &[(1, "string", "agent_id"), (2, "int32", "sync_interval_seconds")],
    ),
    (
        "shoes.vz.agent.v1.Agent",
        &[
            (1, "string", "agent_id"),
            (2, "string", "hostname"),
            (3, ".shoes.vz.agent.v1.AgentCapacity", "capacity"),
            (4, ".shoes.vz.agent.v1.AgentStatus", "status"),
        ],
    ),
    (
        "shoes.vz.agent.v1.AgentCapacity",
        &[(1, "uint32", "max_runners"), (2, "uint32", "cpu_cores"), (3, "uint64", "memory_bytes")],
    ),
    (
        "shoes.vz.agent.v1.SyncRequest",
        &[
            (1, "string", "agent_id"),
            (2, "uint32", "active_runners"),
            (3, ".shoes.vz.agent.v1.Runner*", "runners"),
        ],
    ),
    (
        "shoes.vz.agent.v1.SyncResponse",
        &[
            (1, ".shoes.vz.agent.v1.CreateRunnerCommand", "create_runner"),
            (2, ".shoes.vz.agent.v1.DeleteRunnerCommand", "delete_runner"),
            (3, ".shoes.vz.agent.v1.NoopCommand", "noop"),
        ],
    ),
    (
        "shoes.vz.agent.v1.CreateRunnerCommand",
        &[
            (1, "string", "runner_id"),
            (2, "string", "runner_name"),
            (3, "string", "setup_script"),
            (4, "string", "request_id"),
        ],
    ),
    ("shoes.vz.agent.v1.DeleteRunnerCommand", &[(1, "string", "runner_id"), (2, "string", "request_id")]),
    ("shoes.vz.agent.v1.NoopCommand", &[]),
    (
        "shoes.vz.agent.v1.Runner",
        &[
            (1, "string", "runner_id"),
            (2, "string", "runner_name"),
            (3, "string", "agent_id"),
            (4, ".shoes.vz.agent.v1.RunnerState", "state"),
            (5, "string", "ip_address"),
            (6, ".google.protobuf.Timestamp", "created_at"),
            (7, "string", "error_message"),
            (8, ".shoes.vz.agent.v1.GuestRunnerState", "guest_runner_state"),
        ],
    ),
];

/// Every enum, by its values' names in order of their numbers from 0.
const ENUMS: &[(&str, &str, &[&str])] = &[
    (
        "whywaita.myshoes.ResourceType",
        "",
        &["Unknown", "Nano", "Micro", "Small", "Medium", "Large", "XLarge", "XLarge2", "XLarge3", "XLarge4"],
    ),
    ("shoes.vz.agent.v1.AgentStatus", "AGENT_STATUS_", &["UNSPECIFIED", "ONLINE", "OFFLINE"]),
    (
        "shoes.vz.agent.v1.RunnerState",
        "RUNNER_STATE_",
        &["UNSPECIFIED", "CREATING", "BOOTING", "SSH_READY", "RUNNING", "TEARING_DOWN", "ERROR"],
    ),
    (
        "shoes.vz.agent.v1.GuestRunnerState",
        "GUEST_RUNNER_STATE_",
        &["UNSPECIFIED", "OFFLINE", "IDLE", "PREPARING", "RUNNING", "FINISHED"],
    ),
];

/// Every method: request, response; `*` streams.
const METHODS: &[(&str, &str, &str)] = &[
    ("whywaita.myshoes.Shoes/AddInstance", "AddInstanceRequest", "AddInstanceResponse"),
    ("whywaita.myshoes.Shoes/DeleteInstance", "DeleteInstanceRequest", "DeleteInstanceResponse"),
    ("shoes.vz.shoes.v1.ShoesService/AddInstance", "AddInstanceRequest", "AddInstanceResponse"),
    ("shoes.vz.shoes.v1.ShoesService/DeleteInstance", "DeleteInstanceRequest", "DeleteInstanceResponse"),
    ("shoes.vz.agent.v1.AgentService/RegisterAgent", "RegisterAgentRequest", "RegisterAgentResponse"),
    ("shoes.vz.agent.v1.AgentService/Sync", "SyncRequest*", "SyncResponse*"),
    ("plugin.GRPCStdio/StreamStdio", "Empty", "StdioData*"),
    ("plugin.GRPCController/Shutdown", "Empty", "Empty"),
    ("plugin.GRPCBroker/StartStream", "ConnInfo*", "ConnInfo*"),
];

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap()
}

#[test]
fn no_field_of_the_go_programs_has_changed_its_number_type_or_name() {
    let mut found = BTreeMap::new();
    for file in descriptors().file {
        for message in &file.message_type {
            let fields: Vec<_> = message
                .field
                .iter()
                .map(|f| {
                    let kind = match f.r#type() {
                        Type::Message | Type::Enum => f.type_name().to_owned(),
                        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
                    };
                    let many = if f.label() == Label::Repeated { "*" } else { "" };
                    (f.number(), kind + many, f.name().to_owned())
                })
                .collect();
            found.insert(format!("{}.{}", file.package(), message.name()), fields);
        }
    }
    for (message, fields) in FIELDS {
        let has = found.get(*message).unwrap_or_else(|| panic!("{message} is missing"));
        for (number, kind, name) in *fields {
            let want = (*number, text(kind), text(name));
            assert!(has.contains(&want), "{message}: want {want:?}, has {has:?}");
        }
        // This project must not extend myshoes' messages.
        if message.starts_with("whywaita.") {
            assert_eq!(has.len(), fields.len(), "{message} has grown");
        }
    }
}

#[test]
fn no_enum_value_of_the_go_programs_has_changed_its_number_or_name() {
    let mut found = BTreeMap::new();
    for file in descriptors().file {
        for e in &file.enum_type {
            let values: Vec<_> = e.value.iter().map(|v| (v.number(), v.name().to_owned())).collect();
            found.insert(format!("{}.{}", file.package(), e.name()), values);
        }
    }
    for (name, prefix, values) in ENUMS {
        let want: Vec<_> = (0..).zip(values.iter().map(|v| format!("{prefix}{v}"))).collect();
        assert_eq!(found.get(*name), Some(&want), "{name}");
    }
}

#[test]
fn no_method_of_the_go_programs_has_changed_its_name_messages_or_streaming() {
    let mut found = BTreeMap::new();
    for file in descriptors().file {
        for service in &file.service {
            for m in &service.method {
                let side = |name: &str, streams| {
                    let short = name.rsplit('.').next().unwrap_or_default();
                    format!("{short}{}", if streams { "*" } else { "" })
                };
                found.insert(
                    format!("{}.{}/{}", file.package(), service.name(), m.name()),
                    (side(m.input_type(), m.client_streaming()), side(m.output_type(), m.server_streaming())),
                );
            }
        }
    }
    for (method, request, response) in METHODS {
        assert_eq!(found.get(*method), Some(&(text(request), text(response))), "{method}");
    }
}
