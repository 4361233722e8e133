//! Digests of disks, and disks against digests.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{
    Digest, DigestAlgorithm, DigestManifest, DigestOptions, DigestShape, Error, Expectation, Hash, LeafRun, Leaves,
    Verification, VerifyOptions, digest as make, verify as judge,
};

use crate::call::accept;
use crate::handles::Handle;
use crate::numbers::{required, unsigned};
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::raw::{Bytes, Words};
use crate::words::unknown;

/// Words of a hash.
const HASH_WORDS: usize = 4;

/// How a digest is made.
#[napi(object, object_to_js = false)]
pub struct DigestSpec {
    /// `blake3` or `sha256`.
    pub algorithm: String,
    /// Length of a block in bytes.
    pub block_size: u32,
    /// Keep the leaves, in at most so many bytes.
    pub leaves: Option<BigInt>,
}

/// A digest. Hashes come as words in memory order: their bytes are those of the array's buffer.
#[napi(object, object_from_js = false)]
pub struct DigestFacts {
    /// Length of the disk in bytes.
    pub virtual_size: BigInt,
    /// The digest itself.
    #[napi(ts_type = "BigUint64Array")]
    pub root: Words,
    /// How many blocks there are.
    pub blocks: BigInt,
    /// How many of them are zeros.
    pub zero_blocks: BigInt,
    /// Of each run of leaves, how many blocks are zeros and how many hashes follow.
    #[napi(ts_type = "BigUint64Array")]
    pub runs: Option<Words>,
    /// Those hashes.
    #[napi(ts_type = "BigUint64Array")]
    pub hashes: Option<Words>,
}

/// What a disk is verified against, beside the bytes.
#[napi(object, object_to_js = false)]
pub struct VerifySpec {
    /// `blake3` or `sha256`.
    pub algorithm: String,
    /// Length of a block in bytes.
    pub block_size: u32,
    /// Length of the expected disk in bytes, if there are leaves.
    pub virtual_size: Option<BigInt>,
    /// First byte that is wanted; all are, if there is none.
    pub start: Option<BigInt>,
    /// The byte behind the last that is wanted.
    pub end: Option<BigInt>,
    /// Most ranges that are listed.
    pub max_ranges: u32,
}

/// The answer of a verification.
#[napi(object, object_from_js = false)]
pub struct VerifyFacts {
    /// Nothing differs of what was wanted.
    pub identical: bool,
    /// Length of the disk in bytes.
    pub virtual_size: BigInt,
    /// Bytes that were compared.
    pub checked: BigInt,
    /// Blocks that differ.
    pub different_blocks: BigInt,
    /// Where they are: begin and end of each range, in bytes.
    #[napi(ts_type = "BigUint64Array")]
    pub different: Words,
    /// Ranges that are not listed.
    pub omitted: BigInt,
}

/// Makes the digest of a disk, whose handle stays open. Reports progress; completes with the digest.
#[napi(catch_unwind)]
pub fn digest(env: Env, id: CallId, chain: Handle, options: DigestSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let chain = call.chain(chain)?;
        let options = DigestOptions {
            algorithm: algorithm_named(&options.algorithm)?,
            block_size: options.block_size.into(),
            leaves: unsigned("leaves", options.leaves.as_ref())?,
        };
        call.run(Lane::Long, move |job| {
            let made = make(&chain, options, job)?;
            // What the job held is let go before its end is told.
            drop(chain);
            let facts = facts(made);
            Outcome::value(move |_, _, values| values.add(facts))
        })
    })
}

