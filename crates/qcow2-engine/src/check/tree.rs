//! The L1 tables of the active disk and of the snapshots, and which L2 tables they lead to.

use std::collections::HashMap;

use qcow2_format::{HostOffset, L1Entry, Table};

use super::finding::{Finding, FindingCode, Severity};
use super::reader::words;
use super::table::{Totals, Walk};
use super::{Check, Result};

/// Bytes of an L1 table that are read at a time: no more, since behind them a hole may begin.
const PIECE: u64 = 64 << 10;
/// Bytes of memory that remembering an L2 table takes, roughly.
const MEMORY: u64 = 256;

/// L2 tables that were named more than once, by host offset. Such a table is walked twice at most and then remembered, so that time follows
/// the file and not what its tables claim.
#[derive(Debug, Default)]
pub(super) struct Trees {
    remembered: HashMap<HostOffset, Remembered>,
}

/// What walking an L2 table gave.
#[derive(Debug)]
struct Remembered {
    /// Visits after it was walked for the last time.
    again: u64,
    l1_index: u64,
    totals: Totals,
    /// Findings of a visit, those about COPIED flags apart.
    found: u64,
    flags_found: u64,
    /// As many of them as were kept.
    kept: Vec<Finding>,
    flags_kept: Vec<Finding>,
}

/// The tree that is being walked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree<'s> {
    /// Id and name of the snapshot; `None`: the active disk.
    pub(super) snapshot: Option<&'s (String, String)>,
    pub(super) l1_offset: HostOffset,
    pub(super) l1_entries: u32,
}

/// One naming of an L2 table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit<'s> {
    pub(super) tree: Tree<'s>,
    pub(super) l1_index: u64,
    pub(super) l2_offset: HostOffset,
    /// Whether its COPIED flags matter.
    pub(super) flags: bool,
}

impl Tree<'_> {
    pub(super) fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_entries).saturating_mul(8)
    }
}

