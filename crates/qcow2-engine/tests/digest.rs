//! A digest is what docs/digest.md defines, and the same for every representation of a disk; verify finds exactly the blocks that differ.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::{
    Chain, ChainOptions, Digest, DigestAlgorithm, DigestManifest, DigestOptions, DigestShape, Error, Expectation, Hash,
    JobContext, Layer, LayerOptions, LeafRun, MemoryStorage, Verification, VerifyOptions, digest, verify,
};
use support::{Filling, Folder, Model, Random, chain, qemu_img, qemu_io, random_commands, read_all};

/// The definition, word for word and without a thought for speed.
fn defined(bytes: &[u8], algorithm: DigestAlgorithm, block_size: usize) -> Hash {
    fn top(leaves: &[Hash], algorithm: DigestAlgorithm) -> Hash {
        if let [one] = leaves {
            return *one;
        }
        let mut left = 1;
        while left * 2 < leaves.len() {
            left *= 2;
        }
        let (left, right) = leaves.split_at(left);
        algorithm.hash(&[&top(left, algorithm), &top(right, algorithm), &[1]])
    }
    let blocks: Vec<&[u8]> = if bytes.is_empty() {
        vec![&[]]
    } else {
        bytes.chunks(block_size).collect()
    };
    let leaves: Vec<Hash> = blocks.iter().map(|block| algorithm.hash(&[block, &[0]])).collect();
    algorithm.hash(&[
        &top(&leaves, algorithm),
        &(block_size as u64).to_le_bytes(),
        &(bytes.len() as u64).to_le_bytes(),
        algorithm.name().as_bytes(),
        &[2],
    ])
}

fn memory(bytes: Vec<u8>) -> Chain {
    let layer = Layer::open_raw(Arc::new(MemoryStorage::new(bytes)), &LayerOptions::default()).unwrap();
    Chain::new(vec![layer], ChainOptions::default()).unwrap()
}

fn options(algorithm: DigestAlgorithm, block_size: u64) -> DigestOptions {
    DigestOptions {
        algorithm,
        block_size,
        leaves: Some(1 << 20),
    }
}

fn made(chain: &Chain, block_size: u64) -> Digest {
    digest(
        chain,
        options(DigestAlgorithm::Blake3, block_size),
        &JobContext::quiet(),
    )
    .unwrap()
}

fn manifest(digest: &Digest) -> DigestManifest {
    DigestManifest {
        shape: digest.shape,
        root: digest.root,
        leaves: digest.leaves.clone().unwrap(),
    }
}

fn judged(
    chain: &Chain,
    manifest: &DigestManifest,
    range: Option<std::ops::Range<u64>>,
) -> Result<Verification, Error> {
    let options = VerifyOptions {
        range,
        max_ranges: 1000,
    };
    verify(
        chain,
        &Expectation::Manifest(manifest.clone()),
        options,
        &JobContext::quiet(),
    )
}

#[test]
fn a_digest_is_what_is_defined_of_any_length_with_zeros_anywhere() {
    let mut random = Random::new(4);
    for size in [0, 512, 4096, 4608, 65536, 300 << 10, (1 << 20) + 512, (3 << 20) + 1536] {
        let mut bytes = vec![0; size];
        for _ in 0..size >> 14 {
            let at = random.below(size as u64) as usize;
            let end = (at + random.below(30_000) as usize).min(size);
            let fill = random.next() as u8;
            bytes[at..end].fill(fill);
        }
        let disk = memory(bytes.clone());
        for algorithm in [DigestAlgorithm::Blake3, DigestAlgorithm::Sha256] {
            for block in [4096, 65536, 1 << 20, 2 << 20] {
                let found = digest(&disk, options(algorithm, block), &JobContext::quiet()).unwrap();
                assert_eq!(
                    found.root,
                    defined(&bytes, algorithm, block as usize),
                    "{size} {block} {algorithm:?}"
                );
                let zeros = bytes
                    .chunks(block as usize)
                    .filter(|block| block.iter().all(|&byte| byte == 0))
                    .count();
                assert_eq!(found.zero_blocks, zeros.max(usize::from(size == 0)) as u64);
                let leaves = found.leaves.as_ref().unwrap();
                let blocks: u64 = leaves.runs.iter().map(|run| run.zeros + run.hashes).sum();
                assert_eq!(
                    (blocks, leaves.hashes.len() as u64),
                    (found.shape.blocks(), blocks - found.zero_blocks)
                );
            }
        }
    }
}

