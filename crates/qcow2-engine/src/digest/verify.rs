//! *verify*: a disk against a digest, or against the leaves of a manifest.

use std::ops::Range;

use qcow2_codec::Hash;

use super::blocks::{self, Known};
use super::leaves::{Cursor, Expected, Leaves, bad_manifest};
use super::shape::{DigestShape, ZeroHashes};
use super::{DigestOptions, digest};
use crate::chain::Chain;
use crate::error::{Error, Result};
use crate::progress::JobContext;

/// A digest with its leaves. Nobody vouches for it but whoever vouches for the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestManifest {
    /// What it is a digest of.
    pub shape: DigestShape,
    /// The digest itself.
    pub root: Hash,
    /// The leaves of the whole disk.
    pub leaves: Leaves,
}

/// What a disk is expected to be.
#[derive(Clone, Debug)]
pub enum Expectation {
    /// Only the digest is known: the whole disk is the same, or it is not.
    Root {
        /// The digest.
        root: Hash,
        /// How it was made.
        options: DigestOptions,
    },
    /// Block by block.
    Manifest(DigestManifest),
}

/// What is verified, and how much is told.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// The bytes that are wanted, widened to whole blocks. `None`: all of them.
    pub range: Option<Range<u64>>,
    /// Most ranges that are listed; all are counted.
    pub max_ranges: usize,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Nothing differs of what was wanted.
    pub identical: bool,
    /// Length of the disk in bytes.
    pub virtual_size: u64,
    /// Length of the expected disk in bytes, if that is known.
    pub expected_size: Option<u64>,
    /// Bytes that were compared.
    pub checked: u64,
    /// Blocks that differ. Of a digest without leaves, it is not known which those are, and this is 0.
    pub different_blocks: u64,
    /// Where they are, in bytes: begin and end of neighbours joined.
    pub different: Vec<Range<u64>>,
    /// Ranges that were counted but not listed.
    pub omitted: u64,
}

/// Reads a disk, or a range of it, and says which blocks are not what they should be.
///
/// # Errors
/// [`Error::State`] `MANIFEST` if the leaves do not make the root; [`Error::Invalid`] for a block size that is none, a range that the expected
/// disk does not have, or a range without a manifest; those of resolving and fetching; [`Error::Cancelled`].
pub fn verify(chain: &Chain, expected: &Expectation, options: VerifyOptions, job: &JobContext) -> Result<Verification> {
    match expected {
        Expectation::Manifest(manifest) => against_leaves(chain, manifest, options, job),
        Expectation::Root { .. } if options.range.is_some() => Err(Error::Invalid {
            argument: "start",
            reason: "a range can only be verified with a manifest".to_owned(),
        }),
        Expectation::Root { root, options } => {
            let found = digest(chain, *options, job)?;
            Ok(Verification {
                identical: found.root == *root,
                virtual_size: found.shape.virtual_size,
                checked: found.shape.virtual_size,
                ..Verification::default()
            })
        }
    }
}

