//! A snapshot is taken while threads write: it holds of each sector what one of these, or nobody, had written when it was taken.

use std::collections::HashMap;
use std::sync::Arc;

use qcow2_engine::SnapshotChoice;
use qcow2_format::GuestOffset;

use super::Driver;
use crate::contents::ZERO;
use crate::log::SECTOR;
use crate::model::{Effect, SnapshotModel, Switch};
use crate::plan::Op;

impl Driver {
    pub(super) fn snapshot_amid(&mut self, lists: &[Vec<Op>]) {
        let next = self.next_snapshot();
        let first_step = self.shared().steps.len();
        let before: HashMap<u32, usize> = {
            let shared = self.shared();
            shared
                .versions
                .iter()
                .map(|(sector, versions)| (*sector, versions.len()))
                .collect()
        };
        let this = &*self;
        let made = std::thread::scope(|scope| {
            for list in lists {
                scope.spawn(move || list.iter().for_each(|op| this.simple(op)));
            }
            next.map(|(snapshots, effect, new)| {
                std::thread::yield_now();
                (this.create_snapshot(effect, new, &snapshots), snapshots)
            })
        });
        let snapshots = match made {
            None => return,
            Some((true, snapshots)) => snapshots,
            Some((false, snapshots)) => {
                // After a failure nobody knows whether there is one, and what it holds.
                self.correct(first_step, &snapshots, Vec::new());
                self.stop |= self.faulty;
                return;
            }
        };
        match self.taken(&snapshots, &before) {
            Some(contents) => {
                let snapshots = self.correct(first_step, &snapshots, contents);
                self.keep(true, snapshots);
            }
            None => {
                // It could not be read: nobody knows what it holds.
                self.correct(first_step, &snapshots, Vec::new());
                self.stop = true;
            }
        }
    }

    /// What the last snapshot holds: for each sector what the disk held before, or something that was written meanwhile.
    fn taken(&self, snapshots: &[SnapshotModel], before: &HashMap<u32, usize>) -> Option<Vec<u32>> {
        let snapshot = snapshots.last()?;
        let choice = SnapshotChoice::Id(snapshot.id.clone());
        let mut bytes = vec![0; snapshot.contents.len() * SECTOR];
        let read = self
            .disk()
            .snapshot_view(&choice)
            .and_then(|chain| chain.read(GuestOffset(0), &mut bytes));
        if let Err(error) = read {
            if !self.faulty {
                self.wrong(format!("a new snapshot cannot be read: {error}"));
            }
            return None;
        }
        let mut contents = Vec::with_capacity(snapshot.contents.len());
        let mut shared = self.shared();
        let shared = &mut *shared;
        for ((sector, old), there) in (0u32..).zip(snapshot.contents.iter()).zip(bytes.chunks(SECTOR)) {
            let versions = shared.versions.get(&sector).map_or(&[][..], Vec::as_slice);
            let new = versions
                .get(before.get(&sector).copied().unwrap_or(0)..)
                .unwrap_or_default();
            // A discard is no version.
            let discarded = shared
                .touched
                .iter()
                .rev()
                .any(|(_, other)| *other == sector)
                .then_some(&ZERO);
            let found = std::iter::once(old)
                .chain(new)
                .chain(discarded)
                .find(|content| shared.contents.get(**content) == there);
            let Some(found) = found else {
                let what = shared.contents.find(there).map(|content| shared.contents.op(content));
                let text = format!(
                    "a snapshot that was taken amid writes holds in sector {sector:#x} what operation {what:?} wrote"
                );
                shared.wrong.get_or_insert(text);
                return None;
            };
            contents.push(*found);
        }
        Some(contents)
    }

    /// The step that took the snapshot is told what it holds.
    fn correct(&self, first: usize, snapshots: &[SnapshotModel], contents: Vec<u32>) -> Arc<Vec<SnapshotModel>> {
        let mut snapshots = snapshots.to_vec();
        if let Some(last) = snapshots.last_mut() {
            last.contents = Arc::new(contents);
        }
        let snapshots = Arc::new(snapshots);
        let mut shared = self.shared();
        for step in shared.steps.iter_mut().skip(first) {
            if let Effect::Switch(Switch { snapshots: there, .. }) = &mut step.effect {
                *there = snapshots.clone();
            }
        }
        snapshots
    }
}