#[test]
fn every_representation_of_a_disk_has_one_digest() {
    let folder = Folder::new();
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let size = (5 << 20) + 512 * random.below(64);
        let mut model = Model(vec![0; size as usize]);
        let cluster = 512 << random.below(8);
        qemu_img(
            &folder,
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                &format!("cluster_size={cluster}"),
                "a.qcow2",
                &size.to_string(),
            ],
        );
        let filling = Filling {
            cluster,
            compressed: true,
            zeroes: true,
        };
        qemu_io(
            &folder,
            "a.qcow2",
            &random_commands(&mut random, &mut model, filling, 60),
        );
        qemu_img(&folder, &["snapshot", "-c", "one", "a.qcow2"]);
        qemu_img(&folder, &["convert", "-O", "raw", "a.qcow2", "b.raw"]);
        qemu_img(&folder, &["convert", "-S", "0", "-O", "raw", "a.qcow2", "full.raw"]);
        qemu_img(&folder, &["convert", "-c", "-O", "qcow2", "a.qcow2", "c.qcow2"]);
        qemu_img(
            &folder,
            &[
                "convert",
                "-O",
                "qcow2",
                "-o",
                "preallocation=full,extended_l2=on",
                "a.qcow2",
                "d.qcow2",
            ],
        );
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-b", "c.qcow2", "-F", "qcow2", "e.qcow2"],
        );
        let bytes = read_all(&chain(&folder, "a.qcow2"));
        for block in [4096, 65536, 1 << 20] {
            let root = defined(&bytes, DigestAlgorithm::Blake3, block as usize);
            for name in ["a.qcow2", "b.raw", "full.raw", "c.qcow2", "d.qcow2", "e.qcow2"] {
                let found = made(&chain(&folder, name), block);
                assert_eq!(found.root, root, "{seed} {name} {block}");
                assert_eq!(
                    judged(
                        &chain(&folder, name),
                        &manifest(&made(&memory(bytes.clone()), block)),
                        None
                    )
                    .unwrap()
                    .different,
                    []
                );
            }
        }
    }
}

#[test]
fn an_empty_disk_of_a_pebibyte_costs_nothing() {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "a.qcow2", "1P"],
    );
    let disk = chain(&folder, "a.qcow2");
    let found = made(&disk, 4096);
    assert_eq!(found.shape.blocks(), 1 << 38);
    let leaves = found.leaves.as_ref().unwrap();
    assert_eq!(
        (leaves.runs.as_slice(), leaves.hashes.len()),
        (
            &[LeafRun {
                zeros: 1 << 38,
                hashes: 0
            }][..],
            0
        )
    );
    assert!(judged(&disk, &manifest(&found), None).unwrap().identical);
    // 38 levels of nodes over one leaf.
    let algorithm = DigestAlgorithm::Blake3;
    let top = (0..38).fold(algorithm.hash(&[&[0; 4096], &[0]]), |hash, _| {
        algorithm.hash(&[&hash, &hash, &[1]])
    });
    let parameters = [4096u64.to_le_bytes(), (1u64 << 50).to_le_bytes()].concat();
    assert_eq!(found.root, algorithm.hash(&[&top, &parameters, b"blake3", &[2]]));
}

#[test]
fn verify_finds_exactly_the_blocks_that_differ() {
    let mut random = Random::new(9);
    const BLOCK: u64 = 4096;
    for _ in 0..60 {
        let size = (300 << 10) + 512 * random.below(20);
        let mut bytes = vec![0; size as usize];
        let mut other = bytes.clone();
        for _ in 0..10 {
            let at = random.below(size) as usize;
            let end = (at + random.below(40_000) as usize).min(bytes.len());
            let fill = random.below(3) as u8;
            bytes[at..end].fill(fill);
            other[at..end].fill(fill);
        }
        for _ in 0..random.below(5) {
            let at = random.below(size) as usize;
            other[at] = random.below(3) as u8;
        }
        let start = random.below(size);
        let range = start..start + random.below(size - start);
        let manifest = manifest(&made(&memory(bytes.clone()), BLOCK));
        for wanted in [None, Some(range)] {
            let found = judged(&memory(other.clone()), &manifest, wanted.clone()).unwrap();
            let wanted = wanted.unwrap_or(0..size);
            let differs: Vec<u64> = (0..size.div_ceil(BLOCK))
                .filter(|block| {
                    let (from, to) = (block * BLOCK, (block * BLOCK + BLOCK).min(size));
                    from < wanted.end
                        && to > wanted.start
                        && !wanted.is_empty()
                        && bytes[from as usize..to as usize] != other[from as usize..to as usize]
                })
                .collect();
            let listed: Vec<u64> = found
                .different
                .iter()
                .flat_map(|range| (range.start..range.end).step_by(BLOCK as usize))
                .map(|at| at / BLOCK)
                .collect();
            assert_eq!(listed, differs);
            assert_eq!(
                (found.different_blocks, found.identical, found.omitted),
                (differs.len() as u64, differs.is_empty(), 0)
            );
            assert!(
                found.different.windows(2).all(|pair| pair[0].end < pair[1].start),
                "neighbours are joined"
            );
        }
    }
}

