//! *digest*: a hash of what a disk holds, whatever holds it; and *verify*: whether a disk holds what a digest was made of.
//!
//! The disk is cut into blocks, whose hashes are the leaves of a binary tree; docs/digest.md defines every byte. Stretches that the mapping
//! knows to be zeros are not read, and whole subtrees of them cost one hash, so that an empty disk of any size costs nothing. What is left is
//! read and hashed by several threads.

mod blocks;
mod leaves;
mod shape;
mod tree;
mod verify;
mod walk;

use qcow2_codec::{DigestAlgorithm, Hash};

pub use leaves::{LeafRun, Leaves};
pub use shape::{DigestShape, MAX_BLOCK, MIN_BLOCK};
pub use verify::{DigestManifest, Expectation, Verification, VerifyOptions, verify};

use blocks::Known;
use shape::ZeroHashes;
use tree::Tree;

use crate::chain::Chain;
use crate::error::{Error, Result};
use crate::progress::JobContext;

/// How a digest is made.
#[derive(Clone, Copy, Debug)]
pub struct DigestOptions {
    /// The hash function.
    pub algorithm: DigestAlgorithm,
    /// Length of a block in bytes, a power of two from 4 KiB to 64 MiB.
    pub block_size: u64,
    /// Keep the leaves, in at most so many bytes.
    pub leaves: Option<u64>,
}

impl Default for DigestOptions {
    fn default() -> Self {
        Self {
            algorithm: DigestAlgorithm::default(),
            block_size: 1 << 20,
            leaves: None,
        }
    }
}

/// The digest of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// What it is a digest of.
    pub shape: DigestShape,
    /// The digest itself.
    pub root: Hash,
    /// Blocks of nothing but zeros.
    pub zero_blocks: u64,
    /// What a manifest holds, if it was asked for.
    pub leaves: Option<Leaves>,
}

/// Makes the digest of a disk.
///
/// # Errors
/// [`Error::Invalid`] for a block size that is none; [`Error::Limit`] if the leaves take more memory than they may; those of resolving and
/// fetching; [`Error::Cancelled`].
pub fn digest(chain: &Chain, options: DigestOptions, job: &JobContext) -> Result<Digest> {
    let shape = DigestShape {
        algorithm: options.algorithm,
        block_size: options.block_size,
        virtual_size: chain.virtual_size(),
    };
    shape.check()?;
    job.progress.begin("digest", shape.virtual_size);
    let zeros = ZeroHashes::new(shape);
    let mut tree = Tree::new(shape, &zeros);
    let mut leaves = options.leaves.map(|_| Leaves::default());
    let (mut block, mut zero_blocks) = (0u64, 0u64);
    blocks::hash(chain, &zeros, shape, (0, shape.blocks()), job, |known| {
        match known {
            Known::Zeros(count) => {
                tree.zeros(count);
                zero_blocks += count;
                block += count;
                leaves.iter_mut().for_each(|leaves| leaves.push_zeros(count));
            }
            Known::Hashes(hashes) => {
                for hash in hashes {
                    tree.leaf(hash);
                    let zero = hash == *zeros.leaf(block);
                    zero_blocks += u64::from(zero);
                    block += 1;
                    match &mut leaves {
                        Some(leaves) if zero => leaves.push_zeros(1),
                        Some(leaves) => leaves.push_hash(hash),
                        None => {}
                    }
                }
            }
        }
        match (&leaves, options.leaves) {
            (Some(leaves), Some(most)) if leaves.memory() > most => Err(Error::Limit {
                limit: "maxMemory",
                allowed: most,
                wanted: leaves.memory(),
            }),
            _ => Ok(()),
        }
    })?;
    job.progress.finish();
    Ok(Digest {
        shape,
        root: tree.root(),
        zero_blocks,
        leaves,
    })
}
