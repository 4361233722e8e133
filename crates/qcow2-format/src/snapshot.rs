//! The snapshot table (qcow2 specification, "Snapshots").

use crate::bytes::{be16, be32, be64, round_up_8};
use crate::error::FormatError;
use crate::limits;
use crate::units::HostOffset;

/// Bytes of an entry before its extra data.
const FIXED: u64 = 40;

/// An entry of the snapshot table. Its L1 table is *not* checked: a damaged snapshot must not keep the active disk from opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where the entry begins in the file.
    pub entry_offset: HostOffset,
    /// Where its L1 table lies.
    pub l1_offset: HostOffset,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Unique id, by convention a decimal number; the bytes as they stand.
    pub id: Vec<u8>,
    /// Name; the bytes as they stand.
    pub name: Vec<u8>,
    /// Seconds since 1970 when it was taken.
    pub date_sec: u32,
    /// Nanoseconds beside them.
    pub date_nsec: u32,
    /// The guest's clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of saved machine state.
    pub vm_state_size: u64,
    /// Virtual size in bytes at that time, if recorded.
    pub disk_size: Option<u64>,
    /// Instruction count, if recorded.
    pub icount: Option<u64>,
    /// Extra data behind the fields that are known here, kept as they are.
    pub unknown_extra: Vec<u8>,
}

/// What can be had of a snapshot table that is not as it should be.
#[derive(Clone, Debug, Default)]
pub struct SalvagedSnapshots {
    /// The entries. Of extra data, no more than a reader takes is kept; fields that version 3 wants may be lacking.
    pub snapshots: Vec<Snapshot>,
    /// Bytes of the table up to the last of them.
    pub length: u64,
    /// Entries with more extra data than a reader takes: their number in the table, and how many bytes they have.
    pub too_much: Vec<(u32, u32)>,
    /// Entries behind the largest length of a table, which nobody can read.
    pub overhanging: u32,
}

/// Reads a snapshot table as far as that goes, for whoever is to repair it. The parameters are those of [`parse_snapshot_table`].
///
/// # Errors
/// [`FormatError::SnapshotTableTruncated`].
pub fn salvage_snapshot_table(bytes: &[u8], offset: HostOffset, count: u32) -> Result<SalvagedSnapshots, FormatError> {
    let mut salvaged = SalvagedSnapshots::default();
    for index in 0..count {
        let at = salvaged.length;
        let entry_offset = HostOffset(offset.0.saturating_add(at));
        let truncated = FormatError::SnapshotTableTruncated {
            offset: entry_offset.0,
            index,
        };
        let entry = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
        let length = entry.and_then(entry_length);
        let (Some(entry), Some(length)) = (entry, length) else {
            return Err(truncated);
        };
        let end = round_up_8(at.saturating_add(length)).unwrap_or(u64::MAX);
        if end > limits::MAX_SNAPSHOT_TABLE_BYTES {
            salvaged.overhanging = count.saturating_sub(index);
            break;
        }
        let extra = be32(entry, 36).unwrap_or(0);
        let (snapshot, _) = if extra > limits::MAX_SNAPSHOT_EXTRA {
            salvaged.too_much.push((index, extra));
            parse_one(&cut_extra(entry, extra), entry_offset, index, false, truncated)?
        } else {
            parse_one(entry, entry_offset, index, false, truncated)?
        };
        salvaged.length = end;
        salvaged.snapshots.push(snapshot);
    }
    Ok(salvaged)
}

/// The length of an entry before it is rounded, as its fields say.
fn entry_length(entry: &[u8]) -> Option<u64> {
    let parts = [
        u64::from(be32(entry, 36)?),
        u64::from(be16(entry, 12)?),
        u64::from(be16(entry, 14)?),
    ];
    Some(parts.iter().fold(FIXED, |sum, part| sum.saturating_add(*part)))
}

