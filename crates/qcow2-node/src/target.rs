//! Where a new image goes.

use std::path::PathBuf;

use qcow2_engine::{Error, Place, Target};

use crate::call::Call;
use crate::handles::Handle;

/// A file or memory that is written.
#[napi(object, object_to_js = false)]
pub struct TargetSpec {
    /// The file's path, or…
    pub path: Option<String>,
    /// … the handle of memory, or…
    pub memory: Option<Handle>,
    /// … of a disk that is open for writing.
    pub disk: Option<Handle>,
    /// A file that is there already is replaced.
    pub overwrite: bool,
    /// Synced before the call completes.
    pub durable: bool,
    /// What is there already is written over, without changing its length.
    pub in_place: bool,
    /// The caches that files are written with, as of a source.
    pub cache: Option<String>,
}

impl TargetSpec {
    /// Looks the memory up.
    pub(crate) fn accept(&self, call: &mut Call) -> Result<Target, Error> {
        let durable = self.durable;
        if let Some(disk) = self.disk {
            return Ok(Target::Disk(call.disk(disk)?.disk));
        }
        match (&self.path, self.memory) {
            (Some(path), None) if self.in_place => Ok(Target::InPlace {
                place: Place::Path(path.into()),
                durable,
            }),
            (Some(path), None) => Ok(self.beside(path.into())),
            (None, Some(handle)) => {
                let memory = call.memory(handle)?;
                Ok(if self.in_place {
                    Target::InPlace {
                        place: Place::Storage(memory),
                        durable,
                    }
                } else {
                    Target::Storage(memory)
                })
            }
            _ => Err(Error::Invalid {
                argument: "target",
                reason: "either a path, memory or a disk".to_owned(),
            }),
        }
    }

    /// A further file that is made under the same conditions.
    pub(crate) fn beside(&self, path: PathBuf) -> Target {
        Target::Path {
            path,
            overwrite: self.overwrite,
            durable: self.durable,
        }
    }
}
