//! The writer's own code under a model checker, which runs its threads in one order after another: `cargo nextest run -p qcow2-engine --features shuttle
//! --test interleavings`. It finds deadlocks by itself; what else may not happen each test says. Where a rule is switched off, it is found.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may stop at the first surprise"
)]

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use qcow2_engine::{
    CheckOptions, CreateOptions, Disk, DiskOptions, Format, JobContext, Layer, LayerOptions, Locking, MemoryStorage,
    NewSnapshot, ResizeOptions, SnapshotChoice, Storage, Target, Weaken, check, create,
};
use qcow2_format::{GuestOffset, HostOffset};
use shuttle::thread;

const CLUSTER: usize = 512;
const SIZE: u64 = 64 << 10;

/// Runs `test` in many orders: random ones, and ones in which threads are overtaken in few places.
fn in_every_order(test: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(test.clone(), 250);
    shuttle::check_pct(test, 250, 3);
}

/// Whether one of many orders fails.
fn is_found(test: impl Fn() + Send + Sync + Clone + 'static) -> bool {
    let random = test.clone();
    catch_unwind(AssertUnwindSafe(|| shuttle::check_random(random, 4000))).is_err()
        || catch_unwind(AssertUnwindSafe(|| shuttle::check_pct(test, 4000, 3))).is_err()
}

/// A new image with clusters of 512 bytes.
fn image() -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::default());
    let options = CreateOptions {
        format: Format::Qcow2,
        size: Some(SIZE),
        cluster_size: CLUSTER as u64,
        ..CreateOptions::default()
    };
    create(&Target::Storage(storage.clone()), &options, &JobContext::quiet()).unwrap();
    storage.to_vec()
}

/// The same, whose guest clusters stand in a data file.
fn image_with_data_file() -> Vec<u8> {
    let mut bytes = image();
    // Bit 2 of the incompatible features: the file is named by whoever opens the image.
    bytes[79] |= 4;
    bytes
}

fn writable() -> LayerOptions {
    LayerOptions {
        writable: true,
        locking: Locking::Off,
        ..LayerOptions::default()
    }
}

fn open(storage: Arc<dyn Storage>, data: Option<Arc<dyn Storage>>, weaken: Weaken) -> Arc<Disk> {
    let mut layer = Layer::open_qcow2(storage, &writable()).unwrap();
    if let Some(data) = data {
        layer.set_data_file(data).unwrap();
    }
    let options = DiskOptions {
        weaken,
        ..DiskOptions::default()
    };
    Arc::new(Disk::open(vec![layer], options).unwrap())
}

fn read(disk: &Disk, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    assert_eq!(disk.chain().read(GuestOffset(offset), &mut bytes).unwrap(), length);
    bytes
}

/// The disk that was closed still holds its place among the writers of this process.
fn assert_sound(storage: Arc<dyn Storage>) {
    let options = LayerOptions {
        locking: Locking::Off,
        force_share: true,
        ..LayerOptions::default()
    };
    let layer = Layer::open_qcow2(storage, &options).unwrap();
    let report = check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

#[test]
fn two_writers_of_one_unallocated_cluster_both_have_their_bytes() {
    let bytes = image();
    in_every_order(move || {
        let storage = Arc::new(MemoryStorage::new(bytes.clone()));
        let disk = open(storage.clone(), None, Weaken::default());
        let other = disk.clone();
        let second = thread::spawn(move || other.write(GuestOffset(300), &[2; 400]).unwrap());
        disk.write(GuestOffset(0), &[1; 200]).unwrap();
        second.join().unwrap();
        let expected = [vec![1; 200], vec![0; 100], vec![2; 400], vec![0; 324]].concat();
        assert_eq!(read(&disk, 0, 1024), expected);
        disk.close().unwrap();
        assert_eq!(read(&disk, 0, 1024), expected);
        assert_sound(storage);
    });
}

/// One thread reads a cluster while another gives it back, makes that durable and writes elsewhere.
fn reader_of_a_discarded_cluster(bytes: Vec<u8>, weaken: Weaken) -> impl Fn() + Send + Sync + Clone + 'static {
    move || {
        let disk = open(Arc::new(MemoryStorage::new(bytes.clone())), None, weaken);
        disk.write(GuestOffset(0), &[1; CLUSTER]).unwrap();
        disk.flush().unwrap();
        let other = disk.clone();
        let reader = thread::spawn(move || read(&other, 0, CLUSTER));
        disk.discard(GuestOffset(0), CLUSTER as u64).unwrap();
        disk.flush().unwrap();
        disk.write(GuestOffset(4096), &[2; CLUSTER]).unwrap();
        let found = reader.join().unwrap();
        assert!(found.iter().all(|byte| *byte < 2), "another cluster's bytes");
        disk.close().unwrap();
    }
}

