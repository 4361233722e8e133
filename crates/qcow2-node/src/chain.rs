//! Making a disk of layers.

use std::sync::Arc;

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{Chain, ChainOptions, Error};

use crate::call::accept;
use crate::handles::{Handle, Resource};
use crate::numbers::whole;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;

/// How a chain is opened.
#[napi(object, object_to_js = false)]
pub struct ChainSpec {
    /// Id or name of a snapshot of the top layer; none: its active state.
    pub snapshot: Option<String>,
    /// Byte budget of the caches.
    pub cache_bytes: f64,
    /// The last layer may name a backing file that is not there. Default false.
    pub without_backing: Option<bool>,
}

/// What is known of a disk.
#[napi(object, object_from_js = false)]
pub struct ChainFacts {
    /// Stands for the open chain.
    pub handle: Handle,
    /// In bytes.
    pub virtual_size: BigInt,
    /// In bytes. Of a raw file: a sector.
    pub cluster_size: u32,
}

/// What a raw file is read in, in bytes.
const SECTOR: u32 = 512;

/// Makes a disk of open layers, top first, whose handles end with that, also if it fails. Completes with its facts.
#[napi(catch_unwind)]
pub fn open_chain(env: Env, id: CallId, layers: Vec<Handle>, options: ChainSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let layers = call.take_layers(&layers)?;
        let options = ChainOptions {
            snapshot: options.snapshot,
            cache_bytes: whole("cacheBytes", options.cache_bytes)?,
            without_backing: options.without_backing.unwrap_or(false),
        };
        call.run(Lane::Short, move |job| {
            let chain = Chain::new(layers, options)?;
            job.cancel.check()?;
            opened(Resource::Chain(Arc::new(chain)))
        })
    })
}

/// Completes with the facts of a disk, which gets a handle then.
pub(crate) fn opened(disk: Resource) -> Result<Outcome, Error> {
    let chain = disk.chain().ok_or(Error::Closed)?;
    let virtual_size = chain.virtual_size();
    let cluster_size = chain.cluster_size().and_then(|size| u32::try_from(size).ok());
    Outcome::value(move |_, instance, values| {
        let handle = instance.handles.borrow_mut().insert(disk);
        values.add(ChainFacts {
            handle,
            virtual_size: virtual_size.into(),
            cluster_size: cluster_size.unwrap_or(SECTOR),
        })
    })
}
