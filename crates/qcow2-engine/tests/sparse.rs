//! Files that claim far more than they hold: work and memory follow what is there.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::{Chain, ChainOptions, Layer, LayerOptions, Limits, MemoryStorage};
use qcow2_format::GuestOffset;
use support::bytes::Bytes;
use support::{Folder, qemu_img};

/// A file that is mostly hole, as long as it likes to be.
#[derive(Debug)]
struct Sparse {
    bytes: MemoryStorage,
    reads: std::sync::atomic::AtomicU64,
}

impl qcow2_engine::Storage for Sparse {
    fn length(&self) -> std::io::Result<u64> {
        Ok(1 << 62)
    }

    fn read_at(&self, offset: qcow2_format::HostOffset, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        buffer.fill(0);
        self.bytes.read_at(offset, buffer).map(|_| buffer.len())
    }

    fn allocated_bytes(&self) -> std::io::Result<Option<u64>> {
        self.bytes.length().map(Some)
    }

    fn write_at(&self, _: qcow2_format::HostOffset, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn set_length(&self, _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A map asks whether clusters were reserved before they were written, by counting refcounts. A sparse file of exabytes whose refcount table of
/// 8 MiB names one block a million times kept it reading that block for an hour.
#[test]
fn a_refcount_table_that_names_one_block_for_ever_is_not_followed() {
    let mut image = Bytes::new("");
    let table = image.0.len().next_multiple_of(65536);
    image.0.resize(table + (8 << 20) + 65536, 0);
    let block = ((table + (8 << 20)) as u64).to_be_bytes();
    image.0[table..table + (8 << 20)].as_chunks_mut::<8>().0.fill(block);
    let image = image.put64(48, table as u64).put32(56, 128);
    let storage = Arc::new(Sparse {
        bytes: MemoryStorage::new(image.0),
        reads: 0.into(),
    });
    let layer = Layer::open_qcow2(storage.clone(), &LayerOptions::default()).unwrap();
    let chain = Chain::new(vec![layer], ChainOptions::default()).unwrap();
    let map = chain.status(GuestOffset(0), 1 << 20, 100).unwrap();
    assert_eq!((map[0].length, map[0].data, map[0].zero), (256 << 10, true, false));
    let reads = storage.reads.load(std::sync::atomic::Ordering::Relaxed);
    assert!(reads < 1000, "{reads} reads");
}

/// The length of a LUKS header is believed as far as the file goes: in a sparse file of exabytes the check counted its clusters for ever, in
/// gigabytes of memory, and did not stop when told to.
#[test]
fn a_check_of_a_sparse_file_stops_at_its_memory_limit_and_when_told_to() {
    let folder = Folder::new();
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=512";
    let secret = ["--object", "secret,id=s,data=abc"];
    let args = [
        ["create", "-q"],
        secret,
        ["-f", "qcow2"],
        ["-o", options],
        ["a.qcow2", "1M"],
    ]
    .concat();
    qemu_img(&folder, &args);
    let image = Bytes(std::fs::read(folder.path("a.qcow2")).unwrap());
    // The first extension: its kind, its length, its place, and how long what is there is.
    let image = image.put64(128, 1 << 61);
    let check = |limit: u64, cancelled: bool| {
        let options = LayerOptions {
            for_check: true,
            limits: Limits {
                max_memory: limit,
                ..Limits::default()
            },
            ..LayerOptions::default()
        };
        let storage = Arc::new(Sparse {
            bytes: MemoryStorage::new(image.0.clone()),
            reads: 0.into(),
        });
        let layer = Layer::open_qcow2(storage, &options).unwrap();
        let context = qcow2_engine::JobContext::quiet();
        std::thread::scope(|scope| {
            let cancel = context.cancel.clone();
            if cancelled {
                scope.spawn(move || {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    cancel.cancel();
                });
            }
            let options = qcow2_engine::CheckOptions { max_findings: 10 };
            qcow2_engine::check(&layer, &options, &context).map(|_| ()).unwrap_err()
        })
    };
    assert_eq!(check(1 << 20, false).code(), "ERR_QCOW2_LIMIT");
    assert_eq!(check(u64::MAX, true).code(), "ERR_QCOW2_CANCELLED");
}

/// Four million L1 entries that name one L2 table are one range of zeros: its end is found after minutes, and until then nothing could stop it.
#[test]
fn a_map_over_millions_of_tables_can_be_cancelled() {
    let mut image = Bytes::new("cluster_size=2M").0;
    let table = image.len().next_multiple_of(2 << 20);
    image.resize(table + (34 << 20), 0);
    image[table..table + (2 << 20)]
        .as_chunks_mut::<8>()
        .0
        .fill(1u64.to_be_bytes());
    let l1 = table + (2 << 20);
    let entry = (table as u64).to_be_bytes();
    image[l1..].as_chunks_mut::<8>().0.fill(entry);
    let image = Bytes(image).put64(24, 1 << 61).put32(36, 1 << 22).put64(40, l1 as u64);
    let chain = image.chain().unwrap();
    let cancel = qcow2_engine::CancelToken::new();
    std::thread::scope(|scope| {
        let map = scope.spawn(|| chain.status_unless(GuestOffset(0), u64::MAX, 1, &cancel));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!map.is_finished(), "it would take long");
        cancel.cancel();
        assert_eq!(map.join().unwrap().unwrap_err().code(), "ERR_QCOW2_CANCELLED");
    });
    // A short question has a short answer all the same.
    let some = chain.status(GuestOffset(1 << 60), 1 << 20, 1).unwrap();
    assert_eq!((some.len(), some[0].length, some[0].zero), (1, 1 << 20, true));
}
