//! Threads that lend a hand to work of some tens of microseconds, which is shorter than starting a thread takes.
//!
//! The caller begins at once and is never kept waiting by a helper that comes late: pieces are claimed one by one, and what is waited for in
//! the end are only those that somebody has begun.
#![allow(
    unsafe_code,
    reason = "helpers outlive the work that is shared with them; every block says why it is sound"
)]

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::{mem, ptr};

use crate::error::{Error, Result};
use crate::panics::guard;
use crate::parallel;

/// Helpers at most.
const MOST: usize = 3;
/// How often a helper without work looks for more before it sleeps: some 20 to 40 µs. Reads come in rows, and waking a thread takes longer.
const LOOKS: u32 = 1000;
/// How often the caller looks whether the last pieces are done before it sleeps: whoever has one of them has lost its processor.
const PATIENCE: u32 = 1500;
/// Jobs that are then done without helpers: on a machine that busy, waiting for them costs more than they bring.
const ALONE: u32 = 16;

/// What is done to piece number so and so.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// Does `work` for each number below `count`, on this thread and on helpers that have nothing else to do, and returns when all is done.
///
/// # Errors
/// [`Error::Internal`] if `work` panicked; the other numbers were worked on all the same.
pub(crate) fn share(count: usize, work: &Work<'_>) -> Result<()> {
    CREW.share(count, work)
}

struct Job {
    /// Borrowed from whoever waits in [`share`]: valid as long as `done` is less than `count`.
    work: *const Work<'static>,
    count: usize,
    /// Pieces that were claimed; more, once all were.
    claimed: AtomicUsize,
    /// Pieces that the caller took, from the first on, and helpers, from the last on: of a buffer that is used again and again, each thread
    /// then meets the half that is in its own cache. Both together are never more than `claimed`, so they do not meet.
    front: AtomicUsize,
    back: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicBool,
    caller: Thread,
}

// SAFETY: `work` points to something `Sync`, and is followed only while it is there (see `work`).
unsafe impl Send for Job {}
// SAFETY: as above; the rest is atomic.
unsafe impl Sync for Job {}

impl Job {
    fn new(count: usize, work: &Work<'_>) -> Self {
        let work: *const Work<'_> = ptr::from_ref(work);
        Self {
            // SAFETY: only the lifetime is cast away, which nothing of the pointer's layout depends on. `work` says why it is kept all the same.
            work: unsafe { mem::transmute::<*const Work<'_>, *const Work<'static>>(work) },
            count,
            claimed: AtomicUsize::new(0),
            front: AtomicUsize::new(0),
            back: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            caller: thread::current(),
        }
    }

    /// Works on pieces until none is left to begin.
    fn work(&self, helper: bool) {
        while self.claimed.fetch_add(1, Ordering::Relaxed) < self.count {
            let index = if helper {
                self.count - 1 - self.back.fetch_add(1, Ordering::Relaxed)
            } else {
                self.front.fetch_add(1, Ordering::Relaxed)
            };
            let outcome = guard(|| {
                // SAFETY: this piece was claimed and is not done, so `done` is less than `count` and `share`, which borrows the work, has not
                // returned: it waits for every piece, panics included, which `guard` keeps from passing it by.
                unsafe { (*self.work)(index) };
                Ok(())
            });
            if outcome.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            // What the piece has written is seen by who sees this, and the work may be gone from here on.
            let done = self.done.fetch_add(1, Ordering::AcqRel) + 1;
            if helper && done == self.count {
                self.caller.unpark();
            }
        }
    }

    /// Returns when all pieces are done; whether that was soon.
    fn wait(&self) -> bool {
        let is_done = || self.done.load(Ordering::Acquire) >= self.count;
        for _ in 0..PATIENCE {
            if is_done() {
                return true;
            }
            spin_loop();
        }
        while !is_done() {
            thread::park();
        }
        false
    }
}

static CREW: Crew = Crew::new();

struct Crew {
    state: Mutex<State>,
    /// Jobs that were ever posted: what a helper that looks for work looks at.
    posts: AtomicU64,
    /// Jobs that are still to be done without helpers.
    alone: AtomicU32,
    wake: Condvar,
}

struct State {
    jobs: Vec<Arc<Job>>,
    /// Helpers without work, those that sleep among them.
    free: usize,
    asleep: usize,
    threads: usize,
}

