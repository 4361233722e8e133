//! Refcounts of another width: a whole new structure behind everything that is there, then one sector of the header names it.

use std::collections::BTreeSet;
use std::sync::Arc;

use qcow2_format::{
    ClusterIndex, FirstSector, Geometry, Header, HostOffset, RefcountOrder, RefcountTableEntry, limits,
};

use crate::error::{Error, Result};
use crate::progress::JobContext;
use crate::storage::Storage;

/// Bytes that are read or written at a time.
const WINDOW: usize = 2 << 20;

/// Gives the image refcounts of another width. Nobody else writes to it.
pub(super) fn rebuild(storage: &Arc<dyn Storage>, order: RefcountOrder, job: &JobContext) -> Result<()> {
    let old = Old::load(&**storage)?;
    let size = old.geometry.cluster_size();
    let blocks = old.table.iter().filter(|offset| **offset != 0).count() as u64;
    job.progress
        .begin("amend", blocks.saturating_mul(size).saturating_mul(2));
    let (needed, end) = old.survey(order, job)?;
    let plan = Plan::new(&old, order, needed, end)?;
    plan.write(&old, job)?;
    let sync = || storage.sync().map_err(Error::io("fsync", &**storage));
    sync()?;
    let mut first = [0; 512];
    storage
        .read_at(HostOffset(0), &mut first)
        .map_err(Error::io("read", &**storage))?;
    let mut sector = FirstSector::new(&first).map_err(|error| Error::Format {
        path: storage.path().map(Into::into),
        error,
    })?;
    let clusters = u32::try_from(plan.table_clusters).unwrap_or(u32::MAX);
    sector.set_refcount_table(HostOffset(plan.start * size), clusters);
    sector.set_refcount_order(order);
    storage
        .write_at(HostOffset(0), sector.bytes())
        .map_err(Error::io("write", &**storage))?;
    sync()?;
    // Nothing names the old structure any more. Whether its space comes back does not matter to what was asked for.
    for row in old.own.chunk_by(|a, b| a + 1 == *b) {
        let first = row.first().copied().unwrap_or(0);
        let _ = storage.punch(HostOffset(first * size), row.len() as u64 * size);
    }
    job.progress.finish();
    Ok(())
}

/// Refuses a width that is too narrow for what is counted.
pub(super) fn refuse(storage: &Arc<dyn Storage>, order: RefcountOrder, job: &JobContext) -> Result<()> {
    Old::load(&**storage)?.survey(order, job).map(|_| ())
}

/// The structure that is there.
struct Old<'a> {
    storage: &'a dyn Storage,
    geometry: Geometry,
    order: RefcountOrder,
    /// Offsets of blocks; 0: all its counts are zero.
    table: Vec<u64>,
    /// Numbers of its own clusters, rising.
    own: Vec<u64>,
    /// Clusters that the file has.
    file_clusters: u64,
}

