//! Whether an image's clusters were reserved before they were written.

use qcow2_format::{HostOffset, RefcountTableEntry};

use crate::layer::{Image, Layer};

/// Whether many more host clusters are counted as used than the file takes on its device: then looking for holes under data clusters pays, and
/// QEMU's map does so.
///
/// The rule is QEMU's: the clusters in use are a ninth more than those that the file takes, and at least two. What cannot be read answers no.
pub(super) fn detect(layer: &Layer) -> bool {
    layer
        .image()
        .and_then(|image| more_used_than_taken(layer, image))
        .unwrap_or(false)
}

fn more_used_than_taken(layer: &Layer, image: &Image) -> Option<bool> {
    let storage = layer.storage();
    let geometry = image.header.geometry;
    let clusters = geometry.clusters(storage.length().ok()?);
    let taken = storage.allocated_bytes().ok()?? / geometry.cluster_size();
    let threshold = (taken.saturating_mul(10) / 9).max(taken.saturating_add(2));
    if threshold > clusters {
        return Some(false);
    }
    let order = image.header.refcount_order;
    let mut table = vec![0; usize::try_from(image.header.refcount_table_bytes()).ok()?];
    let filled = storage.read_at(image.header.refcount_table_offset, &mut table).ok()?;
    table.truncate(filled);
    let block_entries = order.block_entries(geometry);
    let mut block = vec![0; geometry.cluster_len()];
    let mut used = 0u64;
    for (index, entry) in (0u64..).zip(table.as_chunks::<8>().0) {
        let first = index.checked_mul(block_entries)?;
        if first >= clusters {
            break;
        }
        let Some(offset) = RefcountTableEntry(u64::from_be_bytes(*entry)).block_offset() else {
            continue;
        };
        if !read_block(layer, offset, geometry.cluster_size(), &mut block)? {
            return Some(false);
        }
        let entries = block_entries.min(clusters - first);
        for entry in 0..usize::try_from(entries).ok()? {
            used += u64::from(order.get_at(&block, entry)? != 0);
        }
        if used >= threshold {
            return Some(true);
        }
    }
    Some(false)
}

fn read_block(layer: &Layer, offset: HostOffset, cluster_size: u64, block: &mut [u8]) -> Option<bool> {
    if !offset.is_aligned(cluster_size) {
        return Some(false);
    }
    let filled = layer.storage().read_at(offset, block).ok()?;
    block.get_mut(filled..)?.fill(0);
    Some(true)
}
