//! What a chain knows of its map without asking again: the index and `Chain::now`, against the plain walk through the tables and a flat model.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_engine::{Chain, ChainOptions, NowPiece, Run, RunKind};
use qcow2_format::GuestOffset;
use support::{Filling, Folder, Model, Random, assert_same, chain_with, qemu_img, qemu_io, random_commands};

/// A chain of `depth` images of about `size` bytes, and what it reads as. The top is the last.
fn random_chain(folder: &Folder, random: &mut Random, depth: u64, compressed: bool) -> (String, Model) {
    let mut model = Model(Vec::new());
    let mut below: Option<String> = None;
    for number in 0..depth {
        let size = 512 * (1 + random.below(4000));
        model = model.overlay(size as usize);
        let filling = Filling {
            cluster: 1 << (10 + random.below(7)),
            compressed,
            zeroes: true,
        };
        let mut options = format!("cluster_size={}", filling.cluster);
        if filling.cluster >= 1 << 14 && random.below(2) == 0 {
            options += ",extended_l2=on";
        }
        let (name, size) = (format!("{number}.qcow2"), size.to_string());
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if let Some(below) = &below {
            args.extend(["-b", below, "-F", "qcow2"]);
        }
        args.extend([name.as_str(), size.as_str()]);
        qemu_img(folder, &args);
        let commands = random_commands(random, &mut model, filling, 25);
        qemu_io(folder, &name, &commands);
        below = Some(name);
    }
    (below.unwrap(), model)
}

/// The answer as bytes, or none. A short read is an error: the files here are whole.
fn read_now(chain: &Chain, at: u64, length: usize) -> Option<Vec<u8>> {
    let answer = chain.now(GuestOffset(at), length)?;
    let mut bytes = Vec::new();
    for piece in answer.pieces() {
        let begin = bytes.len();
        bytes.resize(begin + piece.length(), 0);
        match piece {
            // The last cluster of a file may be there in part.
            NowPiece::Data { storage, host, length } => {
                assert!(storage.read_at(*host, &mut bytes[begin..]).unwrap() <= *length);
            }
            NowPiece::Encrypted(_) => unreachable!(),
            NowPiece::Zero { .. } => {}
            NowPiece::Decoded(piece) => bytes[begin..].copy_from_slice(piece.bytes()),
        }
    }
    assert_eq!(bytes.len(), answer.length());
    Some(bytes)
}

#[test]
fn what_memory_answers_is_what_the_disk_holds() {
    let mut answered = 0;
    for seed in 0..12 {
        let (folder, mut random) = (Folder::new(), Random::new(seed));
        let (name, model) = random_chain(&folder, &mut random, 1 + seed % 8, false);
        let size = model.0.len() as u64;
        for cache_bytes in [0, 2000, 20_000, 1 << 20] {
            let options = ChainOptions {
                cache_bytes,
                ..ChainOptions::default()
            };
            let chain = chain_with(&folder, &name, options);
            for _ in 0..200 {
                let (at, length) = (random.below(size + 600), random.below(9000) as usize);
                let expected = model.0.get(at as usize..).unwrap_or_default();
                let expected = &expected[..expected.len().min(length)];
                if let Some(bytes) = read_now(&chain, at, length) {
                    assert_same(&bytes, expected, &format!("seed {seed}, {length} at {at}, now"));
                    answered += u32::from(!bytes.is_empty());
                }
                let mut buffer = vec![0x77; length];
                let count = chain.read(GuestOffset(at), &mut buffer).unwrap();
                assert_same(&buffer[..count], expected, &format!("seed {seed}, {length} at {at}"));
            }
            assert_eq!(chain.tickets().oldest(), None);
        }
    }
    assert!(answered > 2000, "memory answers too seldom: {answered}");
}

#[test]
fn nothing_is_known_before_it_was_read_or_after_it_was_forgotten() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "64M"]);
    qemu_io(&folder, "a.qcow2", &["write -P 7 17M 1M".into()]);
    let chain = chain_with(&folder, "a.qcow2", ChainOptions::default());
    let at = GuestOffset((17 << 20) + 4096);
    for _ in 0..2 {
        assert!(chain.now(at, 4096).is_none());
        assert_eq!(chain.read(at, &mut [0; 4096]).unwrap(), 4096);
        let answer = chain.now(at, 4096).unwrap();
        let pieces: Vec<_> = answer.pieces().collect();
        assert!(
            matches!(pieces[..], [NowPiece::Data { length: 4096, .. }]),
            "{pieces:?}"
        );
        // The ticket is held for as long as the answer is.
        assert!(chain.tickets().oldest().is_some());
        drop(answer);
        assert!(chain.tickets().oldest().is_none());
        // Across a border between regions only once both are known.
        assert!(chain.now(GuestOffset((16 << 20) - 100), 200).is_none());
        chain.forget();
    }
    assert_eq!(chain.now(GuestOffset(64 << 20), 10).unwrap().length(), 0);
    assert_eq!(chain.now(GuestOffset(u64::MAX), usize::MAX).unwrap().length(), 0);
}

