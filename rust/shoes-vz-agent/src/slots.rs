//! The host's slots, as tickets: dropping one frees its slot.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// All of them.
#[derive(Debug, Clone)]
pub struct Slots {
    max: u32,
    taken: Taken,
}

/// The numbers of the slots that are taken.
type Taken = Arc<Mutex<BTreeSet<u32>>>;

/// One slot, held.
#[derive(Debug)]
pub struct Ticket {
    index: u32,
    taken: Taken,
}

/// None is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {max} slots of this host are taken ({taken} VMs)")]
pub struct Full {
    max: u32,
    taken: usize,
}

fn lock(taken: &Taken) -> MutexGuard<'_, BTreeSet<u32>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    /// `max` free slots.
    pub fn new(max: u32) -> Self {
        Self { max, taken: Taken::default() }
    }

    /// Takes the lowest free one, if fewer VMs than slots are there.
    pub fn take(&self) -> Result<Ticket, Full> {
        let mut taken = lock(&self.taken);
        if taken.len() >= self.max as usize {
            return Err(Full { max: self.max, taken: taken.len() });
        }
        Ok(self.ticket(&mut taken, None))
    }

    /// One for a VM that is there already, whatever the limit is now: its own, if that is known and free.
    pub fn adopt(&self, own: Option<u32>) -> Ticket {
        self.ticket(&mut lock(&self.taken), own)
    }

    fn ticket(&self, taken: &mut BTreeSet<u32>, wanted: Option<u32>) -> Ticket {
        let free = |index: &u32| !taken.contains(index);
        let index = wanted.filter(free).unwrap_or_else(|| (0..).find(free).unwrap_or(u32::MAX));
        taken.insert(index);
        Ticket { index, taken: self.taken.clone() }
    }
}

impl Ticket {
    /// Which slot it is, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.index);
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
    fn fault_10_adopted_vms_count_even_beyond_the_limit() {
        let slots = Slots::new(1);
        let (one, two) = (slots.adopt(None), slots.adopt(None));
        assert!(slots.take().is_err());
        drop(one);
        assert!(slots.take().is_err());
        drop(two);
        assert!(slots.take().is_ok());
    }

    #[test]
    fn fault_26_no_two_vms_have_one_slot_and_an_adopted_one_keeps_its_own() {
        let slots = Slots::new(3);
        let adopted = slots.adopt(Some(1));
        let twin = slots.adopt(Some(1));
        assert_eq!((adopted.index(), twin.index()), (1, 0));
        let third = slots.take().unwrap();
        assert_eq!(third.index(), 2);
        drop(adopted);
        assert_eq!(slots.take().unwrap().index(), 1);
    }
}
