//! Calls that fail.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Call number `at` fails, the next ones do not.
    Once,
    /// Every call from `at` on fails.
    Sticky,
    /// Write number `at` (of all calls) writes a part of its bytes and fails.
    Short,
    /// From call `at` on the files cannot grow, until space is back.
    Full,
    /// The first sync from call `at` on fails, and the device has dropped what it should have covered.
    Sync,
}

/// What fails, and what was called so far.
#[derive(Debug, Default)]
pub struct Faults {
    plan: Option<(Fault, u64)>,
    calls: AtomicU64,
    hit: AtomicU64,
    /// Space is back.
    relieved: std::sync::atomic::AtomicBool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It succeeds.
    Pass,
    /// It fails and nothing has happened.
    Fail,
    /// A part has happened.
    Part,
    /// It fails if the file would grow.
    FailToGrow,
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A read, or a question.
    Read,
    /// A write, a punch, a length.
    Write,
    /// A sync.
    Sync,
}

impl Faults {
    /// Call number `at` is where it begins.
    pub fn new(fault: Fault, at: u64) -> Self {
        Self {
            plan: Some((fault, at)),
            ..Self::default()
        }
    }

    /// Whether all that fails is for want of space.
    pub fn is_full(&self) -> bool {
        matches!(self.plan, Some((Fault::Full, _)))
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// How many have failed.
    pub fn hits(&self) -> u64 {
        self.hit.load(Ordering::SeqCst)
    }

    /// Nothing fails from now on.
    pub fn relieve(&self) {
        self.relieved.store(true, Ordering::SeqCst);
    }

    /// Notes that a call failed that could have succeeded.
    pub(crate) fn note(&self) {
        self.hit.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn ask(&self, call: Call) -> Answer {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let Some((fault, at)) = self.plan.filter(|_| !self.relieved.load(Ordering::SeqCst)) else {
            return Answer::Pass;
        };
        let answer = match fault {
            Fault::Once if number == at => Answer::Fail,
            Fault::Sticky if number >= at => Answer::Fail,
            Fault::Short if number >= at && call == Call::Write && self.hits() == 0 => Answer::Part,
            Fault::Full if number >= at && call == Call::Write => return Answer::FailToGrow,
            Fault::Sync if number >= at && call == Call::Sync && self.hits() == 0 => Answer::Fail,
            _ => Answer::Pass,
        };
        if answer != Answer::Pass {
            self.note();
        }
        answer
    }
}
