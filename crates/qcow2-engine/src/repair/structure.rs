//! The refcount structure: which of its blocks can stay where they are, and where new ones go.

use std::collections::{BTreeMap, HashSet, VecDeque};

use qcow2_format::{ClusterIndex, HostOffset, RefcountTableEntry, limits};

use super::{Repair, RepairMode};
use crate::error::{Error, Result};
use crate::sink::{internal, out_of_memory};

/// The refcount structure as it is, and as it will be.
#[derive(Debug)]
pub(super) struct Structure {
    /// The table as it stands in the file.
    old: Vec<RefcountTableEntry>,
    /// Blocks that stay, and blocks that are new, by what they count.
    blocks: BTreeMap<u64, Block>,
    /// Whether the table can stay.
    table_stays: bool,
    /// Where the new table goes, and its clusters.
    new_table: Option<(u64, u64)>,
    /// Old parts that nothing is put in before the new ones are in force.
    avoid: HashSet<u64>,
    hint: u64,
}

/// A refcount block: its place, and whether it is there already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) offset: HostOffset,
    pub(super) new: bool,
}

impl Structure {
    /// Looks at the structure that there is, and counts as referenced what of it can stay: what is whole, in the file, and used for nothing else.
    pub(super) fn find(repair: &mut Repair<'_>) -> Result<Self> {
        let header = repair.header;
        let (geometry, size) = (header.geometry, header.geometry.cluster_size());
        let storage = &**repair.layer.storage();
        let length = storage.length().map_err(Error::io("stat", storage))?;
        let in_file = |offset: HostOffset, bytes: u64| {
            let end = offset.checked_add(bytes).map(|end| end.0);
            end.is_some_and(|end| end <= length.next_multiple_of(size)) && offset.0 != 0
        };
        let (offset, bytes) = (header.refcount_table_offset, header.refcount_table_bytes());
        let first = geometry.cluster_index(offset).0;
        let clusters = u64::from(header.refcount_table_clusters);
        let placed = bytes > 0 && in_file(offset, bytes);
        let mut structure = Self {
            old: Vec::new(),
            blocks: BTreeMap::new(),
            table_stays: placed,
            new_table: None,
            avoid: HashSet::new(),
            hint: 1,
        };
        if placed {
            let mut table = Vec::new();
            let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
            table.try_reserve_exact(wanted).map_err(|_| out_of_memory(bytes))?;
            table.resize(wanted, 0);
            repair.writer.read(offset, &mut table)?;
            let (words, _) = table.as_chunks::<8>();
            structure.old = words
                .iter()
                .map(|word| RefcountTableEntry(u64::from_be_bytes(*word)))
                .collect();
            structure.table_stays = (first..first + clusters).all(|cluster| repair.references.counts.get(cluster) == 0);
            if structure.table_stays {
                repair.references.counts.add(first, clusters, 1)?;
            } else {
                structure.avoid.extend(first..first + clusters);
            }
        }
        let mut unusable = !structure.table_stays;
        for (index, entry) in (0u64..).zip(structure.old.clone()) {
            let Some(block) = entry.block_offset() else {
                unusable |= entry.0 != 0;
                continue;
            };
            let cluster = geometry.cluster_index(block).0;
            let alone = entry.reserved() == 0
                && block.is_aligned(size)
                && in_file(block, size)
                && repair.references.counts.get(cluster) == 0;
            if alone {
                repair.references.counts.add(cluster, 1, 1)?;
                let block = Block {
                    offset: block,
                    new: false,
                };
                structure.blocks.insert(index, block);
            } else {
                unusable = true;
                if in_file(block, size) {
                    structure.avoid.insert(cluster);
                }
            }
        }
        if unusable && repair.mode == RepairMode::Leaks {
            // A structure that has to be made anew is more than a leak.
            repair.references.hidden = true;
        }
        repair.writer.hidden = repair.references.hidden;
        Ok(structure)
    }

    /// Finds places for all that is missing, until everything that is used is counted by a block.
    pub(super) fn complete(&mut self, repair: &mut Repair<'_>) -> Result<()> {
        self.missing_blocks(repair)?;
        let size = repair.header.geometry.cluster_size();
        let needed = self.blocks.keys().next_back().map_or(1, |last| last + 1);
        if self.table_stays && needed <= self.old.len() as u64 {
            return Ok(());
        }
        if self.table_stays {
            // Too short. It is given back: nothing refers to it once the header names the new one.
            let first = repair
                .header
                .geometry
                .cluster_index(repair.header.refcount_table_offset)
                .0;
            let clusters = u64::from(repair.header.refcount_table_clusters);
            repair.references.counts.remove(first, clusters)?;
            self.avoid.extend(first..first + clusters);
            self.table_stays = false;
        }
        let begin = self.end(repair)?;
        let per_block = repair.header.refcount_order.block_entries(repair.header.geometry);
        let mut clusters = 1;
        loop {
            // The table, the blocks that count it, and those that count them lie in this range.
            let end = begin + clusters + clusters.div_ceil(per_block) + 4;
            let entries = needed.max(end.div_ceil(per_block) + 1);
            let wanted = (entries * 8).div_ceil(size);
            if wanted <= clusters {
                break;
            }
            clusters = wanted;
        }
        if clusters.saturating_mul(size) > limits::MAX_REFCOUNT_TABLE_BYTES {
            return Err(self.too_large(repair));
        }
        repair.references.counts.add(begin, clusters, 1)?;
        self.new_table = Some((begin, clusters));
        self.missing_blocks(repair)
    }

