//! Taking a snapshot: the L1 table is copied, and every table and cluster that it leads to has one more reference and no COPIED flag, before the
//! header says that there is a snapshot.

use std::time::{SystemTime, UNIX_EPOCH};

use qcow2_format::{HostOffset, L1Entry, Snapshot, limits};

use super::counts::Counts;
use super::tree::Tree;
use super::{Mark, NewSnapshot, Reserved};
use crate::disk::Image;
use crate::disk::weaken::Weaken;
use crate::error::{Error, Result};

impl Image {
    /// See [`Disk::snapshot_create`](crate::Disk::snapshot_create).
    pub(super) fn create_snapshot(&self, new: NewSnapshot) -> Result<Snapshot> {
        self.refuse_snapshots()?;
        let mut list = self.lock().snapshots.clone();
        self.check_name(&new.name, &list, new.allow_duplicate)?;
        if list.len() as u64 >= limits::MAX_SNAPSHOTS.into() {
            return Err(Error::Limit {
                limit: "snapshots",
                allowed: limits::MAX_SNAPSHOTS.into(),
                wanted: list.len() as u64 + 1,
            });
        }
        self.quiesce()?;
        let (entries, (l1_offset, _)) = {
            let state = self.lock();
            (state.l1.entries(), state.header.durable.l1)
        };
        let tree = Tree::new(self, l1_offset, entries.iter())?;
        self.try_to_raise(&tree)?;

        let mut reserved = Reserved::new(self);
        let uncopied = || entries.iter().map(uncopied);
        let copy = reserved.take(entries.len() * 8)?;
        self.write_l1(copy, uncopied())?;
        let date = new.date.unwrap_or_else(now);
        list.push(Snapshot {
            entry_offset: HostOffset(0),
            l1_offset: HostOffset(copy),
            l1_entries: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            id: next_id(&list).into_bytes(),
            name: new.name.into_bytes(),
            date_sec: date.0,
            date_nsec: date.1,
            vm_clock_nsec: new.vm_clock_nsec,
            vm_state_size: 0,
            disk_size: Some(self.chain.virtual_size()),
            icount: new.icount,
            unknown_extra: Vec::new(),
        });
        let table = self.write_table(list, &mut reserved)?;
        self.flush_with(true)?;

        let mut mark = Mark::new(self);
        let mut counts = Counts::new(self, false);
        let fits = counts.fits();
        if fits {
            tree.raise(&mut counts)?;
        }
        mark.set()?;
        let publish = |mark: &Mark<'_>| {
            self.switch_header(|fields| {
                fields.snapshots = table.fields();
                fields.incompatible = mark.cleared(fields.incompatible);
            })
        };
        if self.weaken.has(Weaken::SNAPSHOT_EARLY) {
            publish(&mark)?;
        }
        mark.changed = true;
        if !fits {
            tree.raise(&mut counts)?;
        }
        counts.write()?;
        if !self.weaken.has(Weaken::COPIED_NOT_CLEARED) {
            for (index, entry) in (0..).zip(uncopied()) {
                entries.set(index, entry);
            }
            tree.clear_copied()?;
            self.write_l1(l1_offset, uncopied())?;
        }
        self.barrier()?;
        if !self.weaken.has(Weaken::SNAPSHOT_EARLY) {
            publish(&mark)?;
        }
        reserved.keep();
        mark.gone();
        {
            let mut state = self.lock();
            let bytes = entries.len() * 8;
            state.guard.add_bytes(self.geometry, HostOffset(copy), bytes);
        }
        self.drop_table(table);
        self.lock().snapshots.last().cloned().ok_or(Error::Closed)
    }

    fn refuse_snapshots(&self) -> Result<()> {
        let refuse = |reason: &str| Err(self.snapshot_state("SNAPSHOT_UNSUPPORTED", reason.into()));
        if self.data_file.is_some() {
            return refuse("the clusters of an external data file have no refcounts, so there can be no snapshots");
        }
        if self.lock().order.bits() == 1 {
            return refuse("refcounts of one bit cannot count a second reference, so there can be no snapshots");
        }
        Ok(())
    }

    /// Whether every count can be raised, if that cannot be told on the way with nothing written.
    pub(super) fn try_to_raise(&self, tree: &Tree<'_>) -> Result<()> {
        let mut trial = Counts::new(self, true);
        if trial.fits() {
            return Ok(());
        }
        tree.raise(&mut trial)
    }

    /// Writes an L1 table, up to the end of its last cluster.
    pub(super) fn write_l1(&self, offset: u64, entries: impl Iterator<Item = L1Entry>) -> Result<()> {
        let mut bytes: Vec<u8> = entries.flat_map(|entry| entry.0.to_be_bytes()).collect();
        let length = bytes.len().max(1).next_multiple_of(self.geometry.cluster_len());
        bytes.resize(length, 0);
        self.write_file(HostOffset(offset), &bytes)
    }
}

/// The entry as snapshots keep it: COPIED is found out anew by whoever loads it.
pub(super) fn uncopied(entry: L1Entry) -> L1Entry {
    entry
        .l2_offset()
        .map_or(L1Entry::default(), |offset| L1Entry::new(offset, false))
}

/// One more than the largest decimal id.
fn next_id(list: &[Snapshot]) -> String {
    let number = |id: &[u8]| std::str::from_utf8(id).ok()?.parse::<u64>().ok();
    let largest = list.iter().filter_map(|snapshot| number(&snapshot.id)).max();
    let mut next = largest.unwrap_or(0).checked_add(1).unwrap_or(1);
    // Only where somebody gave the largest number of all.
    while list.iter().any(|snapshot| number(&snapshot.id) == Some(next)) {
        next = next.saturating_add(1);
    }
    next.to_string()
}

fn now() -> (u32, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_nanos())
}
