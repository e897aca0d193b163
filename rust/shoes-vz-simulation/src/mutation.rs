//! What can be broken on purpose, to see that the simulation notices. Each is a part of the product replaced by one that
//! does not keep its promise.

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The store says "durable" before it is.
    StoreForgetsOnCrash,
    /// The store says "durable" of what it refused to write.
    RefusedWritesAreCalledDurable,
    /// The server starts without knowing which ended runners had worked on a job.
    ServedNamesAreForgotten,
    /// The server starts without the tombstones it stored.
    TombstonesAreLost,
    /// The server starts without its queue and its placed runners.
    RunnersAreLost,
    /// The server never ends a runner whose callers are gone.
    AbandonedRunnersStay,
    /// The agent takes one VM more than it has slots, and the server counts with it.
    OneSlotTooMany,
    /// A restarted agent does not see that VMs of its bundles live.
    LiveVmsAreNotFound,
    /// A stop is confirmed, and the VM goes on.
    StopsAreIgnored,
    /// A removal is confirmed, and the bundle stays.
    BundlesStay,
    /// The agent has another identity after each start.
    IdentityIsLost,
    /// A slot is not given back once its VM is gone.
    SlotsAreNotGivenBack,
    /// The agent keeps no ends over a restart, and its bundles are wiped first.
    VmsAreForgottenOnRestart,
    /// The server gives up the runners of every agent that is away for a moment.
    AgentsAreForgottenAtOnce,
}
