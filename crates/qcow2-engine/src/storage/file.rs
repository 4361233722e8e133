//! A file of the system, or a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use qcow2_format::HostOffset;

use super::caller::PageCache;
use super::{CallerMemory, Extent, Identity, Storage, expect};
use crate::error::{Error, Result};

/// What may be opened besides regular files. FIFOs, character devices, sockets and folders never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowSpecial {
    /// Nothing.
    #[default]
    No,
    /// Block devices.
    BlockDevices,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// For reading and writing, not just for reading.
    pub writable: bool,
    /// What may be opened besides regular files.
    pub special: AllowSpecial,
}

/// An open file or block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
    identity: Option<Identity>,
    device: bool,
    cached: PageCache,
}

impl FileStorage {
    /// Opens the file at `path`, which exists.
    ///
    /// Nothing with a side effect on opening is touched: the path is looked at first, then opened without waiting, then looked at again.
    ///
    /// # Errors
    /// [`Error::Io`] from the system; [`Error::State`] with code `NOT_REGULAR` for what `mode` does not allow.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self> {
        let failed = |operation| {
            move |source| Error::Io {
                operation,
                path: Some(path.to_owned()),
                source,
            }
        };
        system::device_or_regular(&std::fs::metadata(path).map_err(failed("open"))?, path, mode.special)?;
        let mut options = OpenOptions::new();
        options.read(true).write(mode.writable);
        system::without_waiting(&mut options);
        Self::wrap(options.open(path).map_err(failed("open"))?, path, mode.special)
    }

    /// Makes the file at `path`, which must not exist, for reading and writing.
    ///
    /// # Errors
    /// [`Error::Io`] from the system.
    pub fn create_new(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|source| Error::Io {
            operation: "open",
            path: Some(path.to_owned()),
            source,
        })?;
        Self::wrap(file, path, AllowSpecial::No)
    }

    /// Takes a regular file that is open for reading and writing already; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Io`] from the system; [`Error::State`] with code `NOT_REGULAR`.
    pub fn from_file(file: File, path: &Path) -> Result<Self> {
        Self::wrap(file, path, AllowSpecial::No)
    }

    fn wrap(file: File, path: &Path, special: AllowSpecial) -> Result<Self> {
        let metadata = file.metadata().map_err(|source| Error::Io {
            operation: "stat",
            path: Some(path.to_owned()),
            source,
        })?;
        Ok(Self {
            device: system::device_or_regular(&metadata, path, special)?,
            identity: system::identity(&metadata),
            file,
            path: path.to_owned(),
            cached: PageCache::default(),
        })
    }

    /// Whether it is a block device: its length cannot change, and nothing is renamed over it.
    pub fn is_device(&self) -> bool {
        self.device
    }
}