impl Check<'_> {
    pub(super) fn active_tree(&mut self, trees: &mut Trees) -> Result<()> {
        let header = self.reader.header;
        let tree = Tree {
            snapshot: None,
            l1_offset: header.l1_offset,
            l1_entries: header.l1_entries,
        };
        self.tree(trees, tree)
    }

    pub(super) fn tree(&mut self, trees: &mut Trees, tree: Tree<'_>) -> Result<()> {
        self.reference(tree.l1_offset, tree.l1_bytes(), Table::L1)?;
        self.l1_end(tree);
        self.l1_part(
            trees,
            tree,
            tree.l1_offset.0,
            tree.l1_offset.0.saturating_add(tree.l1_bytes()),
            1,
        )
    }

    /// An L1 table that passes the end of the file.
    pub(super) fn l1_end(&mut self, tree: Tree<'_>) {
        if tree.l1_offset.0.saturating_add(tree.l1_bytes()) > self.reader.file_length && tree.l1_entries > 0 {
            self.truncated(Table::L1, tree.l1_offset, tree.l1_bytes());
        }
    }

    /// The entries of an L1 table from `begin` to `end` in the file, each as often as `times` says. Holes are passed over.
    pub(super) fn l1_part(
        &mut self,
        trees: &mut Trees,
        tree: Tree<'_>,
        begin: u64,
        end: u64,
        times: u64,
    ) -> Result<()> {
        let end = end.min(self.reader.file_length);
        let mut at = begin;
        while at < end {
            self.context.cancel.check()?;
            if let Some(hole_end) = self.reader.hole_at(HostOffset(at)) {
                at = hole_end.0.next_multiple_of(8).min(end).max(at + 8);
                continue;
            }
            let length = end.saturating_sub(at).clamp(8, PIECE);
            let bytes = match self.reader.read(HostOffset(at), length) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.unreadable(Table::L1, HostOffset(at), length, &error);
                    return Ok(());
                }
            };
            for (place, entry) in (at..end).step_by(8).zip(words(&bytes).map(L1Entry)) {
                if entry.0 != 0 {
                    self.context.cancel.check()?;
                    self.l1_entry(trees, tree, place, entry, times)?;
                }
            }
            at += length;
        }
        Ok(())
    }

    fn l1_entry(&mut self, trees: &mut Trees, tree: Tree<'_>, at: u64, entry: L1Entry, times: u64) -> Result<()> {
        let geometry = self.reader.header.geometry;
        let index = at.saturating_sub(tree.l1_offset.0) / 8;
        let finding = |code, value| Finding {
            index: Some(index),
            offset: Some(at),
            value: Some(value),
            snapshot: tree.snapshot.cloned(),
            guest_ranges: geometry
                .guest_offset(index, 0)
                .map(|guest| (guest, geometry.l1_entry_span()))
                .into_iter()
                .collect(),
            ..Finding::corruption(code, Table::L1)
        };
        if entry.reserved() != 0 {
            self.findings.push_times(times, Severity::Corruption, || {
                finding(FindingCode::ReservedBits, entry.0)
            });
        }
        // An entry without offset that is not all zero names the header, as QEMU sees it: what follows shows that something is wrong.
        let l2_offset = entry.l2_offset().unwrap_or_default();
        let cluster = geometry.cluster_index(l2_offset).0;
        let new = self.counts.get(cluster) == 0;
        let inside = self.reference_times(l2_offset, geometry.cluster_size(), Table::L1, times)?;
        // What an entry names that makes no sense is anybody's guess.
        self.hidden |= entry.l2_offset().is_none();
        if !l2_offset.is_aligned(geometry.cluster_size()) {
            self.hidden = true;
            self.findings.push_times(times, Severity::Corruption, || {
                finding(FindingCode::UnalignedTable, l2_offset.0)
            });
        }
        let one = if tree.snapshot.is_none() && entry.l2_offset().is_some() {
            self.reader.is_one(cluster)
        } else {
            None
        };
        if one.is_some_and(|one| one != entry.copied()) {
            let refcount = self.reader.refcount(cluster);
            self.findings.defer(|| Finding {
                refcount,
                ..finding(FindingCode::CopiedFlag, entry.0)
            });
        }
        self.context.progress.advance(geometry.cluster_size());
        if inside {
            // A table whose own refcount cannot be read has its flags not looked at, as in QEMU's check.
            self.visit(
                trees,
                Visit {
                    tree,
                    l1_index: index,
                    l2_offset,
                    flags: one.is_some(),
                },
                new,
                times,
            )?;
        }
        Ok(())
    }

    /// Walks an L2 table, or recalls what walking it gave. `new`: nothing has named its cluster before.
    fn visit(&mut self, trees: &mut Trees, visit: Visit<'_>, new: bool, times: u64) -> Result<()> {
        let Visit { tree, l2_offset, .. } = visit;
        if let Some(remembered) = trees.remembered.get_mut(&l2_offset) {
            remembered.again = remembered.again.saturating_add(times);
            self.recall(remembered, visit, times);
            return Ok(());
        }
        let remember = !new || times > 1;
        let mut walk = Walk::new(visit, remember);
        self.l2_table(&mut walk)?;
        if tree.snapshot.is_none() {
            self.total(walk.totals, 1);
        }
        if remember {
            self.counts.spend(MEMORY)?;
            let remembered = Remembered {
                again: times - 1,
                l1_index: visit.l1_index,
                totals: walk.totals,
                found: walk.found,
                flags_found: walk.flags_found,
                kept: walk.kept,
                flags_kept: walk.flags_kept,
            };
            self.recall(&remembered, visit, times - 1);
            trees.remembered.insert(l2_offset, remembered);
        }
        Ok(())
    }

    /// Counts what another `times` visits of a table would have found.
    fn recall(&mut self, remembered: &Remembered, visit: Visit<'_>, times: u64) {
        let span = self.reader.header.geometry.l1_entry_span();
        let moved = |finding: &Finding| {
            let mut finding = finding.clone();
            finding.snapshot = visit.tree.snapshot.cloned();
            for (guest, _) in &mut finding.guest_ranges {
                let in_table = guest.0.saturating_sub(remembered.l1_index.saturating_mul(span));
                guest.0 = visit.l1_index.saturating_mul(span).saturating_add(in_table);
            }
            finding
        };
        self.findings
            .repeat(times, remembered.found, remembered.kept.iter().map(moved));
        if visit.tree.snapshot.is_none() {
            self.findings
                .repeat_deferred(times, remembered.flags_found, remembered.flags_kept.iter().map(moved));
            self.total(remembered.totals, times);
        }
    }

    fn total(&mut self, totals: Totals, times: u64) {
        let add = |counter: &mut u64, number: u64| *counter = counter.saturating_add(number.saturating_mul(times));
        add(&mut self.report.allocated_clusters, totals.allocated);
        add(&mut self.report.fragmented_clusters, totals.fragmented);
        add(&mut self.report.compressed_clusters, totals.compressed);
    }

    /// Counts the references of tables that were named more than once as often as they were named.
    pub(super) fn count_shared_tables(&mut self, trees: &Trees) -> Result<()> {
        for (&offset, remembered) in trees.remembered.iter().filter(|(_, remembered)| remembered.again > 0) {
            self.context.cancel.check()?;
            self.count_again(offset, remembered.again)?;
        }
        Ok(())
    }

    pub(super) fn truncated(&mut self, table: Table, offset: HostOffset, length: u64) {
        self.findings.push(Severity::Corruption, || Finding {
            offset: Some(offset.0),
            length: Some(length),
            ..Finding::corruption(FindingCode::Truncated, table)
        });
    }

    pub(super) fn unreadable(&mut self, table: Table, offset: HostOffset, length: u64, error: &std::io::Error) {
        self.hidden |= table != Table::RefcountBlock;
        self.findings.push(Severity::Error, || Finding {
            offset: Some(offset.0),
            length: Some(length),
            detail: Some(error.to_string()),
            ..Finding::new(FindingCode::ReadError, Severity::Error, table)
        });
    }
}
