//! The dirty bitmaps of a disk that is written.

use std::sync::Arc;

use napi::bindgen_prelude::BigInt;
use napi::{Env, Error as NapiError};
use qcow2_engine::{BitmapInfo, Chain, Disk, Error, NewBitmap, StoredBitmap};
use qcow2_format::GuestOffset;

use crate::call::{Call, accept};
use crate::handles::Handle;
use crate::numbers::{required, unsigned};
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::raw::Words;
use crate::snapshots::at_once;
use crate::turnstile::Turn;

/// A new bitmap.
#[napi(object, object_to_js = false)]
pub struct NewBitmapSpec {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for; none: 65536.
    pub granularity: Option<BigInt>,
    /// It records from the beginning.
    pub enabled: bool,
}

/// What is known of a bitmap while its disk is written.
#[napi(object, object_from_js = false)]
pub struct DiskBitmapFacts {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: f64,
    /// It follows writes.
    pub enabled: bool,
    /// What it says is not known.
    pub inconsistent: bool,
    /// Bytes that are dirty.
    pub dirty_bytes: BigInt,
}

impl From<BitmapInfo> for DiskBitmapFacts {
    fn from(info: BitmapInfo) -> Self {
        Self {
            name: info.name,
            granularity: info.granularity as f64,
            enabled: info.enabled,
            inconsistent: info.inconsistent,
            dirty_bytes: info.dirty_bytes.into(),
        }
    }
}

/// The bitmaps that the disk has now.
#[napi(catch_unwind)]
pub fn bitmap_list(env: Env, disk: Handle) -> Result<Vec<DiskBitmapFacts>, NapiError<String>> {
    at_once(&env, disk, |disk| disk.bitmaps().into_iter().map(Into::into).collect())
}

/// Adds a bitmap.
#[napi(catch_unwind)]
pub fn bitmap_add(env: Env, id: CallId, disk: Handle, bitmap: NewBitmapSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let new = NewBitmap {
            granularity: unsigned("granularity", bitmap.granularity.as_ref())?,
            name: bitmap.name,
            enabled: bitmap.enabled,
        };
        alone(call, disk, move |disk| disk.bitmap_add(new))
    })
}

/// Removes a bitmap.
#[napi(catch_unwind)]
pub fn bitmap_remove(env: Env, id: CallId, disk: Handle, name: String) -> napi::Result<()> {
    accept(&env, id, |call| {
        alone(call, disk, move |disk| disk.bitmap_remove(&name))
    })
}

/// Makes nothing dirty.
#[napi(catch_unwind)]
pub fn bitmap_clear(env: Env, id: CallId, disk: Handle, name: String) -> napi::Result<()> {
    accept(&env, id, |call| alone(call, disk, move |disk| disk.bitmap_clear(&name)))
}

/// Lets a bitmap follow writes, or not.
#[napi(catch_unwind)]
pub fn bitmap_enable(env: Env, id: CallId, disk: Handle, name: String, enabled: bool) -> napi::Result<()> {
    accept(&env, id, |call| {
        alone(call, disk, move |disk| disk.bitmap_enable(&name, enabled))
    })
}

/// Adds what is dirty in `source` to `target`.
#[napi(catch_unwind)]
pub fn bitmap_merge(env: Env, id: CallId, disk: Handle, target: String, source: String) -> napi::Result<()> {
    accept(&env, id, |call| {
        alone(call, disk, move |disk| disk.bitmap_merge(&target, &source))
    })
}

/// Adds what is dirty in bitmap `name` of another disk, as it is now or, if that is only read, as it was stored, to `target`.
#[napi(catch_unwind)]
pub fn bitmap_merge_from(
    env: Env,
    id: CallId,
    disk: Handle,
    target: String,
    source: Handle,
    name: String,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let source = match call.disk(source) {
            Ok(writable) => Source::Written(writable.disk),
            Err(_) => Source::Read(call.chain(source)?),
        };
        alone(call, disk, move |disk| match source {
            Source::Written(source) => {
                let size = source.chain().virtual_size();
                disk.bitmap_merge_from(&target, size, |start, max| source.bitmap_dirty(&name, start, max))
            }
            Source::Read(chain) => {
                let stored = StoredBitmap::load(&chain, &name)?;
                let dirty = |start, max| Ok(stored.dirty(start, max));
                disk.bitmap_merge_from(&target, stored.disk_size(), dirty)
            }
        })
    })
}

/// Where a bitmap is merged from.
enum Source {
    Written(Arc<Disk>),
    Read(Arc<Chain>),
}

/// Completes with at most `max` dirty ranges from the guest offset `start` on, as a `BigUint64Array` of two words for each: where it begins, and
/// where it ends (exclusive).
#[napi(catch_unwind)]
pub fn bitmap_dirty(env: Env, id: CallId, disk: Handle, name: String, start: BigInt, max: u32) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        let start = GuestOffset(required("start", &start)?);
        call.run_on(&writable, Turn::Shared, Lane::Waiting, move |disk| {
            let ranges = disk.bitmap_dirty(&name, start, max as usize)?;
            let words = ranges.iter().flat_map(|range| [range.start, range.end]).collect();
            Outcome::value(move |_, _, values| values.add(Words(words)))
        })
    })
}

fn alone(
    call: &mut Call,
    disk: Handle,
    change: impl FnOnce(&Disk) -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let writable = call.disk(disk)?;
    call.run_on(&writable, Turn::Alone, Lane::Waiting, move |disk| {
        change(disk).map(|()| Outcome::Number(0.0))
    })
}
