//! Our deflate output stays within a 4 KiB window: said by a decoder that measures it, and by one that has no more.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_codec::{Compression, Encoder};
use support::{inflate::inflate, pieces::inflate_in_pieces, samples};

const WINDOW: usize = 4096;

#[test]
fn no_match_reaches_beyond_4_kib_at_any_level() {
    for level in 1..=9 {
        let mut encoder = Encoder::new(Compression::Deflate, Some(level)).unwrap();
        let mut reach = 0;
        for size in [512, 65_536, 300_000] {
            for (name, input) in samples(size, 10) {
                let compressed = encoder.encode(&input, 2 * size).unwrap().unwrap();
                let inflated = inflate(compressed);
                assert!(inflated.bytes == input, "{level} {name}: other bytes");
                assert!(
                    inflated.max_distance <= WINDOW,
                    "{level} {name}: {}",
                    inflated.max_distance
                );
                reach = reach.max(inflated.max_distance);
            }
        }
        assert!(
            reach > 3000,
            "level {level} reaches back {reach}: the window is hardly used, or not tested"
        );
    }
}

#[test]
fn a_decoder_that_keeps_4_kib_reads_it_in_pieces() {
    for level in [1, 2, 6, 9] {
        let mut encoder = Encoder::new(Compression::Deflate, Some(level)).unwrap();
        for size in [512, 65_536, 300_000] {
            for (name, input) in samples(size, 11) {
                let compressed = encoder.encode(&input, 2 * size).unwrap().unwrap();
                assert!(
                    inflate_in_pieces(compressed).as_ref() == Some(&input),
                    "{level} {size} {name}"
                );
            }
        }
    }
}

/// Without this the test above would prove nothing.
#[test]
fn that_decoder_refuses_streams_with_a_larger_window() {
    let input = samples(65_536, 12)
        .into_iter()
        .find(|(name, _)| name == "period 5000")
        .unwrap()
        .1;
    let compressed = miniz_oxide::deflate::compress_to_vec(&input, 6);
    assert!(inflate(&compressed).max_distance > WINDOW);
    assert_eq!(inflate_in_pieces(&compressed), None);
}
