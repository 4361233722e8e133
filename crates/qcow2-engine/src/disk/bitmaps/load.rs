//! Reading a bitmap from the file.

use qcow2_format::HostOffset;
use qcow2_format::bitmap::{Bitmap, BitmapTableEntry};

use super::bits::{Bits, CHUNK};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::storage::Storage;

/// Bytes of a table, or of data, that are read at a time.
const WINDOW: u64 = 1 << 20;

/// What loading all bitmaps of an image may take.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes of memory.
    memory: u64,
    /// Bytes that are read: no more than the file has, unless bitmaps share what they must not share.
    read: u64,
    file_length: u64,
}

impl Budget {
    pub(super) fn new(layer: &Layer) -> Result<Self> {
        let storage = &**layer.storage();
        let file_length = storage.length().map_err(Error::io("stat", storage))?;
        Ok(Self {
            memory: layer.options().limits.max_memory,
            read: file_length,
            file_length,
        })
    }

    fn read(&mut self, bytes: u64) -> bool {
        let left = self.read.checked_sub(bytes);
        self.read = left.unwrap_or(0);
        left.is_some()
    }
}

/// What is dirty in a bitmap; none if that is not known: it was in use, or is damaged.
pub(super) fn bits(layer: &Layer, bitmap: &Bitmap, budget: &mut Budget) -> Result<Option<Bits>> {
    let Some(cluster_size) = layer.cluster_size().filter(|_| !bitmap.in_use()) else {
        return Ok(None);
    };
    let length = layer.virtual_size().div_ceil(bitmap.granularity());
    let entries = bitmap.data_bytes(layer.virtual_size()).div_ceil(cluster_size);
    if entries > u64::from(bitmap.table_entries) {
        return Ok(None);
    }
    let storage = &**layer.storage();
    let mut loading = Loading {
        storage,
        budget,
        cluster_size,
        bits: Bits::new(length),
        pending: (0, 0, 0),
        data: Vec::new(),
    };
    let allowed = loading.budget.memory;
    let mut at = 0;
    while at < entries {
        let count = (entries - at).min(WINDOW / 8);
        let mut table = vec![0; usize::try_from(count * 8).unwrap_or(0)];
        let offset = HostOffset(bitmap.table_offset.0.saturating_add(at * 8));
        let filled = storage
            .read_at(offset, &mut table)
            .map_err(Error::io("read", storage))?;
        if filled < table.len() || !loading.budget.read(count * 8) {
            return Ok(None);
        }
        for (index, word) in (at..).zip(table.as_chunks::<8>().0) {
            if !loading.entry(index, BitmapTableEntry(u64::from_be_bytes(*word)))? {
                return Ok(None);
            }
            let wanted = loading.bits.memory();
            if wanted > allowed {
                return Err(Error::Limit {
                    limit: "maxMemory",
                    allowed: layer.options().limits.max_memory,
                    wanted: layer.options().limits.max_memory - allowed + wanted,
                });
            }
        }
        at += count;
    }
    if !loading.flush()? {
        return Ok(None);
    }
    loading.budget.memory = allowed.saturating_sub(loading.bits.memory());
    Ok(Some(loading.bits))
}

struct Loading<'a> {
    storage: &'a dyn Storage,
    budget: &'a mut Budget,
    cluster_size: u64,
    bits: Bits,
    /// Data clusters next to each other that are still to be read: the index of the first, its offset, and their bytes.
    pending: (u64, u64, u64),
    data: Vec<u8>,
}

impl Loading<'_> {
    /// `false`: the entry is not valid.
    fn entry(&mut self, index: u64, entry: BitmapTableEntry) -> Result<bool> {
        let chunks = self.cluster_size * 8 / CHUNK;
        let Some(offset) = entry.data_offset() else {
            if entry.all_ones() {
                let first = index * chunks * CHUNK;
                self.bits.insert(first..first + chunks * CHUNK, |_| ());
            }
            return Ok(entry.reserved() == 0);
        };
        if entry.reserved() != 0 || !offset.is_aligned(self.cluster_size) {
            return Ok(false);
        }
        let (_, begin, bytes) = self.pending;
        if bytes > 0 && begin + bytes == offset.0 && index * self.cluster_size == self.position() && bytes < WINDOW {
            self.pending.2 += self.cluster_size;
            return Ok(true);
        }
        let valid = self.flush()?;
        self.pending = (index, offset.0, self.cluster_size);
        Ok(valid)
    }

    /// The place in the data behind what is pending.
    fn position(&self) -> u64 {
        self.pending.0 * self.cluster_size + self.pending.2
    }

    /// Reads what is pending. `false`: it is not in the file.
    fn flush(&mut self) -> Result<bool> {
        let (index, offset, bytes) = std::mem::take(&mut self.pending);
        if bytes == 0 {
            return Ok(true);
        }
        // The last cluster of a file may be there only in part.
        let there = offset.saturating_add(bytes - self.cluster_size) < self.budget.file_length;
        if !there || !self.budget.read(bytes - self.cluster_size) {
            return Ok(false);
        }
        self.data.clear();
        self.data.resize(usize::try_from(bytes).unwrap_or(0), 0);
        self.storage
            .read_at(HostOffset(offset), &mut self.data)
            .map_err(Error::io("read", self.storage))?;
        let first = index * self.cluster_size * 8 / CHUNK;
        for (chunk, data) in (first..).zip(self.data.as_chunks::<512>().0) {
            if chunk * CHUNK < self.bits.length() {
                self.bits.load(chunk, data);
            }
        }
        Ok(true)
    }
}
