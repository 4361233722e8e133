//! Which clusters have a refcount of one, for the COPIED flags: the refcount blocks in a quarter of a byte a cluster, so that scattered clusters do
//! not read them over and over.

use std::collections::HashMap;
use std::sync::Arc;

use qcow2_format::{ClusterIndex, HostOffset, RefcountOrder};

use super::reader::{Block, Reader};

/// Bytes of packed blocks that are kept: those of 32 TiB with clusters of 64 KiB.
const MOST: usize = 128 << 20;

/// The bits of four 16-bit counts that are 3 at most.
const SMALL: u64 = 0x0003_0003_0003_0003;
/// Groups of four that are looked at together.
const ALIKE: usize = 16;

/// Packed refcount blocks by host offset, and the one that was looked at last.
#[derive(Debug, Default)]
pub(super) struct Classes {
    blocks: HashMap<HostOffset, Arc<[u8]>>,
    bytes: usize,
    last: Option<(u64, Packed)>,
    /// What a block is read into.
    buffer: Vec<u8>,
}

/// A block in packed form: two bits a cluster, 3 standing for everything larger than 2.
#[derive(Clone, Debug)]
enum Packed {
    /// All zero.
    Absent,
    Unreadable,
    Counts(Arc<[u8]>),
}

impl Reader<'_> {
    /// Whether the refcount of a cluster is one; `None` if its block cannot be read.
    pub(super) fn is_one(&mut self, cluster: u64) -> Option<bool> {
        let (index, within) = self
            .header
            .refcount_order
            .split(ClusterIndex(cluster), self.header.geometry);
        match self.packed(index) {
            Packed::Absent => Some(false),
            Packed::Unreadable => None,
            Packed::Counts(counts) => Some(class(&counts, usize::try_from(within).ok()?) == 1),
        }
    }

    /// Whether each cluster of a row has a refcount of one (`copied`), or none has. `false` if that could not be told.
    pub(super) fn row_is(&mut self, first: u64, clusters: u64, copied: bool) -> bool {
        let end = first.saturating_add(clusters);
        let mut at = first;
        while at < end {
            let order = self.header.refcount_order;
            let (index, within) = order.split(ClusterIndex(at), self.header.geometry);
            let per_block = order.block_entries(self.header.geometry);
            let count = (per_block - within).min(end - at);
            let agrees = match self.packed(index) {
                Packed::Absent => !copied,
                Packed::Unreadable => false,
                Packed::Counts(counts) => {
                    let begin = usize::try_from(within).unwrap_or(usize::MAX);
                    row_of(&counts, begin, usize::try_from(count).unwrap_or(0), copied)
                }
            };
            if !agrees {
                return false;
            }
            at += count;
        }
        true
    }

    /// A whole block as it was packed, if it was.
    pub(super) fn packed_again(&self, index: u64) -> Option<Arc<[u8]>> {
        let Block::At(offset) = self.block(index) else {
            return None;
        };
        let counts = self.classes.blocks.get(&offset)?;
        let entries = self.header.refcount_order.block_entries(self.header.geometry);
        (counts.len() as u64 == entries / 4).then(|| Arc::clone(counts))
    }

    fn packed(&mut self, index: u64) -> Packed {
        if let Some((last, packed)) = &self.classes.last
            && *last == index
        {
            return packed.clone();
        }
        let packed = match self.block(index) {
            Block::Absent => Packed::Absent,
            Block::Unreadable => Packed::Unreadable,
            Block::At(offset) => self.packed_block(offset),
        };
        self.classes.last = Some((index, packed.clone()));
        packed
    }

    fn packed_block(&mut self, offset: HostOffset) -> Packed {
        if let Some(counts) = self.classes.blocks.get(&offset) {
            return Packed::Counts(counts.clone());
        }
        let mut block = std::mem::take(&mut self.classes.buffer);
        if self
            .read_into(offset, self.header.geometry.cluster_size(), &mut block)
            .is_err()
        {
            return Packed::Unreadable;
        }
        let counts = pack(&block, self.header.refcount_order);
        self.classes.buffer = block;
        if self.classes.bytes.saturating_add(counts.len()) > MOST {
            self.classes.blocks.clear();
            self.classes.bytes = 0;
        }
        self.classes.bytes = self.classes.bytes.saturating_add(counts.len());
        self.classes.blocks.insert(offset, counts.clone());
        Packed::Counts(counts)
    }
}

