//! QEMU's image locks (`locking.md`): who uses a file how, told by bytes that are locked in it.
//!
//! Byte `100 + i` locked means "I use permission i", byte `200 + i` "nobody else may use permission i". All locks are shared ones of one byte,
//! on the open file description; a conflict is found by asking whether an exclusive lock could be had. Announcing comes before asking, so of
//! two racers at least one sees the other.

use std::sync::Arc;

use crate::error::Result;
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
/// Byte of "I use permission 0".
const USES: i64 = 100;
/// Byte of "nobody else may use permission 0".
const FORBIDS: i64 = 200;

/// The byte of the file whose lock keeps a permission from being had; `shared`: because somebody uses it.
pub(crate) fn byte_of(permission: &str, shared: bool) -> Option<i64> {
    let (number, _) = PERMISSIONS.iter().find(|(_, name)| *name == permission)?;
    Some(number + if shared { USES } else { FORBIDS })
}

/// Locks that are held until this is dropped.
#[derive(Debug)]
pub struct ImageLock {
    storage: Arc<dyn Storage>,
    bytes: Vec<i64>,
}

impl ImageLock {
    /// Takes the locks of `mode` on the file behind `storage`; a storage without a file has none to take. The notice says that the system
    /// has no such locks.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) if somebody else's use and this one exclude each other, [`Error::Io`](crate::Error::Io) if
    /// locks cannot be had with [`Locking::On`].
    pub fn acquire(storage: Arc<dyn Storage>, mode: LockMode, locking: Locking) -> Result<(Self, Option<Notice>)> {
        let mut lock = Self {
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

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::io;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    use super::{FORBIDS, ImageLock, LockMode, Locking, Notice, PERMISSIONS, Result, USES};
    use crate::error::Error;

    const CONSISTENT_READ: i64 = 0;
    const WRITE: i64 = 1;
    const RESIZE: i64 = 3;

    fn permission_name(permission: i64) -> &'static str {
        PERMISSIONS
            .iter()
            .find(|(number, _)| *number == permission)
            .map_or("write", |(_, name)| name)
    }

    /// The permissions that a mode uses, and those that it does not let others use.
    fn permissions(mode: LockMode) -> (&'static [i64], &'static [i64]) {
        match mode {
            LockMode::ReadOnly => (&[CONSISTENT_READ], &[WRITE, RESIZE]),
            LockMode::ForceShare => (&[CONSISTENT_READ], &[]),
            LockMode::Write => (&[CONSISTENT_READ, WRITE, RESIZE], &[WRITE, RESIZE]),
        }
    }

    pub(super) fn acquire(lock: &mut ImageLock, mode: LockMode, locking: Locking) -> Result<Option<Notice>> {
        let storage = lock.storage.clone();
        let Some(file) = storage.file() else { return Ok(None) };
        let (uses, forbids) = permissions(mode);
        let outcome = announce(file, &mut lock.bytes, uses, forbids).and_then(|()| conflict(file, uses, forbids));
        match outcome {
            Ok(None) => Ok(None),
            Ok(Some((permission, shared))) => Err(Error::Locked {
                path: storage.path().map(Into::into),
                permission: permission_name(permission),
                shared,
            }),
            // Somebody holds one of the bytes for itself alone, which QEMU never does.
            Err(Errno::EAGAIN | Errno::EACCES) => Err(Error::Locked {
                path: storage.path().map(Into::into),
                permission: permission_name(CONSISTENT_READ),
                shared: false,
            }),
            Err(Errno::ENOLCK | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) if locking == Locking::Auto => {
                release(lock);
                Ok(Some(Notice::new(
                    "LOCKING",
                    "the file system has no locks of open files",
                )))
            }
            Err(errno) => Err(Error::io("lock", &*storage)(io::Error::from(errno))),
        }
    }

    pub(super) fn release(lock: &mut ImageLock) {
        let Some(file) = lock.storage.file() else { return };
        for byte in lock.bytes.drain(..) {
            // The file's last close would drop it anyway: there is nobody to tell of a failure.
            let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&request(libc::F_UNLCK, byte)));
        }
    }

    fn announce(file: &File, held: &mut Vec<i64>, uses: &[i64], forbids: &[i64]) -> Result<(), Errno> {
        let wanted = uses.iter().map(|i| USES + i).chain(forbids.iter().map(|i| FORBIDS + i));
        for byte in wanted {
            fcntl(file, FcntlArg::F_OFD_SETLK(&request(libc::F_RDLCK, byte)))?;
            held.push(byte);
        }
        Ok(())
    }

    /// The permission that is not to be had, and whether that is because somebody uses it.
    fn conflict(file: &File, uses: &[i64], forbids: &[i64]) -> Result<Option<(i64, bool)>, Errno> {
        for &permission in uses {
            if foreign(file, FORBIDS + permission)? {
                return Ok(Some((permission, false)));
            }
        }
        for &permission in forbids {
            if foreign(file, USES + permission)? {
                return Ok(Some((permission, true)));
            }
        }
        Ok(None)
    }

    fn foreign(file: &File, byte: i64) -> Result<bool, Errno> {
        let mut answer = request(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))?;
        Ok(i32::from(answer.l_type) != libc::F_UNLCK)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the constants are 0 to 2")]
    fn request(kind: libc::c_int, byte: i64) -> libc::flock {
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
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
}
