//! Whether an image's clusters were reserved before they were written.

use qcow2_format::{HostOffset, RefcountTableEntry};

use crate::error::{Error, Result};
use crate::layer::{Image, Layer};

/// Whether many more host clusters are counted as used than the file takes on its device: then looking for holes under data clusters pays, and
/// QEMU's map does so.
///
/// The rule is QEMU's: the clusters in use are a ninth more than those that the file takes, and at least two. What is damaged answers no.
///
/// # Errors
/// [`Error::Io`]: an answer that a failing device gave would be kept for good.
pub(super) fn detect(layer: &Layer) -> Result<bool> {
    layer
        .image()
        .map_or(Ok(false), |image| more_used_than_taken(layer, image))
}

fn more_used_than_taken(layer: &Layer, image: &Image) -> Result<bool> {
    let storage = &**layer.storage();
    let geometry = image.header.geometry;
    let clusters = geometry.clusters(storage.length().map_err(Error::io("stat", storage))?);
    let Some(taken) = storage.allocated_bytes().map_err(Error::io("stat", storage))? else {
        return Ok(false);
    };
    let taken = taken / geometry.cluster_size();
    let threshold = (taken.saturating_mul(10) / 9).max(taken.saturating_add(2));
    if threshold > clusters {
        return Ok(false);
    }
    let table = read(
        layer,
        image.header.refcount_table_offset,
        image.header.refcount_table_bytes(),
    )?;
    let order = image.header.refcount_order;
    let block_entries = order.block_entries(geometry);
    let mut used = 0u64;
    // A block that counts anything takes a cluster on the device: a table that names more of them than the file takes names some of them twice,
    // and following it would take as long as a forger likes.
    let mut blocks = taken.saturating_add(1);
    for (index, entry) in (0u64..).zip(table.as_chunks::<8>().0) {
        let first = index.saturating_mul(block_entries);
        if first >= clusters {
            break;
        }
        let Some(offset) = RefcountTableEntry(u64::from_be_bytes(*entry)).block_offset() else {
            continue;
        };
        if !offset.is_aligned(geometry.cluster_size()) || blocks == 0 {
            return Ok(false);
        }
        blocks -= 1;
        let block = read(layer, offset, geometry.cluster_size())?;
        let entries = usize::try_from(block_entries.min(clusters - first)).unwrap_or(usize::MAX);
        // What the file does not have of a block counts nothing.
        let counts = (0..entries).map_while(|entry| order.get_at(&block, entry));
        used += counts.filter(|&count| count != 0).count() as u64;
        if used >= threshold {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Up to `length` bytes, at most 8 MiB: a table or a block.
fn read(layer: &Layer, offset: HostOffset, length: u64) -> Result<Vec<u8>> {
    let storage = &**layer.storage();
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let filled = storage
        .read_at(offset, &mut bytes)
        .map_err(Error::io("read", storage))?;
    bytes.truncate(filled);
    Ok(bytes)
}
