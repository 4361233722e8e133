//! Reading a disk into a caller's buffer.

use napi::Env;
use qcow2_engine::Error;
use qcow2_format::GuestOffset;

use crate::call::accept;
use crate::handles::Handle;
use crate::numbers::whole;
use crate::outbox::CallId;
use crate::raw::ReadTarget;

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
            let mut bytes = Vec::new();
            // What the disk has there, not what is asked for, decides how much is set aside.
            let left = chain.virtual_size().saturating_sub(position.0);
            let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
            bytes.try_reserve_exact(length).map_err(|_| Error::Limit {
                limit: "memory",
                allowed: 0,
                wanted: length as u64,
            })?;
            bytes.resize(length, 0);
            let count = chain.read(position, &mut bytes)?;
            bytes.truncate(count);
            Ok(bytes)
        })
    });
    if let Some(target) = target {
        target.release(&env);
    }
    accepted
}
