//! The host's slots, as tickets: dropping one frees its slot.
//!
//! A runner holds an *admission* from the moment it is accepted to its end, and a *ticket* once it has a VM. A hot VM holds
//! only a ticket, and gives it up when an admitted runner needs it. So there are never more VMs than slots, and no runner
//! waits for a slot that is not freed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Cheap to clone; clones share their tickets.
#[derive(Debug, Clone)]
pub struct Slots {
    max: u32,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<Held>,
    /// Counts the tickets that were returned.
    freed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Held {
    /// The indexes of the slots with a VM.
    tickets: BTreeSet<u32>,
    admissions: usize,
}

/// The right to run a VM in one slot.
#[derive(Debug)]
pub struct Ticket {
    index: u32,
    shared: Arc<Shared>,
}

/// A runner's right to a ticket.
#[derive(Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {max} slots of this host are in use ({taken} runners)")]
pub struct Full {
    max: u32,
    taken: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    pub fn new(max: u32) -> Self {
        Self { max, shared: Arc::default() }
    }

    pub fn max(&self) -> u32 {
        self.max
    }

    /// For a new runner, if there are fewer runners than slots.
    pub fn admit(&self) -> Result<Admission, Full> {
        let mut held = self.shared.lock();
        if held.admissions >= self.max as usize {
            return Err(Full { max: self.max, taken: held.admissions });
        }
        held.admissions += 1;
        Ok(Admission { shared: self.shared.clone() })
    }

    /// For a runner whose VM runs already, whatever the limit is now. `slot` is the one that the VM had: it gets the same one
    /// if that is free.
    pub fn adopt(&self, slot: Option<u32>) -> (Admission, Ticket) {
        let ticket = self.adopt_hot(slot);
        self.shared.lock().admissions += 1;
        (Admission { shared: self.shared.clone() }, ticket)
    }

    /// As [`Slots::adopt`], for a VM without a runner.
    pub fn adopt_hot(&self, slot: Option<u32>) -> Ticket {
        let mut held = self.shared.lock();
        let free = |index: &u32| !held.tickets.contains(index);
        let index = slot.filter(free).unwrap_or_else(|| (0..).find(free).unwrap_or(u32::MAX));
        self.ticket(&mut held, index)
    }

    /// The first free slot for which `preferred` is true, else the lowest free one; `None` if every slot has a VM.
    pub fn take(&self, preferred: impl Fn(u32) -> bool) -> Option<Ticket> {
        let mut held = self.shared.lock();
        let free = self.free_in(&held);
        let index = free.iter().copied().find(|index| preferred(*index)).or(free.first().copied())?;
        Some(self.ticket(&mut held, index))
    }

    /// The slot with this index, if it is free.
    pub fn take_index(&self, index: u32) -> Option<Ticket> {
        let mut held = self.shared.lock();
        self.free_in(&held).contains(&index).then(|| self.ticket(&mut held, index))
    }

    /// The indexes of the slots without a VM.
    pub fn free(&self) -> Vec<u32> {
        self.free_in(&self.shared.lock())
    }

    /// Changes with each ticket that is returned.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.shared.freed.subscribe()
    }

    fn free_in(&self, held: &Held) -> Vec<u32> {
        let room = (self.max as usize).saturating_sub(held.tickets.len());
        (0..self.max).filter(|index| !held.tickets.contains(index)).take(room).collect()
    }

    fn ticket(&self, held: &mut Held, index: u32) -> Ticket {
        held.tickets.insert(index);
        Ticket { index, shared: self.shared.clone() }
    }
}

impl Ticket {
    /// From 0.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.lock().tickets.remove(&self.index);
        self.shared.freed.send_modify(|n| *n += 1);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.lock().admissions -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(slots: &Slots) -> Option<Ticket> {
        slots.take(|_| false)
    }

    #[test]
    fn a_dropped_ticket_frees_its_slot_and_a_dropped_admission_admits_another_runner() {
        let slots = Slots::new(1);
        let (admission, first) = (slots.admit().unwrap(), any(&slots).unwrap());
        assert!(slots.admit().unwrap_err().to_string().contains("all 1 slots"));
        assert!(any(&slots).is_none());
        drop((admission, first));
        slots.admit().unwrap();
        any(&slots).unwrap();
    }

    #[test]
    fn a_hot_vm_does_not_keep_a_runner_from_being_admitted() {
        let slots = Slots::new(1);
        let hot = any(&slots).unwrap();
        let _admission = slots.admit().unwrap();
        assert!(any(&slots).is_none(), "it is admitted, and waits for the hot VM's ticket");
        drop(hot);
        assert_eq!(any(&slots).unwrap().index(), 0);
    }

    #[test]
    fn fault_10_adopted_vms_count_even_beyond_the_limit() {
        let slots = Slots::new(1);
        let (one, two) = (slots.adopt(None), slots.adopt(None));
        assert!(slots.admit().is_err() && any(&slots).is_none());
        drop(one);
        assert!(slots.admit().is_err() && any(&slots).is_none());
        drop(two);
        assert!(slots.admit().is_ok() && any(&slots).is_some());
    }

    #[test]
    fn fault_26_no_two_vms_share_a_slot_and_an_adopted_one_keeps_its_slot() {
        let slots = Slots::new(3);
        let adopted = slots.adopt(Some(1));
        let twin = slots.adopt_hot(Some(1));
        assert_eq!((adopted.1.index(), twin.index()), (1, 0));
        let third = any(&slots).unwrap();
        assert_eq!(third.index(), 2);
        drop(adopted);
        assert_eq!(any(&slots).unwrap().index(), 1);
    }

    #[test]
    fn a_preferred_slot_is_taken_before_a_lower_one() {
        let slots = Slots::new(3);
        assert_eq!(slots.take(|index| index == 2).unwrap().index(), 2);
        let _first = slots.take_index(0).unwrap();
        assert!(slots.take_index(0).is_none() && slots.take_index(7).is_none());
        assert_eq!(slots.free(), [1, 2]);
    }
}