/// Verifies a disk, whose handle stays open, against a root, or against the leaves `runs` and `hashes` (as [`DigestFacts`] has them) that must
/// make that root. Reports progress; completes with the answer.
#[napi(catch_unwind)]
pub fn verify(
    env: Env,
    id: CallId,
    chain: Handle,
    #[napi(ts_arg_type = "Uint8Array")] root: Bytes,
    #[napi(ts_arg_type = "Uint8Array")] runs: Bytes,
    #[napi(ts_arg_type = "Uint8Array")] hashes: Bytes,
    options: VerifySpec,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let chain = call.chain(chain)?;
        let algorithm = algorithm_named(&options.algorithm)?;
        let block_size = options.block_size.into();
        let (root, none) = root.0.as_chunks();
        let Some(&root) = root.first().filter(|_| none.is_empty() && root.len() == 1) else {
            return Err(malformed("root"));
        };
        let size = unsigned("virtualSize", options.virtual_size.as_ref())?;
        let range = match (&options.start, &options.end) {
            (Some(start), Some(end)) => Some(required("start", start)?..required("end", end)?),
            (None, None) => None,
            _ => return Err(malformed("start")),
        };
        let max_ranges = options.max_ranges as usize;
        call.run(Lane::Long, move |job| {
            let expected = match size {
                Some(virtual_size) => Expectation::Manifest(DigestManifest {
                    shape: DigestShape {
                        algorithm,
                        block_size,
                        virtual_size,
                    },
                    root,
                    leaves: leaves(&runs.0, &hashes.0)?,
                }),
                None => Expectation::Root {
                    root,
                    options: DigestOptions {
                        algorithm,
                        block_size,
                        leaves: None,
                    },
                },
            };
            drop((runs, hashes));
            let found = judge(&chain, &expected, VerifyOptions { range, max_ranges }, job)?;
            drop((chain, expected));
            let facts = answer(found);
            Outcome::value(move |_, _, values| values.add(facts))
        })
    })
}

fn algorithm_named(word: &str) -> Result<DigestAlgorithm, Error> {
    DigestAlgorithm::named(word).ok_or_else(|| unknown("algorithm", word))
}

fn malformed(argument: &'static str) -> Error {
    Error::Invalid {
        argument,
        reason: "not what it should be".to_owned(),
    }
}

fn leaves(runs: &[u8], hashes: &[u8]) -> Result<Leaves, Error> {
    let (words, rest) = runs.as_chunks::<8>();
    let (pairs, odd) = words.as_chunks::<2>();
    let (hashes, partial) = hashes.as_chunks();
    if !rest.is_empty() || !odd.is_empty() || !partial.is_empty() {
        return Err(malformed("leaves"));
    }
    let run = |[zeros, hashes]: &[[u8; 8]; 2]| LeafRun {
        zeros: u64::from_ne_bytes(*zeros),
        hashes: u64::from_ne_bytes(*hashes),
    };
    Ok(Leaves {
        runs: pairs.iter().map(run).collect(),
        hashes: hashes.to_vec(),
    })
}

fn facts(made: Digest) -> DigestFacts {
    let (runs, hashes) = made.leaves.map(|leaves| (leaves.runs, leaves.hashes)).unzip();
    DigestFacts {
        virtual_size: made.shape.virtual_size.into(),
        root: words(&[made.root]),
        blocks: made.shape.blocks().into(),
        zero_blocks: made.zero_blocks.into(),
        runs: runs.map(|runs| Words(runs.iter().flat_map(|run| [run.zeros, run.hashes]).collect())),
        hashes: hashes.map(|hashes| words(&hashes)),
    }
}

fn words(hashes: &[Hash]) -> Words {
    let mut words = Vec::with_capacity(hashes.len().saturating_mul(HASH_WORDS));
    for hash in hashes {
        let (parts, _) = hash.as_chunks();
        words.extend(parts.iter().map(|part| u64::from_ne_bytes(*part)));
    }
    Words(words)
}

fn answer(found: Verification) -> VerifyFacts {
    VerifyFacts {
        identical: found.identical,
        virtual_size: found.virtual_size.into(),
        checked: found.checked.into(),
        different_blocks: found.different_blocks.into(),
        different: Words(
            found
                .different
                .iter()
                .flat_map(|range| [range.start, range.end])
                .collect(),
        ),
        omitted: found.omitted.into(),
    }
}
