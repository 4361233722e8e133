//! References counted per host cluster, in memory that follows the clusters that are referenced.

use std::collections::{BTreeMap, HashMap};

/// Clusters that one chunk counts.
pub(super) const CHUNK_CLUSTERS: u64 = 16384;
/// Four counts of two bits a byte.
const CHUNK_BYTES: usize = 4096;
/// In a chunk: the count stands in `large`.
const LARGE: u64 = 3;

/// A sparse array of counts: two bits each, since nearly every cluster of nearly every image has one reference, and a map for the rest.
#[derive(Debug, Default)]
pub(super) struct Counts {
    chunks: BTreeMap<u64, Box<[u8; CHUNK_BYTES]>>,
    large: HashMap<u64, u64>,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds references. `true`: the count has passed `maximum` and stays there.
    pub(super) fn add(&mut self, cluster: u64, times: u64, maximum: u64) -> bool {
        let wanted = self.get(cluster).saturating_add(times);
        self.set(cluster, wanted.min(maximum));
        wanted > maximum
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        let (chunk, byte, shift) = place(cluster);
        let packed = self
            .chunks
            .get(&chunk)
            .and_then(|chunk| chunk.get(byte))
            .map_or(0, |byte| u64::from(byte >> shift) & 3);
        if packed == LARGE {
            self.large.get(&cluster).copied().unwrap_or(LARGE)
        } else {
            packed
        }
    }

    fn set(&mut self, cluster: u64, count: u64) {
        let (chunk, byte, shift) = place(cluster);
        if count >= LARGE {
            self.large.insert(cluster, count);
        }
        let packed = u8::try_from(count.min(LARGE)).unwrap_or(3);
        let chunk = self.chunks.entry(chunk).or_insert_with(|| Box::new([0; CHUNK_BYTES]));
        if let Some(byte) = chunk.get_mut(byte) {
            *byte = (*byte & !(3 << shift)) | (packed << shift);
        }
    }

    /// Bytes that the counts take, about.
    pub(super) fn memory(&self) -> u64 {
        (self.chunks.len() as u64).saturating_mul(CHUNK_BYTES as u64) + (self.large.len() as u64).saturating_mul(32)
    }

    /// The chunks that hold any count, by number.
    pub(super) fn chunks(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.keys().copied()
    }
}

/// Chunk, byte in it, and shift in the byte.
fn place(cluster: u64) -> (u64, usize, u32) {
    let within = cluster % CHUNK_CLUSTERS;
    let byte = usize::try_from(within / 4).unwrap_or(0);
    let shift = u32::try_from(within % 4).unwrap_or(0) * 2;
    (cluster / CHUNK_CLUSTERS, byte, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_whatever_their_size_and_stop_at_the_maximum() {
        let mut counts = Counts::new();
        for cluster in [0, 1, 2, 3, 16383, 16384, u64::MAX / 2] {
            for expected in 1..=5 {
                assert!(!counts.add(cluster, 1, 5));
                assert_eq!(counts.get(cluster), expected);
            }
            assert!(counts.add(cluster, 1, 5));
            assert_eq!(counts.get(cluster), 5);
        }
        assert_eq!(counts.get(4), 0);
        assert_eq!(counts.chunks().collect::<Vec<_>>(), [0, 1, u64::MAX / 2 / 16384]);
        assert!(!counts.add(9, 2, 2));
        assert!(counts.add(9, 1, 2));
        assert_eq!(counts.get(9), 2);
    }
}
