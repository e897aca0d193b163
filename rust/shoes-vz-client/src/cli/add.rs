//! `add`: AddInstance, with the stages of the runner shown as they happen.

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    time::Duration,
};

use serde_json::json;
use shoes_vz_model::{ResourceType, RunnerName, Stage};
use shoes_vz_process::{backoff::Backoff, files, settings::Mistakes};
use shoes_vz_proto::fleet::{
    AddInstanceRequest, AddInstanceResponse, RunnerView, WatchRunnersRequest,
    fleet_service_client::FleetServiceClient,
};
use shoes_vz_terminal::{
    output::{note, print},
    text,
};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};
use tonic::{Code, Response, Status};

use super::{
    args::Add,
    outcome::{Failure, Format, Target, print_json},
    progress::{RunnerProgress, Tracker},
    view,
};
use crate::upstream::{Call, MAX_MESSAGE, Server, shoes_service};

/// How long to wait for the duration of the last stage after the answer has arrived.
const LAST_STAGE: Duration = Duration::from_millis(250);
/// With room for the rest of the message.
const LARGEST_SCRIPT: u64 = (MAX_MESSAGE - 65536) as u64;

pub(super) async fn run(target: Result<Target, Mistakes>, add: Add) -> Result<(), Failure> {
    let (target, mut mistakes) = match target {
        Ok(target) => (Some(target), Mistakes::default()),
        Err(mistakes) => (None, mistakes),
    };
    if let Err(error) = add.runner_name.parse::<RunnerName>() {
        mistakes.0.push(format!("--runner-name: {error}"));
    }
    let resource_type = add.resource_type.map(|text| match text.parse::<ResourceType>() {
        Ok(known) => known.to_string(),
        Err(error) => {
            mistakes.0.push(format!("--resource-type: {error}"));
            text
        }
    });
    let setup_script = match read_script(&add.setup_script).await {
        Ok(script) => script,
        Err(reason) => {
            mistakes.0.push(format!("--setup-script: {reason}"));
            String::new()
        }
    };
    let target = match target {
        Some(target) if mistakes.0.is_empty() => target,
        _ => return Err(Failure::Usage(mistakes)),
    };
    let request = AddInstanceRequest {
        runner_name: add.runner_name,
        setup_script,
        resource_type: resource_type.unwrap_or_default(),
        labels: add.labels,
    };
    let (added, took) = add_instance(&target.server, &request, add.timeout.0).await?;
    match target.format {
        Format::Json => print_json(&json!({
            "cloud_id": added.cloud_id,
            "shoes_type": added.shoes_type,
            "ip_address": added.ip_address,
            "resource_type": added.resource_type,
            "runner_name": request.runner_name,
            "add_instance_ms": took.as_secs_f64() * 1e3,
        }))?,
        Format::People => print(&text::line(&added.cloud_id))?,
    }
    Ok(())
}

/// Reads on another thread: the runtime has only one, which must stay free for Ctrl-C and for the writer of a pipe.
async fn read_script(path: &Path) -> Result<String, String> {
    let (name, read) = if path == Path::new("-") {
        if io::stdin().is_terminal() {
            note("reading the setup script from the terminal; press Ctrl-D to finish");
        }
        let read = spawn_blocking(|| files::read_up_to(io::stdin().lock(), LARGEST_SCRIPT)).await;
        ("standard input".to_owned(), read)
    } else {
        let file = path.to_owned();
        (path.display().to_string(), spawn_blocking(move || files::read_bounded(&file, LARGEST_SCRIPT)).await)
    };
    let bytes = match read.map_err(|e| format!("reading {name} failed: {e}"))? {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(format!("{name} is larger than one call allows ({} MiB)", MAX_MESSAGE >> 20));
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(format!("{name} cannot be read: {error}; `-` reads the script from standard input"));
        }
        Err(error) => return Err(format!("reading {name} failed: {error}")),
    };
    match String::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => Err(format!("{name} is empty")),
        Ok(text) => Ok(text),
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            let line = 1 + e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
            Err(format!("{name} is not UTF-8: byte {at}, on line {line}, is not text"))
        }
    }
}

