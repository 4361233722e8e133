//! *repair*: refcounts made what the tables say, and COPIED flags what the refcounts say.
//!
//! What counts is what refers: the trees of the active disk and of the snapshots, the snapshot table, bitmaps and the encryption header. From these
//! every refcount follows. A crash at any write leaves an image that can be repaired again, and no worse than before:
//!
//! 1. **sync** – what is read from here on is on disk, so that nothing written later can get ahead of it.
//! 2. **mark** – the dirty bit, durably, before the first write that does more than give leaked clusters back (version 3).
//! 3. **counts** – blocks that can stay are changed in place, sector by sector; new blocks are written to free clusters. → sync
//! 4. **switch** – the refcount table names the new blocks, or the header the new table, each by one sector. → sync
//! 5. **flags** – COPIED of the active L1 and L2 tables. → sync
//! 6. **clear** – the image is checked, and only if it is right the dirty bit (and the corrupt bit) is cleared. → sync
//!
//! Before that, an explicit repair of everything mends what hides the rest: clusters of zeros at places that are none (`entries.rs`), and a snapshot
//! table that nobody opens (`snapshots.rs`).
//!
//! Where something refers to clusters that cannot be told, such as a table beyond the end of the file, nothing may be taken to be free: then
//! refcounts are only raised, no flag is set, nothing new is placed, and the image stays marked.

mod copied;
mod counts;
mod entries;
mod snapshots;
mod structure;
mod writer;

use std::sync::Arc;

use qcow2_format::features::incompatible;
use qcow2_format::{FirstSector, Header};

use crate::check::{CheckOptions, CheckReport, Finding, FindingCode, check, references};
use crate::error::{Error, Result};
use crate::layer::{Layer, LayerOptions, Limits};
use crate::lock::{ImageLock, LockMode, Locking};
use crate::progress::JobContext;
use crate::storage::Storage;
use structure::Structure;
use writer::Writer;

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairMode {
    /// Clusters that nothing refers to are given back, and refcounts that are too high lowered.
    Leaks,
    /// Everything that the references say: refcounts, the refcount structure itself, COPIED flags.
    All,
}

/// How an image is repaired.
#[derive(Clone, Copy, Debug)]
pub struct RepairOptions {
    /// What is repaired.
    pub mode: RepairMode,
    /// Whether locks are taken.
    pub locking: Locking,
    /// Bounds on memory.
    pub limits: Limits,
    /// Most findings that are kept of each check and of what is mended; all are counted.
    pub max_findings: usize,
}

impl RepairOptions {
    /// The default options for `mode`.
    pub fn new(mode: RepairMode) -> Self {
        Self {
            mode,
            locking: Locking::default(),
            limits: Limits::default(),
            max_findings: CheckOptions::default().max_findings,
        }
    }
}

/// What a repair did.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// What a check said of the image before; of an image that was opened to be written, nothing.
    pub before: CheckReport,
    /// What was mended, one by one, as it stood before, up to the limit on findings.
    pub fixed: Vec<Finding>,
    /// Refcount blocks and tables that were made anew in another place; they count as corruptions that were fixed.
    pub rebuilt: u64,
    /// Clusters whose refcount was too high and was lowered.
    pub leaks_fixed: u64,
    /// Refcounts raised, COPIED flags changed, refcount blocks and tables put in a new place.
    pub corruptions_fixed: u64,
    /// The image is still marked as dirty or corrupt, since something is left that this repair cannot mend.
    pub still_marked: bool,
    /// What a check says of the image now.
    pub after: CheckReport,
    /// Clusters of the snapshot table that was replaced.
    pub(crate) moved: Option<std::ops::Range<u64>>,
}

/// Repairs an image that nobody else uses: takes a writer's locks on it and on its data file.
///
/// # Errors
/// [`Error::Locked`], [`Error::Io`], [`Error::Cancelled`]; those of opening and checking the image; [`Error::State`] with code `REFCOUNT_TABLE_FULL` if the
/// refcounts would need a refcount table of more than 8 MiB. After an error the image can be repaired again.
pub fn repair(
    storage: &Arc<dyn Storage>,
    data_file: Option<&Arc<dyn Storage>>,
    options: RepairOptions,
    context: &JobContext,
) -> Result<RepairReport> {
    let mut locks = Vec::new();
    for storage in [Some(storage), data_file].into_iter().flatten() {
        let (lock, _) = ImageLock::acquire(storage.clone(), LockMode::Write, options.locking)?;
        locks.push(lock);
    }
    let before = look(storage, &options, context)?;
    let layer = open(storage, &options)?;
    let marked = layer
        .header()
        .is_some_and(|header| header.has(incompatible::DIRTY) || header.has(incompatible::CORRUPT));
    drop(layer);
    if before.check_errors == 0 && before.corruptions == 0 && before.leaks == 0 && !marked {
        return Ok(RepairReport {
            after: before.clone(),
            before,
            ..RepairReport::default()
        });
    }
    let mut earlier = RepairReport::default();
    if options.mode == RepairMode::All {
        entries::zero_clusters(storage, &options, &before, context, &mut earlier)?;
        snapshots::table(storage, &options, &before, &mut earlier)?;
    }
    let mut report = repair_locked(storage, &options, context)?;
    if let Some(moved) = earlier.moved {
        // The clusters of a table that was replaced are no leaks that anybody would have found.
        let is_of_it = |finding: &Finding| finding.cluster.is_some_and(|cluster| moved.contains(&cluster));
        let all = report.fixed.len();
        report
            .fixed
            .retain(|finding| finding.code != FindingCode::Leak || !is_of_it(finding));
        report.leaks_fixed = report.leaks_fixed.saturating_sub((all - report.fixed.len()) as u64);
    }
    report.before = before;
    report.corruptions_fixed += earlier.corruptions_fixed;
    earlier.fixed.append(&mut report.fixed);
    earlier.fixed.truncate(options.max_findings);
    report.fixed = earlier.fixed;
    Ok(report)
}

