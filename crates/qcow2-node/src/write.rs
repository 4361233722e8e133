//! Writing to a disk: bytes are copied in the call itself, so that the caller's memory is not needed afterwards.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{Disk, Error};
use qcow2_format::GuestOffset;

use crate::buffers;
use crate::call::{Call, accept};
use crate::handles::Handle;
use crate::numbers::{required, whole};
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::raw::InBytes;
use crate::turnstile::Turn;

/// Writes `length` bytes from `offset` of `source` on to a guest offset, given as two 32-bit halves. Completes with `length`.
#[napi(catch_unwind)]
#[allow(
    clippy::too_many_arguments,
    reason = "an object would cost more than the rest of the call"
)]
pub fn write(
    env: Env,
    id: CallId,
    disk: Handle,
    #[napi(ts_arg_type = "Uint8Array")] source: InBytes,
    offset: f64,
    length: u32,
    position_low: u32,
    position_high: u32,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        let position = GuestOffset(u64::from(position_high) << 32 | u64::from(position_low));
        let offset = usize::try_from(whole("offset", offset)?).unwrap_or(usize::MAX);
        let Some(bytes) = source.copy(offset, length as usize)? else {
            return Err(Error::State {
                code: "BUFFER_DETACHED",
                path: None,
                reason: "the buffer was detached or does not reach that far".to_owned(),
            });
        };
        call.run_on(&writable, Turn::Shared, Lane::Write, move |disk| {
            let outcome = disk.write(position, &bytes).map_err(out_of_range);
            buffers::give_back(bytes);
            outcome.map(|()| Outcome::Number(f64::from(length)))
        })
    })
}

/// Makes a range read as zeros; with `unmap` its space is given back.
#[napi(catch_unwind)]
pub fn write_zeroes(
    env: Env,
    id: CallId,
    disk: Handle,
    position: BigInt,
    length: BigInt,
    unmap: bool,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        change(call, disk, &position, &length, move |disk, position, length| {
            disk.write_zeroes(position, length, unmap)
        })
    })
}

/// Gives the space of a range back.
#[napi(catch_unwind)]
pub fn discard(env: Env, id: CallId, disk: Handle, position: BigInt, length: BigInt) -> napi::Result<()> {
    accept(&env, id, |call| change(call, disk, &position, &length, Disk::discard))
}

/// Makes every write that has completed durable.
#[napi(catch_unwind)]
pub fn flush(env: Env, id: CallId, disk: Handle) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        call.run_on(&writable, Turn::Shared, Lane::Waiting, |disk| {
            disk.flush().map(|()| Outcome::Number(0.0))
        })
    })
}

fn change(
    call: &mut Call,
    disk: Handle,
    position: &BigInt,
    length: &BigInt,
    change: impl FnOnce(&Disk, GuestOffset, u64) -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let writable = call.disk(disk)?;
    let position = GuestOffset(required("position", position)?);
    let length = required("length", length)?;
    call.run_on(&writable, Turn::Shared, Lane::Write, move |disk| {
        change(disk, position, length).map_err(out_of_range)?;
        Ok(Outcome::Number(0.0))
    })
}

/// A range that passes the end has a code of its own: only the disk knows where its end is by the time it comes to that.
fn out_of_range(error: Error) -> Error {
    match error {
        Error::Invalid {
            argument: "position",
            reason,
        } => Error::State {
            code: "OUT_OF_RANGE",
            path: None,
            reason,
        },
        other => other,
    }
}
