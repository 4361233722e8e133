//! Adding, removing and changing bitmaps. Whoever calls holds the gate alone.

use std::collections::BTreeSet;

use qcow2_format::bitmap::{AUTO, Bitmap, IN_USE};
use qcow2_format::{HostOffset, limits};

use super::super::Image;
use super::super::state::to_len;
use super::NewBitmap;
use super::bits::Bits;
use super::recorder::Slot;
use super::store::{Changes, table_entries};
use crate::error::{Error, Result};

impl Image {
    pub(super) fn add_bitmap(&self, new: NewBitmap) -> Result<()> {
        let size = self.bitmaps.lock().size;
        let mut entry = self.new_entry(new, size)?;
        self.begin_writing()?;
        let mut slots = self.bitmaps.lock();
        let mut changes = Changes::default();
        // At most 8 MiB: see the limit above.
        let table = vec![0; to_len(u64::from(entry.table_entries) * 8)];
        let row = self.new_row(&table, &mut changes);
        let mut entries: Vec<Bitmap> = slots.list.iter().map(|slot| slot.entry.clone()).collect();
        let done = row.and_then(|row| {
            entry.table_offset = HostOffset(row.first << self.geometry.cluster_bits());
            entries.push(entry.clone());
            self.replace_directory(&mut slots, &entries)
        });
        if let Err(error) = done {
            self.release_all(&changes.taken);
            return Err(error);
        }
        slots.list.push(Slot {
            bits: Some(Bits::new(size.div_ceil(entry.granularity()))),
            enabled: entry.auto(),
            entry,
            changed: BTreeSet::new(),
            own: true,
            places: Vec::new(),
        });
        drop(slots);
        self.bitmaps.update();
        Ok(())
    }

    /// The directory entry of a new bitmap; its table has no place yet. One that is enabled is in use at once: the disk may change.
    fn new_entry(&self, new: NewBitmap, size: u64) -> Result<Bitmap> {
        let NewBitmap {
            name,
            granularity,
            enabled,
        } = new;
        let invalid = |argument, reason: &str| Error::Invalid {
            argument,
            reason: reason.into(),
        };
        if name.is_empty() || name.len() > usize::from(limits::MAX_BITMAP_NAME) {
            return Err(invalid("name", "a bitmap's name has 1 to 1023 bytes"));
        }
        if name.chars().any(char::is_control) {
            return Err(invalid("name", "a bitmap's name has no control characters"));
        }
        let cluster_size = self.geometry.cluster_size();
        let granularity = granularity.unwrap_or(cluster_size.clamp(4096, 65536));
        let granularity_bits = u8::try_from(granularity.trailing_zeros()).unwrap_or(u8::MAX);
        if !granularity.is_power_of_two() || !limits::BITMAP_GRANULARITY_BITS.contains(&granularity_bits) {
            return Err(invalid("granularity", "it is a power of two from 512 to 2 GiB"));
        }
        if !self.lock().header.is_version3() {
            let reason = "an image of version 2 cannot hold bitmaps";
            return Err(self.bitmap_state("BITMAP_UNSUPPORTED", reason.into()));
        }
        if size == 0 {
            // Its table would be empty, which the format does not have.
            let reason = "a disk without a byte cannot have bitmaps";
            return Err(self.bitmap_state("BITMAP_UNSUPPORTED", reason.into()));
        }
        let slots = self.bitmaps.lock();
        if slots.find(&name).is_some() {
            return Err(self.bitmap_state("BITMAP_EXISTS", format!("the image has a bitmap \"{name}\" already")));
        }
        let limit = |limit, allowed, wanted| Error::Limit { limit, allowed, wanted };
        let count = slots.list.len() as u64 + 1;
        if count > u64::from(limits::MAX_BITMAPS) {
            return Err(limit("bitmaps", u64::from(limits::MAX_BITMAPS), count));
        }
        let mut entry = Bitmap {
            table_offset: HostOffset(0),
            table_entries: 0,
            flags: if enabled { AUTO | IN_USE } else { 0 },
            granularity_bits,
            name,
        };
        entry.table_entries = table_entries(&entry, size, cluster_size)?;
        Ok(entry)
    }

    pub(super) fn remove_bitmap(&self, name: &str) -> Result<()> {
        self.bitmap_index(&self.bitmaps.lock(), name)?;
        self.begin_writing()?;
        let mut slots = self.bitmaps.lock();
        let index = self.bitmap_index(&slots, name)?;
        let mut entries: Vec<Bitmap> = slots.list.iter().map(|slot| slot.entry.clone()).collect();
        let gone = entries.remove(index);
        // Before anything of it can be written over.
        let own = slots.list.get(index).is_some_and(|slot| slot.own);
        let table = self.read_table(&gone)?;
        self.replace_directory(&mut slots, &entries)?;
        slots.list.remove(index);
        drop(slots);
        self.bitmaps.update();
        // What may be somebody else's leaks, which a check repairs.
        if own {
            self.drop_clusters(&Changes {
                data: table.iter().filter_map(|entry| self.data_clusters(*entry)).collect(),
                rows: vec![self.table_clusters(&gone)],
                ..Changes::default()
            });
        }
        Ok(())
    }

    /// Adds what is dirty in one bitmap to another.
    pub(super) fn merge_bitmaps(&self, target: &str, source: &str) -> Result<()> {
        self.consistent(&self.bitmaps.lock(), source)?;
        if source == target {
            return Ok(());
        }
        self.change_bitmap(target, |_, _, _| ())?;
        let mut slots = self.bitmaps.lock();
        let size = slots.size;
        let source = self.consistent(&slots, source)?;
        let Some(from) = slots.list.get_mut(source) else {
            return Ok(());
        };
        let (bits, shift) = (from.bits.take(), from.entry.granularity_bits);
        if let Some(to) = slots.list.iter_mut().find(|slot| slot.entry.name == target)
            && let Some(bits) = &bits
        {
            let mut at = 0;
            while let Some(run) = bits.run(at) {
                let end = run.end.saturating_mul(1 << shift).min(size);
                to.mark(run.start << shift..end, self.bitmaps.cluster_bits);
                at = run.end;
            }
        }
        if let Some(from) = slots.list.get_mut(source) {
            from.bits = bits;
        }
        Ok(())
    }

    /// Changes a bitmap in memory, once what the disk has of it does not count.
    pub(super) fn change_bitmap(&self, name: &str, change: impl FnOnce(u64, &mut Slot, u32)) -> Result<()> {
        self.consistent(&self.bitmaps.lock(), name)?;
        self.begin_writing()?;
        self.hold(|slot| slot.entry.name == name)?;
        let mut slots = self.bitmaps.lock();
        let size = slots.size;
        if let Some(slot) = slots.list.iter_mut().find(|slot| slot.entry.name == name) {
            change(size, slot, self.bitmaps.cluster_bits);
        }
        drop(slots);
        self.bitmaps.update();
        Ok(())
    }
}
