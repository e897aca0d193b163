//! `list`: the VMs of this host, running or not.

use jiff::Timestamp;
use serde::Serialize;
use shoes_vz_model::bundle::{DiskState, RuntimeMetadata};
use shoes_vz_terminal::{
    output::note,
    table::{Width, table},
    text,
    time::ago,
};
use shoes_vz_vm::client::Vm;

use super::print;
use crate::{bundles, cli::ListArgs, settings};

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    metadata: RuntimeMetadata,
    bundle_path: String,
    /// Whether its VM process runs.
    live: bool,
}

pub async fn run(args: &ListArgs) -> anyhow::Result<()> {
    let mut values = settings::gather(&args.host);
    let runners_path = settings::runners_path(&mut values);
    let runners_path = values.finish(runners_path)?;
    let mut rows = Vec::new();
    for bundle in bundles::scan(&runners_path)?.bundles {
        let metadata = match bundle.metadata() {
            Ok(Some(metadata)) => metadata,
            Ok(None) => continue,
            Err(error) => {
                note(&format!("skipping {:?}: cannot read its RuntimeMetadata.json ({error})", bundle.path));
                continue;
            }
        };
        // A process that does not answer still runs.
        let live = Vm::adopt(&bundle.path).await.map_or(true, |vm| vm.is_some());
        rows.push(Row {
            metadata: current(metadata, live),
            bundle_path: bundle.path.display().to_string(),
            live,
        });
    }
    if args.json {
        return print(&text::json(&serde_json::to_string_pretty(&rows)?));
    }
    print(&format_table(&rows, Timestamp::now(), Width::of_stdout()))
}

/// Corrects the state on disk, which may be older than the end of the VM.
fn current(mut metadata: RuntimeMetadata, live: bool) -> RuntimeMetadata {
    if !live && matches!(metadata.state, DiskState::Booting | DiskState::Running) {
        metadata.state = DiskState::Stopped;
    }
    metadata
}

/// The columns of the Go agent, then the runner name; times as people say them.
fn format_table(rows: &[Row], now: Timestamp, width: Width) -> String {
    let head = ["RUNNER ID", "IP ADDRESS", "STATE", "CREATED AT", "UPDATED AT", "BUNDLE PATH", "RUNNER NAME"];
    let rows = rows.iter().map(|row| {
        let m = &row.metadata;
        vec![
            m.runner_id.clone(),
            m.ip_address.clone(),
            format!("{:?}", m.state).to_lowercase(),
            ago(m.created_at, now),
            ago(m.updated_at, now),
            row.bundle_path.clone(),
            if m.phase.is_hot() { "(hot)".into() } else { m.runner_name.clone() },
        ]
    });
    table(&head, rows, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_columns_of_the_go_agent_and_the_runner_name() {
        let metadata: RuntimeMetadata = serde_json::from_str(
            r#"{"runner_id":"id-1","created_at":"2026-01-02T03:04:05Z","state":"running",
                "updated_at":"2026-01-02T03:04:06Z","runner_name":"myshoes-1"}"#,
        )
        .unwrap();
        let row = |live| Row { metadata: current(metadata.clone(), live), bundle_path: "/r/b".into(), live };
        let now = "2026-01-02T03:04:17Z".parse().unwrap();
        let table = format_table(&[row(true), row(false)], now, Width::Any);
        let lines: Vec<Vec<&str>> =
            table.lines().map(|l| l.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
        assert_eq!(lines[0][..3], ["RUNNER ID", "IP ADDRESS", "STATE"]);
        assert_eq!(lines[1], ["id-1", "-", "running", "12 s ago", "11 s ago", "/r/b", "myshoes-1"]);
        assert_eq!(lines[2][2], "stopped");
    }
}
