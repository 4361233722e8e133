//! One asynchronous call on its way from JavaScript to a thread.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use napi::{Env, Result as NapiResult};
use qcow2_engine::storage::MemoryStorage;
use qcow2_engine::{Buffer, CancelToken, Chain, Disk, Error, JobContext, Layer, Progress, guard};

use crate::handles::{Handle, Resource, Writable};
use crate::instance::{Cancellable, Instance, JobWork};
use crate::outbox::{CallId, Done, Outbox, Outcome};
use crate::pool::{self, Lane};
use crate::raw::ReadTarget;
use crate::testing::{self, Stage};
use crate::turnstile::Turn;

/// A call that was accepted: it ends in exactly one completion, whatever happens.
pub(crate) struct Call {
    instance: Rc<Instance>,
    id: CallId,
    uses: Vec<Handle>,
    /// Disks that are written. A panic in the call's work poisons them: what they have in memory may be half of a change.
    disks: Vec<Arc<Disk>>,
}

/// Accepts a call and lets `begin` look its handles up and hand the work to a thread. An error of `begin` is the call's completion.
///
/// # Errors
/// The add-on was not started in this environment.
pub(crate) fn accept(env: &Env, id: CallId, begin: impl FnOnce(&mut Call) -> Result<(), Error>) -> NapiResult<()> {
    let instance = Instance::of(env)?;
    instance.call_opens(env);
    let mut call = Call {
        instance,
        id,
        uses: Vec::new(),
        disks: Vec::new(),
    };
    let outcome = guard(|| {
        testing::trap(Stage::Call);
        begin(&mut call)
    });
    if let Err(error) = outcome {
        call.finish(Outcome::Failed(error));
    }
    Ok(())
}

impl Call {
    /// An open disk, which stays open until the call ends.
    pub(crate) fn chain(&mut self, handle: Handle) -> Result<Arc<Chain>, Error> {
        match self.resource(handle)?.chain() {
            Some(chain) => Ok(Arc::clone(chain)),
            None => Err(wrong_kind("chain")),
        }
    }

    /// An open disk that is written, which stays open until the call ends.
    pub(crate) fn disk(&mut self, handle: Handle) -> Result<Writable, Error> {
        match self.resource(handle)? {
            Resource::Disk(writable) => {
                self.disks.push(Arc::clone(&writable.disk));
                Ok(writable)
            }
            Resource::Chain(chain) => Err(Error::State {
                code: "READ_ONLY",
                path: chain.layer(0).and_then(|layer| layer.storage().path()).map(Into::into),
                reason: "the disk was opened for reading".to_owned(),
            }),
            _ => Err(wrong_kind("disk")),
        }
    }

    /// An open layer, which stays open until the call ends.
    pub(crate) fn layer(&mut self, handle: Handle) -> Result<Arc<Layer>, Error> {
        match self.resource(handle)? {
            Resource::Layer(layer) => Ok(layer),
            _ => Err(wrong_kind("layer")),
        }
    }

    /// Bytes in memory, which stay until the call ends (and as long as an image is open on them).
    pub(crate) fn memory(&mut self, handle: Handle) -> Result<Arc<MemoryStorage>, Error> {
        match self.resource(handle)? {
            Resource::Memory(memory) => Ok(memory),
            _ => Err(wrong_kind("memory")),
        }
    }

    /// Layers whose handles end here, even if one of them is refused.
    pub(crate) fn take_layers(&mut self, handles: &[Handle]) -> Result<Vec<Layer>, Error> {
        let taken: Vec<_> = {
            let mut table = self.instance.handles.borrow_mut();
            let take = |handle: &Handle| {
                // One that is in use ends with its last use.
                table.take(*handle).inspect_err(|_| drop(table.close_quietly(*handle)))
            };
            handles.iter().map(take).collect()
        };
        taken.into_iter().map(|resource| only_layer(resource?)).collect()
    }

    /// A layer to be changed; its handle waits for `Handles::give_back`.
    pub(crate) fn borrow_layer(&mut self, handle: Handle) -> Result<Layer, Error> {
        let mut table = self.instance.handles.borrow_mut();
        // Nobody can take what is not a layer for one: looked at before it is taken.
        let Resource::Layer(_) = table.resource(handle)? else {
            return Err(wrong_kind("layer"));
        };
        let resource = table.lend(handle)?;
        table.retain(handle);
        self.uses.push(handle);
        drop(table);
        only_layer(resource)
    }

