//! Bitmaps on disk while they are in use: held before the first change, stored after the last.
//!
//! A bitmap that the directory says is in use counts for nothing, so its data and its table may be written over where they stand. That flag is one
//! word in one sector, and each bitmap's is its own: setting it takes one write and one barrier, and any mix of old and new sectors is right,
//! because nothing has changed yet. Clearing it takes the same, once data and tables are durable. Only where a table gets another place or size is
//! there a new directory.

use std::collections::BTreeMap;

use qcow2_format::bitmap::{Bitmap, BitmapTableEntry, FLAGS_AT};
use qcow2_format::{HostOffset, limits};

use super::super::Image;
use super::super::refcounts::Clusters;
use super::super::state::to_len;
use super::super::weaken::Weaken;
use super::bits::{CHUNK, Piece};
use super::recorder::{Slot, Slots};
use crate::error::{Error, Result};
use crate::overlay::{SECTOR, Sector};

/// What storing takes and gives up.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Clusters that nothing on disk names yet.
    pub(super) taken: Vec<Clusters>,
    /// Data clusters that nothing names any more, once all is done.
    pub(super) data: Vec<Clusters>,
    /// Tables, and directories, likewise.
    pub(super) rows: Vec<Clusters>,
    /// Tables that are written over: where, and what.
    pub(super) tables: Vec<(u64, Vec<u8>)>,
    /// It takes a new directory.
    pub(super) moved: bool,
}

impl Image {
    /// Before the first change: bitmaps that follow it are marked as in use. A directory that cannot be used is declared so, as a program that does
    /// not know bitmaps would.
    pub(in super::super) fn use_bitmaps(&self) -> Result<()> {
        if self.bitmaps.lock().damaged {
            self.switch_header(|fields| fields.autoclear &= !qcow2_format::features::autoclear::BITMAPS)?;
            self.bitmaps.lock().damaged = false;
        }
        self.look_at_refcounts()?;
        self.hold(|slot| slot.enabled)
    }

