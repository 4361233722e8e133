//! What a check can find.
//!
//! Which fields a finding carries, so that others can word it anew:
//!
//! | code | table | fields |
//! |---|---|---|
//! | `LEAK`, `REFCOUNT_TOO_LOW` | refcount-block | cluster, refcount, references, offset (of the cluster) |
//! | `COPIED_FLAG` | l1: index, value (the entry), refcount · l2: value, refcount, offset (of the entry) |
//! | `BEYOND_END_OF_FILE` | what refers | offset and length of what is referred to |
//! | `REFERENCE_OVERFLOW` | what refers | offset of what is referred to, cluster |
//! | `UNALIGNED_DATA`, `UNALIGNED_ZERO` | l2 | value (the host offset), offset (of the entry) |
//! | `RESERVED_BITS` | l1, l2 | value (the entry) · refcount-table: index |
//! | `UNALIGNED_TABLE` | l1 | value (the L2 offset), index |
//! | `COPIED_COMPRESSED` | l2 | value (the compressed offset) |
//! | `COMPRESSED_IN_DATA_FILE`, `COMPRESSED_SUBCLUSTERS` | l2 | value (the entry), index (in its table, the number that QEMU prints) |
//! | `SUBCLUSTER_STATES`, `SUBCLUSTERS_WITHOUT_HOST` | l2 | value (the host offset) |
//! | `SNAPSHOTS_WITH_DATA_FILE` | snapshot-table | value (how many) |
//! | `SNAPSHOT_L1_UNALIGNED` | snapshot-table | value (the L1 offset), snapshot, snapshot_id, index |
//! | `SNAPSHOT_L1_TOO_LARGE` | snapshot-table | value (the entries), snapshot, snapshot_id, index |
//! | `SNAPSHOT_INCOMPLETE` | snapshot-table | index, offset, snapshot, snapshot_id |
//! | `SNAPSHOT_EXTRA` | snapshot-table | index, offset, value (bytes of extra data), snapshot, snapshot_id |
//! | `SNAPSHOTS_OVERHANGING` | snapshot-table | index (of the first), value (how many) |
//! | `REFCOUNT_BLOCK_UNALIGNED`, `REFCOUNT_BLOCK_OUTSIDE` | refcount-table | index |
//! | `REFCOUNT_BLOCK_REFERENCES` | refcount-table | index, references |
//! | `BITMAP_TABLE` | bitmap-table | offset, index, value (the entry) |
//! | `READ_ERROR` | what was read | offset, length, `detail` · refcount-block: cluster |
//!
//! All that are found in an entry have its `offset` (unless said otherwise), its `index` and the guest range that it maps; `LEAK` has none,
//! and `REFCOUNT_TOO_LOW` and `REFERENCE_OVERFLOW` have the ranges of the active disk that lie in the cluster.
//!
//! QEMU's check is blind to the following, so that its counts are lower than ours where they come up:
//!
//! | code | table | fields | why it is a corruption |
//! |---|---|---|---|
//! | `TRUNCATED` | what lies there | offset and length of it | bytes of the guest, or of a table, are gone: QEMU reads zeros there |
//! | `DATA_FILE_OFFSET` | l2 | value (the entry) | the format wants guest offset and host offset equal; a raw data file reads otherwise |
//! | `ZERO_FLAG_IN_V2` | l2 | value (the entry) | version 2 has no such flag |
//! | `ZERO_FLAG_WITH_SUBCLUSTERS` | l2 | value (the entry) | the bit is reserved with extended L2 entries |
//! | `COPIED_WITHOUT_OFFSET` | l2 | value (the entry) | it claims a reference to nothing |
//! | `OFFSET_TOO_LARGE` | l2 | value (the entry) | no host offset is that large |
//! | `SNAPSHOT_TABLE` | snapshot-table | offset, index, `detail` | QEMU reads what the file lacks as zeros, or gives up |
//! | `BITMAP_DIRECTORY` | bitmap-directory | offset, `detail` | QEMU takes names with control characters, and gives up at the rest |

use qcow2_format::{GuestOffset, Table};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Space is lost, data is not in danger.
    Leak,
    /// Data is damaged, or would be by a write.
    Corruption,
    /// The check itself could not look there.
    Error,
}