impl<'a> Old<'a> {
    fn load(storage: &'a dyn Storage) -> Result<Self> {
        let format = |error| Error::Format {
            path: storage.path().map(Into::into),
            error,
        };
        let read = |offset, buffer: &mut [u8]| {
            let read = storage.read_at(HostOffset(offset), buffer);
            read.map_err(Error::io("read", storage))
        };
        let mut first = vec![0; 4096];
        let there = read(0, &mut first)?;
        first.truncate(there);
        let header = Header::parse(&first).map_err(format)?;
        let geometry = header.geometry;
        // At most 8 MiB, as the header was found to say.
        let length = usize::try_from(header.refcount_table_bytes()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        read(header.refcount_table_offset.0, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let offset = |word: &[u8; 8]| RefcountTableEntry(u64::from_be_bytes(*word)).block_offset();
        let table: Vec<u64> = words.iter().map(|word| offset(word).map_or(0, |at| at.0)).collect();
        let first = geometry.cluster_index(header.refcount_table_offset).0;
        let count = u64::from(header.refcount_table_clusters);
        let mut own: Vec<u64> = (first..first.saturating_add(count)).collect();
        own.extend(
            table
                .iter()
                .filter(|at| **at != 0)
                .map(|at| at >> geometry.cluster_bits()),
        );
        own.sort_unstable();
        let file_length = storage.length().map_err(Error::io("stat", storage))?;
        Ok(Self {
            storage,
            geometry,
            order: header.refcount_order,
            table,
            own,
            file_clusters: file_length.div_ceil(geometry.cluster_size()),
        })
    }

    /// Shows the counts that are not zero, in rows of the same one: first cluster, how many, count. By rising cluster.
    fn each(&self, job: &JobContext, mut see: impl FnMut(u64, u64, u64) -> Result<()>) -> Result<()> {
        let size = self.geometry.cluster_size();
        let length = self.geometry.cluster_len();
        let entries = self.order.block_entries(self.geometry);
        let named: Vec<(u64, u64)> = (0..)
            .zip(self.table.iter().copied())
            .filter(|(_, at)| *at != 0)
            .collect();
        let most = (WINDOW / length).max(1);
        let mut buffer = Vec::new();
        // Blocks that lie next to each other are read at once.
        for row in named.chunk_by(|a, b| a.1.checked_add(size) == Some(b.1)) {
            for blocks in row.chunks(most) {
                job.cancel.check()?;
                buffer.clear();
                buffer.resize(blocks.len() * length, 0);
                let at = blocks.first().map_or(0, |block| block.1);
                self.storage
                    .read_at(HostOffset(at), &mut buffer)
                    .map_err(Error::io("read", self.storage))?;
                for ((index, _), block) in blocks.iter().zip(buffer.chunks_exact(length)) {
                    let first = index.saturating_mul(entries);
                    self.rows(block, |within, count, times| {
                        see(first.saturating_add(within), times, count)
                    })?;
                }
                job.progress.advance(buffer.len() as u64);
            }
        }
        Ok(())
    }

    /// Shows the counts of a block that are not zero: index of the first, count, how many.
    fn rows(&self, block: &[u8], mut see: impl FnMut(u64, u64, u64) -> Result<()>) -> Result<()> {
        // Eight bytes hold at least one count, and mostly they are as those before: all zero, or all one.
        let per_word = 64 / u64::from(self.order.bits());
        let (mut begin, mut length, mut value) = (0, 0, 0);
        let mut alike: Option<[u8; 8]> = None;
        for (number, word) in (0..).zip(block.as_chunks::<8>().0) {
            let at = number * per_word;
            if alike == Some(*word) && begin + length == at {
                length += per_word;
                continue;
            }
            let mut same = true;
            for within in 0..per_word {
                let index = usize::try_from(within).unwrap_or(usize::MAX);
                let count = self.order.get_at(word, index).unwrap_or(0);
                if count == value && begin + length == at + within {
                    length += 1;
                    continue;
                }
                same &= within == 0;
                if value != 0 {
                    see(begin, value, length)?;
                }
                (begin, length, value) = (at + within, 1, count);
            }
            alike = same.then_some(*word);
        }
        if value != 0 {
            see(begin, value, length)?;
        }
        Ok(())
    }

    /// Which blocks a structure of another width needs, and where everything ends: one cluster behind the last one.
    fn survey(&self, order: RefcountOrder, job: &JobContext) -> Result<(BTreeSet<u64>, u64)> {
        let mut needed = BTreeSet::new();
        let mut end = self
            .own
            .last()
            .map_or(0, |last| last.saturating_add(1))
            .max(self.file_clusters);
        self.each(job, |cluster, length, count| {
            if count > order.max() {
                let offset = cluster << self.geometry.cluster_bits();
                return Err(Error::State {
                    code: "REFCOUNT_OVERFLOW",
                    path: self.storage.path().map(Into::into),
                    reason: format!(
                        "Cannot decrease refcount entry width to {} bits: Cluster at offset {offset:#x} has a refcount of {count}",
                        order.bits()
                    ),
                });
            }
            let behind = cluster.saturating_add(length);
            end = end.max(behind);
            let (first, _) = order.split(ClusterIndex(cluster), self.geometry);
            let (last, _) = order.split(ClusterIndex(behind.saturating_sub(1)), self.geometry);
            needed.extend(first..=last);
            Ok(())
        })?;
        Ok((needed, end))
    }
}

/// Where the new structure lies: its table, and behind it its blocks.
struct Plan {
    order: RefcountOrder,
    /// Number of its first cluster.
    start: u64,
    table_clusters: u64,
    /// Indices of blocks, rising.
    blocks: Vec<u64>,
}

impl Plan {
    fn new(old: &Old<'_>, order: RefcountOrder, mut needed: BTreeSet<u64>, start: u64) -> Result<Self> {
        let size = old.geometry.cluster_size();
        let mut table_clusters = 1;
        loop {
            let own_end = start.saturating_add(table_clusters).saturating_add(needed.len() as u64);
            let (first, _) = order.split(ClusterIndex(start), old.geometry);
            let (last, _) = order.split(ClusterIndex(own_end.saturating_sub(1)), old.geometry);
            let before = needed.len();
            needed.extend(first..=last);
            let entries = needed.last().map_or(0, |last| last.saturating_add(1));
            let table_bytes = entries.saturating_mul(8);
            if table_bytes > limits::MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::State {
                    code: "REFCOUNT_TABLE_FULL",
                    path: old.storage.path().map(Into::into),
                    reason: format!(
                        "refcounts of {} bits need a refcount table of more than 8 MiB",
                        order.bits()
                    ),
                });
            }
            let clusters = table_bytes.div_ceil(size).max(1);
            if needed.len() == before && clusters == table_clusters {
                break;
            }
            table_clusters = clusters.max(table_clusters);
        }
        Ok(Self {
            order,
            start,
            table_clusters,
            blocks: needed.into_iter().collect(),
        })
    }

