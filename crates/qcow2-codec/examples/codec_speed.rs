//! Prints how fast and how small each compression is on the clusters of a file, beside C zlib at level 6 and zlib-rs at
//! level 9 in the window QEMU uses. Equal bytes are asserted before anything is timed.
//!
//! `cargo run --profile fast -p qcow2-codec --example codec_speed -- FILE [CLUSTER_SIZE [COMPRESSION]]`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "an example may stop at the first surprise, and prints"
)]

use std::time::{Duration, Instant};

use flate2::{Compress, FlushCompress, Status};
use qcow2_codec::{Compression, Decoder, Encoder, is_zero};
use zlib_rs::{DeflateConfig, DeflateFlush};

/// Each is timed this often, and its best time printed.
const ROUNDS: usize = 3;

/// This thread's processor time where the system tells it, so that what else runs does not count; else the time of day.
struct Clock {
    cpu: Option<u64>,
    day: Instant,
}

impl Clock {
    fn now() -> Self {
        Self {
            cpu: Self::cpu(),
            day: Instant::now(),
        }
    }

    /// Nanoseconds.
    fn cpu() -> Option<u64> {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        stat.split_whitespace().next()?.parse().ok()
    }

    fn seconds(&self) -> f64 {
        let cpu = self.cpu.zip(Self::cpu());
        cpu.map_or(self.day.elapsed(), |(from, to)| Duration::from_nanos(to - from))
            .as_secs_f64()
    }
}

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
    let start = Clock::now();
    assert!(is_zero(&zeros), "zeros are zeros");
    let zero_rate = rate(zeros.len(), &start);
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
    print_encoded("zlib 6", &zlib, bytes, &clusters);
    print_encoded("zlib-rs 9", &zlib_rs_9(&clusters), bytes, &clusters);
    let levels = [
        (Compression::Deflate, &[1, 6, 9][..]),
        (Compression::Zstd, &[-7, 1, 3, 9, 19]),
    ];
    let only = args.next();
    let wanted = |compression: Compression| only.as_ref().is_none_or(|only| *only == compression.to_string());
    for (compression, levels) in levels.into_iter().filter(|(compression, _)| wanted(*compression)) {
        for &level in levels {
            measure(compression, Some(level), &clusters, bytes);
        }
    }
    if wanted(Compression::Lz4) {
        measure(Compression::Lz4, None, &clusters, bytes);
    }
}

fn measure(compression: Compression, level: Option<i32>, clusters: &[&[u8]], bytes: usize) {
    let mut encoder = Encoder::new(compression, level).unwrap();
    let encoded = encode(clusters, |cluster| {
        encoder.encode(cluster, cluster.len()).unwrap().map(<[u8]>::to_vec)
    });
    let name = level.map_or(compression.to_string(), |level| format!("{compression} {level}"));
    print(&name, &encoded, bytes, &decode_rates(compression, &encoded, clusters));
}

fn print_encoded(name: &str, encoded: &Encoded, bytes: usize, clusters: &[&[u8]]) {
    let rates = decode_rates(Compression::Deflate, encoded, clusters);
    print(name, encoded, bytes, &rates);
}

fn encode(clusters: &[&[u8]], mut one: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> Encoded {
    let mut best = f64::INFINITY;
    let mut encoded = Vec::new();
    for _ in 0..ROUNDS {
        let start = Clock::now();
        encoded = clusters.iter().map(|cluster| one(cluster)).collect();
        best = best.min(start.seconds());
    }
    Encoded {
        clusters: encoded,
        seconds: best,
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

/// The smallest that a crate makes in this window. A state cannot be used twice when its output filled up.
fn zlib_rs_9(clusters: &[&[u8]]) -> Encoded {
    let config = DeflateConfig {
        level: 9,
        window_bits: -12,
        ..DeflateConfig::default()
    };
    let mut output = vec![0; clusters.first().map_or(0, |cluster| cluster.len() - 1)];
    encode(clusters, |cluster| {
        let mut state = zlib_rs::Deflate::new_with_config(config);
        let status = state.compress(cluster, &mut output, DeflateFlush::Finish).unwrap();
        let len = usize::try_from(state.total_out()).unwrap();
        (status == zlib_rs::Status::StreamEnd).then(|| output.iter().take(len).copied().collect())
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
        let mut best = 0_f64;
        for _ in 0..ROUNDS {
            let start = Clock::now();
            for (compressed, _) in pairs() {
                decoder.decode(compression, compressed, &mut output).unwrap();
            }
            best = best.max(rate(pairs().count() * output.len(), &start));
        }
        best
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

fn rate(bytes: usize, start: &Clock) -> f64 {
    megabytes(bytes) / start.seconds()
}

#[allow(clippy::cast_precision_loss, reason = "figures for people need no 53 bits")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

#[allow(clippy::cast_precision_loss, reason = "figures for people need no 53 bits")]
fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole as f64
}
