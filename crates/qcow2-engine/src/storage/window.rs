//! A part of a larger file, as a file of its own.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use qcow2_format::HostOffset;

use super::{CallerMemory, Extent, Identity, Storage};
use crate::error::{Error, Result};

/// The bytes of another storage from an offset on. With a size, nothing beyond it is seen or changed.
#[derive(Debug)]
pub struct WindowStorage {
    inner: Arc<dyn Storage>,
    offset: u64,
    size: Option<u64>,
}

impl WindowStorage {
    /// The part of `inner` that begins at byte `offset` and is `size` bytes long, or goes on up to the end.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the part does not lie inside `inner`.
    pub fn new(inner: Arc<dyn Storage>, offset: u64, size: Option<u64>) -> Result<Self> {
        let length = inner.length().map_err(Error::io("stat", &*inner))?;
        let end = offset.checked_add(size.unwrap_or(0)).filter(|&end| end <= length);
        if end.is_none() {
            return Err(Error::Invalid {
                argument: if offset > length { "offset" } else { "size" },
                reason: format!("the window passes the end of the file at {length} bytes"),
            });
        }
        Ok(Self { inner, offset, size })
    }

    /// The place in the whole file of `offset` in the window.
    fn place(&self, offset: HostOffset) -> io::Result<HostOffset> {
        offset
            .checked_add(self.offset)
            .ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    }

    fn inside(&self, offset: HostOffset, length: u64) -> io::Result<HostOffset> {
        let end = offset.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.size.is_some_and(|size| end.0 > size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.place(offset)
    }
}

impl Storage for WindowStorage {
    fn length(&self) -> io::Result<u64> {
        let rest = self.inner.length()?.saturating_sub(self.offset);
        Ok(self.size.map_or(rest, |size| size.min(rest)))
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.size.map_or(u64::MAX, |size| size.saturating_sub(offset.0));
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(buffer.len());
        match (buffer.get_mut(..count), self.place(offset)) {
            (Some(buffer), Ok(at)) if count > 0 => self.inner.read_at(at, buffer),
            _ => Ok(0),
        }
    }

    fn read_now(&self, offset: HostOffset, memory: &mut CallerMemory<'_>) -> Option<usize> {
        let room = self.size.map_or(u64::MAX, |size| size.saturating_sub(offset.0));
        let mut memory = memory.part(0, usize::try_from(room).unwrap_or(usize::MAX));
        self.inner.read_now(self.place(offset).ok()?, &mut memory)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(self.inside(offset, bytes.len() as u64)?, bytes)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if self.size.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.inner.set_length(self.place(HostOffset(length))?.0)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn extent(&self, offset: HostOffset) -> io::Result<Extent> {
        let extent = self.inner.extent(self.place(offset)?)?;
        let end = extent.end.0.saturating_sub(self.offset);
        Ok(Extent {
            data: extent.data,
            end: HostOffset(self.size.map_or(end, |size| end.min(size))),
        })
    }

    fn hole_end(&self, offset: HostOffset) -> io::Result<Option<HostOffset>> {
        let end = self.inner.hole_end(self.place(offset)?)?;
        let end = end.map(|end| end.0.saturating_sub(self.offset));
        Ok(end.map(|end| HostOffset(self.size.map_or(end, |size| end.min(size)))))
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        self.inner.punch(self.inside(offset, length)?, length)
    }

    fn allocate(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        self.inner.allocate(self.inside(offset, length)?, length)
    }

    fn expect(&self, offset: HostOffset, length: u64) {
        if let Ok(at) = self.inside(offset, length) {
            self.inner.expect(at, length);
        }
    }

    fn allocated_bytes(&self) -> io::Result<Option<u64>> {
        self.inner.allocated_bytes()
    }

    fn identity(&self) -> Option<Identity> {
        self.inner.identity()
    }

    fn base(&self) -> HostOffset {
        HostOffset(self.inner.base().0.saturating_add(self.offset))
    }

    fn file(&self) -> Option<&File> {
        self.inner.file()
    }

    fn writes_through(&self) -> bool {
        self.inner.writes_through()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn a_window_shows_its_part_and_guards_the_rest() {
        let inner = Arc::new(MemoryStorage::new((0..10).collect()));
        let window = WindowStorage::new(inner.clone(), 3, Some(4)).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(window.read_at(HostOffset(1), &mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], [4, 5, 6]);
        assert_eq!(window.read_at(HostOffset(4), &mut buffer).unwrap(), 0);
        assert_eq!(window.length().unwrap(), 4);
        window.write_at(HostOffset(3), &[99]).unwrap();
        assert!(window.write_at(HostOffset(3), &[99, 98]).is_err());
        assert!(window.write_at(HostOffset(u64::MAX), &[1]).is_err());
        assert_eq!(inner.to_vec(), [0, 1, 2, 3, 4, 5, 99, 7, 8, 9]);
    }

    #[test]
    fn a_window_past_the_end_is_refused() {
        let inner: Arc<dyn Storage> = Arc::new(MemoryStorage::new(vec![0; 10]));
        for (offset, size) in [(11, None), (3, Some(8)), (1, Some(u64::MAX))] {
            assert!(
                WindowStorage::new(inner.clone(), offset, size).is_err(),
                "{offset} {size:?}"
            );
        }
        assert_eq!(WindowStorage::new(inner, 10, None).unwrap().length().unwrap(), 0);
    }
}
