//! A file in memory that does not grow without end: a damaged image may ask for exabytes, and a test's memory is not the file system.

use std::io;

use qcow2_engine::{MemoryStorage, Storage};
use qcow2_format::HostOffset;

/// Longest file.
const MOST: u64 = 16 << 20;

/// A [`MemoryStorage`] of at most 16 MiB; beyond, the disk is full.
#[derive(Debug)]
pub struct Capped(MemoryStorage);

impl Capped {
    /// A file of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(MemoryStorage::new(bytes))
    }

    /// A copy of everything.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }
}

fn room(offset: u64, length: u64) -> io::Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= MOST => Ok(()),
        _ => Err(io::ErrorKind::StorageFull.into()),
    }
}

impl Storage for Capped {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        room(offset.0, bytes.len() as u64)?;
        self.0.write_at(offset, bytes)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        room(length, 0)?;
        self.0.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        self.0.punch(offset, length)
    }
}
