//! References counted per host cluster, in memory that follows the clusters that are referenced.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Clusters that one chunk counts.
pub(crate) const CHUNK: u64 = 4096;
/// The same as a length.
const CHUNK_LEN: usize = 4096;
/// Four counts of one.
const ONES: u8 = 0x55;

/// A sparse array of counts. Two bits each to begin with, since nearly every cluster of nearly every image has one reference; a chunk in which a
/// count grows larger becomes wider as a whole.
#[derive(Debug)]
pub(crate) struct Counts {
    chunks: BTreeMap<u64, Chunk>,
    maximum: u64,
    budget: Budget,
}

/// Bytes that the check may keep.
#[derive(Debug)]
struct Budget {
    spent: u64,
    allowed: u64,
}

impl Budget {
    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent <= self.allowed {
            return Ok(());
        }
        Err(Error::Limit {
            limit: "maxMemory",
            allowed: self.allowed,
            wanted: self.spent,
        })
    }
}

/// The counts of one chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Width of a count: 2, 8, 16 or 64.
    bits: u32,
    bytes: Vec<u8>,
}

impl Counts {
    /// Counts that stop at `maximum` and take at most `allowed` bytes.
    pub(crate) fn new(maximum: u64, allowed: u64) -> Self {
        Self {
            chunks: BTreeMap::new(),
            maximum,
            budget: Budget { spent: 0, allowed },
        }
    }

    /// Takes `bytes` of the budget for something else that grows with the image.
    ///
    /// # Errors
    /// [`Error::Limit`] once it is used up.
    pub(crate) fn spend(&mut self, bytes: u64) -> Result<()> {
        self.budget.spend(bytes)
    }

    /// Adds `times` references to each of `clusters` clusters. Returns those whose count would pass the maximum, with how many were too many.
    ///
    /// # Errors
    /// [`Error::Limit`] for memory.
    pub(crate) fn add(&mut self, first: u64, clusters: u64, times: u64) -> Result<Vec<(u64, u64)>> {
        let mut overflows = Vec::new();
        let end = first.saturating_add(clusters);
        let mut at = first;
        while at < end {
            let number = at / CHUNK;
            let stop = number.saturating_add(1).saturating_mul(CHUNK).min(end);
            let chunk = match self.chunks.entry(number) {
                std::collections::btree_map::Entry::Occupied(chunk) => chunk.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    self.budget.spend(Chunk::size(2))?;
                    place.insert(Chunk::new(2))
                }
            };
            let (begin, length) = (within(at), within(stop.saturating_sub(1)) + 1 - within(at));
            if times != 1 || !chunk.raise(begin, length, self.maximum) {
                for index in begin..begin + length {
                    let wanted = chunk.get(index).saturating_add(times);
                    chunk.set(index, wanted.min(self.maximum), &mut self.budget)?;
                    if wanted > self.maximum {
                        let cluster = number.saturating_mul(CHUNK).saturating_add(index as u64);
                        overflows.push((cluster, wanted - self.maximum));
                    }
                }
            }
            at = stop;
        }
        Ok(overflows)
    }

    /// The first cluster from `cluster` on whose count is not zero.
    pub(crate) fn next_counted(&self, cluster: u64) -> Option<u64> {
        let mut from = within(cluster);
        for (number, chunk) in self.chunks.range(cluster / CHUNK..) {
            let begin = if *number == cluster / CHUNK { from } else { 0 };
            if let Some(index) = (begin..CHUNK_LEN).find(|&index| chunk.get(index) != 0) {
                return Some(number.saturating_mul(CHUNK).saturating_add(index as u64));
            }
            from = 0;
        }
        None
    }

    /// The first cluster from `cluster` on whose count is zero.
    pub(crate) fn next_free(&self, cluster: u64) -> u64 {
        let mut at = cluster;
        while let Some(chunk) = self.chunk(at / CHUNK) {
            if let Some(index) = (within(at)..CHUNK_LEN).find(|&index| chunk.get(index) == 0) {
                return (at / CHUNK).saturating_mul(CHUNK).saturating_add(index as u64);
            }
            at = (at / CHUNK).saturating_add(1).saturating_mul(CHUNK);
        }
        at
    }

    /// The cluster behind the last one that has a count.
    pub(crate) fn end(&self) -> u64 {
        for (number, chunk) in self.chunks.iter().rev() {
            if let Some(index) = (0..CHUNK_LEN).rev().find(|&index| chunk.get(index) != 0) {
                return number.saturating_mul(CHUNK).saturating_add(index as u64 + 1);
            }
        }
        0
    }

    /// Takes one reference from each of `clusters` clusters that have one.
    ///
    /// # Errors
    /// None that can come up: counts only get smaller.
    pub(crate) fn remove(&mut self, first: u64, clusters: u64) -> Result<()> {
        for cluster in first..first.saturating_add(clusters) {
            if let Some(chunk) = self.chunks.get_mut(&(cluster / CHUNK)) {
                let count = chunk.get(within(cluster)).saturating_sub(1);
                chunk.set(within(cluster), count, &mut self.budget)?;
            }
        }
        Ok(())
    }

    /// The count of a cluster.
    pub(crate) fn get(&self, cluster: u64) -> u64 {
        self.chunk(cluster / CHUNK)
            .map_or(0, |chunk| chunk.get(within(cluster)))
    }

    /// The counts of a chunk, if it has any.
    pub(crate) fn chunk(&self, number: u64) -> Option<&Chunk> {
        self.chunks.get(&number)
    }

    /// The first cluster from `cluster` on that lies in a chunk with counts.
    pub(crate) fn next(&self, cluster: u64) -> Option<u64> {
        let (number, _) = self.chunks.range(cluster / CHUNK..).next()?;
        Some(number.saturating_mul(CHUNK).max(cluster))
    }
}

