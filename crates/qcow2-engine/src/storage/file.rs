//! A file of the system, or a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use qcow2_format::HostOffset;

use super::caller::PageCache;
use super::direct::{Below, Blocks};
use super::system;
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

/// How the caches of the system are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// The page cache, and syncs where they are asked for.
    #[default]
    Writeback,
    /// Every write is durable when it returns.
    Writethrough,
    /// Past the page cache (`O_DIRECT`), and syncs where they are asked for.
    None,
    /// Past the page cache, and every write is durable when it returns.
    Directsync,
    /// The page cache, and nothing is ever synced: what a power cut leaves is anything.
    Unsafe,
}

impl CacheMode {
    /// Past the page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Every write is durable when it returns.
    pub fn is_through(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

/// An open file or block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
    identity: Option<Identity>,
    device: bool,
    cached: PageCache,
    mode: CacheMode,
    /// Set if it is read and written past the page cache.
    blocks: Option<Blocks>,
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
            mode: CacheMode::default(),
            blocks: None,
        })
    }

    /// The same file, used with other caches.
    ///
    /// # Errors
    /// [`Error::State`] with code `DIRECT_UNSUPPORTED` if `mode` goes past the page cache and the file system, or this system, cannot.
    pub fn with_cache(mut self, mode: CacheMode) -> Result<Self> {
        if mode.is_direct() {
            let unsupported = |_| Error::State {
                code: "DIRECT_UNSUPPORTED",
                path: Some(self.path.clone()),
                reason: "the file system does not let the page cache be passed by (O_DIRECT)".to_owned(),
            };
            system::set_direct(&self.file).map_err(unsupported)?;
            self.blocks = Some(Blocks::new(&self, self.device).map_err(unsupported)?);
        }
        self.mode = mode;
        Ok(self)
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
        if let Some(blocks) = &self.blocks {
            return blocks.read(self, offset, buffer);
        }
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
        if self.blocks.is_some() {
            return None;
        }
        self.cached.read(&self.file, offset, memory)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        if let Some(blocks) = &self.blocks {
            blocks.write(self, offset, bytes)?;
            return self.write_through();
        }
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
        self.write_through()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if self.device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        match &self.blocks {
            Some(blocks) => blocks.set_length(self, length),
            None => self.file.set_len(length),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.mode == CacheMode::Unsafe {
            return Ok(());
        }
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
        let punch = || system::punch(&self.file, offset, length);
        let punched = self.blocks.as_ref().map_or_else(punch, |blocks| blocks.alone(punch))?;
        if punched {
            self.write_through()?;
        }
        Ok(punched)
    }

    fn allocate(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        if self.device {
            return Ok(false);
        }
        let allocate = || system::allocate(&self.file, offset, length);
        // Who writes a part of the last block sets the length that was there before: not what has become longer since.
        self.blocks
            .as_ref()
            .map_or_else(allocate, |blocks| blocks.alone(allocate))
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

    fn writes_through(&self) -> bool {
        self.mode.is_through()
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

impl FileStorage {
    /// Makes what was just written durable, if every write is to be.
    fn write_through(&self) -> io::Result<()> {
        if self.mode.is_through() {
            return self.file.sync_data();
        }
        Ok(())
    }
}

impl Below for FileStorage {
    fn read_some(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        system::read_at(&self.file, buffer, offset)
    }

    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        system::write_at(&self.file, bytes, offset)
    }

    fn file_length(&self) -> io::Result<u64> {
        self.length()
    }

    fn set_file_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
}
