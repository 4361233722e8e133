//! The internal snapshots of a disk that is written.

use std::sync::Arc;

use napi::bindgen_prelude::BigInt;
use napi::{Env, Error as NapiError};
use qcow2_engine::{Disk, Error, NewSnapshot, SnapshotChoice, guard};

use crate::call::accept;
use crate::chain::opened;
use crate::disk::virtual_size;
use crate::error::thrown;
use crate::handles::{Handle, Resource};
use crate::instance::Instance;
use crate::listing::SnapshotFacts;
use crate::numbers::unsigned;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::turnstile::Turn;

/// A new snapshot.
#[napi(object, object_to_js = false)]
pub struct NewSnapshotSpec {
    /// Its name.
    pub name: String,
    /// Another one may have the same name.
    pub allow_duplicate: bool,
    /// Seconds since 1970; none: now.
    pub date_sec: Option<u32>,
    /// And nanoseconds.
    pub date_nsec: Option<u32>,
    /// The guest's clock in nanoseconds.
    pub vm_clock_nsec: Option<BigInt>,
    /// Instruction count.
    pub icount: Option<BigInt>,
}

/// Which snapshot is meant.
#[napi(object, object_to_js = false)]
pub struct SnapshotChoiceSpec {
    /// Its id or name: …
    pub text: String,
    /// … `id`, `name` or `any`: the id goes first.
    pub by: String,
}

impl From<SnapshotChoiceSpec> for SnapshotChoice {
    fn from(SnapshotChoiceSpec { text, by }: SnapshotChoiceSpec) -> Self {
        match by.as_str() {
            "id" => Self::Id(text),
            "name" => Self::Name(text),
            _ => Self::IdOrName(text),
        }
    }
}

/// The snapshots that the disk has now.
#[napi(catch_unwind)]
pub fn snapshot_list(env: Env, disk: Handle) -> Result<Vec<SnapshotFacts>, NapiError<String>> {
    at_once(&env, disk, |disk| {
        let size = disk.chain().virtual_size();
        disk.snapshots()
            .iter()
            .map(|snapshot| SnapshotFacts::of(snapshot, size))
            .collect()
    })
}

/// Takes a snapshot. Completes with its facts.
#[napi(catch_unwind)]
pub fn snapshot_create(env: Env, id: CallId, disk: Handle, snapshot: NewSnapshotSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        let new = NewSnapshot {
            name: snapshot.name,
            allow_duplicate: snapshot.allow_duplicate,
            date: snapshot
                .date_sec
                .map(|seconds| (seconds, snapshot.date_nsec.unwrap_or(0))),
            vm_clock_nsec: unsigned("vmClockNsec", snapshot.vm_clock_nsec.as_ref())?.unwrap_or(0),
            icount: unsigned("icount", snapshot.icount.as_ref())?,
        };
        call.run_on(&writable, Turn::Alone, Lane::Waiting, move |disk| {
            let snapshot = disk.snapshot_create(new)?;
            let size = disk.chain().virtual_size();
            Outcome::value(move |_, _, values| values.add(SnapshotFacts::of(&snapshot, size)))
        })
    })
}

/// Makes the disk what it was. Completes with its virtual size then.
#[napi(catch_unwind)]
pub fn snapshot_apply(env: Env, id: CallId, disk: Handle, which: SnapshotChoiceSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        call.run_on(&writable, Turn::Alone, Lane::Waiting, move |disk| {
            disk.snapshot_apply(&which.into())?;
            virtual_size(disk)
        })
    })
}

/// Deletes a snapshot.
#[napi(catch_unwind)]
pub fn snapshot_delete(env: Env, id: CallId, disk: Handle, which: SnapshotChoiceSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        call.run_on(&writable, Turn::Alone, Lane::Waiting, move |disk| {
            disk.snapshot_delete(&which.into()).map(|()| Outcome::Number(0.0))
        })
    })
}

/// Gives a snapshot another name.
#[napi(catch_unwind)]
pub fn snapshot_rename(
    env: Env,
    id: CallId,
    disk: Handle,
    which: SnapshotChoiceSpec,
    name: String,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        call.run_on(&writable, Turn::Alone, Lane::Waiting, move |disk| {
            disk.snapshot_rename(&which.into(), &name)
                .map(|()| Outcome::Number(0.0))
        })
    })
}

/// Opens a snapshot, read-only, on the files and locks of its disk. Completes with its facts.
#[napi(catch_unwind)]
pub fn snapshot_open(env: Env, id: CallId, disk: Handle, which: SnapshotChoiceSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        call.run_on(&writable, Turn::Shared, Lane::Waiting, move |disk| {
            opened(Resource::Chain(Arc::new(disk.snapshot_view(&which.into())?)))
        })
    })
}

/// Asks a disk that is written for something that memory has.
pub(crate) fn at_once<T>(env: &Env, handle: Handle, ask: impl FnOnce(&Disk) -> T) -> Result<T, NapiError<String>> {
    let instance =
        Instance::of(env).map_err(|error| NapiError::new("ERR_QCOW2_INTERNAL".to_owned(), error.reason.clone()))?;
    let answer = guard(|| match instance.handles.borrow().resource(handle)? {
        Resource::Disk(writable) => Ok(ask(&writable.disk)),
        _ => Err(Error::Closed),
    });
    answer.map_err(|error| thrown(&error))
}
