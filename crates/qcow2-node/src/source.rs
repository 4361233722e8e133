//! Where the bytes of an image are.

use std::path::PathBuf;
use std::sync::Arc;

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::storage::{AllowSpecial, CacheMode, FileStorage, NullStorage, OpenMode, Storage, WindowStorage};
use qcow2_engine::{Error, Format};
use qcow2_format::HostOffset;

use crate::call::{Call, accept};
use crate::handles::Handle;
use crate::numbers::unsigned;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::words::cache_named;

/// A file or memory, or a window of it.
#[napi(object, object_to_js = false)]
pub struct SourceSpec {
    /// The file's path, or…
    pub path: Option<String>,
    /// … the handle of memory, or…
    pub memory: Option<Handle>,
    /// … so many bytes that are zeros; what is written to them is gone.
    pub zeros: Option<BigInt>,
    /// Where the image begins in it, in bytes. Default 0.
    pub offset: Option<BigInt>,
    /// How many bytes belong to it. Default: up to the end.
    pub size: Option<BigInt>,
    /// May it be a block device? Regular files always may.
    pub devices: Option<bool>,
    /// Is it written too? Default false.
    pub writable: Option<bool>,
    /// The caches that the file is used with: `writeback` (default), `writethrough`, `none`, `directsync` or `unsafe`.
    pub cache: Option<String>,
}

/// A source that a thread can open.
pub(crate) struct Source {
    place: Place,
    window: Option<(u64, Option<u64>)>,
}

enum Place {
    Path {
        path: PathBuf,
        mode: OpenMode,
        cache: CacheMode,
    },
    Storage(Arc<dyn Storage>),
}

impl SourceSpec {
    /// Looks the memory up and checks the numbers.
    pub(crate) fn accept(self, call: &mut Call) -> Result<Source, Error> {
        let window = match (&self.offset, &self.size) {
            (None, None) => None,
            (offset, size) => Some((
                unsigned("offset", offset.as_ref())?.unwrap_or(0),
                unsigned("size", size.as_ref())?,
            )),
        };
        let place = match (self.path, self.memory) {
            (None, None) if self.zeros.is_some() => {
                let length = unsigned("zeros", self.zeros.as_ref())?.unwrap_or(0);
                Place::Storage(Arc::new(NullStorage::new(length)))
            }
            (Some(path), None) => Place::Path {
                path: path.into(),
                cache: cache_named(self.cache.as_deref())?,
                mode: OpenMode {
                    writable: self.writable == Some(true),
                    special: if self.devices == Some(true) {
                        AllowSpecial::BlockDevices
                    } else {
                        AllowSpecial::No
                    },
                },
            },
            (None, Some(handle)) => Place::Storage(call.memory(handle)?),
            _ => {
                return Err(Error::Invalid {
                    argument: "source",
                    reason: "either a path or memory".to_owned(),
                });
            }
        };
        Ok(Source { place, window })
    }
}

impl Source {
    /// Opens it, for writing if that was said.
    pub(crate) fn open(self) -> Result<Arc<dyn Storage>, Error> {
        let storage: Arc<dyn Storage> = match self.place {
            Place::Storage(storage) => storage,
            Place::Path { path, mode, cache } => Arc::new(FileStorage::open(&path, mode)?.with_cache(cache)?),
        };
        match self.window {
            None => Ok(storage),
            Some((offset, size)) => Ok(Arc::new(WindowStorage::new(storage, offset, size)?)),
        }
    }
}

/// Tells by its first bytes whether a source is `qcow2` or `raw`.
#[napi(catch_unwind)]
pub fn probe_format(env: Env, id: CallId, source: SourceSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let source = source.accept(call)?;
        call.run(Lane::Short, move |_| {
            let storage = source.open()?;
            let mut first = [0; 8];
            let count = storage.read_at(HostOffset(0), &mut first).map_err(|source| Error::Io {
                operation: "read",
                path: storage.path().map(Into::into),
                source,
            })?;
            let format = Format::probe(first.get(..count).unwrap_or_default()).name();
            Outcome::value(move |_, _, values| values.add(format))
        })
    })
}
