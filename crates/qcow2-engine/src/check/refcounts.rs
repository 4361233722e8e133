//! Refcount blocks, and the comparison of what they say with what was counted.

use std::collections::{BTreeSet, HashSet};

use qcow2_format::{HostOffset, Table};

use super::counts::CHUNK_CLUSTERS;
use super::finding::{Finding, FindingCode, Severity};
use super::{Check, Result};

/// A refcount block that can be compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Its entry's index in the refcount table.
    index: u64,
    offset: HostOffset,
}

impl Check<'_> {
    /// Counts the references to the refcount blocks and returns those that lie in the file, each once.
    pub(super) fn refcount_blocks(&mut self) -> Result<Vec<Block>> {
        let geometry = self.reader.header.geometry;
        let entries = self.reader.refcount_table.clone();
        let file_clusters = geometry.clusters(self.reader.file_length);
        let mut blocks = Vec::new();
        let mut seen = HashSet::new();
        let table_offset = self.reader.header.refcount_table_offset.0;
        for (index, entry) in (0u64..).zip(entries) {
            let at = table_offset.saturating_add(index.saturating_mul(8));
            let finding = |code| Finding {
                index: Some(index),
                offset: Some(at),
                value: Some(entry.0),
                ..Finding::corruption(code, Table::RefcountTable)
            };
            if entry.reserved() != 0 {
                self.found(finding(FindingCode::ReservedBits));
                continue;
            }
            let Some(offset) = entry.block_offset() else { continue };
            if !offset.is_aligned(geometry.cluster_size()) {
                self.found(finding(FindingCode::RefcountBlockUnaligned));
                continue;
            }
            let cluster = geometry.cluster_index(offset).0;
            if cluster >= file_clusters {
                self.found(finding(FindingCode::RefcountBlockOutside));
                continue;
            }
            self.reference(offset, geometry.cluster_size(), Table::RefcountTable)?;
            let references = self.counts.get(cluster);
            if references != 1 {
                let finding = finding(FindingCode::RefcountBlockReferences);
                self.found(Finding {
                    references: Some(references),
                    ..finding
                });
            }
            if seen.insert(offset) {
                blocks.push(Block { index, offset });
            }
        }
        Ok(blocks)
    }

    /// Compares every count on disk with the references, by rising cluster number.
    pub(super) fn compare_refcounts(&mut self, blocks: &[Block]) -> Result<()> {
        let geometry = self.reader.header.geometry;
        let order = self.reader.header.refcount_order;
        let file_clusters = geometry.clusters(self.reader.file_length);
        let per_block = order.block_entries(geometry);
        // Only stretches of clusters with a reference, or with a count on disk that is not in a hole, have to be looked at.
        let mut chunks: BTreeSet<u64> = self.counts.chunks().collect();
        for block in blocks {
            self.context.cancel.check()?;
            self.context.progress.advance(geometry.cluster_size());
            let begin = block.index.saturating_mul(per_block);
            let end = begin.saturating_add(per_block).min(file_clusters);
            if begin < end && !self.reader.is_hole(block.offset, geometry.cluster_size()) {
                self.chunks_with_counts(*block, begin, end, &mut chunks)?;
            }
        }
        let mut highest = None;
        for chunk in chunks {
            self.context.cancel.check()?;
            let begin = chunk.saturating_mul(CHUNK_CLUSTERS);
            for cluster in begin..begin.saturating_add(CHUNK_CLUSTERS) {
                let references = self.counts.get(cluster);
                if cluster >= file_clusters && references == 0 {
                    break;
                }
                let Some(refcount) = self.reader.refcount(cluster) else {
                    continue;
                };
                if refcount == 0 && references == 0 {
                    continue;
                }
                highest = Some(cluster);
                if refcount != references {
                    self.mismatch(cluster, refcount, references);
                }
            }
        }
        let end = highest.map_or(0, |cluster: u64| cluster.saturating_add(1));
        self.report.image_end_offset = end.saturating_mul(geometry.cluster_size());
        Ok(())
    }

    /// Adds the chunks in which a block has a count above zero.
    fn chunks_with_counts(&self, block: Block, begin: u64, end: u64, chunks: &mut BTreeSet<u64>) -> Result<()> {
        let geometry = self.reader.header.geometry;
        let bits = u64::from(self.reader.header.refcount_order.bits());
        let Ok(bytes) = self.reader.read(block.offset, geometry.cluster_size()) else {
            return Ok(());
        };
        for chunk in begin / CHUNK_CLUSTERS..end.div_ceil(CHUNK_CLUSTERS) {
            let first = chunk.saturating_mul(CHUNK_CLUSTERS).max(begin).saturating_sub(begin);
            let last = chunk
                .saturating_add(1)
                .saturating_mul(CHUNK_CLUSTERS)
                .min(end)
                .saturating_sub(begin);
            let bytes_of = |index: u64| usize::try_from(index.saturating_mul(bits) / 8).unwrap_or(usize::MAX);
            let stretch = bytes.get(bytes_of(first)..bytes_of(last.next_multiple_of(8)).min(bytes.len()));
            if stretch.is_some_and(|stretch| !qcow2_codec::is_zero(stretch)) {
                chunks.insert(chunk);
            }
        }
        Ok(())
    }

    fn mismatch(&mut self, cluster: u64, refcount: u64, references: u64) {
        let (code, severity) = if refcount > references {
            (FindingCode::Leak, Severity::Leak)
        } else {
            (FindingCode::RefcountTooLow, Severity::Corruption)
        };
        self.found(Finding {
            cluster: Some(cluster),
            refcount: Some(refcount),
            references: Some(references),
            offset: cluster.checked_mul(self.reader.header.geometry.cluster_size()),
            ..Finding::new(code, severity, Table::RefcountBlock)
        });
    }
}