    /// The first cluster behind the file and everything that is counted.
    fn end(&self, repair: &Repair<'_>) -> Result<u64> {
        let storage = &**repair.layer.storage();
        let length = storage.length().map_err(Error::io("stat", storage))?;
        let file = repair.header.geometry.clusters(length);
        Ok(file.max(repair.references.counts.end()))
    }

    fn missing_blocks(&mut self, repair: &mut Repair<'_>) -> Result<()> {
        let geometry = repair.header.geometry;
        let per_block = repair.header.refcount_order.block_entries(geometry);
        let most = limits::MAX_REFCOUNT_TABLE_BYTES / 8;
        let mut missing = VecDeque::new();
        let mut at = 0;
        while let Some(cluster) = repair.references.counts.next_counted(at) {
            let index = cluster / per_block;
            if index >= most {
                return Err(self.too_large(repair));
            }
            if !self.blocks.contains_key(&index) {
                missing.push_back(index);
            }
            at = (index + 1) * per_block;
        }
        while let Some(index) = missing.pop_front() {
            repair.context.cancel.check()?;
            if self.blocks.contains_key(&index) {
                continue;
            }
            let cluster = self.free_cluster(repair);
            repair.references.counts.add(cluster, 1, 1)?;
            let (own, _) = repair.header.refcount_order.split(ClusterIndex(cluster), geometry);
            if own >= most {
                return Err(self.too_large(repair));
            }
            let offset = HostOffset(cluster << geometry.cluster_bits());
            self.blocks.insert(index, Block { offset, new: true });
            missing.push_back(own);
        }
        Ok(())
    }

    fn free_cluster(&mut self, repair: &Repair<'_>) -> u64 {
        loop {
            let cluster = repair.references.counts.next_free(self.hint);
            self.hint = cluster + 1;
            if !self.avoid.contains(&cluster) {
                return cluster;
            }
        }
    }

    /// The blocks that will be in force, by what they count.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, Block)> + '_ {
        self.blocks.iter().map(|(index, block)| (*index, *block))
    }

    /// Puts new blocks, and a new table, in force. Their contents are durable.
    pub(super) fn switch(&self, repair: &mut Repair<'_>) -> Result<()> {
        if repair.mode == RepairMode::Leaks || repair.references.hidden {
            return Ok(());
        }
        let moved = self.blocks.values().filter(|block| block.new).count() as u64;
        let size = repair.header.geometry.cluster_size();
        let entries = match self.new_table {
            Some((_, clusters)) => clusters * size / 8,
            None => self.old.len() as u64,
        };
        if self.blocks.keys().next_back().is_some_and(|last| *last >= entries) {
            return Err(internal("a refcount table is too short for its blocks"));
        }
        let table: Vec<u8> = (0..entries)
            .flat_map(|index| self.blocks.get(&index).map_or(0, |block| block.offset.0).to_be_bytes())
            .collect();
        let rebuilt = moved + u64::from(self.new_table.is_some());
        repair.report.rebuilt += rebuilt;
        repair.report.corruptions_fixed += rebuilt;
        let Some((first, clusters)) = self.new_table else {
            let old: Vec<u8> = self.old.iter().flat_map(|entry| entry.0.to_be_bytes()).collect();
            if old != table {
                repair.writer.mark()?;
                let offset = repair.header.refcount_table_offset;
                repair.writer.write_changed(offset, &old, &table)?;
                repair.writer.sync()?;
            }
            return Ok(());
        };
        repair.writer.mark()?;
        let offset = HostOffset(first << repair.header.geometry.cluster_bits());
        repair.writer.write(offset, &table)?;
        let clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
        repair
            .writer
            .change_header(|sector| sector.set_refcount_table(offset, clusters))
    }

    fn too_large(&self, repair: &Repair<'_>) -> Error {
        repair.layer.state(
            "REFCOUNT_TABLE_FULL",
            "what the image refers to would need a refcount table of more than 8 MiB",
        )
    }
}
