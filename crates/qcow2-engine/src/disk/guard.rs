//! Host clusters that no guest data and no new table may ever be put in: the image's own structures. Refcounts that say otherwise are wrong.

use std::collections::{BTreeMap, HashSet};

use qcow2_format::{Geometry, Header, HostOffset, Snapshot};

/// The clusters of header, active L1 table, refcount structure, snapshot table and snapshots' L1 tables.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Rows of clusters: the first, and how many.
    rows: BTreeMap<u64, u64>,
    /// Offsets of refcount blocks.
    blocks: HashSet<u64>,
    bits: u32,
}

impl Guard {
    pub(crate) fn new(header: &Header, refcount_table: &[u64], snapshots: &[Snapshot]) -> Self {
        let geometry = header.geometry;
        let mut guard = Self {
            bits: geometry.cluster_bits(),
            ..Self::default()
        };
        guard.add(0, 1);
        guard.add_bytes(geometry, header.l1_offset, u64::from(header.l1_entries) * 8);
        guard.add_bytes(geometry, header.refcount_table_offset, header.refcount_table_bytes());
        for snapshot in snapshots {
            guard.add_bytes(geometry, snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8);
        }
        for &block in refcount_table.iter().filter(|&&block| block != 0) {
            guard.add_block(block, geometry);
        }
        guard
    }

    /// Adds the clusters that a range of bytes touches.
    pub(crate) fn add_bytes(&mut self, geometry: Geometry, offset: HostOffset, length: u64) {
        if length > 0 {
            let first = geometry.cluster_index(offset).0;
            let end = geometry.clusters(offset.0.saturating_add(length));
            self.add(first, end.saturating_sub(first));
        }
    }

    /// Adds a row of clusters. What other rows have already is theirs: rows do not overlap, though a hostile image's structures may.
    pub(super) fn add(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count);
        let before = self.rows.range(..first).next_back();
        let mut from = before.map_or(first, |(row, clusters)| first.max(row.saturating_add(*clusters)));
        let within: Vec<(u64, u64)> = self.rows.range(first..end.max(first)).map(|(&a, &b)| (a, b)).collect();
        for (row, clusters) in within {
            if from < row {
                self.rows.insert(from, row - from);
            }
            from = from.max(row.saturating_add(clusters));
        }
        if from < end {
            self.rows.insert(from, end - from);
        }
    }

    pub(super) fn add_block(&mut self, offset: u64, geometry: Geometry) {
        self.blocks.insert(offset);
        self.bits = geometry.cluster_bits();
    }

    /// The row that begins at `first` is nobody's any more.
    pub(super) fn remove(&mut self, first: u64, _count: u64) {
        self.rows.remove(&first);
    }

    pub(crate) fn has(&self, cluster: u64) -> bool {
        let row = self.rows.range(..=cluster).next_back();
        row.is_some_and(|(first, count)| cluster - first < *count) || self.blocks.contains(&(cluster << self.bits))
    }

    /// Whether any of `count` clusters from `first` on is in one of the rows.
    pub(super) fn row_overlaps(&self, first: u64, count: u64) -> bool {
        let before = self.rows.range(..first.saturating_add(count)).next_back();
        before.is_some_and(|(row, clusters)| row.saturating_add(*clusters) > first)
    }

    /// The clusters of refcount blocks, in order.
    pub(super) fn block_clusters(&self) -> Vec<u64> {
        let mut clusters: Vec<u64> = self.blocks.iter().map(|block| block >> self.bits).collect();
        clusters.sort_unstable();
        clusters
    }

    pub(super) fn is_refcount_block(&self, offset: u64) -> bool {
        self.blocks.contains(&offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image whose snapshot table lay within the clusters of its L1 table got what lies behind the snapshot table written over: only the nearest
    /// row below a cluster was asked.
    #[test]
    fn a_row_within_another_hides_nothing_of_it() {
        let rows = [
            (10, 20),
            (15, 2),
            (5, 8),
            (28, 6),
            (40, 0),
            (50, 1),
            (45, 10),
            (12, 30),
            (15, 2),
        ];
        let mut guard = Guard::default();
        let mut model = HashSet::new();
        for (first, count) in rows {
            guard.add(first, count);
            model.extend(first..first + count);
            for cluster in 0..70 {
                assert_eq!(
                    guard.has(cluster),
                    model.contains(&cluster),
                    "{cluster} after {first}+{count}"
                );
                assert_eq!(guard.row_overlaps(cluster, 1), model.contains(&cluster), "{cluster}");
            }
        }
        guard.add(u64::MAX - 1, 5);
        assert!(guard.has(u64::MAX - 1) && !guard.has(u64::MAX - 2));
    }
}