impl Chunk {
    fn new(bits: u32) -> Self {
        Self {
            bits,
            bytes: vec![0; CHUNK_LEN / 8 * bits as usize],
        }
    }

    /// Bytes that a chunk takes, with its place in the map.
    const fn size(bits: u32) -> u64 {
        CHUNK / 8 * bits as u64 + 64
    }

    /// The count at `index`.
    pub(crate) fn get(&self, index: usize) -> u64 {
        let count = match self.bits {
            2 => self
                .bytes
                .get(index / 4)
                .map(|byte| u64::from(byte >> (index % 4 * 2) & 3)),
            8 => self.bytes.get(index).copied().map(u64::from),
            16 => self.wide::<2>(index).map(|bytes| u64::from(u16::from_ne_bytes(bytes))),
            _ => self.wide::<8>(index).map(u64::from_ne_bytes),
        };
        count.unwrap_or(0)
    }

    /// The counts as they stand, four to a byte from the lowest bits up, while none is larger than 3.
    pub(crate) fn packed(&self) -> Option<&[u8]> {
        (self.bits == 2).then_some(&self.bytes)
    }

    fn wide<const N: usize>(&self, index: usize) -> Option<[u8; N]> {
        self.bytes.as_chunks::<N>().0.get(index).copied()
    }

    fn set(&mut self, index: usize, count: u64, budget: &mut Budget) -> Result<()> {
        let needed = match count {
            0..=3 => 2,
            4..=0xff => 8,
            0x100..=0xffff => 16,
            _ => 64,
        };
        if needed > self.bits {
            budget.spend(Self::size(needed).saturating_sub(Self::size(self.bits)))?;
            let mut wider = Self::new(needed);
            if self.bits == 2 && needed == 8 {
                for (byte, counts) in self.bytes.iter().zip(wider.bytes.as_chunks_mut::<4>().0) {
                    *counts = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6];
                }
            } else {
                for index in 0..CHUNK_LEN {
                    wider.put(index, self.get(index));
                }
            }
            *self = wider;
        }
        self.put(index, count);
        Ok(())
    }

    fn put(&mut self, index: usize, count: u64) {
        let [low, high, ..] = count.to_le_bytes();
        if self.bits == 2 {
            if let Some(byte) = self.bytes.get_mut(index / 4) {
                let shift = index % 4 * 2;
                *byte = (*byte & !(3 << shift)) | ((low & 3) << shift);
            }
            return;
        }
        let width = self.bits as usize / 8;
        let place = self
            .bytes
            .get_mut(index * width..(index + 1) * width)
            .unwrap_or_default();
        match width {
            1 => place.copy_from_slice(&[low]),
            2 => place.copy_from_slice(&u16::from_le_bytes([low, high]).to_ne_bytes()),
            _ => place.copy_from_slice(&count.to_ne_bytes()),
        }
    }

    /// Adds one to each count of a row at once. `false`, and nothing is changed, if one of them would pass the maximum or needs a wider chunk.
    fn raise(&mut self, begin: usize, length: usize, maximum: u64) -> bool {
        let end = begin + length;
        match self.bits {
            2 => self.raise_packed(begin, end, maximum),
            8 => {
                let counts = self.bytes.get_mut(begin..end).unwrap_or_default();
                let most = u8::try_from(maximum).unwrap_or(u8::MAX);
                if counts.iter().fold(0, |largest, count| largest.max(*count)) >= most {
                    return false;
                }
                counts.iter_mut().for_each(|count| *count = count.wrapping_add(1));
                true
            }
            _ => false,
        }
    }

    fn raise_packed(&mut self, begin: usize, end: usize, maximum: u64) -> bool {
        // Whole bytes in the middle; what is before and behind goes one by one.
        let (first, last) = (
            begin.next_multiple_of(4).min(end),
            (end / 4 * 4).max(begin.next_multiple_of(4).min(end)),
        );
        let most = maximum.min(3);
        let room = |index: usize| self.get(index) < most;
        let middle = self.bytes.get(first.div_ceil(4)..last / 4).unwrap_or_default();
        let fits = if most == 3 {
            middle.iter().fold(0, |full, byte| full | (byte & byte >> 1 & ONES)) == 0
        } else {
            qcow2_codec::is_zero(middle)
        };
        if !fits || !(begin..first).all(room) || !(last..end).all(room) {
            return false;
        }
        for index in (begin..first).chain(last..end) {
            self.put(index, self.get(index) + 1);
        }
        let middle = self.bytes.get_mut(first.div_ceil(4)..last / 4);
        // No pair of bits overflows into the next.
        middle
            .unwrap_or_default()
            .iter_mut()
            .for_each(|byte| *byte = byte.wrapping_add(ONES));
        true
    }
}

