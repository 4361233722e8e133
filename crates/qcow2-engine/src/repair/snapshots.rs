//! The snapshot table: entries that lack fields get them, and what no reader takes is let go.
//!
//! A new table is written behind everything else, its clusters are counted, and one sector of the header names it. What the old one took, and what
//! only let-go snapshots had, leaks from then on until the refcounts are mended.

use std::sync::Arc;

use qcow2_format::{
    HostOffset, SalvagedSnapshots, Snapshot, Table, Version, encode_snapshot_table, limits, salvage_snapshot_table,
};

use super::writer::Writer;
use super::{RepairOptions, RepairReport, open};
use crate::check::reader::Reader;
use crate::check::{CheckReport, Finding, FindingCode};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::storage::Storage;

/// What an image has of a snapshot table; none if it cannot be followed to its end.
pub(super) fn salvaged(layer: &Layer) -> Result<Option<SalvagedSnapshots>> {
    let Some(header) = layer.header().filter(|header| header.snapshot_count > 0) else {
        return Ok(None);
    };
    let storage = &**layer.storage();
    let reader = Reader::new(storage, header)?;
    let mut guess = 64 << 10;
    loop {
        let bytes = reader.read(header.snapshots_offset, guess);
        let bytes = bytes.map_err(Error::io("read", storage))?;
        let all = (bytes.len() as u64) < guess || guess > limits::MAX_SNAPSHOT_TABLE_BYTES;
        match salvage_snapshot_table(&bytes, header.snapshots_offset, header.snapshot_count) {
            Ok(salvaged) => return Ok(Some(salvaged)),
            Err(_) if !all => guess *= 4,
            Err(_) => return Ok(None),
        }
    }
}

/// Gives the image a table that is right, if what it has is not. Nothing is done while something refers to places that cannot be told: the new table
/// might lie in one of them.
pub(super) fn table(
    storage: &Arc<dyn Storage>,
    options: &RepairOptions,
    before: &CheckReport,
    report: &mut RepairReport,
) -> Result<()> {
    let wanted = |finding: &&Finding| {
        matches!(
            finding.code,
            FindingCode::SnapshotIncomplete | FindingCode::SnapshotExtra | FindingCode::SnapshotsOverhanging
        )
    };
    let findings: Vec<&Finding> = before.findings.iter().filter(wanted).collect();
    if findings.is_empty() || before.findings_omitted > 0 || before.findings.iter().any(is_guesswork) {
        return Ok(());
    }
    storage.sync().map_err(Error::io("sync", &**storage))?;
    let layer = open(storage, options)?;
    let (Some(header), Some(old)) = (layer.header(), salvaged(&layer)?) else {
        return Ok(());
    };
    let version3 = header.version == Version::V3;
    let mut list: Vec<Snapshot> = old.snapshots;
    for snapshot in &mut list {
        if version3 || snapshot.disk_size.is_some() {
            snapshot.disk_size.get_or_insert(header.virtual_size());
        }
        // Beside the fields that are known.
        snapshot
            .unknown_extra
            .truncate(limits::MAX_SNAPSHOT_EXTRA as usize - 24);
    }
    let geometry = header.geometry;
    let Ok(mut bytes) = encode_snapshot_table(&list, version3) else {
        return Ok(());
    };
    bytes.resize(bytes.len().next_multiple_of(geometry.cluster_len()), 0);
    let clusters = bytes.len() as u64 / geometry.cluster_size();
    let length = storage.length().map_err(Error::io("stat", &**storage))?;
    // Neither in the file nor counted: the end that a check found is behind both.
    let first = geometry.clusters(length.max(before.image_end_offset));
    let place = HostOffset(first << geometry.cluster_bits());
    let mut writer = Writer::new(storage.clone())?;
    writer.mark()?;
    if clusters > 0 {
        writer.write(place, &bytes)?;
        let counted = count(&layer, &mut writer, first, clusters)?;
        if !counted && !version3 {
            // There is no mark that would tell a crash from here on.
            return Ok(());
        }
    }
    let number = u32::try_from(list.len()).unwrap_or(u32::MAX);
    let place = if clusters > 0 { place } else { HostOffset(0) };
    writer.change_header(|sector| sector.set_snapshots(number, place))?;
    report.corruptions_fixed += findings.len() as u64;
    report
        .fixed
        .extend(findings.into_iter().take(options.max_findings).cloned());
    let end = header.snapshots_offset.0.saturating_add(old.length);
    report.moved = Some(geometry.cluster_index(header.snapshots_offset).0..geometry.clusters(end));
    Ok(())
}

/// Whether a finding means that nobody knows what is free.
fn is_guesswork(finding: &Finding) -> bool {
    use FindingCode as Code;
    let about_counts = matches!(
        finding.code,
        Code::Leak
            | Code::RefcountTooLow
            | Code::CopiedFlag
            | Code::SnapshotIncomplete
            | Code::SnapshotExtra
            | Code::SnapshotsOverhanging
            | Code::RefcountBlockReferences
            | Code::RefcountBlockOutside
            | Code::RefcountBlockUnaligned
    );
    let of_refcounts = finding.code == Code::ReservedBits && finding.table == Table::RefcountTable;
    !(about_counts || of_refcounts)
}

/// Sets refcounts to one where their blocks are there and at their place. `false`: some are left to be counted later.
fn count(layer: &Layer, writer: &mut Writer, first: u64, clusters: u64) -> Result<bool> {
    let Some(header) = layer.header() else {
        return Ok(false);
    };
    let (geometry, order) = (header.geometry, header.refcount_order);
    let reader = Reader::new(&**layer.storage(), header)?;
    let per_block = order.block_entries(geometry);
    for cluster in first..first.saturating_add(clusters) {
        let (index, within) = (cluster / per_block, cluster % per_block);
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| reader.refcount_table.get(index));
        let block = entry.and_then(|entry| entry.block_offset());
        let usable = |block: &HostOffset| {
            let alone = reader
                .refcount_table
                .iter()
                .filter(|entry| entry.block_offset() == Some(*block));
            block.is_aligned(geometry.cluster_size()) && block.0 < reader.file_length && alone.count() == 1
        };
        let Some(block) = block.filter(usable) else {
            return Ok(false);
        };
        let mut old = vec![0; geometry.cluster_len()];
        writer.read(block, &mut old)?;
        let mut new = old.clone();
        let within = usize::try_from(within).unwrap_or(usize::MAX);
        if order.set_at(&mut new, within, 1).is_none() {
            return Ok(false);
        }
        writer.write_changed(block, &old, &new)?;
    }
    Ok(true)
}
