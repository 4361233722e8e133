//! What goes in comes out: of our decoders, of decoders that share no code with them, and always as the same bytes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_codec::{CodecError, Compression, Decoder, Encoder, level_range};
use support::{Rng, mixed, samples};

const ALL: [Compression; 3] = [Compression::Deflate, Compression::Zstd, Compression::Lz4];

/// Every level of the compressions that have any, and the default.
fn levels(compression: Compression) -> Vec<Option<i32>> {
    let mut levels = vec![None];
    levels.extend(level_range(compression).into_iter().flatten().map(Some));
    levels
}

/// Decodes with both decoders, behind sector padding that is not zeros, into an output with guards around it.
fn decode_both(compression: Compression, compressed: &[u8], size: usize) -> Vec<u8> {
    let mut padded = compressed.to_vec();
    padded.extend(std::iter::repeat_n(0xEE, 511));
    let [fast, safe] = [Decoder::new(), Decoder::memory_safe()].map(|mut decoder| {
        let mut guarded = vec![0x5A; size + 128];
        decoder
            .decode(compression, &padded, &mut guarded[64..64 + size])
            .unwrap();
        assert!(
            guarded[..64]
                .iter()
                .chain(&guarded[64 + size..])
                .all(|&byte| byte == 0x5A)
        );
        guarded[64..64 + size].to_vec()
    });
    assert!(fast == safe, "the two decoders differ");
    fast
}

#[test]
fn clusters_of_every_size_and_kind_come_back() {
    for compression in ALL {
        let mut encoder = Encoder::new(compression, None).unwrap();
        for size in [512, 1024, 4096, 65_536, 2 << 20] {
            let mut shrunk = 0;
            for (name, input) in samples(size, 1) {
                if let Some(compressed) = encoder.encode(&input, size).unwrap() {
                    assert!(compressed.len() < size);
                    shrunk += 1;
                    assert!(
                        decode_both(compression, compressed, size) == input,
                        "{compression} {size} {name}"
                    );
                }
            }
            assert!(shrunk >= 5, "{compression} {size}: only {shrunk} inputs shrank");
        }
    }
}

#[test]
fn every_level_comes_back() {
    for compression in ALL {
        for level in levels(compression) {
            let mut encoder = Encoder::new(compression, level).unwrap();
            for (name, input) in samples(16_384, 2) {
                if let Some(compressed) = encoder.encode(&input, input.len()).unwrap() {
                    let back = decode_both(compression, compressed, input.len());
                    assert!(back == input, "{compression} {level:?} {name}");
                }
            }
        }
    }
}

#[test]
fn a_thousand_mixed_clusters_come_back_through_foreign_decoders_too() {
    let mut rng = Rng(3);
    for compression in ALL {
        let mut encoder = Encoder::new(compression, None).unwrap();
        for _ in 0..350 {
            let size = 1 + rng.below(9000);
            let input = mixed(&mut rng, size);
            let Some(compressed) = encoder.encode(&input, 2 * size + 64).unwrap() else {
                panic!("{compression} does not fit into twice the size")
            };
            assert!(decode_both(compression, compressed, size) == input);
            if let Some(back) = foreign(compression, compressed, size) {
                assert!(back == input, "{compression}: a foreign decoder reads other bytes");
            }
        }
    }
}

/// miniz_oxide for deflate. and a reader from the book for LZ4. (There is no second zstd worth its time.)
fn foreign(compression: Compression, compressed: &[u8], size: usize) -> Option<Vec<u8>> {
    match compression {
        Compression::Deflate => Some(miniz_oxide::inflate::decompress_to_vec_with_limit(compressed, size).unwrap()),
        Compression::Zstd => None,
        Compression::Lz4 => {
            let len = u32::from_be_bytes(*compressed.first_chunk().unwrap());
            assert_eq!(usize::try_from(len).unwrap(), compressed.len() - 4);
            Some(support::lz4::decode(&compressed[4..]))
        }
    }
}

#[test]
fn foreign_deflate_of_any_window_is_read() {
    for (name, input) in samples(65_536, 4) {
        for level in [1, 6, 9] {
            let compressed = miniz_oxide::deflate::compress_to_vec(&input, level);
            assert!(
                decode_both(Compression::Deflate, &compressed, input.len()) == input,
                "{name} {level}"
            );
        }
    }
}

