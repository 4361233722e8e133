//! Snapshot operations on storages that record what is asked of them, or fail at every call in turn: the order of barriers, and what a failure leaves.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;

use qcow2_engine::storage::testing::{FailingStorage, Operation, RecordingStorage};
use qcow2_engine::{
    Chain, ChainOptions, Disk, DiskOptions, Error, Layer, LayerOptions, MemoryStorage, NewSnapshot, ResizeOptions,
    SnapshotChoice, Storage,
};
use qcow2_format::{GuestOffset, HostOffset};
use support::{Folder, Random, assert_same, qemu_img};

const SIZE: usize = 256 << 10;

fn open(storage: Arc<dyn Storage>) -> Result<Disk, Error> {
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    Disk::open(vec![Layer::open_qcow2(storage, &options)?], DiskOptions::default())
}

fn fill(bytes: &mut [u8], random: &mut Random) {
    for chunk in bytes.chunks_mut(512) {
        chunk.fill(random.next().to_le_bytes()[3] | 1);
    }
}

/// An image with a disk that differs from both its snapshots, shares something with each, and has another size than the second.
struct Image {
    bytes: Vec<u8>,
    disk: Vec<u8>,
    one: Vec<u8>,
    two: Vec<u8>,
}

fn image(options: &str) -> Image {
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
    let disk = open(memory.clone()).unwrap();
    let mut random = Random::new(17);
    let mut model = vec![0; SIZE];
    let mut write = |model: &mut Vec<u8>, begin: usize, length: usize| {
        fill(&mut model[begin..begin + length], &mut random);
        disk.write(GuestOffset(begin as u64), &model[begin..begin + length])
            .unwrap();
    };
    let take = |name: &str| {
        let name = name.into();
        disk.snapshot_create(NewSnapshot {
            name,
            ..NewSnapshot::default()
        })
        .unwrap();
    };
    write(&mut model, 0, 150_000);
    take("one");
    let one = model.clone();
    write(&mut model, 40_000, 30_000);
    write(&mut model, 200_000, 9_000);
    if !options.contains("0.10") {
        disk.resize(SIZE as u64 + 70_144, ResizeOptions::default()).unwrap();
        model.resize(SIZE + 70_144, 0);
        write(&mut model, SIZE, 10_000);
    }
    take("two");
    let two = model.clone();
    if !options.contains("0.10") {
        let shrink = true;
        let options = ResizeOptions {
            shrink,
            ..ResizeOptions::default()
        };
        disk.resize(SIZE as u64, options).unwrap();
        model.truncate(SIZE);
    }
    write(&mut model, 100_000, 50_000);
    disk.close().unwrap();
    drop(disk);
    let bytes = memory.to_vec();
    Image {
        bytes,
        disk: model,
        one,
        two,
    }
}

type Act = fn(&Disk) -> Result<(), Error>;

fn name(name: &str) -> SnapshotChoice {
    SnapshotChoice::Name(name.into())
}

/// The operations.
const ACTS: &[(&str, Act)] = &[
    ("create", |disk| {
        let name = "three".into();
        disk.snapshot_create(NewSnapshot {
            name,
            ..NewSnapshot::default()
        })
        .map(drop)
    }),
    ("apply", |disk| disk.snapshot_apply(&name("one"))),
    ("apply another size", |disk| disk.snapshot_apply(&name("two"))),
    ("delete", |disk| disk.snapshot_delete(&name("one"))),
    ("delete the last", |disk| disk.snapshot_delete(&name("two"))),
    ("rename", |disk| disk.snapshot_rename(&name("two"), "other")),
];

fn snapshots(disk: &Disk) -> Vec<String> {
    let names = disk.snapshots().into_iter().map(|s| String::from_utf8(s.name).unwrap());
    names.collect()
}

fn read(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![1; chain.virtual_size() as usize];
    chain.read(GuestOffset(0), &mut bytes).unwrap();
    bytes
}

