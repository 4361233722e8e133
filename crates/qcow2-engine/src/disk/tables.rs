//! L1 and L2 tables as a writer sees them.

use qcow2_format::{GuestOffset, HostOffset, L1Entry, L2Entry, Table};

use super::refcounts::Clusters;
use super::state::{State, Step, Stop, to_len};
use crate::error::Error;
use crate::overlay::Class;

impl State {
    /// The L2 table of an L1 entry, if there is one.
    pub(super) fn l2_table(&self, l1_index: u64) -> Step<Option<u64>> {
        let Some(offset) = self.l1.entries().get(l1_index).l2_offset() else {
            return Ok(None);
        };
        if offset.is_aligned(self.cluster_size()) {
            return Ok(Some(offset.0));
        }
        let guest = GuestOffset(l1_index.saturating_mul(self.geometry.l1_entry_span()));
        Err(self.entry_fault(
            Table::L1,
            self.header.newest.l1.0 + l1_index * 8,
            guest,
            qcow2_format::EntryFault::Unaligned,
        ))
    }

    /// The L2 table of an L1 entry that may be changed: a new one where there is none, a copy where it is shared.
    pub(super) fn own_l2(&mut self, l1_index: u64) -> Step<u64> {
        let old = self.l2_table(l1_index)?;
        let size = self.cluster_size();
        if let Some(table) = old {
            let cluster = self.cluster_of(HostOffset(table));
            if self.guard.has(cluster) {
                return Err(self.corrupt(cluster, "an L2 table lies on the image's other tables"));
            }
            let count = self.refcount(cluster)?;
            if count == 0 {
                return Err(self.corrupt(cluster, "an L2 table has refcount 0"));
            }
            if count == 1 && self.l1.entries().get(l1_index).copied() {
                return Ok(table);
            }
            self.touch(table, size)?;
        }
        let new = self.free_cluster()?;
        self.reserve_table(self.offset_of(new))?;
        let new = self.allocate(1)?;
        let offset = self.offset_of(new.first);
        let mut contents = Vec::with_capacity(self.geometry.cluster_len());
        if let Some(table) = old {
            for at in (table..table + size).step_by(to_len(self.piece_size())) {
                contents.extend_from_slice(self.piece(at)?);
            }
        }
        contents.resize(self.geometry.cluster_len(), 0);
        self.new_table(offset, Class::Prepare, &contents);
        self.set_l1(l1_index, L1Entry::new(HostOffset(offset), true));
        if let Some(table) = old {
            let first = self.cluster_of(HostOffset(table));
            self.unlink(Clusters { first, count: 1 }, false);
        }
        Ok(offset)
    }

    /// Sets an entry of the active L1 table.
    pub(super) fn set_l1(&mut self, index: u64, entry: L1Entry) {
        let entries = self.l1.entries();
        if let Some((known, tables)) = &mut self.l2_tables
            && known.same(&entries)
        {
            if let Some(old) = entries.get(index).l2_offset() {
                tables.remove(&old.0);
            }
            tables.extend(entry.l2_offset().map(|offset| offset.0));
        }
        entries.set(index, entry);
        let first = index / 64 * 64;
        let mut sector = [0; 512];
        for (place, at) in sector.as_chunks_mut::<8>().0.iter_mut().zip(first..entries.len()) {
            *place = entries.get(at).0.to_be_bytes();
        }
        let table = self.header.newest.l1.0;
        let class = self.fresh.get(&table).copied().unwrap_or(Class::Publish);
        self.overlay.put(table + first * 8, class, &sector);
    }

    /// Whether an active L2 table stands at `offset`: nothing else may be written there.
    pub(super) fn is_active_l2(&mut self, offset: u64) -> bool {
        let entries = self.l1.entries();
        if self.l2_tables.as_ref().is_none_or(|(known, _)| !known.same(&entries)) {
            let tables = entries.iter().filter_map(L1Entry::l2_offset).map(|offset| offset.0);
            self.l2_tables = Some((entries.clone(), tables.collect()));
        }
        self.l2_tables
            .as_ref()
            .is_some_and(|(_, tables)| tables.contains(&offset))
    }

    /// Place of an L2 entry.
    pub(super) fn entry_place(&self, table: u64, index: u64) -> u64 {
        table + index * self.geometry.l2_entry_size()
    }

    /// An L2 entry.
    pub(super) fn entry(&mut self, table: u64, index: u64) -> Step<L2Entry> {
        let place = self.entry_place(table, index);
        let word = u64::from_be_bytes(self.bytes(place)?);
        let subclusters = if self.geometry.extended_l2() {
            u64::from_be_bytes(self.bytes(place + 8)?)
        } else {
            0
        };
        Ok(L2Entry { word, subclusters })
    }

    /// Sets an L2 entry, whose piece is here. Both words of an extended one stand in one sector.
    pub(super) fn set_entry(&mut self, table: u64, index: u64, entry: L2Entry) -> Step<()> {
        let place = self.entry_place(table, index);
        let mut bytes = [0; 16];
        let (first, second) = bytes.split_at_mut(8);
        first.copy_from_slice(&entry.word.to_be_bytes());
        second.copy_from_slice(&entry.subclusters.to_be_bytes());
        let length = to_len(self.geometry.l2_entry_size());
        self.put(table, place, bytes.get(..length).unwrap_or_default())
    }

    pub(super) fn entry_fault(
        &self,
        table: Table,
        offset: u64,
        guest: GuestOffset,
        fault: qcow2_format::EntryFault,
    ) -> Stop {
        Stop::Fail(Error::Entry {
            path: self.chain.layer(0).and_then(crate::Layer::path),
            table,
            offset: HostOffset(offset),
            guest,
            fault,
        })
    }
}
