//! Server, agent, VM processes and QEMUs are killed at random instants while four callers add and delete: no reply is late,
//! nothing is left, and every job whose VM was not killed finishes. `make chaos` runs fifty rounds; `make test` runs a few.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use shoes_vz_proto::{
    agent::EndKind,
    fleet::{
        AddInstanceRequest, DeleteInstanceRequest, RunnerView, WatchRunnersRequest,
        fleet_service_client::FleetServiceClient, shoes_service_client::ShoesServiceClient,
    },
};
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    leftover,
    script::Job,
};
use tokio::time::{Instant, sleep};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

const CALLERS: u64 = 4;
/// For each AddInstance: two slots for four callers, with guests that boot in seconds.
const ADD_DEADLINE: Duration = Duration::from_secs(90);
const DELETE_DEADLINE: Duration = Duration::from_secs(40);
/// Tolerance for a busy machine that reads an answer late.
const SLACK: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
enum Victim {
    Server,
    Agent,
    VmProcess,
    Qemu,
}

/// A runner that its caller kept until its end.
struct Kept {
    name: String,
    cloud_id: String,
}

/// Shared by the callers and the test.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Runner ids whose VMs were killed.
    killed: Mutex<BTreeSet<String>>,
    kept: Mutex<Vec<Kept>>,
    calls: Mutex<Vec<(&'static str, Duration)>>,
}

#[tokio::test]
async fn pain_05_nothing_is_lost_or_left_when_processes_are_killed_at_random_instants() {
    let rounds: u32 =
        std::env::var("SHOESVZ_CHAOS_ROUNDS").map_or(8, |n| n.parse().expect("a number of rounds"));
    let seed = std::env::var("SHOESVZ_CHAOS_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |n| n.parse().expect("a seed"));
    println!(
        "{rounds} rounds, SHOESVZ_CHAOS_SEED={seed} (chooses victims and moments; the timing of the machine differs)"
    );
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut fleet = Fleet::start_with(Options::default()).await;
    let shared = Arc::new(Shared::default());
    let callers: Vec<_> = (0..CALLERS)
        .map(|n| {
            let caller = Caller {
                addr: fleet.grpc_addr().to_owned(),
                shared: Arc::clone(&shared),
                rng: SmallRng::seed_from_u64(seed.wrapping_add(n + 1)),
            };
            tokio::spawn(caller.run(n))
        })
        .collect();

    let mut done = [0_u32; 4];
    for round in 0..rounds {
        sleep(Duration::from_millis(rng.random_range(0..6000))).await;
        let all = [Victim::Server, Victim::Agent, Victim::VmProcess, Victim::Qemu];
        let victim = *all.choose(&mut rng).unwrap();
        println!("round {round}: {victim:?}");
        done[victim as usize] += 1;
        let down = Duration::from_millis(rng.random_range(0..800));
        match victim {
            Victim::Server => {
                fleet.end_server(Signal::SIGKILL).await;
                sleep(down).await;
                fleet.start_server().await;
            }
            Victim::Agent => {
                fleet.end_agent(Signal::SIGKILL).await;
                sleep(down).await;
                fleet.start_agent().await;
            }
            Victim::VmProcess | Victim::Qemu => kill_one(&fleet, victim, &shared, &mut rng).await,
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no caller failed");
    }
    fleet.until_clean().await;

    let runners = fleet.runners().await;
    let is_live = |v: &&RunnerView| v.runner.as_ref().is_some_and(|r| r.end.is_none());
    assert_eq!(runners.iter().filter(is_live).count(), 0, "{runners:#?}");
    let killed = shared.killed.lock().unwrap().clone();
    let (mut finished, mut lost) = (0, 0);
    for kept in shared.kept.lock().unwrap().iter() {
        let view = runners.iter().find(|v| v.cloud_id == kept.cloud_id).expect("a tombstone");
        let runner = view.runner.as_ref().unwrap();
        let end = runner.end.as_ref().unwrap();
        if killed.contains(&runner.runner_id) {
            lost += 1;
        } else {
            assert_eq!(
                end.kind(),
                EndKind::Finished,
                "{}: its VM was not killed: {end:?}\n{}",
                kept.name,
                fleet.logs()
            );
            finished += 1;
        }
    }
    let calls = std::mem::take(&mut *shared.calls.lock().unwrap());
    let slowest =
        |what: &str| calls.iter().filter(|(w, _)| *w == what).map(|(_, t)| *t).max().unwrap_or_default();
    println!(
        "{rounds} rounds (server {}, agent {}, VM process {}, QEMU {}): {} calls, slowest AddInstance {:.1?} of {ADD_DEADLINE:?}, \
         slowest DeleteInstance {:.1?} of {DELETE_DEADLINE:?}; {finished} jobs finished, {lost} lost their VM to a kill, \
         {} runners in all, 0 left",
        done[0],
        done[1],
        done[2],
        done[3],
        calls.len(),
        slowest("AddInstance"),
        slowest("DeleteInstance"),
        runners.len(),
    );
    fleet.finish().await;
}

/// Kills a VM process or a QEMU; waits for one when there is none.
async fn kill_one(fleet: &Fleet, victim: Victim, shared: &Shared, rng: &mut SmallRng) {
    let runners = fleet.runners_path();
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let of_kind = |pid: &i32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.starts_with("qemu-system") == matches!(victim, Victim::Qemu)
        };
        let pids: Vec<i32> = leftover::processes(&runners).into_iter().filter(of_kind).collect();
        let chosen = pids.choose(rng).and_then(|pid| Some((*pid, runner_of(*pid, &runners)?)));
        if let Some((pid, runner)) = chosen {
            // Recorded first, so that the reason is known when the VM ends.
            shared.killed.lock().unwrap().insert(runner);
            // It may have ended just before.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return;
        }
        assert!(Instant::now() < end, "no {victim:?} to kill within a minute");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The runner of a process, by its command line or its directory.
fn runner_of(pid: i32, runners: &Path) -> Option<String> {
    let inside = format!("{}/", runners.display());
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?.to_string_lossy().into_owned();
    let args = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).ok()?).into_owned();
    [cwd, args].iter().find_map(|text| {
        let rest = &text[text.find(&inside)? + inside.len()..];
        Some(rest.split_once(".bundle")?.0.to_owned())
    })
}

