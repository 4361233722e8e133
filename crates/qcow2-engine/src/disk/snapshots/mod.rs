//! Internal snapshots: create, apply, delete, rename, list, view; and what is done alike, emptying the active disk.
//!
//! Whoever changes one holds the disk alone with nothing dirty, so tables and refcount blocks are read and written whole, past the overlay. Where
//! counts and COPIED flags are changed, version 3 is marked dirty meanwhile: no order of writes keeps the two together. What a snapshot is known by is
//! one sector of the header, and that is written between two barriers.

mod apply;
mod counts;
mod create;
mod delete;
mod empty;
mod table;
mod tree;
mod view;
mod zeros;

use crate::sync::atomic::Ordering;

use qcow2_format::Snapshot;
use qcow2_format::features::incompatible;

use super::refcounts::Clusters;
use super::weaken::Weaken;
use super::{Disk, Image};
use crate::chain::Chain;
use crate::error::{Error, Result};

/// What a new snapshot is called and records.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Its name, up to 65535 bytes.
    pub name: String,
    /// Whether another one may have the same name.
    pub allow_duplicate: bool,
    /// Seconds since 1970, UTC, and nanoseconds. None: now.
    pub date: Option<(u32, u32)>,
    /// The guest's clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions executed, if that is counted.
    pub icount: Option<u64>,
}

/// Which snapshot is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChoice {
    /// The one with this id; if there is none, the first one with this name.
    IdOrName(String),
    /// The one with this id.
    Id(String),
    /// The first one with this name.
    Name(String),
}

impl Disk {
    /// The snapshots, in the image's order. A raw file has none.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.image()
            .map_or_else(|_| Vec::new(), |image| image.lock().snapshots.clone())
    }

    /// Takes a snapshot. Waits for the requests accepted before and holds later ones. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::State`] with code `SNAPSHOT_EXISTS`, `SNAPSHOT_UNSUPPORTED` (1-bit refcounts, external data file) or `REFCOUNT_OVERFLOW`;
    /// [`Error::Limit`] for more than 65536 snapshots, or a table of more than 64 MiB; [`Error::Invalid`] for a name that is too long.
    pub fn snapshot_create(&self, new: NewSnapshot) -> Result<Snapshot> {
        let _alone = self.alone()?;
        let image = self.image()?;
        image.switching(|| image.create_snapshot(new))
    }

    /// Makes the disk what it was when the snapshot was taken: one sector switches. Durable when it returns. A read under way meanwhile finds bytes
    /// of before, of after, or of both. If it fails although the disk is the snapshot's then, what it was before takes up space until the image is
    /// repaired.
    ///
    /// # Errors
    /// [`Error::State`] with code `NO_SNAPSHOT` or `REFCOUNT_OVERFLOW`; what forbids following the tables of the snapshot or of the disk.
    pub fn snapshot_apply(&self, which: &SnapshotChoice) -> Result<()> {
        let _alone = self.alone()?;
        let image = self.image()?;
        image.switching(|| image.apply_snapshot(which))
    }

    /// Deletes a snapshot. Durable when it returns. If it fails although the snapshot is gone then, what that was takes up space until the image is
    /// repaired.
    ///
    /// # Errors
    /// [`Error::State`] with code `NO_SNAPSHOT` or `SNAPSHOT_IN_USE`.
    pub fn snapshot_delete(&self, which: &SnapshotChoice) -> Result<()> {
        let _alone = self.alone()?;
        let image = self.image()?;
        image.switching(|| image.delete_snapshot(which))
    }

    /// Gives a snapshot another name. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::State`] with code `NO_SNAPSHOT` or `SNAPSHOT_EXISTS`; [`Error::Invalid`] for a name that is too long.
    pub fn snapshot_rename(&self, which: &SnapshotChoice, name: &str) -> Result<()> {
        let _alone = self.alone()?;
        let image = self.image()?;
        image.switching(|| image.rename_snapshot(which, name))
    }

    /// The disk as it was when the snapshot was taken, read-only, sharing this disk's files and locks. While it lives, deleting the snapshot fails.
    ///
    /// # Errors
    /// [`Error::State`] with code `NO_SNAPSHOT`; what forbids using the snapshot's L1 table.
    pub fn snapshot_view(&self, which: &SnapshotChoice) -> Result<Chain> {
        let _request = self.request()?;
        self.image()?.view_snapshot(which)
    }
}

/// New clusters, given back when dropped unless something names them by then.
struct Reserved<'a> {
    image: &'a Image,
    rows: Vec<Clusters>,
}

impl<'a> Reserved<'a> {
    fn new(image: &'a Image) -> Self {
        let rows = Vec::new();
        Self { image, rows }
    }

    /// Takes clusters for `bytes` bytes that lie next to each other, at least one; returns where.
    fn take(&mut self, bytes: u64) -> Result<u64> {
        let geometry = self.image.geometry;
        let count = geometry.clusters(bytes).max(1);
        let row = self.image.run(|state| state.allocate_row(count))?;
        self.rows.push(row);
        Ok(row.first << geometry.cluster_bits())
    }

