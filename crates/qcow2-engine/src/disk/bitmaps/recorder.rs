//! The bitmaps of an open image, and how they follow what changes.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::PoisonError;

use qcow2_format::bitmap::{AUTO, Bitmap, IN_USE};
use qcow2_format::{BitmapsExtension, HostOffset};

use super::super::state::State;
use super::bits::Bits;
use super::load;
use crate::error::Result;
use crate::layer::Layer;

/// One bitmap.
#[derive(Debug)]
pub(in super::super) struct Slot {
    /// As the directory on disk has it.
    pub(super) entry: Bitmap,
    /// What is dirty; none if that is not known.
    pub(super) bits: Option<Bits>,
    /// It follows what changes.
    pub(super) enabled: bool,
    /// Clusters of its data that are newer than the disk's.
    pub(super) changed: BTreeSet<u64>,
    /// Table and data are its own, as far as is known, so that they may be written over and given up.
    pub(super) own: bool,
    /// Where data stood when the image was opened, until that was looked at.
    pub(super) places: Vec<HostOffset>,
}

impl Slot {
    /// Its data on disk counts for nothing until it is stored, so it may change there.
    pub(super) fn held(&self) -> bool {
        self.entry.in_use() && self.bits.is_some()
    }

    /// What the directory is to say of it.
    pub(super) fn flags(&self, in_use: bool) -> u32 {
        let auto = if self.enabled { AUTO } else { 0 };
        auto | if in_use { IN_USE } else { 0 }
    }

    /// Makes what bytes of the disk touch dirty. `clusters`: log2 of the cluster size.
    pub(super) fn mark(&mut self, bytes: Range<u64>, cluster_bits: u32) {
        let granularity = u32::from(self.entry.granularity_bits);
        let Some(bits) = &mut self.bits else { return };
        let Some(last) = bytes.end.checked_sub(1).filter(|&last| last >= bytes.start) else {
            return;
        };
        let changed = &mut self.changed;
        let mut newest = None;
        bits.insert(bytes.start >> granularity..(last >> granularity) + 1, |chunk| {
            let cluster = cluster_of(chunk, cluster_bits);
            if newest != Some(cluster) {
                changed.insert(cluster);
                newest = Some(cluster);
            }
        });
    }

    pub(super) fn clear(&mut self, cluster_bits: u32) {
        if let Some(bits) = &mut self.bits {
            let changed = &mut self.changed;
            bits.clear(|chunk| {
                changed.insert(cluster_of(chunk, cluster_bits));
            });
        }
    }

    /// The disk has another size.
    fn resize(&mut self, size: u64, cluster_bits: u32) {
        let length = size.div_ceil(self.entry.granularity());
        let Some(bits) = &mut self.bits else { return };
        if length < bits.length() {
            // What is cut off is not on disk either, should the disk grow again.
            let last = cluster_of(bits.length() / super::bits::CHUNK, cluster_bits);
            self.changed
                .extend(cluster_of(length / super::bits::CHUNK, cluster_bits)..=last);
        }
        bits.resize(length);
    }

    /// Bytes of the disk that are dirty.
    pub(super) fn dirty_bytes(&self, size: u64) -> u64 {
        let Some(bits) = &self.bits else { return 0 };
        let granularity = self.entry.granularity();
        let last = bits.length().saturating_sub(1);
        let cut = bits.length().saturating_mul(granularity).saturating_sub(size);
        let over = if bits.run(last).is_some() { cut } else { 0 };
        bits.count().saturating_mul(granularity).saturating_sub(over)
    }
}

/// The cluster of bitmap data that a chunk stands in.
fn cluster_of(chunk: u64, cluster_bits: u32) -> u64 {
    chunk >> (cluster_bits - 9)
}

/// All of them.
#[derive(Debug, Default)]
pub(in super::super) struct Slots {
    /// In the directory's order.
    pub(super) list: Vec<Slot>,
    /// Where the directory lies, if there is one that counts.
    pub(super) directory: Option<BitmapsExtension>,
    /// There is a directory that cannot be used although the header says that it can.
    pub(super) damaged: bool,
    /// Size of the disk in bytes.
    pub(super) size: u64,
}

