//! The L1 table of a view: read without a lock, and written by whoever writes to the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use qcow2_format::L1Entry;

/// The entries of an L1 table. They may change under a reader; how many there are does not.
#[derive(Clone, Debug)]
pub(crate) struct L1Entries(Arc<[AtomicU64]>);

impl L1Entries {
    fn new(entries: impl Iterator<Item = L1Entry>) -> Self {
        Self(entries.map(|entry| AtomicU64::new(entry.0)).collect())
    }

    /// Whether these are the same places, whatever stands there now.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// The entry at `index`; an empty one behind the table.
    pub(crate) fn get(&self, index: u64) -> L1Entry {
        let entry = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        L1Entry(entry.map_or(0, |entry| entry.load(Ordering::Acquire)))
    }

    /// Sets the entry at `index`, which is inside the table.
    pub(crate) fn set(&self, index: u64, entry: L1Entry) {
        if let Some(place) = usize::try_from(index).ok().and_then(|index| self.0.get(index)) {
            place.store(entry.0, Ordering::Release);
        }
    }

    /// How many entries from `index` on name no table, at most `most`.
    pub(crate) fn empty(&self, index: u64, most: u64) -> u64 {
        let rest = usize::try_from(index).ok().and_then(|index| self.0.get(index..));
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let entries = rest.unwrap_or_default().iter().take(most);
        let empty = |entry: &&AtomicU64| L1Entry(entry.load(Ordering::Acquire)).l2_offset().is_none();
        entries.take_while(empty).count() as u64
    }

    /// All entries, as they are now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = L1Entry> + '_ {
        self.0.iter().map(|entry| L1Entry(entry.load(Ordering::Acquire)))
    }
}

/// The L1 table that is in force.
#[derive(Debug)]
pub(crate) struct L1Table(RwLock<L1Entries>);

impl L1Table {
    pub(crate) fn new(entries: &[L1Entry]) -> Self {
        Self(RwLock::new(L1Entries::new(entries.iter().copied())))
    }

    /// The entries: a walk keeps them and sees one table from its begin to its end.
    pub(crate) fn entries(&self) -> L1Entries {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another table in force.
    pub(crate) fn replace(&self, entries: impl Iterator<Item = L1Entry>) {
        let entries = L1Entries::new(entries);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = entries;
    }
}