impl Storage for FileStorage {
    fn length(&self) -> io::Result<u64> {
        if self.device {
            // Reads and writes are positioned: nobody depends on the cursor that this moves.
            return (&self.file).seek(SeekFrom::End(0));
        }
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let Some(at) = offset
                .checked_add(filled as u64)
                .filter(|at| i64::try_from(at.0).is_ok())
            else {
                break;
            };
            match system::read_at(&self.file, rest, at.0) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn read_now(&self, offset: HostOffset, memory: &mut CallerMemory<'_>) -> Option<usize> {
        self.cached.read(&self.file, offset, memory)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let at = offset.checked_add(written as u64).ok_or(io::ErrorKind::FileTooLarge)?;
            match system::write_at(&self.file, rest, at.0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if self.device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.file.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn extent(&self, offset: HostOffset) -> io::Result<Extent> {
        let end = HostOffset(self.length()?);
        Ok(system::extent(&self.file, offset, end).unwrap_or(Extent { data: true, end }))
    }

    fn hole_end(&self, offset: HostOffset) -> io::Result<Option<HostOffset>> {
        Ok(system::hole_end(&self.file, offset, HostOffset(self.length()?)))
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        system::punch(&self.file, offset, length)
    }

    fn allocate(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        if self.device {
            return Ok(false);
        }
        system::allocate(&self.file, offset, length)
    }

    fn expect(&self, offset: HostOffset, length: u64) {
        if !self.device {
            expect::expect(&self.file, offset, length);
        }
    }

    fn allocated_bytes(&self) -> io::Result<Option<u64>> {
        Ok(system::allocated_bytes(&self.file.metadata()?))
    }

    fn identity(&self) -> Option<Identity> {
        self.identity
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

fn not_regular(path: &Path, what: &str) -> Error {
    Error::State {
        code: "NOT_REGULAR",
        path: Some(path.to_owned()),
        reason: format!("this is {what}, not a regular file"),
    }
}

#[cfg(unix)]
mod system {
    use std::fs::Metadata;
    use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};

    use super::{AllowSpecial, Error, File, HostOffset, Identity, OpenOptions, Path, Result, io, not_regular};

    /// Whether it is a block device rather than a regular file; anything else is refused.
    pub(super) fn device_or_regular(metadata: &Metadata, path: &Path, special: AllowSpecial) -> Result<bool, Error> {
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
    pub(super) fn without_waiting(options: &mut OpenOptions) {
        options.custom_flags(nix::libc::O_NONBLOCK);
    }

    pub(super) fn identity(metadata: &Metadata) -> Option<Identity> {
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

    pub(super) fn allocated_bytes(metadata: &Metadata) -> Option<u64> {
        Some(metadata.blocks().saturating_mul(512))
    }

    pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buffer, offset)
    }

    pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }

    pub(super) use holes::{allocate, extent, hole_end, punch};

    #[cfg(target_os = "linux")]
    mod holes {
        use nix::errno::Errno;
        use nix::fcntl::{FallocateFlags, fallocate};
        use nix::unistd::{Whence, lseek};

        use super::super::Extent;
        use super::{File, HostOffset, io};

        /// The extent at `offset`, if the file system tells.
        pub(in super::super) fn extent(file: &File, offset: HostOffset, end: HostOffset) -> Option<Extent> {
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
        pub(in super::super) fn hole_end(file: &File, offset: HostOffset, end: HostOffset) -> Option<HostOffset> {
            let data = match lseek(file, i64::try_from(offset.0).ok()?, Whence::SeekData) {
                Ok(data) => HostOffset(u64::try_from(data).ok()?),
                // Nothing but a hole up to the end.
                Err(Errno::ENXIO) if offset < end => return Some(end),
                Err(_) => return None,
            };
            (data > offset).then_some(data.min(end))
        }

        pub(in super::super) fn punch(file: &File, offset: HostOffset, length: u64) -> io::Result<bool> {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            change(file, flags, offset, length)
        }

        pub(in super::super) fn allocate(file: &File, offset: HostOffset, length: u64) -> io::Result<bool> {
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

        pub(in super::super) fn extent(_: &File, _: HostOffset, _: HostOffset) -> Option<Extent> {
            None
        }

        pub(in super::super) fn hole_end(_: &File, _: HostOffset, _: HostOffset) -> Option<HostOffset> {
            None
        }

        pub(in super::super) fn punch(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
            Ok(false)
        }

        pub(in super::super) fn allocate(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
            Ok(false)
        }
    }
}

#[cfg(windows)]
mod system {
    use std::fs::Metadata;
    use std::os::windows::fs::FileExt;

    use super::{AllowSpecial, Error, Extent, File, HostOffset, Identity, OpenOptions, Path, Result, io, not_regular};

    pub(super) fn device_or_regular(metadata: &Metadata, path: &Path, _: AllowSpecial) -> Result<bool, Error> {
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

    pub(super) fn without_waiting(_: &mut OpenOptions) {}

    pub(super) fn identity(_: &Metadata) -> Option<Identity> {
        None
    }

    pub(super) fn allocated_bytes(_: &Metadata) -> Option<u64> {
        None
    }

    pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match file.seek_read(buffer, offset) {
            // ERROR_HANDLE_EOF
            Err(error) if error.raw_os_error() == Some(38) => Ok(0),
            other => other,
        }
    }

    pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.seek_write(bytes, offset)
    }

    pub(super) fn extent(_: &File, _: HostOffset, _: HostOffset) -> Option<Extent> {
        None
    }

    pub(super) fn hole_end(_: &File, _: HostOffset, _: HostOffset) -> Option<HostOffset> {
        None
    }

    pub(super) fn punch(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn allocate(_: &File, _: HostOffset, _: u64) -> io::Result<bool> {
        Ok(false)
    }
}
