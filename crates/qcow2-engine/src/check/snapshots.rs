//! The snapshot table and the trees that it names.

use qcow2_format::{FormatError, Snapshot, Table, Version, limits, parse_snapshot_table};

use super::finding::{Finding, FindingCode, Severity};
use super::tree::{Tree, Trees};
use super::{Check, Result};

impl Check<'_> {
    /// Reads the snapshot table: its entries and its length in bytes. Damaged, it is a finding and counts as empty.
    pub(super) fn snapshot_table(&mut self) -> (Vec<Snapshot>, u64) {
        let header = self.reader.header;
        if header.snapshot_count == 0 {
            return (Vec::new(), 0);
        }
        let offset = header.snapshots_offset;
        let bytes = match self.reader.read(offset, limits::MAX_SNAPSHOT_TABLE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.unreadable(Table::SnapshotTable, offset, 0, &error);
                return (Vec::new(), 0);
            }
        };
        match parse_snapshot_table(&bytes, offset, header.snapshot_count, header.version == Version::V3) {
            Ok(table) => table,
            Err(error) => {
                let index = match error {
                    FormatError::SnapshotTableTooLarge { index, .. }
                    | FormatError::SnapshotTableTruncated { index, .. }
                    | FormatError::SnapshotExtra { index, .. }
                    | FormatError::SnapshotIncomplete { index, .. } => Some(u64::from(index)),
                    _ => None,
                };
                let finding = Finding::new(FindingCode::SnapshotTable, Severity::Corruption, Table::SnapshotTable);
                self.found(Finding {
                    offset: error.offset(),
                    index,
                    detail: Some(error.to_string()),
                    ..finding
                });
                (Vec::new(), 0)
            }
        }
    }

    pub(super) fn snapshot_tree(&mut self, trees: &mut Trees, snapshot: &Snapshot) -> Result<()> {
        let header = self.reader.header;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(char::is_control, "\u{fffd}");
        let named = (text(&snapshot.id), text(&snapshot.name));
        let finding = |code, value| Finding {
            offset: Some(snapshot.entry_offset.0),
            value: Some(value),
            snapshot: Some(named.clone()),
            ..Finding::corruption(code, Table::SnapshotTable)
        };
        if !snapshot.l1_offset.is_aligned(header.geometry.cluster_size()) {
            self.found(finding(FindingCode::SnapshotL1Unaligned, snapshot.l1_offset.0));
            return Ok(());
        }
        if u64::from(snapshot.l1_entries).saturating_mul(8) > limits::MAX_L1_BYTES {
            self.found(finding(FindingCode::SnapshotL1TooLarge, u64::from(snapshot.l1_entries)));
            return Ok(());
        }
        let tree = Tree {
            snapshot: Some(&named),
            l1_offset: snapshot.l1_offset,
            l1_entries: snapshot.l1_entries,
        };
        self.tree(trees, tree)
    }
}
