//! Refcounts in bulk: whole blocks in memory, each read once and written once. For who holds the disk alone, with nothing dirty anywhere else.

use std::collections::BTreeMap;
use std::ops::Range;

use qcow2_format::{ClusterIndex, HostOffset, RefcountOrder};

use crate::disk::Image;
use crate::disk::refcounts::Clusters;
use crate::disk::state::to_len;
use crate::error::{Error, Result};
use crate::storage::WriteRequest;

/// Bytes of blocks that are kept at a time, if the caches' budget is not smaller.
const BUDGET: u64 = 32 << 20;
/// Blocks that are kept at a time in any case.
const FEWEST: u64 = 4;
/// Bytes that are written at a time.
const WRITE: usize = 1 << 20;

/// Rows of freed clusters that are kept at a time.
const ROWS: usize = 1 << 16;

/// See the module.
pub(super) struct Counts<'a> {
    image: &'a Image,
    order: RefcountOrder,
    /// Offsets of blocks.
    table: Vec<u64>,
    blocks: BTreeMap<u64, Block>,
    bytes: u64,
    budget: u64,
    /// What does not fit in memory is forgotten instead of written: only whether it can be done is asked.
    trial: bool,
}

struct Block {
    offset: u64,
    bytes: Vec<u8>,
    dirty: bool,
}

/// Clusters that nobody refers to any more.
#[derive(Default)]
pub(super) struct Freed {
    rows: Vec<Clusters>,
    /// A count became one: COPIED may be set.
    pub(super) any_alone: bool,
}

impl Freed {
    /// Whether it takes so much memory that it is to be given back now. Nothing on disk names these clusters any more, so there is no need to wait.
    pub(super) fn is_large(&self) -> bool {
        self.rows.len() >= ROWS
    }

    fn push(&mut self, first: u64) {
        match self.rows.last_mut() {
            Some(last) if last.first + last.count == first => last.count += 1,
            _ => self.rows.push(Clusters { first, count: 1 }),
        }
    }
}

/// Why a count cannot be raised.
enum Refusal {
    Free,
    Overflow,
}

impl<'a> Counts<'a> {
    pub(super) fn new(image: &'a Image, trial: bool) -> Self {
        let state = image.lock();
        Self {
            image,
            order: state.order,
            table: state.refcount_table.clone(),
            blocks: BTreeMap::new(),
            bytes: 0,
            budget: (image.cache_bytes / 2)
                .min(BUDGET)
                .max(FEWEST * image.geometry.cluster_size()),
            trial,
        }
    }

    /// Whether all blocks of the image fit in memory, so that nothing is written before [`Counts::write`].
    pub(super) fn fits(&self) -> bool {
        let blocks = self.table.iter().filter(|&&offset| offset != 0).count() as u64;
        blocks.saturating_mul(self.image.geometry.cluster_size()) <= self.budget
    }

    /// One more reference to each of `clusters`.
    ///
    /// # Errors
    /// [`Error::State`] with code `REFCOUNT_OVERFLOW` or `REFCOUNTS`.
    pub(super) fn raise(&mut self, clusters: Clusters) -> Result<()> {
        let order = self.order;
        let mut refusal = None;
        self.each(clusters, |first, bytes, range| {
            let refused = raise_row(order, bytes, range);
            refusal = refused.map(|(index, why)| (first + index, why));
            refusal.is_none()
        })?;
        let Some((cluster, why)) = refusal else { return Ok(()) };
        let offset = cluster << self.image.geometry.cluster_bits();
        let (code, reason) = match why {
            Refusal::Overflow => (
                "REFCOUNT_OVERFLOW",
                format!(
                    "the refcount of the cluster at {offset:#x} is {} already, the largest in {} bits",
                    order.max(),
                    order.bits()
                ),
            ),
            Refusal::Free => (
                "REFCOUNTS",
                format!("the cluster at {offset:#x} is in use and counts as free: check the image and repair it"),
            ),
        };
        Err(Error::State {
            code,
            path: self.image.storage.path().map(Into::into),
            reason,
        })
    }

    /// One reference less to each of `clusters`.
    pub(super) fn lower(&mut self, clusters: Clusters, freed: &mut Freed) -> Result<()> {
        let order = self.order;
        self.each(clusters, |first, bytes, range| {
            lower_row(order, bytes, range, |index, left| match left {
                0 => freed.push(first + index),
                1 => freed.any_alone = true,
                _ => {}
            });
            true
        })
    }

    /// Tells the counts of `clusters`, by their number from the first on.
    pub(super) fn look(&mut self, clusters: Clusters, mut see: impl FnMut(u64, u64)) -> Result<()> {
        let order = self.order;
        let begin = clusters.first;
        self.visit(clusters, |first, block, range| {
            let bytes = block.map_or(&[][..], |block| &block.bytes);
            for (number, index) in (first - begin..).zip(range) {
                see(number, order.get_at(bytes, index).unwrap_or(0));
            }
            true
        })
    }

    /// Gives `change` the parts of `clusters` by block: the number of the first cluster, the block, and which counts of it. It says whether to go on.
    fn each(&mut self, clusters: Clusters, mut change: impl FnMut(u64, &mut [u8], Range<usize>) -> bool) -> Result<()> {
        self.visit(clusters, |first, block, range| match block {
            Some(block) => {
                block.dirty = true;
                change(first, &mut block.bytes, range)
            }
            // Counts that are nowhere are zero.
            None => change(first, &mut [], range),
        })
    }

