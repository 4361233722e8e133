//! Reading metadata for a check: bounded by the file, holes skipped.

use std::io;

use qcow2_format::{Header, HostOffset, RefcountTableEntry};

use crate::error::{Error, Result};
use crate::storage::Storage;

/// The file under check with what the header says of it.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) header: &'a Header,
    /// Length of the file in bytes, rounded up to sectors.
    pub(super) file_length: u64,
    /// The refcount table, as far as it is in the file.
    pub(super) refcount_table: Vec<RefcountTableEntry>,
    /// The refcount block that was looked at last.
    last_block: Option<(HostOffset, Vec<u8>)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(storage: &'a dyn Storage, header: &'a Header) -> Result<Self> {
        let file_length = storage
            .length()
            .map_err(|source| failed(storage, "read", source))?
            .next_multiple_of(512);
        let mut reader = Self {
            storage,
            header,
            file_length,
            refcount_table: Vec::new(),
            last_block: None,
        };
        let table = reader
            .read(header.refcount_table_offset, header.refcount_table_bytes())
            .map_err(|source| failed(storage, "read", source))?;
        reader.refcount_table = words(&table).map(RefcountTableEntry).collect();
        Ok(reader)
    }

    /// What there is to read, roughly: the measure of progress.
    pub(super) fn work(&self) -> u64 {
        let l1 = u64::from(self.header.l1_entries);
        let blocks = self
            .refcount_table
            .iter()
            .filter(|entry| entry.block_offset().is_some())
            .count() as u64;
        l1.saturating_add(blocks)
            .saturating_mul(self.header.geometry.cluster_size())
    }

    /// The bytes of a table, as far as the file goes: shorter than `length` only there.
    pub(super) fn read(&self, offset: HostOffset, length: u64) -> io::Result<Vec<u8>> {
        let there = self.file_length.saturating_sub(offset.0).min(length);
        let there = usize::try_from(there).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(there).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(there, 0);
        let filled = self.storage.read_at(offset, &mut bytes)?;
        bytes.truncate(filled.next_multiple_of(512).min(there));
        Ok(bytes)
    }

    /// Whether a range lies wholly in a hole of the file, so that it is known to be zeros without reading.
    pub(super) fn is_hole(&self, offset: HostOffset, length: u64) -> bool {
        offset.0 < self.file_length
            && self.storage.extent(offset).is_ok_and(|extent| {
                !extent.data && extent.end.0 >= offset.0.saturating_add(length).min(self.file_length)
            })
    }

    /// The refcount on disk of a host cluster; `None` if its block cannot be read.
    pub(super) fn refcount(&mut self, cluster: u64) -> Option<u64> {
        let (table_index, block_index) = self
            .header
            .refcount_order
            .split(qcow2_format::ClusterIndex(cluster), self.header.geometry);
        let entry = usize::try_from(table_index)
            .ok()
            .and_then(|index| self.refcount_table.get(index));
        let Some(offset) = entry.and_then(|entry| entry.block_offset()) else {
            return Some(0);
        };
        if !offset.is_aligned(self.header.geometry.cluster_size()) {
            return None;
        }
        if self.last_block.as_ref().is_none_or(|(at, _)| *at != offset) {
            let block = self.read(offset, self.header.geometry.cluster_size()).ok()?;
            self.last_block = Some((offset, block));
        }
        let (_, block) = self.last_block.as_ref()?;
        // Behind the end of the file there is nothing, and that counts nothing.
        Some(
            self.header
                .refcount_order
                .get_at(block, usize::try_from(block_index).ok()?)
                .unwrap_or(0),
        )
    }
}

/// The big-endian words of a table.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word))
}

fn failed(storage: &dyn Storage, operation: &'static str, source: io::Error) -> Error {
    Error::Io {
        operation,
        path: storage.path().map(Into::into),
        source,
    }
}
