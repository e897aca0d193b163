//! A log that repeated calls cannot flood.

use std::{ffi::OsStr, path::PathBuf, process::Stdio};

use shoes_vz_proto::fleet::{AddInstanceRequest, DeleteInstanceRequest};
use tempfile::{TempDir, tempdir};
use tokio::process::{Child, Command};
use tonic::Code;

use crate::common::{Agent, SCRIPT, Server, answer};

/// The program, with its log in a file.
struct Program {
    _child: Child,
    server: Server,
    log: PathBuf,
    _dir: TempDir,
}

impl Program {
    async fn start(args: &[&OsStr]) -> Self {
        let dir = tempdir().unwrap();
        let (log, ready) = (dir.path().join("log"), dir.path().join("ready"));
        let file = std::fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_shoes-vz-server"))
            .args(["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--state-dir"])
            .arg(dir.path().join("state"))
            .arg("--ready-file")
            .arg(&ready)
            .args(args)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let server = Server::of_ready_file(&ready).await;
        Self { _child: child, server, log, _dir: dir }
    }

    fn logged(&self, line: &str) -> usize {
        std::fs::read_to_string(&self.log).unwrap().matches(line).count()
    }
}

#[tokio::test]
async fn a_call_that_is_refused_repeatedly_is_logged_once_and_counted() {
    let program = Program::start(&["--unknown-labels".as_ref(), "refuse".as_ref()]).await;
    let _agent = Agent::connect(&program.server, 1).await;
    let mut shoes = program.server.shoes();
    for n in 0..20 {
        let add = AddInstanceRequest {
            runner_name: format!("job-{n}"),
            setup_script: SCRIPT.into(),
            labels: vec!["not-offered".into()],
            ..AddInstanceRequest::default()
        };
        assert_eq!(shoes.add_instance(add).await.unwrap_err().code(), Code::InvalidArgument);
        let cloud_id = shoes_vz_model::CloudId::random().to_string();
        let delete = DeleteInstanceRequest { cloud_id, ..Default::default() };
        assert_eq!(shoes.delete_instance(delete).await.unwrap_err().code(), Code::NotFound);
    }
    for line in ["AddInstance refused", "DeleteInstance refused"] {
        assert_eq!(program.logged(line), 1, "{line}");
    }
    let metrics = program.server.http("/metrics", "").await.1;
    let counted = "shoesvz_add_instance_requests_total{status=\"failed_invalid\"} 20";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn calls_without_the_token_are_logged_once_for_each_address_and_counted() {
    let dir = tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    let program = Program::start(&["--token-file".as_ref(), token.as_ref()]).await;
    for _ in 0..20 {
        let refused = answer(program.server.add("a")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    }
    assert_eq!(program.logged("no valid token"), 1);
    let metrics = program.server.http("/metrics", "Authorization: Bearer s3cret\r\n").await.1;
    assert!(metrics.contains("shoesvz_calls_without_token_total 20"), "{metrics}");
}

#[tokio::test]
async fn an_agent_that_reconnects_in_a_loop_is_logged_a_few_times() {
    let program = Program::start(&[]).await;
    let id = shoes_vz_model::AgentId::random().to_string();
    for _ in 0..20 {
        let info = Some(crate::common::info());
        drop(Agent::connect_as(&program.server, &id, 1, info, vec![]).await);
    }
    assert_eq!(program.logged("agent registered"), 5);
}
