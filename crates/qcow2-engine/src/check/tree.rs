//! The L1 and L2 tables of the active disk and of the snapshots.

use std::collections::HashMap;

use qcow2_format::entry::EntryRules;
use qcow2_format::{ClusterMapping, EntryFault, GuestOffset, HostOffset, L1Entry, L2Entry, Table};

use super::finding::{Finding, FindingCode};
use super::reader::words;
use super::{Check, Result};

/// L2 tables that were walked, by host offset. A table that several L1 entries name is walked once and remembered, so that time follows the
/// file and not what its tables claim.
#[derive(Debug, Default)]
pub(super) struct Trees {
    walked: HashMap<HostOffset, Walked>,
}

/// What walking one L2 table gave.
#[derive(Debug, Default)]
struct Walked {
    /// Visits after the first.
    again: u64,
    totals: Totals,
    findings: Vec<Finding>,
    deferred: Vec<Finding>,
}

/// Clusters of one L2 table, as the report counts them.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    allocated: u64,
    fragmented: u64,
    compressed: u64,
}

/// The tree that is being walked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree<'s> {
    /// Id and name of the snapshot; `None`: the active disk.
    pub(super) snapshot: Option<&'s (String, String)>,
    pub(super) l1_offset: HostOffset,
    pub(super) l1_entries: u32,
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
        let length = u64::from(tree.l1_entries).saturating_mul(8);
        self.reference(tree.l1_offset, length, Table::L1)?;
        let table = match self.reader.read(tree.l1_offset, length) {
            Ok(table) => table,
            Err(error) => {
                self.unreadable(Table::L1, tree.l1_offset, length, &error);
                return Ok(());
            }
        };
        if (table.len() as u64) < length {
            self.truncated(Table::L1, tree.l1_offset, length);
        }
        for (index, entry) in (0u64..)
            .zip(words(&table).map(L1Entry))
            .filter(|(_, entry)| entry.0 != 0)
        {
            self.context.cancel.check()?;
            self.l1_entry(trees, tree, index, entry)?;
        }
        Ok(())
    }

    fn l1_entry(&mut self, trees: &mut Trees, tree: Tree<'_>, index: u64, entry: L1Entry) -> Result<()> {
        let geometry = self.reader.header.geometry;
        let at = tree.l1_offset.0.saturating_add(index.saturating_mul(8));
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
            self.found(finding(FindingCode::ReservedBits, entry.0));
        }
        let Some(l2_offset) = entry.l2_offset() else {
            if entry.copied() {
                self.found(finding(FindingCode::CopiedWithoutOffset, entry.0));
            }
            return Ok(());
        };
        self.reference(l2_offset, geometry.cluster_size(), Table::L1)?;
        if !l2_offset.is_aligned(geometry.cluster_size()) {
            self.found(finding(FindingCode::UnalignedTable, l2_offset.0));
            return Ok(());
        }
        if tree.snapshot.is_none()
            && let Some(refcount) = self.reader.refcount(geometry.cluster_index(l2_offset).0)
            && (refcount == 1) != entry.copied()
        {
            self.findings.defer(Finding {
                refcount: Some(refcount),
                ..finding(FindingCode::CopiedFlag, entry.0)
            });
        }
        self.context.progress.advance(geometry.cluster_size());
        self.visit(trees, tree, index, l2_offset)
    }

    /// Walks an L2 table, or remembers that it is named once more.
    fn visit(&mut self, trees: &mut Trees, tree: Tree<'_>, l1_index: u64, l2_offset: HostOffset) -> Result<()> {
        let active = tree.snapshot.is_none();
        if let Some(walked) = trees.walked.get_mut(&l2_offset) {
            walked.again = walked.again.saturating_add(1);
            walked
                .findings
                .iter()
                .for_each(|finding| self.findings.push(finding.clone()));
            if active {
                walked
                    .deferred
                    .iter()
                    .for_each(|finding| self.findings.defer(finding.clone()));
                self.total(walked.totals);
            }
            return Ok(());
        }
        let length = self.reader.header.geometry.cluster_size();
        if self.reader.is_hole(l2_offset, length) {
            return Ok(());
        }
        let table = match self.reader.read(l2_offset, length) {
            Ok(table) => table,
            Err(error) => {
                self.unreadable(Table::L2, l2_offset, length, &error);
                return Ok(());
            }
        };
        if (table.len() as u64) < length {
            self.truncated(Table::L2, l2_offset, length);
        }
        let entry_size = self.reader.header.geometry.l2_entry_size();
        let mut walk = Walk {
            tree,
            l1_index,
            l2_offset,
            next_plain: None,
            entry_size,
            walked: Walked::default(),
        };
        for (index, entry) in l2_entries(&table, self.reader.header.geometry.extended_l2()) {
            self.l2_entry(&mut walk, index, entry)?;
        }
        if active {
            self.total(walk.walked.totals);
        }
        trees.walked.insert(l2_offset, walk.walked);
        Ok(())
    }

    fn total(&mut self, totals: Totals) {
        let report = &mut self.report;
        report.allocated_clusters = report.allocated_clusters.saturating_add(totals.allocated);
        report.fragmented_clusters = report.fragmented_clusters.saturating_add(totals.fragmented);
        report.compressed_clusters = report.compressed_clusters.saturating_add(totals.compressed);
    }

    fn l2_entry(&mut self, walk: &mut Walk<'_>, index: u64, entry: L2Entry) -> Result<()> {
        let rules = self.reader.header.entry_rules();
        let guest = rules.geometry.guest_offset(walk.l1_index, index).unwrap_or_default();
        if entry.is_compressed() {
            return self.compressed_entry(walk, index, entry, guest, &rules);
        }
        if entry.reserved(rules.geometry) != 0 {
            self.in_l2(walk, index, guest, FindingCode::ReservedBits, entry.word);
        }
        let mapping = entry.mapping(&rules, guest);
        let host = entry.host_offset();
        // In a data file offset 0 can be a cluster's own, but not a zero cluster's.
        let plain_zero = mapping == Ok(ClusterMapping::Zero(None));
        let fault = mapping.err();
        if let Some((code, value)) = fault.and_then(|fault| finding_of(fault, entry)) {
            self.in_l2(walk, index, guest, code, value);
        }
        if plain_zero || (host.0 == 0 && !(rules.data_file && entry.copied())) {
            return Ok(());
        }
        walk.plain(host, rules.geometry.cluster_size());
        if !rules.data_file {
            let before = self.findings.counted().corruptions;
            self.reference(host, rules.geometry.cluster_size(), Table::L2)?;
            let beyond = self.findings.counted().corruptions > before;
            if !beyond && host.0 >= self.reader.file_length && has_data(entry, rules.geometry.extended_l2()) {
                let finding = walk.finding(FindingCode::Truncated, index, guest, rules.geometry.cluster_size());
                let finding = Finding {
                    offset: Some(host.0),
                    length: Some(rules.geometry.cluster_size()),
                    ..finding
                };
                self.keep(walk, finding);
            }
            if beyond {
                walk.walked.findings.extend(self.findings.last_kept());
            }
        }
        if walk.tree.snapshot.is_none() {
            self.copied_flag(walk, index, entry, guest, &rules);
        }
        Ok(())
    }

    fn copied_flag(&mut self, walk: &mut Walk<'_>, index: u64, entry: L2Entry, guest: GuestOffset, rules: &EntryRules) {
        let cluster = rules.geometry.cluster_index(entry.host_offset()).0;
        let refcount = if rules.data_file {
            Some(1)
        } else {
            self.reader.refcount(cluster)
        };
        let Some(refcount) = refcount.filter(|&refcount| (refcount == 1) != entry.copied()) else {
            return;
        };
        let finding = walk.finding(FindingCode::CopiedFlag, index, guest, rules.geometry.cluster_size());
        let finding = Finding {
            refcount: Some(refcount),
            value: Some(entry.word),
            ..finding
        };
        self.findings.defer(finding.clone());
        walk.walked.deferred.push(finding);
    }

    fn compressed_entry(
        &mut self,
        walk: &mut Walk<'_>,
        index: u64,
        entry: L2Entry,
        guest: GuestOffset,
        rules: &EntryRules,
    ) -> Result<()> {
        let plain = L2Entry {
            word: entry.word & !(1 << 63),
            ..entry
        };
        if entry.copied() {
            let at = descriptor(plain, rules, guest).map_or(entry.word, |found| found.offset.0);
            self.in_l2(walk, index, guest, FindingCode::CopiedCompressed, at);
        }
        let descriptor = match plain.mapping(rules, guest) {
            Ok(ClusterMapping::Compressed(descriptor)) => descriptor,
            Ok(_) => return Ok(()),
            Err(fault) => {
                if let Some((code, value)) = finding_of(fault, entry) {
                    self.in_l2(walk, index, guest, code, value);
                }
                return Ok(());
            }
        };
        let before = self.findings.counted().corruptions;
        self.reference(descriptor.offset, descriptor.length(), Table::L2)?;
        if self.findings.counted().corruptions > before {
            walk.walked.findings.extend(self.findings.last_kept());
        } else if descriptor.end().0 > self.reader.file_length {
            let finding = walk.finding(FindingCode::Truncated, index, guest, rules.geometry.cluster_size());
            let place = (Some(descriptor.offset.0), Some(descriptor.length()));
            self.keep(
                walk,
                Finding {
                    offset: place.0,
                    length: place.1,
                    ..finding
                },
            );
        }
        let totals = &mut walk.walked.totals;
        for counter in [&mut totals.allocated, &mut totals.compressed, &mut totals.fragmented] {
            *counter = counter.saturating_add(1);
        }
        Ok(())
    }

    /// Counts the references of tables that were named more than once as often as they were named.
    pub(super) fn count_shared_tables(&mut self, trees: &Trees) -> Result<()> {
        let rules = self.reader.header.entry_rules();
        let length = rules.geometry.cluster_size();
        for (&offset, walked) in trees.walked.iter().filter(|(_, walked)| walked.again > 0) {
            self.context.cancel.check()?;
            let Ok(table) = self.reader.read(offset, length) else {
                continue;
            };
            for (_, entry) in l2_entries(&table, rules.geometry.extended_l2()) {
                let guest = GuestOffset(entry.host_offset().0);
                let plain = L2Entry {
                    word: entry.word & !(1 << 63),
                    ..entry
                };
                let (host, bytes) = match descriptor(plain, &rules, guest) {
                    Some(found) => (found.offset, found.length()),
                    None if entry.is_compressed() || rules.data_file || entry.host_offset().0 == 0 => continue,
                    None => (entry.host_offset(), length),
                };
                // Those beyond the end of the file were found, and counted, at each visit.
                if host.0.saturating_add(bytes).saturating_sub(self.reader.file_length) <= length {
                    self.reference_times(host, bytes, Table::L2, walked.again)?;
                }
            }
        }
        Ok(())
    }

    fn in_l2(&mut self, walk: &mut Walk<'_>, index: u64, guest: GuestOffset, code: FindingCode, value: u64) {
        let finding = walk.finding(code, index, guest, self.reader.header.geometry.cluster_size());
        let cluster = guest.0 >> self.reader.header.geometry.cluster_bits();
        let cluster = matches!(
            code,
            FindingCode::CompressedInDataFile | FindingCode::CompressedSubclusters
        )
        .then_some(cluster);
        self.keep(
            walk,
            Finding {
                value: Some(value),
                cluster,
                ..finding
            },
        );
    }

    fn keep(&mut self, walk: &mut Walk<'_>, finding: Finding) {
        walk.walked.findings.push(finding.clone());
        self.found(finding);
    }

    pub(super) fn truncated(&mut self, table: Table, offset: HostOffset, length: u64) {
        let finding = Finding::corruption(FindingCode::Truncated, table);
        self.found(Finding {
            offset: Some(offset.0),
            length: Some(length),
            ..finding
        });
    }

    pub(super) fn unreadable(&mut self, table: Table, offset: HostOffset, length: u64, error: &std::io::Error) {
        let finding = Finding::new(FindingCode::ReadError, super::Severity::Error, table);
        self.found(Finding {
            offset: Some(offset.0),
            length: Some(length),
            detail: Some(error.to_string()),
            ..finding
        });
    }
}