/// What a check says now.
fn look(storage: &Arc<dyn Storage>, options: &RepairOptions, context: &JobContext) -> Result<CheckReport> {
    let layer = open(storage, options)?;
    let max_findings = options.max_findings;
    check(&layer, &CheckOptions { max_findings }, context)
}

/// Repairs an image on which the caller has a writer's locks.
pub(crate) fn repair_locked(
    storage: &Arc<dyn Storage>,
    options: &RepairOptions,
    context: &JobContext,
) -> Result<RepairReport> {
    storage.sync().map_err(Error::io("sync", &**storage))?;
    let layer = open(storage, options)?;
    let header = layer.header().ok_or(Error::Closed)?;
    let mut repair = Repair {
        references: references(&layer, context)?,
        writer: Writer::new(storage.clone())?,
        layer: &layer,
        header,
        mode: options.mode,
        max_findings: options.max_findings,
        context,
        report: RepairReport::default(),
        all_right: true,
    };
    repair.run()?;
    let Repair { writer, mut report, .. } = repair;
    finish(storage, options, context, writer, &mut report)?;
    Ok(report)
}

fn open(storage: &Arc<dyn Storage>, options: &RepairOptions) -> Result<Layer> {
    let layer_options = LayerOptions {
        for_check: true,
        metadata_only: true,
        limits: options.limits,
        ..LayerOptions::default()
    };
    Layer::open_unlocked(storage.clone(), &layer_options)
}

/// The state that all parts of a repair share.
struct Repair<'a> {
    layer: &'a Layer,
    header: &'a Header,
    references: crate::check::References,
    writer: Writer,
    mode: RepairMode,
    max_findings: usize,
    context: &'a JobContext,
    report: RepairReport,
    /// The refcounts on disk are, or will be, what was counted.
    all_right: bool,
}

impl Repair<'_> {
    /// Notes what is mended.
    fn fixed(&mut self, make: impl FnOnce() -> Finding) {
        if self.report.fixed.len() < self.max_findings {
            self.report.fixed.push(make());
        }
    }

    fn run(&mut self) -> Result<()> {
        let mut structure = Structure::find(self)?;
        if self.mode == RepairMode::All && !self.references.hidden {
            structure.complete(self)?;
        }
        self.write_counts(&structure)?;
        self.writer.sync()?;
        structure.switch(self)?;
        // While refcounts are wrong, nobody knows what flags go with them.
        if self.all_right || self.mode == RepairMode::All {
            self.copied_flags()?;
            self.writer.sync()?;
        }
        Ok(())
    }
}

/// Checks what there is now, and clears the marks of an image that is right.
fn finish(
    storage: &Arc<dyn Storage>,
    options: &RepairOptions,
    context: &JobContext,
    mut writer: Writer,
    report: &mut RepairReport,
) -> Result<()> {
    report.after = look(storage, options, context)?;
    let after = &report.after;
    let whole = after.check_errors == 0;
    let wrong = |code| {
        matches!(
            code,
            FindingCode::Leak
                | FindingCode::RefcountTooLow
                | FindingCode::ReferenceOverflow
                | FindingCode::CopiedFlag
                | FindingCode::BeyondEndOfFile
                | FindingCode::RefcountBlockReferences
                | FindingCode::RefcountBlockOutside
                | FindingCode::RefcountBlockUnaligned
        )
    };
    let counted = after.findings_omitted == 0 && !after.findings.iter().any(|finding| wrong(finding.code));
    let hidden = writer.hidden;
    writer.change_header(|sector: &mut FirstSector| {
        let mut bits = sector.incompatible();
        if whole && counted && !hidden {
            bits &= !incompatible::DIRTY;
        }
        if whole && after.corruptions == 0 {
            bits &= !incompatible::CORRUPT;
        }
        // Version 2 has no marks.
        let _ = sector.set_incompatible(bits);
    })?;
    report.still_marked = writer.header().incompatible() & (incompatible::DIRTY | incompatible::CORRUPT) != 0;
    Ok(())
}