/// An entry with no more extra data than a reader takes.
fn cut_extra(entry: &[u8], extra: u32) -> Vec<u8> {
    let most = limits::MAX_SNAPSHOT_EXTRA;
    let kept = FIXED.saturating_add(u64::from(most));
    let part = |begin: u64, end: u64| {
        let range = usize::try_from(begin).ok()?..usize::try_from(end).ok()?;
        entry.get(range)
    };
    let names = FIXED.saturating_add(u64::from(extra));
    let end = entry_length(entry).unwrap_or(0);
    let mut out = part(0, kept).unwrap_or_default().to_vec();
    if let Some(place) = out.get_mut(36..40) {
        place.copy_from_slice(&most.to_be_bytes());
    }
    out.extend_from_slice(part(names, end).unwrap_or_default());
    out
}

/// Reads a snapshot table of `count` entries that begins at `offset` of the file.
///
/// `bytes` begins there too and goes on as far as the file or the table's limit does. Returns the entries and the table's length in
/// bytes.
///
/// # Errors
/// [`FormatError::SnapshotTableTruncated`], [`FormatError::SnapshotTableTooLarge`], [`FormatError::SnapshotExtra`], or
/// [`FormatError::SnapshotIncomplete`] in a version 3 image.
pub fn parse_snapshot_table(
    bytes: &[u8],
    offset: HostOffset,
    count: u32,
    version3: bool,
) -> Result<(Vec<Snapshot>, u64), FormatError> {
    let mut snapshots = Vec::new();
    let mut at = 0u64;
    for index in 0..count {
        let entry_offset = HostOffset(offset.0.saturating_add(at));
        let truncated = FormatError::SnapshotTableTruncated {
            offset: entry_offset.0,
            index,
        };
        let Some(begin) = usize::try_from(at).ok().and_then(|at| bytes.get(at..)) else {
            return Err(truncated);
        };
        let (snapshot, length) = parse_one(begin, entry_offset, index, version3, truncated)?;
        at = round_up_8(at.saturating_add(length)).unwrap_or(u64::MAX);
        if at > limits::MAX_SNAPSHOT_TABLE_BYTES {
            return Err(FormatError::SnapshotTableTooLarge {
                offset: entry_offset.0,
                index,
                overhanging: count.saturating_sub(index),
            });
        }
        snapshots.push(snapshot);
    }
    Ok((snapshots, at))
}

fn parse_one(
    bytes: &[u8],
    entry_offset: HostOffset,
    index: u32,
    version3: bool,
    truncated: FormatError,
) -> Result<(Snapshot, u64), FormatError> {
    let fixed = || {
        Some((
            be64(bytes, 0)?,
            be32(bytes, 8)?,
            be16(bytes, 12)?,
            be16(bytes, 14)?,
            be32(bytes, 16)?,
            be32(bytes, 20)?,
        ))
    };
    let rest = || Some((be64(bytes, 24)?, be32(bytes, 32)?, be32(bytes, 36)?));
    let (
        Some((l1_offset, l1_entries, id_len, name_len, date_sec, date_nsec)),
        Some((vm_clock_nsec, vm_state, extra_len)),
    ) = (fixed(), rest())
    else {
        return Err(truncated);
    };
    if extra_len > limits::MAX_SNAPSHOT_EXTRA {
        return Err(FormatError::SnapshotExtra {
            offset: entry_offset.0,
            index,
            length: extra_len,
        });
    }
    if version3 && extra_len < 16 {
        return Err(FormatError::SnapshotIncomplete {
            offset: entry_offset.0,
            index,
            length: extra_len,
        });
    }
    let mut at = FIXED;
    let mut take = |length: u64| {
        let begin = at;
        at = at.saturating_add(length);
        bytes.get(usize::try_from(begin).ok()?..usize::try_from(at).ok()?)
    };
    let parts = (
        take(u64::from(extra_len)),
        take(u64::from(id_len)),
        take(u64::from(name_len)),
    );
    let (Some(extra), Some(id), Some(name)) = parts else {
        return Err(truncated);
    };
    let snapshot = Snapshot {
        entry_offset,
        l1_offset: HostOffset(l1_offset),
        l1_entries,
        id: id.to_vec(),
        name: name.to_vec(),
        date_sec,
        date_nsec,
        vm_clock_nsec,
        vm_state_size: be64(extra, 0).unwrap_or(u64::from(vm_state)),
        disk_size: be64(extra, 8),
        icount: be64(extra, 16).filter(|&icount| icount != u64::MAX),
        unknown_extra: extra.get(24..).unwrap_or_default().to_vec(),
    };
    Ok((snapshot, at))
}

