//! *check* without repair: every reference to every host cluster is counted and compared with the refcounts on disk.
//!
//! The counts are qemu-img's. The order of work is too, since its messages come in it: snapshot table; the trees of the active disk and of the
//! snapshots; bitmaps; refcount blocks; the comparison by rising cluster number; the COPIED flags. Memory follows what is really in
//! the file: references beyond its end are findings, never table space, and tables in holes are not walked.

mod bitmaps;
mod counts;
mod finding;
mod guests;
mod reader;
mod refcounts;
mod snapshots;
mod tree;

pub use finding::{Finding, FindingCode, Severity};

use qcow2_format::{HostOffset, Table};

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::progress::JobContext;
use counts::Counts;
use finding::Findings;
use reader::Reader;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Most findings that are kept; all are counted.
    pub max_findings: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { max_findings: 10_000 }
    }
}

/// What a check found, in qemu-img's terms.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Parts that could not be read.
    pub check_errors: u64,
    /// Findings that damage data, or would when written.
    pub corruptions: u64,
    /// Clusters with a refcount higher than their references.
    pub leaks: u64,
    /// The first byte behind the highest cluster that has a refcount or a reference.
    pub image_end_offset: u64,
    /// Guest clusters of the active disk.
    pub total_clusters: u64,
    /// Those that have a host cluster or compressed data.
    pub allocated_clusters: u64,
    /// Those that do not follow the plain cluster before them in their L2 table.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// What was found, in order, up to the limit.
    pub findings: Vec<Finding>,
    /// Findings beyond the limit.
    pub findings_omitted: u64,
}

/// The state that all parts of a check share.
struct Check<'a> {
    reader: Reader<'a>,
    context: &'a JobContext,
    counts: Counts,
    /// Most bytes of counts.
    max_memory: u64,
    findings: Findings,
    report: CheckReport,
}

/// Checks the image of a layer. Findings are data: only what keeps the check itself from running is an error.
///
/// # Errors
/// [`Error::State`] with code `NO_CHECK` for a raw layer, [`Error::Cancelled`], and errors of reading the refcount table.
pub fn check(layer: &Layer, options: &CheckOptions, context: &JobContext) -> Result<CheckReport> {
    let (Some(header), Some(extensions)) = (layer.header(), layer.extensions()) else {
        return Err(Error::State {
            code: "NO_CHECK",
            path: layer.storage().path().map(Into::into),
            reason: "a raw image has nothing that could be checked".to_owned(),
        });
    };
    let reader = Reader::new(layer.storage().as_ref(), header)?;
    context.progress.begin("check", reader.work());
    let mut check = Check {
        counts: Counts::new(),
        max_memory: layer.options().limits.max_memory,
        findings: Findings::new(options.max_findings),
        report: CheckReport {
            total_clusters: header.geometry.clusters(header.virtual_size()),
            ..CheckReport::default()
        },
        reader,
        context,
    };
    let (snapshots, snapshot_table_length) = check.snapshot_table();

    check.reference(HostOffset(0), header.geometry.cluster_size(), Table::Header)?;
    let mut trees = tree::Trees::default();
    check.active_tree(&mut trees)?;
    for snapshot in &snapshots {
        check.snapshot_tree(&mut trees, snapshot)?;
    }
    check.count_shared_tables(&trees)?;
    check.reference(header.snapshots_offset, snapshot_table_length, Table::SnapshotTable)?;
    check.reference(
        header.refcount_table_offset,
        header.refcount_table_bytes(),
        Table::RefcountTable,
    )?;
    if let Some(encryption) = extensions.encryption {
        check.reference(encryption.offset, encryption.length, Table::EncryptionHeader)?;
    }
    if let Some(bitmaps) = extensions.bitmaps.filter(|_| header.autoclear & 1 != 0) {
        check.bitmaps(bitmaps)?;
    }
    let blocks = check.refcount_blocks()?;
    check.compare_refcounts(&blocks)?;
    check.findings.append_deferred();
    check.attribute_guests()?;
    context.progress.finish();
    Ok(check.finish())
}

impl Check<'_> {
    /// Counts one reference to each host cluster that a range touches.
    fn reference(&mut self, offset: HostOffset, length: u64, table: Table) -> Result<()> {
        self.reference_times(offset, length, table, 1)
    }

    fn reference_times(&mut self, offset: HostOffset, length: u64, table: Table, times: u64) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        let geometry = self.reader.header.geometry;
        let end = offset.0.saturating_add(length);
        // The last cluster of a file may be there only in part.
        if end.saturating_sub(self.reader.file_length) > geometry.cluster_size() {
            let mut finding = Finding::corruption(FindingCode::BeyondEndOfFile, table);
            finding.offset = Some(offset.0);
            finding.length = Some(length);
            self.found(finding);
            return Ok(());
        }
        let maximum = self.reader.header.refcount_order.max();
        for cluster in geometry.cluster_index(offset).0..geometry.clusters(end) {
            if self.counts.add(cluster, times, maximum) {
                let mut finding = Finding::corruption(FindingCode::ReferenceOverflow, table);
                finding.offset = Some(offset.0);
                finding.cluster = Some(cluster);
                self.found(finding);
            }
            // A sparse file may be exabytes long for nothing, and all that lies in it is believed.
            if cluster.is_multiple_of(counts::CHUNK_CLUSTERS) {
                self.context.cancel.check()?;
            }
            let wanted = self.counts.memory();
            if wanted > self.max_memory {
                return Err(Error::Limit {
                    limit: "maxMemory",
                    allowed: self.max_memory,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// Counts and keeps a finding.
    fn found(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    fn finish(mut self) -> CheckReport {
        let counted = self.findings.counted();
        self.report.check_errors = counted.errors;
        self.report.corruptions = counted.corruptions;
        self.report.leaks = counted.leaks;
        (self.report.findings, self.report.findings_omitted) = self.findings.into_parts();
        self.report
    }
}