/// What a header's first sector says of snapshots, of the L1 table and of the size.
fn switches(sector: &[u8]) -> Vec<u8> {
    [&sector[24..32], &sector[36..48], &sector[60..72]].concat()
}

#[test]
fn every_switch_of_the_header_stands_alone_between_two_barriers() {
    for options in ["cluster_size=4k", "cluster_size=512", "compat=0.10,cluster_size=4k"] {
        let image = image(options);
        for (what, act) in ACTS {
            let memory = Arc::new(MemoryStorage::new(image.bytes.clone()));
            let recorder = Arc::new(RecordingStorage::new(memory));
            let disk = open(recorder.clone()).unwrap();
            disk.write(GuestOffset(9_000), &[7; 5_000]).unwrap();
            // What the write unlinked is given back with the second flush.
            disk.flush().unwrap();
            disk.flush().unwrap();
            let mut before = image.bytes[..512].to_vec();
            for operation in recorder.take() {
                if let Operation::Write {
                    offset: HostOffset(0),
                    bytes,
                } = operation
                {
                    before.copy_from_slice(&bytes[..512]);
                }
            }
            act(&disk).unwrap();
            let log = recorder.take();
            let changing = |operation: &&Operation| !matches!(operation, Operation::Read { .. });
            let log: Vec<_> = log.iter().filter(changing).collect();
            let mut switched = 0;
            for (at, operation) in log.iter().enumerate() {
                let Operation::Write {
                    offset: HostOffset(0),
                    bytes,
                } = operation
                else {
                    continue;
                };
                assert_eq!(bytes.len(), 512, "{what}: one sector");
                assert!(
                    matches!(log[at - 1], Operation::Sync),
                    "{what} ({options}): written before the switch"
                );
                assert!(
                    matches!(log[at + 1], Operation::Sync),
                    "{what} ({options}): written with the switch"
                );
                switched += u32::from(switches(bytes) != switches(&before));
                before.copy_from_slice(bytes);
            }
            let syncs = log
                .iter()
                .filter(|operation| matches!(operation, Operation::Sync))
                .count();
            // The mark takes two of its own, but where a switch sets it or takes it away.
            let expected = match (what.split(' ').next().unwrap(), options.contains("0.10")) {
                ("apply", false) => 6,
                ("rename", _) => 2,
                (_, false) | ("apply", true) => 4,
                (_, true) => 3,
            };
            assert_eq!(syncs, expected, "{what} ({options}): barriers");
            assert_eq!(switched, 1, "{what} ({options}): the header switches once");
            assert_eq!(before[79] & 1, 0, "{what}: the mark is gone");
        }
    }
}

/// What the disk and the snapshots may hold: by name, and several for the disk.
fn judge_contents(image: &Image, chain: impl Fn(Option<&str>) -> Chain, names: &[String], what: &str) {
    let disk = read(&chain(None));
    assert!(
        [&image.disk, &image.one, &image.two].contains(&&disk),
        "{what}: the disk holds what it never held"
    );
    for name in names {
        let expected = match name.as_str() {
            "one" => &image.one,
            "two" | "other" => &image.two,
            "three" => &image.disk,
            _ => panic!("{what}: a snapshot {name}"),
        };
        assert_same(&read(&chain(Some(name))), expected, &format!("{what}: snapshot {name}"));
    }
}