macro_rules! codes {
    ($( $(#[$doc:meta])* $variant:ident $name:literal $text:literal; )*) => {
        /// The kind of a finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum FindingCode { $( $(#[$doc])* $variant, )* }

        impl FindingCode {
            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// What it means, in words.
            pub const fn text(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }
    };
}

codes! {
    /// The refcount is higher than the references.
    Leak "LEAK" "a cluster's refcount is higher than the references to it";
    /// The refcount is lower than the references.
    RefcountTooLow "REFCOUNT_TOO_LOW" "a cluster's refcount is lower than the references to it: a write may overwrite live data";
    /// COPIED does not say whether the refcount is one.
    CopiedFlag "COPIED_FLAG" "the COPIED flag does not match the refcount";
    /// A reference passes the end of the file.
    BeyondEndOfFile "BEYOND_END_OF_FILE" "a reference passes the end of the file by a cluster or more";
    /// More references than a refcount can count.
    ReferenceOverflow "REFERENCE_OVERFLOW" "a cluster has more references than the refcount width can count";
    /// What should be in the file is not.
    Truncated "TRUNCATED" "a table or data cluster passes the end of the file: the image is truncated";
    /// A data cluster is not aligned.
    UnalignedData "UNALIGNED_DATA" "a data cluster's host offset is not aligned";
    /// A preallocated zero cluster is not aligned.
    UnalignedZero "UNALIGNED_ZERO" "a preallocated zero cluster's host offset is not aligned";
    /// Reserved bits are set.
    ReservedBits "RESERVED_BITS" "reserved bits of an entry are set";
    /// An L2 table is not aligned.
    UnalignedTable "UNALIGNED_TABLE" "an L2 table's offset is not aligned";
    /// COPIED on a compressed cluster.
    CopiedCompressed "COPIED_COMPRESSED" "the COPIED flag is set for a compressed cluster";
    /// A compressed cluster with an external data file.
    CompressedInDataFile "COMPRESSED_IN_DATA_FILE" "a compressed cluster in an image with an external data file";
    /// Subcluster bits of a compressed cluster.
    CompressedSubclusters "COMPRESSED_SUBCLUSTERS" "a compressed cluster has subcluster bits";
    /// A subcluster both allocated and zero.
    SubclusterStates "SUBCLUSTER_STATES" "a subcluster is marked both allocated and zero";
    /// Allocated subclusters in a cluster without host offset.
    SubclustersWithoutHost "SUBCLUSTERS_WITHOUT_HOST" "a subcluster is marked allocated in a cluster without host offset";
    /// A cluster of the data file is not at its guest offset.
    DataFileOffset "DATA_FILE_OFFSET" "a cluster of the external data file is not at its guest offset";
    /// A zero flag in version 2.
    ZeroFlagInV2 "ZERO_FLAG_IN_V2" "the zero flag is set in a version 2 image";
    /// COPIED without an offset.
    CopiedWithoutOffset "COPIED_WITHOUT_OFFSET" "the COPIED flag is set for a cluster without host offset";
    /// An offset of 2^56 or more.
    OffsetTooLarge "OFFSET_TOO_LARGE" "a host offset is 2^56 or larger";
    /// Internal snapshots with an external data file.
    SnapshotsWithDataFile "SNAPSHOTS_WITH_DATA_FILE" "internal snapshots in an image with an external data file";
    /// A snapshot's L1 table is not aligned.
    SnapshotL1Unaligned "SNAPSHOT_L1_UNALIGNED" "a snapshot's L1 table is not aligned";
    /// A snapshot's L1 table is too large.
    SnapshotL1TooLarge "SNAPSHOT_L1_TOO_LARGE" "a snapshot's L1 table is too large";
    /// The zero flag with extended L2 entries.
    ZeroFlagWithSubclusters "ZERO_FLAG_WITH_SUBCLUSTERS" "bit 0 of an extended L2 entry is set";
    /// A snapshot table entry lacks fields.
    SnapshotIncomplete "SNAPSHOT_INCOMPLETE" "a snapshot table entry lacks what version 3 wants: its disk size";
    /// A snapshot table entry has more extra data than a reader takes.
    SnapshotExtra "SNAPSHOT_EXTRA" "a snapshot table entry has more than 1024 bytes of extra data, so that the image cannot be opened";
    /// The snapshot table is longer than a reader takes.
    SnapshotsOverhanging "SNAPSHOTS_OVERHANGING" "snapshots lie behind the largest length of a snapshot table, so that the image cannot be opened";
    /// The snapshot table cannot be read.
    SnapshotTable "SNAPSHOT_TABLE" "the snapshot table is damaged";
    /// A refcount block is not aligned.
    RefcountBlockUnaligned "REFCOUNT_BLOCK_UNALIGNED" "a refcount block's offset is not aligned";
    /// A refcount block lies outside the file.
    RefcountBlockOutside "REFCOUNT_BLOCK_OUTSIDE" "a refcount block lies outside the file";
    /// A refcount block is used for something else too.
    RefcountBlockReferences "REFCOUNT_BLOCK_REFERENCES" "a refcount block's cluster is referenced more than once";
    /// The bitmap directory is damaged.
    BitmapDirectory "BITMAP_DIRECTORY" "the bitmap directory is damaged";
    /// A bitmap's table is damaged.
    BitmapTable "BITMAP_TABLE" "a bitmap's table is damaged";
    /// Something could not be read.
    ReadError "READ_ERROR" "a part of the image could not be read";
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub code: FindingCode,
    /// How bad it is.
    pub severity: Severity,
    /// The structure it was found in.
    pub table: Table,
    /// Index of the entry in it.
    pub index: Option<u64>,
    /// Offset in the file, see the table above.
    pub offset: Option<u64>,
    /// Length in bytes of what `offset` names.
    pub length: Option<u64>,
    /// Number of the host cluster.
    pub cluster: Option<u64>,
    /// Its refcount on disk.
    pub refcount: Option<u64>,
    /// References to it that were counted.
    pub references: Option<u64>,
    /// The entry, or the number in it that is wrong.
    pub value: Option<u64>,
    /// Guest ranges of the active disk that it touches: begin and length in bytes. At most 16.
    pub guest_ranges: Vec<(GuestOffset, u64)>,
    /// Id and name of the snapshot whose tree it was found in.
    pub snapshot: Option<(String, String)>,
    /// More, in words.
    pub detail: Option<String>,
}

impl Finding {
    /// A finding of which only the code is known yet.
    pub(crate) fn new(code: FindingCode, severity: Severity, table: Table) -> Self {
        Self {
            code,
            severity,
            table,
            index: None,
            offset: None,
            length: None,
            cluster: None,
            refcount: None,
            references: None,
            value: None,
            guest_ranges: Vec::new(),
            snapshot: None,
            detail: None,
        }
    }

    pub(crate) fn corruption(code: FindingCode, table: Table) -> Self {
        Self::new(code, Severity::Corruption, table)
    }

    /// One sentence for people.
    pub fn message(&self) -> String {
        let mut text = self.code.text().to_owned();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!(", {name} {value}"));
            }
        };
        add("cluster", self.cluster.map(|c| c.to_string()));
        add("refcount", self.refcount.map(|c| c.to_string()));
        add("references", self.references.map(|c| c.to_string()));
        add("index", self.index.map(|c| c.to_string()));
        add("offset", self.offset.map(|c| format!("{c:#x}")));
        add("value", self.value.map(|c| format!("{c:#x}")));
        add(
            "snapshot",
            self.snapshot.as_ref().map(|(id, name)| format!("{id} ({name})")),
        );
        if let Some(detail) = &self.detail {
            text.push_str(": ");
            text.push_str(detail);
        }
        text
    }
}

