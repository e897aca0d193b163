//! Parts of the product that can be broken on purpose, to see that the simulation detects it.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The store confirms writes before they are durable.
    StoreForgetsOnCrash,
    /// The store confirms writes that it refused.
    RefusedWritesAreCalledDurable,
    /// The server starts without knowing which ended runners had a job.
    ServedNamesAreForgotten,
    /// The server starts without the tombstones it stored.
    TombstonesAreLost,
    /// The server starts without its queue and its placed runners.
    RunnersAreLost,
    /// The server never ends a runner whose callers have disappeared.
    AbandonedRunnersStay,
    /// The agent accepts one VM more than it has slots, and the server relies on it.
    OneSlotTooMany,
    /// A restarted agent does not find the live VMs of its bundles.
    LiveVmsAreNotFound,
    /// A stop is confirmed, but the VM keeps running.
    StopsAreIgnored,
    /// A removal is confirmed, but the bundle stays.
    BundlesStay,
    /// The agent has another identity after each start.
    IdentityIsLost,
    /// A slot is not freed after its VM was removed.
    SlotsAreNotGivenBack,
    /// A restart of the agent loses its end reports and its bundles.
    VmsAreForgottenOnRestart,
    /// The server gives up the runners of every agent that disconnects for a moment.
    AgentsAreForgottenAtOnce,
}
