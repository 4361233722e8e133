//! A disk that is written in place: *place → seal → prepare → publish → reclaim*.
//!
//! ```text
//! write ── place (under the lock: where to) ── write the bytes ── link (under the lock: entries in memory)
//! flush ── seal (what changed) ── prepare: contents ── barrier ── publish: pointers ── barrier ── reclaim what was unlinked
//! ```
//!
//! What tables say lives in [`State`]; what of that is newer than the file in an [`Overlay`].

mod amend;
mod bitmaps;
mod compressed;
mod flush;
pub(crate) mod guard;
mod header;
mod names;
mod open;
mod place;
mod raw;
mod reclaim;
mod refcounts;
mod resize;
mod snapshots;
mod state;
mod subclusters;
mod tables;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod weaken;
#[cfg(not(any(test, feature = "testing")))]
mod weaken;
mod write;
mod zero;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::{Arc, PoisonError};

use qcow2_format::entry::EntryRules;
use qcow2_format::{Geometry, GuestOffset};

pub use amend::AmendOptions;
pub use bitmaps::{BitmapInfo, NewBitmap, StoredBitmap};
pub use resize::ResizeOptions;
pub use snapshots::{NewSnapshot, SnapshotChoice};

use crate::chain::Chain;
use crate::error::{Error, Result};
use crate::layer::GuestData;
use crate::overlay::Overlay;
use crate::storage::Storage;
use flush::FlushLog;
use open::Parts;
use raw::RawDisk;
use state::State;
use weaken::Weaken;
use zero::Zeroing;

/// How a disk is opened for writing.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Byte budget of the caches, as for a chain.
    pub cache_bytes: u64,
    /// Bytes of metadata that may wait for a flush; reaching it runs one.
    pub dirty_bytes: u64,
    /// The last layer may name a backing file that is not there: what it leaves unallocated reads as zeros.
    pub without_backing: bool,
    /// Rules that are switched off, for tests of what finds that.
    #[cfg(any(test, feature = "testing"))]
    pub weaken: Weaken,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            cache_bytes: crate::chain::DEFAULT_CACHE_BYTES,
            dirty_bytes: 16 << 20,
            without_backing: false,
            #[cfg(any(test, feature = "testing"))]
            weaken: Weaken::default(),
        }
    }
}

/// A chain whose top layer is written. Shared between threads; every method may be called from any of them at any time.
#[derive(Debug)]
pub struct Disk {
    chain: Arc<Chain>,
    top: Top,
    /// Requests hold it shared; what changes the whole mapping holds it alone, which waits for those before and holds up those behind.
    gate: RwLock<()>,
    closed: AtomicBool,
    /// Raw files only: an image keeps its own.
    poisoned: AtomicBool,
    /// Every change is durable when its call returns, as if a flush followed it.
    through: bool,
}

/// What is written.
#[derive(Debug)]
enum Top {
    Image(Box<Image>),
    Raw(RawDisk),
}

/// A qcow2 image that is written in place.
#[derive(Debug)]
struct Image {
    storage: Arc<dyn Storage>,
    data_file: Option<Arc<dyn Storage>>,
    guest: GuestData,
    chain: Arc<Chain>,
    overlay: Arc<Overlay>,
    geometry: Geometry,
    rules: EntryRules,
    state: Mutex<State>,
    /// Something changed under the lock that others may wait for: a claim, a table that was loaded, a hole that was punched.
    changed: Condvar,
    flushing: Mutex<FlushLog>,
    /// How many flushes have sealed.
    seals: AtomicU64,
    wrote_file: AtomicBool,
    wrote_data: AtomicBool,
    poisoned: AtomicBool,
    /// Refcounts and COPIED flags may disagree: the image stays marked dirty.
    unsure: AtomicBool,
    /// What comes before the first change has been done.
    begun: AtomicBool,
    beginning: Mutex<()>,
    dirty_bytes: u64,
    cache_bytes: u64,
    lazy: bool,
    bitmaps: bitmaps::Recorder,
    weaken: Weaken,
}

impl Disk {
    /// The disk as a chain: what reads, maps and streams go through. It sees every write that has returned.
    pub fn chain(&self) -> &Arc<Chain> {
        &self.chain
    }

