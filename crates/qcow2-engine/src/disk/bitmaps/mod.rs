//! Dirty bitmaps: what was changed since when.
//!
//! While a disk is written, a bitmap that follows it is marked on disk as in use and kept in memory; closing stores it. After a crash it is what the
//! format calls inconsistent: nobody takes it for the truth.

mod bits;
mod change;
mod directory;
mod foreign;
mod load;
mod recorder;
mod store;

use std::ops::Range;
use std::sync::PoisonError;

use qcow2_format::GuestOffset;

use super::{Disk, Image, Top};
use crate::error::{Error, Result};
use bits::Bits;
pub use foreign::StoredBitmap;
pub(super) use recorder::Recorder;
use recorder::{Slot, Slots};

/// A new bitmap.
#[derive(Clone, Debug)]
pub struct NewBitmap {
    /// Its name, 1 to 1023 bytes, no control characters.
    pub name: String,
    /// Bytes that one bit stands for: a power of two from 512 to 2 GiB. None: as many as a cluster has, but at least 4 KiB and at most 64 KiB.
    pub granularity: Option<u64>,
    /// Whether it records from the beginning.
    pub enabled: bool,
}

/// What is known of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// It follows writes (`auto` on disk).
    pub enabled: bool,
    /// It was in use when its writer ended, or is damaged, so what it says is not known: only removing it helps.
    pub inconsistent: bool,
    /// Bytes that are dirty, in whole granules cut at the end of the disk.
    pub dirty_bytes: u64,
}

impl Disk {
    /// The bitmaps, in the image's order. None if their directory is damaged or stale.
    pub fn bitmaps(&self) -> Vec<BitmapInfo> {
        // Not while one is changed or stored.
        let _request = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let Top::Image(image) = &self.top else {
            return Vec::new();
        };
        let slots = image.bitmaps.lock();
        let info = |slot: &Slot| BitmapInfo {
            name: slot.entry.name.clone(),
            granularity: slot.entry.granularity(),
            enabled: slot.enabled,
            inconsistent: slot.bits.is_none(),
            dirty_bytes: slot.dirty_bytes(slots.size),
        };
        slots.list.iter().map(info).collect()
    }

    /// Adds a bitmap, durably.
    ///
    /// # Errors
    /// [`Error::State`] with code `BITMAP_EXISTS` or `BITMAP_UNSUPPORTED` (version 2, or a disk of size 0); [`Error::Limit`];
    /// [`Error::Invalid`]; [`Error::Format`] if the first cluster has no room to name it.
    pub fn bitmap_add(&self, new: NewBitmap) -> Result<()> {
        let _alone = self.alone()?;
        self.image()?.add_bitmap(new)
    }

    /// Removes a bitmap, durably; also one that is inconsistent.
    ///
    /// # Errors
    /// [`Error::State`] with code `NO_BITMAP`.
    pub fn bitmap_remove(&self, name: &str) -> Result<()> {
        let _alone = self.alone()?;
        self.image()?.remove_bitmap(name)
    }

    /// Makes nothing dirty.
    ///
    /// # Errors
    /// [`Error::State`] with code `NO_BITMAP` or `BITMAP_INCONSISTENT`.
    pub fn bitmap_clear(&self, name: &str) -> Result<()> {
        self.change_bitmap(name, |_, slot, cluster_bits| slot.clear(cluster_bits))
    }

    /// Whether the bitmap follows writes from now on.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_enable(&self, name: &str, enabled: bool) -> Result<()> {
        self.change_bitmap(name, |_, slot, _| slot.enabled = enabled)
    }

    /// Adds what is dirty in `source` to `target`, both of this disk. Their granularities may differ.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_merge(&self, target: &str, source: &str) -> Result<()> {
        let _alone = self.alone()?;
        self.image()?.merge_bitmaps(target, source)
    }

    /// Makes ranges dirty in a bitmap: what another image's bitmap says, for example. What of them is behind the end of the disk does not count.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_mark(&self, name: &str, ranges: &[Range<u64>]) -> Result<()> {
        self.change_bitmap(name, |size, slot, cluster_bits| {
            for range in ranges {
                slot.mark(range.start..range.end.min(size), cluster_bits);
            }
        })
    }

    /// The first dirty ranges from `start` on, at most `max`, in order, cut at the end of the disk.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_dirty(&self, name: &str, start: GuestOffset, max: usize) -> Result<Vec<Range<u64>>> {
        let _request = self.request()?;
        let image = self.image()?;
        let slots = image.bitmaps.lock();
        let index = image.consistent(&slots, name)?;
        let slot = slots.list.get(index);
        Ok(slot.map_or_else(Vec::new, |slot| ranges(slot, slots.size, start.0, max)))
    }

    fn change_bitmap(&self, name: &str, change: impl FnOnce(u64, &mut Slot, u32)) -> Result<()> {
        let _alone = self.alone()?;
        self.image()?.change_bitmap(name, change)
    }
}

/// Dirty ranges of a bitmap from `start` on.
fn ranges(slot: &Slot, size: u64, start: u64, max: usize) -> Vec<Range<u64>> {
    let bits = slot.bits.as_ref();
    bits.map_or_else(Vec::new, |bits| {
        runs(bits, slot.entry.granularity_bits, size, start, max)
    })
}

/// What set bits stand for, from `start` on.
fn runs(bits: &Bits, granularity_bits: u8, size: u64, start: u64, max: usize) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let shift = u32::from(granularity_bits);
    let mut at = start >> shift;
    while found.len() < max
        && let Some(run) = bits.run(at)
    {
        let range = (run.start << shift).max(start)..run.end.saturating_mul(1 << shift).min(size);
        at = run.end;
        if range.start < range.end {
            found.push(range);
        }
    }
    found
}

impl Image {
    /// Before the disk gets another size: no bitmap may be inconsistent, each must have room for it, and none counts on disk until it is stored.
    ///
    /// # Errors
    /// [`Error::State`] with code `BITMAP`; [`Error::Limit`].
    pub(super) fn hold_bitmaps(&self, size: u64) -> Result<()> {
        for slot in &self.bitmaps.lock().list {
            if slot.bits.is_none() {
                let name = &slot.entry.name;
                return Err(self.bitmap_state(
                    "BITMAP",
                    format!("bitmap \"{name}\" is inconsistent: remove it before the disk gets another size"),
                ));
            }
            if size == 0 {
                return Err(self.bitmap_state(
                    "BITMAP",
                    "a disk without a byte cannot have bitmaps: remove them first".into(),
                ));
            }
            store::table_entries(&slot.entry, size, self.geometry.cluster_size())?;
        }
        self.hold(|_| true)
    }

    /// Index of a bitmap whose bits are known.
    fn consistent(&self, slots: &Slots, name: &str) -> Result<usize> {
        let index = self.bitmap_index(slots, name)?;
        if slots.list.get(index).is_some_and(|slot| slot.bits.is_some()) {
            return Ok(index);
        }
        Err(self.bitmap_state(
            "BITMAP_INCONSISTENT",
            format!("bitmap \"{name}\" is inconsistent: it can only be removed"),
        ))
    }

    fn bitmap_index(&self, slots: &Slots, name: &str) -> Result<usize> {
        slots
            .find(name)
            .ok_or_else(|| self.bitmap_state("NO_BITMAP", format!("the image has no bitmap \"{name}\"")))
    }

    fn bitmap_state(&self, code: &'static str, reason: String) -> Error {
        Error::State {
            code,
            path: self.storage.path().map(Into::into),
            reason,
        }
    }
}
