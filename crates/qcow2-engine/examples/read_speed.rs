//! How long resolving, the map, small reads and reading all of a chain take: `cargo run --release --example read_speed -- top.qcow2 [below…]`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a tool for whoever works on this crate"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qcow2_engine::storage::OpenMode;
use qcow2_engine::{Chain, ChainOptions, FileStorage, Format, Layer, LayerOptions, NowPiece, Storage};
use qcow2_format::{GuestOffset, HostOffset};

fn main() {
    let layers = std::env::args().skip(1).map(|name| {
        let file = FileStorage::open(Path::new(&name), OpenMode::default()).unwrap();
        let mut prefix = [0; 8];
        let _ = file.read_at(HostOffset(0), &mut prefix).unwrap();
        let open = match Format::probe(&prefix) {
            Format::Qcow2 => Layer::open_qcow2,
            Format::Raw | Format::Luks => Layer::open_raw,
        };
        open(Arc::new(file), &LayerOptions::default()).unwrap()
    });
    let begin = Instant::now();
    let chain = Chain::new(layers.collect(), ChainOptions::default()).unwrap();
    println!("open      {:?}", begin.elapsed());
    for round in 0..2 {
        let begin = Instant::now();
        let runs = chain.resolve(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
        println!("resolve {round} {:?}, {} runs", begin.elapsed(), runs.len());
    }
    let begin = Instant::now();
    let map = chain.status(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
    println!("status    {:?}, {} entries", begin.elapsed(), map.len());
    small_reads(&chain);
    let mut buffer = vec![0; 2 << 20];
    let (begin, mut at) = (Instant::now(), 0);
    for entry in map.iter().filter(|entry| entry.data && !entry.zero) {
        let mut place = entry.start.0;
        let end = place + entry.length;
        while place < end {
            let count = ((end - place) as usize).min(buffer.len());
            at += chain.read(GuestOffset(place), &mut buffer[..count]).unwrap() as u64;
            place += count as u64;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "read      {at} bytes in {seconds:.3} s, {:.0} MB/s",
        at as f64 / seconds / 1e6
    );
}

/// Bytes of a small read.
const SMALL: u64 = 4096;

/// Small reads in several orders, each with an index and decoded clusters that nothing is in yet, as the boundary makes them: what memory knows at
/// once, the rest with a read.
fn small_reads(chain: &Chain) {
    let blocks = chain.virtual_size() / SMALL;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |end: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % end * SMALL
    };
    let within = |megabytes: u64| blocks.min((megabytes << 20) / SMALL);
    let orders: [(&str, Vec<u64>); 4] = [
        ("in a row", (0..within(256)).map(|n| n * SMALL).collect()),
        (
            "every fifth cluster",
            (0..blocks / 80).map(|n| n * 80 * SMALL).take(4000).collect(),
        ),
        ("anywhere in 16 MiB", (0..300_000).map(|_| random(within(16))).collect()),
        ("anywhere", (0..100_000).map(|_| random(blocks)).collect()),
    ];
    let mut buffer = vec![0; SMALL as usize];
    chain.read(GuestOffset(0), &mut vec![0; 256 << 20]).unwrap();
    let order: Vec<u64> = (0..1_000_000).map(|_| random(within(256))).collect();
    let (begin, mut known) = (Instant::now(), 0);
    for &at in &order {
        known += u32::from(chain.now(GuestOffset(at), SMALL as usize).is_some());
    }
    let each = begin.elapsed() / order.len() as u32;
    println!("looking up anywhere in 256 MiB: {each:?} each, {known} known");
    for (name, order) in orders {
        for round in 0..2 {
            let (begin, mut known) = (Instant::now(), 0);
            for &at in &order {
                known += u32::from(read(chain, at, &mut buffer));
            }
            let each = begin.elapsed() / order.len() as u32;
            println!(
                "4 KiB {name} {round}: {each:?} each, {:.1} % at once",
                100.0 * f64::from(known) / order.len() as f64
            );
        }
    }
}

/// Whether memory knew.
fn read(chain: &Chain, at: u64, buffer: &mut [u8]) -> bool {
    let Some(answer) = chain.now(GuestOffset(at), buffer.len()) else {
        chain.read(GuestOffset(at), buffer).unwrap();
        return false;
    };
    let mut filled = 0;
    for piece in answer.pieces() {
        let target = &mut buffer[filled..filled + piece.length()];
        match piece {
            NowPiece::Data { storage, host, .. } => assert_eq!(storage.read_at(*host, target).unwrap(), target.len()),
            NowPiece::Zero { .. } => target.fill(0),
            NowPiece::Encrypted(_) => unreachable!("no key is given here"),
            NowPiece::Decoded(piece) => target.copy_from_slice(piece.bytes()),
        }
        filled += piece.length();
    }
    true
}
