//! What a digest is a digest of: so many blocks of so many bytes, under one hash function.

use qcow2_codec::{DigestAlgorithm, Hash, Hasher};

use crate::error::{Error, Result};

/// Smallest block in bytes.
pub const MIN_BLOCK: u64 = 4 << 10;
/// Largest block in bytes.
pub const MAX_BLOCK: u64 = 64 << 20;

/// The last byte of everything that is hashed says what it is: no block passes for a node, and no node for a root. It stands at the end, so that
/// the bytes of a block keep the alignment that the hash functions are fast at.
const LEAF: &[u8] = &[0];
const NODE: &[u8] = &[1];
const ROOT: &[u8] = &[2];

/// Zeros that are hashed at a time.
const ZEROS: &[u8] = &[0; 64 << 10];

/// The parameters of a digest. Two disks have the same digest if and only if these and their bytes are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestShape {
    /// The hash function.
    pub algorithm: DigestAlgorithm,
    /// Length of a block in bytes, a power of two from 4 KiB to 64 MiB.
    pub block_size: u64,
    /// Length of the disk in bytes. The last block is what there is of it.
    pub virtual_size: u64,
}

impl DigestShape {
    /// # Errors
    /// [`Error::Invalid`] for a block size that is none.
    pub(crate) fn check(&self) -> Result<()> {
        if self.block_size.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&self.block_size) {
            return Ok(());
        }
        Err(Error::Invalid {
            argument: "blockSize",
            reason: format!("it must be a power of two from {MIN_BLOCK} to {MAX_BLOCK}"),
        })
    }

    /// How many blocks there are. A disk without a byte has one, which is empty.
    pub fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size).max(1)
    }

    /// Where a block begins, in bytes; for the number behind the last one: where the disk ends.
    pub(crate) fn offset(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_size).min(self.virtual_size)
    }

    pub(crate) fn leaf(&self, hasher: &mut Hasher) -> Hash {
        hasher.update(LEAF);
        hasher.finish()
    }

    pub(crate) fn node(&self, left: &Hash, right: &Hash) -> Hash {
        self.algorithm.hash(&[left, right, NODE])
    }

    /// The digest itself: the top of the tree, with what it stands for.
    pub(crate) fn root(&self, top: &Hash) -> Hash {
        self.algorithm.hash(&[
            top,
            &self.block_size.to_le_bytes(),
            &self.virtual_size.to_le_bytes(),
            self.algorithm.name().as_bytes(),
            ROOT,
        ])
    }
}

/// The hashes of what is nothing but zeros, each made once.
#[derive(Debug)]
pub(crate) struct ZeroHashes {
    shape: DigestShape,
    /// Of 1, 2, 4, 8 … whole blocks.
    levels: Vec<Hash>,
    /// Of the last block.
    tail: Hash,
}

impl ZeroHashes {
    pub(crate) fn new(shape: DigestShape) -> Self {
        let whole = zero_leaf(shape, shape.block_size);
        let last = shape.virtual_size - shape.offset(shape.blocks() - 1);
        let tail = if last == shape.block_size {
            whole
        } else {
            zero_leaf(shape, last)
        };
        let mut levels = vec![whole];
        let mut hash = whole;
        for _ in 0..shape.blocks().ilog2() {
            hash = shape.node(&hash, &hash);
            levels.push(hash);
        }
        Self { shape, levels, tail }
    }

    /// The hash of block `index`, if it is zeros.
    pub(crate) fn leaf(&self, index: u64) -> &Hash {
        match self.levels.first() {
            Some(whole) if index + 1 < self.shape.blocks() => whole,
            _ => &self.tail,
        }
    }

    /// Whether the last block is hashed as all others are.
    pub(crate) fn tail_is_whole(&self) -> bool {
        self.levels.first() == Some(&self.tail)
    }

    /// The hash of a subtree of 2 to the power of `level` whole blocks.
    pub(crate) fn level(&self, level: u32) -> Option<&Hash> {
        self.levels.get(level as usize)
    }
}

fn zero_leaf(shape: DigestShape, length: u64) -> Hash {
    let mut hasher = Hasher::new(shape.algorithm);
    zeros(&mut hasher, length);
    shape.leaf(&mut hasher)
}

/// Hashes `length` zeros.
pub(crate) fn zeros(hasher: &mut Hasher, mut length: u64) {
    while length > 0 {
        let count = length.min(ZEROS.len() as u64);
        hasher.update(ZEROS.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default());
        length -= count;
    }
}