    /// Writes `bytes` at `offset`. When it returns, reads see them; they are durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a range that passes the end of the disk, [`Error::Io`], [`Error::State`] with code `POISONED`, [`Error::Closed`].
    /// If it fails, each byte of the range holds what it held or what was to be written.
    pub fn write(&self, offset: GuestOffset, bytes: &[u8]) -> Result<()> {
        let _request = self.request()?;
        self.check_range(offset, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        match &self.top {
            Top::Raw(raw) => raw.write(offset.0, bytes),
            Top::Image(image) => image.change(offset, bytes.len() as u64, || image.write(offset, bytes)),
        }?;
        self.settle()
    }

    /// Makes a range read as zeros. `unmap`: its space is given back; otherwise what is allocated stays so.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn write_zeroes(&self, offset: GuestOffset, length: u64, unmap: bool) -> Result<()> {
        let _request = self.request()?;
        self.check_range(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        match &self.top {
            Top::Raw(raw) => raw.zero(offset.0, length, unmap),
            Top::Image(image) => {
                let how = if unmap { Zeroing::Unmap } else { Zeroing::Keep };
                image.change(offset, length, || image.zero(offset, length, how))
            }
        }?;
        self.settle()
    }

    /// Says that nobody needs the bytes of a range: whole clusters of it are given back and read as zeros; the edges keep their bytes. Where an image
    /// of version 2 has a backing file nothing is done, since the backing file's bytes would come to light.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn discard(&self, offset: GuestOffset, length: u64) -> Result<()> {
        let _request = self.request()?;
        self.check_range(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        match &self.top {
            Top::Raw(raw) => raw.zero(offset.0, length, true),
            Top::Image(image) => image.change(offset, length, || image.discard(offset, length)),
        }?;
        self.settle()
    }

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// [`Error::Io`]. If a sync or the publish step failed, the disk is poisoned: later writes and flushes fail, reads go on.
    pub fn flush(&self) -> Result<()> {
        let _request = self.request()?;
        self.flush_top()
    }

    /// After a change: makes it durable if that is what every change is to be.
    fn settle(&self) -> Result<()> {
        match &self.top {
            Top::Image(_) if self.through => self.flush_top(),
            // What a raw file is written is on its device by itself.
            _ => Ok(()),
        }
    }

    fn flush_top(&self) -> Result<()> {
        match &self.top {
            Top::Raw(raw) => raw.flush().inspect_err(|_| self.poisoned.store(true, Ordering::SeqCst)),
            Top::Image(image) => image.flush(),
        }
    }

    /// Waits for the requests that were accepted, flushes, gives back what waits for that, stores bitmaps and marks the image clean. Later requests
    /// fail with [`Error::Closed`]; closing again does nothing.
    ///
    /// # Errors
    /// As [`Disk::flush`].
    pub fn close(&self) -> Result<()> {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        match &self.top {
            Top::Raw(raw) => raw.flush(),
            Top::Image(image) => image.close(),
        }
    }

    /// Stops all further writes, without flushing: for whoever ends while others may still hold the disk, and after a panic in the middle of a
    /// write.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
        if let Top::Image(image) = &self.top {
            image.poisoned.store(true, Ordering::SeqCst);
        }
    }

    /// A request begins.
    fn request(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let request = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.refuse()?;
        Ok(request)
    }

    /// Something begins that changes the whole mapping.
    fn alone(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        let alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.refuse()?;
        Ok(alone)
    }

    fn refuse(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        match &self.top {
            Top::Image(image) => image.refuse_poisoned(),
            Top::Raw(raw) if self.poisoned.load(Ordering::SeqCst) => Err(poisoned(&*raw.storage)),
            Top::Raw(_) => Ok(()),
        }
    }

    /// The image, for what a raw file does not have.
    fn image(&self) -> Result<&Image> {
        match &self.top {
            Top::Image(image) => Ok(image),
            Top::Raw(raw) => Err(Error::State {
                code: "RAW",
                path: raw.storage.path().map(Into::into),
                reason: "a raw file has no snapshots and no bitmaps".into(),
            }),
        }
    }

    fn check_range(&self, offset: GuestOffset, length: u64) -> Result<()> {
        let size = self.chain.virtual_size();
        if offset.0.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::Invalid {
            argument: "position",
            reason: format!("{length} bytes at {offset} pass the end of the disk at {size:#x}"),
        })
    }
}

impl Image {
    fn data(&self) -> &Arc<dyn Storage> {
        self.guest.storage()
    }

    fn rules(&self) -> &EntryRules {
        &self.rules
    }

    fn refuse_poisoned(&self) -> Result<()> {
        if self.poisoned.load(Ordering::SeqCst) {
            return Err(poisoned(&*self.storage));
        }
        Ok(())
    }

    /// Nothing more is written: what is on disk is not known any longer.
    fn poison(&self, _because: &Error) {
        self.poisoned.store(true, Ordering::SeqCst);
    }

    /// Changes a range of the disk, after what has to come before that.
    fn change(&self, offset: GuestOffset, length: u64, change: impl FnOnce() -> Result<()>) -> Result<()> {
        self.begin_change(offset, length)?;
        let ticket = self.chain.ticket();
        let outcome = change();
        drop(ticket);
        if self.weaken.has(Weaken::NO_QUARANTINE) {
            self.reclaim()?;
        }
        outcome
    }

    fn begin_change(&self, offset: GuestOffset, length: u64) -> Result<()> {
        if !self.begun.load(Ordering::Acquire) {
            self.begin_writing()?;
        }
        if self.overlay.dirty_bytes() > self.dirty_bytes {
            self.flush_with(true)?;
        }
        self.bitmaps.touch(offset.0, length);
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.refuse_poisoned()?;
        if !self.begun.load(Ordering::Acquire) {
            // Nothing was changed, but something may have been written by a repair.
            return self.flush_with(true);
        }
        self.flush_with(true)?;
        self.store_bitmaps()?;
        // Reclaiming changed refcounts.
        self.flush_with(true)?;
        self.end_writing()
    }
}

fn poisoned(storage: &dyn Storage) -> Error {
    Error::State {
        code: "POISONED",
        path: storage.path().map(Into::into),
        reason: "an earlier write or sync failed, so what is on disk is not known: close the disk and open it again"
            .into(),
    }
}