/// What `now` answers, as runs: what it does not say (depth, kinds of zeros) is left out.
fn shape(chain: &Chain, run: &Run) -> Option<(u64, usize)> {
    match run.kind {
        RunKind::Data { host } => Some((host.0, chain.layer(run.depth)?.storage().path()?.as_os_str().len())),
        _ => None,
    }
}

#[test]
fn the_index_answers_what_the_tables_say_whoever_asks_and_evicts_meanwhile() {
    for seed in 100..106 {
        let (folder, mut random) = (Folder::new(), Random::new(seed));
        let (name, model) = random_chain(&folder, &mut random, 1 + seed % 8, true);
        let size = model.0.len() as u64;
        for cache_bytes in [3000, 1 << 20] {
            let options = ChainOptions {
                cache_bytes,
                ..ChainOptions::default()
            };
            let chain = chain_with(&folder, &name, options);
            let plain = chain.resolve(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (chain, plain, model) = (&chain, &plain, &model);
                    scope.spawn(move || {
                        let mut random = Random::new(seed * 10 + thread);
                        for round in 0..300 {
                            let at = random.below(size);
                            let mut buffer = [0; 3000];
                            let count = chain.read(GuestOffset(at), &mut buffer).unwrap();
                            assert_same(&buffer[..count], &model.0[at as usize..][..count], "read");
                            if round % 50 == 0 {
                                chain.forget();
                            }
                            let Some(answer) = chain.now(GuestOffset(at), 1) else {
                                continue;
                            };
                            let run = plain.iter().find(|run| run.end().0 > at).unwrap();
                            let expected = shape(chain, run).map(|(host, _)| host + at - run.start.0);
                            let found = answer.pieces().next().and_then(|piece| match piece {
                                NowPiece::Data { host, .. } => Some(host.0),
                                NowPiece::Zero { .. } | NowPiece::Decoded(_) | NowPiece::Encrypted(_) => None,
                            });
                            assert_eq!(found, expected, "seed {seed} at {at}");
                        }
                    });
                }
            });
            assert_eq!(chain.resolve(GuestOffset(0), u64::MAX, usize::MAX).unwrap(), plain);
        }
    }
}

/// Every other cluster of 1 KiB is there: more runs in 16 MiB than a region keeps, and more than are looked up at a time.
#[test]
fn a_map_that_is_finer_than_what_is_kept_reads_right_all_the_same() {
    let folder = Folder::new();
    let mut model = vec![0; 20 << 20];
    for (number, cluster) in model.chunks_mut(1024).enumerate().skip(1).step_by(2) {
        cluster.fill(1 + (number % 255) as u8);
    }
    std::fs::write(folder.path("a.raw"), &model).unwrap();
    let args = [
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-S",
        "1k",
        "-o",
        "cluster_size=1k",
    ];
    qemu_img(&folder, &[&args[..], &["a.raw", "a.qcow2"]].concat());
    let chain = chain_with(&folder, "a.qcow2", ChainOptions::default());
    let runs = chain.resolve(GuestOffset(0), 16 << 20, usize::MAX).unwrap().len();
    assert!(runs > 16_000, "{runs}");
    let mut random = Random::new(1);
    let (mut known, mut unknown) = (0, 0);
    for round in 0..2 {
        for _ in 0..6000 {
            let (at, length) = (random.below(model.len() as u64), 1 + random.below(3000) as usize);
            let expected = &model[at as usize..(at as usize + length).min(model.len())];
            if let Some(bytes) = read_now(&chain, at, length) {
                assert_same(&bytes, expected, "now");
                known += round;
                continue;
            }
            unknown += round;
            let mut buffer = vec![0x77; length];
            let count = chain.read(GuestOffset(at), &mut buffer).unwrap();
            assert_same(&buffer[..count], expected, "read");
        }
    }
    assert!(known > 1000 && unknown > 1000, "{known} known, {unknown} not");
}
