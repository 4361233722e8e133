//! QEMU's image locks (`locking.md`): who uses a file how, told by bytes that are locked in it.
//!
//! Byte `100 + i` locked means "I use permission i", byte `200 + i` "nobody else may use permission i". All locks are shared ones of one byte,
//! on the open file description; a conflict is found by asking whether an exclusive lock could be had. Announcing comes before asking, so of
//! two racers at least one sees the other.

//!
//! Uses in this process exclude each other in the same way where the system has no such locks, for files in memory, and even with
//! [`Locking::Off`], which is about others.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;
mod registry;

use std::sync::Arc;

#[cfg(not(target_os = "linux"))]
use elsewhere as system;
#[cfg(target_os = "linux")]
use linux as system;

use crate::error::{Error, Result};
use crate::notice::Notice;
use crate::storage::Storage;

/// How an image is used, for others to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Read, and let nobody write meanwhile.
    ReadOnly,
    /// Read whatever others do: what is read may be torn.
    ForceShare,
    /// Read and write, and let nobody else write.
    Write,
}

/// Whether locks are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// Where the system has them.
    #[default]
    Auto,
    /// Always: fail where the system does not have them.
    On,
    /// Never.
    Off,
}

/// QEMU's numbers of the permissions, and what they are called in errors.
const PERMISSIONS: [(i64, &str); 4] = [
    (0, "consistent read"),
    (1, "write"),
    (2, "write unchanged"),
    (3, "resize"),
];
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// Byte of "I use permission 0".
const USES: i64 = 100;
/// Byte of "nobody else may use permission 0".
const FORBIDS: i64 = 200;

/// The byte of the file whose lock keeps a permission from being had; `shared`: because somebody uses it.
pub(crate) fn byte_of(permission: &str, shared: bool) -> Option<i64> {
    let (number, _) = PERMISSIONS.iter().find(|(_, name)| *name == permission)?;
    Some(number + if shared { USES } else { FORBIDS })
}

fn permission_name(permission: i64) -> &'static str {
    let named = PERMISSIONS.iter().find(|(number, _)| *number == permission);
    named.map_or("write", |(_, name)| name)
}

/// The permissions that a mode uses, and those that it does not let others use.
fn permissions(mode: LockMode) -> (&'static [i64], &'static [i64]) {
    match mode {
        LockMode::ReadOnly => (&[CONSISTENT_READ], &[WRITE, RESIZE]),
        LockMode::ForceShare => (&[CONSISTENT_READ], &[]),
        LockMode::Write => (&[CONSISTENT_READ, WRITE, RESIZE], &[WRITE, RESIZE]),
    }
}

fn locked(storage: &dyn Storage, permission: i64, shared: bool, holder: Option<String>) -> Error {
    Error::Locked {
        path: storage.path().map(Into::into),
        permission: permission_name(permission),
        shared,
        holder,
    }
}

/// Locks that are held until this is dropped.
#[derive(Debug)]
pub struct ImageLock {
    storage: Arc<dyn Storage>,
    bytes: Vec<i64>,
    _here: registry::Use,
}

impl ImageLock {
    /// Takes the locks of `mode` on the file behind `storage`; a storage without a file has none to take. The notice says that the system
    /// has no such locks.
    ///
    /// # Errors
    /// [`Error::Locked`] if somebody else's use and this one exclude each other, [`Error::Io`] if
    /// locks cannot be had with [`Locking::On`].
    pub fn acquire(storage: Arc<dyn Storage>, mode: LockMode, locking: Locking) -> Result<(Self, Option<Notice>)> {
        let mut lock = Self {
            _here: registry::Use::begin(&storage, mode)?,
            storage,
            bytes: Vec::new(),
        };
        let notice = if locking == Locking::Off {
            None
        } else {
            system::acquire(&mut lock, mode, locking)?
        };
        Ok((lock, notice))
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        system::release(self);
    }
}
