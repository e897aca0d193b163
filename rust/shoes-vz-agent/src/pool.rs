//! Hot VMs: started ahead of any runner, to where SSH answers, so that a runner claims one in milliseconds.
//!
//! ```text
//! keeper: free slots, plan ─▶ hot VM (one task each): prepare ─▶ ready ─▶ claimed ─▶ a runner's
//!                                          ▲                        └─▶ dead, unhealthy, too old, evicted ─▶ removed
//! runner: offer ─▶ a ready one, else one that will be, else a free slot, else one of another size is evicted
//! ```
//! A hot VM holds a slot's ticket and never keeps a runner out. It is handed over by its task, which checks it once more: a
//! dead one is never handed over, and its runner gets a VM another way.

mod hot_vm;
mod keeper;
mod plan;
mod prepare;
mod registry;

pub(crate) use self::registry::Offer;
pub use self::{
    plan::{HotPlan, Idle},
    registry::{Pool, PoolLimits},
};