    /// Hands `work` to a thread. It may be cancelled, and may tell how far it is.
    pub(crate) fn run(
        &mut self,
        lane: Lane,
        work: impl FnOnce(&JobContext) -> Result<Outcome, Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (outbox, id, uses) = (Arc::clone(&self.instance.outbox), self.id, self.uses.clone());
        let token = CancelToken::new();
        let disks = self.disks.clone();
        let work: JobWork = Box::new(move |context| {
            let outcome = guard(|| {
                testing::trap(Stage::Work);
                work(context)
            });
            poison_after(&outcome, &disks);
            // Let go with the work itself, before its end is told.
            drop(disks);
            outcome
        });
        let waiting = Arc::new(Mutex::new(Some(work)));
        let call = Cancellable {
            token: token.clone(),
            waiting: Arc::clone(&waiting),
            uses: self.uses.clone(),
        };
        self.instance.register(id, call);
        self.submit(lane, move || {
            let Some(running) = outbox.begin() else { return };
            // None was cancelled while it waited, and answered then.
            let Some(work) = pool::lock(&waiting).take() else {
                return;
            };
            let context = JobContext {
                cancel: token,
                progress: progress_to(&outbox, id),
            };
            let outcome = work(&context).unwrap_or_else(Outcome::Failed);
            outbox.push(Done { id, uses, outcome });
            drop(running);
        })
    }

    /// Hands a request of a disk to a thread when its turn has come. It completes with what it returns.
    pub(crate) fn run_on(
        &mut self,
        writable: &Writable,
        turn: Turn,
        lane: Lane,
        work: impl FnOnce(&Disk) -> Result<Outcome, Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (outbox, id, uses) = (Arc::clone(&self.instance.outbox), self.id, self.uses.clone());
        let disk = Arc::clone(&writable.disk);
        let end = Arc::clone(&outbox);
        let work = end.accept(move || {
            let Some(running) = outbox.begin() else { return };
            let outcome = guard(|| {
                testing::trap(Stage::Work);
                work(&disk)
            });
            poison_after(&outcome, std::slice::from_ref(&disk));
            let outcome = outcome.unwrap_or_else(Outcome::Failed);
            // What the request held is let go before its end is told.
            drop(disk);
            outbox.push(Done { id, uses, outcome });
            drop(running);
        });
        writable
            .turnstile
            .submit(turn, lane, Box::new(work))
            .map_err(|rejected| no_thread(rejected.error))
    }

    /// Hands a read to a thread: no progress, and nothing to cancel, for the sake of its cost.
    pub(crate) fn run_read(
        &mut self,
        target: ReadTarget,
        offset: usize,
        read: impl FnOnce() -> Result<Buffer, Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (outbox, id, uses) = (
            Arc::clone(&self.instance.outbox),
            self.id,
            std::mem::take(&mut self.uses),
        );
        let end = Arc::clone(&outbox);
        let work = end.accept(move || {
            let Some(running) = outbox.begin() else { return };
            let bytes = guard(|| {
                testing::trap(Stage::Work);
                read()
            });
            let outcome = Outcome::Bytes { target, offset, bytes };
            outbox.push(Done { id, uses, outcome });
            drop(running);
        });
        self.submit(Lane::Short, work)
    }

    /// Ends the call without a thread.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        let uses = std::mem::take(&mut self.uses);
        self.instance.outbox.push(Done {
            id: self.id,
            uses,
            outcome,
        });
    }

    /// Closes a handle; the call ends when nobody uses it any more and it is gone.
    pub(crate) fn close(&mut self, handle: Handle) {
        let leaving = self.instance.handles.borrow_mut().close(handle, self.id);
        if let Some(leaving) = leaving {
            self.instance.let_go(leaving);
        }
    }

    fn resource(&mut self, handle: Handle) -> Result<Resource, Error> {
        let mut handles = self.instance.handles.borrow_mut();
        let resource = handles.resource(handle)?.clone();
        handles.retain(handle);
        self.uses.push(handle);
        Ok(resource)
    }

    fn submit(&mut self, lane: Lane, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        pool::submit(lane, Box::new(work)).map_err(|rejected| no_thread(rejected.error))
    }
}

/// After a panic, what was changed may be half of a change: nothing more of it is written.
fn poison_after(outcome: &Result<Outcome, Error>, disks: &[Arc<Disk>]) {
    if matches!(outcome, Err(Error::Internal { .. })) {
        disks.iter().for_each(|disk| disk.poison());
    }
}

fn no_thread(source: io::Error) -> Error {
    Error::Io {
        operation: "start a thread",
        path: None,
        source,
    }
}

fn progress_to(outbox: &Arc<Outbox>, id: CallId) -> Progress {
    let outbox = Arc::clone(outbox);
    Progress::new(move |report| {
        testing::trap(Stage::Progress);
        outbox.push(Done::new(id, Outcome::Progress(report)));
    })
}

fn only_layer(resource: Resource) -> Result<Layer, Error> {
    match resource {
        // No call uses it, so no other owner is left.
        Resource::Layer(layer) => Arc::try_unwrap(layer).map_err(|_| wrong_kind("layer")),
        _ => Err(wrong_kind("layer")),
    }
}

fn wrong_kind(wanted: &'static str) -> Error {
    Error::Internal {
        message: format!("the handle is not of a {wanted}"),
    }
}
