//! Where a new image goes: beside its final name until it is whole, or in place where that cannot be.

mod attributes;
mod staged;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::lock::{ImageLock, LockMode, Locking};
use crate::storage::{AllowSpecial, CacheMode, FileStorage, OpenMode, Storage};
use staged::Staged;

pub(crate) use attributes::FileAttributes;

/// Where a new image goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A file at this path. It is written beside its final name and takes it when it is whole; a failure leaves whatever is there as it
    /// was. The target of a symbolic link is replaced, not the link; mode and owner of what is replaced are kept. A block device is
    /// written in place, and a failure leaves it undefined.
    Path {
        /// The final name.
        path: PathBuf,
        /// Something may be there already. Otherwise it is refused with code `EXISTS`.
        overwrite: bool,
        /// The bytes and the name survive a power cut once the call has returned.
        durable: bool,
    },
    /// Bytes that are there already and are written over, without changing their length. A failure leaves them undefined.
    InPlace {
        /// Where they are.
        place: Place,
        /// The bytes survive a power cut once the call has returned.
        durable: bool,
    },
    /// A storage that becomes the new image, whatever it held.
    Storage(Arc<dyn Storage>),
    /// A disk that is open for writing: its bytes are written over, and what it has beyond them stays. A failure leaves them undefined.
    Disk(Arc<Disk>),
}

/// Something that is there already.
#[derive(Clone, Debug)]
pub enum Place {
    /// A regular file or block device.
    Path(PathBuf),
    /// A storage.
    Storage(Arc<dyn Storage>),
}

/// A target that is being written.
#[derive(Debug)]
pub(crate) struct OpenTarget {
    storage: Arc<dyn Storage>,
    kind: Kind,
    durable: bool,
    /// Keeps others from using what is written in place, or is to be replaced.
    _lock: Option<ImageLock>,
}

#[derive(Debug)]
enum Kind {
    /// Beside its name.
    Staged(Box<Staged>),
    /// Emptied before: reads as zeros where nothing is written.
    Emptied,
    /// With whatever it holds, at its own length.
    InPlace,
}

impl OpenTarget {
    /// Opens `target`, which must be none of the files in `sources`.
    ///
    /// # Errors
    /// `SAME_FILE`, `EXISTS`, `NOT_REGULAR`, [`Error::Locked`] if another process uses what would be replaced, [`Error::Io`].
    pub(crate) fn open(target: &Target, attributes: FileAttributes, sources: &[Arc<dyn Storage>]) -> Result<Self> {
        match target {
            Target::Path {
                path,
                overwrite,
                durable,
            } => Self::path(path, *overwrite, *durable, attributes, sources),
            Target::InPlace { place, durable } => Self::in_place(place, *durable, attributes.cache, sources),
            Target::Storage(storage) => {
                different(&**storage, sources)?;
                storage.set_length(0).map_err(failed("truncate", storage.path()))?;
                Ok(Self {
                    storage: Arc::clone(storage),
                    kind: Kind::Emptied,
                    durable: false,
                    _lock: None,
                })
            }
            Target::Disk(_) => Err(Error::Invalid {
                argument: "target",
                reason: "no new image is made where a disk is open".into(),
            }),
        }
    }

