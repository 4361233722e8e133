//! What a read holds while it depends on where bytes stand.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Gives out tickets in order and knows which are still held. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Tickets(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: BTreeSet<u64>,
}

impl Tickets {
    /// Takes a ticket, before resolving.
    pub fn take(&self) -> Ticket {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.held.insert(number);
        Ticket {
            tickets: self.clone(),
            number,
        }
    }

    /// The number that the next ticket gets: what is unlinked now may be reclaimed once every ticket below has ended.
    pub fn now(&self) -> u64 {
        self.state().next
    }

    /// The oldest ticket that is still held.
    pub fn oldest(&self) -> Option<u64> {
        self.state().held.first().copied()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held from before a resolve until its bytes are there: no host range that it found is given to anyone else meanwhile.
#[derive(Debug)]
pub struct Ticket {
    tickets: Tickets,
    number: u64,
}

impl Ticket {
    /// Its place in the order.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tickets.state().held.remove(&self.number);
    }
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
}
