//! Going back to a snapshot: its tables are shared first, then one sector of the header makes a fresh L1 table, and the size, the disk's; what the
//! disk was before loses its references last.

use qcow2_format::{HostOffset, L1Entry};

use super::counts::{Counts, Freed};
use super::create::uncopied;
use super::tree::Tree;
use super::{Mark, Reserved, SnapshotChoice};
use crate::disk::Image;
use crate::disk::refcounts::Clusters;
use crate::disk::weaken::Weaken;
use crate::error::{Error, Result};

impl Image {
    /// See [`Disk::snapshot_apply`](crate::Disk::snapshot_apply).
    pub(super) fn apply_snapshot(&self, which: &SnapshotChoice) -> Result<()> {
        let (_, snapshot) = self.find_snapshot(which)?;
        let layer = self.chain.layer(0).ok_or(Error::Closed)?;
        let old_size = self.chain.virtual_size();
        let (l1, size) = layer.snapshot_l1(&snapshot, old_size)?;
        self.begin_writing()?;
        if size != old_size {
            self.hold_bitmaps(size)?;
        }
        self.quiesce()?;
        let (old_l1, old_entries) = {
            let state = self.lock();
            (state.header.durable.l1, state.l1.entries())
        };
        let tree = Tree::new(self, snapshot.l1_offset.0, l1.iter().copied())?;
        let old_tree = Tree::new(self, old_l1.0, old_entries.iter())?;
        old_tree.check()?;
        self.try_to_raise(&tree)?;

        // A new disk's L1 table may be longer than the snapshot's only if somebody wrote a shorter one than its disk needs.
        let wanted = self.geometry.l1_entries(size).max(l1.len() as u64).max(1);
        let padding = std::iter::repeat(L1Entry::default());
        let entries: Vec<L1Entry> = l1
            .iter()
            .copied()
            .map(uncopied)
            .chain(padding)
            .take(to_count(wanted))
            .collect();
        let mut reserved = Reserved::new(self);
        let in_place = self.weaken.has(Weaken::APPLY_IN_PLACE) && wanted == u64::from(old_l1.1) && size == old_size;
        let place = if in_place { old_l1.0 } else { reserved.take(wanted * 8)? };
        if !in_place {
            self.write_l1(place, entries.iter().copied())?;
        }
        self.flush_with(true)?;

        let mut mark = Mark::new(self);
        let mut counts = Counts::new(self, false);
        let fits = counts.fits();
        if fits {
            tree.raise(&mut counts)?;
        }
        mark.set()?;
        mark.changed = true;
        if !fits {
            tree.raise(&mut counts)?;
        }
        counts.write()?;
        if !self.weaken.has(Weaken::COPIED_NOT_CLEARED) {
            tree.clear_copied()?;
        }
        self.barrier()?;
        if in_place {
            self.write_l1(place, entries.iter().copied())?;
            self.barrier()?;
        } else {
            let count = u32::try_from(wanted).unwrap_or(u32::MAX);
            self.switch_header(|fields| {
                fields.l1 = (place, count);
                if size != old_size {
                    fields.size = size;
                }
            })?;
        }
        reserved.keep();

        // From here on the disk is what it was, and what fails leaks.
        if let Some(view) = self.chain.view(0) {
            view.l1.replace(entries.iter().copied());
            view.set_virtual_size(size);
        }
        self.chain.forget();
        if size != old_size {
            self.bitmaps.resize(size);
        }
        self.bitmaps.changed_everything();
        let old_clusters = Clusters {
            first: old_l1.0 >> self.geometry.cluster_bits(),
            count: self.geometry.clusters(u64::from(old_l1.1) * 8),
        };
        if !in_place {
            let mut state = self.lock();
            state.guard.remove(old_clusters.first, old_clusters.count);
            state.guard.add_bytes(self.geometry, HostOffset(place), wanted * 8);
        }
        self.wait_for_readers();
        let mut freed = Freed::default();
        old_tree.lower(&mut counts, &mut freed)?;
        if !in_place {
            counts.lower(old_clusters, &mut freed)?;
        }
        counts.write()?;
        self.barrier()?;
        mark.clear()?;
        // What readers that began before have looked up since.
        self.chain.forget();
        counts.give_back(&mut freed);
        Ok(())
    }
}

fn to_count(wanted: u64) -> usize {
    usize::try_from(wanted).unwrap_or(usize::MAX)
}
