//! Small reads of compressed clusters: each is decoded once, those that come next are decoded ahead, and what fails stays an error for everybody.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use qcow2_engine::storage::Extent;
use qcow2_engine::storage::testing::{FailingStorage, Operation, RecordingStorage};
use qcow2_engine::{Chain, ChainOptions, Layer, LayerOptions, MemoryStorage, NowPiece, RunKind, Storage};
use qcow2_format::{GuestOffset, HostOffset};
use support::{Folder, Random, assert_same, qemu_img};

const CLUSTER: usize = 4096;
const CLUSTERS: usize = 300;
/// The disk ends inside its last cluster.
const SIZE: usize = CLUSTERS * CLUSTER - 1024;

/// The bytes of an image of compressed clusters, each different, and of its disk.
fn image(kind: &str) -> (Vec<u8>, Vec<u8>) {
    let folder = Folder::new();
    let mut random = Random::new(11);
    let mut model = Vec::new();
    while model.len() < SIZE {
        model.extend(
            format!("{} {:x} ", model.len(), random.below(1 << 24))
                .repeat(3)
                .bytes(),
        );
    }
    model.truncate(SIZE);
    std::fs::write(folder.path("a.raw"), &model).unwrap();
    let options = format!("cluster_size={CLUSTER},compression_type={kind}");
    let args = ["convert", "-c", "-O", "qcow2", "-o", &options, "a.raw", "a.qcow2"];
    qemu_img(&folder, &args);
    (std::fs::read(folder.path("a.qcow2")).unwrap(), model)
}

fn chain_of(storage: Arc<dyn Storage>, cache_bytes: u64) -> Chain {
    let layer = Layer::open_qcow2(storage, &LayerOptions::default()).unwrap();
    let options = ChainOptions {
        cache_bytes,
        ..ChainOptions::default()
    };
    Chain::new(vec![layer], options).unwrap()
}

fn in_memory(bytes: &[u8]) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new(bytes.to_vec()))
}

/// By what memory knows or, if it knows nothing, by a read.
fn read(chain: &Chain, at: usize, length: usize) -> qcow2_engine::Result<Vec<u8>> {
    let mut bytes = vec![0x77; length];
    let Some(answer) = chain.now(GuestOffset(at as u64), length) else {
        let count = chain.read(GuestOffset(at as u64), &mut bytes)?;
        bytes.truncate(count);
        return Ok(bytes);
    };
    bytes.clear();
    for piece in answer.pieces() {
        match piece {
            NowPiece::Decoded(piece) => bytes.extend(piece.bytes()),
            other => bytes.resize(bytes.len() + other.length(), 0),
        }
    }
    assert_eq!(bytes.len(), answer.length());
    Ok(bytes)
}

fn expected(model: &[u8], at: usize, length: usize) -> &[u8] {
    &model[at.min(model.len())..(at + length).min(model.len())]
}

/// Where the compressed clusters stand in the file.
fn places(chain: &Chain) -> Vec<HostOffset> {
    let runs = chain.resolve(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
    let place = |kind| match kind {
        RunKind::Compressed { descriptor, .. } => Some(descriptor.offset),
        _ => None,
    };
    let places: Vec<_> = runs.iter().filter_map(|run| place(run.kind)).collect();
    assert_eq!(places.len(), CLUSTERS);
    places
}

#[test]
fn readers_in_any_order_get_the_right_bytes_whatever_is_kept() {
    for kind in ["zlib", "zstd"] {
        let (image, model) = image(kind);
        for cache_bytes in [0, 20_000, 100_000, 64 << 20] {
            let chain = chain_of(in_memory(&image), cache_bytes);
            std::thread::scope(|scope| {
                for thread in 0..6u64 {
                    let (chain, model) = (&chain, &model);
                    scope.spawn(move || {
                        let mut random = Random::new(thread);
                        let mut at = 0;
                        for round in 0..1500 {
                            if round % 500 == 499 {
                                chain.forget();
                            }
                            let length = [512, 1000, 4096, 20_000][random.below(4) as usize];
                            at = match thread % 3 {
                                0 => at + 512,
                                1 => at + 5 * CLUSTER,
                                _ => random.below(SIZE as u64) as usize,
                            } % SIZE;
                            let bytes = read(chain, at, length).unwrap();
                            assert_same(&bytes, expected(model, at, length), &format!("{length} at {at}"));
                        }
                    });
                }
            });
            assert_eq!(chain.tickets().oldest(), None);
        }
    }
}

#[test]
fn a_cluster_is_read_and_decoded_once_whoever_asks() {
    let (image, model) = image("zlib");
    let recorder = Arc::new(RecordingStorage::new(in_memory(&image)));
    let chain = chain_of(recorder.clone(), 64 << 20);
    recorder.take();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for at in (0..SIZE).step_by(512) {
                    assert_same(&read(&chain, at, 512).unwrap(), expected(&model, at, 512), "a part");
                }
            });
        }
    });
    drop(chain);
    let mut reads: HashMap<HostOffset, u32> = HashMap::new();
    for operation in recorder.take() {
        if let Operation::Read { offset, .. } = operation {
            *reads.entry(offset).or_default() += 1;
        }
    }
    assert!(reads.len() >= CLUSTERS, "{}", reads.len());
    assert!(reads.values().all(|&count| count == 1), "{reads:?}");
}

