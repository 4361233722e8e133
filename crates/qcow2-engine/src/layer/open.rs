//! Opening: every number is checked against the format by `qcow2-format`, and against the file here.

use std::sync::Arc;

use qcow2_format::bitmap::Bitmap;
use qcow2_format::features::{autoclear, incompatible};
use qcow2_format::{Extensions, FormatError, Header, HostOffset, limits};

use super::{Container, GuestData, Image, Layer, LayerOptions, tables};
use crate::error::{Error, Result};
use crate::lock::{ImageLock, Locking};
use crate::luks::LuksVolume;
use crate::notice::Notice;
use crate::progress::JobContext;
use crate::repair::{RepairMode, RepairOptions, repair_locked};
use crate::storage::Storage;

/// Enough of a file to tell its cluster size.
const PREFIX: u64 = 512;

pub(super) fn raw(storage: Arc<dyn Storage>, options: &LayerOptions) -> Result<Layer> {
    let (locks, notices) = lock(&storage, options)?;
    let length = storage.length().map_err(Error::io("stat", &*storage))?;
    // A length so near the end of the number range that it cannot be rounded up is no file's.
    let virtual_size = length.checked_next_multiple_of(512).unwrap_or(length & !511);
    check_virtual_size(virtual_size, options)?;
    Ok(Layer {
        guest: GuestData::new(storage.clone(), None),
        storage,
        data_file: None,
        locks,
        image: None,
        container: None,
        virtual_size,
        notices,
        options: *options,
    })
}

pub(super) fn luks_container(
    storage: Arc<dyn Storage>,
    header: Option<Arc<dyn Storage>>,
    options: &LayerOptions,
) -> Result<Layer> {
    let (mut locks, mut notices) = lock(&storage, options)?;
    if let Some(header) = &header {
        let (more, noticed) = lock(header, options)?;
        locks.extend(more);
        notices.extend(noticed);
    }
    let length = storage.length().map_err(Error::io("stat", &*storage))?;
    let detached = header.is_some();
    let header = header.unwrap_or_else(|| storage.clone());
    // Where the header has a file of its own, the payload is in another one.
    let room = if detached { u64::MAX } else { length };
    let volume = LuksVolume::read(&header, HostOffset(0), room)?;
    let container = Container {
        volume,
        header,
        open: false,
    };
    let payload = container.payload();
    let reason = match () {
        () if payload == 0 && !detached && !options.metadata_only => {
            "it is one of its own: the payload is in another file"
        }
        () if payload > length => "its payload begins behind the end",
        () => "",
    };
    if !reason.is_empty() {
        return Err(Error::Format {
            path: storage.path().map(Into::into),
            error: FormatError::LuksHeader { offset: 104, reason },
        });
    }
    let there = if payload == 0 && !detached {
        0
    } else {
        length.saturating_sub(payload)
    };
    let virtual_size = there & !511;
    check_virtual_size(virtual_size, options)?;
    Ok(Layer {
        guest: GuestData::new(storage.clone(), None),
        storage,
        data_file: None,
        locks,
        image: None,
        container: Some(container),
        virtual_size,
        notices,
        options: *options,
    })
}

pub(super) fn qcow2(storage: Arc<dyn Storage>, options: &LayerOptions) -> Result<Layer> {
    let held = lock(&storage, options)?;
    let layer = unlocked(storage.clone(), options, held)?;
    if !options.writable || options.metadata_only || options.for_check {
        return Ok(layer);
    }
    writable(layer)
}

/// An image that is to be written must be sound. One that was not closed is repaired first, under the locks that were taken.
fn writable(mut layer: Layer) -> Result<Layer> {
    let marked = |layer: &Layer, bit| layer.header().is_some_and(|header| header.has(bit));
    if marked(&layer, incompatible::CORRUPT) {
        let reason = "the image is marked corrupt: repair it before it is written";
        return Err(layer.state("CORRUPT_IMAGE", reason));
    }
    if !marked(&layer, incompatible::DIRTY) {
        return Ok(layer);
    }
    let repair = RepairOptions {
        mode: RepairMode::All,
        locking: Locking::Off,
        limits: layer.options().limits,
        max_findings: 0,
    };
    let report = repair_locked(layer.storage(), &repair, &JobContext::quiet())?;
    let held = (std::mem::take(&mut layer.locks), Vec::new());
    let (storage, options) = (layer.storage().clone(), *layer.options());
    let mut layer = unlocked(storage, &options, held)?;
    if marked(&layer, incompatible::DIRTY) {
        let reason = "the image was not closed, and its tables cannot be followed to repair it: check it";
        return Err(layer.state("DIRTY", reason));
    }
    layer.notices.push(Notice::new(
        "REPAIRED",
        format!(
            "the image was not closed: {} refcounts and flags were mended, {} leaked clusters given back",
            report.corruptions_fixed, report.leaks_fixed
        ),
    ));
    Ok(layer)
}

