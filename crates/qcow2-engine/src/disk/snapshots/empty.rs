//! Emptying an image: everything unallocated, so that its backing file shows through. One sector of the header names a fresh L1 table; what the old
//! one leads to has one reference less afterwards.

use qcow2_format::{HostOffset, L1Entry};

use super::counts::{Counts, Freed};
use super::tree::Tree;
use super::{Mark, Reserved};
use crate::disk::refcounts::Clusters;
use crate::disk::{Disk, Image};
use crate::error::{Error, Result};

impl Disk {
    /// Gives back every cluster of the active disk, which then reads as its backing file does, and as zeros behind that. Snapshots keep what they
    /// have, and bitmaps what they say: it is for whoever has copied the disk's bytes to where they show through. Waits for the requests accepted
    /// before and holds later ones. Durable when it returns. If it fails although the disk is empty then, what it had takes up space until the image
    /// is repaired.
    ///
    /// # Errors
    /// [`Error::State`] with code `RAW` for a raw file, `EMPTY_RAW_DATA_FILE` for an image whose data file is a raw image; what forbids following the
    /// tables of the disk.
    pub fn make_empty(&self) -> Result<()> {
        let _alone = self.alone()?;
        let image = self.image()?;
        image.switching(|| image.make_all_unallocated())
    }
}

impl Image {
    fn make_all_unallocated(&self) -> Result<()> {
        if self.lock().raw_data_file() {
            return Err(Error::State {
                code: "EMPTY_RAW_DATA_FILE",
                path: self.storage.path().map(Into::into),
                reason: "the data file is a raw image by itself, so no cluster of it can be left to a backing file"
                    .into(),
            });
        }
        self.quiesce()?;
        let (old_l1, old_entries) = {
            let state = self.lock();
            (state.header.durable.l1, state.l1.entries())
        };
        let tree = Tree::new(self, old_l1.0, old_entries.iter())?;
        tree.check()?;
        let size = self.chain.virtual_size();
        let wanted = self.geometry.l1_entries(size).max(old_entries.len()).max(1);
        let count = u32::try_from(wanted).unwrap_or(u32::MAX);
        let entries = || std::iter::repeat_n(L1Entry::default(), count as usize);
        let bytes = u64::from(count) * 8;
        let mut reserved = Reserved::new(self);
        let place = reserved.take(bytes)?;
        self.write_l1(place, entries())?;
        self.flush_with(true)?;

        let mut mark = Mark::new(self);
        self.switch_header(|fields| {
            fields.l1 = (place, count);
            fields.incompatible = mark.marked(fields.incompatible);
        })?;
        mark.changed = true;
        reserved.keep();

        // From here on the disk is empty, and what fails leaks.
        if let Some(view) = self.chain.view(0) {
            view.l1.replace(entries());
        }
        self.chain.forget();
        let old_clusters = Clusters {
            first: old_l1.0 >> self.geometry.cluster_bits(),
            count: self.geometry.clusters(u64::from(old_l1.1).saturating_mul(8)),
        };
        {
            let mut state = self.lock();
            state.guard.remove(old_clusters.first, old_clusters.count);
            state.guard.add_bytes(self.geometry, HostOffset(place), bytes);
        }
        self.wait_for_readers();
        let mut counts = Counts::new(self, false);
        let mut freed = Freed::default();
        tree.lower(&mut counts, &mut freed)?;
        counts.lower(old_clusters, &mut freed)?;
        counts.write()?;
        self.barrier()?;
        mark.clear()?;
        // What readers that began before have looked up since.
        self.chain.forget();
        counts.give_back(&mut freed);
        if let Some(data) = &self.data_file {
            let length = data.length().map_err(Error::io("stat", &**data))?;
            // Space that cannot be given back is nobody's all the same.
            let _ = data.punch(HostOffset(0), length);
            self.wrote(true);
        }
        Ok(())
    }
}
