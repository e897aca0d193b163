//! Tests for every hypervisor; each is a complete test for a fleet with the given options.

use nix::sys::signal::Signal;
use shoes_vz_proto::agent::{EndKind, RunnerState};

use crate::{
    fleet::{Fleet, Options},
    leftover,
    script::{Job, plain, sleeping},
};

/// # Panics
/// When it fails, like all tests here.
pub async fn two_guests_are_never_confused(options: Options) {
    let fleet = Fleet::start_with(options).await;
    let script = |name: &str| plain(&format!("echo I-am-{name}; sleep 600"));
    let (scripts_a, scripts_b) = (script("alpha"), script("beta"));
    let (a, b) = tokio::join!(fleet.add("alpha", &scripts_a), fleet.add("beta", &scripts_b));
    for (name, added) in [("alpha", a), ("beta", b)] {
        let added = added.expect("both start");
        assert_eq!(fleet.setup_log(name).await.trim(), format!("I-am-{name}"));
        fleet.delete(&added.cloud_id).await.expect("it is deleted");
    }
    fleet.finish().await;
}

/// A killed agent does not stop the job, and the next agent follows it to its end.
#[allow(clippy::missing_panics_doc)]
pub async fn a_job_survives_its_agent(options: Options) {
    let mut fleet = Fleet::start_with(options).await;
    let job = Job::new("until [ -e /tmp/go ]; do sleep 0.1; done; echo survived");
    let added = fleet.add("survivor", &job.setup_script("survivor")).await.expect("it starts");
    fleet.until_running("survivor").await;
    let vm_processes = leftover::processes(&fleet.runners_path());
    fleet.end_agent(Signal::SIGKILL).await;
    assert_eq!(
        leftover::processes(&fleet.runners_path()),
        vm_processes,
        "the VM does not die with the agent"
    );

    fleet.start_agent().await;
    fleet.until_running("survivor").await;
    assert_eq!(leftover::processes(&fleet.runners_path()), vm_processes, "nothing was started twice");
    let touched = fleet.agent_command("exec", &[&fleet.only_runner_id(), "touch", "/tmp/go"]).await;
    assert!(touched.status.success(), "{touched:?}");
    let end = fleet.until_ended("survivor").await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
    fleet.until_clean().await;
    fleet.delete(&added.cloud_id).await.expect("it is deleted");
    fleet.finish().await;
}

#[allow(clippy::missing_panics_doc)]
pub async fn deleting_while_it_boots_cancels_the_creation(options: Options) {
    let fleet = Fleet::start_with(options).await;
    let script = sleeping();
    let mut add = Box::pin(fleet.add("cut-short", &script));
    let booting = fleet
        .until("cut-short", |v| v.runner.as_ref().is_some_and(|r| r.state == RunnerState::Booting as i32));
    let view = tokio::select! {
        view = booting => view,
        early = &mut add => panic!("the VM was not seen booting: {early:?}"),
    };
    let (deleted, added) = tokio::join!(fleet.delete(&view.cloud_id), add);
    deleted.expect("it is deleted");
    let refused = added.expect_err("its creation is cancelled");
    assert_eq!(refused.code(), tonic::Code::Aborted, "{refused:?}");
    fleet.until_clean().await;
    fleet.finish().await;
}
