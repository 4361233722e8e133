//! Writes that follow each other in the file, gathered into large ones.

use std::io;
use std::sync::Arc;

use qcow2_codec::is_zero;
use qcow2_format::HostOffset;

use super::refcounts::internal;
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::storage::Storage;

/// How much is gathered before it is written.
const GATHER: usize = 1 << 20;
/// The unit in which file systems keep holes.
const PAGE: usize = 4096;
/// A piece of this size is written as it is.
const LARGE: usize = 128 << 10;

/// A piece of this size is worth a word before it is written.
const ANNOUNCED: usize = 256 << 10;

/// A storage that is written mostly from front to back.
#[derive(Debug)]
pub(crate) struct Appender {
    storage: Arc<dyn Storage>,
    /// Where `gathered` belongs.
    begin: u64,
    gathered: Buffer,
    /// How much of it is there.
    filled: usize,
    /// Bytes handed in so far, and how many there may be.
    written: u64,
    allowed: Option<u64>,
    /// The file reads as zeros wherever nothing was written.
    fresh: bool,
}

impl Appender {
    /// Writes to `storage` at most `allowed` bytes. `fresh`: it reads as zeros so far.
    pub(crate) fn new(storage: Arc<dyn Storage>, fresh: bool, allowed: Option<u64>) -> Self {
        Self {
            storage,
            begin: 0,
            gathered: Buffer::default(),
            filled: 0,
            written: 0,
            allowed,
            fresh,
        }
    }

    /// The storage below. What was gathered may not have reached it: see [`Appender::flush`].
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Writes `bytes` at `offset`, now or later.
    pub(crate) fn write(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        if let Some(allowed) = self.allowed
            && self.written > allowed
        {
            return Err(Error::Limit {
                limit: "maxOutputSize",
                allowed,
                wanted: self.written,
            });
        }
        let follows = self.begin.checked_add(self.filled as u64) == Some(offset.0);
        if !follows || self.filled.saturating_add(bytes.len()) > GATHER {
            self.flush()?;
        }
        if bytes.len() >= LARGE {
            self.flush()?;
            return self.write_now(offset.0, bytes);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if self.filled == 0 {
            self.begin = offset.0;
            self.gathered.resize(GATHER)?;
        }
        let end = self.filled.saturating_add(bytes.len());
        let room = self.gathered.get_mut(self.filled..end);
        room.ok_or_else(|| internal("a gathered write is too long"))?
            .copy_from_slice(bytes);
        self.filled = end;
        Ok(())
    }

    /// Writes a table, whose rest is often empty: zeros at its end stay a hole.
    pub(crate) fn write_table(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        let used = bytes
            .chunks(PAGE)
            .rposition(|page| !is_zero(page))
            .map_or(0, |last| last + 1);
        let used = if self.fresh {
            used.saturating_mul(PAGE).min(bytes.len())
        } else {
            bytes.len()
        };
        self.write(offset, bytes.get(..used).unwrap_or_default())
    }

    /// Writes zeros, `length` bytes of them.
    pub(crate) fn write_zeros(&mut self, offset: HostOffset, length: u64) -> Result<()> {
        let zeros = vec![0; usize::try_from(length.min(GATHER as u64)).unwrap_or(GATHER)];
        let mut done = 0;
        while done < length {
            let piece = usize::try_from(length - done).unwrap_or(usize::MAX).min(zeros.len());
            self.write(
                HostOffset(offset.0.saturating_add(done)),
                zeros.get(..piece).unwrap_or_default(),
            )?;
            done += piece as u64;
        }
        Ok(())
    }

    /// Hands everything gathered to the storage.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let filled = std::mem::take(&mut self.filled);
        match self.gathered.get(..filled) {
            Some(bytes) if filled > 0 => self.write_now(self.begin, bytes),
            _ => Ok(()),
        }
    }

    fn write_now(&self, begin: u64, bytes: &[u8]) -> Result<()> {
        if self.fresh && bytes.len() >= ANNOUNCED {
            self.storage.expect(HostOffset(begin), bytes.len() as u64);
        }
        self.storage
            .write_at(HostOffset(begin), bytes)
            .map_err(|source| failed("write", &*self.storage, source))
    }
}

/// The error of a storage call.
pub(crate) fn failed(operation: &'static str, storage: &dyn Storage, source: io::Error) -> Error {
    Error::Io {
        operation,
        path: storage.path().map(Into::into),
        source,
    }
}
