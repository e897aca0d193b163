//! Runners and agents, as JSON and as lines for people.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use shoes_vz_proto::convert::{self, stage_from_wire, start_path_from_wire, state_from_wire};
use shoes_vz_proto::{
    agent::{AgentStatus, EndKind, HotVms, Runner},
    fleet::{AgentView, RunnerView},
};

use shoes_vz_terminal::{
    table::{Width, table},
    text,
    time::ago,
};

type Wire = prost_types::Timestamp;

/// A narrower terminal has no room for runner IDs; `shoes-vz-agent` also accepts names and cloud IDs.
const ROOM_FOR_IDS: u16 = 200;

fn time_json(t: Option<&Wire>) -> Value {
    t.and_then(convert::time_from_wire).map_or(Value::Null, |t| Value::String(t.to_string()))
}

/// "" when there is no time.
fn since(t: Option<&Wire>, now: Timestamp) -> String {
    t.and_then(convert::time_from_wire).map_or_else(String::new, |t| ago(t, now))
}

/// An enum value's name without its prefix, in lower case; "" for UNSPECIFIED.
fn short(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => String::new(),
        rest => rest.to_lowercase(),
    }
}

/// `SSH_READY` and so on; "" when unknown.
pub(super) fn state(runner: &Runner) -> &'static str {
    state_from_wire(runner.state).map_or("", |s| s.as_str().trim_start_matches("RUNNER_STATE_"))
}

/// "hot", "restored" or "cold" once its VM is ready; "" before.
fn started_by(runner: &Runner) -> &'static str {
    start_path_from_wire(runner.start_path).map_or("", |path| path.as_str())
}

fn guest(runner: &Runner) -> String {
    short(runner.guest_runner_state().as_str_name(), "GUEST_RUNNER_STATE_")
}

fn end_kind(kind: EndKind) -> String {
    short(kind.as_str_name(), "END_KIND_")
}

/// A runner as `--json` shows it. Times are RFC 3339; stages are milliseconds; absent values are omitted.
pub(super) fn runner_json(view: &RunnerView) -> Value {
    let runner = view.runner.clone().unwrap_or_default();
    let stages: Map<String, Value> = runner
        .stages
        .iter()
        .filter_map(|s| {
            let ms = json!(f64::from(u32::try_from(s.duration_us).unwrap_or(u32::MAX)) / 1000.0);
            Some((stage_from_wire(s.stage)?.as_str().to_owned(), ms))
        })
        .collect();
    let mut out = json!({
        "cloud_id": view.cloud_id,
        "runner_id": runner.runner_id,
        "runner_name": runner.runner_name,
        "state": state(&runner),
        "stage": stage_from_wire(runner.stage).map_or("", |s| s.as_str()),
        "start_path": started_by(&runner),
        "stages_ms": stages,
        "queue_ms": view.queue_ms,
        "guest": guest(&runner),
        "ip_address": runner.ip_address,
        "agent": view.agent_hostname,
        "agent_id": runner.agent_id,
        "agent_status": agent_status(view.agent_status()),
        "resource_type": view.resource_type,
        "labels": view.labels,
        "requested_at": time_json(view.requested_at.as_ref()),
        "created_at": time_json(runner.created_at.as_ref()),
    });
    if !view.pending_reason.is_empty() {
        out["pending_reason"] = json!(view.pending_reason);
    }
    if !runner.error_message.is_empty() {
        out["error"] = json!(runner.error_message);
    }
    if let Some(s) = &runner.setup {
        let code = s.exited.then_some(s.exit_code);
        out["setup"] =
            json!({ "started": s.started, "exited": s.exited, "exit_code": code, "log_tail": s.log_tail });
    }
    if let Some(j) = &runner.job {
        out["job"] = json!({
            "job_id": j.job_id, "run_id": j.run_id, "repository": j.repository,
            "workflow_name": j.workflow_name, "job_name": j.job_name, "started_at": time_json(j.started_at.as_ref()),
        });
    }
    if let Some(e) = &runner.end {
        let stage = stage_from_wire(e.stage).map_or("", |s| s.as_str());
        out["end"] = json!({
            "kind": end_kind(e.kind()), "reason": e.reason, "stage": stage, "at": time_json(e.at.as_ref()),
        });
    }
    out
}