/// How many findings of each severity there were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    pub(super) errors: u64,
    pub(super) corruptions: u64,
    pub(super) leaks: u64,
}

/// All findings: counted always, made and kept up to a limit. Findings about COPIED flags come last.
#[derive(Debug)]
pub(super) struct Findings {
    kept: List,
    deferred: List,
    counted: Counted,
}

/// Findings up to a limit, and how many there were beyond it.
#[derive(Debug)]
struct List {
    kept: Vec<Finding>,
    omitted: u64,
    limit: usize,
}

impl List {
    fn new(limit: usize) -> Self {
        Self {
            kept: Vec::new(),
            omitted: 0,
            limit,
        }
    }

    fn is_full(&self) -> bool {
        self.kept.len() >= self.limit
    }

    fn push(&mut self, make: impl FnOnce() -> Finding) -> Option<&Finding> {
        if self.is_full() {
            self.omitted = self.omitted.saturating_add(1);
            return None;
        }
        self.kept.push(make());
        self.kept.last()
    }

    /// `times` rounds of `found` findings, of which those that `kept` gives are known.
    fn repeat(&mut self, times: u64, found: u64, kept: impl Iterator<Item = Finding> + Clone) {
        let mut made = 0u64;
        if kept.clone().next().is_some() {
            let rounds = (0..times).flat_map(|_| kept.clone());
            for finding in rounds.take(self.limit.saturating_sub(self.kept.len())) {
                self.kept.push(finding);
                made += 1;
            }
        }
        let all = times.saturating_mul(found);
        self.omitted = self.omitted.saturating_add(all.saturating_sub(made));
    }
}

