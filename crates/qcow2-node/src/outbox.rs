//! Where threads leave what they have finished, and how JavaScript hears of it: one queue and one function for each environment.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use napi::bindgen_prelude::{FnArgs, Unknown};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode, UnknownReturnValue};
use napi::{Env, Result as NapiResult, Status};
use qcow2_engine::{Buffer, Error, ProgressReport};

use crate::handles::Handle;
use crate::instance::Instance;
use crate::raw::ReadTarget;
use crate::values::Values;

/// A call's number, chosen by JavaScript, unique while the call is open.
#[napi]
pub type CallId = i64;

/// What a thread leaves for JavaScript.
pub(crate) struct Done {
    pub(crate) id: CallId,
    /// Handles that the call used and that may now be closed. Empty for progress: the call stays open.
    pub(crate) uses: Vec<Handle>,
    pub(crate) outcome: Outcome,
}

impl Done {
    /// Of a call that used no handle.
    pub(crate) fn new(id: CallId, outcome: Outcome) -> Self {
        Self {
            id,
            uses: Vec::new(),
            outcome,
        }
    }
}

/// How a call ended, or how far it is.
pub(crate) enum Outcome {
    /// A plain number: a count of bytes, or nothing to say.
    Number(f64),
    /// Something to be built on the JavaScript thread.
    Value(MakeValue),
    /// Bytes for a caller's buffer, which is let go whether there are any or not.
    Bytes {
        target: ReadTarget,
        offset: usize,
        bytes: Result<Buffer, Error>,
    },
    /// The call failed.
    Failed(Error),
    /// The call goes on.
    Progress(ProgressReport),
}

/// Puts a result into the values of a batch.
pub(crate) type MakeValue = Box<dyn FnOnce(&Env, &Instance, &mut Values<'_>) -> NapiResult<()> + Send>;

impl Outcome {
    /// A result that is built on the JavaScript thread.
    pub(crate) fn value(
        make: impl FnOnce(&Env, &Instance, &mut Values<'_>) -> NapiResult<()> + Send + 'static,
    ) -> Result<Self, Error> {
        Ok(Self::Value(Box::new(make)))
    }
}

/// The one completion function. Weak: it keeps the event loop alive only while calls are open.
pub(crate) type Notify =
    ThreadsafeFunction<(), UnknownReturnValue, FnArgs<(Unknown<'static>, Unknown<'static>)>, Status, false, true, 0>;

/// The completion queue of one environment, shared with the threads that work for it.
#[derive(Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    ended: Condvar,
    pub(crate) notify: OnceLock<Notify>,
}

#[derive(Default)]
struct State {
    done: Vec<Done>,
    /// Pieces of work that threads are at.
    running: usize,
    /// Pieces of work that hold something of the environment: those, and others that wait for a thread.
    accepted: usize,
    /// JavaScript does not want to be rung for now.
    held: bool,
    /// The environment ends: nothing new begins, and nobody takes what is done.
    closed: bool,
}

impl Outbox {
    /// Leaves something. Only who finds the queue empty rings: the others' work is taken with it.
    pub(crate) fn push(&self, done: Done) {
        let first = {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.done.push(done);
            state.done.len() == 1 && !state.held
        };
        if first {
            self.ring();
        }
    }

    /// Rings no more, or again, and then for what was left meanwhile.
    pub(crate) fn hold(&self, held: bool) {
        let waiting = {
            let mut state = self.lock();
            state.held = held;
            !held && !state.done.is_empty()
        };
        if waiting {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(notify) = self.notify.get() {
            // It can only refuse because the environment ends, and then nobody waits.
            let _ = notify.call((), ThreadsafeFunctionCallMode::NonBlocking);
        }
    }

    /// Everything that was left, for the JavaScript thread.
    pub(crate) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut self.lock().done)
    }

    /// A thread begins a piece of work; `None`: the environment ends, and it must not.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Running> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.running += 1;
        Some(Running(Arc::clone(self)))
    }

    /// `work` as something that the end waits for, though it may never begin: what it holds, files and their locks, must be let go by then.
    pub(crate) fn accept<W: FnOnce() + Send>(self: &Arc<Self>, work: W) -> impl FnOnce() + Send + use<W> {
        self.lock().accepted += 1;
        let accepted = Accepted(Arc::clone(self));
        // In this order, called or not: first what the work holds, then the word that it is gone.
        move || {
            work();
            drop(accepted);
        }
    }

    /// Lets nothing new begin and waits, at most `limit`, for what runs, and for what would have run to be let go.
    pub(crate) fn close(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        state.closed = true;
        state.done.clear();
        while state.running > 0 || state.accepted > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (state, _) = self
                .ended
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of work that a thread is at; dropped when it has ended, by whatever way.
pub(crate) struct Running(Arc<Outbox>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        if state.closed && state.running == 0 {
            self.0.ended.notify_all();
        }
    }
}

/// A piece of work that was accepted; dropped behind everything that it holds.
struct Accepted(Arc<Outbox>);

impl Drop for Accepted {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.accepted -= 1;
        if state.closed && state.accepted == 0 {
            self.0.ended.notify_all();
        }
    }
}