/// An agent as `--json` shows it.
pub(super) fn agent_json(view: &AgentView) -> Value {
    let agent = view.agent.clone().unwrap_or_default();
    let capacity = agent.capacity.unwrap_or_default();
    let info = view.info.clone().unwrap_or_default();
    let templates: Vec<_> = info
        .templates
        .iter()
        .map(|t| json!({ "name": t.name, "version": t.version, "os": t.os, "labels": t.labels }))
        .collect();
    let hot_by_size = view.hot.iter().map(|h| {
        json!({
            "template": h.template, "cpus": h.cpus, "memory_bytes": h.memory_bytes, "disk_bytes": h.disk_bytes,
            "ready": h.ready, "preparing": h.preparing, "default_size": h.default_size,
        })
    });
    json!({
        "agent_id": agent.agent_id,
        "hostname": agent.hostname,
        "status": agent_status(agent.status()),
        "runners": view.runners,
        "max_runners": capacity.max_runners,
        "cpu_cores": capacity.cpu_cores,
        "memory_bytes": capacity.memory_bytes,
        "version": info.version,
        "os": info.os,
        "arch": info.arch,
        "hypervisor": info.hypervisor,
        "templates": templates,
        "last_seen": time_json(view.last_seen.as_ref()),
        "unschedulable_reason": view.unschedulable_reason,
        "hot": hot_by_size.collect::<Vec<_>>(),
        "restore_fallbacks": view.restore_fallbacks.iter().map(|f| (f.reason.clone(), json!(f.count))).collect::<Map<_, _>>(),
        "cordon": view.cordon.as_ref().map(|c| json!({ "reason": c.reason, "since": time_json(c.since.as_ref()) })),
    })
}

