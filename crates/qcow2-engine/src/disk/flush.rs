//! *seal → prepare → publish → reclaim*: how what changed becomes durable, in two barriers.

use crate::sync::atomic::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use qcow2_format::HostOffset;
use qcow2_format::features::incompatible;

use super::Image;
use super::header::SealedHeader;
use super::weaken::Weaken;
use crate::error::{Error, Result};
use crate::overlay::{Class, Sector, Sectors};
use crate::storage::{Storage, WriteRequest};

/// Most bytes that go out as one write.
const WRITE: usize = 1 << 20;

/// What one flush writes.
struct Sealed {
    sectors: Arc<Sectors>,
    header: SealedHeader,
    /// Tables that are new on disk with it.
    fresh: HashMap<u64, Class>,
}

/// Flushes that have sealed, and the last of them that came to its end.
#[derive(Debug, Default)]
pub(super) struct FlushLog {
    sealed: u64,
    done: u64,
}

impl Image {
    /// Makes everything durable that has returned before. A flush that arrives while one runs waits for the next one, and all that wait share it.
    pub(super) fn flush(&self) -> Result<()> {
        self.flush_with(false)
    }

    /// As [`Image::flush`]; `everything`: refcounts too, which may be behind while they are lazy.
    pub(super) fn flush_with(&self, everything: bool) -> Result<()> {
        let before = self.seals.load(Ordering::SeqCst);
        let mut log = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuse_poisoned()?;
        if log.done > before && !everything {
            return Ok(());
        }
        log.sealed += 1;
        self.seals.store(log.sealed, Ordering::SeqCst);
        self.flush_once(everything)?;
        log.done = log.sealed;
        drop(log);
        // What this flush unlinked is unlinked on disk.
        self.reclaim()
    }

    fn flush_once(&self, everything: bool) -> Result<()> {
        let sealed = {
            let mut state = self.lock();
            let late = self.is_lazy(&state) && !everything;
            let keep = |at: u64, class: Class| {
                late && class == Class::Prepare && state.guard.is_refcount_block(at & !(state.cluster_size() - 1))
            };
            let sectors = self.overlay.seal(keep);
            state.quarantine.seal();
            Sealed {
                sectors,
                header: state.header.seal(),
                // What is sealed is on disk when the next flush writes.
                fresh: std::mem::take(&mut state.fresh),
            }
        };
        match self.prepare(&sealed) {
            Ok(()) => {}
            Err(error) => {
                // Nothing on disk names what was written: it is tried again with the next flush.
                let mut state = self.lock();
                self.overlay.unseal();
                state.fresh.extend(sealed.fresh);
                return Err(error);
            }
        }
        self.publish(&sealed)?;
        let mut state = self.lock();
        self.overlay.settle();
        state.header.settle(sealed.header);
        state.quarantine.settle();
        Ok(())
    }

    /// Everything that nothing on disk points to yet.
    fn prepare(&self, sealed: &Sealed) -> Result<()> {
        if self.write_class(sealed, Class::Structure)? && !self.weaken.has(Weaken::NO_BARRIER_STRUCTURE) {
            self.barrier()?;
        }
        self.write_class(sealed, Class::Prepare)?;
        if let Some(sector) = &sealed.header.prepare {
            self.write_file(HostOffset(0), sector)?;
        }
        if !self.weaken.has(Weaken::NO_BARRIER_PREPARE) {
            self.barrier()?;
        }
        Ok(())
    }

    /// The pointers. From here on there is no way back: what failed may be on disk or not.
    fn publish(&self, sealed: &Sealed) -> Result<()> {
        let pointers = self.write_class(sealed, Class::Publish);
        let header = pointers.and_then(|any| match &sealed.header.publish {
            Some(sector) => self.write_file(HostOffset(0), sector).map(|()| true),
            None => Ok(any),
        });
        let any = header.inspect_err(|error| self.poison(error))?;
        if any && !self.weaken.has(Weaken::NO_BARRIER_PUBLISH) {
            self.barrier()?;
        }
        Ok(())
    }

    /// Writes the sectors of one class, adjacent ones together. Returns whether there were any.
    fn write_class(&self, sealed: &Sealed, class: Class) -> Result<bool> {
        let newest = self.weaken.has(Weaken::NO_SEAL).then(|| self.overlay.copy_dirty());
        let mut requests: Vec<(u64, Vec<u8>)> = Vec::new();
        for (&at, (_, sector)) in sealed.sectors.iter().filter(|(_, (other, _))| *other == class) {
            let sector: &Sector = newest
                .as_ref()
                .and_then(|newest| newest.get(&at))
                .map_or(sector, |(_, newest)| newest);
            match requests.last_mut() {
                Some((begin, bytes)) if *begin + bytes.len() as u64 == at && bytes.len() < WRITE => {
                    bytes.extend_from_slice(sector);
                }
                _ => requests.push((at, sector.to_vec())),
            }
        }
        if requests.is_empty() {
            return Ok(false);
        }
        let batch: Vec<WriteRequest<'_>> = requests
            .iter()
            .map(|(at, bytes)| WriteRequest {
                offset: HostOffset(*at),
                bytes,
            })
            .collect();
        let outcome = self
            .storage
            .write_batch(&batch)
            .map_err(Error::io("write", &*self.storage));
        self.wrote(false);
        outcome.map(|()| true)
    }

    /// Syncs every file written since the last time, the data file first. A failure poisons the image: what was written may be lost, and a second
    /// sync would not tell.
    pub(super) fn barrier(&self) -> Result<()> {
        if let Some(data) = &self.data_file
            && self.wrote_data.swap(false, Ordering::SeqCst)
            && !self.weaken.has(Weaken::NO_DATA_FILE_SYNC)
        {
            self.sync(&**data)?;
        }
        if self.wrote_file.swap(false, Ordering::SeqCst) {
            self.sync(&*self.storage)?;
        }
        Ok(())
    }

    fn sync(&self, storage: &dyn Storage) -> Result<()> {
        let outcome = storage.sync().map_err(Error::io("fsync", storage));
        if !self.weaken.has(Weaken::NO_POISON) {
            return outcome.inspect_err(|error| self.poison(error));
        }
        Ok(())
    }

    pub(super) fn write_file(&self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        let outcome = self
            .storage
            .write_at(offset, bytes)
            .map_err(Error::io("write", &*self.storage));
        self.wrote(false);
        outcome
    }

    /// Something was written to the image, or to its data file.
    pub(super) fn wrote(&self, data: bool) {
        if data {
            self.wrote_data.store(true, Ordering::SeqCst);
        } else {
            self.wrote_file.store(true, Ordering::SeqCst);
        }
    }

    /// Whether refcounts are allowed to be behind: the disk says so by the dirty bit.
    fn is_lazy(&self, state: &super::state::State) -> bool {
        self.lazy && state.header.durable.incompatible & incompatible::DIRTY != 0
    }

    /// Changes header fields at once, durably, apart from what waits for a flush.
    pub(super) fn switch_header(&self, change: impl Fn(&mut super::header::Fields)) -> Result<()> {
        let log = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuse_poisoned()?;
        let (sector, after) = {
            let mut state = self.lock();
            let mut after = state.header.durable.clone();
            change(&mut after);
            change(&mut state.header.newest);
            (state.header.render(&after), after)
        };
        self.write_file(HostOffset(0), &sector)
            .inspect_err(|error| self.poison(error))?;
        self.barrier()?;
        self.lock().header.durable = after;
        drop(log);
        Ok(())
    }
}