    fn path(
        path: &Path,
        overwrite: bool,
        durable: bool,
        attributes: FileAttributes,
        sources: &[Arc<dyn Storage>],
    ) -> Result<Self> {
        let name = staged::final_name(path).map_err(failed("open", Some(path)))?;
        let there = match std::fs::symlink_metadata(&name) {
            Ok(_) => {
                // Who replaces a file must be allowed to write it.
                let writable = overwrite;
                let mode = OpenMode {
                    writable,
                    special: AllowSpecial::BlockDevices,
                };
                let there = FileStorage::open(&name, mode)?;
                // What is replaced is only looked at.
                let cache = if there.is_device() {
                    attributes.cache
                } else {
                    CacheMode::Writeback
                };
                Some(Arc::new(there.with_cache(cache)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open", Some(path))(error)),
        };
        let mut lock = None;
        if let Some(there) = &there {
            different(&**there, sources)?;
            if !overwrite {
                return Err(staged::exists(path));
            }
            lock = Some(write_lock(there.clone())?);
        }
        if let Some(device) = there.as_ref().filter(|there| there.is_device()) {
            return Ok(Self {
                storage: device.clone(),
                kind: Kind::InPlace,
                durable,
                _lock: lock,
            });
        }
        let staged = Staged::begin(name, overwrite, there.as_deref(), attributes.cache)?;
        attributes.apply(staged.file());
        Ok(Self {
            storage: staged.storage(),
            kind: Kind::Staged(Box::new(staged)),
            durable,
            _lock: lock,
        })
    }

    fn in_place(place: &Place, durable: bool, cache: CacheMode, sources: &[Arc<dyn Storage>]) -> Result<Self> {
        let storage: Arc<dyn Storage> = match place {
            Place::Storage(storage) => Arc::clone(storage),
            Place::Path(path) => {
                let mode = OpenMode {
                    writable: true,
                    special: AllowSpecial::BlockDevices,
                };
                Arc::new(FileStorage::open(path, mode)?.with_cache(cache)?)
            }
        };
        different(&*storage, sources)?;
        let lock = write_lock(Arc::clone(&storage))?;
        Ok(Self {
            storage,
            kind: Kind::InPlace,
            durable,
            _lock: Some(lock),
        })
    }

    /// Where to write.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Whether it reads as zeros where nothing is written, and its length is the writer's to set.
    pub(crate) fn is_fresh(&self) -> bool {
        !matches!(self.kind, Kind::InPlace)
    }

    /// Whether both would get the same name, or write the same bytes.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        same_file(&*self.storage, &*other.storage)
            || match (&self.kind, &other.kind) {
                (Kind::Staged(a), Kind::Staged(b)) => a.has_name_of(b),
                _ => false,
            }
    }

    /// Refuses an in-place target that is shorter than `length` bytes.
    pub(crate) fn check_room(&self, length: u64) -> Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        let there = self.storage.length().map_err(failed("stat", self.storage.path()))?;
        if there >= length {
            return Ok(());
        }
        Err(Error::State {
            code: "TARGET_TOO_SMALL",
            path: self.storage.path().map(Into::into),
            reason: format!("the target has {there} bytes, but {length} are needed"),
        })
    }

    /// Gives the file its name, now that it is whole.
    pub(crate) fn publish(self) -> Result<Published> {
        if self.durable {
            self.storage.sync().map_err(failed("fsync", self.storage.path()))?;
        }
        match self.kind {
            Kind::Staged(staged) => staged.publish(self.durable),
            Kind::Emptied | Kind::InPlace => Ok(Published::default()),
        }
    }
}

/// A name that was given.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// The name, if nothing had it before.
    pub(crate) new: Option<PathBuf>,
}

impl Published {
    /// Takes a new name back: what it belongs to could not be finished.
    pub(crate) fn withdraw(self) {
        if let Some(path) = self.new {
            // The error that led here is the one to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(crate) fn different(storage: &dyn Storage, sources: &[Arc<dyn Storage>]) -> Result<()> {
    if sources.iter().any(|source| same_file(&**source, storage)) {
        return Err(Error::State {
            code: "SAME_FILE",
            path: storage.path().map(Into::into),
            reason: "the target is also a source, or a file that a source needs".to_owned(),
        });
    }
    Ok(())
}

/// Whether both are the same file, or the same bytes in memory, wherever in it they begin.
fn same_file(a: &dyn Storage, b: &dyn Storage) -> bool {
    std::ptr::addr_eq(a, b) || (a.identity().is_some() && a.identity() == b.identity())
}

fn write_lock(storage: Arc<dyn Storage>) -> Result<ImageLock> {
    ImageLock::acquire(storage, LockMode::Write, Locking::Auto).map(|(lock, _)| lock)
}

fn failed(operation: &'static str, path: Option<&Path>) -> impl FnOnce(io::Error) -> Error {
    let path = path.map(Into::into);
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}