/// A simplified worker of myshoes.
struct Caller {
    addr: String,
    shared: Arc<Shared>,
    rng: SmallRng,
}

impl Caller {
    async fn run(mut self, n: u64) {
        for k in 0.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("caller-{n}-job-{k}");
            let script =
                Job::new(&format!("sleep {}; echo done", self.rng.random_range(0..3))).setup_script(&name);
            let cloud_id = self.add(&name, &script).await;
            if self.rng.random_range(0..3) == 0 {
                sleep(Duration::from_millis(self.rng.random_range(0..3000))).await;
            } else {
                self.shared.kept.lock().unwrap().push(Kept { name, cloud_id: cloud_id.clone() });
                self.until_ended(&cloud_id).await;
            }
            self.delete(&cloud_id).await;
        }
    }

    /// A new connection for each call, because myshoes starts a process for each call.
    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.addr)).unwrap().connect_lazy()
    }

    async fn in_time<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let began = Instant::now();
        let answer = tokio::time::timeout(deadline + SLACK, call).await;
        self.shared.calls.lock().unwrap().push((what, began.elapsed()));
        answer.unwrap_or_else(|_| panic!("{what} had no answer within its deadline of {deadline:?}"))
    }

    async fn add(&self, name: &str, script: &str) -> String {
        loop {
            let mut request = Request::new(AddInstanceRequest {
                runner_name: name.into(),
                setup_script: script.into(),
                resource_type: "nano".into(),
                labels: Vec::new(),
            });
            request.metadata_mut().insert("grpc-timeout", timeout_header(ADD_DEADLINE));
            let mut service = ShoesServiceClient::new(self.channel());
            match self.in_time("AddInstance", ADD_DEADLINE, service.add_instance(request)).await {
                Ok(added) => return added.into_inner().cloud_id,
                Err(e) => assert_ne!(e.code(), Code::InvalidArgument, "{name}: {e:?}"),
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn delete(&self, cloud_id: &str) {
        loop {
            let mut request =
                Request::new(DeleteInstanceRequest { cloud_id: cloud_id.into(), labels: Vec::new() });
            request.metadata_mut().insert("grpc-timeout", timeout_header(DELETE_DEADLINE));
            let mut service = ShoesServiceClient::new(self.channel());
            match self.in_time("DeleteInstance", DELETE_DEADLINE, service.delete_instance(request)).await {
                Ok(_) => return,
                Err(e) => assert_ne!(e.code(), Code::NotFound, "{cloud_id} exists: {e:?}"),
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn until_ended(&self, cloud_id: &str) {
        let end = Instant::now() + Duration::from_secs(180);
        loop {
            let request = WatchRunnersRequest { cloud_id: cloud_id.into(), runner_name: String::new() };
            if let Ok(stream) = FleetServiceClient::new(self.channel()).watch_runners(request).await {
                let mut stream = stream.into_inner();
                while let Ok(Some(view)) = stream.message().await {
                    if view.runner.is_some_and(|r| r.end.is_some()) {
                        return;
                    }
                }
            }
            assert!(Instant::now() < end, "{cloud_id} has not ended within three minutes");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Only the server gets the deadline: the caller waits longer, so that the test sees late answers.
fn timeout_header(deadline: Duration) -> tonic::metadata::MetadataValue<tonic::metadata::Ascii> {
    format!("{}S", deadline.as_secs()).parse().unwrap()
}
