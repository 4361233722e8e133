//! A new directory: which bitmaps there are, and where.

use std::sync::PoisonError;

use qcow2_format::bitmap::{Bitmap, encode_directory};
use qcow2_format::bitmap_switch::{autoclear_of, switch_bitmaps};
use qcow2_format::features::autoclear;
use qcow2_format::{BitmapsExtension, HostOffset, limits};

use super::super::Image;
use super::super::names::first_cluster;
use super::super::refcounts::Clusters;
use super::recorder::Slots;
use super::store::Changes;
use crate::error::{Error, Result};

impl Image {
    /// Writes a directory of `entries` at a new place and makes the header name it, durably, and all that was written before. Without entries there
    /// is none. The old one is given up.
    pub(super) fn replace_directory(&self, slots: &mut Slots, entries: &[Bitmap]) -> Result<()> {
        let mut changes = Changes::default();
        let switched = self.new_directory(entries, &mut changes).and_then(|new| {
            self.switch_extension(new)?;
            Ok(new)
        });
        let new = match switched {
            Ok(new) => new,
            Err(error) => {
                // If the header may name it, nothing is written any more anyway.
                self.release_all(&changes.taken);
                return Err(error);
            }
        };
        let old = std::mem::replace(&mut slots.directory, new);
        changes.rows.extend(old.map(|old| self.directory_clusters(old)));
        self.drop_clusters(&changes);
        Ok(())
    }

    fn new_directory(&self, entries: &[Bitmap], changes: &mut Changes) -> Result<Option<BitmapsExtension>> {
        let mut new = None;
        if !entries.is_empty() {
            let bytes = encode_directory(entries);
            let directory_size = bytes.len() as u64;
            if directory_size > limits::MAX_BITMAP_DIRECTORY_BYTES {
                return Err(Error::Limit {
                    limit: "bitmapDirectory",
                    allowed: limits::MAX_BITMAP_DIRECTORY_BYTES,
                    wanted: directory_size,
                });
            }
            let row = self.new_row(&bytes, changes)?;
            new = Some(BitmapsExtension {
                count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
                directory_size,
                directory_offset: HostOffset(row.first << self.geometry.cluster_bits()),
            });
        }
        self.flush_with(true)?;
        Ok(new)
    }

    fn directory_clusters(&self, directory: BitmapsExtension) -> Clusters {
        Clusters {
            first: self.geometry.cluster_index(directory.directory_offset).0,
            count: self.geometry.clusters(directory.directory_size),
        }
    }

    /// Makes the header name a directory, or none: patch by patch, each durable before the next.
    fn switch_extension(&self, new: Option<BitmapsExtension>) -> Result<()> {
        let log = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuse_poisoned()?;
        let mut cluster = first_cluster(&*self.storage, self.geometry.cluster_len())?;
        let patches = switch_bitmaps(&cluster, new).map_err(|error| self.format_error(error))?;
        self.write_patches(&mut cluster, &patches)?;
        let mut state = self.lock();
        if let Some(sector) = cluster.first_chunk() {
            state.header.rebase(sector);
        }
        let bit = autoclear_of(&cluster).unwrap_or(0) & autoclear::BITMAPS;
        let header = &mut state.header;
        for fields in [&mut header.durable, &mut header.newest] {
            fields.autoclear = fields.autoclear & !autoclear::BITMAPS | bit;
        }
        drop(state);
        drop(log);
        Ok(())
    }
}