impl Slots {
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|slot| slot.entry.name == name)
    }
}

/// The bitmaps of an open image.
#[derive(Debug)]
pub(in super::super) struct Recorder {
    /// Some bitmap follows what changes.
    recording: AtomicBool,
    slots: Mutex<Slots>,
    pub(super) cluster_bits: u32,
}

impl Recorder {
    /// Reads the bitmaps of `layer`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), and [`Error::Limit`](crate::Error::Limit) if they take more memory than the layer allows.
    pub(in super::super) fn new(layer: &Layer) -> Result<Self> {
        let mut slots = Slots {
            size: layer.virtual_size(),
            damaged: layer.bitmap_fault().is_some(),
            ..Slots::default()
        };
        let mut budget = load::Budget::new(layer)?;
        for entry in layer.bitmaps() {
            slots.damaged |= budget.is_l2(entry.table_offset);
            let loaded = load::bitmap(layer, entry, &mut budget)?;
            let own = loaded.is_some();
            let (bits, places) = loaded.map_or_else(Default::default, |loaded| (loaded.bits, loaded.places));
            slots.list.push(Slot {
                entry: entry.clone(),
                bits,
                enabled: entry.auto(),
                changed: BTreeSet::new(),
                own,
                places,
            });
        }
        if !slots.list.is_empty() {
            slots.directory = layer.extensions().and_then(|extensions| extensions.bitmaps);
        }
        let cluster_bits = layer.header().map_or(16, |header| header.geometry.cluster_bits());
        let recorder = Self {
            recording: AtomicBool::new(false),
            slots: Mutex::new(slots),
            cluster_bits,
        };
        recorder.update();
        Ok(recorder)
    }

    /// Sets the image's directory and tables apart from what may be written to. If they lie on other tables, they cannot be used.
    pub(in super::super) fn guard(&self, state: &mut State) {
        let mut slots = self.lock();
        let slots = &mut *slots;
        let directory = slots.directory.map(|at| (at.directory_offset, at.directory_size));
        let tables = slots
            .list
            .iter()
            .map(|slot| (slot.entry.table_offset, u64::from(slot.entry.table_entries) * 8));
        let ranges: Vec<_> = directory.into_iter().chain(tables).collect();
        let blocks = state.guard.block_clusters();
        for (offset, length) in ranges {
            let first = state.geometry.cluster_index(offset).0;
            let count = state.geometry.clusters(length);
            let block = blocks.get(blocks.partition_point(|&block| block < first));
            if state.guard.row_overlaps(first, count) || block.is_some_and(|&block| block < first + count) {
                slots.damaged = true;
            } else {
                state.guard.add_bytes(state.geometry, offset, length);
            }
        }
        if slots.damaged {
            slots.list.clear();
            slots.directory = None;
        }
    }

    /// A range of the disk is about to change.
    pub(in super::super) fn touch(&self, offset: u64, length: u64) {
        if self.recording.load(Ordering::Acquire) {
            self.mark(offset..offset.saturating_add(length));
        }
    }

    /// All of the disk is about to change.
    pub(in super::super) fn changed_everything(&self) {
        self.mark(0..u64::MAX);
    }

    fn mark(&self, bytes: Range<u64>) {
        let mut slots = self.lock();
        let end = bytes.end.min(slots.size);
        for slot in slots.list.iter_mut().filter(|slot| slot.enabled) {
            slot.mark(bytes.start..end, self.cluster_bits);
        }
    }

    /// The disk has another size: what is new is not dirty. Only after [`Image::hold_bitmaps`](super::super::Image::hold_bitmaps).
    pub(in super::super) fn resize(&self, size: u64) {
        let mut slots = self.lock();
        slots.size = size;
        for slot in &mut slots.list {
            slot.resize(size, self.cluster_bits);
        }
    }

    /// Some slot was enabled, disabled, added or removed.
    pub(super) fn update(&self) {
        let follows = |slot: &Slot| slot.enabled && slot.bits.is_some();
        let recording = self.lock().list.iter().any(follows);
        self.recording.store(recording, Ordering::Release);
    }

    /// Whether the image has no bitmaps.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.lock().list.is_empty()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