/// The index of a cluster in its chunk.
fn within(cluster: u64) -> usize {
    usize::try_from(cluster % CHUNK).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small numbers")]

    use super::*;

    #[test]
    fn rows_raise_what_they_cover_as_one_by_one_does() {
        for maximum in [1, 2, 3, 15, 255, 300] {
            let (mut counts, mut model) = (Counts::new(maximum, 1 << 30), vec![0u64; 4 * CHUNK_LEN]);
            let mut number = 11u64;
            for round in 0..900 {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let first = (number >> 40) as usize % (2 * CHUNK_LEN);
                let length = 1 + (number >> 20) as usize % [5, 70, 5000][round % 3];
                let overflows = counts.add(first as u64, length as u64, 1).unwrap();
                let mut expected = Vec::new();
                for (cluster, count) in model.iter_mut().enumerate().skip(first).take(length) {
                    if *count == maximum {
                        expected.push((cluster as u64, 1));
                    }
                    *count = (*count + 1).min(maximum);
                }
                assert!(overflows == expected, "{maximum}, round {round}");
            }
            for (cluster, count) in model.iter().enumerate() {
                assert_eq!(counts.get(cluster as u64), *count, "{maximum} {cluster}");
            }
        }
    }

    #[test]
    fn counts_are_kept_whatever_their_size_and_stop_at_the_maximum() {
        for maximum in [1, 3, 5, 255, 300, 70_000, u64::MAX] {
            let mut counts = Counts::new(maximum, 1 << 30);
            for cluster in [0, 1, 2, 3, 4095, 4096, u64::MAX / 2] {
                let mut expected = 0u64;
                for times in [1, 1, 1, 1, 2, 250, 1, 65_500, 5000, 1 << 40] {
                    let over = (expected.saturating_add(times)).saturating_sub(maximum);
                    expected = (expected + times).min(maximum);
                    let overflows = counts.add(cluster, 1, times).unwrap();
                    assert_eq!(overflows, Vec::from_iter((over > 0).then_some((cluster, over))));
                    assert_eq!(counts.get(cluster), expected);
                }
            }
            assert_eq!(counts.get(4), 0);
            assert_eq!(counts.get(4094), 0);
        }
    }

    #[test]
    fn rows_count_each_cluster_of_theirs_once() {
        let mut counts = Counts::new(u64::MAX, 1 << 30);
        let mut expected = vec![0u64; 20_000];
        let mut number = 1u64;
        for _ in 0..400 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (first, length) = ((number >> 40) % 15_000, 1 + (number >> 20) % 4900);
            counts.add(first, length, 1).unwrap();
            (first..first + length).for_each(|cluster| expected[cluster as usize] += 1);
        }
        for (cluster, expected) in expected.iter().enumerate() {
            assert_eq!(counts.get(cluster as u64), *expected, "{cluster}");
        }
    }

    #[test]
    fn counted_and_free_clusters_are_found() {
        let mut counts = Counts::new(u64::MAX, 1 << 30);
        assert_eq!(
            (counts.next_counted(0), counts.next_free(7), counts.end()),
            (None, 7, 0)
        );
        for (first, length) in [(3, 2), (4090, 10), (3 * CHUNK, CHUNK)] {
            counts.add(first, length, 1).unwrap();
        }
        for (from, counted, free) in [
            (0, Some(3), 0),
            (3, Some(3), 5),
            (5, Some(4090), 5),
            (4095, Some(4095), 4100),
            (4100, Some(3 * CHUNK), 4100),
            (3 * CHUNK, Some(3 * CHUNK), 4 * CHUNK),
            (4 * CHUNK, None, 4 * CHUNK),
        ] {
            assert_eq!(
                (counts.next_counted(from), counts.next_free(from)),
                (counted, free),
                "{from}"
            );
        }
        assert_eq!(counts.end(), 4 * CHUNK);
    }

    #[test]
    fn memory_has_an_end() {
        let mut counts = Counts::new(u64::MAX, 1 << 20);
        let far = (0u64..)
            .map(|n| counts.add(n * (1 << 30), 1, 1))
            .position(|outcome| outcome.is_err());
        assert!(far.is_some_and(|number| number < 1000));
    }
}
