//! The snapshot table: always a new one at a new place, and one sector of the header names it.

use qcow2_format::{HostOffset, Snapshot, encode_snapshot_table, limits, parse_snapshot_table};

use super::{Reserved, SnapshotChoice};
use crate::disk::Image;
use crate::disk::refcounts::Clusters;
use crate::error::{Error, Result};

/// A table that nothing names yet.
pub(super) struct NewTable {
    list: Vec<Snapshot>,
    /// Where it lies; 0 without snapshots.
    offset: u64,
    bytes: u64,
}

impl NewTable {
    /// What the header says of it: place and number of snapshots.
    pub(super) fn fields(&self) -> (u64, u32) {
        (self.offset, u32::try_from(self.list.len()).unwrap_or(u32::MAX))
    }
}

impl Image {
    /// Writes the table of `list` to clusters of its own.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub(super) fn write_table(&self, mut list: Vec<Snapshot>, reserved: &mut Reserved<'_>) -> Result<NewTable> {
        if list.is_empty() {
            let (offset, bytes) = (0, 0);
            return Ok(NewTable { list, offset, bytes });
        }
        let (allowed, wanted) = (u64::from(limits::MAX_SNAPSHOTS), list.len() as u64);
        if wanted > allowed {
            let limit = "snapshots";
            return Err(Error::Limit { limit, allowed, wanted });
        }
        let version3 = self.lock().header.is_version3();
        let fault = |error| Error::Format {
            path: self.storage.path().map(Into::into),
            error,
        };
        let mut bytes = encode_snapshot_table(&list, version3).map_err(fault)?;
        let length = bytes.len() as u64;
        let offset = reserved.take(length)?;
        // As it will be read: with the places of its entries.
        let count = u32::try_from(wanted).unwrap_or(u32::MAX);
        (list, _) = parse_snapshot_table(&bytes, HostOffset(offset), count, version3).map_err(fault)?;
        bytes.resize(bytes.len().next_multiple_of(self.geometry.cluster_len()), 0);
        self.write_file(HostOffset(offset), &bytes)?;
        Ok(NewTable {
            list,
            offset,
            bytes: length,
        })
    }

    /// The header names the new table. Returns the clusters of the old one, which are nobody's now.
    pub(super) fn adopt_table(&self, table: NewTable) -> Option<Clusters> {
        let mut state = self.lock();
        let old = std::mem::replace(&mut state.snapshot_table, (table.offset, table.bytes));
        state.snapshots = table.list;
        let clusters = self.geometry.clusters(old.1);
        let geometry = self.geometry;
        state.guard.add_bytes(geometry, HostOffset(table.offset), table.bytes);
        let old = (clusters > 0).then(|| Clusters {
            first: old.0 >> geometry.cluster_bits(),
            count: clusters,
        })?;
        state.guard.remove(old.first, old.count);
        Some(old)
    }

    /// See [`Disk::snapshot_rename`](crate::Disk::snapshot_rename).
    pub(super) fn rename_snapshot(&self, which: &SnapshotChoice, name: &str) -> Result<()> {
        let (number, snapshot) = self.find_snapshot(which)?;
        let mut list = self.lock().snapshots.clone();
        if snapshot.name == name.as_bytes() {
            return Ok(());
        }
        self.check_name(name, &list, false)?;
        self.quiesce()?;
        if let Some(snapshot) = list.get_mut(number) {
            snapshot.name = name.as_bytes().to_vec();
        }
        let mut reserved = Reserved::new(self);
        let table = self.write_table(list, &mut reserved)?;
        self.flush_with(true)?;
        self.switch_header(|fields| fields.snapshots = table.fields())?;
        reserved.keep();
        self.drop_table(table);
        Ok(())
    }

    /// The header names the new table; the old one is given back with the next flush.
    pub(super) fn drop_table(&self, table: NewTable) {
        if let Some(old) = self.adopt_table(table) {
            self.lock().unlink(old, true);
        }
    }

    pub(super) fn check_name(&self, name: &str, list: &[Snapshot], allow_duplicate: bool) -> Result<()> {
        if name.len() > usize::from(u16::MAX) {
            return Err(Error::Invalid {
                argument: "name",
                reason: format!("it has {} bytes, and at most 65535 fit", name.len()),
            });
        }
        if !allow_duplicate && list.iter().any(|snapshot| snapshot.name == name.as_bytes()) {
            return Err(self.snapshot_state("SNAPSHOT_EXISTS", format!("there is a snapshot '{name}' already")));
        }
        Ok(())
    }
}
