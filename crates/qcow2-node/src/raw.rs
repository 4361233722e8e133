//! Everything that the safe bindings cannot say: the caller's buffers, and what keeps the process alive.
//!
//! A caller's buffer is touched on the JavaScript thread only, inside one call of ours, and never as a Rust reference: it may be shared
//! with other threads (SharedArrayBuffer), and between two calls it may be detached, shrunk or moved.
#![allow(
    unsafe_code,
    reason = "Node-API takes and gives raw pointers; every block says why it is sound"
)]

use std::ptr::{self, NonNull};

use napi::bindgen_prelude::{Array, BigUint64ArraySlice, Float64ArraySlice, FromNapiValue, ToNapiValue, Unknown};
use napi::threadsafe_function::ThreadsafeFunctionHandle;
use napi::{Env, Error, JsValue, Result, Status, sys};
use qcow2_engine::Buffer;
use qcow2_engine::storage::CallerMemory;

use crate::buffers;

/// A copy of the bytes of a `Uint8Array` argument, made at the call.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl FromNapiValue for Bytes {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> Result<Self> {
        // SAFETY: the caller, generated code, passes a live environment and value.
        let place = unsafe { place_of(env, value) }?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(place.length)
            .map_err(|_| out_of_memory(place.length))?;
        // SAFETY: `place` is valid for `length` bytes until JavaScript runs again, which is after this call. The new allocation has room
        // for them and cannot overlap. A racing writer to shared memory can only make the copy torn, not the pointers wrong.
        unsafe {
            ptr::copy_nonoverlapping(place.pointer, bytes.as_mut_ptr(), place.length);
            bytes.set_len(place.length);
        }
        Ok(Self(bytes))
    }
}

/// A `Uint8Array` argument that this call itself copies from.
pub(crate) struct InBytes(Place);

impl InBytes {
    /// A copy of the `length` bytes from `offset` on. `None`: the view does not reach that far.
    pub(crate) fn copy(self, offset: usize, length: usize) -> std::result::Result<Option<Buffer>, qcow2_engine::Error> {
        if offset.checked_add(length).is_none_or(|end| end > self.0.length) {
            return Ok(None);
        }
        let mut bytes = buffers::take(length)?;
        // SAFETY: arguments are taken and used within one synchronous call, so the place that `place_of` told is still valid, and the range was
        // just checked against it. The buffer is our own. A racing writer to shared memory can only make the copy torn.
        unsafe { ptr::copy_nonoverlapping(self.0.pointer.add(offset), bytes.as_mut_ptr(), length) };
        Ok(Some(bytes))
    }
}

impl FromNapiValue for InBytes {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> Result<Self> {
        // SAFETY: the caller, generated code, passes a live environment and value.
        unsafe { place_of(env, value) }.map(Self)
    }
}

/// A `Uint8Array` argument that this call itself fills.
pub(crate) struct OutBytes(Place);

impl OutBytes {
    pub(crate) fn length(&self) -> usize {
        self.0.length
    }

    /// Copies as many bytes as fit to its begin; returns how many.
    pub(crate) fn fill(self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.0.length);
        // SAFETY: arguments are taken and used within one synchronous call, so the place that `place_of` told is still valid.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.pointer, count) };
        count
    }

    /// Lends the `length` bytes from `offset` on to `work`. `None`: the view does not reach that far.
    pub(crate) fn part<T>(
        self,
        offset: usize,
        length: usize,
        work: impl FnOnce(&mut CallerMemory<'_>) -> T,
    ) -> Option<T> {
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.0.length);
        let pointer = NonNull::new(self.0.pointer).filter(|_| fits)?;
        // SAFETY: as in `fill`; the range was just checked, and JavaScript, which alone could take the memory away, does not run before
        // `work` has ended.
        let mut memory = unsafe { CallerMemory::new(pointer.add(offset), length) };
        Some(work(&mut memory))
    }
}

impl FromNapiValue for OutBytes {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> Result<Self> {
        // SAFETY: the caller, generated code, passes a live environment and value.
        unsafe { place_of(env, value) }.map(Self)
    }
}

/// A `Uint8Array` argument that a completion fills later: a reference to the view, never an address.
pub(crate) struct ReadTarget(sys::napi_ref);

// SAFETY: other threads only carry the reference; it is used by `fill` and `release`, which demand the environment's own `Env`.
unsafe impl Send for ReadTarget {}

impl FromNapiValue for ReadTarget {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> Result<Self> {
        // SAFETY: the caller, generated code, passes a live environment and value.
        unsafe { place_of(env, value) }?;
        let mut reference = ptr::null_mut();
        // SAFETY: as above, and `reference` is a valid place for the result.
        check(unsafe { sys::napi_create_reference(env, value, 1, &mut reference) })?;
        Ok(Self(reference))
    }
}

