//! The host's slots, as tickets: dropping one frees its slot.
//!
//! A runner has a *place* from the moment it is accepted to its end, and a *ticket* once it has a VM. A VM that waits for
//! a runner has a ticket only, and gives it up when a runner with a place needs it: so there are never more VMs than
//! slots, and never a runner that waits for a VM nobody will give up.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// All of them.
#[derive(Debug, Clone)]
pub struct Slots {
    max: u32,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<Held>,
    /// How many tickets were given back.
    freed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Held {
    /// The numbers of the slots with a VM.
    tickets: BTreeSet<u32>,
    places: usize,
}

/// One slot, held.
#[derive(Debug)]
pub struct Ticket {
    index: u32,
    shared: Arc<Shared>,
}

/// A runner's right to a slot.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
}

/// None is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {max} slots of this host are taken ({taken} runners)")]
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
    /// `max` free slots.
    pub fn new(max: u32) -> Self {
        Self { max, shared: Arc::default() }
    }

    /// How many there are.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// A place for a new runner, if there are fewer runners than slots.
    pub fn reserve(&self) -> Result<Place, Full> {
        let mut held = self.shared.lock();
        if held.places >= self.max as usize {
            return Err(Full { max: self.max, taken: held.places });
        }
        held.places += 1;
        Ok(Place { shared: self.shared.clone() })
    }

    /// A place and a ticket for a runner whose VM is there already, whatever the limit is now: its own slot, if that is
    /// known and free.
    pub fn adopt(&self, own: Option<u32>) -> (Place, Ticket) {
        let ticket = self.readopt(own);
        self.shared.lock().places += 1;
        (Place { shared: self.shared.clone() }, ticket)
    }

    /// A ticket for a VM that is there already and no runner's.
    pub fn readopt(&self, own: Option<u32>) -> Ticket {
        let mut held = self.shared.lock();
        let free = |index: &u32| !held.tickets.contains(index);
        let index = own.filter(free).unwrap_or_else(|| (0..).find(free).unwrap_or(u32::MAX));
        self.ticket(&mut held, index)
    }

    /// The first free slot `preferred` says yes to, else the lowest free one; `None` when there is a VM for each.
    pub fn take(&self, preferred: impl Fn(u32) -> bool) -> Option<Ticket> {
        let mut held = self.shared.lock();
        let free = self.free_in(&held);
        let index = free.iter().copied().find(|index| preferred(*index)).or(free.first().copied())?;
        Some(self.ticket(&mut held, index))
    }

    /// That slot, if it is free.
    pub fn take_this(&self, index: u32) -> Option<Ticket> {
        let mut held = self.shared.lock();
        self.free_in(&held).contains(&index).then(|| self.ticket(&mut held, index))
    }

    /// The slots without a VM.
    pub fn free(&self) -> Vec<u32> {
        self.free_in(&self.shared.lock())
    }

    /// Changes with each ticket that is given back.
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
    /// Which slot it is, from 0.
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

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().places -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(slots: &Slots) -> Option<Ticket> {
        slots.take(|_| false)
    }

    #[test]
    fn a_dropped_ticket_frees_its_slot_and_a_dropped_place_its_place() {
        let slots = Slots::new(1);
        let (place, first) = (slots.reserve().unwrap(), any(&slots).unwrap());
        assert!(slots.reserve().unwrap_err().to_string().contains("all 1 slots"));
        assert!(any(&slots).is_none());
        drop((place, first));
        slots.reserve().unwrap();
        any(&slots).unwrap();
    }

    #[test]
    fn a_vm_without_a_runner_keeps_no_runner_from_its_place() {
        let slots = Slots::new(1);
        let spare = any(&slots).unwrap();
        let _place = slots.reserve().unwrap();
        assert!(any(&slots).is_none(), "it has a place, and waits for the spare's ticket");
        drop(spare);
        assert_eq!(any(&slots).unwrap().index(), 0);
    }

    #[test]
    fn fault_10_adopted_vms_count_even_beyond_the_limit() {
        let slots = Slots::new(1);
        let (one, two) = (slots.adopt(None), slots.adopt(None));
        assert!(slots.reserve().is_err() && any(&slots).is_none());
        drop(one);
        assert!(slots.reserve().is_err() && any(&slots).is_none());
        drop(two);
        assert!(slots.reserve().is_ok() && any(&slots).is_some());
    }

    #[test]
    fn fault_26_no_two_vms_have_one_slot_and_an_adopted_one_keeps_its_own() {
        let slots = Slots::new(3);
        let adopted = slots.adopt(Some(1));
        let twin = slots.readopt(Some(1));
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
        let _first = slots.take_this(0).unwrap();
        assert!(slots.take_this(0).is_none() && slots.take_this(7).is_none());
        assert_eq!(slots.free(), [1, 2]);
    }
}
