//! Hot VMs: started ahead of any runner, to where SSH answers, so that a runner takes one over in milliseconds.
//!
//! ```text
//! keeper: free slots, plan ─▶ spare (one task each): prepare ─▶ ready ─▶ claimed ─▶ a runner's
//!                                          ▲                     └─▶ dead, unwell, too old, evicted ─▶ removed
//! runner: offer ─▶ a ready one, else one that will be, else a free slot, else another size's is evicted
//! ```
//! A spare holds a slot's ticket and nothing that keeps a runner out. A VM is handed over by its own task, which looks at
//! it a last time; a dead one is never handed over, and its runner goes another way.

mod plan;
mod pool;
mod prepare;
mod spare;

use shoes_vz_vm::template::TemplateDir;

pub(crate) use self::pool::Offer;
pub use self::{
    plan::{HotPlan, Idle, Many, StatesMode},
    pool::Pool,
};
use crate::runner::Order;

/// How much a VM is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Size of its disk.
    pub disk_bytes: u64,
}

impl Class {
    /// Of a VM that nobody asks anything special of.
    pub fn own(template: &TemplateDir) -> Self {
        Self::sized(template, 0, 0, 0)
    }

    /// What an order comes to.
    pub(crate) fn of(template: &TemplateDir, order: &Order) -> Self {
        Self::sized(template, order.cpus, order.memory_bytes, order.disk_bytes)
    }

    /// 0 = the template's, for each.
    pub(crate) fn sized(template: &TemplateDir, cpus: u32, memory_bytes: u64, disk_bytes: u64) -> Self {
        Self {
            cpus: template.meta.cpus(cpus),
            memory_bytes: template.meta.memory_bytes(memory_bytes),
            disk_bytes: template.disk_bytes.max(disk_bytes),
        }
    }
}