/// What is on disk after a failure: repaired if it says that it has to be, it is right, and stays so when the disk is overwritten.
fn judge_file(image: &Image, bytes: Vec<u8>, version2: bool, what: &str) {
    let dirty = bytes[79] & 1 != 0 && !version2;
    let folder = Folder::new();
    let path = folder.path("a.qcow2");
    std::fs::write(&path, bytes).unwrap();
    let check = |args: &[&str]| {
        let output = Command::new("qemu-img")
            .arg("check")
            .args(args)
            .arg(&path)
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    if dirty {
        check(&["-q", "-r", "all"]);
    }
    let (code, text) = check(&[]);
    // 3: leaks. In version 2, COPIED flags may be missing.
    let copied_only = || {
        text.lines()
            .filter(|line| line.starts_with("ERROR"))
            .all(|line| line.contains("OFLAG_COPIED"))
    };
    assert!(
        code == 0 || code == 3 || (version2 && code == 2 && copied_only()),
        "{what}: {code} {text}"
    );

    let memory = Arc::new(MemoryStorage::new(std::fs::read(&path).unwrap()));
    let disk = open(memory.clone()).unwrap();
    let names = snapshots(&disk);
    let view = |snapshot: Option<&str>| {
        // The disk is open for writing meanwhile.
        let options = LayerOptions {
            force_share: true,
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(memory.clone(), &options).unwrap();
        let snapshot = snapshot.map(str::to_owned);
        Chain::new(
            vec![layer],
            ChainOptions {
                snapshot,
                ..ChainOptions::default()
            },
        )
        .unwrap()
    };
    judge_contents(image, view, &names, what);
    let size = disk.chain().virtual_size() as usize;
    disk.write(GuestOffset(0), &vec![0xee; size]).unwrap();
    disk.close().unwrap();
    drop(disk);
    for name in &names {
        let expected = match name.as_str() {
            "one" => &image.one,
            "three" => &image.disk,
            _ => &image.two,
        };
        assert_same(
            &read(&view(Some(name))),
            expected,
            &format!("{what}: {name} after writing"),
        );
    }
}

fn fail_everywhere(options: &str, forever: bool) {
    let image = image(options);
    let version2 = options.contains("0.10");
    for (what, act) in ACTS {
        let calls = |fail_at: u64| {
            let memory = Arc::new(MemoryStorage::new(image.bytes.clone()));
            let storage = Arc::new(FailingStorage::new(
                memory.clone(),
                fail_at,
                forever,
                ErrorKind::StorageFull,
            ));
            (memory, storage)
        };
        let (_, storage) = calls(u64::MAX);
        let disk = open(storage.clone()).unwrap();
        let first = storage.calls();
        act(&disk).unwrap();
        let end = storage.calls();
        drop(disk);
        for fail_at in first..end {
            let label = format!("{what} ({options}, call {} of {})", fail_at - first, end - first);
            let (memory, storage) = calls(fail_at);
            let disk = open(storage.clone()).unwrap();
            let outcome = act(&disk);
            assert!(storage.calls() > fail_at, "{label}: nothing failed");
            let poisoned = outcome.as_ref().err().is_some_and(|_| disk.flush().is_err());
            if !forever {
                let names = snapshots(&disk);
                let view = |snapshot: Option<&str>| match snapshot {
                    Some(wanted) => disk.snapshot_view(&name(wanted)).unwrap(),
                    None => Chain::new(
                        vec![
                            Layer::open_qcow2(Arc::new(MemoryStorage::new(memory.to_vec())), &LayerOptions::default())
                                .unwrap(),
                        ],
                        ChainOptions::default(),
                    )
                    .unwrap(),
                };
                if !poisoned {
                    judge_contents(&image, view, &names, &label);
                    let now = read(disk.chain());
                    if fail_at % 2 == 0
                        && now == image.disk
                        && !what.starts_with("apply")
                        && snapshots(&disk) == ["one", "two"]
                    {
                        act(&disk).unwrap_or_else(|error| panic!("{label}: not a second time: {error}"));
                    }
                    disk.close().unwrap();
                }
            }
            drop(disk);
            judge_file(&image, memory.to_vec(), version2, &label);
        }
    }
}

#[test]
fn a_call_that_fails_leaves_the_disk_and_its_snapshots_as_they_were_or_as_they_shall_be() {
    fail_everywhere("cluster_size=4k", false);
    fail_everywhere("compat=0.10,cluster_size=4k", false);
}

#[test]
fn a_device_that_fails_for_good_leaves_the_disk_and_its_snapshots_as_they_were_or_as_they_shall_be() {
    fail_everywhere("cluster_size=4k", true);
    fail_everywhere("compat=0.10,cluster_size=4k", true);
}
