//! Files that are used past the page cache, and disks whose every write is durable.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::storage::{AllowSpecial, CacheMode, FileStorage, OpenMode, Storage};
use qcow2_engine::{CreateOptions, Disk, DiskOptions, JobContext, Layer, LayerOptions, Target, create};
use qcow2_format::{GuestOffset, HostOffset};
use support::{Folder, Random};

const MODES: [CacheMode; 5] = [
    CacheMode::Writeback,
    CacheMode::Writethrough,
    CacheMode::None,
    CacheMode::Directsync,
    CacheMode::Unsafe,
];

fn open(path: &std::path::Path, cache: CacheMode) -> Option<FileStorage> {
    let mode = OpenMode {
        writable: true,
        special: AllowSpecial::No,
    };
    match FileStorage::open(path, mode).unwrap().with_cache(cache) {
        Ok(storage) => Some(storage),
        // Not every file system has it; what it says is compared with qemu-img elsewhere.
        Err(error) if cache.is_direct() && error.code() == "ERR_QCOW2_DIRECT_UNSUPPORTED" => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_mode_reads_and_writes_any_place_and_length_as_a_flat_file_does() {
    let folder = Folder::new();
    for mode in MODES {
        let path = folder.path(&format!("{mode:?}"));
        std::fs::write(&path, []).unwrap();
        let Some(storage) = open(&path, mode) else { continue };
        let mut model: Vec<u8> = Vec::new();
        let mut numbers = Random::new(1);
        for round in 0..300u64 {
            let offset = numbers.below(3 << 20) as usize;
            let longest = [600, 9000, 2_500_000][numbers.below(3) as usize];
            let length = numbers.below(longest) as usize + 1;
            match numbers.below(8) {
                0 => {
                    storage.set_length(offset as u64).unwrap();
                    model.resize(offset, 0);
                }
                1 if offset + length <= model.len() => {
                    if storage.punch(HostOffset(offset as u64), length as u64).unwrap() {
                        model[offset..offset + length].fill(0);
                    }
                }
                2..5 => {
                    let bytes: Vec<u8> = (0..length).map(|at| (at as u64 * 7 + round) as u8 | 1).collect();
                    storage.write_at(HostOffset(offset as u64), &bytes).unwrap();
                    model.resize(model.len().max(offset + length), 0);
                    model[offset..offset + length].copy_from_slice(&bytes);
                }
                _ => {
                    let mut buffer = vec![0xee; length];
                    let count = storage.read_at(HostOffset(offset as u64), &mut buffer).unwrap();
                    let there = model.get(offset..).unwrap_or_default();
                    let there = &there[..there.len().min(length)];
                    assert_eq!(count, there.len(), "{mode:?}, round {round}");
                    assert!(buffer[..count] == *there, "{mode:?}, round {round}");
                }
            }
            assert_eq!(storage.length().unwrap(), model.len() as u64, "{mode:?}, round {round}");
        }
        storage.sync().unwrap();
        assert!(std::fs::read(&path).unwrap() == model, "{mode:?}");
    }
}

#[test]
fn neighbours_in_one_block_do_not_undo_each_other() {
    let folder = Folder::new();
    let path = folder.path("file");
    std::fs::write(&path, vec![0; 64 << 10]).unwrap();
    let Some(storage) = open(&path, CacheMode::None) else {
        return;
    };
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let storage = &storage;
            scope.spawn(move || {
                for round in 0..300u64 {
                    let at = (round * 4 + thread) * 50;
                    storage.write_at(HostOffset(at), &[thread as u8 + 1; 50]).unwrap();
                }
            });
        }
    });
    let bytes = std::fs::read(&path).unwrap();
    for (number, part) in bytes.chunks(50).take(300 * 4).enumerate() {
        assert_eq!(part, [(number % 4) as u8 + 1; 50], "part {number}");
    }
}

#[test]
fn space_that_is_set_aside_is_not_cut_off_by_who_writes_a_part_of_the_last_block() {
    // Who writes a part of the last block makes the file longer by a whole one, and then gives it back the length that it had.
    let folder = Folder::new();
    let path = folder.path("file");
    std::fs::write(&path, [1; 1000]).unwrap();
    let Some(storage) = open(&path, CacheMode::None) else {
        return;
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..400u32 {
                let end = storage.length().unwrap();
                storage.write_at(HostOffset(end - 100), &[round as u8; 50]).unwrap();
            }
        });
        let mut length = 1000;
        while !writer.is_finished() {
            length += 1000;
            if !storage.allocate(HostOffset(length - 1000), 1000).unwrap() {
                break;
            }
            let there = storage.length().unwrap();
            assert!(there >= length, "{there} of {length}");
        }
    });
}

#[test]
fn a_disk_that_writes_through_has_its_metadata_in_the_file_when_a_write_returns() {
    let folder = Folder::new();
    for (mode, there) in [
        (CacheMode::Writethrough, true),
        (CacheMode::Directsync, true),
        (CacheMode::Writeback, false),
    ] {
        let path = folder.path(&format!("{mode:?}.qcow2"));
        let target = Target::Path {
            path: path.clone(),
            overwrite: false,
            durable: false,
        };
        let options = CreateOptions {
            size: Some(1 << 20),
            ..CreateOptions::default()
        };
        create(&target, &options, &JobContext::quiet()).unwrap();
        let Some(storage) = open(&path, mode) else { continue };
        let writable = LayerOptions {
            writable: true,
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(Arc::new(storage), &writable).unwrap();
        let disk = Disk::open(vec![layer], DiskOptions::default()).unwrap();
        disk.write(GuestOffset(70_000), &[7; 1000]).unwrap();
        // Whoever looks now sees what a kill would leave.
        let copy = folder.path("copy.qcow2");
        std::fs::copy(&path, &copy).unwrap();
        disk.poison();
        drop(disk);
        let layer = Layer::open_qcow2(
            Arc::new(open(&copy, CacheMode::None).unwrap_or_else(|| open(&copy, CacheMode::Writeback).unwrap())),
            &LayerOptions::default(),
        )
        .unwrap();
        let chain = qcow2_engine::Chain::new(vec![layer], qcow2_engine::ChainOptions::default()).unwrap();
        let mut buffer = [0; 1000];
        chain.read(GuestOffset(70_000), &mut buffer).unwrap();
        assert_eq!(buffer == [7; 1000], there, "{mode:?}");
    }
}
