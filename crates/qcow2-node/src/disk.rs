//! Making a disk of layers that is written, and changing its size.

use std::sync::Arc;

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{Disk, DiskOptions, ResizeOptions};

use crate::call::accept;
use crate::chain::opened;
use crate::create::preallocation_named;
use crate::handles::{Handle, Resource, Writable};
use crate::numbers::{required, whole};
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::turnstile::Turn;

/// Makes a disk of open layers, top first, that is written. The handles of the layers end with that, also if it fails. Completes with its
/// facts. An image that was not closed is repaired before. `without_backing`: the last layer may name a backing file that is not there.
#[napi(catch_unwind)]
pub fn open_disk(
    env: Env,
    id: CallId,
    layers: Vec<Handle>,
    cache_bytes: f64,
    without_backing: Option<bool>,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let layers = call.take_layers(&layers)?;
        let options = DiskOptions {
            cache_bytes: whole("cacheBytes", cache_bytes)?,
            without_backing: without_backing.unwrap_or(false),
            ..DiskOptions::default()
        };
        call.run(Lane::Waiting, move |job| {
            job.cancel.check()?;
            let disk = Disk::open(layers, options)?;
            if let Err(error) = job.cancel.check() {
                disk.close()?;
                return Err(error);
            }
            opened(Resource::Disk(Writable {
                disk: Arc::new(disk),
                turnstile: Arc::default(),
            }))
        })
    })
}

/// How a disk is resized.
#[napi(object, object_to_js = false)]
pub struct ResizeSpec {
    /// It may become smaller.
    pub shrink: bool,
    /// `off`, `metadata`, `falloc` or `full`.
    pub preallocation: String,
}

/// Gives the disk another size in bytes. Completes with its virtual size then.
#[napi(catch_unwind)]
pub fn resize(env: Env, id: CallId, disk: Handle, size: BigInt, options: ResizeSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let writable = call.disk(disk)?;
        let size = required("size", &size)?;
        let options = ResizeOptions {
            shrink: options.shrink,
            preallocation: preallocation_named(&options.preallocation)?,
        };
        call.run_on(&writable, Turn::Alone, Lane::Waiting, move |disk| {
            disk.resize(size, options)?;
            virtual_size(disk)
        })
    })
}

/// Completes with the size that the disk has now.
pub(crate) fn virtual_size(disk: &Disk) -> Result<Outcome, qcow2_engine::Error> {
    let size = disk.chain().virtual_size();
    Outcome::value(move |_, _, values| values.add(BigInt::from(size)))
}
