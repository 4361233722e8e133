//! Internal snapshots: create, apply, delete, rename.

use qcow2_format::Snapshot;

use super::Disk;
use crate::chain::Chain;
use crate::error::Result;

/// What a new snapshot is called and records.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Its name.
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
    /// The one with this id; if there is none, the one with this name.
    IdOrName(String),
    /// The one with this id.
    Id(String),
    /// The first one with this name.
    Name(String),
}

impl Disk {
    /// The snapshots, in the image's order.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        Vec::new()
    }

    /// Takes a snapshot. Waits for the requests accepted before and holds later ones. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `SNAPSHOT_EXISTS`, `SNAPSHOT_UNSUPPORTED` (1-bit refcounts, external data file) or
    /// `REFCOUNT_OVERFLOW`; [`Error::Limit`](crate::Error::Limit).
    pub fn snapshot_create(&self, new: NewSnapshot) -> Result<Snapshot> {
        let _ = new;
        Err(later())
    }

    /// Makes the disk what it was when the snapshot was taken: one sector switches. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `NO_SNAPSHOT`.
    pub fn snapshot_apply(&self, which: &SnapshotChoice) -> Result<()> {
        let _ = which;
        Err(later())
    }

    /// Deletes a snapshot. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `NO_SNAPSHOT` or `SNAPSHOT_IN_USE`.
    pub fn snapshot_delete(&self, which: &SnapshotChoice) -> Result<()> {
        let _ = which;
        Err(later())
    }

    /// Gives a snapshot another name. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `NO_SNAPSHOT` or `SNAPSHOT_EXISTS`.
    pub fn snapshot_rename(&self, which: &SnapshotChoice, name: &str) -> Result<()> {
        let _ = (which, name);
        Err(later())
    }

    /// The disk as it was when the snapshot was taken, read-only, sharing this disk's files and locks. While it lives, deleting the snapshot fails.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State) with code `NO_SNAPSHOT`.
    pub fn snapshot_view(&self, which: &SnapshotChoice) -> Result<Chain> {
        let _ = which;
        Err(later())
    }
}

fn later() -> crate::Error {
    crate::Error::State {
        code: "NOT_YET",
        path: None,
        reason: "not there yet".into(),
    }
}