impl Crew {
    const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                jobs: Vec::new(),
                free: 0,
                asleep: 0,
                threads: 0,
            }),
            posts: AtomicU64::new(0),
            alone: AtomicU32::new(0),
            wake: Condvar::new(),
        }
    }

    fn share(&'static self, count: usize, work: &Work<'_>) -> Result<()> {
        let job = Arc::new(Job::new(count, work));
        let posted = count > 1 && !self.is_tired() && self.post(&job);
        job.work(false);
        if posted {
            self.withdraw(&job);
        }
        if !job.wait() {
            self.alone.store(ALONE, Ordering::Relaxed);
        }
        if job.failed.load(Ordering::Relaxed) {
            return Err(Error::Internal {
                message: "a panic in a piece of shared work".to_owned(),
            });
        }
        Ok(())
    }

    /// Whether the next job is one that is done without helpers.
    fn is_tired(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.alone
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
    }

    /// Lets helpers see a job. `false`: there are none, and never will be.
    fn post(&'static self, job: &Arc<Job>) -> bool {
        let most = parallel::default_threads().saturating_sub(1).min(MOST);
        if most == 0 {
            return false;
        }
        let mut state = self.lock();
        state.jobs.push(Arc::clone(job));
        self.posts.fetch_add(1, Ordering::Release);
        if state.free == 0 && state.threads < most {
            let name = format!("qcow2-hand-{}", state.threads + 1);
            // One that the system refuses is work for the caller.
            if thread::Builder::new().name(name).spawn(|| self.serve()).is_ok() {
                state.threads += 1;
            }
        }
        let wake = state.asleep > 0;
        drop(state);
        if wake {
            self.wake.notify_all();
        }
        true
    }

    fn withdraw(&self, job: &Arc<Job>) {
        self.lock().jobs.retain(|other| !Arc::ptr_eq(other, job));
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.last().cloned() {
                drop(state);
                job.work(true);
                state = self.lock();
                state.jobs.retain(|other| !Arc::ptr_eq(other, &job));
                continue;
            }
            state.free += 1;
            let seen = self.posts.load(Ordering::Acquire);
            drop(state);
            let news = || self.posts.load(Ordering::Acquire) != seen;
            let found = (0..LOOKS).any(|_| {
                spin_loop();
                news()
            });
            state = self.lock();
            if !found {
                state.asleep += 1;
                while state.jobs.is_empty() {
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.asleep -= 1;
            }
            state.free -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn every_piece_is_worked_on_once_and_is_done_on_return() {
        for count in [0, 1, 2, 7, 1000] {
            let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            share(count, &|index| {
                hits[index].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1), "{count}");
        }
    }

    /// A crew of the test's own: what one test does to it must not show in another.
    fn crew() -> &'static Crew {
        Box::leak(Box::new(Crew::new()))
    }

    #[test]
    fn helpers_work_beside_the_caller() {
        if parallel::default_threads() == 1 {
            return;
        }
        let crew = crew();
        let together = || {
            let met = AtomicUsize::new(0);
            let both = AtomicBool::new(false);
            crew.share(2, &|_| {
                met.fetch_add(1, Ordering::SeqCst);
                let begin = Instant::now();
                while !both.load(Ordering::SeqCst) && begin.elapsed() < Duration::from_millis(100) {
                    // The second piece begins while the first is still here.
                    both.store(met.load(Ordering::SeqCst) == 2, Ordering::SeqCst);
                    thread::yield_now();
                }
                met.store(100, Ordering::SeqCst);
            })
            .unwrap();
            both.into_inner()
        };
        assert!((0..100).any(|_| together()));
    }

    #[test]
    fn after_a_helper_was_waited_for_work_is_done_alone_for_a_while_and_then_shared_again() {
        if parallel::default_threads() == 1 {
            return;
        }
        let crew = crew();
        let caller = thread::current().id();
        let shared = || {
            let helped = AtomicBool::new(false);
            crew.share(2, &|_| {
                if thread::current().id() == caller {
                    thread::sleep(Duration::from_millis(2));
                } else {
                    // Much longer than anybody looks.
                    thread::sleep(Duration::from_millis(50));
                    helped.store(true, Ordering::Relaxed);
                }
            })
            .unwrap();
            helped.into_inner()
        };
        assert!((0..200).any(|_| shared()), "no helper came");
        assert!((0..ALONE).all(|_| !shared()), "a helper was asked again at once");
        assert!((0..200).any(|_| shared()), "helpers were never asked again");
    }

    #[test]
    fn many_callers_at_once_all_come_to_their_end() {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..2000usize {
                        let sum = AtomicUsize::new(0);
                        share(4, &|index| {
                            sum.fetch_add(index + round, Ordering::Relaxed);
                        })
                        .unwrap();
                        assert_eq!(sum.into_inner(), 6 + 4 * round);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_piece_is_an_error_and_the_other_pieces_are_done() {
        let done = AtomicUsize::new(0);
        let outcome = share(8, &|index| {
            assert!(index != 3, "broken");
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(outcome.unwrap_err().code(), "ERR_QCOW2_INTERNAL");
        assert_eq!(done.into_inner(), 7);
        share(2, &|_| {}).unwrap();
    }
}