/// `2 hot, 1 preparing`; a size other than the agent's default is named.
fn hot(view: &AgentView) -> String {
    let of_one = |h: &HotVms| {
        let ready = (h.ready > 0).then(|| format!("{} hot", h.ready));
        let preparing = (h.preparing > 0).then(|| format!("{} preparing", h.preparing));
        let counts = ready.into_iter().chain(preparing).collect::<Vec<_>>().join(", ");
        match h.default_size || counts.is_empty() {
            true => counts,
            false => format!("{counts} ({}x{}MiB)", h.cpus, h.memory_bytes >> 20),
        }
    };
    view.hot.iter().map(of_one).filter(|w| !w.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The agent of a runner, marked when it is offline.
fn agent_label(view: &RunnerView) -> String {
    match view.agent_status() {
        AgentStatus::Offline => format!("{} (offline)", view.agent_hostname),
        AgentStatus::Online | AgentStatus::Unspecified => view.agent_hostname.clone(),
    }
}

/// Why an agent gets no runners; "" when it does.
fn agent_note(view: &AgentView, now: Timestamp) -> String {
    let cordoned = view.cordon.as_ref().map(|cordon| {
        let since = Some(since(cordon.since.as_ref(), now)).filter(|t| !t.is_empty());
        let since = since.map_or(String::new(), |t| format!(" {t}"));
        let reason = if cordon.reason.is_empty() { "" } else { ": " };
        format!("cordoned{since}{reason}{}", cordon.reason)
    });
    let reason = Some(&view.unschedulable_reason).filter(|reason| !reason.is_empty());
    let unschedulable = reason.map(|reason| format!("unschedulable: {reason}"));
    cordoned.into_iter().chain(unschedulable).collect::<Vec<_>>().join("; ")
}

fn agent_status(status: AgentStatus) -> String {
    short(status.as_str_name(), "AGENT_STATUS_")
}

/// Why a runner waits, failed or ended; "" when it did not.
fn note(view: &RunnerView) -> String {
    let runner = view.runner.clone().unwrap_or_default();
    let reason = match &runner.end {
        Some(end) if end.reason.is_empty() => end_kind(end.kind()),
        Some(end) => format!("{}: {}", end_kind(end.kind()), end.reason),
        None if !runner.error_message.is_empty() => runner.error_message.clone(),
        None => view.pending_reason.clone(),
    };
    headline(&reason)
}

/// A reason in one line, whatever it quotes. When the reason only introduces the quoted lines ("…; its last lines:"), the
/// last of them replaces the introduction, because it usually says most.
pub(super) fn headline(reason: &str) -> String {
    let reason = text::lines(reason);
    let mut lines = reason.lines();
    let first = lines.next().unwrap_or_default();
    let Some(introduction) = first.strip_suffix(':') else { return first.to_owned() };
    let fact = introduction.rsplit_once("; ").map_or(introduction, |(fact, _)| fact);
    match lines.rfind(|line| !line.trim().is_empty()) {
        Some(last) => format!("{fact}: {}", last.trim()),
        None => fact.to_owned(),
    }
}

/// The last output of a failed runner: the end of its setup log, or the lines its reason quotes; "" for other runners.
pub(super) fn quoted(view: &RunnerView) -> String {
    let Some(runner) = &view.runner else { return String::new() };
    let failed = runner.end.as_ref().map_or("", |end| match end.kind() {
        EndKind::Failed | EndKind::VmDied | EndKind::Unresponsive => end.reason.as_str(),
        EndKind::Unspecified | EndKind::Finished | EndKind::Deleted | EndKind::Expired => "",
    });
    let reason = if failed.is_empty() { runner.error_message.as_str() } else { failed };
    let log = runner.setup.as_ref().filter(|s| s.exited && s.exit_code != 0).map(|s| s.log_tail.trim_end());
    match (reason, log) {
        ("", _) => String::new(),
        (_, Some(log)) if !log.is_empty() => log.to_owned(),
        (reason, _) => reason.split_once('\n').map_or("", |(_, quoted)| quoted).trim_end().to_owned(),
    }
}

fn state_or_ended(runner: &Runner) -> String {
    if runner.end.is_some() { "ended".into() } else { state(runner).to_owned() }
}

/// A runner in one line, for `watch`.
pub(super) fn runner_line(view: &RunnerView) -> String {
    let runner = view.runner.clone().unwrap_or_default();
    let cells = [
        runner.runner_name.clone(),
        view.cloud_id.clone(),
        state_or_ended(&runner),
        stage_from_wire(runner.stage).map_or(String::new(), |s| format!("stage={}", s.as_str())),
        Some(started_by(&runner)).filter(|p| !p.is_empty()).map_or(String::new(), |p| format!("start={p}")),
        Some(guest(&runner)).filter(|g| !g.is_empty()).map_or(String::new(), |g| format!("guest={g}")),
        Some(agent_label(view)).filter(|a| !a.is_empty()).map_or(String::new(), |a| format!("agent={a}")),
        note(view),
    ];
    cells.into_iter().filter(|c| !c.is_empty()).collect::<Vec<_>>().join("  ")
}

pub(super) fn runner_table(views: &[RunnerView], now: Timestamp, width: Width) -> String {
    let ids = !matches!(width, Width::Terminal(cells) if cells < ROOM_FOR_IDS);
    let with_id = |mut cells: Vec<String>, id: String| {
        if ids {
            cells.insert(2, id);
        }
        cells
    };
    let rows = views.iter().map(|view| {
        let runner = view.runner.clone().unwrap_or_default();
        let state = state_or_ended(&runner);
        let stage = stage_from_wire(runner.stage).map_or(String::new(), |s| s.as_str().to_owned());
        let guest = guest(&runner);
        let (agent, size) = (agent_label(view), view.resource_type.clone());
        let start = started_by(&runner).to_owned();
        let asked = since(view.requested_at.as_ref(), now);
        let (name, cloud) = (runner.runner_name, view.cloud_id.clone());
        with_id(
            vec![name, cloud, state, stage, start, guest, agent, size, asked, note(view)],
            runner.runner_id,
        )
    });
    let head =
        ["RUNNER", "CLOUD ID", "STATE", "STAGE", "START", "GUEST", "AGENT", "TYPE", "REQUESTED", "NOTE"];
    let head = with_id(head.map(str::to_owned).to_vec(), "RUNNER ID".to_owned());
    let head: Vec<_> = head.iter().map(String::as_str).collect();
    table(&head, rows, width)
}

pub(super) fn agent_table(views: &[AgentView], now: Timestamp, width: Width) -> String {
    let rows = views.iter().map(|view| {
        let agent = view.agent.clone().unwrap_or_default();
        let (info, most) =
            (view.info.clone().unwrap_or_default(), agent.capacity.unwrap_or_default().max_runners);
        let seen = since(view.last_seen.as_ref(), now);
        let status = agent_status(agent.status());
        let runners = format!("{}/{most}", view.runners);
        let (host, id, note) = (agent.hostname, agent.agent_id, agent_note(view, now));
        vec![host, id, status, runners, hot(view), info.os, info.hypervisor, info.version, seen, note]
    });
    let head =
        ["HOST", "AGENT ID", "STATUS", "RUNNERS", "HOT", "OS", "HYPERVISOR", "VERSION", "LAST SEEN", "NOTE"];
    table(&head, rows, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoes_vz_proto::{
        agent::{RunnerEnd, RunnerStage, RunnerState, Setup, StageTiming},
        fleet::Cordon,
    };

    fn runners(views: &[RunnerView]) -> String {
        runner_table(views, Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(150), Width::Any)
    }

    fn agents(views: &[AgentView]) -> String {
        agent_table(views, Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(150), Width::Any)
    }

    fn view() -> RunnerView {
        let timing = StageTiming { stage: RunnerStage::Clone.into(), started_at: None, duration_us: 12_500 };
        RunnerView {
            cloud_id: "shoes-vz-1".into(),
            agent_hostname: "mac\x1b[2J".into(),
            runner: Some(Runner {
                runner_name: "r".into(),
                state: RunnerState::SshReady.into(),
                stage: RunnerStage::Ssh.into(),
                stages: vec![timing],
                created_at: Some(Wire { seconds: 0, nanos: 0 }),
                ..Runner::default()
            }),
            ..RunnerView::default()
        }
    }

    #[test]
    fn a_runners_json_names_states_and_stages_and_leaves_out_what_is_absent() {
        let shown = runner_json(&view());
        assert_eq!(shown["state"], "SSH_READY");
        assert_eq!(shown["stages_ms"]["clone"], 12.5);
        assert_eq!(shown["created_at"], "1970-01-01T00:00:00Z");
        assert!(shown.get("end").is_none() && shown.get("job").is_none() && shown.get("error").is_none());
    }

    #[test]
    fn a_runner_that_ended_is_shown_with_its_reason_in_one_line() {
        let mut ended = view();
        let end =
            RunnerEnd { kind: EndKind::VmDied.into(), reason: "panic\nmore".into(), ..RunnerEnd::default() };
        ended.runner.as_mut().unwrap().end = Some(end);
        let shown = runners(&[ended.clone()]);
        assert!(
            shown.contains("ended") && shown.contains("vm_died: panic") && !shown.contains("more"),
            "{shown}"
        );
        assert_eq!(runner_json(&ended)["end"]["reason"], "panic\nmore");
    }

    #[test]
    fn a_table_aligns_its_columns_and_no_name_moves_the_cursor() {
        let shown = runners(&[view()]);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0].find("STATE"), lines[1].find("SSH_READY"));
        assert!(!shown.contains('\x1b'), "{shown:?}");
    }

    #[test]
    fn a_reason_that_only_introduces_a_quote_is_shown_with_the_last_quoted_line() {
        for (reason, line) in [
            (
                "the setup script ended with exit code 7; its last lines:\n+ curl\ncurl: (6) no host\n\n",
                "the setup script ended with exit code 7: curl: (6) no host",
            ),
            (
                "the setup script ended with exit code 7; its last lines:\n",
                "the setup script ended with exit code 7",
            ),
            (
                "ssh did not answer; the console's last lines:\n[    0.1] \u{1b}[31mpanic\u{1b}[0m",
                "ssh did not answer: [    0.1] panic",
            ),
            ("no colon\nmore", "no colon"),
            ("", ""),
        ] {
            assert_eq!(headline(reason), line);
        }
    }

    #[test]
    fn a_failed_runner_quotes_its_setup_log_or_else_its_reason_and_a_healthy_runner_quotes_nothing() {
        let mut failed = view();
        failed.runner.as_mut().unwrap().setup =
            Some(Setup { exited: true, exit_code: 7, log_tail: "one\ntwo\n".into(), ..Setup::default() });
        assert_eq!(quoted(&failed), "", "it has not ended, and no error is known");
        let end = RunnerEnd {
            kind: EndKind::Failed.into(),
            reason: "it failed:\nthree".into(),
            ..RunnerEnd::default()
        };
        failed.runner.as_mut().unwrap().end = Some(end);
        assert_eq!(quoted(&failed), "one\ntwo");
        failed.runner.as_mut().unwrap().setup = None;
        assert_eq!(quoted(&failed), "three");
        failed.runner.as_mut().unwrap().end.as_mut().unwrap().kind = EndKind::Finished.into();
        assert_eq!(quoted(&failed), "");
    }

    #[test]
    fn runner_ids_are_shown_where_there_is_room_for_them() {
        let mut with_id = view();
        with_id.runner.as_mut().unwrap().runner_id = "the-id".into();
        assert!(runners(&[with_id.clone()]).contains("the-id"));
        let narrow = runner_table(&[with_id], Timestamp::UNIX_EPOCH, Width::Terminal(120));
        assert!(!narrow.contains("the-id") && !narrow.contains("RUNNER ID"), "{narrow}");
    }

    #[test]
    fn a_runner_of_an_offline_agent_is_marked_in_every_form() {
        let mut offline = view();
        offline.agent_hostname = "mac-1".into();
        offline.agent_status = AgentStatus::Offline.into();
        assert_eq!(runner_json(&offline)["agent_status"], "offline");
        assert!(runner_line(&offline).contains("agent=mac-1 (offline)"));
        assert!(runners(&[offline]).contains("mac-1 (offline)"));
    }

    #[test]
    fn pain_14_why_a_runner_waits_is_shown_in_every_form() {
        let mut waiting = view();
        waiting.pending_reason = "mac-1 is cordoned (new disk)".into();
        assert!(runners(std::slice::from_ref(&waiting)).contains("mac-1 is cordoned (new disk)"));
        assert!(runner_line(&waiting).ends_with("mac-1 is cordoned (new disk)"));
        assert_eq!(runner_json(&waiting)["pending_reason"], "mac-1 is cordoned (new disk)");
    }

    #[test]
    fn a_cordoned_agent_is_shown_with_its_reason_and_since_when() {
        let cordon = Cordon { reason: "new disk".into(), since: Some(Wire { seconds: 0, nanos: 0 }) };
        let reason = "its disk is full".to_owned();
        let view = AgentView { cordon: Some(cordon), unschedulable_reason: reason, ..AgentView::default() };
        assert!(agents(std::slice::from_ref(&view)).contains("; unschedulable: its disk is full"));
        assert!(agents(std::slice::from_ref(&view)).contains("cordoned 2 min ago: new disk"));
        assert_eq!(agent_json(&view)["cordon"]["reason"], "new disk");
        assert_eq!(agent_json(&AgentView::default())["cordon"], Value::Null);
    }

    #[test]
    fn hot_vms_are_counted_and_another_size_is_named() {
        let vms = |cpus, ready, preparing, default_size| HotVms {
            cpus,
            ready,
            preparing,
            default_size,
            memory_bytes: 8 << 30,
            ..HotVms::default()
        };
        let hot = vec![vms(4, 2, 1, true), vms(8, 1, 0, false), vms(2, 0, 0, false)];
        let view = AgentView { hot, ..AgentView::default() };
        assert!(agents(std::slice::from_ref(&view)).contains("2 hot, 1 preparing; 1 hot (8x8192MiB)"));
        assert_eq!(agent_json(&view)["hot"][0]["ready"], 2);
    }

    #[test]
    fn an_agent_of_the_go_implementation_without_info_is_shown() {
        let shown = agent_json(&AgentView::default());
        assert_eq!((&shown["hypervisor"], &shown["last_seen"]), (&json!(""), &Value::Null));
        assert_eq!(agents(&[AgentView::default()]).lines().count(), 2);
    }
}
