//! What the runners of this agent share.

use std::{sync::Arc, time::Duration};

use crate::{
    board::Board,
    disk::Disk,
    ends::Ends,
    host::Host,
    pool::{HotPlan, Pool, PoolLimits},
    slots::Slots,
};

/// How long a runner may take for what. Each counts for runners that begin from now on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the runner's creation until SSH answers.
    pub start_deadline: Duration,
    /// From the runner's creation until its VM ends; `None`: no limit.
    pub max_lifetime: Option<Duration>,
    /// From the end of the setup script until an Actions runner listens.
    pub registration_deadline: Duration,
    /// How long a guest with a setup script may leave every question unanswered; `None`: no limit.
    pub unresponsive_guest_limit: Option<Duration>,
}

pub struct Agent {
    pub host: Arc<Host>,
    pub limits: Limits,
    pub slots: Slots,
    pub pool: Pool,
    pub disk: Disk,
    pub board: Board,
    pub ends: Ends,
}

impl Agent {
    /// An agent without runners and with an empty pool.
    pub fn new(host: Host, limits: Limits, slots: Slots, hot: HotPlan, disk: Disk, ends: Ends) -> Arc<Self> {
        let host = Arc::new(host);
        let pool_limits =
            PoolLimits { start_deadline: limits.start_deadline, max_lifetime: limits.max_lifetime };
        let pool = Pool::new(hot, host.clone(), slots.clone(), disk.clone(), pool_limits);
        Arc::new(Self { host, limits, slots, pool, disk, board: Board::default(), ends })
    }
}
