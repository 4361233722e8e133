//! How guest offsets divide into table indexes.

use crate::limits;
use crate::units::{ClusterIndex, GuestOffset, HostOffset};

/// The sizes that every translation needs. Constructed only from checked values, so its arithmetic cannot go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    extended_l2: bool,
}

impl Geometry {
    /// The geometry of clusters of `2^cluster_bits` bytes, or `None` if the format has no such clusters.
    pub const fn new(cluster_bits: u32, extended_l2: bool) -> Option<Self> {
        let smallest = if extended_l2 {
            limits::MIN_CLUSTER_BITS_EXTENDED
        } else {
            limits::MIN_CLUSTER_BITS
        };
        if cluster_bits < smallest || cluster_bits > limits::MAX_CLUSTER_BITS {
            return None;
        }
        Some(Self {
            cluster_bits,
            extended_l2,
        })
    }

    /// log2 of the cluster size.
    pub const fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Cluster size in bytes.
    pub const fn cluster_size(self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// Cluster size in bytes, as a length in memory.
    pub const fn cluster_len(self) -> usize {
        1usize.wrapping_shl(self.cluster_bits)
    }

    /// Whether L2 entries are 128 bits wide and know subclusters.
    pub const fn extended_l2(self) -> bool {
        self.extended_l2
    }

    /// Bytes of the smallest unit with a state of its own: a subcluster, or the whole cluster.
    pub const fn subcluster_size(self) -> u64 {
        if self.extended_l2 {
            self.cluster_size() >> 5
        } else {
            self.cluster_size()
        }
    }

    /// Bytes of one L2 entry: 8 or 16.
    pub const fn l2_entry_size(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// log2 of the entries of an L2 table.
    pub const fn l2_bits(self) -> u32 {
        self.cluster_bits.wrapping_sub(if self.extended_l2 { 4 } else { 3 })
    }

    /// Entries of an L2 table.
    pub const fn l2_entries(self) -> u64 {
        1u64.wrapping_shl(self.l2_bits())
    }

    /// Guest bytes that one L1 entry covers.
    pub const fn l1_entry_span(self) -> u64 {
        1u64.wrapping_shl(self.l1_shift())
    }

    const fn l1_shift(self) -> u32 {
        self.cluster_bits.wrapping_add(self.l2_bits())
    }

    /// Index in the L1 table.
    pub const fn l1_index(self, offset: GuestOffset) -> u64 {
        offset.0 >> self.l1_shift()
    }

    /// Index in the L2 table.
    pub const fn l2_index(self, offset: GuestOffset) -> u64 {
        (offset.0 >> self.cluster_bits) & self.l2_entries().wrapping_sub(1)
    }

    /// Offset inside the cluster.
    pub const fn offset_in_cluster(self, offset: u64) -> u64 {
        offset & self.cluster_size().wrapping_sub(1)
    }

    /// Where the cluster of a guest offset begins.
    pub const fn cluster_start(self, offset: GuestOffset) -> GuestOffset {
        GuestOffset(offset.0 & !self.cluster_size().wrapping_sub(1))
    }

    /// The guest offset at which an L2 entry's cluster begins, or `None` past the number range.
    pub fn guest_offset(self, l1_index: u64, l2_index: u64) -> Option<GuestOffset> {
        let high = l1_index.checked_mul(self.l1_entry_span())?;
        high.checked_add(l2_index.checked_mul(self.cluster_size())?)
            .map(GuestOffset)
    }

    /// The host cluster that a host offset lies in.
    pub const fn cluster_index(self, offset: HostOffset) -> ClusterIndex {
        ClusterIndex(offset.0 >> self.cluster_bits)
    }

    /// Clusters that `bytes` bytes need.
    pub const fn clusters(self, bytes: u64) -> u64 {
        (bytes >> self.cluster_bits).wrapping_add((self.offset_in_cluster(bytes) != 0) as u64)
    }

    /// L1 entries that a virtual size needs.
    pub const fn l1_entries(self, virtual_size: u64) -> u64 {
        (virtual_size >> self.l1_shift())
            .wrapping_add((virtual_size & self.l1_entry_span().wrapping_sub(1) != 0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_four_kib_clusters_cover_512_mib_an_l1_entry() {
        let g = Geometry::new(16, false).unwrap();
        assert_eq!(
            (g.l2_entries(), g.l1_entry_span(), g.l1_entries(1 << 30)),
            (8192, 512 << 20, 2)
        );
        let at = GuestOffset((512 << 20) + 3 * 65536 + 17);
        assert_eq!((g.l1_index(at), g.l2_index(at), g.offset_in_cluster(at.0)), (1, 3, 17));
        assert_eq!(g.guest_offset(1, 3), Some(GuestOffset((512 << 20) + 3 * 65536)));
    }

    #[test]
    fn extended_entries_halve_the_span_and_know_32_subclusters() {
        let g = Geometry::new(16, true).unwrap();
        assert_eq!(
            (g.l2_entries(), g.l1_entry_span(), g.subcluster_size()),
            (4096, 256 << 20, 2048)
        );
    }

    #[test]
    fn sizes_that_the_format_lacks_are_refused() {
        for (bits, extended) in [(8, false), (22, false), (13, true), (63, false)] {
            assert_eq!(Geometry::new(bits, extended), None);
        }
    }

    #[test]
    fn the_largest_virtual_size_does_not_overflow() {
        let g = Geometry::new(9, false).unwrap();
        assert_eq!(
            g.l1_entries(limits::MAX_VIRTUAL_SIZE),
            ((1u64 << 63) - 512).div_ceil(32768)
        );
        assert_eq!(g.clusters(u64::MAX), 1 << 55);
    }
}
