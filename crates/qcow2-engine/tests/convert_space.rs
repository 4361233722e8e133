//! The space that converted images take: their data and no more, however the writes are made.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use qcow2_engine::{ConvertOptions, CreateOptions, Format, JobContext, Target, convert};
use support::{Folder, Random, assert_same, chain, qemu_img, read_all};

/// Bytes that a file takes once it is on its device.
fn taken(folder: &Folder, name: &str) -> u64 {
    let file = std::fs::File::open(folder.path(name)).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

/// Space is set aside before large writes: what is set aside must be what is written.
#[test]
fn a_new_image_takes_no_more_space_than_its_data_and_qemus() {
    let folder = Folder::new();
    let mut random = Random::new(4);
    let mut bytes = vec![0; 24 << 20];
    let (mut at, mut data) = (0, 0);
    while at < bytes.len() {
        let length = (4096 * (1 + random.below(500) as usize)).min(bytes.len() - at);
        for word in bytes[at..at + length].chunks_exact_mut(8) {
            word.copy_from_slice(&(random.next() | 1).to_be_bytes());
        }
        data += length as u64;
        at += length + 4096 * (1 + random.below(200) as usize);
    }
    // Zeros that are no holes: only reading finds them.
    std::fs::write(folder.path("in.raw"), &bytes).unwrap();
    qemu_img(&folder, &["convert", "-O", "raw", "in.raw", "qemu.raw"]).clear();
    qemu_img(&folder, &["convert", "-O", "qcow2", "in.raw", "qemu.qcow2"]).clear();
    for (format, name, qemu, rest) in [
        (Format::Raw, "out.raw", "qemu.raw", 0),
        (Format::Qcow2, "out.qcow2", "qemu.qcow2", 6 * 65536),
    ] {
        let target = Target::Path {
            path: folder.path(name),
            overwrite: true,
            durable: false,
        };
        let options = ConvertOptions {
            create: CreateOptions {
                format,
                ..CreateOptions::default()
            },
            threads: 2,
            ..ConvertOptions::default()
        };
        convert(
            &[Arc::new(chain(&folder, "in.raw"))],
            &target,
            &options,
            &JobContext::quiet(),
        )
        .unwrap();
        assert_same(&read_all(&chain(&folder, name)), &bytes, name);
        let (ours, theirs) = (taken(&folder, name), taken(&folder, qemu));
        // The file system's own records of where the pieces are count too.
        let slack = 64 << 10;
        assert!(ours <= data + rest + slack, "{name}: {ours} for {data}");
        assert!(ours <= theirs + slack, "{name}: {ours}, qemu-img {theirs}");
    }
}
