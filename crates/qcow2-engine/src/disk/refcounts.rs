//! Refcounts: looking them up, finding free clusters, and making the refcount structure larger.

use qcow2_format::{ClusterIndex, HostOffset, Table};

use super::state::{State, Step, Stop, internal, to_len};
use crate::error::Error;
use crate::overlay::Class;

/// Host clusters that lie next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clusters {
    /// The first of them.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
}

/// Where a search ended.
enum Found {
    Free(u64),
    /// No refcount block covers this cluster, nor any behind it in the block's range.
    Uncovered(u64),
}

impl State {
    pub(super) fn cluster_of(&self, host: HostOffset) -> u64 {
        host.0 >> self.geometry.cluster_bits()
    }

    pub(super) fn offset_of(&self, cluster: u64) -> u64 {
        cluster << self.geometry.cluster_bits()
    }

    fn block_entries(&self) -> u64 {
        self.order.block_entries(self.geometry)
    }

    pub(super) fn is_refcount_block(&self, table: u64) -> bool {
        self.guard.is_refcount_block(table)
    }

    fn block(&self, cluster: u64) -> Option<(u64, usize)> {
        let (block, index) = self.order.split(ClusterIndex(cluster), self.geometry);
        let offset = self
            .refcount_table
            .get(usize::try_from(block).ok()?)
            .copied()
            .filter(|&o| o != 0)?;
        Some((offset, usize::try_from(index).ok()?))
    }

    /// The place of a refcount: its piece, and its index there.
    fn slot(&self, block: u64, index: usize) -> (u64, usize) {
        let bits = self.order.bits() as usize;
        let per_piece = to_len(self.piece_size()) * 8 / bits;
        (
            block + (index / per_piece) as u64 * self.piece_size(),
            index % per_piece,
        )
    }

    /// The refcount of a cluster.
    pub(super) fn refcount(&mut self, cluster: u64) -> Step<u64> {
        let Some((block, index)) = self.block(cluster) else {
            return Ok(0);
        };
        let (piece, index) = self.slot(block, index);
        let order = self.order;
        let count = order.get_at(self.piece(piece)?, index);
        count.ok_or_else(|| internal("a refcount lies outside its block"))
    }

    /// Sets the refcount of a cluster that a block covers, whose piece is here.
    pub(super) fn set_refcount(&mut self, cluster: u64, count: u64) -> Step<()> {
        let Some((block, index)) = self.block(cluster) else {
            return Err(self.corrupt(cluster, "a cluster that is in use has no refcount block"));
        };
        let (piece, index) = self.slot(block, index);
        let order = self.order;
        // The sector that it stands in.
        let within = index * order.bits() as usize / 8 / 512 * 512;
        let per_sector = 512 * 8 / order.bits() as usize;
        let mut fits = true;
        self.change(block, piece + within as u64, |bytes| {
            fits = order.set_at(bytes, index % per_sector, count).is_some();
            512
        })?;
        if fits {
            return Ok(());
        }
        Err(Stop::Fail(Error::State {
            code: "REFCOUNT_OVERFLOW",
            path: self.chain.layer(0).and_then(crate::Layer::path),
            reason: format!("a refcount of {} bits cannot be {count}", order.bits()),
        }))
    }

    /// Makes sure that the refcounts of clusters can be changed without a stop.
    pub(super) fn touch_refcounts(&mut self, clusters: Clusters) -> Step<()> {
        let per_piece = self.piece_size() * 8 / u64::from(self.order.bits());
        let end = clusters.first + clusters.count;
        let mut at = clusters.first;
        while at < end {
            self.refcount(at)?;
            at = (at / per_piece + 1) * per_piece;
        }
        Ok(())
    }

    /// Takes up to `wanted` free clusters that lie next to each other, at least one. Nothing has changed if it stops.
    pub(super) fn allocate(&mut self, wanted: u64) -> Step<Clusters> {
        let mut from = self.hint;
        let first = loop {
            match self.next_free(from)? {
                Found::Free(cluster) => break cluster,
                Found::Uncovered(cluster) => {
                    self.grow(cluster)?;
                    from = cluster;
                }
            }
        };
        let mut count = 1;
        while count < wanted.max(1) && self.block(first + count).is_some() && self.refcount(first + count)? == 0 {
            count += 1;
        }
        let taken = self.take(Clusters { first, count })?;
        self.hint = first + count;
        Ok(taken)
    }

    /// The cluster that [`State::allocate`] would take next.
    pub(super) fn free_cluster(&mut self) -> Step<u64> {
        let mut from = self.hint;
        loop {
            match self.next_free(from)? {
                Found::Free(cluster) => return Ok(cluster),
                Found::Uncovered(cluster) => {
                    self.grow(cluster)?;
                    from = cluster;
                }
            }
        }
    }

