//! Names in the header: of the backing file, of its format, of the data file.

use std::sync::PoisonError;

use qcow2_format::bitmap_switch::{HeaderPatch, apply_patch};
use qcow2_format::header_switch::{HeaderNames, switch_header};
use qcow2_format::{FormatError, Header, HostOffset};

use super::{Disk, Image};
use crate::error::{Error, Result};
use crate::overlay::SECTOR;
use crate::storage::Storage;

impl Disk {
    /// Makes the image name another backing file, with its format, or none. Everything written before is durable first; then one sector of the header
    /// switches, durably. The layers that this disk reads from stay what they are: whoever calls sees to it that the disk reads the same over the new
    /// one.
    ///
    /// # Errors
    /// [`Error::Format`] with [`FormatError::HeaderFull`] if the first cluster has no room, [`FormatError::BackingNameTooLong`] for more than 1023 bytes;
    /// those of [`Disk::flush`].
    pub fn set_backing(&self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        let _alone = self.alone()?;
        let image = self.image()?;
        if let Some(name) = name.filter(|name| name.len() > to_len(qcow2_format::limits::MAX_BACKING_NAME)) {
            let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
            return Err(image.format_error(FormatError::BackingNameTooLong { length }));
        }
        image.begin_writing()?;
        image.quiesce()?;
        image.rename(|names| {
            names.backing_name = name.filter(|name| !name.is_empty()).map(Into::into);
            names.backing_format = format.filter(|format| !format.is_empty()).map(Into::into);
        })
    }
}

impl Image {
    /// Changes the names, durably.
    pub(super) fn rename(&self, change: impl FnOnce(&mut HeaderNames)) -> Result<()> {
        let log = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuse_poisoned()?;
        let mut cluster = first_cluster(&*self.storage, self.geometry.cluster_len())?;
        let patches = HeaderNames::of(&cluster).and_then(|mut names| {
            change(&mut names);
            switch_header(&cluster, &Header::parse(&cluster)?, &names)
        });
        let patches = patches.map_err(|error| self.format_error(error))?;
        self.write_patches(&mut cluster, &patches)?;
        if let Some(sector) = cluster.first_chunk() {
            self.lock().header.rebase(sector);
        }
        drop(log);
        Ok(())
    }

    /// Writes patches of the first cluster, each durable before the next; those that follow each other in one sector at once.
    pub(super) fn write_patches(&self, cluster: &mut Vec<u8>, patches: &[HeaderPatch]) -> Result<()> {
        for patches in patches.chunk_by(|a, b| a.sector().is_some() && a.sector() == b.sector()) {
            let (begin, bytes) = sectors(cluster, patches);
            self.write_file(HostOffset(begin), &bytes)
                .inspect_err(|error| self.poison(error))?;
            self.barrier()?;
        }
        Ok(())
    }

    pub(super) fn format_error(&self, error: FormatError) -> Error {
        Error::Format {
            path: self.storage.path().map(Into::into),
            error,
        }
    }
}

/// Applies patches to the cluster; the whole sectors that they change, and where those begin.
pub(super) fn sectors(cluster: &mut Vec<u8>, patches: &[HeaderPatch]) -> (u64, Vec<u8>) {
    let (mut begin, mut end) = (u64::MAX, 0);
    for patch in patches {
        begin = begin.min(patch.offset.0 & !(SECTOR - 1));
        end = end.max(patch.end().next_multiple_of(SECTOR));
    }
    // A file may end inside of its first cluster.
    cluster.resize(cluster.len().max(to_len(end)), 0);
    for patch in patches {
        apply_patch(cluster, patch);
    }
    let range = to_len(begin)..to_len(end);
    (begin, cluster.get(range).unwrap_or_default().to_vec())
}

/// The first cluster, as far as the file goes.
pub(super) fn first_cluster(storage: &dyn Storage, length: usize) -> Result<Vec<u8>> {
    let mut cluster = vec![0; length];
    let there = storage
        .read_at(HostOffset(0), &mut cluster)
        .map_err(Error::io("read", storage))?;
    cluster.truncate(there);
    Ok(cluster)
}

fn to_len(bytes: impl TryInto<usize>) -> usize {
    bytes.try_into().unwrap_or(usize::MAX)
}
