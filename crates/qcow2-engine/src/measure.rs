//! How large an image would be before it is made: qemu-img's numbers.

use qcow2_format::{Geometry, GuestOffset, RefcountOrder, Version};

use crate::chain::Chain;
use crate::error::{Error, Result};
use crate::progress::JobContext;

/// Statuses that are asked for at a time.
const BATCH: usize = 4096;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub enum MeasureSource<'a> {
    /// An empty disk of this many bytes.
    Size(u64),
    /// A disk with this content.
    Chain(&'a Chain),
}

/// The target that is asked about.
#[derive(Clone, Copy, Debug)]
pub enum MeasureTarget {
    /// A raw image.
    Raw,
    /// A LUKS container.
    Luks {
        /// Bytes of its header with the key slots.
        header: u64,
    },
    /// A qcow2 image.
    Qcow2 {
        /// Cluster size and width of L2 entries.
        geometry: Geometry,
        /// Width of refcounts.
        refcount_order: RefcountOrder,
        /// Version 2 holds no bitmaps.
        version: Version,
        /// All data clusters are allocated at once (`preallocation` falloc or full).
        preallocated: bool,
        /// Bytes of its LUKS header with the key slots; 0 if it has none.
        encryption: u64,
        /// The target has a backing file, of which nothing is known: the worst case is measured.
        backing: bool,
    },
}

/// All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// What the content needs.
    pub required: u64,
    /// What the image needs once every cluster is written.
    pub fully_allocated: u64,
    /// What the persistent bitmaps of the source need, where source and target can hold any.
    pub bitmaps: Option<u64>,
}

/// Measures a target. Of a source, only metadata is read.
///
/// # Errors
/// [`Error::Limit`] for a size beyond the format's; errors of resolving the source.
pub fn measure(source: MeasureSource<'_>, target: MeasureTarget, context: &JobContext) -> Result<Measurement> {
    let size = match source {
        MeasureSource::Size(size) => size,
        MeasureSource::Chain(chain) => chain.virtual_size(),
    };
    let size = size.checked_next_multiple_of(512).ok_or_else(|| too_large(size))?;
    if let MeasureTarget::Luks { header } = target {
        let length = size.checked_add(header).ok_or_else(|| too_large(size))?;
        return Ok(Measurement {
            required: length,
            fully_allocated: length,
            bitmaps: None,
        });
    }
    let MeasureTarget::Qcow2 {
        geometry,
        refcount_order,
        version,
        preallocated,
        encryption,
        backing,
    } = target
    else {
        return Ok(Measurement {
            required: size,
            fully_allocated: size,
            bitmaps: None,
        });
    };
    if geometry.l1_entries(size).saturating_mul(8) > qcow2_format::limits::MAX_L1_BYTES {
        return Err(too_large(size));
    }
    let aligned = size
        .checked_next_multiple_of(geometry.cluster_size())
        .ok_or_else(|| too_large(size))?;
    let header = encryption.next_multiple_of(geometry.cluster_size());
    let metadata = metadata_bytes(aligned, geometry, refcount_order).saturating_add(header);
    let data = match source {
        _ if preallocated => aligned,
        MeasureSource::Size(_) => 0,
        MeasureSource::Chain(_) if backing => aligned,
        MeasureSource::Chain(chain) => allocated_bytes(chain, geometry.cluster_size(), context)?,
    };
    let bitmaps = match source {
        MeasureSource::Chain(chain) if version == Version::V3 => bitmap_bytes(chain, geometry.cluster_size()),
        _ => None,
    };
    Ok(Measurement {
        required: metadata.saturating_add(data),
        fully_allocated: metadata.saturating_add(aligned),
        bitmaps,
    })
}

