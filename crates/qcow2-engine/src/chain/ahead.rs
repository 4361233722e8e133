//! The threads that decode clusters before they are asked for.
//!
//! They belong to the process and wait when there is nothing to do. What they fail at leaves no trace: whoever reads the cluster meets the error
//! himself. A chain that is dropped takes its jobs back and waits for those that have begun, each of which is one cluster.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use qcow2_format::{CompressedDescriptor, GuestOffset};

use super::decoded::Decoded;
use super::fetch::{FetchContext, decode};
use super::mapping::View;
use crate::panics::guard;
use crate::parallel;

/// Jobs that wait at most, of all chains together.
const QUEUE: usize = 64;

/// A cluster to be decoded.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) decoded: Arc<Decoded>,
    pub(super) view: Arc<View>,
    pub(super) descriptor: CompressedDescriptor,
    pub(super) cluster: GuestOffset,
}

static WORKERS: Workers = Workers {
    state: Mutex::new(State {
        queue: VecDeque::new(),
        idle: 0,
        threads: 0,
    }),
    wake: Condvar::new(),
};

struct Workers {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    queue: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

/// Hands `job` to a thread. `false`: they have enough to do, or there are none.
pub(super) fn submit(job: Job) -> bool {
    let Ok(mut state) = WORKERS.state.try_lock() else {
        return false;
    };
    if state.queue.len() >= QUEUE {
        return false;
    }
    if state.queue.len() >= state.idle && state.threads < parallel::default_threads() {
        let name = format!("qcow2-ahead-{}", state.threads + 1);
        if std::thread::Builder::new().name(name).spawn(serve).is_ok() {
            state.threads += 1;
        }
    }
    if state.threads == 0 {
        return false;
    }
    state.queue.push_back(job);
    let wake = state.idle > 0;
    drop(state);
    if wake {
        WORKERS.wake.notify_one();
    }
    true
}

/// Takes back what waits for a chain, and waits for what has begun.
pub(super) fn leave(decoded: &Arc<Decoded>) {
    let mine = |job: &Job| Arc::ptr_eq(&job.decoded, decoded);
    lock().queue.retain(|job| !mine(job));
    decoded.wait_until_idle();
}

fn serve() {
    let mut context = FetchContext::new();
    let mut state = lock();
    loop {
        let Some(job) = state.queue.pop_front() else {
            state.idle += 1;
            state = WORKERS.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        // Under the lock: a chain finds its job either here or begun.
        job.decoded.begin();
        drop(state);
        let decoded = Arc::clone(&job.decoded);
        // It may panic, and it may fail; the file is let go before the chain hears of the end.
        let _ = guard(|| run(job, &mut context));
        decoded.end();
        state = lock();
    }
}

fn run(job: Job, context: &mut FetchContext) -> crate::Result<()> {
    let Job {
        decoded,
        view,
        descriptor,
        cluster,
    } = job;
    let load = || decode(&view, descriptor, cluster, context).map(Arc::new);
    decoded.cache.load_ahead((view.depth, descriptor), load)
}

fn lock() -> MutexGuard<'static, State> {
    WORKERS.state.lock().unwrap_or_else(PoisonError::into_inner)
}
