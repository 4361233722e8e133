//! Prints how fast and how small each compression is on the clusters of a file, beside C zlib at level 6 in the window
//! QEMU uses. Equal bytes are asserted before anything is timed.
//!
//! `cargo run --profile fast -p qcow2-codec --example codec_speed -- FILE [CLUSTER_SIZE]`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "an example may stop at the first surprise, and prints"
)]

use std::time::Instant;

use flate2::{Compress, FlushCompress, Status};
use qcow2_codec::{Compression, Decoder, Encoder, is_zero};

/// What one encoder made of the file: per cluster the compressed bytes, or `None` for one that does not shrink.
struct Encoded {
    clusters: Vec<Option<Vec<u8>>>,
    seconds: f64,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("usage: codec_speed FILE [CLUSTER_SIZE]");
    let size: usize = args.next().map_or(65_536, |text| {
        text.parse().expect("the cluster size is a number of bytes")
    });
    let mut data = std::fs::read(path).unwrap();
    data.resize(data.len().next_multiple_of(size), 0);

    let mut zeros = vec![1; data.len()];
    zeros.fill(0);
    let start = Instant::now();
    assert!(is_zero(&zeros), "zeros are zeros");
    let zero_rate = rate(zeros.len(), start);
    let clusters: Vec<&[u8]> = data.chunks(size).filter(|cluster| !is_zero(cluster)).collect();
    let bytes: usize = clusters.iter().map(|cluster| cluster.len()).sum();
    println!(
        "{} clusters with data, {bytes} bytes; zero test over memory {:.0} MB/s",
        clusters.len(),
        zero_rate
    );
    println!(
        "{:<16}{:>14}{:>9}{:>12}{:>12}{:>12}",
        "", "bytes", "ratio", "in MB/s", "out MB/s", "safe MB/s"
    );

    let zlib = zlib_6(&clusters);
    print(
        "zlib 6",
        &zlib,
        bytes,
        &decode_rates(Compression::Deflate, &zlib, &clusters),
    );
    let levels = [
        (Compression::Deflate, &[1, 2, 3, 4, 5, 6][..]),
        (Compression::Zstd, &[-7, 1, 3, 9, 19]),
    ];
    for (compression, levels) in levels {
        for &level in levels {
            measure(compression, Some(level), &clusters, bytes);
        }
    }
    measure(Compression::Lz4, None, &clusters, bytes);
}

fn measure(compression: Compression, level: Option<i32>, clusters: &[&[u8]], bytes: usize) {
    let mut encoder = Encoder::new(compression, level).unwrap();
    let encoded = encode(clusters, |cluster| {
        encoder.encode(cluster, cluster.len()).unwrap().map(<[u8]>::to_vec)
    });
    let name = level.map_or(compression.to_string(), |level| format!("{compression} {level}"));
    print(&name, &encoded, bytes, &decode_rates(compression, &encoded, clusters));
}

fn encode(clusters: &[&[u8]], mut one: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> Encoded {
    let start = Instant::now();
    let clusters = clusters.iter().map(|cluster| one(cluster)).collect();
    Encoded {
        clusters,
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// One state, reset for every cluster: kinder to zlib than QEMU, which makes a new one.
fn zlib_6(clusters: &[&[u8]]) -> Encoded {
    let mut state = Compress::new_with_window_bits(flate2::Compression::new(6), false, 12);
    let mut output = vec![0; clusters.first().map_or(0, |cluster| cluster.len() - 1)];
    encode(clusters, |cluster| {
        state.reset();
        let status = state.compress(cluster, &mut output, FlushCompress::Finish).unwrap();
        let len = usize::try_from(state.total_out()).unwrap();
        (status == Status::StreamEnd).then(|| output.iter().take(len).copied().collect())
    })
}

/// Bytes per second out of the two decoders, after asserting that both give back the clusters.
fn decode_rates(compression: Compression, encoded: &Encoded, clusters: &[&[u8]]) -> [f64; 2] {
    [Decoder::new(), Decoder::memory_safe()].map(|mut decoder| {
        let mut output = vec![0; clusters.first().map_or(0, |cluster| cluster.len())];
        let pairs = || {
            encoded
                .clusters
                .iter()
                .zip(clusters)
                .filter_map(|(some, cluster)| Some((some.as_ref()?, cluster)))
        };
        for (compressed, cluster) in pairs() {
            decoder.decode(compression, compressed, &mut output).unwrap();
            assert!(output == **cluster, "the decoder gives other bytes back");
        }
        let start = Instant::now();
        for (compressed, _) in pairs() {
            decoder.decode(compression, compressed, &mut output).unwrap();
        }
        rate(pairs().count() * output.len(), start)
    })
}

fn print(name: &str, encoded: &Encoded, bytes: usize, [out, safe]: &[f64; 2]) {
    let size = bytes / encoded.clusters.len();
    let stored: usize = encoded
        .clusters
        .iter()
        .map(|cluster| cluster.as_ref().map_or(size, Vec::len))
        .sum();
    let ratio = percent(stored, bytes);
    let input = megabytes(bytes) / encoded.seconds;
    println!("{name:<16}{stored:>14}{ratio:>8.2}%{input:>12.0}{out:>12.0}{safe:>12.0}");
}

fn rate(bytes: usize, start: Instant) -> f64 {
    megabytes(bytes) / start.elapsed().as_secs_f64()
}

#[allow(clippy::cast_precision_loss, reason = "figures for people need no 53 bits")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

#[allow(clippy::cast_precision_loss, reason = "figures for people need no 53 bits")]
fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole as f64
}
