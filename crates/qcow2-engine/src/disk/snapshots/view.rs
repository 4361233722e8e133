//! A snapshot as a disk that is only read.

use std::sync::{Arc, Weak};

use super::SnapshotChoice;
use crate::chain::Chain;
use crate::chain::l1::L1Table;
use crate::disk::Image;
use crate::error::{Error, Result};

impl Image {
    /// See [`Disk::snapshot_view`](crate::Disk::snapshot_view).
    pub(super) fn view_snapshot(&self, which: &SnapshotChoice) -> Result<Chain> {
        let (_, snapshot) = self.find_snapshot(which)?;
        let layer = self.chain.layer(0).ok_or(Error::Closed)?;
        let (l1, size) = layer.snapshot_l1(&snapshot, self.chain.virtual_size())?;
        let l1 = Arc::new(L1Table::new(&l1));
        let view = self.chain.seen_through(l1.clone(), size, self.cache_bytes / 4)?;
        let mut state = self.lock();
        state.views.retain(|(_, view)| view.strong_count() > 0);
        state.views.push((snapshot.id, Arc::downgrade(&l1)));
        Ok(view)
    }

    /// Whether somebody reads the snapshot with this id.
    pub(super) fn is_viewed(&self, id: &[u8]) -> bool {
        let state = self.lock();
        let live = |view: &Weak<L1Table>| view.strong_count() > 0;
        state.views.iter().any(|(other, view)| other == id && live(view))
    }
}
