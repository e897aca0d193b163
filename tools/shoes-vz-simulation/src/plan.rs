//! What a seed means: the size of the fleet, the calls and their times, the faults and their times.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

/// Maximum lifetime of a VM: longer than any job, shorter than the wait for unwanted VMs to end.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(120);
/// Age at which a hot VM is replaced.
pub(crate) const HOT_MAX_AGE: Duration = Duration::from_secs(25);

/// One in so many operations of a host fails; 0 = none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Making a bundle.
    pub(crate) clone: u32,
    /// Starting a VM process.
    pub(crate) launch: u32,
    /// Starting the guest in it.
    pub(crate) start: u32,
    /// Guests that never come up.
    pub(crate) boot: u32,
    /// Connecting to sshd.
    pub(crate) ssh: u32,
    /// Delivering the script.
    pub(crate) hand_over: u32,
    /// Scripts that exit with an error.
    pub(crate) script: u32,
    /// Scripts that start no runner.
    pub(crate) register: u32,
    /// Guests that power off once their job is done.
    pub(crate) power_off: u32,
    /// Stops without an answer.
    pub(crate) stop: u32,
    /// Looking for a VM of an earlier agent process.
    pub(crate) find: u32,
    /// Removing a bundle.
    pub(crate) remove: u32,
    /// Factor by which hosts are slower.
    pub(crate) slowness: u64,
}

impl Rates {
    pub(crate) const CALM: Self = Self {
        clone: 0,
        launch: 0,
        start: 0,
        boot: 0,
        ssh: 0,
        hand_over: 0,
        script: 0,
        register: 0,
        power_off: 0,
        stop: 0,
        find: 0,
        remove: 0,
        slowness: 1,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Server,
    Agent(usize),
}

impl Process {
    pub(crate) fn host(self) -> String {
        match self {
            Self::Server => SERVER.into(),
            Self::Agent(n) => agent(n),
        }
    }
}

/// Host of the server.
pub(crate) const SERVER: &str = "server";

/// Host of an agent.
pub(crate) fn agent(n: usize) -> String {
    format!("agent-{n}")
}

/// Host of a client.
pub(crate) fn client(n: usize) -> String {
    format!("client-{n}")
}

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A process crashes at once, and restarts after `down`.
    Crash { process: Process, down: Duration },
    /// A process crashes after some more steps.
    CrashAtStep { process: Process, steps: u32, down: Duration },
    /// The server stops cleanly, and restarts after `down`.
    Restart { down: Duration },
    /// A host loses power: its agent and all its VMs end.
    PowerFailure { agent: usize, down: Duration },
    /// No message passes between two hosts.
    Partition { between: (String, String), oneway: Oneway, lasts: Duration },
    /// Messages between two hosts are held, and then all delivered.
    Hold { between: (String, String), lasts: Duration },
    /// The wall clock of a process jumps.
    ClockJump { process: Process, seconds: i64 },
    /// The disk of a host is nearly full for a while.
    DiskFills { agent: usize, lasts: Duration },
    /// The disk of the server refuses writes for a while.
    StoreRefuses { lasts: Duration },
    /// A VM ends by itself.
    VmDies { which: u32 },
}

/// The direction that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oneway {
    Both,
    There,
    Back,
}

/// The calls of one client for one job.
#[derive(Debug, Clone)]
pub(crate) struct CallPlan {
    pub(crate) at: Duration,
    /// Some plans share one name.
    pub(crate) name: String,
    /// The deadline of each AddInstance.
    pub(crate) timeout: Duration,
    /// The first call is cancelled after this time.
    pub(crate) cancels_after: Option<Duration>,
    /// What happens once the client has a runner.
    pub(crate) then: Then,
    /// The name is requested again at the end, as by a caller that was killed before it stored the answer.
    pub(crate) requests_again: bool,
}

/// What a client does with its runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Delete it after this time, whatever it is doing.
    DeleteAfter(Duration),
    /// Delete it, twice, when its job has ended.
    DeleteWhenDone,
    /// Never delete it.
    LeaveIt,
    /// Cancel the first call and do not repeat it: no job ever arrives.
    GiveUp,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Slots of each agent.
    pub(crate) slots: Vec<usize>,
    /// Call plans of each client.
    pub(crate) clients: Vec<Vec<CallPlan>>,
    /// When an operator deletes an arbitrary runner.
    pub(crate) interferences: Vec<Duration>,
    /// Agents that an operator cordons: which, when, and for how long.
    pub(crate) cordons: Vec<(usize, Duration, Duration)>,
    /// Hot VMs of each agent.
    pub(crate) hot: Vec<Hot>,
    /// In order of time.
    pub(crate) faults: Vec<(Duration, Fault)>,
    /// When the last fault has ended.
    pub(crate) calm_at: Duration,
    pub(crate) rates: Rates,
    /// Longest time a message takes.
    pub(crate) latency: Duration,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let agents = rng.random_range(1..=3);
        let slots: Vec<usize> = (0..agents).map(|_| rng.random_range(1..=3)).collect();
        let calm_at = Duration::from_secs(rng.random_range(12..=30));
        let clients: Vec<Vec<CallPlan>> = (0..2).map(|c| call_plans(&mut rng, c, calm_at)).collect();
        let cordons = (0..rng.random_range(0..3))
            .map(|_| {
                let lasts = Duration::from_millis(rng.random_range(500..10_000));
                (rng.random_range(0..agents), at(&mut rng, calm_at), lasts)
            })
            .collect();
        let interferences = (0..rng.random_range(0..3)).map(|_| at(&mut rng, calm_at)).collect();
        let count = rng.random_range(0..=10);
        let mut faults: Vec<(Duration, Fault)> =
            (0..count).map(|_| (at(&mut rng, calm_at), fault(&mut rng, agents))).collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            hot: slots.iter().map(|_| hot(&mut rng)).collect(),
            slots,
            clients,
            interferences,
            cordons,
            faults,
            calm_at,
            rates: rates(&mut rng),
            latency: Duration::from_millis(*pick(&mut rng, &[1, 10, 40, 80])),
        }
    }
}

