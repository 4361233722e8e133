//! Sectors of metadata that are newer than the file.
//!
//! What the tables say is what the file holds with these laid over it. A *class* says in which step of a flush a sector is written; sealing takes
//! all of them at once, and what changes afterwards belongs to the next flush.

use crate::sync::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

use qcow2_format::HostOffset;

use crate::storage::Storage;

/// What the disk writes as a whole.
pub(crate) const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;
/// What a sector takes with its place in the map, about.
const COST: u64 = SECTOR + 80;

/// When a sector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Contents of new refcount blocks and tables, before anything names them.
    Structure,
    /// What nothing on disk points to yet, and refcounts.
    Prepare,
    /// Pointers in tables that the disk knows.
    Publish,
}

pub(crate) type Sector = [u8; SECTOR_LEN];
pub(crate) type Sectors = BTreeMap<u64, (Class, Box<Sector>)>;

/// What is newer than a file.
#[derive(Debug, Default)]
pub(crate) struct Overlay(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    dirty: Sectors,
    sealed: Option<Arc<Sectors>>,
    /// How often sealed sectors have gone to the file.
    settled: u64,
}

impl Overlay {
    /// Reads from the file as it will be. Returns how many bytes there are.
    pub(crate) fn read(&self, storage: &dyn Storage, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let before = self.lock().settled;
            let mut filled = storage.read_at(offset, buffer)?;
            if let Some(rest) = buffer.get_mut(filled..) {
                rest.fill(0);
            }
            let state = self.lock();
            if state.settled != before {
                // The file changed under the read, and what it should have been laid over with is gone.
                continue;
            }
            for sectors in state.sealed.as_deref().into_iter().chain([&state.dirty]) {
                filled = filled.max(lay(sectors, offset, buffer));
            }
            return Ok(filled);
        }
    }

    /// Length of the file as it will be, in bytes.
    pub(crate) fn length(&self, storage: &dyn Storage) -> io::Result<u64> {
        let length = storage.length()?;
        let state = self.lock();
        let maps = state.sealed.as_deref().into_iter().chain([&state.dirty]);
        let last = maps
            .filter_map(|sectors| sectors.last_key_value())
            .map(|(at, _)| at + SECTOR);
        Ok(last.fold(length, u64::max))
    }

    /// Notes what the sector at `at` holds from now on.
    pub(crate) fn put(&self, at: u64, class: Class, bytes: &Sector) {
        let mut state = self.lock();
        match state.dirty.entry(at) {
            std::collections::btree_map::Entry::Occupied(mut place) => {
                let (kept, sector) = place.get_mut();
                *kept = class;
                sector.copy_from_slice(bytes);
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert((class, Box::new(*bytes)));
            }
        }
    }

    /// Forgets what was to be written to a range that nobody needs any more.
    pub(crate) fn forget(&self, offset: u64, length: u64) {
        let mut state = self.lock();
        let end = offset.saturating_add(length);
        let gone: Vec<u64> = state.dirty.range(offset..end).map(|(&at, _)| at).collect();
        for at in gone {
            state.dirty.remove(&at);
        }
    }

    /// Bytes that wait for a flush.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.lock().dirty.len() as u64 * COST
    }

    /// Takes what is dirty, except what `keep` says, for one flush, which ends with [`Overlay::settle`] or [`Overlay::unseal`].
    pub(crate) fn seal(&self, keep: impl Fn(u64, Class) -> bool) -> Arc<Sectors> {
        let mut state = self.lock();
        let dirty = std::mem::take(&mut state.dirty);
        let (kept, sealed): (Sectors, Sectors) = dirty.into_iter().partition(|(at, (class, _))| keep(*at, *class));
        state.dirty = kept;
        let sealed = Arc::new(sealed);
        state.sealed = Some(sealed.clone());
        sealed
    }

    /// What is dirty now: for a test that wants the seal broken.
    pub(crate) fn copy_dirty(&self) -> Sectors {
        self.lock().dirty.clone()
    }

    /// What was sealed is in the file.
    pub(crate) fn settle(&self) {
        let mut state = self.lock();
        state.sealed = None;
        state.settled = state.settled.wrapping_add(1);
    }

    /// What was sealed did not get to the file: it is dirty again, where it is not newer by now.
    pub(crate) fn unseal(&self) {
        let mut state = self.lock();
        let Some(sealed) = state.sealed.take() else { return };
        state.settled = state.settled.wrapping_add(1);
        for (&at, (class, sector)) in sealed.iter() {
            match state.dirty.entry(at) {
                // What it is part of is not on disk yet, so its newer state is not to be written later than the older one was.
                std::collections::btree_map::Entry::Occupied(mut place) => {
                    place.get_mut().0 = place.get().0.min(*class)
                }
                std::collections::btree_map::Entry::Vacant(place) => {
                    place.insert((*class, sector.clone()));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies sectors over what was read from `offset` on; returns where the last of them ends in `buffer`.
fn lay(sectors: &Sectors, offset: HostOffset, buffer: &mut [u8]) -> usize {
    let end = offset.0.saturating_add(buffer.len() as u64);
    let mut covered = 0;
    for (&at, (_, sector)) in sectors.range(offset.0 & !(SECTOR - 1)..end) {
        let from = usize::try_from(offset.0.saturating_sub(at)).unwrap_or(SECTOR_LEN);
        let to = usize::try_from(at.saturating_sub(offset.0)).unwrap_or(usize::MAX);
        let source = sector.get(from..).unwrap_or_default();
        let target = buffer.get_mut(to..).unwrap_or_default();
        let count = source.len().min(target.len());
        if let (Some(target), Some(source)) = (target.get_mut(..count), source.get(..count)) {
            target.copy_from_slice(source);
            covered = to + count;
        }
    }
    covered
}