pub(super) fn unlocked(
    storage: Arc<dyn Storage>,
    options: &LayerOptions,
    (locks, mut notices): (Vec<ImageLock>, Vec<Notice>),
) -> Result<Layer> {
    let file = OpenFile {
        length: storage.length().map_err(Error::io("stat", &*storage))?,
        storage: &*storage,
    };
    let cluster_size = Header::cluster_size(&file.read(HostOffset(0), PREFIX)?).map_err(|e| file.fault(e))?;
    let cluster = file.read(HostOffset(0), cluster_size)?;
    let header =
        Header::parse(&cluster).map_err(|e| file.fault(Extensions::unknown_features(&cluster).unwrap_or(e)))?;
    let extensions = Extensions::parse(&cluster, &header).map_err(|e| file.fault(e))?;

    check_virtual_size(header.virtual_size(), options)?;
    note_features(&header, &extensions, &mut notices);
    note_refcount_table(&header, file.length, &mut notices);
    let (snapshots, snapshot_table_bytes, snapshot_fault) = snapshots(&header, &file, options, &mut notices)?;
    let (bitmaps, bitmap_fault) = bitmaps(&header, &extensions, &file, &mut notices)?;
    let l1 = tables::active_l1(&header, &file, options, &mut notices)?;
    let luks = luks(&extensions, &storage, options)?;
    Ok(Layer {
        virtual_size: header.virtual_size(),
        image: Some(Box::new(Image {
            rules: header.entry_rules(),
            header,
            extensions,
            l1,
            snapshots,
            snapshot_table_bytes,
            snapshot_fault,
            bitmaps,
            bitmap_fault,
            luks,
        })),
        container: None,
        guest: GuestData::new(storage.clone(), None),
        storage,
        data_file: None,
        locks,
        notices,
        options: *options,
    })
}

/// A file whose length is known.
pub(super) struct OpenFile<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) length: u64,
}

impl OpenFile<'_> {
    /// Up to `length` bytes at `offset`: as many as the file has there. What is allocated is bounded by the file's length.
    pub(super) fn read(&self, offset: HostOffset, length: u64) -> Result<Vec<u8>> {
        let there = self.length.saturating_sub(offset.0).min(length);
        let wanted = usize::try_from(there).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(wanted).map_err(|_| Error::Limit {
            limit: "maxMemory",
            allowed: 0,
            wanted: there,
        })?;
        bytes.resize(wanted, 0);
        let filled = self
            .storage
            .read_at(offset, &mut bytes)
            .map_err(Error::io("read", self.storage))?;
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Whether `length` bytes at `offset` lie inside the file.
    pub(super) fn holds(&self, offset: HostOffset, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end.0 <= self.length)
    }

    pub(super) fn fault(&self, error: FormatError) -> Error {
        Error::Format {
            path: self.storage.path().map(Into::into),
            error,
        }
    }
}

fn lock(storage: &Arc<dyn Storage>, options: &LayerOptions) -> Result<(Vec<ImageLock>, Vec<Notice>)> {
    if options.writable && options.force_share {
        return Err(Error::Invalid {
            argument: "forceShare",
            reason: "what is written is not shared with others who write".to_owned(),
        });
    }
    let (lock, notice) = ImageLock::acquire(storage.clone(), options.lock_mode(), options.locking)?;
    let mut notices = Vec::from_iter(notice);
    if options.force_share {
        notices.push(Notice::new(
            "MAY_BE_TORN",
            "another process may be writing: what is read may be torn",
        ));
    }
    Ok((vec![lock], notices))
}

fn check_virtual_size(wanted: u64, options: &LayerOptions) -> Result<()> {
    match options.limits.max_virtual_size {
        Some(allowed) if wanted > allowed => Err(Error::Limit {
            limit: "maxVirtualSize",
            allowed,
            wanted,
        }),
        _ => Ok(()),
    }
}

