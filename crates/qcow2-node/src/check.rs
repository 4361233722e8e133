//! Checking an image.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{
    CheckOptions, CheckReport, Finding, RepairMode, RepairOptions, RepairReport, Severity, check as judge,
    repair as mend,
};

use crate::call::accept;
use crate::handles::Handle;
use crate::layer::LayerSpec;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::source::SourceSpec;

/// How to check.
#[napi(object, object_to_js = false)]
pub struct CheckSpec {
    /// Most findings that are kept; all are counted.
    pub max_findings: u32,
}

/// A guest range, in bytes.
#[napi(object, object_from_js = false)]
pub struct RangeFacts {
    /// Where it begins.
    pub start: BigInt,
    /// How long it is.
    pub length: BigInt,
}

/// One finding of a check.
#[napi(object, object_from_js = false)]
pub struct FindingFacts {
    /// Stable name.
    pub code: String,
    /// How bad it is.
    #[napi(ts_type = "'leak' | 'corruption' | 'error'")]
    pub severity: String,
    /// The structure it was found in.
    pub table: String,
    /// Index of the entry in it.
    pub index: Option<BigInt>,
    /// Offset in the file.
    pub offset: Option<BigInt>,
    /// Length in bytes of what `offset` names.
    pub length: Option<BigInt>,
    /// Number of the host cluster.
    pub cluster: Option<BigInt>,
    /// Its refcount on disk.
    pub refcount: Option<BigInt>,
    /// References to it that were counted.
    pub references: Option<BigInt>,
    /// The entry, or the number in it that is wrong.
    pub value: Option<BigInt>,
    /// Guest ranges that it touches; at most 16.
    pub guest_ranges: Vec<RangeFacts>,
    /// Name of the snapshot whose tree it was found in.
    pub snapshot: Option<String>,
    /// Its id.
    pub snapshot_id: Option<String>,
    /// More, in words.
    pub detail: Option<String>,
    /// One sentence for people.
    pub message: String,
}

/// The answer of a check: qemu-img's counts, and the findings.
#[napi(object, object_from_js = false)]
pub struct CheckFacts {
    /// What could not be checked.
    pub check_errors: BigInt,
    /// What is damaged.
    pub corruptions: BigInt,
    /// Clusters that are lost.
    pub leaks: BigInt,
    /// Behind the last cluster in use, in bytes.
    pub image_end_offset: BigInt,
    /// Guest clusters.
    pub total_clusters: BigInt,
    /// Those that are allocated.
    pub allocated_clusters: BigInt,
    /// Those that do not follow the one before.
    pub fragmented_clusters: BigInt,
    /// Those that are compressed.
    pub compressed_clusters: BigInt,
    /// What was found, in the order it was found.
    pub findings: Vec<FindingFacts>,
    /// Findings that were counted but not kept.
    pub findings_omitted: BigInt,
}

/// Checks a layer, whose handle stays open. Reports progress; completes with the answer.
#[napi(catch_unwind)]
pub fn check(env: Env, id: CallId, layer: Handle, options: CheckSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let layer = call.layer(layer)?;
        let options = CheckOptions {
            max_findings: options.max_findings as usize,
        };
        call.run(Lane::Long, move |job| {
            let report = judge(&layer, &options, job)?;
            // What the job held is let go before its end is told: the layer may then become part of a chain.
            drop(layer);
            Outcome::value(move |_, _, values| values.add(CheckFacts::from(report)))
        })
    })
}

/// How to repair.
#[napi(object, object_to_js = false)]
pub struct RepairSpec {
    /// Everything, and not only leaks.
    pub all: bool,
    /// Most findings that are kept of each check and of what is mended; all are counted.
    pub max_findings: u32,
}

/// What a repair did, and what there is now.
#[napi(object, object_from_js = false)]
pub struct RepairFacts {
    /// What there was.
    pub before: CheckFacts,
    /// What there is.
    pub after: CheckFacts,
    /// What was mended, one by one.
    pub fixed: Vec<FindingFacts>,
    /// Refcounts lowered.
    pub leaks_fixed: BigInt,
    /// Everything else that was mended.
    pub corruptions_fixed: BigInt,
    /// Parts of the refcount structure that were made anew.
    pub rebuilt: BigInt,
    /// The image is still marked dirty or corrupt.
    pub still_marked: bool,
}

/// Checks a source and repairs what it can. Reports progress; completes with what there was, what was done, and what there is.
#[napi(catch_unwind)]
pub fn repair(env: Env, id: CallId, source: SourceSpec, layer: LayerSpec, options: RepairSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let source = source.accept(call)?;
        let mode = if options.all {
            RepairMode::All
        } else {
            RepairMode::Leaks
        };
        let options = RepairOptions {
            mode,
            locking: layer.locking()?,
            limits: layer.limits()?,
            max_findings: options.max_findings as usize,
        };
        call.run(Lane::Long, move |job| {
            let report = mend(&source.open()?, None, options, job)?;
            Outcome::value(move |_, _, values| values.add(RepairFacts::from(report)))
        })
    })
}

impl From<RepairReport> for RepairFacts {
    fn from(report: RepairReport) -> Self {
        Self {
            before: report.before.into(),
            after: report.after.into(),
            fixed: report.fixed.into_iter().map(FindingFacts::from).collect(),
            leaks_fixed: report.leaks_fixed.into(),
            corruptions_fixed: report.corruptions_fixed.into(),
            rebuilt: report.rebuilt.into(),
            still_marked: report.still_marked,
        }
    }
}

impl From<CheckReport> for CheckFacts {
    fn from(report: CheckReport) -> Self {
        Self {
            check_errors: report.check_errors.into(),
            corruptions: report.corruptions.into(),
            leaks: report.leaks.into(),
            image_end_offset: report.image_end_offset.into(),
            total_clusters: report.total_clusters.into(),
            allocated_clusters: report.allocated_clusters.into(),
            fragmented_clusters: report.fragmented_clusters.into(),
            compressed_clusters: report.compressed_clusters.into(),
            findings: report.findings.into_iter().map(FindingFacts::from).collect(),
            findings_omitted: report.findings_omitted.into(),
        }
    }
}

impl From<Finding> for FindingFacts {
    fn from(finding: Finding) -> Self {
        let message = finding.message();
        let (snapshot_id, snapshot) = finding.snapshot.unzip();
        let severity = match finding.severity {
            Severity::Leak => "leak",
            Severity::Corruption => "corruption",
            Severity::Error => "error",
        };
        Self {
            code: finding.code.name().to_owned(),
            severity: severity.to_owned(),
            table: finding.table.name().to_owned(),
            index: finding.index.map(BigInt::from),
            offset: finding.offset.map(BigInt::from),
            length: finding.length.map(BigInt::from),
            cluster: finding.cluster.map(BigInt::from),
            refcount: finding.refcount.map(BigInt::from),
            references: finding.references.map(BigInt::from),
            value: finding.value.map(BigInt::from),
            guest_ranges: finding
                .guest_ranges
                .into_iter()
                .map(|(start, length)| RangeFacts {
                    start: start.0.into(),
                    length: length.into(),
                })
                .collect(),
            snapshot,
            snapshot_id,
            detail: finding.detail,
            message,
        }
    }
}
