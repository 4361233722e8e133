//! The refcounts of a file that only grows: a block is in memory while its clusters can still change, and no longer.

use std::collections::VecDeque;

use qcow2_format::{ClusterIndex, Geometry, HostOffset, RefcountOrder, limits};

use crate::error::{Error, Result};

/// Counts by host cluster, kept in the blocks that will be written.
#[derive(Debug)]
pub(crate) struct Refcounts {
    geometry: Geometry,
    order: RefcountOrder,
    /// Where the blocks of the first ranges went.
    placed: Vec<HostOffset>,
    /// The blocks of the ranges after those.
    open: VecDeque<Vec<u8>>,
}

impl Refcounts {
    pub(crate) fn new(geometry: Geometry, order: RefcountOrder) -> Self {
        Self {
            geometry,
            order,
            placed: Vec::new(),
            open: VecDeque::new(),
        }
    }

    /// Host clusters that one block describes.
    pub(crate) fn block_entries(&self) -> u64 {
        self.order.block_entries(self.geometry)
    }

    /// The largest count.
    pub(crate) fn max(&self) -> u64 {
        self.order.max()
    }

    /// Sets the count of one cluster, which no placed block may describe.
    pub(crate) fn set(&mut self, cluster: ClusterIndex, count: u64) -> Result<()> {
        let (order, (range, index)) = (self.order, self.order.split(cluster, self.geometry));
        let block = self.block(range)?;
        usize::try_from(index)
            .ok()
            .and_then(|index| order.set_at(block, index, count))
            .ok_or_else(|| internal("a refcount passes its width"))
    }

    /// Sets the counts of `length` clusters to 1.
    pub(crate) fn set_ones(&mut self, first: ClusterIndex, length: u64) -> Result<()> {
        let (order, entries) = (self.order, self.block_entries());
        let (mut at, end) = (first.0, first.0.saturating_add(length));
        while at < end {
            let stop = end.min((at / entries).saturating_add(1).saturating_mul(entries));
            let (range, index) = order.split(ClusterIndex(at), self.geometry);
            let block = self.block(range)?;
            for step in 0..stop - at {
                usize::try_from(index + step)
                    .ok()
                    .and_then(|index| order.set_at(block, index, 1))
                    .ok_or_else(|| internal("a refcount stands outside its block"))?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Whether the oldest block in memory describes only clusters below `changing`, so that it can be written.
    pub(crate) fn has_closed(&self, changing: ClusterIndex) -> bool {
        let end = (self.placed.len() as u64 + 1).saturating_mul(self.block_entries());
        !self.open.is_empty() && end <= changing.0
    }

    /// Takes the oldest block out of memory; it will stand at `place`.
    pub(crate) fn take_oldest(&mut self, place: HostOffset) -> Option<Vec<u8>> {
        let block = self.open.pop_front()?;
        self.placed.push(place);
        Some(block)
    }

    /// How many blocks and table clusters must follow when `next` clusters are in use without them.
    pub(crate) fn closing_clusters(&self, next: u64) -> (u64, u64) {
        let (mut blocks, mut table) = (0, 0);
        loop {
            let ranges = (next + blocks + table).div_ceil(self.block_entries());
            let wanted = ranges.saturating_sub(self.placed.len() as u64);
            let table_wanted = self.geometry.clusters(ranges.saturating_mul(8));
            if (wanted, table_wanted) == (blocks, table) {
                return (blocks, table);
            }
            (blocks, table) = (wanted.max(blocks), table_wanted.max(table));
        }
    }

    /// The refcount table, `clusters` long.
    pub(crate) fn table(&self, clusters: u64) -> Result<Vec<u8>> {
        let bytes = clusters.saturating_mul(self.geometry.cluster_size());
        let mut table = Vec::new();
        let length = usize::try_from(bytes).map_err(|_| internal("the refcount table is too long"))?;
        table.try_reserve_exact(length).map_err(|_| out_of_memory(bytes))?;
        for offset in &self.placed {
            table.extend_from_slice(&offset.0.to_be_bytes());
        }
        table.resize(length, 0);
        Ok(table)
    }

    fn block(&mut self, range: u64) -> Result<&mut Vec<u8>> {
        if range.saturating_add(1).saturating_mul(8) > limits::MAX_REFCOUNT_TABLE_BYTES {
            return Err(Error::State {
                code: "REFCOUNT_TABLE_FULL",
                path: None,
                reason: "the refcount table would pass 8 MiB: a larger cluster size or narrower refcounts are needed"
                    .to_owned(),
            });
        }
        let at = range
            .checked_sub(self.placed.len() as u64)
            .and_then(|at| usize::try_from(at).ok())
            .ok_or_else(|| internal("a refcount changes after its block was written"))?;
        while self.open.len() <= at {
            self.open.push_back(vec![0; self.geometry.cluster_len()]);
        }
        self.open
            .get_mut(at)
            .ok_or_else(|| internal("a refcount block is missing"))
    }
}

/// A defect of this library.
pub(crate) fn internal(message: &str) -> Error {
    Error::Internal {
        message: message.to_owned(),
    }
}

/// Memory that the system does not give.
pub(crate) fn out_of_memory(wanted: u64) -> Error {
    Error::Limit {
        limit: "memory",
        allowed: 0,
        wanted,
    }
}
