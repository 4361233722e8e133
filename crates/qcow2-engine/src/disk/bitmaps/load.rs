//! Reading a bitmap from the file.

use std::collections::HashSet;

use qcow2_format::bitmap::{Bitmap, BitmapTableEntry};
use qcow2_format::{HostOffset, L1Entry};

use super::bits::{Bits, CHUNK};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::storage::Storage;

/// Bytes of a table, or of data, that are read at a time.
const WINDOW: u64 = 1 << 20;
/// Memory that a place takes that was seen, about, in bytes.
const SEEN: u64 = 24;

/// What loading all bitmaps of an image may take.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes of memory.
    memory: u64,
    /// Bytes that are read: no more than the file has, unless bitmaps share what they must not share.
    read: u64,
    file_length: u64,
    /// Clusters that were found to hold bitmap data.
    seen: HashSet<u64>,
    /// Active L2 tables, in order.
    l2: Vec<u64>,
}

/// Where the L2 tables lie that L1 entries name, in order.
fn l2_tables(l1: impl Iterator<Item = L1Entry>) -> Vec<u64> {
    let mut tables: Vec<u64> = l1.filter_map(|entry| entry.l2_offset()).map(|at| at.0).collect();
    tables.sort_unstable();
    tables
}

impl Budget {
    pub(super) fn new(layer: &Layer) -> Result<Self> {
        let storage = &**layer.storage();
        let file_length = storage.length().map_err(Error::io("stat", storage))?;
        Ok(Self {
            memory: layer.options().limits.max_memory,
            read: file_length,
            file_length,
            seen: HashSet::new(),
            l2: if layer.bitmaps().is_empty() {
                Vec::new()
            } else {
                l2_tables(layer.l1().iter().copied())
            },
        })
    }

    /// Whether a place is an L2 table.
    pub(super) fn is_l2(&self, offset: HostOffset) -> bool {
        self.l2.binary_search(&offset.0).is_ok()
    }

    /// Whether a cluster may hold data of one bitmap: nothing else is there, as far as that can be told without reading all tables.
    fn claim(&mut self, offset: HostOffset) -> bool {
        !self.is_l2(offset) && self.seen.insert(offset.0)
    }

    /// Bytes of memory, about.
    fn memory(&self) -> u64 {
        self.seen.len() as u64 * SEEN
    }

    fn read(&mut self, bytes: u64) -> bool {
        let left = self.read.checked_sub(bytes);
        self.read = left.unwrap_or(0);
        left.is_some()
    }
}

/// What the file has of a bitmap.
#[derive(Debug)]
pub(super) struct Loaded {
    /// What is dirty; none if the bitmap was in use, so that this is not known.
    pub(super) bits: Option<Bits>,
    /// Where its data stands.
    pub(super) places: Vec<HostOffset>,
}

/// Reads a bitmap; none if it is damaged.
pub(super) fn bitmap(layer: &Layer, bitmap: &Bitmap, budget: &mut Budget) -> Result<Option<Loaded>> {
    let Some(cluster_size) = layer.cluster_size() else {
        return Ok(None);
    };
    let length = layer.virtual_size().div_ceil(bitmap.granularity());
    let needed = bitmap.data_bytes(layer.virtual_size()).div_ceil(cluster_size);
    let entries = u64::from(bitmap.table_entries);
    // Exactly: so does qemu want it.
    if entries != needed && !bitmap.in_use() {
        return Ok(None);
    }
    let storage = &**layer.storage();
    let mut loading = Loading {
        storage,
        budget,
        cluster_size,
        bits: Bits::new(if bitmap.in_use() { 0 } else { length }),
        in_use: bitmap.in_use(),
        places: Vec::new(),
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
            let wanted = loading.bits.memory() + loading.budget.memory();
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
    Ok(Some(Loaded {
        bits: (!loading.in_use).then_some(loading.bits),
        places: loading.places,
    }))
}

struct Loading<'a> {
    storage: &'a dyn Storage,
    budget: &'a mut Budget,
    cluster_size: u64,
    bits: Bits,
    /// Its data says nothing.
    in_use: bool,
    places: Vec<HostOffset>,
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
        if entry.reserved() != 0 || !offset.is_aligned(self.cluster_size) || !self.budget.claim(offset) {
            return Ok(false);
        }
        self.places.push(offset);
        if self.in_use {
            return Ok(offset.0 < self.budget.file_length);
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
