//! One chain used from many threads, on storages that fail or write down what they are asked, and on block devices.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;

use qcow2_engine::storage::testing::{FailingStorage, Operation, RecordingStorage};
use qcow2_engine::storage::{AllowSpecial, OpenMode};
use qcow2_engine::{Chain, ChainOptions, FileStorage, Layer, LayerOptions, Storage};
use qcow2_format::{GuestOffset, HostOffset};
use support::{Folder, Model, Random, assert_same, qemu_img, qemu_io, read_all, storage};

const SIZE: usize = 4 << 20;

/// An image with plain, compressed and zero clusters in many small L2 tables, and its bytes.
fn image(folder: &Folder) -> Vec<u8> {
    qemu_img(
        folder,
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a.qcow2", "4M"],
    );
    let mut model = Model(vec![0; SIZE]);
    let filling = support::Filling {
        cluster: 4096,
        compressed: true,
        zeroes: true,
    };
    let commands = support::random_commands(&mut Random::new(3), &mut model, filling, 150);
    qemu_io(folder, "a.qcow2", &commands);
    model.0
}

fn chain_of(storage: Arc<dyn Storage>, cache_bytes: u64) -> qcow2_engine::Result<Chain> {
    let layer = Layer::open_qcow2(storage, &LayerOptions::default())?;
    let options = ChainOptions {
        cache_bytes,
        ..ChainOptions::default()
    };
    Chain::new(vec![layer], options)
}

#[test]
fn many_threads_read_the_right_bytes_whatever_the_cache_holds() {
    let folder = Folder::new();
    let model = image(&folder);
    for cache_bytes in [0, 4096, 20_000, 1 << 20] {
        let chain = chain_of(storage(&folder.path("a.qcow2")), cache_bytes).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (chain, model) = (&chain, &model);
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    for _ in 0..200 {
                        let at = random.below(SIZE as u64 - 70_000) as usize;
                        let mut bytes = vec![0; 1 + random.below(70_000) as usize];
                        chain.read(GuestOffset(at as u64), &mut bytes).unwrap();
                        assert_same(&bytes, &model[at..at + bytes.len()], "in a thread");
                    }
                });
            }
        });
        assert_eq!(chain.tickets().oldest(), None, "every read has given its ticket back");
    }
}

#[test]
fn a_table_is_loaded_once_though_all_ask_at_once() {
    let folder = Folder::new();
    image(&folder);
    let recorder = Arc::new(RecordingStorage::new(storage(&folder.path("a.qcow2"))));
    let chain = chain_of(recorder.clone(), 1 << 20).unwrap();
    recorder.take();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| chain.resolve(GuestOffset(0), u64::MAX, usize::MAX).unwrap());
        }
    });
    let mut reads: HashMap<HostOffset, u32> = HashMap::new();
    for operation in recorder.take() {
        match operation {
            Operation::Read { offset, .. } => *reads.entry(offset).or_default() += 1,
            other => panic!("resolving only reads: {other:?}"),
        }
    }
    assert_eq!(reads.len(), 2, "4 MiB are two tables of 512 clusters");
    assert!(reads.values().all(|&count| count == 1), "{reads:?}");
}

#[test]
fn whatever_read_fails_is_an_error_and_the_next_try_succeeds() {
    let folder = Folder::new();
    let model = image(&folder);
    let mut failures = 0;
    for fail_at in 0.. {
        let inner = storage(&folder.path("a.qcow2"));
        let failing = Arc::new(FailingStorage::new(inner, fail_at, false, ErrorKind::Other));
        let outcome = chain_of(failing.clone(), 1 << 20).and_then(|chain| {
            let mut bytes = vec![0; SIZE];
            let first = chain.read(GuestOffset(0), &mut bytes);
            if first.is_err() {
                assert_same(&read_all(&chain), &model, "after the failure");
            }
            first.map(|_| bytes)
        });
        match outcome {
            Ok(bytes) => {
                assert_same(
                    &bytes,
                    &model,
                    "without a failure, or with one that was gone when a table was asked for again",
                );
                if failing.calls() <= fail_at {
                    break;
                }
            }
            Err(error) => {
                assert_eq!(error.code(), "ERR_QCOW2_IO");
                failures += 1;
            }
        }
    }
    assert!(failures > 10);
}

/// Whether holes are looked for is found out once, from the refcounts. A device that failed just then made every later map of the disk say that
/// reserved clusters were written.
#[test]
fn a_map_that_met_a_failure_is_right_the_next_time() {
    let folder = Folder::new();
    let options = "preallocation=metadata,cluster_size=4k";
    support::qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "1M"],
    );
    let map = |chain: &Chain| chain.status(GuestOffset(0), u64::MAX, usize::MAX);
    let good = map(&chain_of(storage(&folder.path("a.qcow2")), 1 << 20).unwrap()).unwrap();
    assert!(good.iter().any(|status| status.data && status.zero), "{good:?}");
    let mut failures = 0;
    for fail_at in 0.. {
        let inner = storage(&folder.path("a.qcow2"));
        let failing = Arc::new(FailingStorage::new(inner, fail_at, false, ErrorKind::Other));
        let Ok(chain) = chain_of(failing.clone(), 1 << 20) else {
            continue;
        };
        let first = map(&chain);
        failures += u32::from(first.is_err());
        assert_eq!(map(&chain).unwrap(), good, "after failure {fail_at}");
        if failing.calls() <= fail_at {
            break;
        }
    }
    assert!(failures > 2);
}

#[test]
fn an_image_on_a_block_device_reads_as_in_a_file() {
    let folder = Folder::new();
    let model = image(&folder);
    // A device is longer than its image, and a whole number of sectors.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.path("a.qcow2"))
        .unwrap();
    file.set_len(8 << 20).unwrap();
    let attached = Command::new("losetup")
        .args(["--show", "-f"])
        .arg(folder.path("a.qcow2"))
        .output();
    let Some(output) = attached.ok().filter(|output| output.status.success()) else {
        eprintln!("not tried: losetup gives no loop device here (it needs root)");
        return;
    };
    let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let outcome = std::panic::catch_unwind(|| {
        let path = std::path::Path::new(&device);
        let refused = FileStorage::open(path, OpenMode::default()).unwrap_err();
        assert_eq!(refused.code(), "ERR_QCOW2_NOT_REGULAR");
        let mode = OpenMode {
            special: AllowSpecial::BlockDevices,
            ..OpenMode::default()
        };
        let storage = Arc::new(FileStorage::open(path, mode).unwrap());
        assert!(storage.is_device());
        assert_eq!(storage.length().unwrap(), 8 << 20);
        assert_same(
            &read_all(&chain_of(storage.clone(), 1 << 20).unwrap()),
            &model,
            "qcow2 on a device",
        );
        let raw = Layer::open_raw(storage, &LayerOptions::default()).unwrap();
        let chain = Chain::new(vec![raw], ChainOptions::default()).unwrap();
        assert_same(
            &read_all(&chain),
            &std::fs::read(folder.path("a.qcow2")).unwrap(),
            "raw device",
        );
    });
    let _ = Command::new("losetup").args(["-d", &device]).status();
    outcome.unwrap();
}
