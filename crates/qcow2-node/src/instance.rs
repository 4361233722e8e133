//! One loaded add-on in one environment (the main thread, or a worker): its open calls, its handles, its completion queue.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use napi::bindgen_prelude::{FnArgs, Function, Unknown};
use napi::threadsafe_function::UnknownReturnValue;
use napi::{Env, Result as NapiResult, Status};
use qcow2_engine::{CancelToken, Error, JobContext, guard};

use crate::buffers;
use crate::error::ErrorData;
use crate::handles::{Handle, Handles, Leaving, Resource};
use crate::outbox::{CallId, Done, Outbox, Outcome};
use crate::pool::{self, Lane};
use crate::raw;
use crate::testing::{self, Stage};
use crate::values::{ProgressData, Values};

/// How long an ending environment waits for work that was told to stop. A job stops between two chunks and removes what it made.
const PATIENCE: Duration = Duration::from_secs(10);

/// The JavaScript function that completions are given to.
pub(crate) type OnComplete<'env> = Function<'env, FnArgs<(Unknown<'static>, Unknown<'static>)>, UnknownReturnValue>;

/// The state of one environment. Everything but the outbox belongs to its JavaScript thread.
pub(crate) struct Instance {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) handles: RefCell<Handles>,
    cancellable: RefCell<HashMap<CallId, Cancellable>>,
    open_calls: Cell<usize>,
}

/// The work of a call.
pub(crate) type JobWork = Box<dyn FnOnce(&JobContext) -> Result<Outcome, Error> + Send>;

/// A call that may be cancelled.
pub(crate) struct Cancellable {
    pub(crate) token: CancelToken,
    /// What is to be done. Taken by who answers: the thread that begins it, or the cancel that comes before.
    pub(crate) waiting: Arc<Mutex<Option<JobWork>>>,
    pub(crate) uses: Vec<Handle>,
}

/// Sets the environment up. Completions go to `on_complete`.
pub(crate) fn start(env: &Env, on_complete: &OnComplete<'_>) -> NapiResult<()> {
    testing::trap(Stage::Entry);
    if env.get_instance_data::<Rc<Instance>>()?.is_some() {
        return Err(napi::Error::new(
            Status::GenericFailure,
            "the add-on was started before in this environment".to_owned(),
        ));
    }
    let instance = Rc::new(Instance {
        outbox: Arc::default(),
        handles: RefCell::default(),
        cancellable: RefCell::default(),
        open_calls: Cell::new(0),
    });
    let receiver = Rc::clone(&instance);
    let notify = on_complete
        .build_threadsafe_function::<()>()
        .callee_handled::<false>()
        .weak::<true>()
        .build_callback(move |context| receiver.deliver(&context.env).map(FnArgs::from))?;
    let _ = instance.outbox.notify.set(notify);
    env.set_instance_data(Rc::clone(&instance), (), |_| {})?;
    // Hooks run in reverse, so this comes after the function was made: it is still there while we wait.
    env.add_env_cleanup_hook(instance, |instance| instance.end(PATIENCE))?;
    Ok(())
}

impl Instance {
    /// The instance of an environment that was started.
    pub(crate) fn of(env: &Env) -> NapiResult<Rc<Self>> {
        testing::trap(Stage::Entry);
        match env.get_instance_data::<Rc<Self>>()? {
            Some(instance) => Ok(Rc::clone(instance)),
            None => Err(napi::Error::new(
                Status::GenericFailure,
                "the add-on was not started in this environment".to_owned(),
            )),
        }
    }

    /// A call is accepted: the process stays alive for it.
    pub(crate) fn call_opens(&self, env: &Env) {
        let open = self.open_calls.get();
        self.open_calls.set(open + 1);
        if open == 0 {
            self.keep_alive(env, true);
        }
    }

    pub(crate) fn register(&self, id: CallId, call: Cancellable) {
        self.cancellable.borrow_mut().insert(id, call);
    }

    /// Asks a call to stop. One that no thread has begun is answered at once.
    pub(crate) fn cancel(&self, id: CallId) {
        let calls = self.cancellable.borrow();
        let Some(call) = calls.get(&id) else { return };
        call.token.cancel();
        let waiting = pool::lock(&call.waiting).take();
        if let Some(work) = waiting {
            // It may hold opened files, whose locks must have ended when the call has.
            drop(work);
            self.outbox.push(Done {
                id,
                uses: call.uses.clone(),
                outcome: Outcome::Failed(Error::Cancelled),
            });
        }
    }

