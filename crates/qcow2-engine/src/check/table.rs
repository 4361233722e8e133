//! One L2 table: what its entries refer to, and whether they say so in a way that the format allows.

use qcow2_format::entry::EntryRules;
use qcow2_format::{ClusterMapping, CompressedDescriptor, EntryFault, GuestOffset, HostOffset, L2Entry, Table};

use super::finding::{Finding, FindingCode, Severity};
use super::tree::Visit;
use super::{Check, Result};

/// Every bit of an L2 word but COPIED.
const NOT_COPIED: u64 = !(1 << 63);
/// Entries that are compared at a time.
const GROUP: usize = 16;
/// The first host offset that is too large.
const OFFSET_END: u64 = 1 << 56;

/// Clusters of one L2 table, as the report counts them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) allocated: u64,
    pub(super) fragmented: u64,
    pub(super) compressed: u64,
}

/// The walk through one L2 table.
#[derive(Debug)]
pub(super) struct Walk<'s> {
    visit: Visit<'s>,
    /// Its findings are wanted again.
    remember: bool,
    /// Where the next plain cluster would stand if it follows the one before.
    next_plain: Option<u64>,
    pub(super) totals: Totals,
    pub(super) found: u64,
    pub(super) flags_found: u64,
    pub(super) kept: Vec<Finding>,
    pub(super) flags_kept: Vec<Finding>,
}

/// An entry and where it stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    index: u64,
    guest: GuestOffset,
    entry: L2Entry,
}

impl<'s> Walk<'s> {
    pub(super) fn new(visit: Visit<'s>, remember: bool) -> Self {
        Self {
            visit,
            remember,
            next_plain: None,
            totals: Totals::default(),
            found: 0,
            flags_found: 0,
            kept: Vec::new(),
            flags_kept: Vec::new(),
        }
    }

    /// Counts a row of plain clusters.
    fn plain(&mut self, host: HostOffset, clusters: u64, cluster_size: u64) {
        self.totals.allocated = self.totals.allocated.saturating_add(clusters);
        if self.next_plain.is_some_and(|next| next != host.0) {
            self.totals.fragmented = self.totals.fragmented.saturating_add(1);
        }
        self.next_plain = Some(host.0.saturating_add(clusters.saturating_mul(cluster_size)));
    }

    fn finding(&self, code: FindingCode, place: Place, rules: &EntryRules) -> Finding {
        let at = place.index.saturating_mul(rules.geometry.l2_entry_size());
        Finding {
            index: Some(place.index),
            offset: Some(self.visit.l2_offset.0.saturating_add(at)),
            value: Some(place.entry.word),
            snapshot: self.visit.tree.snapshot.cloned(),
            guest_ranges: vec![(place.guest, rules.geometry.cluster_size())],
            ..Finding::corruption(code, Table::L2)
        }
    }
}

