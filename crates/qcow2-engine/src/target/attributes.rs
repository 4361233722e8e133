//! Attributes that a file gets before its first byte. A file system without them ignores them, as QEMU does.

use std::fs::File;

use crate::storage::CacheMode;

/// What is wanted of the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileAttributes {
    /// No copy on write (btrfs).
    pub(crate) nocow: bool,
    /// Space is given in extents of so many bytes (XFS); 0: as the file system likes.
    pub(crate) extent_size_hint: Option<u32>,
    /// The caches it is written with.
    pub(crate) cache: CacheMode,
}

impl FileAttributes {
    /// Sets them on an empty file.
    pub(crate) fn apply(self, file: &File) {
        if self.nocow {
            system::set_nocow(file);
        }
        if let Some(hint) = self.extent_size_hint.filter(|&hint| hint > 0) {
            system::set_extent_size_hint(file, hint);
        }
    }
}

/// The two `ioctl` pairs. Failures are for nobody to know: these are wishes.
#[cfg(all(target_os = "linux", target_endian = "little"))]
#[allow(unsafe_code, reason = "neither std nor nix has a safe call for inode attributes")]
mod system {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use nix::libc::c_long;

    const FS_NOCOW_FL: c_long = 0x0080_0000;
    const FS_XFLAG_EXTSIZE: u32 = 0x0000_0800;

    /// `struct fsxattr` of `linux/fs.h`.
    #[repr(C)]
    #[derive(Default)]
    struct FsXattr {
        flags: u32,
        extent_size: u32,
        extents: u32,
        project: u32,
        cow_extent_size: u32,
        padding: [u8; 8],
    }

    mod calls {
        #![allow(missing_docs, unreachable_pub, reason = "made by macros")]
        use super::{FsXattr, c_long};
        nix::ioctl_read!(get_flags, b'f', 1, c_long);
        nix::ioctl_write_ptr!(set_flags, b'f', 2, c_long);
        nix::ioctl_read!(get_xattr, b'X', 31, FsXattr);
        nix::ioctl_write_ptr!(set_xattr, b'X', 32, FsXattr);
    }

    pub(super) fn set_nocow(file: &File) {
        let mut flags: c_long = 0;
        // SAFETY: the descriptor is open for the call, and the kernel writes at most one `long` to `flags`, which lives on the stack.
        if unsafe { calls::get_flags(file.as_raw_fd(), &raw mut flags) }.is_ok() {
            flags |= FS_NOCOW_FL;
            // SAFETY: as above; the kernel only reads `flags`.
            let _ = unsafe { calls::set_flags(file.as_raw_fd(), &raw const flags) };
        }
    }

    pub(super) fn set_extent_size_hint(file: &File, hint: u32) {
        let mut attributes = FsXattr::default();
        // SAFETY: the descriptor is open for the call, and `FsXattr` has the layout of the 28 bytes that the kernel writes.
        if unsafe { calls::get_xattr(file.as_raw_fd(), &raw mut attributes) }.is_ok() {
            attributes.flags |= FS_XFLAG_EXTSIZE;
            attributes.extent_size = hint;
            // SAFETY: as above; the kernel only reads the structure.
            let _ = unsafe { calls::set_xattr(file.as_raw_fd(), &raw const attributes) };
        }
    }
}

#[cfg(not(all(target_os = "linux", target_endian = "little")))]
mod system {
    use std::fs::File;

    pub(super) fn set_nocow(_: &File) {}

    pub(super) fn set_extent_size_hint(_: &File, _: u32) {}
}