/// The bytes of a snapshot table; [`Snapshot::entry_offset`] does not matter. Each entry carries the 24 bytes of extra data that QEMU writes in
/// both versions, and what stood behind them; one that has no disk size keeps lacking it (in a version 3 image that is a fault: give it one).
///
/// # Errors
/// [`FormatError::SnapshotName`], [`FormatError::SnapshotExtra`], [`FormatError::SnapshotTableTooLarge`] or [`FormatError::SnapshotCount`] for
/// what a reader would refuse; the offsets are those in the table.
pub fn encode_snapshot_table(snapshots: &[Snapshot], version3: bool) -> Result<Vec<u8>, FormatError> {
    let mut out = Vec::new();
    let count = u32::try_from(snapshots.len()).unwrap_or(u32::MAX);
    if count > limits::MAX_SNAPSHOTS {
        return Err(FormatError::SnapshotCount { count });
    }
    for (index, snapshot) in (0u32..).zip(snapshots) {
        let offset = out.len() as u64;
        encode_one(&mut out, snapshot, index, version3)?;
        if out.len() as u64 > limits::MAX_SNAPSHOT_TABLE_BYTES {
            let overhanging = count.saturating_sub(index);
            return Err(FormatError::SnapshotTableTooLarge {
                offset,
                index,
                overhanging,
            });
        }
    }
    Ok(out)
}

fn encode_one(out: &mut Vec<u8>, snapshot: &Snapshot, index: u32, version3: bool) -> Result<(), FormatError> {
    let offset = out.len() as u64;
    let length_of = |text: &[u8]| {
        u16::try_from(text.len()).map_err(|_| FormatError::SnapshotName {
            offset,
            index,
            length: text.len() as u64,
        })
    };
    let extra = extra_data(snapshot);
    let length = u32::try_from(extra.len()).unwrap_or(u32::MAX);
    if length > limits::MAX_SNAPSHOT_EXTRA {
        return Err(FormatError::SnapshotExtra { offset, index, length });
    }
    if version3 && length < 16 {
        return Err(FormatError::SnapshotIncomplete { offset, index, length });
    }
    out.extend_from_slice(&snapshot.l1_offset.0.to_be_bytes());
    out.extend_from_slice(&snapshot.l1_entries.to_be_bytes());
    out.extend_from_slice(&length_of(&snapshot.id)?.to_be_bytes());
    out.extend_from_slice(&length_of(&snapshot.name)?.to_be_bytes());
    out.extend_from_slice(&snapshot.date_sec.to_be_bytes());
    out.extend_from_slice(&snapshot.date_nsec.to_be_bytes());
    out.extend_from_slice(&snapshot.vm_clock_nsec.to_be_bytes());
    // Who reads only this field shall rather see no machine state than a part of it.
    let vm_state = u32::try_from(snapshot.vm_state_size).unwrap_or(0);
    out.extend_from_slice(&vm_state.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&extra);
    out.extend_from_slice(&snapshot.id);
    out.extend_from_slice(&snapshot.name);
    out.resize(out.len().next_multiple_of(8), 0);
    Ok(())
}

fn extra_data(snapshot: &Snapshot) -> Vec<u8> {
    let mut extra = snapshot.vm_state_size.to_be_bytes().to_vec();
    if let Some(disk_size) = snapshot.disk_size {
        extra.extend_from_slice(&disk_size.to_be_bytes());
        extra.extend_from_slice(&snapshot.icount.unwrap_or(u64::MAX).to_be_bytes());
        extra.extend_from_slice(&snapshot.unknown_extra);
    }
    extra
}
