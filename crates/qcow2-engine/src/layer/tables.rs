//! The tables that are read whole: L1 tables and the snapshot table.

use std::sync::Arc;

use qcow2_format::header::Version;
use qcow2_format::{FormatError, Header, HostOffset, L1Entry, Snapshot, limits, parse_snapshot_table};

use super::open::OpenFile;
use super::{Layer, LayerOptions};
use crate::error::{Error, Result};
use crate::notice::Notice;

/// The first guess at a snapshot table's length, which nothing records.
const SNAPSHOT_TABLE_GUESS: u64 = 64 << 10;

pub(super) fn active_l1(
    header: &Header,
    file: &OpenFile<'_>,
    options: &LayerOptions,
    notices: &mut Vec<Notice>,
) -> Result<Arc<[L1Entry]>> {
    let bytes = u64::from(header.l1_entries) * 8;
    if bytes > 0 && !file.holds(header.l1_offset, bytes) {
        let fault = l1_truncated(header.l1_offset, bytes, file.length);
        if !options.for_check {
            return Err(file.fault(fault));
        }
        notices.push(Notice::new("L1_TRUNCATED", fault.to_string()));
    }
    if options.metadata_only && !options.for_check {
        return Ok(Arc::default());
    }
    read_l1(file, header.l1_offset, bytes, options)
}

/// The snapshot table and its length in bytes, or what is wrong with it.
pub(super) fn snapshot_table(
    header: &Header,
    file: &OpenFile<'_>,
) -> Result<Result<(Vec<Snapshot>, u64), FormatError>> {
    if header.snapshot_count == 0 {
        return Ok(Ok((Vec::new(), 0)));
    }
    let (offset, count) = (header.snapshots_offset, header.snapshot_count);
    let mut guess = SNAPSHOT_TABLE_GUESS.max(u64::from(count) * 64);
    loop {
        let bytes = file.read(offset, guess)?;
        let all = (bytes.len() as u64) < guess || guess >= limits::MAX_SNAPSHOT_TABLE_BYTES;
        match parse_snapshot_table(&bytes, offset, count, header.version == Version::V3) {
            Err(FormatError::SnapshotTableTruncated { .. }) if !all => {
                guess = (guess * 4).min(limits::MAX_SNAPSHOT_TABLE_BYTES);
            }
            other => return Ok(other),
        }
    }
}

/// The L1 table of the snapshot called `wanted` (ids before names) and the size of the disk at that time. Only this snapshot is refused for
/// what is wrong with its table.
pub(super) fn snapshot_view(layer: &Layer, wanted: &str) -> Result<(Arc<[L1Entry]>, u64)> {
    let missing = || {
        layer.state(
            "NO_SNAPSHOT",
            format!("there is no snapshot with the id or name '{wanted}'"),
        )
    };
    let image = layer.image().ok_or_else(missing)?;
    let named = |field: fn(&Snapshot) -> &[u8]| image.snapshots.iter().find(|s| field(s) == wanted.as_bytes());
    let snapshot = named(|s| &s.id).or_else(|| named(|s| &s.name)).ok_or_else(missing)?;
    snapshot_l1(layer, snapshot, layer.virtual_size())
}

/// The L1 table of a snapshot and the size of the disk at that time, which is `size` if the snapshot does not record it.
pub(super) fn snapshot_l1(layer: &Layer, snapshot: &Snapshot, size: u64) -> Result<(Arc<[L1Entry]>, u64)> {
    let Some(image) = layer.image() else {
        return Ok((Arc::default(), size));
    };
    let storage = &**layer.storage();
    let file = OpenFile {
        storage,
        length: storage.length().map_err(Error::io("stat", storage))?,
    };
    let (offset, bytes) = (snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8);
    let geometry = image.header.geometry;
    let fault = |reason| {
        file.fault(FormatError::SnapshotL1 {
            offset: snapshot.entry_offset.0,
            l1_offset: offset.0,
            entries: snapshot.l1_entries,
            reason,
        })
    };
    if bytes > limits::MAX_L1_BYTES {
        return Err(fault("is larger than 32 MiB"));
    }
    if !offset.is_aligned(geometry.cluster_size()) || (bytes > 0 && offset.0 == 0) {
        return Err(fault("is not at a cluster of its own"));
    }
    if bytes > 0 && !file.holds(offset, bytes) {
        return Err(fault("passes the end of the file"));
    }
    let virtual_size = snapshot.disk_size.map_or(size, |size| size & !511);
    if virtual_size > limits::MAX_VIRTUAL_SIZE {
        return Err(file.fault(FormatError::SnapshotSize {
            offset: snapshot.entry_offset.0,
            size: virtual_size,
        }));
    }
    if u64::from(snapshot.l1_entries) < geometry.l1_entries(virtual_size) {
        return Err(fault("does not cover the snapshot's disk size"));
    }
    let options = layer.options();
    if let Some(allowed) = options
        .limits
        .max_virtual_size
        .filter(|&allowed| virtual_size > allowed)
    {
        return Err(Error::Limit {
            limit: "maxVirtualSize",
            allowed,
            wanted: virtual_size,
        });
    }
    Ok((read_l1(&file, offset, bytes, options)?, virtual_size))
}

fn l1_truncated(offset: HostOffset, bytes: u64, length: u64) -> FormatError {
    FormatError::L1Truncated {
        offset: offset.0,
        end: offset.0.saturating_add(bytes),
        length,
    }
}

/// Reads an L1 table of `bytes` bytes, at most 32 MiB. Entries past the end of the file are absent.
fn read_l1(file: &OpenFile<'_>, offset: HostOffset, bytes: u64, options: &LayerOptions) -> Result<Arc<[L1Entry]>> {
    if bytes > options.limits.max_memory {
        return Err(Error::Limit {
            limit: "maxMemory",
            allowed: options.limits.max_memory,
            wanted: bytes,
        });
    }
    let bytes = file.read(offset, bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| L1Entry(u64::from_be_bytes(*word))).collect())
}