    fn own(&self) -> std::ops::Range<u64> {
        let count = self.table_clusters.saturating_add(self.blocks.len() as u64);
        self.start..self.start.saturating_add(count)
    }

    fn write(&self, old: &Old<'_>, job: &JobContext) -> Result<()> {
        let size = old.geometry.cluster_size();
        let mut table = vec![0; usize::try_from(self.table_clusters.saturating_mul(size)).unwrap_or(usize::MAX)];
        for (number, index) in (0..).zip(&self.blocks) {
            let offset = (self.start + self.table_clusters + number) * size;
            let begin = usize::try_from(index * 8).unwrap_or(usize::MAX);
            if let Some(place) = table.get_mut(begin..begin.saturating_add(8)) {
                place.copy_from_slice(&offset.to_be_bytes());
            }
        }
        let mut writer = Blocks {
            plan: self,
            old,
            bytes: Vec::new(),
            written: 0,
            next: 0,
        };
        old.each(job, |cluster, length, count| {
            let (mut at, end) = (cluster, cluster.saturating_add(length));
            while at < end {
                // The old structure is free as soon as the new one is named.
                let next = old.own.get(old.own.partition_point(|own| *own < at)).copied();
                let stop = next.map_or(end, |own| own.min(end));
                writer.set(at, stop - at, count)?;
                at = if next == Some(stop) { stop + 1 } else { stop };
            }
            Ok(())
        })?;
        let own = self.own();
        writer.set(own.start, own.end - own.start, 1)?;
        writer.finish()?;
        self.put(old, self.start, &table)
    }

    fn put(&self, old: &Old<'_>, cluster: u64, bytes: &[u8]) -> Result<()> {
        let at = HostOffset(cluster.saturating_mul(old.geometry.cluster_size()));
        let outcome = old.storage.write_at(at, bytes);
        outcome.map_err(Error::io("write", old.storage))
    }
}

/// Writes the new blocks in order.
struct Blocks<'a> {
    plan: &'a Plan,
    old: &'a Old<'a>,
    /// Blocks that are not written yet.
    bytes: Vec<u8>,
    /// Blocks that are.
    written: usize,
    /// The next block in the plan: those before are in `bytes` or written.
    next: usize,
}

impl Blocks<'_> {
    /// Gives `length` clusters from `cluster` on a count. Clusters come rising.
    fn set(&mut self, cluster: u64, length: u64, count: u64) -> Result<()> {
        let entries = self.plan.order.block_entries(self.old.geometry);
        let (mut at, end) = (cluster, cluster.saturating_add(length));
        while at < end {
            let (block, within) = self.plan.order.split(ClusterIndex(at), self.old.geometry);
            while self.next == 0 || self.plan.blocks.get(self.next - 1).is_some_and(|last| *last < block) {
                self.begin()?;
            }
            let begin = self.bytes.len().saturating_sub(self.old.geometry.cluster_len());
            let here = (end - at).min(entries - within);
            fill(
                self.plan.order,
                self.bytes.get_mut(begin..).unwrap_or_default(),
                (within, here),
                count,
            );
            at += here;
        }
        Ok(())
    }

    /// A new block of zeros.
    fn begin(&mut self) -> Result<()> {
        if self.bytes.len() >= WINDOW {
            self.flush()?;
        }
        let length = self.bytes.len() + self.old.geometry.cluster_len();
        self.bytes.resize(length, 0);
        self.next += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let cluster = self.plan.start + self.plan.table_clusters + self.written as u64;
        self.plan.put(self.old, cluster, &self.bytes)?;
        self.written += self.bytes.len() / self.old.geometry.cluster_len();
        self.bytes.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        while self.next < self.plan.blocks.len() {
            self.begin()?;
        }
        self.flush()
    }
}

/// Gives a row of a block one count, which fits: the survey has seen every count.
fn fill(order: RefcountOrder, block: &mut [u8], (first, length): (u64, u64), count: u64) {
    let per_word = 64 / u64::from(order.bits());
    let mut pattern = [0; 8];
    for index in 0..per_word {
        let _ = order.set_at(&mut pattern, usize::try_from(index).unwrap_or(usize::MAX), count);
    }
    let (mut at, end) = (first, first + length);
    while at < end {
        let words = (end - at) / per_word;
        if at.is_multiple_of(per_word) && words > 0 {
            let begin = usize::try_from(at / per_word).unwrap_or(usize::MAX);
            let range = begin..begin.saturating_add(usize::try_from(words).unwrap_or(usize::MAX));
            if let Some(whole) = block.as_chunks_mut::<8>().0.get_mut(range) {
                whole.fill(pattern);
            }
            at += words * per_word;
        } else {
            let _ = order.set_at(block, usize::try_from(at).unwrap_or(usize::MAX), count);
            at += 1;
        }
    }
}
