//! Cycles of claim, job and delete on hot VMs: nothing is left behind, and nothing grows.
//!
//! `make soak CYCLES=500` runs many cycles; `make test` runs a few.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, time::Instant};

use shoes_vz_proto::agent::EndKind;
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    leftover,
    script::Job,
};

/// Memory growth that is not a leak: allocators, statistics, SQLite's cache, tombstones (a kilobyte each).
const ALLOWED_KIB: u64 = 16 << 10;

#[derive(Debug, Clone, Copy)]
struct Resources {
    resident_kib: u64,
    files: usize,
    threads: usize,
}

fn resources_of(pid: u32) -> Resources {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    Resources { resident_kib: number("VmRSS:"), files, threads: usize::try_from(number("Threads:")).unwrap() }
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
    // One script for all cycles: making one takes longer than claiming a VM.
    let script = job.setup_script("soak");
    fleet.until_hot(2).await;
    let began = Instant::now();
    let mut first = None;
    for cycle in 0..cycles {
        let name = format!("soak-{cycle}");
        let added = fleet.add(&name, &script).await.unwrap();
        let end = fleet.until_ended(&name).await;
        assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
        fleet.delete(&added.cloud_id).await.unwrap();
        // The first cycles fill caches.
        if cycle == cycles / 5 {
            fleet.until_hot(2).await;
            first = Some([resources_of(fleet.server_pid()), resources_of(fleet.agent_pid())]);
        }
        if cycle % 25 == 24 {
            eprintln!(
                "{:>4} cycles, {:.1} s each: server {:?}, agent {:?}",
                cycle + 1,
                began.elapsed().as_secs_f64() / (cycle + 1) as f64,
                resources_of(fleet.server_pid()),
                resources_of(fleet.agent_pid())
            );
        }
    }
    fleet.until_hot(2).await;
    let last = [resources_of(fleet.server_pid()), resources_of(fleet.agent_pid())];
    let first = first.unwrap();
    eprintln!("{cycles} cycles in {:.0} s: from {first:?} to {last:?}", began.elapsed().as_secs_f64());
    for (first, last) in first.iter().zip(&last) {
        assert!(last.resident_kib <= first.resident_kib + ALLOWED_KIB, "memory grows: {first:?} {last:?}");
        assert!(last.files <= first.files + 8, "files stay open: {first:?} {last:?}");
        assert!(last.threads <= first.threads + 8, "threads stay: {first:?} {last:?}");
    }
    // Two hot VMs, and nothing else.
    assert_eq!(leftover::of(&fleet.runners_path()).bundles, 2);
    if saves {
        let states = fs::read_dir(fleet.runners_path().join(".saved-states")).unwrap();
        assert_eq!(states.count(), 3, "one state per slot");
    }
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}