/// The LUKS header. A cipher that is not known here forbids to read guest data, and nothing else.
fn luks(
    extensions: &Extensions,
    storage: &Arc<dyn Storage>,
    options: &LayerOptions,
) -> Result<Option<Result<LuksVolume>>> {
    let Some(place) = extensions.encryption else {
        return Ok(None);
    };
    match LuksVolume::read(storage, place.offset, place.length) {
        Err(error @ (Error::Format { .. } | Error::Io { .. })) if !options.for_check => Err(error),
        read => Ok(Some(read)),
    }
}

fn note_features(header: &Header, extensions: &Extensions, notices: &mut Vec<Notice>) {
    if header.has(incompatible::DIRTY) {
        notices.push(Notice::new(
            "DIRTY",
            "the image was not closed: refcounts may be wrong until it is repaired",
        ));
    }
    if header.has(incompatible::CORRUPT) {
        notices.push(Notice::new(
            "CORRUPT",
            "the image is marked corrupt: it must be repaired before it is written",
        ));
    }
    let unknown = header.autoclear & !autoclear::KNOWN;
    if unknown != 0 {
        notices.push(Notice::new(
            "UNKNOWN_AUTOCLEAR",
            format!("the image has autoclear features that are not known here: bits {unknown:#x}"),
        ));
    }
    if extensions.bitmaps.is_some() && header.autoclear & autoclear::BITMAPS == 0 {
        notices.push(Notice::new(
            "BITMAPS_STALE",
            "a program that does not know bitmaps wrote the image: its bitmaps are stale",
        ));
    }
}

fn note_refcount_table(header: &Header, length: u64, notices: &mut Vec<Notice>) {
    let offset = header.refcount_table_offset;
    let end = offset.checked_add(header.refcount_table_bytes());
    let reason = match () {
        () if header.refcount_table_clusters == 0 => "the image has no refcount table",
        () if offset.0 == 0 => "the refcount table lies in the header",
        () if end.is_none_or(|end| end.0 > length) => "the refcount table passes the end of the file",
        () => return,
    };
    notices.push(Notice::new(
        "REFCOUNT_TABLE",
        format!("{reason}: it must be repaired before it is written"),
    ));
}

type Snapshots = (Vec<qcow2_format::Snapshot>, u64, Option<FormatError>);

fn snapshots(
    header: &Header,
    file: &OpenFile<'_>,
    options: &LayerOptions,
    notices: &mut Vec<Notice>,
) -> Result<Snapshots> {
    match tables::snapshot_table(header, file)? {
        Ok((snapshots, bytes)) => Ok((snapshots, bytes, None)),
        Err(fault) if options.for_check => {
            notices.push(Notice::new("SNAPSHOT_TABLE", fault.to_string()));
            Ok((Vec::new(), 0, Some(fault)))
        }
        Err(fault) => Err(file.fault(fault)),
    }
}

fn bitmaps(
    header: &Header,
    extensions: &Extensions,
    file: &OpenFile<'_>,
    notices: &mut Vec<Notice>,
) -> Result<(Vec<Bitmap>, Option<FormatError>)> {
    let Some(directory) = extensions.bitmaps else {
        return Ok((Vec::new(), None));
    };
    if header.autoclear & autoclear::BITMAPS == 0 {
        return Ok((Vec::new(), None));
    }
    let (offset, size) = (directory.directory_offset, directory.directory_size);
    let misplaced = |reason| FormatError::BitmapDirectory {
        offset: offset.0,
        index: 0,
        reason,
    };
    let parsed = if size == 0 || size > limits::MAX_BITMAP_DIRECTORY_BYTES {
        Err(misplaced("the directory's size is not valid"))
    } else if offset.0 == 0 || !offset.is_aligned(header.geometry.cluster_size()) {
        Err(misplaced("the directory's offset is not valid"))
    } else if !file.holds(offset, size) {
        Err(misplaced("the directory passes the end of the file"))
    } else {
        let bytes = file.read(offset, size)?;
        qcow2_format::bitmap::parse_directory(&bytes, offset, directory.count, header.geometry)
    };
    Ok(match parsed {
        Ok(bitmaps) => (bitmaps, None),
        Err(fault) => {
            notices.push(Notice::new("BITMAPS", format!("the bitmaps cannot be used: {fault}")));
            (Vec::new(), Some(fault))
        }
    })
}
