//! How long resolving, the map and reading a chain take: `cargo run --release --example read_speed -- top.qcow2 [below…]`.
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
use qcow2_engine::{Chain, ChainOptions, FileStorage, Format, Layer, LayerOptions, Storage};
use qcow2_format::{GuestOffset, HostOffset};

fn main() {
    let layers = std::env::args().skip(1).map(|name| {
        let file = FileStorage::open(Path::new(&name), OpenMode::default()).unwrap();
        let mut prefix = [0; 8];
        let _ = file.read_at(HostOffset(0), &mut prefix).unwrap();
        let open = match Format::probe(&prefix) {
            Format::Qcow2 => Layer::open_qcow2,
            Format::Raw => Layer::open_raw,
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
