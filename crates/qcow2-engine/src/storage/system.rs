//! What the systems call what a file storage does.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use qcow2_format::HostOffset;

use super::{AllowSpecial, Extent, Identity};
use crate::error::{Error, Result};

pub(super) use imp::*;

fn not_regular(path: &Path, what: &str) -> Error {
    Error::State {
        code: "NOT_REGULAR",
        path: Some(path.to_owned()),
        reason: format!("this is {what}, not a regular file"),
    }
}

#[cfg(unix)]
mod imp {
    use std::fs::Metadata;
    use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};

    use super::{AllowSpecial, Error, File, HostOffset, Identity, OpenOptions, Path, Result, io, not_regular};

    /// Whether it is a block device rather than a regular file; anything else is refused.
    pub(in crate::storage) fn device_or_regular(
        metadata: &Metadata,
        path: &Path,
        special: AllowSpecial,
    ) -> Result<bool, Error> {
        let kind = metadata.file_type();
        match () {
            () if kind.is_file() => Ok(false),
            () if kind.is_block_device() && special == AllowSpecial::BlockDevices => Ok(true),
            () if kind.is_block_device() => Err(not_regular(path, "a block device")),
            () if kind.is_dir() => Err(not_regular(path, "a folder")),
            () if kind.is_fifo() => Err(not_regular(path, "a FIFO")),
            () if kind.is_char_device() => Err(not_regular(path, "a character device")),
            () => Err(not_regular(path, "a special file")),
        }
    }

    /// A FIFO that takes the file's place between the look and the open must not block.
    pub(in crate::storage) fn without_waiting(options: &mut OpenOptions) {
        options.custom_flags(nix::libc::O_NONBLOCK);
    }

    pub(in crate::storage) fn identity(metadata: &Metadata) -> Option<Identity> {
        Some(if metadata.file_type().is_block_device() {
            // Two nodes of one device are the same bytes.
            Identity {
                device: metadata.rdev(),
                inode: 0,
            }
        } else {
            Identity {
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        })
    }

    pub(in crate::storage) fn allocated_bytes(metadata: &Metadata) -> Option<u64> {
        Some(metadata.blocks().saturating_mul(512))
    }

    /// Lets reads and writes go past the page cache.
    #[cfg(target_os = "linux")]
    pub(in crate::storage) fn set_direct(file: &File) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))?;
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    pub(in crate::storage) fn set_direct(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in crate::storage) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buffer, offset)
    }

    pub(in crate::storage) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }

    pub(in crate::storage) use holes::{allocate, extent, hole_end, punch};

    #[cfg(target_os = "linux")]
    mod holes {
        use nix::errno::Errno;
        use nix::fcntl::{FallocateFlags, fallocate};
        use nix::unistd::{Whence, lseek};

        use super::super::Extent;
        use super::{File, HostOffset, io};

        /// The extent at `offset`, if the file system tells.
        pub(in crate::storage) fn extent(file: &File, offset: HostOffset, end: HostOffset) -> Option<Extent> {
            let at = i64::try_from(offset.0).ok()?;
            if let Some(end) = hole_end(file, offset, end) {
                return Some(Extent { data: false, end });
            }
            let hole = lseek(file, at, Whence::SeekHole).ok()?;
            let hole = HostOffset(u64::try_from(hole).ok()?);
            (hole > offset).then_some(Extent {
                data: true,
                end: hole.min(end),
            })
        }

        /// Where the hole at `offset` ends; none where data are, or where the file system does not tell.
        pub(in crate::storage) fn hole_end(file: &File, offset: HostOffset, end: HostOffset) -> Option<HostOffset> {
            let data = match lseek(file, i64::try_from(offset.0).ok()?, Whence::SeekData) {
                Ok(data) => HostOffset(u64::try_from(data).ok()?),
                // Nothing but a hole up to the end.
                Err(Errno::ENXIO) if offset < end => return Some(end),
                Err(_) => return None,
            };
            (data > offset).then_some(data.min(end))
        }

        pub(in crate::storage) fn punch(file: &File, offset: HostOffset, length: u64) -> io::Result<bool> {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            change(file, flags, offset, length)
        }

        pub(in crate::storage) fn allocate(file: &File, offset: HostOffset, length: u64) -> io::Result<bool> {
            change(file, FallocateFlags::empty(), offset, length)
        }

        fn change(file: &File, flags: FallocateFlags, offset: HostOffset, length: u64) -> io::Result<bool> {
            let (Ok(offset), Ok(length)) = (i64::try_from(offset.0), i64::try_from(length)) else {
                return Err(io::ErrorKind::FileTooLarge.into());
            };
            if length == 0 {
                return Ok(true);
            }
            loop {
                match fallocate(file, flags, offset, length) {
                    Ok(()) => return Ok(true),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => return Ok(false),
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    mod holes {
        use super::super::Extent;
        use super::{File, HostOffset, io};

        pub(in crate::storage) fn extent(_: &File, _: HostOffset, _: HostOffset) -> Option<Extent> {
            None
        }

        pub(in crate::storage) fn hole_end(_: &File, _: HostOffset, _: HostOffset) -> Option<HostOffset> {
            None
        }

        pub(in crate::storage) fn punch(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
            Ok(false)
        }

        pub(in crate::storage) fn allocate(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
            Ok(false)
        }
    }
}

#[cfg(windows)]
mod imp {
    use std::fs::Metadata;
    use std::os::windows::fs::FileExt;

    use super::{AllowSpecial, Error, Extent, File, HostOffset, Identity, OpenOptions, Path, Result, io, not_regular};

    pub(in crate::storage) fn device_or_regular(
        metadata: &Metadata,
        path: &Path,
        _: AllowSpecial,
    ) -> Result<bool, Error> {
        if metadata.is_file() {
            return Ok(false);
        }
        Err(not_regular(
            path,
            if metadata.is_dir() {
                "a folder"
            } else {
                "a special file"
            },
        ))
    }

    pub(in crate::storage) fn without_waiting(_: &mut OpenOptions) {}

    pub(in crate::storage) fn identity(_: &Metadata) -> Option<Identity> {
        None
    }

    pub(in crate::storage) fn allocated_bytes(_: &Metadata) -> Option<u64> {
        None
    }

    pub(in crate::storage) fn set_direct(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in crate::storage) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match file.seek_read(buffer, offset) {
            // ERROR_HANDLE_EOF
            Err(error) if error.raw_os_error() == Some(38) => Ok(0),
            other => other,
        }
    }

    pub(in crate::storage) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.seek_write(bytes, offset)
    }

    pub(in crate::storage) fn extent(_: &File, _: HostOffset, _: HostOffset) -> Option<Extent> {
        None
    }

    pub(in crate::storage) fn hole_end(_: &File, _: HostOffset, _: HostOffset) -> Option<HostOffset> {
        None
    }

    pub(in crate::storage) fn punch(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(in crate::storage) fn allocate(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
        Ok(false)
    }
}
