//! A disk that is written in place: *place → seal → prepare → publish → reclaim*.

mod bitmaps;
mod resize;
mod snapshots;

use std::sync::Arc;

use qcow2_format::GuestOffset;

pub use bitmaps::{BitmapInfo, NewBitmap};
pub use resize::ResizeOptions;
pub use snapshots::{NewSnapshot, SnapshotChoice};

use crate::chain::Chain;
use crate::error::{Error, Result};
use crate::layer::Layer;

/// How a disk is opened for writing.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Byte budget of the caches, as for a chain.
    pub cache_bytes: u64,
    /// Bytes of metadata that may wait for a flush; reaching it runs one.
    pub dirty_bytes: u64,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            cache_bytes: crate::chain::DEFAULT_CACHE_BYTES,
            dirty_bytes: 8 << 20,
        }
    }
}

/// A chain whose top layer is written. Shared between threads; every method may be called from any of them at any time.
#[derive(Debug)]
pub struct Disk {
    chain: Arc<Chain>,
}

impl Disk {
    /// Puts `layers` on top of each other, top first, and makes the top writable. The top's storage, and that of its data file, are open for writing
    /// and the top was opened with [`LayerOptions::writable`](crate::LayerOptions).
    ///
    /// # Errors
    /// Those of [`Chain::new`]; [`Error::State`] with code `READ_ONLY` or `CORRUPT_IMAGE`; errors of repairing a dirty image.
    pub fn open(layers: Vec<Layer>, options: DiskOptions) -> Result<Self> {
        let _ = (layers, options);
        Err(later())
    }

    /// The disk as a chain: what reads, maps and streams go through. It sees every write that has returned.
    pub fn chain(&self) -> &Arc<Chain> {
        &self.chain
    }

    /// Writes `bytes` at `offset`. When it returns, reads see them; they are durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a range that passes the end of the disk, [`Error::Io`], [`Error::State`] with code `POISONED` or `CLOSED`.
    pub fn write(&self, offset: GuestOffset, bytes: &[u8]) -> Result<()> {
        let _ = (offset, bytes);
        Err(later())
    }

    /// Makes a range read as zeros. `unmap`: its space is given back; otherwise what is allocated stays so.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn write_zeroes(&self, offset: GuestOffset, length: u64, unmap: bool) -> Result<()> {
        let _ = (offset, length, unmap);
        Err(later())
    }

    /// Says that nobody needs the bytes of a range: whole clusters of it are given back and read as zeros; the edges keep their bytes.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn discard(&self, offset: GuestOffset, length: u64) -> Result<()> {
        let _ = (offset, length);
        Err(later())
    }

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// [`Error::Io`]. If a sync or the publish step failed, the disk is poisoned: later writes and flushes fail, reads go on.
    pub fn flush(&self) -> Result<()> {
        Err(later())
    }

    /// Waits for the requests that were accepted, flushes, gives back what waits for that, stores bitmaps and marks the image clean. Later requests
    /// fail with `CLOSED`; closing again does nothing.
    ///
    /// # Errors
    /// As [`Disk::flush`].
    pub fn close(&self) -> Result<()> {
        Err(later())
    }
}

fn later() -> Error {
    Error::State {
        code: "NOT_YET",
        path: None,
        reason: "not there yet".into(),
    }
}
