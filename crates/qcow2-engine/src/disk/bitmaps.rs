//! Dirty bitmaps: what was changed since when.

use std::ops::Range;

use qcow2_format::GuestOffset;

use super::{Disk, Image};
use crate::error::Result;
use crate::layer::Layer;

/// A new bitmap.
#[derive(Clone, Debug)]
pub struct NewBitmap {
    /// Its name, 1 to 1023 bytes.
    pub name: String,
    /// Bytes that one bit stands for: a power of two from 512 to 2 GiB. None: 65536.
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
    /// It was in use when its writer ended, so what it says is not known: only removing it helps.
    pub inconsistent: bool,
    /// Bytes that are dirty, in whole granules cut at the end of the disk.
    pub dirty_bytes: u64,
}

impl Disk {
    /// The bitmaps, in the image's order.
    pub fn bitmaps(&self) -> Vec<BitmapInfo> {
        Vec::new()
    }

    /// Adds a bitmap, durably.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `BITMAP_EXISTS` or `BITMAP_UNSUPPORTED` (version 2); [`Error::Limit`](crate::Error::Limit);
    /// [`Error::Invalid`](crate::Error::Invalid).
    pub fn bitmap_add(&self, new: NewBitmap) -> Result<()> {
        let _ = new;
        Err(later())
    }

    /// Removes a bitmap, durably; also one that is inconsistent.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `NO_BITMAP`.
    pub fn bitmap_remove(&self, name: &str) -> Result<()> {
        let _ = name;
        Err(later())
    }

    /// Makes nothing dirty.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `NO_BITMAP` or `BITMAP_INCONSISTENT`.
    pub fn bitmap_clear(&self, name: &str) -> Result<()> {
        let _ = name;
        Err(later())
    }

    /// Whether the bitmap follows writes from now on.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_enable(&self, name: &str, enabled: bool) -> Result<()> {
        let _ = (name, enabled);
        Err(later())
    }

    /// Adds what is dirty in `source` to `target`, both of this disk.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_merge(&self, target: &str, source: &str) -> Result<()> {
        let _ = (target, source);
        Err(later())
    }

    /// Makes ranges dirty in a bitmap: what another image's bitmap says, for example.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_mark(&self, name: &str, ranges: &[Range<u64>]) -> Result<()> {
        let _ = (name, ranges);
        Err(later())
    }

    /// The first dirty ranges from `start` on, at most `max`, in order, cut at the end of the disk.
    ///
    /// # Errors
    /// As [`Disk::bitmap_clear`].
    pub fn bitmap_dirty(&self, name: &str, start: GuestOffset, max: usize) -> Result<Vec<Range<u64>>> {
        let _ = (name, start, max);
        Err(later())
    }
}

/// The bitmaps of an open image.
#[derive(Debug)]
pub(super) struct Recorder {}

impl Recorder {
    pub(super) fn new(_layer: &Layer) -> Result<Self> {
        Ok(Self {})
    }

    /// A range of the disk is about to change.
    pub(super) fn touch(&self, _offset: u64, _length: u64) {}
}

impl Image {
    /// Before the first change.
    pub(super) fn use_bitmaps(&self) -> Result<()> {
        Ok(())
    }

    /// The disk is about to change its size.
    pub(super) fn resize_bitmaps(&self, _old: u64, _new: u64) -> Result<()> {
        Ok(())
    }

    /// After the last one.
    pub(super) fn store_bitmaps(&self) -> Result<()> {
        Ok(())
    }
}

fn later() -> crate::Error {
    crate::Error::State {
        code: "NOT_YET",
        path: None,
        reason: "not there yet".into(),
    }
}