/// Bytes of header, L1, L2 and refcounts of a fully allocated image of `aligned` bytes, a multiple of the cluster size.
fn metadata_bytes(aligned: u64, geometry: Geometry, order: RefcountOrder) -> u64 {
    let cluster = geometry.cluster_size();
    let l2_tables = geometry.clusters(aligned).div_ceil(geometry.l2_entries());
    let l1_clusters = l2_tables.saturating_mul(8).div_ceil(cluster);
    let clusters = 1u64.saturating_add(l2_tables).saturating_add(l1_clusters);
    let counted = clusters.saturating_add(geometry.clusters(aligned));
    clusters
        .saturating_add(refcount_clusters(counted, geometry, order))
        .saturating_mul(cluster)
}

/// Clusters of the refcount table and blocks that count `clusters` clusters and themselves.
pub(crate) fn refcount_clusters(clusters: u64, geometry: Geometry, order: RefcountOrder) -> u64 {
    let (per_block, per_table) = (order.block_entries(geometry), geometry.cluster_size() / 8);
    let (mut blocks, mut table) = (0u64, 0u64);
    loop {
        let counted = clusters.saturating_add(blocks).saturating_add(table);
        let (more_blocks, more_table) = (
            counted.div_ceil(per_block),
            counted.div_ceil(per_block).div_ceil(per_table),
        );
        if (more_blocks, more_table) == (blocks, table) {
            return blocks.saturating_add(table);
        }
        (blocks, table) = (more_blocks, more_table);
    }
}

/// Bytes of the target's clusters that some data of the source falls into.
fn allocated_bytes(chain: &Chain, cluster: u64, context: &JobContext) -> Result<u64> {
    let end = chain.virtual_size();
    let (mut at, mut required) = (0u64, 0u64);
    context.progress.begin("measure", end);
    while at < end {
        context.cancel.check()?;
        let statuses = chain.status(GuestOffset(at), end.saturating_sub(at), BATCH)?;
        let before = at;
        for status in statuses {
            let run_end = status.start.0.saturating_add(status.length);
            if run_end <= at {
                continue;
            }
            let start = status.start.0.max(at);
            at = run_end;
            if status.present && status.data && !status.zero {
                // The rest of its last cluster is counted with it, and not again.
                at = run_end.next_multiple_of(cluster);
                required = required.saturating_add(at.saturating_sub(start - start % cluster));
            }
        }
        if at == before {
            break;
        }
        context.progress.advance(at.saturating_sub(before));
    }
    context.progress.finish();
    Ok(required)
}

/// Bytes that the persistent bitmaps of the top layer need in an image with clusters of `cluster` bytes.
fn bitmap_bytes(chain: &Chain, cluster: u64) -> Option<u64> {
    let layer = chain.layers().next()?;
    if layer.header()?.version == Version::V2 {
        return None;
    }
    let mut directory = 0u64;
    let mut total = 0u64;
    for bitmap in layer.bitmaps().iter().filter(|bitmap| !bitmap.in_use()) {
        let clusters = bitmap.data_bytes(layer.virtual_size()).div_ceil(cluster);
        let table = clusters.saturating_mul(8).next_multiple_of(cluster);
        total = total
            .saturating_add(clusters.saturating_mul(cluster))
            .saturating_add(table);
        directory = directory.saturating_add((bitmap.name.len() as u64).saturating_add(24).next_multiple_of(8));
    }
    Some(total.saturating_add(directory.next_multiple_of(cluster)))
}

fn too_large(size: u64) -> Error {
    Error::State {
        code: "IMAGE_TOO_BIG",
        path: None,
        reason: format!("a virtual size of {size} bytes is too large for this cluster size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gib_needs_the_six_clusters_that_qemu_img_says() {
        let (geometry, order) = (Geometry::new(16, false).unwrap(), RefcountOrder::new(4).unwrap());
        assert_eq!(metadata_bytes(1 << 30, geometry, order), 393_216);
    }

    #[test]
    fn refcounts_count_themselves() {
        let (geometry, order) = (Geometry::new(9, false).unwrap(), RefcountOrder::new(6).unwrap());
        // 64 counts a block: 62 clusters, one block and one table cluster fill it; one more cluster needs a second block.
        assert_eq!(refcount_clusters(62, geometry, order), 2);
        assert_eq!(refcount_clusters(63, geometry, order), 3);
    }
}
