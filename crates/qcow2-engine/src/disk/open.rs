//! Opening a disk for writing, and what comes before the first change and after the last.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, RwLock};
use std::sync::{Arc, PoisonError};

use qcow2_format::features::{autoclear, compatible, incompatible};
use qcow2_format::{Header, HostOffset, RefcountTableEntry, Snapshot};

use super::flush::FlushLog;
use super::raw::RawDisk;
use super::state::{State, to_len};
use super::weaken::Weaken;
use super::{Disk, DiskOptions, Image, Top, bitmaps};
use crate::chain::l1::L1Table;
use crate::chain::{Chain, ChainOptions};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::overlay::{Overlay, Sector};

/// What the state of an image is made of.
pub(super) struct Parts {
    pub(super) header: Header,
    pub(super) sector: Box<Sector>,
    pub(super) overlay: Arc<Overlay>,
    pub(super) l1: Arc<L1Table>,
    pub(super) refcount_table: Vec<u64>,
    pub(super) chain: Arc<Chain>,
    pub(super) snapshots: Vec<Snapshot>,
    /// Place and bytes of their table.
    pub(super) snapshot_table: (u64, u64),
    pub(super) table_bytes: u64,
    pub(super) refcounts_late: bool,
}

impl Disk {
    /// Puts `layers` on top of each other, top first, and makes the top writable. The top's storage, and that of its data file, are open for writing
    /// and the top was opened with [`LayerOptions::writable`](crate::LayerOptions).
    ///
    /// # Errors
    /// Those of [`Chain::new`]; [`Error::State`] with code `READ_ONLY`, `CORRUPT_IMAGE`, or `DIRTY` for an image that has to be repaired first.
    pub fn open(layers: Vec<Layer>, options: DiskOptions) -> Result<Self> {
        let overlay = Arc::new(Overlay::default());
        let chain_options = ChainOptions {
            cache_bytes: options.cache_bytes / 4 * 3,
            without_backing: options.without_backing,
            ..ChainOptions::default()
        };
        let chain = Arc::new(Chain::with_overlay(layers, chain_options, Some(overlay.clone()))?);
        let top = chain.layer(0).ok_or(Error::Closed)?;
        if !top.options().writable {
            return Err(top.state("READ_ONLY", "the image was opened for reading"));
        }
        let through = top.storage().writes_through();
        let top = if top.header().is_some() {
            Top::Image(Box::new(image(&chain, overlay, &options)?))
        } else {
            Top::Raw(RawDisk::new(top.storage().clone()))
        };
        Ok(Self {
            chain,
            top,
            gate: RwLock::default(),
            closed: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            through,
        })
    }
}