    /// Stops everything and waits for it, at most `patience`.
    pub(crate) fn end(&self, patience: Duration) {
        for call in self.cancellable.borrow().values() {
            call.token.cancel();
            // What no thread has begun none will: what it holds goes now.
            drop(pool::lock(&call.waiting).take());
        }
        self.outbox.close(patience);
    }

    /// Drops what nobody uses any more on a thread that may wait, and answers who waited for that.
    pub(crate) fn let_go(&self, leaving: Leaving) {
        let Leaving { resource, closers } = leaving;
        let outbox = Arc::clone(&self.outbox);
        let lane = match resource {
            Some(Resource::Disk(_)) => Lane::Waiting,
            _ => Lane::Short,
        };
        let end = Arc::clone(&outbox);
        let work = end.accept(move || {
            // Closing goes on where the environment ends; only then there is nobody to answer. But what was written is not flushed then: an
            // end is an end, and whoever wanted more has closed the disk before.
            let running = outbox.begin();
            let closed = guard(|| {
                testing::trap(Stage::Work);
                match resource {
                    Some(resource) if running.is_some() => resource.close(),
                    _ => Ok(()),
                }
            });
            let message = closed.as_ref().err().map(ToString::to_string);
            let mut error = closed.err();
            for id in closers {
                let outcome = match (error.take(), message.clone()) {
                    (Some(error), _) => Outcome::Failed(error),
                    (None, Some(message)) => Outcome::Failed(Error::Internal { message }),
                    (None, None) => Outcome::Number(0.0),
                };
                outbox.push(Done::new(id, outcome));
            }
        });
        if let Err(rejected) = pool::submit(lane, Box::new(work)) {
            (rejected.work)();
        }
    }

    /// Turns everything that is done into the arguments of one call to JavaScript.
    fn deliver(&self, env: &Env) -> NapiResult<(Unknown<'static>, Unknown<'static>)> {
        let batch = self.outbox.take();
        let mut values = Values::new(env, batch.len())?;
        for done in batch {
            let is_end = !matches!(done.outcome, Outcome::Progress(_));
            // The result first: it may give back what the call had taken out of a handle.
            self.place(env, &mut values, done.id, done.outcome)?;
            if is_end {
                self.call_ends(env, done.id, &done.uses);
            }
        }
        values.into_arguments(env)
    }

    fn place(&self, env: &Env, values: &mut Values<'_>, id: CallId, outcome: Outcome) -> NapiResult<()> {
        let placed = guard(|| {
            testing::trap_unless(Stage::Completion, matches!(outcome, Outcome::Progress(_)));
            match outcome {
                Outcome::Number(number) => {
                    values.number(id, number);
                    Ok(())
                }
                Outcome::Value(make) => make(env, self, values).map_err(|error| refused(&error)).map(|()| {
                    values.ended_with_last(id);
                }),
                Outcome::Bytes { target, offset, bytes } => {
                    let bytes = match bytes {
                        Ok(bytes) => bytes,
                        Err(error) => {
                            target.release(env);
                            return Err(error);
                        }
                    };
                    let filled = target.fill(env, offset, &bytes).map_err(|error| refused(&error));
                    let count = bytes.len();
                    buffers::give_back(bytes);
                    if !filled? {
                        return Err(detached());
                    }
                    values.number(id, count as f64);
                    Ok(())
                }
                Outcome::Failed(error) => Err(error),
                Outcome::Progress(report) => values
                    .progress(
                        id,
                        ProgressData {
                            phase: report.phase.to_owned(),
                            done: report.done as f64,
                            total: report.total as f64,
                        },
                    )
                    .map_err(|error| refused(&error)),
            }
        });
        match placed {
            Ok(()) => Ok(()),
            Err(error) => values.error(id, ErrorData::from(&error)),
        }
    }

    fn call_ends(&self, env: &Env, id: CallId, uses: &[Handle]) {
        self.cancellable.borrow_mut().remove(&id);
        for handle in uses {
            let leaving = self.handles.borrow_mut().release(*handle);
            if let Some(leaving) = leaving {
                self.let_go(leaving);
            }
        }
        let open = self.open_calls.get().saturating_sub(1);
        self.open_calls.set(open);
        if open == 0 {
            self.keep_alive(env, false);
        }
    }

    fn keep_alive(&self, env: &Env, alive: bool) {
        if let Some(notify) = self.outbox.notify.get() {
            raw::keep_alive(env, &notify.handle, alive);
        }
    }
}

fn refused(error: &napi::Error) -> Error {
    Error::Internal {
        message: format!("a result could not be handed over: {}", error.reason),
    }
}

fn detached() -> Error {
    Error::State {
        code: "BUFFER_DETACHED",
        path: None,
        reason: "the buffer was detached or has shrunk while the read was under way".to_owned(),
    }
}