fn against_leaves(
    chain: &Chain,
    manifest: &DigestManifest,
    options: VerifyOptions,
    job: &JobContext,
) -> Result<Verification> {
    let shape = manifest.shape;
    shape.check()?;
    let zeros = ZeroHashes::new(shape);
    if manifest.leaves.root(shape, &zeros)? != manifest.root {
        return Err(bad_manifest("the manifest's leaves do not make its root".to_owned()));
    }
    let virtual_size = chain.virtual_size();
    let whole = 0..virtual_size.max(shape.virtual_size);
    let range = match options.range {
        None => whole.clone(),
        Some(range) if range.start <= range.end && range.end <= shape.virtual_size => range,
        Some(range) => {
            return Err(Error::Invalid {
                argument: if range.start > shape.virtual_size {
                    "start"
                } else {
                    "end"
                },
                reason: format!(
                    "{} to {} is no range of a disk of {} bytes",
                    range.start, range.end, shape.virtual_size
                ),
            });
        }
    };
    let blocks = blocks_of(shape, &range);
    // Blocks that both have whole; or all of them, if the two are equally long.
    let common = if virtual_size == shape.virtual_size {
        shape.blocks()
    } else {
        virtual_size.min(shape.virtual_size) / shape.block_size
    };
    let (first, end) = (blocks.start.min(common), blocks.end.min(common));
    let mut found = Findings {
        block_size: shape.block_size,
        end: whole.end,
        most: options.max_ranges,
        ..Findings::default()
    };
    let checked = shape.offset(end) - shape.offset(first);
    job.progress.begin("verify", checked);
    let mut cursor = manifest.leaves.cursor();
    cursor.skip(first);
    let mut block = first;
    if first < end {
        blocks::hash(chain, &zeros, shape, (first, end), job, |known| {
            compare(known, &zeros, &mut cursor, &mut block, &mut found)
        })?;
    }
    found.differ(blocks.start.max(common), blocks.end);
    job.progress.finish();
    Ok(Verification {
        identical: found.blocks == 0,
        virtual_size,
        expected_size: Some(shape.virtual_size),
        checked,
        different_blocks: found.blocks,
        different: found.ranges,
        omitted: found.omitted,
    })
}

/// The blocks that a range touches.
fn blocks_of(shape: DigestShape, range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        // The one block of a disk without bytes is compared all the same.
        let first = range.start / shape.block_size;
        return first..first + u64::from(shape.virtual_size == 0);
    }
    range.start / shape.block_size..range.end.div_ceil(shape.block_size)
}

fn compare(
    known: Known,
    zeros: &ZeroHashes,
    cursor: &mut Cursor<'_>,
    block: &mut u64,
    found: &mut Findings,
) -> Result<()> {
    let mut left = match &known {
        Known::Zeros(count) => *count,
        Known::Hashes(hashes) => hashes.len() as u64,
    };
    let mut hashes = match &known {
        Known::Zeros(_) => [].iter(),
        Known::Hashes(hashes) => hashes.iter(),
    };
    while left > 0 {
        let Some(expected) = cursor.next(left) else {
            return Err(bad_manifest("the manifest ends early".to_owned()));
        };
        let count = match expected {
            Expected::Zeros(count) => {
                if matches!(known, Known::Hashes(_)) {
                    for (index, hash) in (*block..).zip(hashes.by_ref().take(usize::try_from(count).unwrap_or(0))) {
                        found.judge(index, hash == zeros.leaf(index));
                    }
                }
                count
            }
            Expected::Hashes(listed) => {
                for (index, wanted) in (*block..).zip(listed) {
                    let hash = match known {
                        Known::Zeros(_) => Some(zeros.leaf(index)),
                        Known::Hashes(_) => hashes.next(),
                    };
                    found.judge(index, hash == Some(wanted));
                }
                listed.len() as u64
            }
        };
        *block += count;
        left -= count;
    }
    Ok(())
}

/// What differs, so far.
#[derive(Debug, Default)]
struct Findings {
    block_size: u64,
    /// Where the longer disk ends.
    end: u64,
    most: usize,
    blocks: u64,
    /// The last block that differs ends here.
    reached: Option<u64>,
    ranges: Vec<Range<u64>>,
    omitted: u64,
}

impl Findings {
    fn judge(&mut self, block: u64, same: bool) {
        if !same {
            self.differ(block, block + 1);
        }
    }

    /// Blocks from `first` to before `end` differ.
    fn differ(&mut self, first: u64, end: u64) {
        if first >= end {
            return;
        }
        self.blocks += end - first;
        let stop = end.saturating_mul(self.block_size).min(self.end);
        let goes_on = self.reached == Some(first);
        self.reached = Some(end);
        if goes_on {
            // Of one that was omitted, this is the rest.
            if let Some(last) = self.ranges.last_mut().filter(|_| self.omitted == 0) {
                last.end = stop;
            }
        } else if self.ranges.len() < self.most {
            self.ranges.push(first.saturating_mul(self.block_size)..stop);
        } else {
            self.omitted += 1;
        }
    }
}
