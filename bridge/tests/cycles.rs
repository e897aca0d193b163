//! Ten thousand lives of machines, cut short at random: no crash, and nothing is left on either side of the seam.
#![cfg(all(vz, target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path, sync::Arc, time::Duration};

use common::{Fixture, spec};
use shoes_vz_bridge::{Code, Failure, Live, Machine, live};
use tokio::{task::spawn_blocking, time::timeout};

const CYCLES: u64 = 10_000;
const LONG: Duration = Duration::from_secs(60);
/// One in this many guests is a process; the others do nothing.
const PROCESSES: u64 = 100;

/// A generator whose sequence the seed decides (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

async fn call(
    vm: &Arc<Machine>,
    call: impl FnOnce(&Machine) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let vm = vm.clone();
    spawn_blocking(move || call(&vm)).await.unwrap()
}

/// One life. Dropping it drops the machine as well, once the pending call has returned.
async fn life(bundle: &Path, steps: u64) {
    let json = spec(bundle);
    let (vm, mut events) = match spawn_blocking(move || Machine::open(&json)).await.unwrap() {
        Ok(opened) => opened,
        Err(failure) => panic!("{failure}"),
    };
    let vm = Arc::new(vm);
    for step in 0..=steps {
        let done = match step {
            0 => call(&vm, |vm| vm.start(LONG)).await,
            1 => call(&vm, |vm| vm.pause(LONG)).await,
            2 => call(&vm, |vm| vm.resume(LONG)).await,
            3 => call(&vm, |vm| vm.stop(LONG)).await,
            _ => call(&vm, |vm| vm.close(LONG)).await,
        };
        match done {
            Ok(()) => {}
            // Machines that were dropped early may still be closing when the third one starts.
            Err(failure) if step == 0 && failure.code == Code::LimitExceeded => break,
            Err(failure) => panic!("step {step}: {failure}"),
        }
        while events.try_recv().is_ok() {}
    }
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What both languages have allocated and not freed: they share one allocator.
fn heap_bytes() -> usize {
    // SAFETY: it only reads the allocator's counters.
    let heap = unsafe { libc::mallinfo2() };
    heap.uordblks + heap.hblkhd
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until the machines that were dropped early are closed.
async fn quiet() {
    let nothing = Live { machines: 0, listeners: 0 };
    let closed = async {
        while live() != nothing {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, closed).await.unwrap_or_else(|_| panic!("still there: {:?}", live()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_lives_cut_short_at_random_leave_nothing() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_124);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let (idle, busy) = (Fixture::new("", ""), Fixture::new("sleep 1000", ""));
    let (mut settled, mut used) = (Vec::new(), Vec::new());
    for batch in 0..CYCLES / 2 {
        let mut lives = Vec::new();
        for half in 0..2 {
            let fixture = if random.below(PROCESSES) == 0 { &busy } else { &idle };
            let bundle = fixture.bundle(&format!("{batch}-{half}"));
            // A third runs to its end; the others are dropped within about the time that one takes.
            let (steps, choice) = (random.below(5), random.below(3));
            let limit = Duration::from_micros(if choice == 0 { 60_000_000 } else { random.below(4000) });
            used.push(bundle.clone());
            lives.push(async move { drop(timeout(limit, life(&bundle, steps)).await) });
        }
        futures_join(lives).await;
        // A machine that was dropped early still uses its bundle.
        if used.len() >= 200 {
            quiet().await;
            used.drain(..).for_each(|bundle| fs::remove_dir_all(bundle).unwrap());
        }
        if (batch + 1) % (CYCLES / 10) == 0 {
            quiet().await;
            settled.push((resident_bytes() >> 10, heap_bytes(), descriptors()));
        }
    }
    println!("{CYCLES} lives: KiB resident, bytes in the heap, descriptors after each fifth: {settled:?}");
    let (first, last) = (settled[0], settled[4]);
    assert!(settled.iter().all(|(_, _, fds)| *fds == first.2), "descriptors are left: {settled:?}");
    // Threads' caches fill in the first thousands. By the last fifth 64 bytes left by each of its 2,000 lives would show.
    assert!(last.1 < settled[3].1 + (128 << 10), "the heap grows: {settled:?}");
    // Pages resident rise and fall by some 2 MiB with nothing left in them.
    assert!(last.0 < first.0 + (4 << 10), "memory grows: {settled:?}");
}

async fn futures_join(lives: Vec<impl Future<Output = ()>>) {
    let mut lives = lives.into_iter();
    let (Some(a), Some(b)) = (lives.next(), lives.next()) else { panic!("two lives") };
    tokio::join!(a, b);
}
