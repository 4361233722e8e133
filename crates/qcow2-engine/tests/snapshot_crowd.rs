//! Snapshot operations while others read and write: nobody ever sees bytes that were not written to that place.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use qcow2_engine::{Chain, Disk, DiskOptions, Layer, LayerOptions, MemoryStorage, NewSnapshot, SnapshotChoice};
use qcow2_format::GuestOffset;
use support::{Folder, Random, qemu_img};

const SECTOR: usize = 512;
const SIZE: usize = 2 << 20;

/// A sector names its place: in every eight bytes its number, with something that differs from write to write above it.
fn fill(bytes: &mut [u8], first: usize, random: &mut Random) {
    for (number, sector) in (first..).zip(bytes.chunks_mut(SECTOR)) {
        let word = (number as u64 | 1 << 20) | random.next() << 24;
        sector
            .chunks_mut(8)
            .for_each(|place| place.copy_from_slice(&word.to_le_bytes()));
    }
}

/// Whether each word of a sector is zero or names the sector. A read that overlaps a write may find some of either.
fn judge(bytes: &[u8], first: usize, who: &str) {
    for (number, sector) in (first..).zip(bytes.chunks(SECTOR)) {
        for word in sector.chunks(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            let named = word & 0xff_ffff;
            assert!(
                word == 0 || named == number as u64 | 1 << 20,
                "{who}: sector {number} holds what belongs to {:#x}",
                named
            );
        }
    }
}

fn read(chain: &Chain, random: &mut Random, who: &str) {
    let first = random.below((SIZE / SECTOR) as u64) as usize;
    let count = (1 + random.below(200) as usize).min(SIZE / SECTOR - first);
    let mut bytes = vec![0; count * SECTOR];
    chain.read(GuestOffset((first * SECTOR) as u64), &mut bytes).unwrap();
    judge(&bytes, first, who);
}

fn write(disk: &Disk, random: &mut Random) {
    let first = random.below((SIZE / SECTOR) as u64) as usize;
    let count = (1 + random.below(60) as usize).min(SIZE / SECTOR - first);
    let at = GuestOffset((first * SECTOR) as u64);
    match random.below(8) {
        0 => disk.discard(at, (count * SECTOR) as u64).unwrap(),
        1 => disk.flush().unwrap(),
        _ => {
            let mut bytes = vec![0; count * SECTOR];
            fill(&mut bytes, first, random);
            disk.write(at, &bytes).unwrap();
        }
    }
}

/// The snapshots in turn, with what they held when they were taken.
fn switch(disk: &Disk, random: &mut Random, known: &mut Vec<(SnapshotChoice, Vec<u8>)>) {
    let pick = random.below(known.len() as u64) as usize;
    match random.below(4) {
        0 | 1 if known.len() < 4 => {
            let name = format!("{}", random.next());
            let new = NewSnapshot {
                name,
                ..NewSnapshot::default()
            };
            let taken = disk.snapshot_create(new).unwrap();
            let which = SnapshotChoice::Id(String::from_utf8(taken.id).unwrap());
            let mut bytes = vec![0; SIZE];
            disk.snapshot_view(&which)
                .unwrap()
                .read(GuestOffset(0), &mut bytes)
                .unwrap();
            judge(&bytes, 0, "a new snapshot");
            known.push((which, bytes));
        }
        2 if !known.is_empty() => disk.snapshot_apply(&known[pick].0).unwrap(),
        3 if !known.is_empty() => {
            let (which, _) = known.remove(pick);
            disk.snapshot_delete(&which).unwrap();
        }
        _ => {}
    }
    for (which, expected) in known {
        let mut bytes = vec![0; SIZE];
        disk.snapshot_view(which)
            .unwrap()
            .read(GuestOffset(0), &mut bytes)
            .unwrap();
        assert!(bytes == *expected, "a snapshot has changed");
    }
}

#[test]
fn readers_and_writers_beside_snapshots_find_nothing_foreign() {
    for (options, seed) in [
        ("cluster_size=4k", 1),
        ("cluster_size=512", 2),
        ("cluster_size=16k,extended_l2=on", 3),
    ] {
        let folder = Folder::new();
        qemu_img(
            &folder,
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                options,
                "a.qcow2",
                &SIZE.to_string(),
            ],
        );
        let memory = Arc::new(MemoryStorage::new(std::fs::read(folder.path("a.qcow2")).unwrap()));
        let writable = LayerOptions {
            writable: true,
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(memory.clone(), &writable).unwrap();
        let disk = Disk::open(vec![layer], DiskOptions::default()).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (disk, over) = (&disk, &over);
            for number in 0..2 {
                scope.spawn(move || {
                    let mut random = Random::new(seed * 100 + number);
                    while !over.load(Ordering::Relaxed) {
                        read(disk.chain(), &mut random, "a reader");
                    }
                });
                scope.spawn(move || {
                    let mut random = Random::new(seed * 100 + 10 + number);
                    while !over.load(Ordering::Relaxed) {
                        write(disk, &mut random);
                    }
                });
            }
            let switcher = scope.spawn(move || {
                let (mut random, mut known) = (Random::new(seed), Vec::new());
                for _ in 0..120 {
                    switch(disk, &mut random, &mut known);
                }
            });
            let outcome = switcher.join();
            over.store(true, Ordering::Relaxed);
            outcome.unwrap();
        });
        disk.close().unwrap();
        drop(disk);
        std::fs::write(folder.path("b.qcow2"), memory.to_vec()).unwrap();
        qemu_img(&folder, &["check", "-q", "b.qcow2"]);
    }
}
