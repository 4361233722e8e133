//! Locks on open file descriptions.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{CONSISTENT_READ, FORBIDS, ImageLock, LockMode, Locking, Notice, Result, USES, locked, permissions};
use crate::error::Error;

pub(super) fn acquire(lock: &mut ImageLock, mode: LockMode, locking: Locking) -> Result<Option<Notice>> {
    let storage = lock.storage.clone();
    let Some(file) = storage.file() else { return Ok(None) };
    let (uses, forbids) = permissions(mode);
    let outcome = announce(file, &mut lock.bytes, uses, forbids).and_then(|()| conflict(file, uses, forbids));
    match outcome {
        Ok(None) => Ok(None),
        Ok(Some((permission, shared))) => Err(locked(&*storage, permission, shared, None)),
        // Somebody holds one of the bytes for itself alone, which QEMU never does.
        Err(Errno::EAGAIN | Errno::EACCES) => Err(locked(&*storage, CONSISTENT_READ, false, None)),
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
