//! *check* without repair: every reference to every host cluster is counted and compared with the refcounts on disk.
//!
//! The counts are qemu-img's. The order of work is too, since its messages come in it: snapshot table; the trees of the active disk and of the
//! snapshots; bitmaps; refcount blocks; the comparison by rising cluster number; the COPIED flags.
//!
//! Time and memory follow what is really in the file, whatever its tables claim: references beyond its end are findings, never table space; holes
//! are not read; a table that is named again and again is walked twice at most; rows of clusters are checked as rows.

mod bitmaps;
mod classes;
pub(crate) mod counts;
mod finding;
mod guests;
pub(crate) mod reader;
mod refcounts;
mod snapshots;
mod sweep;
mod table;
mod tree;

pub use finding::{Finding, FindingCode, Severity};

use qcow2_format::{HostOffset, Table};

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::progress::JobContext;
use counts::Counts;
use finding::Findings;
use reader::Reader;

/// Host clusters that are counted without looking whether the check was cancelled.
const STEP: usize = 1 << 20;

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
    findings: Findings,
    report: CheckReport,
    /// Something refers to clusters that could not be counted: nothing may be taken to be free.
    hidden: bool,
}

/// References to the host clusters of an image, all but those of its refcount structure.
#[derive(Debug)]
pub(crate) struct References {
    pub(crate) counts: Counts,
    /// There are more that could not be counted.
    pub(crate) hidden: bool,
}

/// Checks the image of a layer. Findings are data: only what keeps the check itself from running is an error.
///
/// # Errors
/// [`Error::State`] with code `NO_CHECK` for a raw layer, [`Error::Cancelled`], errors of reading the refcount table, and [`Error::Limit`]
/// (`maxMemory`) if counting takes more than the layer's limit: a quarter of a byte for each cluster of a file without snapshots.
pub fn check(layer: &Layer, options: &CheckOptions, context: &JobContext) -> Result<CheckReport> {
    let mut check = Check::begin(layer, options, "check", context)?;
    check.count_references(layer, true)?;
    check.refcount_blocks()?;
    check.compare_refcounts()?;
    check.findings.append_deferred();
    check.attribute_guests()?;
    context.progress.finish();
    Ok(check.finish())
}

/// Counts the references to the host clusters of an image, without those of its refcount structure.
///
/// # Errors
/// Those of [`check`].
pub(crate) fn references(layer: &Layer, context: &JobContext) -> Result<References> {
    let options = CheckOptions { max_findings: 0 };
    let mut check = Check::begin(layer, &options, "repair", context)?;
    check.count_references(layer, false)?;
    Ok(References {
        counts: check.counts,
        hidden: check.hidden,
    })
}

impl<'a> Check<'a> {
    fn begin(layer: &'a Layer, options: &CheckOptions, phase: &'static str, context: &'a JobContext) -> Result<Self> {
        let Some(header) = layer.header() else {
            return Err(Error::State {
                code: "NO_CHECK",
                path: layer.storage().path().map(Into::into),
                reason: "a raw image has nothing that could be checked".to_owned(),
            });
        };
        let reader = Reader::new(layer.storage().as_ref(), header)?;
        context.progress.begin(phase, reader.work());
        Ok(Check {
            counts: Counts::new(header.refcount_order.max(), layer.options().limits.max_memory),
            findings: Findings::new(options.max_findings),
            report: CheckReport {
                total_clusters: header.geometry.clusters(header.virtual_size()),
                ..CheckReport::default()
            },
            reader,
            context,
            hidden: false,
        })
    }

    /// Counts what refers to clusters, but for the refcount blocks; with `table`, the refcount table does.
    fn count_references(&mut self, layer: &Layer, table: bool) -> Result<()> {
        let header = self.reader.header;
        let (snapshots, snapshot_table_length) = self.snapshot_table();

        self.reference(HostOffset(0), header.geometry.cluster_size(), Table::Header)?;
        let mut trees = tree::Trees::default();
        self.active_tree(&mut trees)?;
        self.snapshot_trees(&mut trees, &snapshots)?;
        self.count_shared_tables(&trees)?;
        drop(trees);
        let refcount_table = table.then(|| {
            let length = header.refcount_table_bytes();
            (header.refcount_table_offset, length, Table::RefcountTable)
        });
        let extensions = layer.extensions();
        let encryption = extensions.and_then(|all| all.encryption);
        let encryption = encryption.map(|place| (place.offset, place.length, Table::EncryptionHeader));
        let first = (header.snapshots_offset, snapshot_table_length, Table::SnapshotTable);
        for (offset, length, table) in [Some(first), refcount_table, encryption].into_iter().flatten() {
            self.reference(offset, length, table)?;
        }
        let bitmaps = extensions.and_then(|all| all.bitmaps);
        if let Some(bitmaps) = bitmaps.filter(|_| header.autoclear & 1 != 0) {
            self.bitmaps(bitmaps)?;
        }
        Ok(())
    }

    /// Counts one reference to each host cluster that a range touches. `false`: the range passes the end of the file, which is a finding.
    fn reference(&mut self, offset: HostOffset, length: u64, table: Table) -> Result<bool> {
        self.reference_times(offset, length, table, 1)
    }

    fn reference_times(&mut self, offset: HostOffset, length: u64, table: Table, times: u64) -> Result<bool> {
        if length == 0 {
            return Ok(true);
        }
        if self.is_beyond(offset, length) {
            self.beyond(offset, length, table, times);
            return Ok(false);
        }
        let geometry = self.reader.header.geometry;
        let first = geometry.cluster_index(offset).0;
        let end = geometry.clusters(offset.0.saturating_add(length));
        // A range may be as long as a sparse file is: it is counted in steps between which the check can be stopped.
        for step in (first..end).step_by(STEP) {
            self.context.cancel.check()?;
            let clusters = end.saturating_sub(step).min(STEP as u64);
            let overflows = self.counts.add(step, clusters, times)?;
            self.overflowed(&overflows, offset, table);
        }
        Ok(true)
    }

    /// Whether a range passes the end of the file by a cluster or more: the last cluster of a file may be there only in part.
    fn is_beyond(&self, offset: HostOffset, length: u64) -> bool {
        let end = offset.0.saturating_add(length);
        end.saturating_sub(self.reader.file_length) >= self.reader.header.geometry.cluster_size()
    }

    /// Notes a reference that passes the end of the file.
    fn beyond(&mut self, offset: HostOffset, length: u64, table: Table, times: u64) -> Option<&Finding> {
        self.hidden = true;
        let make = || Finding {
            offset: Some(offset.0),
            length: Some(length),
            ..Finding::corruption(FindingCode::BeyondEndOfFile, table)
        };
        if times > 1 {
            self.findings.push_times(times - 1, Severity::Corruption, make);
        }
        self.findings.push(Severity::Corruption, make)
    }

    /// Notes references that were too many to be counted.
    fn overflowed(&mut self, overflows: &[(u64, u64)], offset: HostOffset, table: Table) {
        let geometry = self.reader.header.geometry;
        self.hidden |= !overflows.is_empty();
        for &(cluster, times) in overflows {
            self.findings.push_times(times, Severity::Corruption, || Finding {
                offset: cluster.checked_mul(geometry.cluster_size()).or(Some(offset.0)),
                cluster: Some(cluster),
                ..Finding::corruption(FindingCode::ReferenceOverflow, table)
            });
        }
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