impl Findings {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            kept: List::new(limit),
            deferred: List::new(limit),
            counted: Counted::default(),
        }
    }

    /// Counts a finding, and makes it if there is room for it.
    pub(super) fn push(&mut self, severity: Severity, make: impl FnOnce() -> Finding) -> Option<&Finding> {
        self.count(severity, 1);
        self.kept.push(make)
    }

    /// The same finding, `times` times.
    pub(super) fn push_times(&mut self, times: u64, severity: Severity, make: impl Fn() -> Finding) {
        self.count(severity, times);
        let room = self.kept.limit.saturating_sub(self.kept.kept.len()) as u64;
        for _ in 0..times.min(room) {
            self.kept.push(&make);
        }
        self.kept.omitted = self.kept.omitted.saturating_add(times.saturating_sub(room));
    }

    /// A corruption that belongs behind all others.
    pub(super) fn defer(&mut self, make: impl FnOnce() -> Finding) -> Option<&Finding> {
        self.count(Severity::Corruption, 1);
        self.deferred.push(make)
    }

    /// `times` rounds of `found` corruptions, of which those that `kept` gives are known.
    pub(super) fn repeat(&mut self, times: u64, found: u64, kept: impl Iterator<Item = Finding> + Clone) {
        self.count(Severity::Corruption, times.saturating_mul(found));
        self.kept.repeat(times, found, kept);
    }

    /// As [`Findings::repeat`], for corruptions that belong behind all others.
    pub(super) fn repeat_deferred(&mut self, times: u64, found: u64, kept: impl Iterator<Item = Finding> + Clone) {
        self.count(Severity::Corruption, times.saturating_mul(found));
        self.deferred.repeat(times, found, kept);
    }

    /// Counts findings that nothing more is told about.
    pub(super) fn omit(&mut self, severity: Severity, number: u64) {
        self.count(severity, number);
        self.kept.omitted = self.kept.omitted.saturating_add(number);
    }

    pub(super) fn is_full(&self) -> bool {
        self.kept.is_full()
    }

    pub(super) fn append_deferred(&mut self) {
        let (list, deferred) = (&mut self.kept, &mut self.deferred);
        let room = list.limit.saturating_sub(list.kept.len());
        let over = deferred.kept.len().saturating_sub(room) as u64;
        list.omitted = list.omitted.saturating_add(over).saturating_add(deferred.omitted);
        list.kept.extend(deferred.kept.drain(..).take(room));
    }

    pub(super) fn kept_mut(&mut self) -> &mut [Finding] {
        &mut self.kept.kept
    }

    pub(super) fn counted(&self) -> Counted {
        self.counted
    }

    pub(super) fn into_parts(self) -> (Vec<Finding>, u64) {
        (self.kept.kept, self.kept.omitted)
    }

    fn count(&mut self, severity: Severity, number: u64) {
        let counter = match severity {
            Severity::Leak => &mut self.counted.leaks,
            Severity::Corruption => &mut self.counted.corruptions,
            Severity::Error => &mut self.counted.errors,
        };
        *counter = counter.saturating_add(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_some_are_kept() {
        let mut findings = Findings::new(5);
        let make = || Finding::corruption(FindingCode::ReservedBits, Table::L2);
        assert!(findings.push(Severity::Corruption, make).is_some());
        findings.push_times(2, Severity::Corruption, make);
        findings.repeat(1 << 40, 2, [make()].iter().cloned());
        findings.defer(make);
        assert!(findings.is_full());
        findings.append_deferred();
        let counted = findings.counted();
        assert_eq!(
            (counted.corruptions, counted.leaks, counted.errors),
            ((2 << 40) + 4, 0, 0)
        );
        let (kept, omitted) = findings.into_parts();
        assert_eq!((kept.len(), omitted), (5, (2 << 40) - 1));
    }
}