/// The walk through one L2 table.
#[derive(Debug)]
struct Walk<'s> {
    tree: Tree<'s>,
    l1_index: u64,
    l2_offset: HostOffset,
    /// Where the next plain cluster would stand if it follows the one before.
    next_plain: Option<u64>,
    /// Bytes of an entry.
    entry_size: u64,
    walked: Walked,
}

impl Walk<'_> {
    fn plain(&mut self, host: HostOffset, cluster_size: u64) {
        let totals = &mut self.walked.totals;
        totals.allocated = totals.allocated.saturating_add(1);
        if self.next_plain.is_some_and(|next| next != host.0) {
            totals.fragmented = totals.fragmented.saturating_add(1);
        }
        self.next_plain = Some(host.0.saturating_add(cluster_size));
    }

    fn finding(&self, code: FindingCode, index: u64, guest: GuestOffset, cluster_size: u64) -> Finding {
        Finding {
            index: Some(index),
            offset: Some(self.l2_offset.0.saturating_add(index.saturating_mul(self.entry_size))),
            snapshot: self.tree.snapshot.cloned(),
            guest_ranges: vec![(guest, cluster_size)],
            ..Finding::corruption(code, Table::L2)
        }
    }
}

/// The entries of an L2 table that say anything.
fn l2_entries(table: &[u8], extended: bool) -> impl Iterator<Item = (u64, L2Entry)> + '_ {
    let step = if extended { 16 } else { 8 };
    (0u64..)
        .zip(table.chunks_exact(step))
        .filter_map(move |(index, bytes)| {
            let mut words = words(bytes);
            let entry = L2Entry {
                word: words.next()?,
                subclusters: words.next().unwrap_or(0),
            };
            (entry != L2Entry::default()).then_some((index, entry))
        })
}