#[test]
fn a_used_encoder_writes_the_bytes_of_a_new_one() {
    for compression in ALL {
        for level in [None, level_range(compression).map(|range| *range.start())] {
            let mut used = Encoder::new(compression, level).unwrap();
            for round in 0..2 {
                // Sizes on both sides of 64 KiB, so that an encoder with two tables meets both, and clusters that do not
                // shrink, so that it meets a full output.
                for size in [4096, 65_536, 512, 262_144] {
                    for (name, input) in samples(size, 5) {
                        let fresh = Encoder::new(compression, level)
                            .unwrap()
                            .encode(&input, size)
                            .unwrap()
                            .map(<[u8]>::to_vec);
                        let reused = used.encode(&input, size).unwrap();
                        assert!(
                            fresh.as_deref() == reused,
                            "{compression} {level:?} {size} {name} {round}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_limit_decides_whether_but_never_what() {
    for compression in ALL {
        let mut encoder = Encoder::new(compression, None).unwrap();
        for (name, input) in samples(65_536, 6) {
            let whole = encoder
                .encode(&input, usize::from(u16::MAX) * 2)
                .unwrap()
                .unwrap()
                .to_vec();
            for limit in [0, 1, 2, whole.len() / 2, whole.len() - 1, whole.len()] {
                assert!(
                    encoder.encode(&input, limit).unwrap().is_none(),
                    "{compression} {name} {limit}"
                );
            }
            for limit in [whole.len() + 1, whole.len() + 2, whole.len() + 700] {
                assert!(
                    encoder.encode(&input, limit).unwrap() == Some(&whole),
                    "{compression} {name} {limit}"
                );
            }
        }
    }
}

#[test]
fn random_bytes_do_not_shrink() {
    let input = Rng(7).bytes(65_536);
    for compression in ALL {
        assert!(
            Encoder::new(compression, None)
                .unwrap()
                .encode(&input, input.len())
                .unwrap()
                .is_none()
        );
    }
}

#[test]
fn deflate_by_default_is_as_small_as_what_qemu_writes() {
    // C zlib, level 6, 12-bit window; on real data, the program that runs this test.
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut zlib = flate2::Compress::new_with_window_bits(flate2::Compression::new(6), false, 12);
    let mut ours = Encoder::new(Compression::Deflate, None).unwrap();
    let (mut our_bytes, mut their_bytes) = (0, 0);
    for input in program.chunks_exact(65_536).take(40) {
        let mut output = vec![0; 80_000];
        zlib.reset();
        zlib.compress(input, &mut output, flate2::FlushCompress::Finish)
            .unwrap();
        their_bytes += zlib.total_out();
        our_bytes += u64::try_from(ours.encode(input, 80_000).unwrap().unwrap().len()).unwrap();
    }
    println!("{our_bytes} bytes, C zlib {their_bytes}");
    assert!(
        // Which of the two is ahead by a few bytes depends on how the program was compiled.
        our_bytes > 0 && our_bytes <= their_bytes + their_bytes / 1000,
        "{our_bytes} against {their_bytes}"
    );
}

#[test]
fn higher_levels_do_not_lose_to_the_lowest() {
    let input = support::text(&mut Rng(9), 65_536);
    for compression in [Compression::Deflate, Compression::Zstd] {
        let range = level_range(compression).unwrap();
        let len = |level| {
            Encoder::new(compression, Some(level))
                .unwrap()
                .encode(&input, 65_536)
                .unwrap()
                .unwrap()
                .len()
        };
        assert!(len(*range.end()) < len(*range.start()), "{compression}");
    }
}

#[test]
fn levels_outside_the_range_are_refused_by_number() {
    for (compression, level, min, max) in [
        (Compression::Deflate, 0, 1, 9),
        (Compression::Deflate, 10, 1, 9),
        (Compression::Zstd, -8, -7, 22),
        (Compression::Zstd, 23, -7, 22),
    ] {
        assert_eq!(
            Encoder::new(compression, Some(level)).err(),
            Some(CodecError::LevelOutOfRange {
                compression,
                level,
                min,
                max
            })
        );
    }
    let lz4 = Compression::Lz4;
    assert_eq!(
        Encoder::new(lz4, Some(1)).err(),
        Some(CodecError::NoLevels { compression: lz4 })
    );
    assert_eq!(level_range(lz4), None);
}

#[test]
fn the_codecs_can_move_to_a_worker_thread() {
    fn movable<T: Send>() {}
    movable::<Decoder>();
    movable::<Encoder>();
}
