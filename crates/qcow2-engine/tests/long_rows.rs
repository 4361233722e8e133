//! Once a table that needed more clusters in a row than one refcount block counts was never found room for: each block that was made for the row lay
//! in the middle of it. Growing a disk with clusters of 512 bytes filled the file instead.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::storage::{AllowSpecial, FileStorage, OpenMode};
use qcow2_engine::{Disk, DiskOptions, Layer, LayerOptions, NewSnapshot, ResizeOptions, SnapshotChoice};
use qcow2_format::GuestOffset;
use support::{Folder, qemu_img, qemu_io};

fn open(folder: &Folder) -> Disk {
    let mode = OpenMode {
        writable: true,
        special: AllowSpecial::No,
    };
    let storage = Arc::new(FileStorage::open(&folder.path("a.qcow2"), mode).unwrap());
    let writable = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let top = Layer::open_qcow2(storage, &writable).unwrap();
    Disk::open(vec![top], DiskOptions::default()).unwrap()
}

#[test]
fn a_table_longer_than_a_refcount_block_counts_finds_its_row() {
    // The new size has 16384 or 32768 entries in L1: 256 or 512 clusters, where a block counts 64 or 256.
    for (bits, size) in [(64, 512 << 20), (16, 1 << 30)] {
        let folder = Folder::new();
        let options = format!("cluster_size=512,refcount_bits={bits}");
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", "1M"],
        );
        let disk = open(&folder);
        disk.write(GuestOffset(1000), &[1; 3000]).unwrap();
        disk.resize(size, ResizeOptions::default()).unwrap();
        disk.write(GuestOffset(size - 700), &[2; 700]).unwrap();
        let new = NewSnapshot {
            name: "s".into(),
            allow_duplicate: false,
            date: None,
            vm_clock_nsec: 0,
            icount: None,
        };
        disk.snapshot_create(new).unwrap();
        disk.write(GuestOffset(1000), &[3; 3000]).unwrap();
        disk.snapshot_apply(&SnapshotChoice::IdOrName("s".into())).unwrap();
        disk.close().unwrap();
        drop(disk);
        qemu_img(&folder, &["check", "-q", "a.qcow2"]);
        let reads = [
            "read -P 0 0 1000".to_owned(),
            "read -P 1 1000 3000".to_owned(),
            format!("read -P 2 {} 700", size - 700),
        ];
        qemu_io(&folder, "a.qcow2", &reads);
        let length = std::fs::metadata(folder.path("a.qcow2")).unwrap().len();
        assert!(length < 8 << 20, "refcount_bits={bits}: the file has {length} bytes");
    }
}