#[test]
fn what_one_disk_alone_has_differs() {
    let short = memory(vec![7; 10 * 4096 + 512]);
    let long = memory(vec![7; 14 * 4096]);
    let of_long = manifest(&made(&long, 4096));
    let found = judged(&short, &of_long, None).unwrap();
    assert_eq!(
        (found.identical, found.different.as_slice()),
        (false, std::slice::from_ref(&(10 * 4096..14 * 4096)))
    );
    assert_eq!(
        (found.virtual_size, found.expected_size),
        (10 * 4096 + 512, Some(14 * 4096))
    );
    assert!(judged(&short, &of_long, Some(100..9 * 4096)).unwrap().identical);
    let found = judged(&long, &manifest(&made(&short, 4096)), None).unwrap();
    assert_eq!(found.different, std::slice::from_ref(&(10 * 4096..14 * 4096)));
    assert_eq!(found.different_blocks, 4);
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let mut bytes = vec![1; 8 * 4096];
    bytes[2 * 4096..5 * 4096].fill(0);
    let disk = memory(bytes);
    let good = manifest(&made(&disk, 4096));
    assert!(judged(&disk, &good, None).unwrap().identical);
    let changes: [fn(&mut DigestManifest); 8] = [
        |bad| bad.root[0] ^= 1,
        |bad| bad.leaves.hashes[1][31] ^= 1,
        |bad| bad.leaves.runs[0].zeros += 1,
        |bad| bad.leaves.runs[1].zeros = u64::MAX,
        |bad| bad.leaves.runs[1].hashes = u64::MAX,
        |bad| bad.leaves.hashes.truncate(1),
        |bad| bad.leaves.runs.clear(),
        |bad| bad.shape.virtual_size = u64::MAX,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        let error = judged(&disk, &bad, None).unwrap_err();
        assert_eq!(error.code(), "ERR_QCOW2_MANIFEST", "{index}: {error}");
    }
    for range in [
        0..8 * 4096 + 1,
        std::ops::Range { start: 5, end: 4 },
        u64::MAX - 1..u64::MAX,
    ] {
        assert_eq!(
            judged(&disk, &good, Some(range)).unwrap_err().code(),
            "ERR_QCOW2_INVALID_ARGUMENT"
        );
    }
    for block_size in [0, 1, 2048, 4097, 12288, 128 << 20, 1 << 63] {
        let mut bad = good.clone();
        bad.shape.block_size = block_size;
        assert_eq!(
            judged(&disk, &bad, None).unwrap_err().code(),
            "ERR_QCOW2_INVALID_ARGUMENT"
        );
        let refused = digest(
            &disk,
            options(DigestAlgorithm::Blake3, block_size),
            &JobContext::quiet(),
        );
        assert_eq!(refused.unwrap_err().code(), "ERR_QCOW2_INVALID_ARGUMENT");
    }
}

#[test]
fn leaves_have_a_limit_and_jobs_end_when_cancelled() {
    let disk = memory((0..40_960u32).flat_map(|n| n.to_le_bytes()).collect());
    let tight = DigestOptions {
        leaves: Some(100),
        ..options(DigestAlgorithm::Sha256, 4096)
    };
    assert_eq!(
        digest(&disk, tight, &JobContext::quiet()).unwrap_err().code(),
        "ERR_QCOW2_LIMIT"
    );
    let job = JobContext::quiet();
    job.cancel.cancel();
    assert!(matches!(
        digest(&disk, DigestOptions::default(), &job),
        Err(Error::Cancelled)
    ));
}

#[test]
fn a_digest_alone_says_same_or_not() {
    let disk = memory(vec![3; 123 << 10]);
    let made = made(&disk, 65536);
    for (root, identical) in [(made.root, true), ([0; 32], false)] {
        let expected = Expectation::Root {
            root,
            options: options(DigestAlgorithm::Blake3, 65536),
        };
        let found = verify(&disk, &expected, VerifyOptions::default(), &JobContext::quiet()).unwrap();
        assert_eq!((found.identical, found.expected_size), (identical, None));
        let range = VerifyOptions {
            range: Some(0..5),
            max_ranges: 1,
        };
        assert!(verify(&disk, &expected, range, &JobContext::quiet()).is_err());
    }
    let shape = DigestShape {
        algorithm: DigestAlgorithm::Sha256,
        ..made.shape
    };
    assert_ne!(shape, made.shape);
}

#[test]
fn only_so_many_ranges_are_listed_and_all_are_counted() {
    let zeros = manifest(&made(&memory(vec![0; 40 * 4096]), 4096));
    let mut bytes = vec![0; 40 * 4096];
    for block in [1, 3, 4, 7, 20, 21, 39] {
        bytes[block * 4096 + 5] = 1;
    }
    let options = VerifyOptions {
        range: None,
        max_ranges: 2,
    };
    let found = verify(
        &memory(bytes),
        &Expectation::Manifest(zeros),
        options,
        &JobContext::quiet(),
    )
    .unwrap();
    assert_eq!(found.different, [4096..8192, 3 * 4096..5 * 4096]);
    assert_eq!((found.different_blocks, found.omitted), (7, 3));
}