/// The hot VMs of an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hot {
    /// `--hot`.
    pub(crate) wanted: &'static str,
    /// `--hot-idle paused`.
    pub(crate) paused: bool,
}

fn hot(rng: &mut SmallRng) -> Hot {
    // No call here wants another size than the template's default, so VMs of that size must make room.
    let wanted = *pick(rng, &["none", "none", "all", "all", "1", "2x512MiB=1", "1,2x512MiB=1"]);
    Hot { wanted, paused: rng.random_range(0..3) == 0 }
}

fn pick<'a, T>(rng: &mut SmallRng, all: &'a [T]) -> &'a T {
    &all[rng.random_range(0..all.len())]
}

fn at(rng: &mut SmallRng, before: Duration) -> Duration {
    Duration::from_millis(rng.random_range(0..u64::try_from(before.as_millis()).unwrap_or(1)))
}

fn rates(rng: &mut SmallRng) -> Rates {
    // Half of the rates are zero.
    let mut rate = |from: u32| if rng.random_range(0..2) == 0 { 0 } else { rng.random_range(from..40) };
    Rates {
        clone: rate(8),
        launch: rate(8),
        start: rate(8),
        boot: rate(10),
        ssh: rate(3),
        hand_over: rate(3),
        script: rate(8),
        register: rate(8),
        power_off: rate(4),
        stop: rate(4),
        find: rate(4),
        remove: rate(4),
        slowness: *pick(rng, &[1, 1, 3, 20]),
    }
}

fn call_plans(rng: &mut SmallRng, client: usize, calm_at: Duration) -> Vec<CallPlan> {
    let count = rng.random_range(1..=5);
    (0..count)
        .map(|n| {
            // Both clients request one name in five.
            let name =
                if rng.random_range(0..5) == 0 { format!("shared-{n}") } else { format!("job-{client}-{n}") };
            let ms = |rng: &mut SmallRng, to: u64| Duration::from_millis(rng.random_range(1..to));
            let then = match rng.random_range(0..8) {
                0 | 1 => Then::DeleteAfter(ms(rng, 12_000)),
                2 => Then::LeaveIt,
                3 => Then::GiveUp,
                _ => Then::DeleteWhenDone,
            };
            let name = if then == Then::GiveUp { given_up(client, n) } else { name };
            CallPlan {
                at: at(rng, calm_at),
                name,
                timeout: Duration::from_secs(rng.random_range(8..=40)),
                cancels_after: (rng.random_range(0..4) == 0 || then == Then::GiveUp).then(|| ms(rng, 6000)),
                then,
                requests_again: then == Then::DeleteWhenDone && rng.random_range(0..3) == 0,
            }
        })
        .collect()
}

/// The name of a runner that never gets a job.
fn given_up(client: usize, n: usize) -> String {
    format!("{GIVEN_UP}{client}-{n}")
}

/// Prefix of the names of runners that never get a job.
pub(crate) const GIVEN_UP: &str = "given-up-";

fn fault(rng: &mut SmallRng, agents: usize) -> Fault {
    let down = Duration::from_millis(rng.random_range(10..8000));
    let lasts = Duration::from_millis(rng.random_range(100..20_000));
    let nth = rng.random_range(0..agents);
    let process = if rng.random_range(0..2) == 0 { Process::Server } else { Process::Agent(nth) };
    let between = if rng.random_range(0..4) == 0 {
        (client(rng.random_range(0..2)), SERVER.to_owned())
    } else {
        (agent(nth), SERVER.to_owned())
    };
    match rng.random_range(0..12) {
        0 | 1 => Fault::Crash { process, down },
        2 | 3 => Fault::CrashAtStep { process, steps: rng.random_range(0..12), down },
        4 => Fault::Restart { down },
        5 => Fault::PowerFailure { agent: nth, down },
        6 => Fault::Partition {
            between,
            oneway: *pick(rng, &[Oneway::Both, Oneway::There, Oneway::Back]),
            lasts,
        },
        7 => Fault::Hold { between, lasts },
        8 => {
            Fault::ClockJump { process, seconds: *pick(rng, &[-90_000, -3600, -60, -1, 1, 60, 3600, 90_000]) }
        }
        9 => Fault::DiskFills { agent: nth, lasts },
        10 => Fault::StoreRefuses { lasts },
        _ => Fault::VmDies { which: rng.random() },
    }
}