fn descriptor(entry: L2Entry, rules: &EntryRules, guest: GuestOffset) -> Option<qcow2_format::CompressedDescriptor> {
    match entry.mapping(rules, guest) {
        Ok(ClusterMapping::Compressed(descriptor)) => Some(descriptor),
        _ => None,
    }
}

fn has_data(entry: L2Entry, extended: bool) -> bool {
    if extended {
        entry.subclusters & 0xffff_ffff != 0
    } else {
        entry.word & 1 == 0
    }
}

/// The finding that an entry's fault is, and the number that goes with it.
fn finding_of(fault: EntryFault, entry: L2Entry) -> Option<(FindingCode, u64)> {
    let host = entry.host_offset().0;
    Some(match fault {
        EntryFault::Unaligned => (FindingCode::UnalignedData, host),
        EntryFault::UnalignedZero => (FindingCode::UnalignedZero, host),
        EntryFault::OffsetTooLarge => (FindingCode::OffsetTooLarge, entry.word),
        EntryFault::ZeroFlagInVersion2 => (FindingCode::ZeroFlagInV2, entry.word),
        EntryFault::SubclusterBothStates => (FindingCode::SubclusterStates, host),
        EntryFault::SubclusterWithoutHost => (FindingCode::SubclustersWithoutHost, host),
        EntryFault::CompressedSubclusters => (FindingCode::CompressedSubclusters, entry.word),
        EntryFault::CompressedInDataFile => (FindingCode::CompressedInDataFile, entry.word),
        EntryFault::DataFileOffset => (FindingCode::DataFileOffset, entry.word),
        EntryFault::CopiedWithoutOffset => (FindingCode::CopiedWithoutOffset, entry.word),
        _ => return None,
    })
}
