//! Refcount blocks, and the comparison of what they say with what was counted.

use std::collections::HashMap;

use qcow2_format::{HostOffset, Table};

use super::counts::{CHUNK, Chunk};
use super::finding::{Finding, FindingCode, Severity};
use super::reader::Block;
use super::{Check, Result};

/// Bytes of refcount blocks that are read again because several table entries name them.
const AGAIN: u64 = 256 << 20;

/// How the comparison goes on.
struct Comparison {
    /// Number behind the last cluster that is compared.
    limit: u64,
    /// The highest cluster with a refcount or a reference.
    highest: u64,
    /// Blocks that several table entries name: how many counts above zero they have, and where the last one stands.
    shared: HashMap<HostOffset, (u64, u64)>,
    /// Bytes of such blocks that may still be read.
    again: u64,
}

/// A cluster whose refcount is wrong: its number, refcount and references.
type Mismatch = (u64, u64, u64);

impl Check<'_> {
    /// Counts the references to the refcount blocks.
    pub(super) fn refcount_blocks(&mut self) -> Result<()> {
        let geometry = self.reader.header.geometry;
        let entries = std::mem::take(&mut self.reader.refcount_table);
        let table_offset = self.reader.header.refcount_table_offset.0;
        for (index, &entry) in (0u64..).zip(&entries) {
            let finding = |code| Finding {
                index: Some(index),
                offset: Some(table_offset.saturating_add(index.saturating_mul(8))),
                value: Some(entry.0),
                ..Finding::corruption(code, Table::RefcountTable)
            };
            let mut found = |code| {
                self.findings.push(Severity::Corruption, || finding(code));
            };
            if entry.reserved() != 0 {
                found(FindingCode::ReservedBits);
                continue;
            }
            let Some(offset) = entry.block_offset() else { continue };
            if !offset.is_aligned(geometry.cluster_size()) {
                found(FindingCode::RefcountBlockUnaligned);
                continue;
            }
            let cluster = geometry.cluster_index(offset).0;
            if cluster >= geometry.clusters(self.reader.file_length) {
                found(FindingCode::RefcountBlockOutside);
                continue;
            }
            self.reference(offset, geometry.cluster_size(), Table::RefcountTable)?;
            let references = self.counts.get(cluster);
            if references != 1 {
                self.findings.push(Severity::Corruption, || Finding {
                    references: Some(references),
                    ..finding(FindingCode::RefcountBlockReferences)
                });
            }
        }
        self.reader.refcount_table = entries;
        Ok(())
    }

    /// Compares every count on disk with the references, by rising cluster number.
    pub(super) fn compare_refcounts(&mut self) -> Result<()> {
        let geometry = self.reader.header.geometry;
        let per_block = self.reader.header.refcount_order.block_entries(geometry);
        let file_clusters = geometry.clusters(self.reader.file_length);
        let mut comparison = Comparison {
            // A reference may pass the end of the file by less than a cluster.
            limit: file_clusters + u64::from(self.counts.get(file_clusters) > 0),
            highest: 0,
            shared: HashMap::new(),
            again: AGAIN,
        };
        let mut index = 0;
        let mut named = self.next_named(0);
        loop {
            if named.is_some_and(|named| named < index) {
                named = self.next_named(index);
            }
            let counted = self.counts.next(index.saturating_mul(per_block));
            let counted = counted.map(|cluster| cluster / per_block);
            let Some(next) = [named, counted].into_iter().flatten().min() else {
                break;
            };
            if next
                .checked_mul(per_block)
                .is_none_or(|begin| begin >= comparison.limit)
            {
                break;
            }
            self.context.cancel.check()?;
            self.context.progress.advance(geometry.cluster_size());
            self.compare_block(next, per_block, &mut comparison)?;
            index = next + 1;
        }
        let end = comparison.highest.saturating_add(1);
        self.report.image_end_offset = end.saturating_mul(geometry.cluster_size());
        Ok(())
    }

    /// The first refcount table index from `index` on that has a block.
    fn next_named(&self, index: u64) -> Option<u64> {
        (index..self.reader.refcount_table.len() as u64).find(|&index| self.reader.block(index) != Block::Absent)
    }

    fn compare_block(&mut self, index: u64, per_block: u64, comparison: &mut Comparison) -> Result<()> {
        let begin = index.saturating_mul(per_block);
        let end = begin.saturating_add(per_block).min(comparison.limit);
        let block = match self.reader.block(index) {
            Block::Absent => None,
            Block::Unreadable => {
                self.uncountable(begin, end);
                return Ok(());
            }
            Block::At(offset) => {
                if self.passed_over(offset, begin, end, comparison) {
                    return Ok(());
                }
                if self.alike_as_packed(index, begin, end, comparison) {
                    return Ok(());
                }
                match self.reader.table(offset) {
                    Ok(block) => Some((offset, block)),
                    Err(error) => {
                        let length = self.reader.header.geometry.cluster_size();
                        self.unreadable(Table::RefcountBlock, offset, length, &error);
                        return Ok(());
                    }
                }
            }
        };
        let bytes: &[u8] = block.as_ref().map_or(&[], |(_, bytes)| bytes);
        let mut at = begin;
        while at < end {
            let stop = (at / CHUNK).saturating_add(1).saturating_mul(CHUNK).min(end);
            self.compare_part(bytes, begin, at, stop, comparison);
            at = stop;
        }
        if let Some((offset, bytes)) = block
            && self.counts.get(self.reader.header.geometry.cluster_index(offset).0) > 1
        {
            let order = self.reader.header.refcount_order;
            let used = (0u64..).zip(0..usize::try_from(per_block).unwrap_or(0));
            let used = used.filter(|(_, entry)| order.get_at(&bytes, *entry).is_some_and(|count| count > 0));
            let (number, last) = used.fold((0, 0), |(number, _), (entry, _)| (number + 1, entry));
            comparison.shared.insert(offset, (number, last));
        }
        Ok(())
    }

    /// Whether a block that was packed for the COPIED flags is known to say just what was counted, so that it need not be read again. Notes the
    /// highest of its clusters that is in use. `false` says nothing.
    fn alike_as_packed(&mut self, index: u64, begin: u64, end: u64, comparison: &mut Comparison) -> bool {
        let Some(refcounts) = self.reader.packed_again(index) else {
            return false;
        };
        let mut highest = None;
        let mut at = begin;
        while at < end {
            let stop = (at / CHUNK).saturating_add(1).saturating_mul(CHUNK).min(end);
            let bytes = |cluster: u64| usize::try_from(cluster / 4).unwrap_or(usize::MAX);
            let refcounts = refcounts.get(bytes(at - begin)..bytes(stop - begin));
            let counts = self.counts.chunk(at / CHUNK).and_then(Chunk::packed);
            let counts = counts.and_then(|counts| counts.get(bytes(at % CHUNK)..bytes(at % CHUNK + (stop - at))));
            let whole = at.is_multiple_of(4) && stop.is_multiple_of(4);
            let (Some(counts), Some(refcounts), true) = (counts, refcounts, whole) else {
                return false;
            };
            // In packed form 3 stands for everything larger than 2.
            let large = counts.iter().fold(0, |large, byte| large | (byte & byte >> 1 & 0x55));
            if counts != refcounts || large != 0 {
                return false;
            }
            if let Some(last) = counts.iter().rposition(|byte| *byte != 0) {
                let in_byte = counts
                    .get(last)
                    .map_or(0, |byte| 3 - u64::from(byte.leading_zeros() / 2));
                highest = Some(at + last as u64 * 4 + in_byte);
            }
            at = stop;
        }
        if let Some(highest) = highest {
            comparison.highest = highest;
        }
        true
    }

    /// Counts the leaks of a block that was seen before, for clusters that nothing refers to, without looking at it again. `false`: it has to be
    /// looked at.
    fn passed_over(&mut self, offset: HostOffset, begin: u64, end: u64, comparison: &mut Comparison) -> bool {
        let Some(&(number, last)) = comparison.shared.get(&offset) else {
            return false;
        };
        let size = self.reader.header.geometry.cluster_size();
        let whole = begin.saturating_add(last) < end;
        let unused = self.counts.next(begin).is_none_or(|next| next >= end);
        if !whole || !unused || (number > 0 && !self.findings.is_full() && comparison.again >= size) {
            comparison.again = comparison.again.saturating_sub(size);
            return false;
        }
        if number > 0 {
            self.findings.omit(Severity::Leak, number);
            comparison.highest = begin.saturating_add(last);
        }
        true
    }

    /// Clusters whose refcounts cannot be read.
    fn uncountable(&mut self, begin: u64, end: u64) {
        let mut at = begin;
        while at < end && !self.findings.is_full() {
            self.findings.push(Severity::Error, || Finding {
                cluster: Some(at),
                detail: Some("its refcount cannot be read".to_owned()),
                ..Finding::new(FindingCode::ReadError, Severity::Error, Table::RefcountBlock)
            });
            at += 1;
        }
        self.findings.omit(Severity::Error, end.saturating_sub(at));
    }

    /// Compares the clusters from `at` to `stop`, all of one chunk of counts; `bytes` is their block, which begins with cluster `begin`.
    fn compare_part(&mut self, bytes: &[u8], begin: u64, at: u64, stop: u64, comparison: &mut Comparison) {
        let order = self.reader.header.refcount_order;
        let chunk = self.counts.chunk(at / CHUNK);
        let index = |cluster: u64| usize::try_from(cluster - begin).unwrap_or(usize::MAX);
        let mut mismatches: Vec<Mismatch> = Vec::new();
        let mut cluster = at;
        if order.bits() == 16 {
            let skipped = alike(
                bytes.get(index(at) * 2..index(stop) * 2),
                chunk,
                at,
                &mut comparison.highest,
            );
            cluster = at.saturating_add(skipped).min(stop);
        }
        while cluster < stop {
            let references = chunk.map_or(0, |chunk| chunk.get(usize::try_from(cluster % CHUNK).unwrap_or(0)));
            let refcount = order.get_at(bytes, index(cluster)).unwrap_or(0);
            if refcount != 0 || references != 0 {
                comparison.highest = cluster;
            }
            if refcount != references {
                mismatches.push((cluster, refcount, references));
            }
            cluster += 1;
        }
        for mismatch in mismatches {
            self.mismatch(mismatch);
        }
    }

    fn mismatch(&mut self, (cluster, refcount, references): Mismatch) {
        let (code, severity) = if refcount > references {
            (FindingCode::Leak, Severity::Leak)
        } else {
            (FindingCode::RefcountTooLow, Severity::Corruption)
        };
        let size = self.reader.header.geometry.cluster_size();
        self.findings.push(severity, || Finding {
            cluster: Some(cluster),
            refcount: Some(refcount),
            references: Some(references),
            offset: cluster.checked_mul(size),
            ..Finding::new(code, severity, Table::RefcountBlock)
        });
    }
}

