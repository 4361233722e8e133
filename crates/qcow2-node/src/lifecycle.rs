//! Calls about calls: start, cancel, close, end.

use std::time::Duration;

use napi::{Env, Result};

use crate::call::accept;
use crate::handles::Handle;
use crate::instance::{self, Instance, OnComplete};
use crate::outbox::CallId;

/// Sets the add-on up in this environment. `onComplete` gets all completions, in batches: triples of call id, status and value.
/// Status 0: the value is the result; 1: `values[value]` is; 2: `values[value]` is an error; 3: `values[value]` is progress, and the
/// call goes on.
#[napi(catch_unwind)]
pub fn start(
    env: Env,
    #[napi(ts_arg_type = "(triples: Float64Array, values: unknown[]) => void")] on_complete: OnComplete<'_>,
) -> Result<()> {
    instance::start(&env, &on_complete)
}

/// Asks a call to stop. Unknown and ended calls are ignored.
#[napi(catch_unwind)]
pub fn cancel(env: Env, id: CallId) -> Result<()> {
    Instance::of(&env)?.cancel(id);
    Ok(())
}

/// Closes a handle once the calls that use it have ended. Closing twice is no error; the second waits as well.
#[napi(catch_unwind)]
pub fn close(env: Env, id: CallId, handle: Handle) -> Result<()> {
    accept(&env, id, |call| {
        call.close(handle);
        Ok(())
    })
}

/// Lets completions gather instead of calling `onComplete`, or calls it again, at once if there are any. A call that is on its way already
/// still comes.
#[napi(catch_unwind)]
pub fn hold(env: Env, held: bool) -> Result<()> {
    Instance::of(&env)?.outbox.hold(held);
    Ok(())
}

/// For the end of the process: stops every call and waits, at most so many milliseconds, until what was half-made is removed.
/// Nothing completes after it.
#[napi(catch_unwind)]
pub fn shutdown(env: Env, milliseconds: u32) -> Result<()> {
    Instance::of(&env)?.end(Duration::from_millis(milliseconds.into()));
    Ok(())
}