    fn keep(mut self) {
        self.rows.clear();
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        self.image.lock().forget_tables();
        for row in std::mem::take(&mut self.rows) {
            // If that fails too they leak, which a check repairs.
            let _ = self.image.run(|state| state.release(row));
        }
    }
}

/// The image is marked dirty for as long as counts and COPIED flags may disagree.
struct Mark<'a> {
    image: &'a Image,
    /// It was not marked before, so the mark is to be taken away.
    ours: bool,
    /// Something was written that the mark is for.
    changed: bool,
}

impl<'a> Mark<'a> {
    fn new(image: &'a Image) -> Self {
        let state = image.lock();
        let wanted = state.header.is_version3() && !image.weaken.has(Weaken::NO_DIRTY_BIT);
        Self {
            image,
            ours: wanted && state.header.durable.incompatible & incompatible::DIRTY == 0,
            changed: false,
        }
    }

    /// Marks the image, durably.
    fn set(&self) -> Result<()> {
        if self.ours {
            self.image
                .switch_header(|fields| fields.incompatible |= incompatible::DIRTY)?;
        }
        Ok(())
    }

    /// The bits that the header has with the mark.
    fn marked(&self, bits: u64) -> u64 {
        if self.ours { bits | incompatible::DIRTY } else { bits }
    }

    /// The bits that the header has when the mark is gone.
    fn cleared(&self, bits: u64) -> u64 {
        if self.ours { bits & !incompatible::DIRTY } else { bits }
    }

    /// Takes the mark away, durably.
    fn clear(mut self) -> Result<()> {
        self.changed = false;
        if self.ours {
            self.ours = false;
            self.image
                .switch_header(|fields| fields.incompatible &= !incompatible::DIRTY)?;
        }
        Ok(())
    }

    /// The mark is gone with another switch.
    fn gone(mut self) {
        (self.ours, self.changed) = (false, false);
    }
}

impl Drop for Mark<'_> {
    /// Something failed. If tables may be half changed the mark stays, also on closing, so that whoever opens the image next repairs it.
    fn drop(&mut self) {
        if self.changed {
            self.image.unsure.store(true, Ordering::SeqCst);
            return;
        }
        let set = self.image.lock().header.durable.incompatible & incompatible::DIRTY != 0;
        if self.ours && set {
            let _ = self
                .image
                .switch_header(|fields| fields.incompatible &= !incompatible::DIRTY);
        }
    }
}

impl Image {
    /// Runs something that reads and writes tables past what is kept of them.
    fn switching<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let outcome = change();
        self.lock().forget_tables();
        outcome
    }

    /// The image may be changed, everything is on disk and nothing waits to be reclaimed: refcounts are what the tables say.
    pub(in crate::disk) fn quiesce(&self) -> Result<()> {
        self.begin_writing()?;
        loop {
            self.flush_with(true)?;
            if self.overlay.dirty_bytes() == 0 && self.lock().quarantine.is_empty() {
                return Ok(());
            }
            if self.lock().quarantine.has_durable() {
                // Somebody reads there still.
                crate::sync::pause();
            }
        }
    }

    /// Waits for the reads that began before.
    fn wait_for_readers(&self) {
        let now = self.chain.tickets().now();
        while !self.weaken.has(Weaken::NO_TICKETS) && self.chain.tickets().oldest().is_some_and(|oldest| oldest < now) {
            crate::sync::pause();
        }
    }

    /// The number of a snapshot in the list.
    fn find_snapshot(&self, which: &SnapshotChoice) -> Result<(usize, Snapshot)> {
        let state = self.lock();
        let by = |field: fn(&Snapshot) -> &[u8], wanted: &str| {
            let list = state.snapshots.iter();
            list.enumerate()
                .find(|(_, snapshot)| field(snapshot) == wanted.as_bytes())
        };
        let id = |wanted| by(|snapshot| &snapshot.id, wanted);
        let name = |wanted| by(|snapshot| &snapshot.name, wanted);
        let (found, wanted) = match which {
            SnapshotChoice::IdOrName(wanted) => (id(wanted).or_else(|| name(wanted)), wanted),
            SnapshotChoice::Id(wanted) => (id(wanted), wanted),
            SnapshotChoice::Name(wanted) => (name(wanted), wanted),
        };
        let what = match which {
            SnapshotChoice::IdOrName(_) => "id or name",
            SnapshotChoice::Id(_) => "id",
            SnapshotChoice::Name(_) => "name",
        };
        let found = found.map(|(number, snapshot)| (number, snapshot.clone()));
        found.ok_or_else(|| {
            self.snapshot_state(
                "NO_SNAPSHOT",
                format!("there is no snapshot with the {what} '{wanted}'"),
            )
        })
    }

    fn snapshot_state(&self, code: &'static str, reason: String) -> Error {
        Error::State {
            code,
            path: self.storage.path().map(Into::into),
            reason,
        }
    }
}
