//! What a seed means: how large the fleet is, who calls when, and what goes wrong when.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

/// One in so many operations of the hosts goes wrong; 0 = none.
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
    /// A try to reach sshd.
    pub(crate) ssh: u32,
    /// Handing the script over.
    pub(crate) hand_over: u32,
    /// Scripts that exit otherwise than 0.
    pub(crate) script: u32,
    /// Scripts that start no runner.
    pub(crate) register: u32,
    /// Guests that power off once their job is done.
    pub(crate) power_off: u32,
    /// Stops that get no answer.
    pub(crate) stop: u32,
    /// Looking for a former agent's VM.
    pub(crate) find: u32,
    /// Removing a bundle.
    pub(crate) remove: u32,
    /// How many times slower hosts are than they could be.
    pub(crate) slowness: u64,
}

impl Rates {
    /// Nothing goes wrong.
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

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    Server,
    Agent(usize),
}

impl Whom {
    pub(crate) fn host(self) -> String {
        match self {
            Self::Server => SERVER.into(),
            Self::Agent(n) => agent(n),
        }
    }
}

/// The server's host.
pub(crate) const SERVER: &str = "server";

/// An agent's host.
pub(crate) fn agent(n: usize) -> String {
    format!("agent-{n}")
}

/// A client's host.
pub(crate) fn client(n: usize) -> String {
    format!("client-{n}")
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A process dies at once, and is started again later.
    Crash { whom: Whom, down: Duration },
    /// A process dies at some later step of its own.
    CrashAtStep { whom: Whom, steps: u32, down: Duration },
    /// The server is told to stop, and is started again.
    Restart { down: Duration },
    /// A host loses its power: its agent and all its VMs.
    PowerFailure { agent: usize, down: Duration },
    /// No message passes between these two.
    Partition { between: (String, String), oneway: Oneway, lasts: Duration },
    /// Messages between these two wait, and then all come.
    Hold { between: (String, String), lasts: Duration },
    /// A process' calendar jumps.
    ClockJump { whom: Whom, seconds: i64 },
    /// A host's disk is nearly full for a while.
    DiskFills { agent: usize, lasts: Duration },
    /// The server's disk takes nothing for a while.
    StoreRefuses { lasts: Duration },
    /// A VM ends by itself.
    VmDies { which: u32 },
}

/// Which way is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oneway {
    Both,
    There,
    Back,
}

/// One job of one client.
#[derive(Debug, Clone)]
pub(crate) struct Errand {
    /// When it begins.
    pub(crate) at: Duration,
    /// Its runner's name. Some errands share one.
    pub(crate) name: String,
    /// The deadline of each AddInstance.
    pub(crate) patience: Duration,
    /// A first call that is broken off after so long.
    pub(crate) breaks_off: Option<Duration>,
    /// What happens once the runner is there.
    pub(crate) then: Then,
    /// Its name is asked for again once all that is over, as by a caller that was killed before it wrote the answer down.
    pub(crate) asks_again: bool,
}

/// What a client does with its runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is deleted so much later, whatever it does then.
    DeleteAfter(Duration),
    /// The job runs to its end, and it is deleted then, twice.
    DeleteWhenDone,
    /// Nobody deletes it.
    LeaveIt,
    /// Its first call is broken off, and nobody asks again: no job ever comes.
    GiveUp,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Slots of each agent.
    pub(crate) slots: Vec<usize>,
    /// Errands of each client.
    pub(crate) clients: Vec<Vec<Errand>>,
    /// When somebody deletes whatever runner he sees, made or in the making.
    pub(crate) meddling: Vec<Duration>,
    /// Agents an operator takes out of service: which, when, and for how long.
    pub(crate) cordons: Vec<(usize, Duration, Duration)>,
    /// VMs each agent keeps hot.
    pub(crate) hot: Vec<Hot>,
    /// In order of time.
    pub(crate) faults: Vec<(Duration, Fault)>,
    /// When the last fault is over and the world is calm.
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
        let clients: Vec<Vec<Errand>> = (0..2).map(|c| errands(&mut rng, c, calm_at)).collect();
        let cordons = (0..rng.random_range(0..3))
            .map(|_| {
                let lasts = Duration::from_millis(rng.random_range(500..10_000));
                (rng.random_range(0..agents), at(&mut rng, calm_at), lasts)
            })
            .collect();
        let meddling = (0..rng.random_range(0..3)).map(|_| at(&mut rng, calm_at)).collect();
        let count = rng.random_range(0..=10);
        let mut faults: Vec<(Duration, Fault)> =
            (0..count).map(|_| (at(&mut rng, calm_at), fault(&mut rng, agents))).collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            hot: slots.iter().map(|_| hot(&mut rng)).collect(),
            slots,
            clients,
            meddling,
            cordons,
            faults,
            calm_at,
            rates: rates(&mut rng),
            latency: Duration::from_millis(*pick(&mut rng, &[1, 10, 40, 80])),
        }
    }
}

/// What an agent keeps hot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hot {
    /// `--hot`.
    pub(crate) wanted: &'static str,
    /// `--hot-idle paused`.
    pub(crate) paused: bool,
}

fn hot(rng: &mut SmallRng) -> Hot {
    // Another size than the template's own is of no use to anybody here, and must make room.
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
    // Some hosts are good ones.
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

fn errands(rng: &mut SmallRng, client: usize, calm_at: Duration) -> Vec<Errand> {
    let count = rng.random_range(1..=5);
    (0..count)
        .map(|n| {
            // One name in five is asked for by both.
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
            Errand {
                at: at(rng, calm_at),
                name,
                patience: Duration::from_secs(rng.random_range(8..=40)),
                breaks_off: (rng.random_range(0..4) == 0 || then == Then::GiveUp).then(|| ms(rng, 6000)),
                then,
                asks_again: then == Then::DeleteWhenDone && rng.random_range(0..3) == 0,
            }
        })
        .collect()
}

/// The name of a runner no job will come to.
fn given_up(client: usize, n: usize) -> String {
    format!("{GIVEN_UP}{client}-{n}")
}

/// How such names begin.
pub(crate) const GIVEN_UP: &str = "given-up-";

fn fault(rng: &mut SmallRng, agents: usize) -> Fault {
    let down = Duration::from_millis(rng.random_range(10..8000));
    let lasts = Duration::from_millis(rng.random_range(100..20_000));
    let nth = rng.random_range(0..agents);
    let whom = if rng.random_range(0..2) == 0 { Whom::Server } else { Whom::Agent(nth) };
    let between = if rng.random_range(0..4) == 0 {
        (client(rng.random_range(0..2)), SERVER.to_owned())
    } else {
        (agent(nth), SERVER.to_owned())
    };
    match rng.random_range(0..12) {
        0 | 1 => Fault::Crash { whom, down },
        2 | 3 => Fault::CrashAtStep { whom, steps: rng.random_range(0..12), down },
        4 => Fault::Restart { down },
        5 => Fault::PowerFailure { agent: nth, down },
        6 => Fault::Partition {
            between,
            oneway: *pick(rng, &[Oneway::Both, Oneway::There, Oneway::Back]),
            lasts,
        },
        7 => Fault::Hold { between, lasts },
        8 => Fault::ClockJump { whom, seconds: *pick(rng, &[-90_000, -3600, -60, -1, 1, 60, 3600, 90_000]) },
        9 => Fault::DiskFills { agent: nth, lasts },
        10 => Fault::StoreRefuses { lasts },
        _ => Fault::VmDies { which: rng.random() },
    }
}
