//! How long writes take in the engine, beside `pwrite` to a raw file: `cargo run --profile fast -p qcow2-engine --example write_speed -- FOLDER`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement may stop at the first surprise"
)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qcow2_engine::storage::{AllowSpecial, FileStorage, OpenMode};
use qcow2_engine::{CreateOptions, Disk, DiskOptions, Format, JobContext, Layer, LayerOptions, Target, create};
use qcow2_format::GuestOffset;

const SIZE: u64 = 1 << 30;

fn disk(path: &Path) -> Disk {
    let mode = OpenMode {
        writable: true,
        special: AllowSpecial::No,
    };
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let storage = Arc::new(FileStorage::open(path, mode).unwrap());
    Disk::open(
        vec![Layer::open_qcow2(storage, &options).unwrap()],
        DiskOptions::default(),
    )
    .unwrap()
}

fn each(name: &str, count: u64, mut write: impl FnMut(u64)) -> f64 {
    let begin = Instant::now();
    (0..count).for_each(&mut write);
    let nanoseconds = begin.elapsed().as_secs_f64() * 1e9 / count as f64;
    println!("{name:45} {nanoseconds:10.0} ns each");
    nanoseconds
}

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let folder = Path::new(&folder);
    let (raw, image) = (folder.join("speed.raw"), folder.join("speed.qcow2"));
    let _ = (std::fs::remove_file(&raw), std::fs::remove_file(&image));
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&raw)
        .unwrap();
    let options = CreateOptions {
        size: Some(SIZE),
        format: Format::Qcow2,
        ..CreateOptions::default()
    };
    let target = Target::Path {
        path: image.clone(),
        overwrite: false,
        durable: false,
    };
    create(&target, &options, &JobContext::quiet()).unwrap();
    let writer = disk(&image);
    let (small, large) = (vec![7; 4096], vec![7; 65536]);
    let clusters = SIZE / 65536;
    for _ in 0..2 {
        each("pwrite 64 KiB in order", clusters, |n| {
            file.write_all_at(&large, n * 65536).unwrap()
        });
    }
    each("allocating 64 KiB in order", clusters, |n| {
        writer.write(GuestOffset(n * 65536), &large).unwrap()
    });
    each("64 KiB in place", clusters, |n| {
        writer.write(GuestOffset(n * 65536), &large).unwrap()
    });
    let at = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE / 4096) * 4096;
    for _ in 0..2 {
        each("pwrite 4 KiB at random", 200_000, |n| {
            file.write_all_at(&small, at(n)).unwrap()
        });
        each("4 KiB in place at random", 200_000, |n| {
            writer.write(GuestOffset(at(n)), &small).unwrap()
        });
    }
    let begin = Instant::now();
    writer.flush().unwrap();
    println!("flush of everything: {:?}", begin.elapsed());
    each("flush with nothing dirty", 100_000, |_| writer.flush().unwrap());
    writer.close().unwrap();
    let _ = (std::fs::remove_file(&raw), std::fs::remove_file(&image));
}
