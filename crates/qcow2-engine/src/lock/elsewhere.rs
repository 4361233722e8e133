//! Systems whose locks this library does not use.

use super::{ImageLock, LockMode, Locking, Notice, Result};
use crate::error::Error;

pub(super) fn acquire(lock: &mut ImageLock, _: LockMode, locking: Locking) -> Result<Option<Notice>> {
    match (lock.storage.file(), locking) {
        (None, _) => Ok(None),
        (Some(_), Locking::On) => Err(Error::io("lock", &*lock.storage)(
            std::io::ErrorKind::Unsupported.into(),
        )),
        (Some(_), _) => Ok(Some(Notice::new("LOCKING", "this system has no locks of open files"))),
    }
}

pub(super) fn release(lock: &mut ImageLock) {
    lock.bytes.clear();
}
