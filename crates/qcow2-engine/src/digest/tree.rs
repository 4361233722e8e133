//! Leaves to the root: a binary tree whose left subtrees are as large as powers of two can be.

use qcow2_codec::Hash;

use super::shape::{DigestShape, ZeroHashes};

/// The tree while its leaves arrive, in order. It keeps the finished subtrees alone: one for each bit of the number of leaves.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    shape: DigestShape,
    zeros: &'a ZeroHashes,
    /// Subtrees of 2 to the power of `level` leaves, each smaller than the one before.
    stack: Vec<(u32, Hash)>,
    leaves: u64,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(shape: DigestShape, zeros: &'a ZeroHashes) -> Self {
        Self {
            shape,
            zeros,
            stack: Vec::new(),
            leaves: 0,
        }
    }

    pub(crate) fn leaf(&mut self, hash: Hash) {
        self.push(0, hash);
    }

    /// `count` leaves that are zeros, in as many steps as the number has bits.
    pub(crate) fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            let last = self.leaves.saturating_add(count) >= self.shape.blocks();
            // The last block may be shorter than the others: it comes by itself.
            let whole = if last && !self.zeros.tail_is_whole() {
                count - 1
            } else {
                count
            };
            let level = self.leaves.trailing_zeros().min(whole.checked_ilog2().unwrap_or(0));
            match self.zeros.level(level) {
                Some(&hash) if whole > 0 => {
                    self.push(level, hash);
                    count -= 1 << level;
                }
                _ => {
                    self.push(0, *self.zeros.leaf(self.leaves));
                    count -= 1;
                }
            }
        }
    }

    fn push(&mut self, mut level: u32, mut hash: Hash) {
        self.leaves = self.leaves.saturating_add(1 << level);
        while let Some((_, left)) = self.stack.pop_if(|(other, _)| *other == level) {
            hash = self.shape.node(&left, &hash);
            level += 1;
        }
        self.stack.push((level, hash));
    }

    /// The root.
    pub(crate) fn root(mut self) -> Hash {
        let Some((_, mut top)) = self.stack.pop() else {
            return self.shape.root(&Hash::default());
        };
        while let Some((_, left)) = self.stack.pop() {
            top = self.shape.node(&left, &top);
        }
        self.shape.root(&top)
    }
}

#[cfg(test)]
mod tests {
    use qcow2_codec::DigestAlgorithm;

    use super::*;

    fn shape(blocks: u64, tail: u64) -> DigestShape {
        DigestShape {
            algorithm: DigestAlgorithm::Sha256,
            block_size: 4096,
            virtual_size: (blocks - 1) * 4096 + tail,
        }
    }

    /// The definition, as docs/digest.md has it.
    fn defined(shape: DigestShape, leaves: &[Hash]) -> Hash {
        match leaves {
            [one] => *one,
            _ => {
                let left = 1 << (leaves.len() - 1).ilog2();
                let (left, right) = leaves.split_at(left);
                shape.node(&defined(shape, left), &defined(shape, right))
            }
        }
    }

    #[test]
    fn zeros_by_the_run_are_zeros_one_by_one_wherever_they_stand() {
        for blocks in 1..70 {
            for tail in [4096, 512] {
                let shape = shape(blocks, tail);
                let zeros = ZeroHashes::new(shape);
                for start in [0, 1, 2, 3, 7, 8, 13, 31, 32, 33, blocks - 1] {
                    for count in [1, 2, 5, 8, 24, 32, blocks] {
                        let run = start..start.saturating_add(count).min(blocks);
                        if run.is_empty() {
                            continue;
                        }
                        let leaves: Vec<Hash> = (0..blocks)
                            .map(|n| {
                                if run.contains(&n) {
                                    *zeros.leaf(n)
                                } else {
                                    DigestAlgorithm::Sha256.hash(&[&n.to_le_bytes()])
                                }
                            })
                            .collect();
                        let mut tree = Tree::new(shape, &zeros);
                        let mut at = 0;
                        while at < blocks {
                            if at == run.start {
                                tree.zeros(run.end - run.start);
                                at = run.end;
                            } else {
                                tree.leaf(leaves[usize::try_from(at).unwrap()]);
                                at += 1;
                            }
                        }
                        assert_eq!(
                            tree.root(),
                            shape.root(&defined(shape, &leaves)),
                            "{blocks} {tail} {run:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn size_block_size_and_function_are_part_of_the_root() {
        let shape = shape(4, 4096);
        let roots = [
            shape,
            DigestShape {
                virtual_size: shape.virtual_size - 512,
                ..shape
            },
            DigestShape {
                block_size: 8192,
                ..shape
            },
            DigestShape {
                algorithm: DigestAlgorithm::Blake3,
                ..shape
            },
        ]
        .map(|shape| shape.root(&Hash::default()));
        for (index, root) in roots.iter().enumerate() {
            assert!(roots.iter().skip(index + 1).all(|other| other != root));
        }
    }
}
