//! The process's own threads: libuv's four are for `node:fs`, and a slow disk under us must not stall them.
//!
//! Short requests share [`SHORT_THREADS`] threads, writes [`WRITE_THREADS`] others: a write may have to wait for a flush, and a read not for it. What
//! waits for the device by its nature (a flush, a snapshot, a close) has threads of its own again, up to [`WAITING_THREADS`]. A long job has a
//! thread to itself (its workers are the engine's), so that it never delays a read; beyond [`LONG_JOBS`] at once, jobs wait for their turn.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

const SHORT_THREADS: usize = 4;
const WRITE_THREADS: usize = 4;
const WAITING_THREADS: usize = 16;
const LONG_JOBS: usize = 8;

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
static WRITES: Shared = Shared::new("qcow2-write", WRITE_THREADS);
static WAITING: Shared = Shared::new("qcow2-wait", WAITING_THREADS);

/// Threads that share a queue. They are made when they are first needed, and stay.
struct Shared {
    name: &'static str,
    most: usize,
    state: Mutex<SharedState>,
    wake: Condvar,
}

struct SharedState {
    queue: VecDeque<Work>,
    /// Threads that wait, those included that were woken and have not taken their work yet.
    idle: usize,
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
                threads: 0,
            }),
            wake: Condvar::new(),
        }
    }

    fn submit(&'static self, work: Work) -> Result<(), Rejected> {
        let mut state = lock(&self.state);
        state.queue.push_back(work);
        if state.queue.len() <= state.idle {
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
            } else {
                state.idle += 1;
                while state.queue.is_empty() {
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.idle -= 1;
            }
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        measure_width(Lane::Write, WRITE_THREADS, "qcow2-write-");
        measure_width(Lane::Waiting, WAITING_THREADS, "qcow2-wait-");
    }

    #[test]
    fn long_jobs_run_beside_them_up_to_their_cap() {
        measure_width(Lane::Long, LONG_JOBS, "qcow2-job-");
    }
}