    /// Takes exactly `count` free clusters that lie next to each other.
    pub(super) fn allocate_row(&mut self, count: u64) -> Step<Clusters> {
        let mut from = self.hint;
        // A block that describes itself lies in its own range, and would part every row of that length.
        let parted = count >= self.block_entries();
        loop {
            let first = match self.next_free(from)? {
                Found::Free(cluster) => cluster,
                Found::Uncovered(cluster) if parted => return self.row_behind(cluster, count),
                Found::Uncovered(cluster) => {
                    self.grow(cluster)?;
                    from = cluster;
                    continue;
                }
            };
            let mut there = 1;
            while there < count {
                if self.block(first + there).is_none() {
                    if parted {
                        return self.row_behind(first + there, count);
                    }
                    self.grow(first + there)?;
                }
                if self.refcount(first + there)? != 0 {
                    break;
                }
                there += 1;
            }
            if there >= count {
                self.touch_refcounts(Clusters { first, count })?;
                return self.take(Clusters { first, count });
            }
            from = first + there;
        }
    }

    /// Takes `count` clusters behind everything that is covered, with all the refcount blocks that they need before them: a new refcount table names
    /// these at once.
    fn row_behind(&mut self, uncovered: u64, count: u64) -> Step<Clusters> {
        let last = self.refcount_table.iter().rposition(|&block| block != 0);
        let covered = last.map_or(0, |last| (last as u64 + 1).saturating_mul(self.block_entries()));
        let first = self.grow_table(uncovered.max(covered), count)?;
        self.take(Clusters { first, count })
    }

    fn take(&mut self, clusters: Clusters) -> Step<Clusters> {
        for cluster in clusters.first..clusters.first + clusters.count {
            if self.guard.has(cluster) || self.is_active_l2(self.offset_of(cluster)) {
                return Err(self.corrupt(cluster, "a cluster of the image's own tables has refcount 0"));
            }
        }
        for cluster in clusters.first..clusters.first + clusters.count {
            self.set_refcount(cluster, 1)?;
            self.reserved.remove(&self.offset_of(cluster));
        }
        Ok(clusters)
    }

    /// Gives clusters back that nothing ever named.
    pub(super) fn release(&mut self, clusters: Clusters) -> Step<()> {
        self.touch_refcounts(clusters)?;
        for cluster in clusters.first..clusters.first + clusters.count {
            let count = self.refcount(cluster)?;
            self.set_refcount(cluster, count.saturating_sub(1))?;
        }
        self.hint = self.hint.min(clusters.first).max(1);
        Ok(())
    }

    fn next_free(&mut self, from: u64) -> Step<Found> {
        let per_piece = to_len(self.piece_size() * 8 / u64::from(self.order.bits()));
        let order = self.order;
        let mut at = from.max(1);
        loop {
            let Some((block, index)) = self.block(at) else {
                return Ok(Found::Uncovered(at));
            };
            let (piece, index) = self.slot(block, index);
            let bytes = self.piece(piece)?;
            // Nearly all refcounts have 16 bits, and an image of terabytes has millions of them.
            let free = if order.get() == 4 {
                let rest = bytes.as_chunks::<2>().0.get(index..).unwrap_or_default();
                rest.iter().position(|count| *count == [0, 0])
            } else {
                (index..per_piece).position(|index| order.get_at(bytes, index) == Some(0))
            };
            match free {
                Some(behind) => return Ok(Found::Free(at + behind as u64)),
                None => {
                    let full = at <= self.hint.max(1);
                    at += (per_piece - index) as u64;
                    // Whoever has to load the next piece first does not begin anew.
                    if full {
                        self.hint = at;
                    }
                }
            }
        }
    }

    /// Makes a refcount block for `cluster`, which none covers, and a larger table if there is no room for it. The new block describes itself.
    fn grow(&mut self, cluster: u64) -> Step<()> {
        let entries = self.block_entries();
        let index = usize::try_from(cluster / entries).unwrap_or(usize::MAX);
        if self.refcount_table.get(index).is_some() {
            let offset = self.offset_of(cluster);
            self.check_offset(offset)?;
            self.reserve_table(offset)?;
            self.new_block(index, offset, &[cluster])?;
            return Ok(());
        }
        self.grow_table(cluster, 0)?;
        Ok(())
    }

