//! What a repair writes: sectors that differ, and the dirty bit before all that must not be seen half done.

use std::sync::Arc;

use qcow2_format::features::incompatible;
use qcow2_format::sector::SECTOR_LENGTH;
use qcow2_format::{FirstSector, HostOffset, changed_sectors};

use crate::error::{Error, Result};
use crate::storage::Storage;

/// Writes to the image under repair.
#[derive(Debug)]
pub(super) struct Writer {
    storage: Arc<dyn Storage>,
    first: FirstSector,
    /// Something was written since the last sync.
    unsynced: bool,
    /// The dirty bit is set, durably, or there is none.
    marked: bool,
    /// Something refers to what could not be counted: the marks stay.
    pub(super) hidden: bool,
}

impl Writer {
    /// A writer for an image of which everything is durable.
    pub(super) fn new(storage: Arc<dyn Storage>) -> Result<Self> {
        let mut bytes = [0; SECTOR_LENGTH];
        let filled = storage
            .read_at(HostOffset(0), &mut bytes)
            .map_err(Error::io("read", &*storage))?;
        let first = FirstSector::new(bytes.get(..filled).unwrap_or_default()).map_err(|error| Error::Format {
            path: storage.path().map(Into::into),
            error,
        })?;
        Ok(Self {
            marked: !first.has_features() || first.incompatible() & incompatible::DIRTY != 0,
            first,
            storage,
            unsynced: false,
            hidden: false,
        })
    }

    /// The header's first sector as it is on disk.
    pub(super) fn header(&self) -> &FirstSector {
        &self.first
    }

    /// Makes sure that a crash from here on is seen as one.
    pub(super) fn mark(&mut self) -> Result<()> {
        if !self.marked {
            self.change_header(|sector| {
                let _ = sector.set_incompatible(sector.incompatible() | incompatible::DIRTY);
            })?;
            self.marked = true;
        }
        Ok(())
    }

    /// Changes the header by one sector, after all that was written before and before all that follows.
    pub(super) fn change_header(&mut self, change: impl FnOnce(&mut FirstSector)) -> Result<()> {
        let mut next = self.first.clone();
        change(&mut next);
        if next != self.first {
            self.sync()?;
            self.write(HostOffset(0), next.bytes())?;
            self.sync()?;
            self.first = next;
        }
        Ok(())
    }

    /// Writes the sectors in which `new` differs from `old`, those next to each other at once. Both stand at `offset`. Returns whether any did.
    pub(super) fn write_changed(&mut self, offset: HostOffset, old: &[u8], new: &[u8]) -> Result<bool> {
        let mut run: Option<(HostOffset, Vec<u8>)> = None;
        let mut any = false;
        for sector in changed_sectors(old, new, offset) {
            any = true;
            match &mut run {
                Some((begin, bytes)) if begin.0 + bytes.len() as u64 == sector.offset.0 => {
                    bytes.extend_from_slice(&sector.bytes);
                }
                _ => {
                    let before = run.replace((sector.offset, sector.bytes));
                    if let Some((begin, bytes)) = before {
                        self.write(begin, &bytes)?;
                    }
                }
            }
        }
        if let Some((begin, bytes)) = run {
            self.write(begin, &bytes)?;
        }
        Ok(any)
    }

    pub(super) fn write(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        self.unsynced = true;
        let written = self.storage.write_at(offset, bytes);
        written.map_err(Error::io("write", &*self.storage))
    }

    /// Makes everything durable that was written, if anything was.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.unsynced {
            self.storage.sync().map_err(Error::io("sync", &*self.storage))?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// The bytes at `offset`; what the file lacks of them is zeros.
    pub(super) fn read(&self, offset: HostOffset, bytes: &mut [u8]) -> Result<()> {
        let filled = self.storage.read_at(offset, bytes);
        let filled = filled.map_err(Error::io("read", &*self.storage))?;
        bytes.get_mut(filled..).unwrap_or_default().fill(0);
        Ok(())
    }
}