impl ReadTarget {
    /// Copies `bytes` to `offset` of the view and lets it go. `false`: the view does not reach that far any more (it was detached, or its
    /// buffer shrank), and nothing was copied.
    pub(crate) fn fill(self, env: &Env, offset: usize, bytes: &[u8]) -> Result<bool> {
        let mut value = ptr::null_mut();
        // SAFETY: `self.0` was made in this environment (each environment delivers its own completions) and not released yet.
        check(unsafe { sys::napi_get_reference_value(env.raw(), self.0, &mut value) })?;
        // SAFETY: the value was just taken from a strong reference.
        let place = unsafe { place_of(env.raw(), value) };
        self.release(env);
        let place = place?;
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= place.length);
        if fits && !bytes.is_empty() {
            // SAFETY: `place` was told in this turn and JavaScript has not run since; the range was just checked against it.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place.pointer.add(offset), bytes.len()) };
        }
        Ok(fits)
    }

    /// Lets the view go without touching it.
    pub(crate) fn release(self, env: &Env) {
        // SAFETY: made in this environment, and `self` is consumed: nobody deletes it twice. A failure leaves it to the environment's end.
        let _ = unsafe { sys::napi_delete_reference(env.raw(), self.0) };
    }
}

#[derive(Clone, Copy)]
struct Place {
    pointer: *mut u8,
    length: usize,
}

/// Where the bytes of a `Uint8Array` are now. Of a detached one: nowhere, length 0.
///
/// # Safety
/// `env` and `value` are live, and this is the environment's thread. The place is valid until JavaScript runs again.
unsafe fn place_of(env: sys::napi_env, value: sys::napi_value) -> Result<Place> {
    let mut kind = 0;
    let mut length = 0;
    let mut pointer = ptr::null_mut();
    // SAFETY: by this function's contract; each result has its place, those we do not want are null, which Node-API allows.
    let status = unsafe {
        sys::napi_get_typedarray_info(
            env,
            value,
            &mut kind,
            &mut length,
            &mut pointer,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    let is_bytes = kind == sys::TypedarrayType::uint8_array || kind == sys::TypedarrayType::uint8_clamped_array;
    if status != sys::Status::napi_ok || !is_bytes {
        return Err(Error::new(Status::InvalidArg, "a Uint8Array is expected".to_owned()));
    }
    if pointer.is_null() || length == 0 {
        // An empty view may have any address; nothing is read or written there.
        return Ok(Place {
            pointer: NonNull::dangling().as_ptr(),
            length: 0,
        });
    }
    Ok(Place {
        pointer: pointer.cast(),
        length,
    })
}

/// Makes the completion function keep the event loop alive, or not.
pub(crate) fn keep_alive(env: &Env, function: &ThreadsafeFunctionHandle, alive: bool) {
    function.with_read_aborted(|aborted| {
        if aborted {
            return;
        }
        // SAFETY: this is the environment's thread (we hold its `Env`), and the function is not finalized, as `aborted` says under its lock.
        let _ = unsafe {
            if alive {
                sys::napi_ref_threadsafe_function(env.raw(), function.get_raw())
            } else {
                sys::napi_unref_threadsafe_function(env.raw(), function.get_raw())
            }
        };
    });
}

/// The two arguments of the completion function, freed of the borrow of an `Env` that lives as long as they are needed: the call that
/// they are made for is the next thing that happens.
pub(crate) fn arguments(
    env: &Env,
    triples: &Float64ArraySlice<'_>,
    values: Array<'_>,
) -> Result<(Unknown<'static>, Unknown<'static>)> {
    let values = values.to_unknown().raw();
    // SAFETY: both are values of this environment, made in the scope that the call is made in.
    unsafe {
        let triples = ToNapiValue::to_napi_value(env.raw(), triples)?;
        Ok((
            Unknown::from_raw_unchecked(env.raw(), triples),
            Unknown::from_raw_unchecked(env.raw(), values),
        ))
    }
}

/// A new `BigUint64Array` with a copy of `words`: memory of ours behind a JavaScript buffer is not allowed everywhere.
pub(crate) struct Words(pub(crate) Vec<u64>);

impl ToNapiValue for Words {
    unsafe fn to_napi_value(env: sys::napi_env, words: Self) -> Result<sys::napi_value> {
        let env = Env::from_raw(env);
        let array = BigUint64ArraySlice::copy_from(&env, words.0)?;
        // SAFETY: the environment is live, as the caller's contract says, and the array is its own.
        unsafe { ToNapiValue::to_napi_value(env.raw(), array) }
    }
}

fn check(status: sys::napi_status) -> Result<()> {
    if status == sys::Status::napi_ok {
        Ok(())
    } else {
        Err(Error::new(Status::from(status), "Node-API refused a call".to_owned()))
    }
}

fn out_of_memory(length: usize) -> Error {
    Error::new(Status::GenericFailure, format!("there is no memory for {length} bytes"))
}