    fn visit(
        &mut self,
        clusters: Clusters,
        mut see: impl FnMut(u64, Option<&mut Block>, Range<usize>) -> bool,
    ) -> Result<()> {
        let geometry = self.image.geometry;
        let entries = self.order.block_entries(geometry);
        let end = clusters.first.saturating_add(clusters.count);
        let mut at = clusters.first;
        while at < end {
            let (number, index) = self.order.split(ClusterIndex(at), geometry);
            let count = (entries - index).min(end - at);
            let block = self.block(number)?;
            if !see(at, block, to_len(index)..to_len(index + count)) {
                break;
            }
            at += count;
        }
        Ok(())
    }

    fn block(&mut self, number: u64) -> Result<Option<&mut Block>> {
        if !self.blocks.contains_key(&number) {
            let offset = usize::try_from(number)
                .ok()
                .and_then(|number| self.table.get(number).copied());
            let Some(offset) = offset.filter(|&offset| offset != 0) else {
                return Ok(None);
            };
            let size = self.image.geometry.cluster_size();
            if self.bytes + size > self.budget {
                self.make_room()?;
            }
            let storage = &*self.image.storage;
            let mut bytes = vec![0; self.image.geometry.cluster_len()];
            // The last cluster of a file may be there only in part.
            self.image
                .overlay
                .read(storage, HostOffset(offset), &mut bytes)
                .map_err(Error::io("read", storage))?;
            self.bytes += size;
            let dirty = false;
            self.blocks.insert(number, Block { offset, bytes, dirty });
        }
        Ok(self.blocks.get_mut(&number))
    }

    fn make_room(&mut self) -> Result<()> {
        self.write()?;
        self.blocks.clear();
        self.bytes = 0;
        Ok(())
    }

    /// Writes the blocks that have changed, those next to each other together.
    pub(super) fn write(&mut self) -> Result<()> {
        if self.trial {
            return Ok(());
        }
        let mut dirty: Vec<&mut Block> = self.blocks.values_mut().filter(|block| block.dirty).collect();
        dirty.sort_unstable_by_key(|block| block.offset);
        let mut row: (u64, Vec<u8>) = (0, Vec::new());
        for block in &mut dirty {
            if row.0 + row.1.len() as u64 != block.offset || row.1.len() >= WRITE {
                self.image.write_row(&row)?;
                row = (block.offset, Vec::new());
            }
            row.1.extend_from_slice(&block.bytes);
        }
        self.image.write_row(&row)?;
        for block in dirty {
            block.dirty = false;
        }
        Ok(())
    }

    /// Gives the host the space of what is free now, and allocating the places to look at.
    pub(super) fn give_back(&self, freed: &mut Freed) {
        let image = self.image;
        let mut given = std::mem::take(&mut freed.rows);
        given.sort_unstable_by_key(|row| row.first);
        let mut rows: Vec<Clusters> = Vec::new();
        for row in given {
            match rows.last_mut() {
                Some(last) if last.first + last.count == row.first => last.count += row.count,
                _ => rows.push(row),
            }
        }
        let Some(first) = rows.first().map(|row| row.first) else {
            return;
        };
        {
            let mut state = image.lock();
            state.hint = state.hint.min(first).max(1);
            // Only a damaged image says that its own tables are free.
            rows.retain(|row| !(row.first..row.first + row.count).any(|cluster| state.guard.has(cluster)));
        }
        let bits = image.geometry.cluster_bits();
        for row in rows {
            // Space that cannot be given back is still free for the image.
            let _ = image.storage.punch(HostOffset(row.first << bits), row.count << bits);
            image.wrote(false);
        }
    }
}

impl Image {
    fn write_row(&self, (offset, bytes): &(u64, Vec<u8>)) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.write_file(HostOffset(*offset), bytes)
    }

    /// Writes a batch to the image.
    pub(super) fn write_many(&self, batch: &[WriteRequest<'_>]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let outcome = self.storage.write_batch(batch);
        self.wrote(false);
        outcome.map_err(Error::io("write", &*self.storage))
    }
}

/// Adds one to each count of the range. The first that cannot be, by its number in the range.
fn raise_row(order: RefcountOrder, bytes: &mut [u8], range: Range<usize>) -> Option<(u64, Refusal)> {
    let refusal = |count: u64| if count == 0 { Refusal::Free } else { Refusal::Overflow };
    if order.bits() == 16
        && let Some(counts) = bytes.as_chunks_mut::<2>().0.get_mut(range.clone())
    {
        for (number, place) in (0..).zip(counts) {
            let count = u16::from_be_bytes(*place);
            match count.checked_add(1).filter(|_| count != 0) {
                Some(more) => *place = more.to_be_bytes(),
                None => return Some((number, refusal(count.into()))),
            }
        }
        return None;
    }
    for (number, index) in (0..).zip(range) {
        let count = order.get_at(bytes, index).unwrap_or(0);
        let more = count.checked_add(1).filter(|_| count != 0);
        if more.and_then(|more| order.set_at(bytes, index, more)).is_none() {
            return Some((number, refusal(count)));
        }
    }
    None
}

/// Takes one from each count of the range and tells what is left. None to take away: somebody else's mistake, which a check reports.
fn lower_row(order: RefcountOrder, bytes: &mut [u8], range: Range<usize>, mut left: impl FnMut(u64, u64)) {
    if order.bits() == 16
        && let Some(counts) = bytes.as_chunks_mut::<2>().0.get_mut(range.clone())
    {
        for (number, place) in (0..).zip(counts) {
            if let Some(less) = u16::from_be_bytes(*place).checked_sub(1) {
                *place = less.to_be_bytes();
                left(number, less.into());
            }
        }
        return;
    }
    for (number, index) in (0..).zip(range) {
        if let Some(less) = order.get_at(bytes, index).and_then(|count| count.checked_sub(1))
            && order.set_at(bytes, index, less).is_some()
        {
            left(number, less);
        }
    }
}
