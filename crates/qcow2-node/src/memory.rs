//! Bytes in memory that an image may live in. These calls answer at once: there is nothing to wait for.

use std::sync::Arc;

use napi::{Env, Error as NapiError};
use qcow2_engine::storage::{MemoryStorage, Storage};
use qcow2_engine::{Error, guard};
use qcow2_format::HostOffset;

use crate::error::thrown;
use crate::handles::{Handle, Resource};
use crate::instance::Instance;
use crate::numbers::whole;
use crate::raw::{Bytes, OutBytes};

/// What a call that answers at once throws: the code is JavaScript's `code`.
type Thrown = NapiError<String>;

/// New memory, with a copy of `bytes`.
#[napi(catch_unwind)]
pub fn memory_create(env: Env, #[napi(ts_arg_type = "Uint8Array")] bytes: Option<Bytes>) -> Result<Handle, Thrown> {
    with_instance(&env, |instance| {
        let memory = MemoryStorage::new(bytes.map(|bytes| bytes.0).unwrap_or_default());
        Ok(instance.handles.borrow_mut().insert(Resource::Memory(Arc::new(memory))))
    })
}

/// Its length in bytes.
#[napi(catch_unwind)]
pub fn memory_size(env: Env, handle: Handle) -> Result<f64, Thrown> {
    with_memory(&env, handle, |memory| Ok(memory.length().map_err(io("length"))? as f64))
}

/// Copies bytes from `position` on into `buffer`; returns how many there were.
#[napi(catch_unwind)]
pub fn memory_read(
    env: Env,
    handle: Handle,
    #[napi(ts_arg_type = "Uint8Array")] buffer: OutBytes,
    position: f64,
) -> Result<u32, Thrown> {
    with_memory(&env, handle, |memory| {
        let position = offset(position)?;
        // What is there, not what is asked for, decides how much is set aside.
        let left = memory.length().map_err(io("length"))?.saturating_sub(position.0);
        let length = buffer.length().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut bytes = vec![0; length];
        let count = memory.read_at(position, &mut bytes).map_err(io("read"))?;
        let count = buffer.fill(bytes.get(..count).unwrap_or_default());
        u32::try_from(count).map_err(|_| Error::Invalid {
            argument: "buffer",
            reason: "longer than 4 GiB".to_owned(),
        })
    })
}

/// Copies `bytes` to `position` and grows the memory where needed.
#[napi(catch_unwind)]
pub fn memory_write(
    env: Env,
    handle: Handle,
    #[napi(ts_arg_type = "Uint8Array")] bytes: Bytes,
    position: f64,
) -> Result<(), Thrown> {
    with_memory(&env, handle, |memory| {
        memory.write_at(offset(position)?, &bytes.0).map_err(io("write"))
    })
}

/// Sets its length; new bytes read as zeros.
#[napi(catch_unwind)]
pub fn memory_truncate(env: Env, handle: Handle, size: f64) -> Result<(), Thrown> {
    with_memory(&env, handle, |memory| {
        memory.set_length(offset(size)?.0).map_err(io("truncate"))
    })
}

/// Lets the memory go; images that are open on it keep it.
#[napi(catch_unwind)]
pub fn memory_close(env: Env, handle: Handle) -> Result<(), Thrown> {
    with_instance(&env, |instance| {
        // In use by a call: the last of them lets it go.
        let leaving = instance.handles.borrow_mut().close_quietly(handle);
        drop(leaving);
        Ok(())
    })
}

fn with_memory<T>(
    env: &Env,
    handle: Handle,
    work: impl FnOnce(&MemoryStorage) -> Result<T, Error>,
) -> Result<T, Thrown> {
    with_instance(env, |instance| {
        let resource = instance.handles.borrow().resource(handle)?.clone();
        match resource {
            Resource::Memory(memory) => work(&memory),
            _ => Err(Error::Closed),
        }
    })
}

fn with_instance<T>(env: &Env, work: impl FnOnce(&Instance) -> Result<T, Error>) -> Result<T, Thrown> {
    let instance =
        Instance::of(env).map_err(|error| NapiError::new("ERR_QCOW2_INTERNAL".to_owned(), error.reason.clone()))?;
    guard(|| work(&instance)).map_err(|error| thrown(&error))
}

fn offset(position: f64) -> Result<HostOffset, Error> {
    whole("position", position).map(HostOffset)
}

fn io(operation: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        operation,
        path: None,
        source,
    }
}
