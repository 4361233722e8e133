//! A bitmap of an image that is only read, and what becomes of it in another one.

use std::ops::Range;

use qcow2_format::GuestOffset;

use super::super::Disk;
use super::bits::Bits;
use super::load::{self, Budget};
use super::runs;
use crate::chain::Chain;
use crate::error::{Error, Result};

/// Dirty ranges that are handed over at a time.
const BATCH: usize = 4096;

/// What a bitmap of the top layer of a chain says, as it was stored.
#[derive(Debug)]
pub struct StoredBitmap {
    bits: Bits,
    granularity_bits: u8,
    size: u64,
}

impl StoredBitmap {
    /// Reads a bitmap into memory.
    ///
    /// # Errors
    /// [`Error::State`] with code `NO_BITMAP`, or `BITMAP_INCONSISTENT` if it was in use or is damaged; [`Error::Limit`] (`maxMemory`); [`Error::Io`].
    pub fn load(chain: &Chain, name: &str) -> Result<Self> {
        let layer = chain.layer(0).ok_or(Error::Closed)?;
        let Some(bitmap) = layer.bitmaps().iter().find(|bitmap| bitmap.name == name) else {
            return Err(layer.state("NO_BITMAP", format!("the image has no bitmap \"{name}\"")));
        };
        let mut budget = Budget::new(layer)?;
        let loaded = load::bitmap(layer, bitmap, &mut budget)?;
        let Some(bits) = loaded.and_then(|loaded| loaded.bits) else {
            let reason = format!("bitmap \"{name}\" is inconsistent: it can only be removed");
            return Err(layer.state("BITMAP_INCONSISTENT", reason));
        };
        Ok(Self {
            bits,
            granularity_bits: bitmap.granularity_bits,
            size: layer.virtual_size(),
        })
    }

    /// The first dirty ranges from `start` on, at most `max`, in order, cut at the end of the disk.
    pub fn dirty(&self, start: GuestOffset, max: usize) -> Vec<Range<u64>> {
        runs(&self.bits, self.granularity_bits, self.size, start.0, max)
    }

    /// Size of its disk in bytes.
    pub fn disk_size(&self) -> u64 {
        self.size
    }
}

impl Disk {
    /// Adds what is dirty in another image's bitmap to `target`. `dirty` gives its ranges from an offset on, at most as many as it is asked for, and
    /// `size` is that of its disk.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`]; [`Error::State`] with code `BITMAP_SIZES` if the disks have different sizes; what `dirty` fails with: what was
    /// handed over until then is dirty.
    pub fn bitmap_merge_from(
        &self,
        target: &str,
        size: u64,
        mut dirty: impl FnMut(GuestOffset, usize) -> Result<Vec<Range<u64>>>,
    ) -> Result<()> {
        // Also refuses a target that cannot be merged into, before anything is read.
        self.bitmap_mark(target, &[])?;
        let own = self.chain().virtual_size();
        if own != size {
            let reason = format!("a bitmap of a disk of {size} bytes cannot be merged into one of {own} bytes");
            return Err(self.image()?.bitmap_state("BITMAP_SIZES", reason));
        }
        let mut at = GuestOffset(0);
        loop {
            let ranges = dirty(at, BATCH)?;
            self.bitmap_mark(target, &ranges)?;
            match ranges.last() {
                Some(last) if ranges.len() == BATCH => at = GuestOffset(last.end),
                _ => return Ok(()),
            }
        }
    }
}
