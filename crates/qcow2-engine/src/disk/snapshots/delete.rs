//! Deleting a snapshot: the header forgets it first; what it referred to has one reference less afterwards.

use super::counts::{Counts, Freed};
use super::tree::Tree;
use super::{Mark, Reserved, SnapshotChoice};
use crate::disk::Image;
use crate::disk::refcounts::Clusters;
use crate::error::{Error, Result};

impl Image {
    /// See [`Disk::snapshot_delete`](crate::Disk::snapshot_delete).
    pub(super) fn delete_snapshot(&self, which: &SnapshotChoice) -> Result<()> {
        let (number, snapshot) = self.find_snapshot(which)?;
        if self.is_viewed(&snapshot.id) {
            let reason = format!(
                "somebody reads the snapshot '{}'",
                String::from_utf8_lossy(&snapshot.name)
            );
            return Err(self.snapshot_state("SNAPSHOT_IN_USE", reason));
        }
        self.quiesce()?;
        let layer = self.chain.layer(0).ok_or(Error::Closed)?;
        let (l1, _) = layer.snapshot_l1(&snapshot, self.chain.virtual_size())?;
        let tree = Tree::new(self, snapshot.l1_offset.0, l1.iter().copied())?;
        tree.check()?;
        let (active_l1, entries) = {
            let state = self.lock();
            (state.header.durable.l1.0, state.l1.entries())
        };
        let active = Tree::new(self, active_l1, entries.iter())?;
        active.check()?;

        let mut list = self.lock().snapshots.clone();
        list.remove(number);
        let mut reserved = Reserved::new(self);
        let table = self.write_table(list, &mut reserved)?;
        self.flush_with(true)?;
        let mut mark = Mark::new(self);
        self.switch_header(|fields| {
            fields.snapshots = table.fields();
            fields.incompatible = mark.marked(fields.incompatible);
        })?;
        mark.changed = true;
        reserved.keep();

        // From here on it is gone, and what fails leaks.
        let old_table = self.adopt_table(table);
        let l1_bytes = u64::from(snapshot.l1_entries) * 8;
        let old_l1 = Clusters {
            first: snapshot.l1_offset.0 >> self.geometry.cluster_bits(),
            count: self.geometry.clusters(l1_bytes),
        };
        self.lock().guard.remove(old_l1.first, old_l1.count);
        let mut counts = Counts::new(self, false);
        let mut freed = Freed::default();
        tree.lower(&mut counts, &mut freed)?;
        for clusters in std::iter::once(old_l1).chain(old_table) {
            counts.lower(clusters, &mut freed)?;
        }
        if freed.any_alone {
            active.mark_copied(&mut counts)?;
            for (index, entry) in active.mark_l1(&mut counts)? {
                entries.set(index, entry);
            }
            self.write_l1(active_l1, entries.iter())?;
        }
        counts.write()?;
        self.barrier()?;
        mark.clear()?;
        self.chain.forget();
        counts.give_back(&mut freed);
        Ok(())
    }
}
