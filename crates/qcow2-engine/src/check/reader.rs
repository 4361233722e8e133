//! Reading metadata for a check: bounded by the file, holes skipped, neighbours read at once.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use qcow2_format::{Header, HostOffset, RefcountTableEntry};

use super::classes::Classes;
use crate::error::{Error, Result};
use crate::storage::Storage;

/// What is read at once where tables follow each other.
const AHEAD: u64 = 1 << 20;
/// Offsets whose cluster would end behind this cannot be read, by QEMU's rule.
const LARGEST: u64 = (1 << 63) - (1 << 20);

/// The file under check with what the header says of it.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) header: &'a Header,
    /// Length of the file in bytes, rounded up to sectors.
    pub(crate) file_length: u64,
    /// The refcount table, as far as it is in the file.
    pub(crate) refcount_table: Vec<RefcountTableEntry>,
    pub(super) classes: Classes,
    /// The hole that was found last.
    hole: RefCell<Range<u64>>,
    /// What was read last: a table, and what followed it.
    window: Window,
}

#[derive(Debug, Default)]
struct Window {
    offset: u64,
    bytes: Arc<Vec<u8>>,
    /// Where the last table that was asked for ended.
    expected: u64,
}

/// The bytes of a table. The buffer that they stand in serves the next read once nobody has one of these.
#[derive(Clone, Debug)]
pub(crate) struct TableBytes {
    window: Arc<Vec<u8>>,
    place: Range<usize>,
}

impl Deref for TableBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.window.get(self.place.clone()).unwrap_or_default()
    }
}

/// What a refcount table entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Nothing that counts anything.
    Absent,
    /// A place that cannot be read.
    Unreadable,
    /// A block.
    At(HostOffset),
}

impl<'a> Reader<'a> {
    pub(crate) fn new(storage: &'a dyn Storage, header: &'a Header) -> Result<Self> {
        let failed = |source| Error::Io {
            operation: "read",
            path: storage.path().map(Into::into),
            source,
        };
        let length = storage.length().map_err(failed)?;
        let mut reader = Self {
            storage,
            header,
            file_length: length.checked_next_multiple_of(512).unwrap_or(length & !511),
            refcount_table: Vec::new(),
            classes: Classes::default(),
            hole: RefCell::default(),
            window: Window::default(),
        };
        let table = reader
            .read(header.refcount_table_offset, header.refcount_table_bytes())
            .map_err(failed)?;
        reader.refcount_table = words(&table).map(RefcountTableEntry).collect();
        Ok(reader)
    }

    /// What there is to read, roughly: the measure of progress.
    pub(super) fn work(&self) -> u64 {
        let l1 = u64::from(self.header.l1_entries);
        let blocks = self.refcount_table.iter().filter(|entry| entry.0 != 0).count() as u64;
        l1.saturating_add(blocks)
            .saturating_mul(self.header.geometry.cluster_size())
    }

    /// The bytes of a table, as far as the file goes: shorter than `length` only there.
    pub(crate) fn read(&self, offset: HostOffset, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_into(offset, length, &mut bytes)?;
        Ok(bytes)
    }

    /// The same, in a buffer that may have served before.
    pub(super) fn read_into(&self, offset: HostOffset, length: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        let there = self.file_length.saturating_sub(offset.0).min(length);
        let there = usize::try_from(there).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let more = there.saturating_sub(bytes.len());
        bytes.try_reserve_exact(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(there, 0);
        let filled = self.storage.read_at(offset, bytes)?;
        // What a file lacks of its last sector is zeros, not what was here before.
        bytes.get_mut(filled..).unwrap_or_default().fill(0);
        bytes.truncate(filled.next_multiple_of(512).min(there));
        Ok(())
    }

    /// The table of one cluster at `offset`, as far as the file goes. One that stands behind the last one is read with those behind it.
    pub(crate) fn table(&mut self, offset: HostOffset) -> io::Result<TableBytes> {
        let size = self.header.geometry.cluster_size();
        let end = offset.0.saturating_add(size);
        let window_end = self.window.offset.saturating_add(self.window.bytes.len() as u64);
        if offset.0 < self.window.offset || end > window_end {
            let ahead = if self.window.expected == offset.0 {
                AHEAD.max(size)
            } else {
                size
            };
            // Taken away before it is read into: what a failed read leaves is nobody's table.
            let mut bytes = std::mem::take(&mut self.window).bytes;
            if Arc::get_mut(&mut bytes).is_none() {
                bytes = Arc::default();
            }
            if let Some(bytes) = Arc::get_mut(&mut bytes) {
                self.read_into(offset, ahead, bytes)?;
            }
            self.window = Window {
                offset: offset.0,
                bytes,
                expected: 0,
            };
        }
        self.window.expected = end;
        let begin = usize::try_from(offset.0 - self.window.offset).unwrap_or(usize::MAX);
        let end = begin.saturating_add(self.header.geometry.cluster_len());
        Ok(TableBytes {
            window: Arc::clone(&self.window.bytes),
            place: begin.min(self.window.bytes.len())..end.min(self.window.bytes.len()),
        })
    }

    /// Whether a range lies wholly in a hole of the file, so that it is known to be zeros without reading.
    pub(crate) fn is_hole(&self, offset: HostOffset, length: u64) -> bool {
        self.hole_at(offset)
            .is_some_and(|end| end.0 >= offset.0.saturating_add(length).min(self.file_length))
    }

    /// Where the hole ends that `offset` lies in; none where data are, and behind the end of the file.
    pub(super) fn hole_at(&self, offset: HostOffset) -> Option<HostOffset> {
        if offset.0 >= self.file_length {
            return None;
        }
        if self.hole.borrow().contains(&offset.0) {
            return Some(HostOffset(self.hole.borrow().end));
        }
        let end = self.storage.hole_end(offset).ok()??;
        *self.hole.borrow_mut() = offset.0..end.0;
        Some(end)
    }

    /// The refcount block of a refcount table index.
    pub(super) fn block(&self, index: u64) -> Block {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.refcount_table.get(index));
        let size = self.header.geometry.cluster_size();
        match entry.and_then(|entry| entry.block_offset()) {
            None => Block::Absent,
            Some(offset) if !offset.is_aligned(size) || offset.0 > LARGEST - size => Block::Unreadable,
            Some(offset) if offset.0 >= self.file_length || self.is_hole(offset, size) => Block::Absent,
            Some(offset) => Block::At(offset),
        }
    }

    /// The refcount on disk of a host cluster; `None` if its block cannot be read.
    pub(super) fn refcount(&self, cluster: u64) -> Option<u64> {
        let order = self.header.refcount_order;
        let (index, within) = order.split(qcow2_format::ClusterIndex(cluster), self.header.geometry);
        let offset = match self.block(index) {
            Block::Absent => return Some(0),
            Block::Unreadable => return None,
            Block::At(offset) => offset,
        };
        // The eight bytes that the count is in: widths are powers of two.
        let bits = u64::from(order.bits());
        let word = within.saturating_mul(bits) / 64;
        let bytes = self.read(offset.checked_add(word * 8)?, 8).ok()?;
        let index = usize::try_from(within - word * 64 / bits).ok()?;
        Some(order.get_at(&bytes, index).unwrap_or(0))
    }
}

/// The big-endian words of a table.
pub(crate) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word))
}