#[test]
fn a_reader_never_sees_what_was_written_to_a_cluster_after_it_was_given_back() {
    in_every_order(reader_of_a_discarded_cluster(image(), Weaken::default()));
    assert!(is_found(reader_of_a_discarded_cluster(image(), Weaken::NO_TICKETS)));
}

/// One range of a data file is discarded, written and flushed while another thread flushes.
fn writer_of_a_discarded_range(bytes: Vec<u8>, weaken: Weaken) -> impl Fn() + Send + Sync + Clone + 'static {
    move || {
        let data = Arc::new(MemoryStorage::new(vec![0; 1 << 16]));
        let disk = open(Arc::new(MemoryStorage::new(bytes.clone())), Some(data), weaken);
        disk.write(GuestOffset(512), &[1; CLUSTER]).unwrap();
        disk.flush().unwrap();
        let other = disk.clone();
        let flusher = thread::spawn(move || {
            other.flush().unwrap();
            other.flush().unwrap();
        });
        disk.discard(GuestOffset(512), CLUSTER as u64).unwrap();
        disk.write(GuestOffset(512), &[2; CLUSTER]).unwrap();
        disk.flush().unwrap();
        flusher.join().unwrap();
        disk.flush().unwrap();
        assert_eq!(read(&disk, 512, CLUSTER), [2; CLUSTER], "a late hole");
        disk.close().unwrap();
    }
}

#[test]
fn no_hole_is_punched_where_a_data_file_was_written_again() {
    in_every_order(writer_of_a_discarded_range(image_with_data_file(), Weaken::default()));
    assert!(is_found(writer_of_a_discarded_range(
        image_with_data_file(),
        Weaken::NO_PUNCH_CANCEL
    )));
}

/// What was asked of a storage, and what of it a power cut now would leave.
#[derive(Debug)]
struct Watched {
    inner: MemoryStorage,
    reads: Mutex<HashMap<(u64, usize), u32>>,
    durable: Mutex<Vec<u8>>,
    /// The read at this place that fails, once.
    fails: Mutex<Option<u64>>,
}

impl Watched {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            durable: Mutex::new(bytes.clone()),
            inner: MemoryStorage::new(bytes),
            reads: Mutex::default(),
            fails: Mutex::default(),
        }
    }
}

impl Storage for Watched {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        *self.reads.lock().unwrap().entry((offset.0, buffer.len())).or_default() += 1;
        // Others may come in between.
        thread::yield_now();
        if self.fails.lock().unwrap().take_if(|at| *at == offset.0).is_some() {
            return Err(io::ErrorKind::Other.into());
        }
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        thread::yield_now();
        self.inner.write_at(offset, bytes)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        // What is written while it runs may or may not be covered: here it is not.
        let before = self.inner.to_vec();
        thread::yield_now();
        *self.durable.lock().unwrap() = before;
        Ok(())
    }
}

