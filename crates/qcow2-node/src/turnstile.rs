//! The order in which a disk's requests run: what changes the whole mapping waits for the requests accepted before it and holds later ones.
//!
//! The engine keeps that order too, by a lock; here it is kept by not handing a request to a thread before its turn. So no thread of the pool
//! ever waits for a request that still needs one, and the requests of other disks go on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pool::{self, Lane, Rejected, Work};

/// Whether others may run beside a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// With everybody else who shares.
    Shared,
    /// With nobody.
    Alone,
}

/// One disk's order. Requests are submitted on one thread, in the order in which they were accepted.
#[derive(Default)]
pub(crate) struct Turnstile {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Requests that were handed to threads and have not ended.
    running: usize,
    /// One of them runs alone.
    alone: bool,
    held: VecDeque<(Turn, Lane, Work)>,
}

impl State {
    fn admits(&self, turn: Turn) -> bool {
        match turn {
            Turn::Shared => !self.alone,
            Turn::Alone => self.running == 0,
        }
    }

    fn enter(&mut self, turn: Turn) {
        self.running += 1;
        self.alone = turn == Turn::Alone;
    }
}

impl Turnstile {
    /// Hands `work`, which does not panic, to a thread when its turn has come.
    ///
    /// # Errors
    /// The system gives us no thread. Work that had to wait runs on the thread that ends the wait then.
    pub(crate) fn submit(self: &Arc<Self>, turn: Turn, lane: Lane, work: Work) -> Result<(), Rejected> {
        {
            let mut state = self.lock();
            if !state.held.is_empty() || !state.admits(turn) {
                state.held.push_back((turn, lane, work));
                return Ok(());
            }
            state.enter(turn);
        }
        let submitted = pool::submit(lane, self.then_leave(work));
        if submitted.is_err() {
            self.leave();
        }
        submitted
    }

    fn then_leave(self: &Arc<Self>, work: Work) -> Work {
        let turnstile = Arc::clone(self);
        Box::new(move || {
            work();
            turnstile.leave();
        })
    }

    /// A request has ended: those whose turn it is now go on.
    fn leave(self: &Arc<Self>) {
        let next = {
            let mut state = self.lock();
            state.running -= 1;
            state.alone = false;
            if state.held.is_empty() {
                return;
            }
            let mut next = Vec::new();
            while let Some((turn, _, _)) = state.held.front() {
                let turn = *turn;
                if !state.admits(turn) {
                    break;
                }
                state.enter(turn);
                next.extend(state.held.pop_front());
            }
            next
        };
        for (_, lane, work) in next {
            if let Err(rejected) = pool::submit(lane, self.then_leave(work)) {
                (rejected.work)();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A request that says when it begins and ends when it is let.
    fn request(told: &Sender<u32>, name: u32) -> (Work, Sender<()>) {
        let (end, ended) = mpsc::channel::<()>();
        let told = told.clone();
        let work = move || {
            told.send(name).unwrap();
            let _ = ended.recv();
        };
        (Box::new(work), end)
    }

    fn begun(told: &Receiver<u32>, count: usize) -> Vec<u32> {
        let mut names: Vec<_> = (0..count).map(|_| told.recv_timeout(PATIENCE).unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn one_that_runs_alone_waits_for_those_before_and_holds_those_behind() {
        let (told, tells) = mpsc::channel();
        let turnstile = Arc::new(Turnstile::default());
        let turns = [
            Turn::Shared,
            Turn::Shared,
            Turn::Alone,
            Turn::Shared,
            Turn::Alone,
            Turn::Alone,
            Turn::Shared,
        ];
        let mut ends = Vec::new();
        for (name, turn) in (0..).zip(turns) {
            let (work, end) = request(&told, name);
            assert!(turnstile.submit(turn, Lane::Write, work).is_ok());
            ends.push(end);
        }
        let mut ends = ends.into_iter();
        let mut end = |count: usize| ends.by_ref().take(count).for_each(drop);
        assert_eq!(begun(&tells, 2), [0, 1]);
        assert!(
            tells.recv_timeout(Duration::from_millis(50)).is_err(),
            "the third does not wait"
        );
        end(1);
        assert!(
            tells.recv_timeout(Duration::from_millis(50)).is_err(),
            "it waits for one of two"
        );
        end(1);
        for name in 2..7 {
            assert_eq!(begun(&tells, 1), [name]);
            assert!(
                tells.recv_timeout(Duration::from_millis(20)).is_err(),
                "{name} is not alone"
            );
            end(1);
        }
    }
}
