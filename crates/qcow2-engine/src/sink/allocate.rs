//! Host clusters in the order in which they are needed, each counted, and the refcount blocks between them.

use qcow2_format::{ClusterIndex, CompressedDescriptor, Geometry, HostOffset, RefcountOrder};

use super::append::Appender;
use super::refcounts::{Refcounts, internal};
use crate::error::{Error, Result};

/// Host offsets of data must be smaller.
const MAX_HOST_OFFSET: u64 = 1 << 56;
/// A new cluster is never farther from the end of the file: so many refcount blocks at most come before it.
const FARTHEST: u64 = 1 << 17;

/// The growing file: its writer, its refcounts and the next free cluster.
///
/// A refcount block is written as soon as nothing it describes can change any more, between the clusters that are allocated then; it
/// describes itself in a later block, and the last blocks describe themselves.
#[derive(Debug)]
pub(crate) struct Allocator {
    pub(crate) out: Appender,
    geometry: Geometry,
    refcounts: Refcounts,
    next: u64,
    open: Option<Open>,
    /// The largest length in bytes that the file may get.
    max_length: Option<u64>,
}

/// The host cluster that the next compressed cluster may share.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// The byte behind the last compressed cluster.
    end: u64,
    /// How many compressed clusters touch the host cluster of `end`.
    count: u64,
}

impl Allocator {
    pub(crate) fn new(out: Appender, geometry: Geometry, order: RefcountOrder, max_length: Option<u64>) -> Self {
        Self {
            out,
            geometry,
            refcounts: Refcounts::new(geometry, order),
            next: 0,
            open: None,
            max_length,
        }
    }

    /// Up to `wanted` clusters that follow each other, at least one.
    pub(crate) fn some(&mut self, wanted: u64) -> Result<(HostOffset, u64)> {
        self.write_closed_blocks()?;
        // Not past the range of the block, so that blocks are written when their ranges end.
        let entries = self.refcounts.block_entries();
        let length = wanted.min(entries - self.next % entries).max(1);
        Ok((self.take(length)?, length))
    }

    /// `length` clusters that follow each other.
    pub(crate) fn exactly(&mut self, length: u64) -> Result<HostOffset> {
        self.write_closed_blocks()?;
        self.take(length)
    }

    /// Writes one compressed cluster as tightly as bytes go. `None`: its place cannot be told in a descriptor.
    pub(crate) fn append_compressed(&mut self, bytes: &[u8]) -> Result<Option<CompressedDescriptor>> {
        let cluster = self.geometry.cluster_size();
        let length = bytes.len() as u64;
        let farthest = HostOffset(self.next.saturating_add(FARTHEST).saturating_mul(cluster));
        if CompressedDescriptor::new(farthest, length, self.geometry).is_none() {
            return Ok(None);
        }
        let host = self.compressed_place(length)?;
        let descriptor = CompressedDescriptor::new(host, length, self.geometry)
            .ok_or_else(|| internal("a compressed cluster passes its descriptor"))?;
        self.out.write(host, bytes)?;
        let end = host.0 + length;
        let (first, last) = (host.0 / cluster, (end - 1) / cluster);
        let shared = self
            .open
            .filter(|open| open.end / cluster == first && !open.end.is_multiple_of(cluster));
        let first_count = shared.map_or(0, |open| open.count) + 1;
        self.refcounts.set(ClusterIndex(first), first_count)?;
        let count = if last == first { first_count } else { 1 };
        self.open = (!end.is_multiple_of(cluster) && count < self.refcounts.max()).then_some(Open { end, count });
        Ok(Some(descriptor))
    }

    /// Where a compressed cluster goes: behind the last one if it can, else into a new host cluster.
    fn compressed_place(&mut self, length: u64) -> Result<HostOffset> {
        let cluster = self.geometry.cluster_size();
        if let Some(Open { end, .. }) = self.open {
            let room = cluster - end % cluster;
            if length <= room {
                return Ok(HostOffset(end));
            }
            if end / cluster + 1 == self.next {
                self.take(1)?;
                return Ok(HostOffset(end));
            }
        }
        self.open = None;
        self.exactly(1)
    }

    fn write_closed_blocks(&mut self) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let open = self.open.map_or(u64::MAX, |open| open.end / cluster);
        while self.refcounts.has_closed(ClusterIndex(self.next.min(open))) {
            let place = self.take(1)?;
            let block = self.refcounts.take_oldest(place);
            let block = block.ok_or_else(|| internal("no refcount block to write"))?;
            self.out.write_table(place, &block)?;
        }
        Ok(())
    }

    fn take(&mut self, length: u64) -> Result<HostOffset> {
        let cluster = self.geometry.cluster_size();
        let end = self.next.saturating_add(length).saturating_mul(cluster);
        if let Some(allowed) = self.max_length
            && end > allowed
        {
            return Err(Error::Limit {
                limit: "maxOutputSize",
                allowed,
                wanted: end,
            });
        }
        if end > MAX_HOST_OFFSET {
            return Err(Error::Limit {
                limit: "host offset",
                allowed: MAX_HOST_OFFSET,
                wanted: end,
            });
        }
        self.refcounts.set_ones(ClusterIndex(self.next), length)?;
        let place = HostOffset(self.next * cluster);
        self.next += length;
        Ok(place)
    }

    /// Writes the blocks that are left and the refcount table. Returns its place, its length in clusters, and the end of the file.
    pub(crate) fn finish(&mut self) -> Result<(HostOffset, u32, u64)> {
        self.open = None;
        let (blocks, table) = self.refcounts.closing_clusters(self.next);
        let place = self.take(blocks + table)?;
        let cluster = self.geometry.cluster_size();
        for number in 0..blocks {
            let place = HostOffset(place.0 + number * cluster);
            // The last range may begin with this very block's cluster or behind it: then there is nothing to count yet.
            let block = self.refcounts.take_oldest(place);
            let block = block.ok_or_else(|| internal("no refcount block to write"))?;
            self.out.write_table(place, &block)?;
        }
        let table_place = HostOffset(place.0 + blocks * cluster);
        let bytes = self.refcounts.table(table)?;
        self.out.write_table(table_place, &bytes)?;
        let clusters = u32::try_from(table).map_err(|_| internal("the refcount table is too long"))?;
        Ok((table_place, clusters, self.next * cluster))
    }
}
