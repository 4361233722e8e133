//! L2 entries that can be mended one by one: zero clusters that keep a host cluster which is none.

use std::sync::Arc;

use qcow2_format::sector::SECTOR_LENGTH;
use qcow2_format::{HostOffset, L2Entry};

use super::snapshots::salvaged;
use super::writer::Writer;
use super::{RepairOptions, RepairReport, open};
use crate::check::reader::Reader;
use crate::check::{CheckOptions, CheckReport, Finding, FindingCode, check};
use crate::disk::guard::Guard;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::progress::JobContext;
use crate::storage::Storage;

/// Findings that are worked on at a time, if they are more than a report keeps.
const AT_A_TIME: usize = 200_000;
/// Rounds in which something has to be mended.
const ROUNDS: usize = 64;
/// What is left of such an entry: that it reads as zeros. With subclusters their bitmap says so, and nothing is left.
const ZERO: u64 = 1;
const SECTOR: u64 = SECTOR_LENGTH as u64;

/// Takes the host offset, and bits that mean nothing, out of entries that read as zeros and whose host offset is not aligned: nothing can be there, so
/// nothing is lost. One sector each. What other findings hide behind these, such as refcounts that nobody may trust, can be mended then.
pub(super) fn zero_clusters(
    storage: &Arc<dyn Storage>,
    options: &RepairOptions,
    before: &CheckReport,
    context: &JobContext,
    report: &mut RepairReport,
) -> Result<()> {
    let is_wanted = |finding: &&Finding| finding.code == FindingCode::UnalignedZero;
    let omitted = before.findings_omitted > 0;
    if !omitted && !before.findings.iter().any(|finding| is_wanted(&finding)) {
        return Ok(());
    }
    storage.sync().map_err(Error::io("sync", &**storage))?;
    let layer = open(storage, options)?;
    let guard = guard_of(&layer)?;
    let mut writer = Writer::new(storage.clone())?;
    let mut findings: Vec<Finding> = before.findings.iter().filter(is_wanted).cloned().collect();
    for round in 0..ROUNDS {
        if round > 0 || omitted {
            let max_findings = AT_A_TIME;
            let seen = check(&open(storage, options)?, &CheckOptions { max_findings }, context)?;
            findings = seen.findings.iter().filter(is_wanted).cloned().collect();
        }
        let mut mended = 0;
        for finding in &findings {
            context.cancel.check()?;
            if mend(&layer, &guard, &mut writer, finding)? {
                mended += 1;
                if report.fixed.len() < options.max_findings {
                    report.fixed.push(finding.clone());
                }
            }
        }
        writer.sync()?;
        report.corruptions_fixed += mended;
        if mended == 0 || !omitted {
            break;
        }
    }
    Ok(())
}

/// Mends one entry, if it still is what was found: a table may be named more than once.
fn mend(layer: &Layer, guard: &Guard, writer: &mut Writer, finding: &Finding) -> Result<bool> {
    let (Some(header), Some(offset)) = (layer.header(), finding.offset) else {
        return Ok(false);
    };
    let geometry = header.geometry;
    // What says to be an L2 table may be something else, which must not be written over.
    if !offset.is_multiple_of(geometry.l2_entry_size()) || guard.has(geometry.cluster_index(HostOffset(offset)).0) {
        return Ok(false);
    }
    let within = usize::try_from(offset % SECTOR).unwrap_or(0);
    let sector = HostOffset(offset - offset % SECTOR);
    let mut old = [0; SECTOR_LENGTH];
    writer.read(sector, &mut old)?;
    let mut new = old;
    let Some(place) = new.get_mut(within..).and_then(|rest| rest.first_chunk_mut::<8>()) else {
        return Ok(false);
    };
    let word = u64::from_be_bytes(*place);
    let entry = L2Entry { word, subclusters: 0 };
    if entry.is_compressed() || entry.host_offset().is_aligned(geometry.cluster_size()) {
        return Ok(false);
    }
    let rest = if geometry.extended_l2() { 0 } else { ZERO };
    *place = rest.to_be_bytes();
    writer.mark()?;
    writer.write_changed(sector, &old, &new)
}

/// What no L2 table can lie in.
fn guard_of(layer: &Layer) -> Result<Guard> {
    let Some(header) = layer.header() else {
        return Ok(Guard::default());
    };
    let geometry = header.geometry;
    let reader = Reader::new(&**layer.storage(), header)?;
    let blocks: Vec<u64> = reader
        .refcount_table
        .iter()
        .filter_map(|entry| entry.block_offset())
        .map(|block| block.0)
        .collect();
    let snapshots = salvaged(layer)?.unwrap_or_default();
    let mut guard = Guard::new(header, &blocks, &snapshots.snapshots);
    guard.add_bytes(geometry, header.snapshots_offset, snapshots.length);
    for bitmap in layer.bitmaps() {
        guard.add_bytes(geometry, bitmap.table_offset, u64::from(bitmap.table_entries) * 8);
    }
    if let Some(place) = layer.extensions().and_then(|all| all.bitmaps) {
        guard.add_bytes(geometry, place.directory_offset, place.directory_size);
    }
    if let Some(place) = layer.extensions().and_then(|all| all.encryption) {
        guard.add_bytes(geometry, place.offset, place.length);
    }
    Ok(guard)
}
