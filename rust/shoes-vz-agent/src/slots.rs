//! The host's slots, as tickets: dropping one frees its slot.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// All of them.
#[derive(Debug, Clone)]
pub struct Slots {
    max: u32,
    taken: Arc<AtomicU32>,
}

/// One slot, held.
#[derive(Debug)]
pub struct Ticket {
    taken: Arc<AtomicU32>,
}

/// None is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {max} slots of this host are taken ({taken} VMs)")]
pub struct Full {
    max: u32,
    taken: u32,
}

impl Slots {
    /// `max` free slots.
    pub fn new(max: u32) -> Self {
        Self { max, taken: Arc::default() }
    }

    /// Takes one if one is free.
    pub fn take(&self) -> Result<Ticket, Full> {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < self.max).then_some(n + 1))
            .map(|_| Ticket { taken: self.taken.clone() })
            .map_err(|taken| Full { max: self.max, taken })
    }

    /// One for a VM that is there already, whatever the limit is now.
    pub fn adopt(&self) -> Ticket {
        self.taken.fetch_add(1, Ordering::AcqRel);
        Ticket { taken: self.taken.clone() }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_ticket_frees_its_slot() {
        let slots = Slots::new(1);
        let first = slots.take().unwrap();
        assert!(slots.take().unwrap_err().to_string().contains("all 1 slots"));
        drop(first);
        slots.take().unwrap();
    }

    #[test]
    fn adopted_vms_count_even_beyond_the_limit() {
        let slots = Slots::new(1);
        let (one, two) = (slots.adopt(), slots.adopt());
        assert!(slots.take().is_err());
        drop(one);
        assert!(slots.take().is_err());
        drop(two);
        assert!(slots.take().is_ok());
    }
}
