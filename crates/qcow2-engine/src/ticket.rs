//! What a read holds while it depends on where bytes stand.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// Tickets that are held without a lock; those beyond it share one.
const SLOTS: usize = 32;
/// What a slot holds while nobody has it.
const FREE: u64 = u64::MAX;

/// Gives out tickets in order and knows which are still held.
///
/// A read of a few hundred nanoseconds takes one, so this is three atomic operations: claim a slot, take a number, write it down. A slot is claimed
/// with the number that is next at that time, which is never above the one that it gets: whoever looks meanwhile sees a ticket that is a little
/// too old, never none.
#[derive(Debug)]
pub struct Tickets {
    next: AtomicU64,
    slots: [Slot; SLOTS],
    /// Numbers for which there was no slot.
    crowd: Mutex<BTreeSet<u64>>,
}

/// On a cache line of its own: threads that read at the same time write to different ones.
#[derive(Debug)]
#[repr(align(64))]
struct Slot(AtomicU64);

impl Default for Tickets {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(0),
            slots: [const { Slot(AtomicU64::new(FREE)) }; SLOTS],
            crowd: Mutex::default(),
        }
    }
}

impl Tickets {
    /// Takes a ticket, before resolving.
    pub fn take(&self) -> Ticket<'_> {
        let next = self.now();
        // Tickets in a row begin to look at different slots; one that is alone finds its slot free at once.
        let first = usize::try_from(next).unwrap_or(0) % SLOTS;
        let (front, back) = self.slots.split_at_checked(first).unwrap_or_default();
        for slot in back.iter().chain(front) {
            let claimed = slot.0.compare_exchange(FREE, next, Ordering::SeqCst, Ordering::Relaxed);
            if claimed.is_ok() {
                let number = self.next.fetch_add(1, Ordering::SeqCst);
                slot.0.store(number, Ordering::SeqCst);
                return Ticket {
                    number,
                    place: Place::Slot(slot),
                };
            }
        }
        let mut crowd = lock(&self.crowd);
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        crowd.insert(number);
        Ticket {
            number,
            place: Place::Crowd(&self.crowd),
        }
    }

    /// The number that the next ticket gets: what is unlinked now may be reclaimed once every ticket below has ended.
    pub fn now(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// The oldest ticket that is still held.
    pub fn oldest(&self) -> Option<u64> {
        let held = self.slots.iter().map(|slot| slot.0.load(Ordering::SeqCst));
        let oldest = held.filter(|&number| number != FREE).min();
        let crowded = lock(&self.crowd).first().copied();
        oldest.into_iter().chain(crowded).min()
    }
}

/// Held from before a resolve until its bytes are there: no host range that it found is given to anyone else meanwhile.
#[derive(Debug)]
pub struct Ticket<'a> {
    number: u64,
    place: Place<'a>,
}

/// Where a ticket is written down.
#[derive(Debug)]
enum Place<'a> {
    Slot(&'a Slot),
    Crowd(&'a Mutex<BTreeSet<u64>>),
}

impl Ticket<'_> {
    /// Its place in the order.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        match self.place {
            Place::Slot(slot) => slot.0.store(FREE, Ordering::SeqCst),
            Place::Crowd(crowd) => {
                lock(crowd).remove(&self.number);
            }
        }
    }
}

fn lock(crowd: &Mutex<BTreeSet<u64>>) -> MutexGuard<'_, BTreeSet<u64>> {
    crowd.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_held_ticket_is_known_whatever_order_they_end_in() {
        let tickets = Tickets::default();
        let (a, b, c) = (tickets.take(), tickets.take(), tickets.take());
        assert_eq!((tickets.oldest(), tickets.now()), (Some(a.number()), 3));
        drop(b);
        assert_eq!(tickets.oldest(), Some(0));
        drop(a);
        assert_eq!(tickets.oldest(), Some(c.number()));
        drop(c);
        assert_eq!((tickets.oldest(), tickets.now()), (None, 3));
    }

    #[test]
    fn more_tickets_than_slots_are_kept_in_order_too() {
        let tickets = Tickets::default();
        let mut held: Vec<_> = (0..3 * SLOTS).map(|_| tickets.take()).collect();
        let numbers: Vec<_> = held.iter().map(Ticket::number).collect();
        assert_eq!(numbers, (0..3 * SLOTS as u64).collect::<Vec<_>>());
        // The last first, then every other one, then the rest.
        held.pop();
        while let Some(oldest) = tickets.oldest() {
            assert_eq!(Some(oldest), held.iter().map(Ticket::number).min());
            let odd = held.iter().position(|ticket| ticket.number() % 2 == 1);
            held.remove(odd.unwrap_or(held.len() / 2));
        }
        assert!(held.is_empty());
    }

    /// Whoever unlinks asks for `now`; from then on every ticket below it that was not dropped must be seen, also while others come and go.
    #[test]
    fn a_held_ticket_is_never_overlooked() {
        let tickets = Tickets::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let ticket = tickets.take();
                        assert!(ticket.number() < tickets.now());
                        assert!(tickets.oldest().is_some_and(|oldest| oldest <= ticket.number()));
                    }
                });
            }
        });
        assert_eq!((tickets.oldest(), tickets.now()), (None, 20_000));
    }
}
