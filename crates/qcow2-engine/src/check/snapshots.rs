//! The snapshot table and the trees that it names.

use qcow2_format::{FormatError, SalvagedSnapshots, Snapshot, Table, Version, limits, salvage_snapshot_table};

use super::finding::{Finding, FindingCode, Severity};
use super::tree::{Tree, Trees};
use super::{Check, Result};

/// The first guess at the table's length, which nothing records.
const GUESS: u64 = 64 << 10;

impl Check<'_> {
    /// Reads the snapshot table: its entries and its length in bytes. Damaged, it is a finding and counts as empty.
    pub(super) fn snapshot_table(&mut self) -> (Vec<Snapshot>, u64) {
        let header = self.reader.header;
        let (offset, count) = (header.snapshots_offset, header.snapshot_count);
        let mut guess = GUESS.max(u64::from(count).saturating_mul(64));
        loop {
            let bytes = match self.reader.read(offset, guess) {
                Ok(bytes) if count > 0 => bytes,
                Ok(_) => return (Vec::new(), 0),
                Err(error) => {
                    self.unreadable(Table::SnapshotTable, offset, 0, &error);
                    return (Vec::new(), 0);
                }
            };
            let all = (bytes.len() as u64) < guess || guess > limits::MAX_SNAPSHOT_TABLE_BYTES;
            // What an entry lacks, or has too much of, does not keep the others from being read.
            match salvage_snapshot_table(&bytes, offset, count) {
                Ok(salvaged) => {
                    self.incomplete(&salvaged.snapshots);
                    self.unreadable_entries(&salvaged);
                    return (salvaged.snapshots, salvaged.length);
                }
                Err(FormatError::SnapshotTableTruncated { .. }) if !all => {
                    guess = guess.saturating_mul(4);
                }
                Err(error) => {
                    self.damaged_table(&error);
                    return (Vec::new(), 0);
                }
            }
        }
    }

    fn incomplete(&mut self, snapshots: &[Snapshot]) {
        if self.reader.header.version != Version::V3 {
            return;
        }
        for (index, snapshot) in (0u64..).zip(snapshots).filter(|(_, one)| one.disk_size.is_none()) {
            self.findings.push(Severity::Corruption, || Finding {
                index: Some(index),
                offset: Some(snapshot.entry_offset.0),
                snapshot: Some(named(snapshot)),
                ..Finding::corruption(FindingCode::SnapshotIncomplete, Table::SnapshotTable)
            });
        }
    }

    /// Entries with too much extra data, and those behind the largest length of a table.
    fn unreadable_entries(&mut self, salvaged: &SalvagedSnapshots) {
        for &(index, length) in &salvaged.too_much {
            let index = u64::from(index);
            let snapshot = usize::try_from(index)
                .ok()
                .and_then(|index| salvaged.snapshots.get(index));
            self.findings.push(Severity::Corruption, || Finding {
                index: Some(index),
                offset: snapshot.map(|snapshot| snapshot.entry_offset.0),
                value: Some(u64::from(length)),
                snapshot: snapshot.map(named),
                ..Finding::corruption(FindingCode::SnapshotExtra, Table::SnapshotTable)
            });
        }
        if salvaged.overhanging > 0 {
            self.hidden = true;
            self.findings.push(Severity::Corruption, || Finding {
                index: Some(salvaged.snapshots.len() as u64),
                value: Some(u64::from(salvaged.overhanging)),
                ..Finding::corruption(FindingCode::SnapshotsOverhanging, Table::SnapshotTable)
            });
        }
    }

    fn damaged_table(&mut self, error: &FormatError) {
        self.hidden = true;
        let index = match error {
            FormatError::SnapshotTableTooLarge { index, .. }
            | FormatError::SnapshotTableTruncated { index, .. }
            | FormatError::SnapshotExtra { index, .. } => Some(u64::from(*index)),
            _ => None,
        };
        self.findings.push(Severity::Corruption, || Finding {
            offset: error.offset(),
            index,
            detail: Some(error.to_string()),
            ..Finding::corruption(FindingCode::SnapshotTable, Table::SnapshotTable)
        });
    }

    /// Walks the trees of all snapshots.
    pub(super) fn snapshot_trees(&mut self, trees: &mut Trees, snapshots: &[Snapshot]) -> Result<()> {
        let names: Vec<(String, String)> = snapshots.iter().map(named).collect();
        let mut wanted = Vec::new();
        for ((index, snapshot), named) in (0u64..).zip(snapshots).zip(&names) {
            if self.l1_is_placed(index, snapshot, named) {
                wanted.push(Tree {
                    snapshot: Some(named),
                    l1_offset: snapshot.l1_offset,
                    l1_entries: snapshot.l1_entries,
                });
            }
        }
        if super::sweep::is_needed(&wanted) {
            return self.sweep(trees, wanted);
        }
        for tree in wanted {
            self.tree(trees, tree)?;
        }
        Ok(())
    }

    fn l1_is_placed(&mut self, index: u64, snapshot: &Snapshot, named: &(String, String)) -> bool {
        let hidden = &mut self.hidden;
        let mut misplaced = |code, value| {
            *hidden = true;
            self.findings.push(Severity::Corruption, || Finding {
                index: Some(index),
                offset: Some(snapshot.entry_offset.0),
                value: Some(value),
                snapshot: Some(named.clone()),
                ..Finding::corruption(code, Table::SnapshotTable)
            });
            false
        };
        if !snapshot
            .l1_offset
            .is_aligned(self.reader.header.geometry.cluster_size())
        {
            return misplaced(FindingCode::SnapshotL1Unaligned, snapshot.l1_offset.0);
        }
        if u64::from(snapshot.l1_entries).saturating_mul(8) > limits::MAX_L1_BYTES {
            return misplaced(FindingCode::SnapshotL1TooLarge, u64::from(snapshot.l1_entries));
        }
        true
    }
}

/// Id and name, fit to be shown.
fn named(snapshot: &Snapshot) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(char::is_control, "\u{fffd}");
    (text(&snapshot.id), text(&snapshot.name))
}