    fn new_block(&mut self, index: usize, offset: u64, used: &[u64]) -> Step<()> {
        let mut contents = vec![0; self.geometry.cluster_len()];
        for &cluster in used {
            let (_, within) = self.order.split(ClusterIndex(cluster), self.geometry);
            let within = usize::try_from(within).unwrap_or(usize::MAX);
            if self.order.set_at(&mut contents, within, 1).is_none() {
                return Err(internal("a refcount lies outside its block"));
            }
        }
        self.guard.add_block(offset, self.geometry);
        self.new_table(offset, Class::Structure, &contents);
        if let Some(entry) = self.refcount_table.get_mut(index) {
            *entry = offset;
        }
        self.refcount_table_changed(index);
        Ok(())
    }

    /// Notes that the sector of the refcount table with entry `index` is to be written.
    fn refcount_table_changed(&mut self, index: usize) {
        let table = self.header.newest.refcount_table.0;
        let class = if self.fresh.contains_key(&table) {
            Class::Structure
        } else {
            Class::Prepare
        };
        let first = index / 64 * 64;
        let mut sector = [0; 512];
        let entries = self.refcount_table.get(first..).unwrap_or_default();
        for (place, entry) in sector.as_chunks_mut::<8>().0.iter_mut().zip(entries) {
            *place = entry.to_be_bytes();
        }
        self.overlay.put(table + first as u64 * 8, class, &sector);
    }

    /// A new refcount table behind everything that is covered: `cluster` is the first that is not. First the new blocks, then the table, in clusters
    /// that describe themselves, then `behind` clusters that are covered too. Returns the first of these.
    fn grow_table(&mut self, cluster: u64, behind: u64) -> Step<u64> {
        let (entries, size) = (self.block_entries(), self.cluster_size());
        let first_block = cluster / entries;
        let (mut blocks, mut table) = (1, 1);
        loop {
            let end = cluster.saturating_add(behind) + blocks + table;
            let needed_blocks = end.div_ceil(entries) - first_block;
            // Half as much again, so that it does not happen often.
            let wanted = first_block + needed_blocks;
            let wanted = (wanted + wanted / 2 + 1).max(self.refcount_table.len() as u64);
            let needed_table = wanted.saturating_mul(8).div_ceil(size);
            if needed_blocks <= blocks && needed_table <= table {
                break;
            }
            (blocks, table) = (blocks.max(needed_blocks), table.max(needed_table));
        }
        let bytes = table.saturating_mul(size);
        if bytes > qcow2_format::limits::MAX_REFCOUNT_TABLE_BYTES {
            return Err(Stop::Fail(Error::Limit {
                limit: "refcountTable",
                allowed: qcow2_format::limits::MAX_REFCOUNT_TABLE_BYTES,
                wanted: bytes,
            }));
        }
        self.check_offset(self.offset_of(cluster + blocks + table + behind))?;
        let old = (
            self.header.newest.refcount_table.0,
            self.refcount_table.len() as u64 * 8 / size,
        );
        let offset = self.offset_of(cluster + blocks);
        self.header.newest.refcount_table = (offset, u32::try_from(table).unwrap_or(u32::MAX));
        self.guard.add(cluster + blocks, table);
        self.refcount_table.resize(usize::try_from(bytes / 8).unwrap_or(0), 0);
        for at in 0..table {
            self.fresh.insert(offset + at * size, Class::Structure);
        }
        let used: Vec<u64> = (cluster..cluster + blocks + table).collect();
        for number in 0..blocks {
            let range = (first_block + number) * entries..(first_block + number + 1) * entries;
            let used: Vec<u64> = used.iter().copied().filter(|cluster| range.contains(cluster)).collect();
            let index = usize::try_from(first_block + number).unwrap_or(usize::MAX);
            self.new_block(index, self.offset_of(cluster + number), &used)?;
        }
        for index in (0..self.refcount_table.len()).step_by(64) {
            self.refcount_table_changed(index);
        }
        let first = self.cluster_of(HostOffset(old.0));
        self.guard.remove(first, old.1);
        self.overlay.forget(old.0, old.1 * size);
        self.unlink(Clusters { first, count: old.1 }, false);
        Ok(cluster + blocks + table)
    }

    fn check_offset(&self, offset: u64) -> Step<()> {
        if offset < 1 << 55 {
            return Ok(());
        }
        Err(Stop::Fail(Error::Limit {
            limit: "fileLength",
            allowed: 1 << 55,
            wanted: offset,
        }))
    }

    pub(super) fn corrupt(&self, cluster: u64, reason: &str) -> Stop {
        let offset = self.offset_of(cluster);
        Stop::Fail(Error::State {
            code: "REFCOUNTS",
            path: self.chain.layer(0).and_then(crate::Layer::path),
            reason: format!(
                "{reason} ({} at {offset:#x}): check the image and repair it",
                Table::RefcountBlock
            ),
        })
    }
}
