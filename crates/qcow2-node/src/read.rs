//! Reading a disk into a caller's buffer.

use napi::Env;
use qcow2_engine::Error;
use qcow2_format::GuestOffset;

use crate::buffers;
use crate::call::accept;
use crate::handles::{Handle, Resource};
use crate::instance::Instance;
use crate::numbers::whole;
use crate::outbox::CallId;
use crate::raw::{OutBytes, ReadTarget};

/// Reads `length` bytes at a guest offset, given as two 32-bit halves, to `offset` of `target`. Completes with the count of bytes, which
/// is smaller only at the end of the disk.
///
/// The bytes are read into memory of ours and copied in the completion, after the target was asked again where it is and how long.
#[napi(catch_unwind)]
#[allow(
    clippy::too_many_arguments,
    reason = "an object would cost more than the rest of the call"
)]
pub fn read(
    env: Env,
    id: CallId,
    chain: Handle,
    #[napi(ts_arg_type = "Uint8Array")] target: ReadTarget,
    offset: f64,
    length: u32,
    position_low: u32,
    position_high: u32,
) -> napi::Result<()> {
    let mut target = Some(target);
    let accepted = accept(&env, id, |call| {
        let chain = call.chain(chain)?;
        let position = GuestOffset(u64::from(position_high) << 32 | u64::from(position_low));
        let length = length as usize;
        // Not as 32 bits, which would wrap where a view is longer, and land elsewhere in it.
        let offset = usize::try_from(whole("offset", offset)?).unwrap_or(usize::MAX);
        let Some(target) = target.take() else {
            return Err(Error::Closed);
        };
        call.run_read(target, offset, move || {
            // What the disk has there, not what is asked for, decides how much is set aside.
            let left = chain.virtual_size().saturating_sub(position.0);
            let mut bytes = buffers::take(length.min(usize::try_from(left).unwrap_or(usize::MAX)))?;
            let count = chain.read(position, &mut bytes)?;
            bytes.resize(count)?;
            Ok(bytes)
        })
    });
    if let Some(target) = target {
        target.release(&env);
    }
    accepted
}

/// As [`read`], on the JavaScript thread: returns how many bytes could be had without waiting. Fewer than `length` say nothing about the rest:
/// `read` goes on from there. -1: the handle is not of an open disk, or the target does not reach that far.
#[napi(catch_unwind)]
pub fn try_read(
    env: Env,
    chain: Handle,
    #[napi(ts_arg_type = "Uint8Array")] target: OutBytes,
    offset: f64,
    length: u32,
    position_low: u32,
    position_high: u32,
) -> napi::Result<i32> {
    let instance = Instance::of(&env)?;
    let handles = instance.handles.borrow();
    let chain = handles.resource(chain).ok().and_then(Resource::chain);
    let (Some(chain), Ok(offset)) = (chain, whole("offset", offset)) else {
        return Ok(-1);
    };
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let position = GuestOffset(u64::from(position_high) << 32 | u64::from(position_low));
    let count = target.part(offset, length as usize, |memory| chain.read_now(position, memory));
    Ok(count.and_then(|count| i32::try_from(count).ok()).unwrap_or(-1))
}
