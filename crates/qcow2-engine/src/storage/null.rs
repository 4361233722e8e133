//! A file of zeros, whatever is written to it.

use std::io;

use qcow2_format::HostOffset;

use super::{Extent, Storage};

/// Reads as zeros up to its length; takes writes and forgets them.
#[derive(Debug)]
pub struct NullStorage {
    length: u64,
}

impl NullStorage {
    /// One of `length` bytes.
    pub fn new(length: u64) -> Self {
        Self { length }
    }

    fn there(&self, offset: HostOffset, wanted: usize) -> usize {
        let rest = self.length.saturating_sub(offset.0);
        usize::try_from(rest).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Storage for NullStorage {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.there(offset, buffer.len());
        buffer.get_mut(..count).unwrap_or_default().fill(0);
        Ok(count)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        if self.there(offset, bytes.len()) < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if length == self.length {
            return Ok(());
        }
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn extent(&self, _offset: HostOffset) -> io::Result<Extent> {
        Ok(Extent {
            data: false,
            end: HostOffset(self.length),
        })
    }

    fn punch(&self, _offset: HostOffset, _length: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn allocated_bytes(&self) -> io::Result<Option<u64>> {
        Ok(Some(0))
    }
}
