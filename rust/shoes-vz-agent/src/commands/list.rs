//! `list`: the VMs of this host, dead or alive.

use std::fmt::Write as _;

use serde::Serialize;
use shoes_vz_model::bundle::{DiskState, RuntimeMetadata};
use shoes_vz_vm::client::Vm;

use crate::{bundles, cli::ListArgs, settings};

/// One VM.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    metadata: RuntimeMetadata,
    bundle_path: String,
    /// Whether its VM process lives.
    live: bool,
}

/// Prints them.
pub async fn run(args: &ListArgs) -> anyhow::Result<()> {
    let mut values = settings::of(&args.place);
    let runners_path = settings::runners_path(&mut values);
    let runners_path = values.finish(runners_path)?;
    let mut rows = Vec::new();
    for bundle in bundles::scan(&runners_path)?.bundles {
        let metadata = match bundle.metadata() {
            Ok(Some(metadata)) => metadata,
            Ok(None) => continue,
            Err(error) => {
                eprintln!(
                    "{:?} is not shown: its RuntimeMetadata.json cannot be read ({error})",
                    bundle.path
                );
                continue;
            }
        };
        // A process that does not answer is one that is there.
        let live = Vm::adopt(&bundle.path).await.map_or(true, |vm| vm.is_some());
        rows.push(Row {
            metadata: true_state(metadata, live),
            bundle_path: bundle.path.display().to_string(),
            live,
        });
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", table(&rows));
    }
    Ok(())
}

/// What is on disk was true when it was written; whether the VM lives is true now.
fn true_state(mut metadata: RuntimeMetadata, live: bool) -> RuntimeMetadata {
    if !live && matches!(metadata.state, DiskState::Booting | DiskState::Running) {
        metadata.state = DiskState::Stopped;
    }
    metadata
}

/// The Go agent's columns, then ours.
fn table(rows: &[Row]) -> String {
    let head = ["RUNNER ID", "IP ADDRESS", "STATE", "CREATED AT", "UPDATED AT", "BUNDLE PATH", "RUNNER NAME"];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let m = &row.metadata;
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        [
            m.runner_id.clone(),
            or_dash(&m.ip_address),
            format!("{:?}", m.state).to_lowercase(),
            m.created_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            m.updated_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            row.bundle_path.clone(),
            if m.spare { "(hot)".into() } else { or_dash(&m.runner_name) },
        ]
    }));
    let widths: Vec<usize> =
        (0..head.len()).map(|c| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_gos_columns_and_the_runners_name() {
        let metadata: RuntimeMetadata = serde_json::from_str(
            r#"{"runner_id":"id-1","created_at":"2026-01-02T03:04:05Z","state":"running",
                "updated_at":"2026-01-02T03:04:06Z","runner_name":"myshoes-1"}"#,
        )
        .unwrap();
        let row =
            |live| Row { metadata: true_state(metadata.clone(), live), bundle_path: "/r/b".into(), live };
        let table = table(&[row(true), row(false)]);
        let lines: Vec<Vec<&str>> =
            table.lines().map(|l| l.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
        assert_eq!(lines[0][..3], ["RUNNER ID", "IP ADDRESS", "STATE"]);
        assert_eq!(
            lines[1],
            ["id-1", "-", "running", "2026-01-02 03:04:05", "2026-01-02 03:04:06", "/r/b", "myshoes-1"]
        );
        assert_eq!(lines[2][2], "stopped");
    }
}