/// Makes the call while watching the runner. Also returns how long the answer took.
async fn add_instance(
    server: &Server,
    request: &AddInstanceRequest,
    budget: Duration,
) -> Result<(AddInstanceResponse, Duration), Status> {
    let started = Instant::now();
    let call = Call::new("AddInstance", budget, None);
    let answer = server
        .call(&call, request, async |channel, request| shoes_service(channel).add_instance(request).await);
    let (views, mut seen) = mpsc::channel(16);
    let watching = tokio::spawn(watch(server.clone(), request.runner_name.clone(), budget, views));

    let mut tracker = Tracker::default();
    let mut progress = RunnerProgress::new();
    let mut quoted = String::new();
    let quiet = tokio::time::sleep(progress.quiet_period);
    tokio::pin!(answer, quiet);
    let result = loop {
        tokio::select! {
            result = &mut answer => break result,
            Some(view) = seen.recv() => {
                tracker.update(&view).iter().for_each(|e| progress.show(e));
                quoted = view::quoted(&view);
            }
            () = &mut quiet, if progress.is_quiet => progress.wait("the server"),
        }
    };
    let took = started.elapsed();
    if result.is_ok() {
        // The agent's report and the server's answer race.
        let until = Instant::now() + LAST_STAGE;
        while !tracker.has_ended(Stage::Ssh) && !tracker.has_ended(Stage::Claim) {
            let Ok(Some(view)) = timeout_at(until, seen.recv()).await else { break };
            tracker.update(&view).iter().for_each(|e| progress.show(e));
        }
    }
    drop(progress);
    watching.abort();
    // Unless the answer quotes it already.
    if result.as_ref().is_err_and(|status| !status.message().contains('\n')) && !quoted.is_empty() {
        note(&format!("    {}", text::indented(&quoted, "    ")));
    }
    result.map(|added| (added.into_inner(), took))
}

/// Forwards every view of the runner until the receiver is dropped. Returns when the server does not support watching.
async fn watch(server: Server, runner_name: String, budget: Duration, views: mpsc::Sender<RunnerView>) {
    let request = WatchRunnersRequest { runner_name, cloud_id: String::new() };
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    while !views.is_closed() {
        let call = Call::new("WatchRunners", budget, None).stream();
        let stream = server.call(&call, &request, async |channel, request| {
            FleetServiceClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .watch_runners(request)
                .await
        });
        let ended = match stream.await.map(Response::into_inner) {
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(view)) => {
                        if views.send(view).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            },
            Err(status) => Some(status),
        };
        match ended {
            Some(status) if matches!(status.code(), Code::Unimplemented | Code::PermissionDenied) => return,
            ended => tracing::debug!(?ended, "runner watch ended early; reconnecting"),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("setup.sh");
        std::fs::write(&path, bytes).unwrap();
        read_script(&path).await
    }

    #[tokio::test]
    async fn a_script_that_is_not_text_is_refused_with_its_line() {
        assert_eq!(read("echo é\n".as_bytes()).await, Ok("echo é\n".into()));
        let reason = read(b"#!/bin/bash\necho \xff\n").await.unwrap_err();
        assert!(
            reason.contains("not UTF-8") && reason.contains("line 2") && reason.contains("setup.sh"),
            "{reason}"
        );
        assert!(read(b" \n").await.unwrap_err().contains("empty"));
        assert!(read(&vec![b'x'; MAX_MESSAGE]).await.unwrap_err().contains("16 MiB"));
        for (path, expected) in [
            ("/nowhere/s.sh", "No such file"),
            ("/dev/zero", "16 MiB"),
            ("/dev/null", "empty"),
            ("/", "a directory, not a file"),
        ] {
            let reason = read_script(Path::new(path)).await.unwrap_err();
            assert!(reason.contains(path) && reason.contains(expected), "{reason}");
        }
    }
}