/// How many clusters from `at` on have 16-bit refcounts equal to their counts, four by four. Notes the highest of them that is in use.
fn alike(refcounts: Option<&[u8]>, chunk: Option<&Chunk>, at: u64, highest: &mut u64) -> u64 {
    let (groups, _) = refcounts.unwrap_or_default().as_chunks::<8>();
    let first = usize::try_from(at % CHUNK / 4).unwrap_or(0);
    let counts = match chunk.map(Chunk::packed) {
        None => None,
        Some(Some(counts)) => Some(counts.get(first..).unwrap_or_default()),
        Some(None) => return 0,
    };
    let count = |index: usize| counts.map_or(0, |counts| counts.get(index).copied().unwrap_or(0));
    let same = |(index, group): &(usize, &[u8; 8])| u64::from_be_bytes(**group) == spread(count(*index));
    let mut alike = 0;
    for (index, group) in groups.iter().enumerate().take_while(same) {
        alike = index as u64 + 1;
        if *group != [0; 8] {
            let in_group = 3 - u64::from(u64::from_be_bytes(*group).trailing_zeros() / 16);
            *highest = at + index as u64 * 4 + in_group;
        }
    }
    alike * 4
}

/// Four counts of two bits as four big-endian refcounts of 16.
fn spread(counts: u8) -> u64 {
    let counts = u64::from(counts);
    (counts & 3) << 48 | (counts >> 2 & 3) << 32 | (counts >> 4 & 3) << 16 | counts >> 6
}
