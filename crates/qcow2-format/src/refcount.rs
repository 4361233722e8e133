//! Refcount table entries and refcount blocks (qcow2 specification, "Host cluster management").

use crate::bytes::{be16, be32, be64};
use crate::geometry::Geometry;
use crate::units::{ClusterIndex, HostOffset};

/// log2 of the width of a refcount in bits: 0 to 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountOrder(u32);

impl RefcountOrder {
    /// The order, if the format has it.
    pub const fn new(order: u32) -> Option<Self> {
        if order <= 6 { Some(Self(order)) } else { None }
    }

    /// The order of refcounts that are `bits` wide: 1, 2, 4, 8, 16, 32 or 64.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits.is_power_of_two() {
            Self::new(bits.trailing_zeros())
        } else {
            None
        }
    }

    /// The number in the header.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Width in bits.
    pub const fn bits(self) -> u32 {
        1u32.wrapping_shl(self.0)
    }

    /// The largest refcount.
    pub const fn max(self) -> u64 {
        u64::MAX.wrapping_shr(64u32.wrapping_sub(self.bits()))
    }

    /// Host clusters that one refcount block describes.
    pub const fn block_entries(self, geometry: Geometry) -> u64 {
        // A block of 2^cluster_bits bytes holds 2^(cluster_bits + 3) bits.
        1u64.wrapping_shl(geometry.cluster_bits().wrapping_add(3).wrapping_sub(self.0))
    }

    /// The refcount table index and the index in the block of a host cluster.
    pub const fn split(self, cluster: ClusterIndex, geometry: Geometry) -> (u64, u64) {
        let shift = geometry.cluster_bits().wrapping_add(3).wrapping_sub(self.0);
        (
            cluster.0.wrapping_shr(shift),
            cluster.0 & self.block_entries(geometry).wrapping_sub(1),
        )
    }

    /// The refcount at `index` of a block, or `None` past its end.
    pub fn get_at(self, block: &[u8], index: usize) -> Option<u64> {
        Some(match self.0 {
            6 => be64(block, index.checked_mul(8)?)?,
            5 => u64::from(be32(block, index.checked_mul(4)?)?),
            4 => u64::from(be16(block, index.checked_mul(2)?)?),
            3 => u64::from(*block.get(index)?),
            order => {
                // Narrow counts are packed from the lowest bit of each byte up.
                let (byte, shift) = self.narrow(index);
                u64::from(block.get(byte)?.wrapping_shr(shift)) & RefcountOrder(order).max()
            }
        })
    }

    /// Sets the refcount at `index` of a block. `None` if it is past the end, or `count` past the largest refcount.
    pub fn set_at(self, block: &mut [u8], index: usize, count: u64) -> Option<()> {
        if count > self.max() {
            return None;
        }
        if self.0 < 3 {
            let (byte, shift) = self.narrow(index);
            let place = block.get_mut(byte)?;
            let [mask, ..] = self.max().wrapping_shl(shift).to_le_bytes();
            let [value, ..] = count.wrapping_shl(shift).to_le_bytes();
            *place = (*place & !mask) | value;
            return Some(());
        }
        let width = 1usize.wrapping_shl(self.0.wrapping_sub(3));
        let begin = index.checked_mul(width)?;
        let bytes = count.to_be_bytes();
        block
            .get_mut(begin..begin.checked_add(width)?)?
            .copy_from_slice(bytes.get(8usize.wrapping_sub(width)..)?);
        Some(())
    }

    /// Byte and shift of a count that is narrower than a byte.
    fn narrow(self, index: usize) -> (usize, u32) {
        let per_byte_bits = 3u32.wrapping_sub(self.0);
        let within = index & 1usize.wrapping_shl(per_byte_bits).wrapping_sub(1);
        (
            index.wrapping_shr(per_byte_bits),
            u32::try_from(within).unwrap_or(0).wrapping_shl(self.0),
        )
    }
}

/// An entry of the refcount table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// Where the refcount block lies; `None`: all its counts are zero. The offset may still be unaligned.
    pub const fn block_offset(self) -> Option<HostOffset> {
        match self.0 & !511 {
            0 => None,
            offset => Some(HostOffset(offset)),
        }
    }

    /// The reserved bits that are set.
    pub const fn reserved(self) -> u64 {
        self.0 & 511
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_reads_back_what_was_set_and_leaves_its_neighbours() {
        for order in 0..=6 {
            let order = RefcountOrder::new(order).unwrap();
            let mut block = vec![0u8; 512];
            let entries = 512 * 8 / order.bits() as usize;
            for i in 0..entries {
                order.set_at(&mut block, i, (i as u64 * 7) & order.max()).unwrap();
            }
            for i in 0..entries {
                assert_eq!(
                    order.get_at(&block, i),
                    Some((i as u64 * 7) & order.max()),
                    "order {order:?} index {i}"
                );
            }
            assert_eq!(order.get_at(&block, entries), None);
            assert_eq!(order.set_at(&mut block, entries, 0), None);
        }
    }

    #[test]
    fn narrow_counts_begin_at_the_lowest_bit() {
        let order = RefcountOrder::from_bits(2).unwrap();
        let block = [0b11_10_01_00u8];
        assert_eq!(
            (0..4).map(|i| order.get_at(&block, i).unwrap()).collect::<Vec<_>>(),
            [0, 1, 2, 3]
        );
    }

    #[test]
    fn a_count_past_the_width_is_refused() {
        assert_eq!(RefcountOrder::from_bits(1).unwrap().set_at(&mut [0; 8], 0, 2), None);
        assert_eq!(RefcountOrder::from_bits(64).unwrap().max(), u64::MAX);
        assert_eq!(RefcountOrder::from_bits(24), None);
    }
}