    /// A cluster without a reference may be anybody's as soon as the disk is written: a bitmap that stands in one is damaged.
    fn look_at_refcounts(&self) -> Result<()> {
        let mut looked: Vec<(usize, Vec<HostOffset>, Clusters)> = Vec::new();
        for (index, slot) in self
            .bitmaps
            .lock()
            .list
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| slot.own)
        {
            let places = std::mem::take(&mut slot.places);
            looked.push((index, places, self.table_clusters(&slot.entry)));
        }
        for (index, places, table) in looked {
            let free = self.run(|state| {
                for at in &places {
                    let cluster = state.cluster_of(*at);
                    if state.refcount(cluster)? == 0 {
                        return Ok(true);
                    }
                }
                for cluster in table.first..table.first + table.count {
                    if state.refcount(cluster)? == 0 {
                        return Ok(true);
                    }
                }
                Ok(false)
            })?;
            if free && let Some(slot) = self.bitmaps.lock().list.get_mut(index) {
                (slot.bits, slot.own) = (None, false);
                self.lock().guard.remove(table.first, table.count);
            }
        }
        Ok(())
    }

    /// Marks bitmaps as in use, durably.
    pub(super) fn hold(&self, which: impl Fn(&Slot) -> bool) -> Result<()> {
        let wanted = |slot: &Slot| which(slot) && !slot.entry.in_use();
        let flags = |slot: &Slot| wanted(slot).then(|| slot.flags(true));
        let writes = self.flag_places(&self.bitmaps.lock(), flags);
        if writes.is_empty() {
            return Ok(());
        }
        if !self.weaken.has(Weaken::BITMAP_NOT_IN_USE) {
            self.write_flags(&writes)?;
        }
        let mut slots = self.bitmaps.lock();
        for slot in slots.list.iter_mut().filter(|slot| wanted(slot)) {
            slot.entry.flags = slot.flags(true);
        }
        Ok(())
    }

    /// Where flags stand in the directory, and what they are to be.
    fn flag_places(&self, slots: &Slots, flags: impl Fn(&Slot) -> Option<u32>) -> Vec<(u64, u32)> {
        let mut at = slots.directory.map_or(0, |directory| directory.directory_offset.0);
        let mut places = Vec::new();
        for slot in &slots.list {
            places.extend(flags(slot).map(|flags| (at + FLAGS_AT, flags)));
            at += slot.entry.entry_bytes();
        }
        places
    }

    /// Writes flags where they stand, durably.
    fn write_flags(&self, places: &[(u64, u32)]) -> Result<()> {
        let mut sectors: BTreeMap<u64, Sector> = BTreeMap::new();
        for &(at, flags) in places {
            let begin = at & !(SECTOR - 1);
            let sector = match sectors.entry(begin) {
                std::collections::btree_map::Entry::Occupied(place) => place.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let mut sector = [0; 512];
                    self.storage
                        .read_at(HostOffset(begin), &mut sector)
                        .map_err(Error::io("read", &*self.storage))?;
                    place.insert(sector)
                }
            };
            let within = to_len(at - begin);
            if let Some(place) = sector.get_mut(within..within + 4) {
                place.copy_from_slice(&flags.to_be_bytes());
            }
        }
        let log = self.flushing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.refuse_poisoned()?;
        for (at, sector) in &sectors {
            self.write_file(HostOffset(*at), sector)?;
        }
        self.barrier()?;
        drop(log);
        Ok(())
    }

    /// After the last change: bitmaps that were in use are stored, and count again. The caller holds the gate alone and has flushed.
    pub(in super::super) fn store_bitmaps(&self) -> Result<()> {
        let mut slots = self.bitmaps.lock();
        if !slots.list.iter().any(Slot::held) {
            return Ok(());
        }
        let mut changes = Changes::default();
        let entries = self.write_contents(&mut slots, &mut changes);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                self.release_all(&changes.taken);
                return Err(error);
            }
        };
        for (at, bytes) in &changes.tables {
            self.write_file(HostOffset(*at), bytes)?;
        }
        if changes.moved {
            self.replace_directory(&mut slots, &entries)?;
        } else {
            self.barrier()?;
            let flags = |slot: &Slot| slot.held().then(|| slot.flags(false));
            self.write_flags(&self.flag_places(&slots, flags))?;
        }
        for (slot, entry) in slots.list.iter_mut().zip(entries) {
            if slot.held() {
                slot.changed.clear();
            }
            slot.entry = entry;
        }
        drop(slots);
        self.drop_clusters(&changes);
        // What is dropped now is reclaimed with this flush.
        self.flush_with(true)
    }

    /// Data, and tables in new places; refcounts are durable then. Returns what the directory is to say.
    fn write_contents(&self, slots: &mut Slots, changes: &mut Changes) -> Result<Vec<Bitmap>> {
        let mut entries = Vec::with_capacity(slots.list.len());
        for slot in &slots.list {
            let mut entry = slot.entry.clone();
            if slot.held() {
                self.write_slot(slot, slots.size, &mut entry, changes)?;
                entry.flags = slot.flags(false);
            }
            entries.push(entry);
        }
        if !changes.taken.is_empty() {
            self.flush_with(true)?;
        }
        Ok(entries)
    }

    fn write_slot(&self, slot: &Slot, size: u64, entry: &mut Bitmap, changes: &mut Changes) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let wanted = table_entries(entry, size, cluster_size)?;
        let mut table = self.read_table(entry)?;
        let resized = entry.table_entries != wanted;
        if slot.changed.is_empty() && !resized {
            return Ok(());
        }
        let before = table.clone();
        for old in table.drain(table.len().min(to_len(wanted.into()))..) {
            changes.data.extend(self.data_clusters(old));
        }
        table.resize(to_len(wanted.into()), BitmapTableEntry::ZEROS);
        self.write_data_clusters(slot, &mut table, changes)?;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.0.to_be_bytes()).collect();
        let place = self.table_clusters(entry);
        if resized || !self.is_sole_owner(place)? {
            changes.moved = true;
            changes.rows.push(place);
            let row = self.new_row(&bytes, changes)?;
            entry.table_offset = HostOffset(row.first << self.geometry.cluster_bits());
            entry.table_entries = wanted;
            return Ok(());
        }
        for (number, (new, old)) in (0u64..).zip(table.chunks(64).zip(before.chunks(64))) {
            if new != old {
                let bytes: Vec<u8> = new.iter().flat_map(|entry| entry.0.to_be_bytes()).collect();
                changes.tables.push((entry.table_offset.0 + number * SECTOR, bytes));
            }
        }
        Ok(())
    }

    fn write_data_clusters(&self, slot: &Slot, table: &mut [BitmapTableEntry], changes: &mut Changes) -> Result<()> {
        let Some(bits) = &slot.bits else { return Ok(()) };
        let chunks = self.geometry.cluster_size() * 8 / CHUNK;
        let mut data = vec![0; self.geometry.cluster_len()];
        let mut free = Clusters { first: 0, count: 0 };
        for (done, &index) in (0u64..).zip(&slot.changed) {
            let Some(place) = table.get_mut(to_len(index)) else {
                break;
            };
            let old = self.data_clusters(*place);
            let piece = bits.piece(index * chunks..(index + 1) * chunks, &mut data);
            *place = match piece {
                Piece::Zeros => BitmapTableEntry::ZEROS,
                Piece::Ones => BitmapTableEntry::ONES,
                Piece::Mixed => {
                    let mut host = None;
                    if let Some(old) = old
                        && self.is_sole_owner(old)?
                        && !self.lock().guard.has(old.first)
                    {
                        host = Some(old.first);
                    }
                    if host.is_none() && free.count == 0 {
                        let wanted = (slot.changed.len() as u64 - done).min(64);
                        free = self.run(|state| state.allocate(wanted))?;
                        changes.taken.push(free);
                    }
                    let host = host.unwrap_or_else(|| {
                        free.first += 1;
                        free.count -= 1;
                        free.first - 1
                    });
                    let offset = HostOffset(host << self.geometry.cluster_bits());
                    self.write_file(offset, &data)?;
                    BitmapTableEntry::data(offset)
                }
            };
            let kept = place.data_offset().map(|offset| self.geometry.cluster_index(offset).0);
            changes.data.extend(old.filter(|old| Some(old.first) != kept));
        }
        if free.count > 0 {
            changes.data.push(free);
        }
        Ok(())
    }

    /// Writes a new table or directory to clusters next to each other.
    pub(super) fn new_row(&self, bytes: &[u8], changes: &mut Changes) -> Result<Clusters> {
        let count = self.geometry.clusters(bytes.len() as u64).max(1);
        let row = self.run(|state| state.allocate_row(count))?;
        changes.taken.push(row);
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(512), 0);
        let offset = HostOffset(row.first << self.geometry.cluster_bits());
        self.write_file(offset, &padded)?;
        self.lock().guard.add(row.first, row.count);
        Ok(row)
    }

    /// The table of a bitmap as it is on disk, as far as the file has it.
    pub(super) fn read_table(&self, entry: &Bitmap) -> Result<Vec<BitmapTableEntry>> {
        let storage = &*self.storage;
        let length = storage.length().map_err(Error::io("stat", storage))?;
        let there = length.saturating_sub(entry.table_offset.0);
        let bytes = there.min(u64::from(entry.table_entries) * 8);
        let mut table = vec![0; to_len(bytes & !7)];
        let filled = storage.read_at(entry.table_offset, &mut table);
        table.truncate(filled.map_err(Error::io("read", storage))?);
        let words = table.as_chunks::<8>().0.iter();
        Ok(words.map(|word| BitmapTableEntry(u64::from_be_bytes(*word))).collect())
    }

    /// Where the table of a bitmap lies.
    pub(super) fn table_clusters(&self, entry: &Bitmap) -> Clusters {
        Clusters {
            first: self.geometry.cluster_index(entry.table_offset).0,
            count: self.geometry.clusters(u64::from(entry.table_entries) * 8),
        }
    }

    /// The cluster that a valid table entry names.
    pub(super) fn data_clusters(&self, entry: BitmapTableEntry) -> Option<Clusters> {
        let offset = entry.data_offset()?;
        let valid = entry.reserved() == 0 && offset.is_aligned(self.geometry.cluster_size());
        valid.then(|| Clusters {
            first: self.geometry.cluster_index(offset).0,
            count: 1,
        })
    }

    /// Whether nothing else refers to clusters of a bitmap.
    fn is_sole_owner(&self, clusters: Clusters) -> Result<bool> {
        self.run(|state| {
            for cluster in clusters.first..clusters.first + clusters.count {
                if state.refcount(cluster)? != 1 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Gives up what nothing on disk names any more. What lies on the image's own tables was damaged before, and is left to a check.
    pub(super) fn drop_clusters(&self, changes: &Changes) {
        let mut state = self.lock();
        for &row in &changes.rows {
            state.guard.remove(row.first, row.count);
            state.unlink(row, true);
        }
        for &data in &changes.data {
            if !state.guard.has(data.first) {
                state.unlink(data, true);
            }
        }
    }

    /// Gives back what was taken for nothing.
    pub(super) fn release_all(&self, taken: &[Clusters]) {
        for &clusters in taken {
            self.lock().guard.remove(clusters.first, clusters.count);
            // What cannot be given back leaks, which a check repairs.
            let _ = self.run(|state| state.release(clusters));
        }
    }
}

/// Entries of the table of a bitmap of a disk of `size` bytes.
///
/// # Errors
/// [`Error::Limit`] if its data would be more than the format allows.
pub(super) fn table_entries(bitmap: &Bitmap, size: u64, cluster_size: u64) -> Result<u32> {
    let entries = bitmap.data_bytes(size).div_ceil(cluster_size);
    let wanted = entries.saturating_mul(cluster_size);
    let allowed = limits::MAX_BITMAP_BYTES;
    u32::try_from(entries)
        .ok()
        .filter(|_| wanted <= allowed)
        .ok_or(Error::Limit {
            limit: "bitmapBytes",
            allowed,
            wanted,
        })
}
