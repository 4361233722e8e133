//! The process's own threads: libuv's four are for `node:fs`, and a slow disk under us must not stall them.
//!
//! Short requests share [`SHORT_THREADS`] threads, writes a few others ([`WRITE_THREADS`]): a write may have to wait for a flush, and a read not for it. What
//! waits for the device by its nature (a flush, a snapshot, a close) has threads of its own again, up to [`WAITING_THREADS`]. A long job has a
//! thread to itself (its workers are the engine's), so that it never delays a read; beyond [`LONG_JOBS`] at once, jobs wait for their turn.

use std::collections::VecDeque;
use std::hint::spin_loop;
use std::io;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

const SHORT_THREADS: usize = 4;
/// As many write threads as processors, within these bounds: a file's writes go one by one in the kernel, and whoever waits there keeps a processor
/// busy with it.
const WRITE_THREADS: RangeInclusive<usize> = 2..=4;
const WAITING_THREADS: usize = 16;
const LONG_JOBS: usize = 8;
/// How often a thread without work looks for more before it sleeps: some 20 to 40 µs.
const LOOKS: u32 = 1000;

/// A piece of work. It must not panic: whoever makes one wraps it in [`qcow2_engine::guard`].
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Where a piece of work goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Reads, opens, maps.
    Short,
    /// Writes, zeros, discards.
    Write,
    /// What waits for a device: flushes, snapshots, closing what was written.
    Waiting,
    /// Conversions, checks, comparisons.
    Long,
}

/// Hands `work` to a thread.
///
/// # Errors
/// The system gives us no thread.
pub(crate) fn submit(lane: Lane, work: Work) -> Result<(), Rejected> {
    match lane {
        Lane::Short => SHORT.submit(work),
        Lane::Write => WRITES.submit(work),
        Lane::Waiting => WAITING.submit(work),
        Lane::Long => LONG.submit(work),
    }
}

/// Work for which there is no thread.
pub(crate) struct Rejected {
    pub(crate) error: io::Error,
    pub(crate) work: Work,
}

static SHORT: Shared = Shared::new("qcow2", SHORT_THREADS);
static WRITES: LazyLock<Shared> = LazyLock::new(|| Shared::new("qcow2-write", write_threads()));
static WAITING: Shared = Shared::new("qcow2-wait", WAITING_THREADS);

fn write_threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.clamp(*WRITE_THREADS.start(), *WRITE_THREADS.end())
}

/// Threads that share a queue. They are made when they are first needed, and stay.
struct Shared {
    name: &'static str,
    most: usize,
    state: Mutex<SharedState>,
    /// Pieces of work that were ever submitted: what a thread that looks for more looks at.
    submitted: AtomicU64,
    wake: Condvar,
}

struct SharedState {
    queue: VecDeque<Work>,
    /// Threads that sleep, those included that were woken and have not taken their work yet.
    idle: usize,
    /// Threads, at most one, that look whether more comes before they sleep.
    looking: usize,
    threads: usize,
}

impl Shared {
    const fn new(name: &'static str, most: usize) -> Self {
        Self {
            name,
            most,
            state: Mutex::new(SharedState {
                queue: VecDeque::new(),
                idle: 0,
                looking: 0,
                threads: 0,
            }),
            submitted: AtomicU64::new(0),
            wake: Condvar::new(),
        }
    }

    fn submit(&'static self, work: Work) -> Result<(), Rejected> {
        let mut state = lock(&self.state);
        state.queue.push_back(work);
        self.submitted.fetch_add(1, Ordering::Release);
        if state.queue.len() <= state.looking {
            // Somebody is about to find it.
        } else if state.queue.len() <= state.looking + state.idle {
            // Only then: waking costs a system call even where nobody waits. And not under the lock, which the woken would wait for again.
            drop(state);
            self.wake.notify_one();
        } else if state.threads < self.most {
            match spawn(format!("{}-{}", self.name, state.threads + 1), move || self.serve()) {
                Ok(()) => state.threads += 1,
                Err(error) if state.threads == 0 => return reject(&mut state.queue, error),
                // The threads that there are will come to it.
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn serve(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(work) = state.queue.pop_front() {
                drop(state);
                work();
                state = lock(&self.state);
            } else if state.looking == 0 {
                state.looking = 1;
                let seen = self.submitted.load(Ordering::Acquire);
                drop(state);
                let found = self.look(seen);
                state = lock(&self.state);
                state.looking = 0;
                if !found && state.queue.is_empty() {
                    state = self.sleep(state);
                }
            } else {
                state = self.sleep(state);
            }
        }
    }

    /// Whether anything is submitted soon: requests come in rows, and to be woken takes longer than most of them.
    fn look(&self, seen: u64) -> bool {
        (0..LOOKS).any(|_| {
            spin_loop();
            self.submitted.load(Ordering::Acquire) != seen
        })
    }

    fn sleep<'a>(&self, mut state: MutexGuard<'a, SharedState>) -> MutexGuard<'a, SharedState> {
        state.idle += 1;
        while state.queue.is_empty() {
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle -= 1;
        state
    }
}

static LONG: Long = Long {
    state: Mutex::new(LongState {
        queue: VecDeque::new(),
        running: 0,
    }),
};

struct Long {
    state: Mutex<LongState>,
}

struct LongState {
    queue: VecDeque<Work>,
    running: usize,
}

impl Long {
    fn submit(&'static self, work: Work) -> Result<(), Rejected> {
        let mut state = lock(&self.state);
        state.queue.push_back(work);
        if state.running < LONG_JOBS {
            match spawn(format!("qcow2-job-{}", state.running + 1), move || self.serve()) {
                Ok(()) => state.running += 1,
                Err(error) if state.running == 0 => return reject(&mut state.queue, error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn serve(&self) {
        loop {
            let work = {
                let mut state = lock(&self.state);
                let Some(work) = state.queue.pop_front() else {
                    state.running -= 1;
                    return;
                };
                work
            };
            work();
        }
    }
}

fn reject(queue: &mut VecDeque<Work>, error: io::Error) -> Result<(), Rejected> {
    match queue.pop_back() {
        Some(work) => Err(Rejected { error, work }),
        None => Ok(()),
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(body).map(drop)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// As many pieces of work as may run at once are started, then one more, which must wait for the first to end.
    fn measure_width(lane: Lane, width: usize, name: &str) {
        let (started, starts) = mpsc::channel();
        let mut gates = Vec::new();
        for _ in 0..=width {
            let (open, gate) = mpsc::channel::<()>();
            gates.push(open);
            let started = started.clone();
            let work = move || {
                started.send(thread::current().name().unwrap().to_owned()).unwrap();
                let _ = gate.recv();
            };
            assert!(submit(lane, Box::new(work)).is_ok());
        }
        for _ in 0..width {
            let name_of_thread = starts.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(name_of_thread.starts_with(name), "{name_of_thread}");
        }
        assert!(
            starts.recv_timeout(Duration::from_millis(100)).is_err(),
            "one too many runs"
        );
        drop(gates);
        starts.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn short_requests_run_four_at_a_time_on_named_threads() {
        measure_width(Lane::Short, SHORT_THREADS, "qcow2-");
    }

    #[test]
    fn writes_and_what_waits_for_a_device_have_threads_of_their_own() {
        measure_width(Lane::Write, write_threads(), "qcow2-write-");
        measure_width(Lane::Waiting, WAITING_THREADS, "qcow2-wait-");
    }

    #[test]
    fn long_jobs_run_beside_them_up_to_their_cap() {
        measure_width(Lane::Long, LONG_JOBS, "qcow2-job-");
    }
}
