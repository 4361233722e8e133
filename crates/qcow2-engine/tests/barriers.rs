//! How many syncs an operation takes: each costs milliseconds, and one too few loses data. The table stands in docs/crash-safety.md.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

use std::sync::Arc;

use qcow2_engine::storage::testing::{Operation, RecordingStorage};
use qcow2_engine::{
    CreateOptions, Disk, DiskOptions, Format, JobContext, Layer, LayerOptions, MemoryStorage, NewSnapshot,
    ResizeOptions, SnapshotChoice, Target, create,
};
use qcow2_format::GuestOffset;

const MIB: u64 = 1 << 20;

/// A disk whose calls are counted, of its image and of its data file.
struct Counted {
    disk: Disk,
    files: Vec<Arc<RecordingStorage>>,
}

impl Counted {
    fn new(options: &CreateOptions, data_file: bool) -> Self {
        let memory = Arc::new(MemoryStorage::default());
        create(&Target::Storage(memory.clone()), options, &JobContext::quiet()).unwrap();
        if data_file {
            // The incompatible feature of a data file, which is then named by whoever opens the image.
            let mut bytes = memory.to_vec();
            bytes[79] |= 4;
            qcow2_engine::Storage::write_at(&*memory, qcow2_format::HostOffset(0), &bytes).unwrap();
        }
        let image = Arc::new(RecordingStorage::new(memory));
        let writable = LayerOptions {
            writable: true,
            ..LayerOptions::default()
        };
        let mut layer = Layer::open_qcow2(image.clone(), &writable).unwrap();
        let mut files = vec![image];
        if data_file {
            let data = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::default())));
            layer.set_data_file(data.clone()).unwrap();
            files.push(data);
        }
        let disk = Disk::open(vec![layer], DiskOptions::default()).unwrap();
        Self { disk, files }
    }

    /// The syncs of what is done, of each file.
    fn syncs(&self, work: impl FnOnce(&Disk)) -> Vec<usize> {
        self.files.iter().for_each(|file| drop(file.take()));
        work(&self.disk);
        let syncs = |file: &Arc<RecordingStorage>| file.take().iter().filter(|call| **call == Operation::Sync).count();
        self.files.iter().map(syncs).collect()
    }
}

fn options() -> CreateOptions {
    CreateOptions {
        format: Format::Qcow2,
        size: Some(1024 * MIB),
        ..CreateOptions::default()
    }
}

fn flush(disk: &Disk) {
    disk.flush().unwrap();
}

#[test]
fn a_flush_takes_one_barrier_or_two_however_much_was_written() {
    let counted = Counted::new(&options(), false);
    assert_eq!(counted.syncs(flush), [0], "nothing was written");
    let write = |disk: &Disk, at: u64| disk.write(GuestOffset(at), &[1; 4096]).unwrap();
    assert_eq!(counted.syncs(|disk| write(disk, 0)), [0]);
    assert_eq!(counted.syncs(flush), [2], "a cluster that is new");
    assert_eq!(counted.syncs(flush), [0]);
    let again = |disk: &Disk| {
        write(disk, 0);
        flush(disk);
    };
    assert_eq!(counted.syncs(again), [1], "in place");
    let scattered = |disk: &Disk| {
        (0..1000).for_each(|n| write(disk, n * 15 * 65536 % (1000 * MIB)));
        flush(disk);
    };
    assert_eq!(counted.syncs(scattered), [2], "a thousand writes");
    let zeroes = |disk: &Disk| {
        disk.write_zeroes(GuestOffset(0), 65536, false).unwrap();
        flush(disk);
    };
    assert_eq!(
        counted.syncs(zeroes),
        [1],
        "only pointers: nothing has to come before them"
    );
    let discard = |disk: &Disk| {
        disk.discard(GuestOffset(0), 65536).unwrap();
        flush(disk);
    };
    assert_eq!(counted.syncs(discard), [1]);
    // What the discard gave back rides along.
    assert_eq!(counted.syncs(flush), [1]);
    assert_eq!(counted.syncs(flush), [0]);
}

#[test]
fn a_refcount_structure_that_grows_takes_one_barrier_more() {
    let small = CreateOptions {
        cluster_size: 512,
        size: Some(8 * MIB),
        ..options()
    };
    let counted = Counted::new(&small, false);
    let much = |disk: &Disk| {
        disk.write(GuestOffset(0), &vec![1; 4 << 20]).unwrap();
        flush(disk);
    };
    assert_eq!(counted.syncs(much), [3]);
}

#[test]
fn a_data_file_is_synced_with_the_first_barrier_alone() {
    let counted = Counted::new(&options(), true);
    let write = |disk: &Disk| {
        disk.write(GuestOffset(0), &[1; 4096]).unwrap();
        flush(disk);
    };
    assert_eq!(counted.syncs(write), [2, 1]);
    assert_eq!(counted.syncs(write), [0, 1], "in place");
}

#[test]
fn what_changes_the_whole_map_takes_few_barriers() {
    let counted = Counted::new(&options(), false);
    counted.disk.write(GuestOffset(0), &vec![1; 4 << 20]).unwrap();
    counted.disk.flush().unwrap();
    let create = |disk: &Disk| {
        let new = NewSnapshot {
            name: "a".into(),
            ..NewSnapshot::default()
        };
        disk.snapshot_create(new).unwrap();
    };
    let which = SnapshotChoice::Name("a".into());
    let taken = [
        counted.syncs(create)[0],
        counted.syncs(|disk| disk.snapshot_apply(&which).unwrap())[0],
        counted.syncs(|disk| disk.snapshot_rename(&which, "b").unwrap())[0],
        counted.syncs(|disk| disk.snapshot_delete(&SnapshotChoice::Name("b".into())).unwrap())[0],
        counted.syncs(|disk| disk.resize(2048 * MIB, ResizeOptions::default()).unwrap())[0],
        counted.syncs(|disk| disk.close().unwrap())[0],
    ];
    // Create, apply, rename, delete, grow, close.
    assert_eq!(taken, [4, 6, 3, 4, 5, 0]);
}
