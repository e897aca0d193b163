//! Claim, job, delete, again and again on hot VMs: nothing is left of any, and nothing grows.
//!
//! `make soak CYCLES=500` runs many; `make test` a few.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, time::Instant};

use shoes_vz_proto::agent::EndKind;
use shoes_vz_testkit::{
    fleet::{Fleet, Options, end_of},
    leftover,
    script::Job,
};

/// Growth of a process' memory that is not a leak: allocators, statistics, SQLite's cache, tombstones (a kilobyte each).
const ALLOWED_KIB: u64 = 16 << 10;

/// What one process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kib: u64,
    files: usize,
    threads: usize,
}

fn held(pid: u32) -> Held {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    Held { resident_kib: number("VmRSS:"), files, threads: usize::try_from(number("Threads:")).unwrap() }
}

#[tokio::test]
async fn many_claims_jobs_and_deletes_leave_nothing_and_nothing_grows() {
    let cycles: usize = std::env::var("SHOESVZ_SOAK_CYCLES").map_or(8, |text| text.parse().unwrap());
    let saves = !shoes_vz_testkit::hot::qemu_cannot_save("soak");
    let states = if saves { "use" } else { "off" };
    let args = ["--hot", "2", "--saved-states", states].map(str::to_owned).to_vec();
    let mut fleet =
        Fleet::server_only(Options { max_runners: 3, agent_args: args, ..Options::default() }).await;
    if saves {
        fleet.warm().await;
    }
    fleet.start_agent().await;
    let job = Job::new("echo done");
    // One script for all: making one takes longer than claiming a VM.
    let script = job.setup_script("soak");
    fleet.until_hot(2).await;
    let began = Instant::now();
    let mut first = None;
    for cycle in 0..cycles {
        let name = format!("soak-{cycle}");
        let added = fleet.add(&name, &script).await.unwrap();
        let view = fleet.until(&name, |v| v.runner.as_ref().is_some_and(|r| r.end.is_some())).await;
        assert_eq!(end_of(&view).kind(), EndKind::Finished, "{:?}", end_of(&view));
        fleet.delete(&added.cloud_id).await.unwrap();
        // The first ones fill caches.
        if cycle == cycles / 5 {
            fleet.until_hot(2).await;
            first = Some([held(fleet.server_pid()), held(fleet.agent_pid())]);
        }
        if cycle % 25 == 24 {
            eprintln!(
                "{:>4} cycles, {:.1} s each: server {:?}, agent {:?}",
                cycle + 1,
                began.elapsed().as_secs_f64() / (cycle + 1) as f64,
                held(fleet.server_pid()),
                held(fleet.agent_pid())
            );
        }
    }
    fleet.until_hot(2).await;
    let last = [held(fleet.server_pid()), held(fleet.agent_pid())];
    let first = first.unwrap();
    eprintln!("{cycles} cycles in {:.0} s: {first:?} then {last:?}", began.elapsed().as_secs_f64());
    for (first, last) in first.iter().zip(&last) {
        assert!(last.resident_kib <= first.resident_kib + ALLOWED_KIB, "memory grows: {first:?} {last:?}");
        assert!(last.files <= first.files + 8, "files stay open: {first:?} {last:?}");
        assert!(last.threads <= first.threads + 8, "threads stay: {first:?} {last:?}");
    }
    // Two VMs that wait for a runner, and nothing else.
    assert_eq!(leftover::of(&fleet.runners_path()).bundles, 2);
    if saves {
        let states = fs::read_dir(fleet.runners_path().join(".saved-states")).unwrap();
        assert_eq!(states.count(), 3, "a state a slot");
    }
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}
