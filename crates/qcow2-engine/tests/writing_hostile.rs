//! Images that lie about what is free and what belongs to whom, and disks without space, met by a writer.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};

use qcow2_engine::{
    CheckOptions, CreateOptions, Disk, DiskOptions, Format, JobContext, Layer, LayerOptions, MemoryStorage, Storage,
    Target, check, create,
};
use qcow2_format::{GuestOffset, HostOffset};
use support::bytes::Bytes;

fn open(storage: Arc<dyn Storage>) -> Disk {
    let writable = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let layer = Layer::open_qcow2(storage, &writable).unwrap();
    Disk::open(vec![layer], DiskOptions::default()).unwrap()
}

/// A write got the cluster of the table that was to name it, since its refcount said that it was free; reads gave other bytes then.
#[test]
fn an_l2_table_that_counts_as_free_is_neither_written_nor_given_away() {
    let bytes = Bytes::new("");
    let (l2, block) = (bytes.l2(), {
        let table = bytes.get64(48) as usize;
        bytes.get64(table) as usize
    });
    let mut bytes = bytes.0;
    let count = block + l2 / 65536 * 2;
    bytes[count..count + 2].fill(0);
    let before = bytes.clone();
    let storage = Arc::new(MemoryStorage::new(bytes));
    let disk = open(storage.clone());
    let error = disk.write(GuestOffset(512 << 10), &[1; 65536]).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_REFCOUNTS");
    assert_eq!(storage.to_vec(), before);
}

/// Guest bytes went over the table that names them.
#[test]
fn a_guest_cluster_that_is_an_l2_table_is_not_written() {
    let bytes = Bytes::new("");
    let l2 = bytes.l2();
    let bytes = bytes.put64(l2, 1 << 63 | l2 as u64);
    let before = bytes.0.clone();
    let storage = Arc::new(MemoryStorage::new(bytes.0));
    let disk = open(storage.clone());
    let error = disk.write(GuestOffset(0), &[1; 4096]).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_REFCOUNTS");
    assert_eq!(storage.to_vec(), before);
    // The cluster beside it is a good one.
    disk.write(GuestOffset(65536), &[1; 4096]).unwrap();
}

/// A file on a disk that has so many blocks of 4 KiB: holes take none.
#[derive(Debug)]
struct Small {
    inner: MemoryStorage,
    blocks: Mutex<HashSet<u64>>,
    most: Mutex<usize>,
}

impl Small {
    fn take(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut blocks = self.blocks.lock().unwrap();
        let wanted: Vec<u64> = (offset / 4096..(offset + length).div_ceil(4096))
            .filter(|at| !blocks.contains(at))
            .collect();
        if blocks.len() + wanted.len() > *self.most.lock().unwrap() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        blocks.extend(wanted);
        Ok(())
    }
}

impl Storage for Small {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        self.take(offset.0, bytes.len() as u64)?;
        self.inner.write_at(offset, bytes)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        self.take(offset.0, length)?;
        if self.inner.length()? < offset.0 + length {
            self.inner.set_length(offset.0 + length)?;
        }
        Ok(true)
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        let mut blocks = self.blocks.lock().unwrap();
        let holes = offset.0.div_ceil(4096)..(offset.0 + length) / 4096;
        blocks.retain(|at| !holes.contains(at));
        self.inner.punch(offset, length)
    }
}

/// On a full disk 47 writes were acknowledged whose table was given no place in the file: no flush, discard or close ever succeeded again.
#[test]
fn a_full_disk_fails_the_writes_that_find_no_place_and_keeps_all_others() {
    let memory = Arc::new(MemoryStorage::default());
    let options = CreateOptions {
        format: Format::Qcow2,
        size: Some(1 << 30),
        ..CreateOptions::default()
    };
    create(&Target::Storage(memory.clone()), &options, &JobContext::quiet()).unwrap();
    for most in [100, 140, 300, 333] {
        let storage = Arc::new(Small {
            inner: MemoryStorage::new(memory.to_vec()),
            blocks: Mutex::new((0..64).collect()),
            most: Mutex::new(most),
        });
        let disk = open(storage.clone());
        let mut kept = Vec::new();
        for number in 0..60u8 {
            // Some of them need another table.
            let at = u64::from(number) * 65536 + if number % 7 == 6 { 600 << 20 } else { 0 };
            if disk.write(GuestOffset(at), &[number + 1; 65536]).is_ok() {
                kept.push((at, number + 1));
            }
        }
        assert!(kept.len() < 60);
        disk.flush().unwrap();
        if let Some((at, _)) = kept.pop() {
            disk.discard(GuestOffset(at), 65536).unwrap();
            disk.flush().unwrap();
        }
        *storage.most.lock().unwrap() += 64;
        disk.write(GuestOffset(900 << 20), &[99; 65536]).unwrap();
        kept.push((900 << 20, 99));
        disk.close().unwrap();
        drop(disk);
        let layer = Layer::open_qcow2(storage.clone(), &LayerOptions::default()).unwrap();
        let report = check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
        drop(layer);
        let disk = open(storage);
        for (at, byte) in kept {
            let mut bytes = vec![0; 65536];
            disk.chain().read(GuestOffset(at), &mut bytes).unwrap();
            assert!(bytes.iter().all(|found| *found == byte), "{at:#x}");
        }
    }
}