/// An image in which the first cluster is written, and where its L2 table stands.
fn written() -> (Vec<u8>, u64) {
    let storage = Arc::new(Mutex::new(Vec::new()));
    let (bytes, result) = (image(), storage.clone());
    shuttle::check_random(
        move || {
            let file = Arc::new(MemoryStorage::new(bytes.clone()));
            let disk = open(file.clone(), None, Weaken::default());
            disk.write(GuestOffset(0), &[1; 4 * CLUSTER]).unwrap();
            disk.close().unwrap();
            *result.lock().unwrap() = file.to_vec();
        },
        1,
    );
    let bytes = storage.lock().unwrap().clone();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = word(usize::try_from(word(40)).unwrap()) & 0x00ff_ffff_ffff_fe00;
    (bytes, table)
}

#[test]
fn a_table_is_loaded_once_whoever_asks_also_after_a_load_that_failed() {
    let (bytes, table) = written();
    in_every_order(move || {
        for failing in [false, true] {
            let storage = Arc::new(Watched::new(bytes.clone()));
            let disk = open(storage.clone(), None, Weaken::default());
            storage.reads.lock().unwrap().clear();
            *storage.fails.lock().unwrap() = failing.then_some(table);
            let write = |at: u64| {
                let disk = disk.clone();
                thread::spawn(move || disk.write(GuestOffset(at), &[7; 100]).is_ok())
            };
            let (first, second) = (write(0), write(600));
            let done = [first.join().unwrap(), second.join().unwrap()];
            assert_eq!(done.iter().filter(|done| !**done).count(), usize::from(failing));
            let reads = storage.reads.lock().unwrap();
            assert_eq!(reads[&(table, CLUSTER)], 1 + u32::from(failing));
        }
    });
}

#[test]
fn a_write_that_has_returned_is_durable_when_a_flush_that_was_asked_for_after_it_returns() {
    let bytes = image();
    in_every_order(move || {
        let storage = Arc::new(Watched::new(bytes.clone()));
        let disk = open(storage.clone(), None, Weaken::default());
        let writers: Vec<_> = (1u8..=2)
            .map(|number| {
                let (disk, storage) = (disk.clone(), storage.clone());
                thread::spawn(move || {
                    let at = u64::from(number) * 4096;
                    disk.write(GuestOffset(at), &[number; CLUSTER]).unwrap();
                    disk.flush().unwrap();
                    let durable = Arc::new(MemoryStorage::new(storage.durable.lock().unwrap().clone()));
                    let disk = open(durable, None, Weaken::default());
                    assert_eq!(read(&disk, at, CLUSTER), [number; CLUSTER]);
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        disk.close().unwrap();
        assert_sound(storage);
    });
}

#[test]
fn whoever_changes_the_whole_map_and_whoever_writes_never_wait_for_each_other() {
    let bytes = image();
    in_every_order(move || {
        let storage = Arc::new(MemoryStorage::new(bytes.clone()));
        let disk = open(storage.clone(), None, Weaken::default());
        let (writer, switcher) = (disk.clone(), disk.clone());
        let writer = thread::spawn(move || {
            for at in [0, 600, 40_000] {
                writer.write(GuestOffset(at), &[1; 300]).unwrap();
            }
            writer.flush().unwrap();
            writer.discard(GuestOffset(0), 2048).unwrap();
        });
        let switcher = thread::spawn(move || {
            let new = NewSnapshot {
                name: "a".into(),
                ..NewSnapshot::default()
            };
            switcher.snapshot_create(new).unwrap();
            switcher.resize(SIZE * 2, ResizeOptions::default()).unwrap();
            switcher.snapshot_apply(&SnapshotChoice::Name("a".into())).unwrap();
        });
        let _ = read(&disk, 0, 2048);
        writer.join().unwrap();
        switcher.join().unwrap();
        disk.close().unwrap();
        assert!(disk.write(GuestOffset(0), &[1]).is_err());
        assert_sound(storage);
    });
}