fn image(chain: &Arc<Chain>, overlay: Arc<Overlay>, options: &DiskOptions) -> Result<Image> {
    let view = chain.view(0).ok_or(Error::Closed)?;
    let layer = &view.layer;
    let header = layer.header().ok_or(Error::Closed)?.clone();
    if header.has(incompatible::CORRUPT) {
        let reason = "the image is marked corrupt: repair it before it is written";
        return Err(layer.state("CORRUPT_IMAGE", reason));
    }
    if header.has(incompatible::DIRTY) {
        return Err(layer.state("DIRTY", "the image was not closed: repair it before it is written"));
    }
    if layer.encryption().is_some() && header.autoclear & autoclear::RAW_DATA_FILE != 0 {
        let reason = "an encrypted data file is no raw image, though the image says so: only reading is possible";
        return Err(layer.state("ENCRYPTED_RAW_DATA_FILE", reason));
    }
    #[cfg(any(test, feature = "testing"))]
    let weaken = options.weaken;
    #[cfg(not(any(test, feature = "testing")))]
    let weaken = Weaken::default();
    let storage = layer.storage().clone();
    let mut sector = Box::new([0; 512]);
    storage
        .read_at(HostOffset(0), &mut *sector)
        .map_err(Error::io("read", &*storage))?;
    let parts = Parts {
        refcount_table: refcount_table(layer, &header)?,
        sector,
        overlay: overlay.clone(),
        l1: view.l1.clone(),
        chain: chain.clone(),
        snapshots: layer.snapshots().to_vec(),
        snapshot_table: (header.snapshots_offset.0, layer.snapshot_table_bytes()),
        table_bytes: options.cache_bytes / 4,
        refcounts_late: weaken.has(Weaken::REFCOUNTS_LATE),
        header: header.clone(),
    };
    let mut state = State::new(parts);
    state.quarantine.skip = weaken.has(Weaken::NO_QUARANTINE);
    state.quarantine.punch_always = weaken.has(Weaken::NO_PUNCH_CANCEL);
    let bitmaps = bitmaps::Recorder::new(layer)?;
    bitmaps.guard(&mut state);
    if let Some(place) = layer.extensions().and_then(|all| all.encryption) {
        state.guard.add_bytes(header.geometry, place.offset, place.length);
    }
    Ok(Image {
        storage,
        data_file: layer.data_file().cloned(),
        guest: layer.guest_data().clone(),
        chain: chain.clone(),
        overlay,
        geometry: header.geometry,
        rules: header.entry_rules(),
        state: Mutex::new(state),
        changed: Condvar::new(),
        flushing: Mutex::new(FlushLog::default()),
        seals: AtomicU64::new(0),
        wrote_file: AtomicBool::new(false),
        wrote_data: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
        unsure: AtomicBool::new(false),
        begun: AtomicBool::new(false),
        beginning: Mutex::default(),
        dirty_bytes: options.dirty_bytes,
        cache_bytes: options.cache_bytes,
        lazy: header.compatible & compatible::LAZY_REFCOUNTS != 0,
        bitmaps,
        weaken,
    })
}

/// The refcount table, as long as the header says, which is at most 8 MiB.
fn refcount_table(layer: &Layer, header: &Header) -> Result<Vec<u64>> {
    let storage = &**layer.storage();
    let bytes = header.refcount_table_bytes();
    let length = storage.length().map_err(Error::io("stat", storage))?;
    let offset = header.refcount_table_offset;
    if bytes == 0
        || offset
            .checked_add(bytes)
            .is_none_or(|end| end.0 > length.next_multiple_of(header.geometry.cluster_size()))
    {
        return Err(layer.state(
            "REFCOUNTS",
            "the refcount table is not there: check the image and repair it",
        ));
    }
    let mut table = vec![0; to_len(bytes)];
    storage
        .read_at(offset, &mut table)
        .map_err(Error::io("read", storage))?;
    let (words, _) = table.as_chunks::<8>();
    let mut blocks = Vec::with_capacity(words.len());
    for word in words {
        let block = RefcountTableEntry(u64::from_be_bytes(*word))
            .block_offset()
            .map_or(0, |offset| offset.0);
        if !block.is_multiple_of(header.geometry.cluster_size()) || block > 1 << 55 {
            return Err(layer.state(
                "REFCOUNTS",
                "a refcount block is misplaced: check the image and repair it",
            ));
        }
        blocks.push(block);
    }
    Ok(blocks)
}

impl Image {
    /// Before the first change: autoclear features that are not known here are cleared, bitmaps are marked as in use, and with lazy refcounts the
    /// image is marked dirty; all of that durably.
    pub(super) fn begin_writing(&self) -> Result<()> {
        let _beginning = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let (unknown, dirty) = {
            let state = self.lock();
            let dirty = self.lazy && state.header.is_version3() && !self.weaken.has(Weaken::NO_DIRTY_BIT);
            (state.header.durable.autoclear & !autoclear::KNOWN, dirty)
        };
        if unknown != 0 || dirty {
            self.switch_header(|fields| {
                fields.autoclear &= autoclear::KNOWN;
                if dirty {
                    fields.incompatible |= incompatible::DIRTY;
                }
            })?;
        }
        self.use_bitmaps()?;
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// After the last change: the image is clean.
    pub(super) fn end_writing(&self) -> Result<()> {
        let dirty = self.lock().header.durable.incompatible & incompatible::DIRTY != 0;
        if dirty && !self.unsure.load(Ordering::SeqCst) {
            self.switch_header(|fields| fields.incompatible &= !incompatible::DIRTY)?;
        }
        self.begun.store(false, Ordering::Release);
        Ok(())
    }
}