#[test]
fn what_comes_next_is_decoded_before_it_is_asked_for_and_nothing_behind_the_end() {
    let (image, model) = image("zlib");
    for step in [1, 5] {
        let chain = chain_of(in_memory(&image), 64 << 20);
        // Looked at as a whole by the first read: the disk is smaller than what is looked up at a time.
        let mut steps = (0..SIZE).step_by(step * CLUSTER);
        for at in steps.by_ref().take(10) {
            assert_same(&read(&chain, at, 100).unwrap(), expected(&model, at, 100), "the first");
        }
        let next = steps.next().unwrap();
        let mut patience = 1000;
        while chain.now(GuestOffset(next as u64), 100).is_none() {
            patience -= 1;
            assert!(patience > 0, "nobody decodes ahead");
            std::thread::sleep(Duration::from_millis(10));
        }
        for at in (next..SIZE).step_by(step * CLUSTER) {
            assert_same(&read(&chain, at, 100).unwrap(), expected(&model, at, 100), "the rest");
        }
        assert!(read(&chain, SIZE, 100).unwrap().is_empty());
    }
}

#[test]
fn a_cluster_that_cannot_be_decoded_is_an_error_for_every_reader_and_for_nobody_else() {
    let (mut image, model) = image("zlib");
    let broken = [50, 51, 90, 299];
    let places = places(&chain_of(in_memory(&image), 0));
    for cluster in broken {
        // A block type that does not exist.
        image[places[cluster].0 as usize] = 0xff;
    }
    let chain = chain_of(in_memory(&image), 64 << 20);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..2 {
                    for at in (0..SIZE).step_by(2048) {
                        match read(&chain, at, 1000) {
                            Ok(bytes) => {
                                assert!(!broken.contains(&(at / CLUSTER)), "bytes of a broken cluster");
                                assert_same(&bytes, expected(&model, at, 1000), "beside broken clusters");
                            }
                            Err(error) => {
                                assert_eq!(error.code(), "ERR_QCOW2_DECOMPRESS", "{error}");
                                assert!(broken.contains(&(at / CLUSTER)), "{error}");
                            }
                        }
                    }
                }
            });
        }
    });
}

/// A failure that only read-ahead met was nobody's: the reader who comes to it later tries again.
#[test]
fn a_failure_of_the_device_is_met_at_most_once_and_never_kept() {
    let (image, model) = image("zlib");
    let mut failures = 0;
    for fail_at in 4..60 {
        let failing = FailingStorage::new(in_memory(&image), fail_at, false, io::ErrorKind::Other);
        let Ok(layer) = Layer::open_qcow2(Arc::new(failing), &LayerOptions::default()) else {
            continue;
        };
        let chain = Chain::new(vec![layer], ChainOptions::default()).unwrap();
        let mut errors = 0;
        for at in (0..80 * CLUSTER).step_by(1024) {
            let bytes = read(&chain, at, 1024).or_else(|error| {
                errors += 1;
                assert_eq!(error.code(), "ERR_QCOW2_IO");
                read(&chain, at, 1024)
            });
            assert_same(&bytes.unwrap(), expected(&model, at, 1024), "with one failure");
        }
        assert!(errors <= 1);
        failures += errors;
    }
    assert!(failures > 0);
}

/// Counts who is inside a read, and makes reads take a while.
#[derive(Debug)]
struct Slow {
    inner: Arc<dyn Storage>,
    inside: AtomicU32,
    reads: AtomicU64,
}

impl Storage for Slow {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        self.inside.fetch_add(1, Ordering::SeqCst);
        self.reads.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        let outcome = self.inner.read_at(offset, buffer);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, bytes)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn extent(&self, offset: HostOffset) -> io::Result<Extent> {
        self.inner.extent(offset)
    }
}

#[test]
fn a_disk_that_is_closed_in_the_middle_leaves_no_reader_and_no_open_file_behind() {
    let (image, _) = image("zlib");
    let mut ahead = 0;
    for count in 1..30 {
        let storage = Arc::new(Slow {
            inner: in_memory(&image),
            inside: AtomicU32::new(0),
            reads: AtomicU64::new(0),
        });
        let chain = chain_of(storage.clone(), 64 << 20);
        let opened = storage.reads.load(Ordering::SeqCst);
        for number in 0..count {
            read(&chain, number * CLUSTER, 100).unwrap();
        }
        drop(chain);
        assert_eq!(storage.inside.load(Ordering::SeqCst), 0, "somebody is still reading");
        assert_eq!(Arc::strong_count(&storage), 1, "somebody still has the file");
        // One read of a table, and one of each cluster that was asked for: the others were ahead.
        ahead += storage.reads.load(Ordering::SeqCst) - opened - 1 - count as u64;
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(storage.inside.load(Ordering::SeqCst), 0, "somebody began again");
    }
    assert!(ahead > 0, "nothing was ever read ahead");
}