/// Four counts to a byte, the first in the lowest bits.
fn pack(block: &[u8], order: RefcountOrder) -> Arc<[u8]> {
    if order.bits() == 16 {
        let mut packed = Vec::with_capacity(block.len() / 8);
        let (many, rest) = block.as_chunks::<{ 8 * ALIKE }>();
        for groups in many.iter().map(|many| many.as_chunks::<8>().0) {
            // Nearly everywhere they are all one, or all zero.
            let words = groups.iter().map(|group| u64::from_ne_bytes(*group));
            let first = words.clone().next().unwrap_or(0);
            if words.fold(0, |differs, word| differs | word ^ first) == 0 {
                packed.resize(packed.len() + ALIKE, pack_group(first.to_ne_bytes()));
            } else {
                packed.extend(groups.iter().map(|group| pack_group(*group)));
            }
        }
        packed.extend(rest.as_chunks::<8>().0.iter().map(|group| pack_group(*group)));
        return packed.into();
    }
    let entries = block.len().saturating_mul(8) / usize::try_from(order.bits()).unwrap_or(64);
    (0..entries)
        .step_by(4)
        .map(|index| pack_four([0, 1, 2, 3].map(|n| order.get_at(block, index + n).unwrap_or(0))))
        .collect()
}

/// Four big-endian counts of 16 bits.
fn pack_group(group: [u8; 8]) -> u8 {
    let word = u64::from_be_bytes(group);
    if word & !SMALL == 0 {
        let [low, ..] = (word >> 48 | word >> 30 | word >> 12 | word << 6).to_le_bytes();
        return low;
    }
    let [a, b, c, d, e, f, g, h] = group;
    pack_four([[a, b], [c, d], [e, f], [g, h]].map(|pair| u64::from(u16::from_be_bytes(pair))))
}

fn pack_four(counts: [u64; 4]) -> u8 {
    let small = |count: u64| u8::try_from(count.min(3)).unwrap_or(3);
    counts.iter().rev().fold(0, |byte, &count| byte << 2 | small(count))
}

fn class(counts: &[u8], index: usize) -> u8 {
    counts.get(index / 4).map_or(0, |byte| byte >> (index % 4 * 2) & 3)
}

fn row_of(counts: &[u8], begin: usize, length: usize, copied: bool) -> bool {
    let end = begin + length;
    let first = begin.next_multiple_of(4).min(end);
    let last = (end / 4 * 4).max(first);
    let one = |index: usize| (class(counts, index) == 1) == copied;
    let middle = first.div_ceil(4)..last / 4;
    let bytes = counts.get(middle.clone()).unwrap_or_default();
    let agrees = |byte: &u8| {
        if copied {
            *byte == 0x55
        } else {
            // The low bit of some pair without its high one.
            *byte & !(*byte >> 1) & 0x55 == 0
        }
    };
    (begin..first).all(one)
        && (last..end).all(one)
        && bytes.iter().all(agrees)
        // Behind the end of a block that the file cuts short there is nothing, and that is not one.
        && (!copied || bytes.len() == middle.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_agree_with_looking_at_each() {
        let mut number = 9u64;
        let mut block = vec![0u8; 512];
        let order = RefcountOrder::new(4).unwrap();
        for round in 0..300 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            for index in 0..256 {
                let odd = (number >> 30) as usize % 256 == index;
                order
                    .set_at(&mut block, index, if odd { round % 5 } else { round % 2 })
                    .unwrap();
            }
            let counts = pack(&block, order);
            let (begin, length) = ((number >> 8) as usize % 200, 1 + (number >> 50) as usize % 56);
            for copied in [false, true] {
                let each = (begin..begin + length).all(|index| (order.get_at(&block, index) == Some(1)) == copied);
                assert_eq!(row_of(&counts, begin, length, copied), each, "{round} {begin} {length}");
            }
        }
    }

    #[test]
    fn every_width_packs_to_the_same() {
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            let order = RefcountOrder::from_bits(bits).unwrap();
            let mut block = vec![0u8; 512];
            let entries = 4096 / bits as usize;
            for index in 0..entries {
                order
                    .set_at(&mut block, index, (index as u64 % 7).min(order.max()))
                    .unwrap();
            }
            let counts = pack(&block, order);
            for index in 0..entries {
                let expected = (index as u64 % 7).min(order.max()).min(3);
                assert_eq!(u64::from(class(&counts, index)), expected, "{bits} {index}");
            }
        }
    }
}