impl Check<'_> {
    pub(super) fn l2_table(&mut self, walk: &mut Walk<'_>) -> Result<()> {
        let rules = self.reader.header.entry_rules();
        let length = rules.geometry.cluster_size();
        if self.reader.is_hole(walk.visit.l2_offset, length) {
            return Ok(());
        }
        let table = match self.reader.table(walk.visit.l2_offset) {
            Ok(table) => table,
            Err(error) => {
                self.unreadable(Table::L2, walk.visit.l2_offset, length, &error);
                return Ok(());
            }
        };
        if (table.len() as u64) < length {
            self.truncated(Table::L2, walk.visit.l2_offset, length);
        }
        let step = if rules.geometry.extended_l2() { 2 } else { 1 };
        let (words, _) = table.as_chunks::<8>();
        let mut at = 0;
        while let Some(entry) = entry_at(words, at, step) {
            if entry == L2Entry::default() {
                at += step;
                continue;
            }
            let index = (at / step) as u64;
            let guest = rules
                .geometry
                .guest_offset(walk.visit.l1_index, index)
                .unwrap_or_default();
            let place = Place { index, guest, entry };
            let row = if step == 1 {
                row_length(words, at, place, &rules)
            } else {
                0
            };
            if row > 1 && self.row(walk, place, row, &rules)? {
                at += usize::try_from(row).unwrap_or(1);
                continue;
            }
            self.l2_entry(walk, place, &rules)?;
            at += step;
        }
        Ok(())
    }

    /// Checks a row of plain clusters that follow each other, at once. `false`: they have to be looked at one by one.
    fn row(&mut self, walk: &mut Walk<'_>, place: Place, clusters: u64, rules: &EntryRules) -> Result<bool> {
        let (host, size) = (place.entry.host_offset(), rules.geometry.cluster_size());
        let (first, copied) = (rules.geometry.cluster_index(host).0, place.entry.copied());
        let flags = walk.visit.flags;
        if rules.data_file {
            if flags && !copied {
                return Ok(false);
            }
        } else {
            let inside = host.0.saturating_add(clusters.saturating_mul(size)) <= self.reader.file_length;
            if !inside || (flags && !self.reader.row_is(first, clusters, copied)) {
                return Ok(false);
            }
            let overflows = self.counts.add(first, clusters, 1)?;
            self.overflowed(&overflows, host, Table::L2);
        }
        walk.plain(host, clusters, size);
        Ok(true)
    }

    fn l2_entry(&mut self, walk: &mut Walk<'_>, place: Place, rules: &EntryRules) -> Result<()> {
        let entry = place.entry;
        if entry.is_compressed() {
            return self.compressed_entry(walk, place, rules);
        }
        if entry.reserved(rules.geometry) & !1 != 0 {
            self.note(walk, FindingCode::ReservedBits, place, rules, entry.word);
        }
        if entry.reserved(rules.geometry) & 1 != 0 {
            self.note(walk, FindingCode::ZeroFlagWithSubclusters, place, rules, entry.word);
        }
        let mapping = entry.mapping(rules, place.guest);
        // In a data file offset 0 can be a cluster's own, but not a zero cluster's.
        let plain_zero = mapping == Ok(ClusterMapping::Zero(None));
        if let Some((code, value)) = mapping.err().and_then(|fault| finding_of(fault, entry)) {
            self.note(walk, code, place, rules, value);
        }
        let (host, size) = (entry.host_offset(), rules.geometry.cluster_size());
        if plain_zero || (host.0 == 0 && !(rules.data_file && entry.copied())) {
            return Ok(());
        }
        walk.plain(host, 1, size);
        if !rules.data_file && self.reference_in(walk, host, size)? {
            let missing = host.0 >= self.reader.file_length && has_data(entry, rules.geometry.extended_l2());
            if missing {
                self.note_truncated(walk, place, rules, host, size);
            }
        }
        if walk.visit.flags {
            self.copied_flag(walk, place, rules);
        }
        Ok(())
    }

    fn copied_flag(&mut self, walk: &mut Walk<'_>, place: Place, rules: &EntryRules) {
        let cluster = rules.geometry.cluster_index(place.entry.host_offset()).0;
        let one = if rules.data_file {
            Some(true)
        } else {
            self.reader.is_one(cluster)
        };
        if one.is_none_or(|one| one == place.entry.copied()) {
            return;
        }
        walk.flags_found = walk.flags_found.saturating_add(1);
        let room = self.findings.defer(|| {
            let refcount = if rules.data_file {
                Some(1)
            } else {
                self.reader.refcount(cluster)
            };
            Finding {
                refcount,
                ..walk.finding(FindingCode::CopiedFlag, place, rules)
            }
        });
        if let Some(kept) = room.filter(|_| walk.remember) {
            walk.flags_kept.push(kept.clone());
        }
    }

    fn compressed_entry(&mut self, walk: &mut Walk<'_>, place: Place, rules: &EntryRules) -> Result<()> {
        if place.entry.copied() {
            // The offset bits as they stand: with other faults there is no descriptor to take them from.
            let at = place.entry.word & (1u64 << (70 - rules.geometry.cluster_bits())).wrapping_sub(1);
            self.note(walk, FindingCode::CopiedCompressed, place, rules, at);
        }
        let found = match without_copied(place.entry).mapping(rules, place.guest) {
            Ok(ClusterMapping::Compressed(found)) => found,
            Ok(_) => return Ok(()),
            Err(fault) => {
                self.hidden = true;
                let entry = without_copied(place.entry);
                if let Some((code, value)) = finding_of(fault, entry) {
                    self.note(walk, code, place, rules, value);
                }
                return Ok(());
            }
        };
        if self.reference_in(walk, found.offset, found.length())? && found.end().0 > self.reader.file_length {
            self.note_truncated(walk, place, rules, found.offset, found.length());
        }
        for counter in [
            &mut walk.totals.allocated,
            &mut walk.totals.compressed,
            &mut walk.totals.fragmented,
        ] {
            *counter = counter.saturating_add(1);
        }
        Ok(())
    }

    /// Counts the references of a table again.
    pub(super) fn count_again(&mut self, offset: HostOffset, times: u64) -> Result<()> {
        let rules = self.reader.header.entry_rules();
        let size = rules.geometry.cluster_size();
        let step = if rules.geometry.extended_l2() { 2 } else { 1 };
        if self.reader.is_hole(offset, size) {
            return Ok(());
        }
        let Ok(table) = self.reader.table(offset) else {
            return Ok(());
        };
        let (words, _) = table.as_chunks::<8>();
        let mut at = 0;
        while let Some(entry) = entry_at(words, at, step) {
            let place = Place {
                index: 0,
                guest: GuestOffset(entry.host_offset().0),
                entry,
            };
            let row = if step == 1 && entry.word != 0 {
                row_length(words, at, place, &rules).max(1)
            } else {
                1
            };
            at += usize::try_from(row).unwrap_or(1).saturating_mul(step);
            let (host, bytes) = match descriptor(entry, &rules) {
                Some(found) => (found.offset, found.length()),
                None if entry.is_compressed() || rules.data_file || entry.host_offset().0 == 0 => continue,
                None => (entry.host_offset(), row.saturating_mul(size)),
            };
            // Those beyond the end of the file were found, and counted, at each visit.
            if !self.is_beyond(host, bytes) {
                self.reference_times(host, bytes, Table::L2, times)?;
            } else if row > 1 {
                for n in 0..row {
                    let host = HostOffset(host.0.saturating_add(n.saturating_mul(size)));
                    if !self.is_beyond(host, size) {
                        self.reference_times(host, size, Table::L2, times)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts a reference of an entry. `false`: it passes the end of the file, which is a finding.
    fn reference_in(&mut self, walk: &mut Walk<'_>, host: HostOffset, length: u64) -> Result<bool> {
        if !self.is_beyond(host, length) {
            return self.reference(host, length, Table::L2);
        }
        walk.found = walk.found.saturating_add(1);
        let kept = self.beyond(host, length, Table::L2, 1);
        if let Some(kept) = kept.filter(|_| walk.remember) {
            walk.kept.push(kept.clone());
        }
        Ok(false)
    }

    fn note_truncated(&mut self, walk: &mut Walk<'_>, place: Place, rules: &EntryRules, host: HostOffset, length: u64) {
        self.keep(walk, |walk| Finding {
            offset: Some(host.0),
            length: Some(length),
            value: None,
            ..walk.finding(FindingCode::Truncated, place, rules)
        });
    }

    fn note(&mut self, walk: &mut Walk<'_>, code: FindingCode, place: Place, rules: &EntryRules, value: u64) {
        self.hidden |= matches!(
            code,
            FindingCode::UnalignedData | FindingCode::UnalignedZero | FindingCode::OffsetTooLarge
        );
        self.keep(walk, |walk| Finding {
            value: Some(value),
            ..walk.finding(code, place, rules)
        });
    }

    fn keep(&mut self, walk: &mut Walk<'_>, finding: impl FnOnce(&Walk<'_>) -> Finding) {
        walk.found = walk.found.saturating_add(1);
        let kept = self.findings.push(Severity::Corruption, || finding(walk));
        if let Some(kept) = kept.filter(|_| walk.remember) {
            walk.kept.push(kept.clone());
        }
    }
}

fn entry_at(words: &[[u8; 8]], at: usize, step: usize) -> Option<L2Entry> {
    let word = |at: usize| words.get(at).map(|word| u64::from_be_bytes(*word));
    Some(L2Entry {
        word: word(at)?,
        subclusters: if step == 2 { word(at + 1)? } else { 0 },
    })
}

/// How many entries from `at` on are plain clusters that follow each other, COPIED in all or in none; 0 if the first is no plain cluster.
fn row_length(words: &[[u8; 8]], at: usize, place: Place, rules: &EntryRules) -> u64 {
    let (first, size) = (place.entry.word, rules.geometry.cluster_size());
    let host = place.entry.host_offset().0;
    if first & NOT_COPIED != host || !matches!(place.entry.mapping(rules, place.guest), Ok(ClusterMapping::Data(_))) {
        return 0;
    }
    let room = usize::try_from((OFFSET_END - host) / size).unwrap_or(usize::MAX);
    let rest = words.get(at..).unwrap_or_default();
    let rest = rest.get(..room).unwrap_or(rest);
    let expected = |index: usize| first.wrapping_add(size.wrapping_mul(index as u64));
    // Long rows first, many entries to a question; then one by one up to the one that is different.
    let (groups, _) = rest.as_chunks::<GROUP>();
    let follows = |(number, group): &(usize, &[[u8; 8]; GROUP])| {
        let mut expected = expected(*number * GROUP);
        let mut differs = 0;
        for word in *group {
            differs |= u64::from_be_bytes(*word) ^ expected;
            expected = expected.wrapping_add(size);
        }
        differs == 0
    };
    let in_groups = groups.iter().enumerate().take_while(follows).count() * GROUP;
    let rest = rest.iter().enumerate().skip(in_groups);
    let others = rest.take_while(|(index, word)| u64::from_be_bytes(**word) == expected(*index));
    (in_groups + others.count()) as u64
}

fn without_copied(entry: L2Entry) -> L2Entry {
    L2Entry {
        word: entry.word & NOT_COPIED,
        ..entry
    }
}

/// What a compressed entry names, whatever its COPIED flag says.
pub(super) fn descriptor(entry: L2Entry, rules: &EntryRules) -> Option<CompressedDescriptor> {
    match without_copied(entry).mapping(rules, GuestOffset(0)) {
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
