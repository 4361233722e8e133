//! Snapshots whose L1 tables lie over each other.
//!
//! No program writes such an image, but 65,536 entries of a snapshot table can each name 32 MiB of the same file. Here each byte of the file is
//! looked at once, for as many snapshots as have it in their table.

use qcow2_format::{HostOffset, Table};

use super::tree::{Tree, Trees};
use super::{Check, Result};

/// Tables that overlap are walked one by one all the same while they are small.
const SMALL: u64 = 64 << 20;

/// Whether walking the trees one by one could take longer than the file is worth.
pub(super) fn is_needed(wanted: &[Tree<'_>]) -> bool {
    let total = wanted
        .iter()
        .fold(0u64, |sum, tree| sum.saturating_add(tree.l1_bytes()));
    if total <= SMALL {
        return false;
    }
    let mut ranges: Vec<(u64, u64)> = wanted.iter().map(bytes).collect();
    ranges.sort_unstable();
    let mut end = 0;
    ranges.into_iter().any(|(begin, stop)| {
        let overlaps = begin < end;
        end = end.max(stop);
        overlaps
    })
}

fn bytes(tree: &Tree<'_>) -> (u64, u64) {
    let begin = tree.l1_offset.0;
    (begin, begin.saturating_add(tree.l1_bytes()))
}

impl Check<'_> {
    /// Walks all trees, each part of the file once.
    pub(super) fn sweep(&mut self, trees: &mut Trees, wanted: Vec<Tree<'_>>) -> Result<()> {
        let mut inside = Vec::new();
        for tree in wanted {
            self.context.cancel.check()?;
            if tree.l1_entries > 0 && self.is_beyond(tree.l1_offset, tree.l1_bytes()) {
                self.beyond(tree.l1_offset, tree.l1_bytes(), Table::L1, 1);
            }
            self.l1_end(tree);
            inside.push(tree);
        }
        // The clusters that the tables take, as far as they were not found to lie beyond the end.
        let clusters = |tree: &Tree<'_>| {
            let (begin, end) = bytes(tree);
            (begin, end.next_multiple_of(self.reader.header.geometry.cluster_size()))
        };
        let placed = inside
            .iter()
            .filter(|tree| !self.is_beyond(tree.l1_offset, tree.l1_bytes()));
        for part in parts(placed.map(|tree| (clusters(tree), *tree)).collect()) {
            self.context.cancel.check()?;
            self.reference_times(HostOffset(part.begin), part.end - part.begin, Table::L1, part.times)?;
        }
        for part in parts(inside.iter().map(|tree| (bytes(tree), *tree)).collect()) {
            self.l1_part(trees, part.tree, part.begin, part.end, part.times)?;
        }
        Ok(())
    }
}

/// A stretch of the file that the same tables lie over.
struct Part<'s> {
    begin: u64,
    end: u64,
    /// How many tables.
    times: u64,
    /// One of them.
    tree: Tree<'s>,
}

/// Cuts ranges that lie over each other into parts that do not.
fn parts(mut ranges: Vec<((u64, u64), Tree<'_>)>) -> Vec<Part<'_>> {
    ranges.retain(|((begin, end), _)| begin < end);
    ranges.sort_unstable_by_key(|(range, _)| *range);
    let mut edges: Vec<u64> = ranges.iter().flat_map(|((begin, end), _)| [*begin, *end]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut ends: Vec<u64> = ranges.iter().map(|((_, end), _)| *end).collect();
    ends.sort_unstable();
    let mut parts = Vec::new();
    // The table that reaches furthest of those that have begun lies over every part that any lies over.
    let (mut begun, mut ended, mut furthest) = (0usize, 0usize, None::<(u64, Tree<'_>)>);
    for (begin, end) in edges.iter().zip(edges.iter().skip(1)) {
        while let Some(((_, stop), tree)) = ranges.get(begun).filter(|((start, _), _)| start <= begin) {
            if furthest.is_none_or(|(far, _)| far < *stop) {
                furthest = Some((*stop, *tree));
            }
            begun += 1;
        }
        while ends.get(ended).is_some_and(|stop| stop <= begin) {
            ended += 1;
        }
        if let Some((_, tree)) = furthest.filter(|_| begun > ended) {
            parts.push(Part {
                begin: *begin,
                end: *end,
                times: (begun - ended) as u64,
                tree,
            });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small numbers")]

    use super::*;

    #[test]
    fn parts_cover_each_byte_as_often_as_the_ranges_do() {
        let mut number = 3u64;
        for _ in 0..200 {
            let mut ranges = Vec::new();
            let mut expected = [0u64; 64];
            for _ in 0..7 {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (begin, length) = ((number >> 33) % 40, (number >> 12) % 24);
                let tree = Tree {
                    snapshot: None,
                    l1_offset: HostOffset(begin),
                    l1_entries: u32::try_from(length).unwrap(),
                };
                ranges.push(((begin, begin + length), tree));
                (begin..begin + length).for_each(|at| expected[at as usize] += 1);
            }
            let mut found = [0u64; 64];
            for part in parts(ranges) {
                let (begin, end) = (
                    part.tree.l1_offset.0,
                    part.tree.l1_offset.0 + u64::from(part.tree.l1_entries),
                );
                assert!(begin <= part.begin && part.end <= end);
                (part.begin..part.end).for_each(|at| found[at as usize] += part.times);
            }
            assert_eq!(found, expected);
        }
    }
}
