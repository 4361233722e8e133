//! Sound images that have a bit of everything, small enough to be written down.

use std::sync::Arc;

use qcow2_engine::{
    CreateOptions, Disk, DiskOptions, JobContext, Layer, LayerOptions, MemoryStorage, NewBitmap, NewSnapshot, Storage,
    Target, create,
};
use qcow2_format::luks::{KeySlot, LuksHeader};
use qcow2_format::{GuestOffset, Version};

/// How many seeds there are.
pub const COUNT: usize = 6;

/// Deflate of 512 zero bytes and of 4096: a final block of the fixed codes, made by hand from the format's description.
fn zeros_deflated(length: usize) -> Vec<u8> {
    // A stored block: the one form that needs no tables. It is not shorter than a cluster, so a row of fixed-code matches it is.
    let mut bits: Vec<bool> = vec![true, true, false];
    let mut code = |value: u32, count: u32| (0..count).rev().for_each(|at| bits.push(value >> at & 1 == 1));
    // The literal 0, then matches of length 258 (symbol 285) and distance 1 (symbol 0).
    code(0x30, 8);
    let mut left = length - 1;
    while left >= 258 {
        code(0xc0 + 5, 8);
        code(0, 5);
        left -= 258;
    }
    (0..left).for_each(|_| code(0x30, 8));
    code(0, 7);
    bits.chunks(8)
        .map(|byte| {
            byte.iter()
                .enumerate()
                .fold(0, |all, (at, bit)| all | u8::from(*bit) << at)
        })
        .collect()
}

/// What the campaign of a target begins with.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    if target == "luks" {
        return [
            ("aes", "xts-plain64", 32),
            ("aes", "cbc-essiv:sha256", 16),
            ("cast5", "cbc-plain64", 16),
        ]
        .map(|(cipher, mode, key_bytes)| luks(cipher, mode, key_bytes))
        .to_vec();
    }
    (0..COUNT).map(image).collect()
}

/// A LUKS header with two active slots.
fn luks(cipher: &str, mode: &str, key_bytes: u32) -> Vec<u8> {
    let mut slots = <[KeySlot; 8]>::default();
    for (number, slot) in (0..).zip(&mut slots) {
        slot.material = LuksHeader::place(number, key_bytes);
    }
    for slot in &mut slots[..2] {
        slot.active = true;
        slot.iterations = 10;
        slot.salt = [7; 32];
    }
    let header = LuksHeader {
        cipher: cipher.into(),
        mode: mode.into(),
        hash: "sha256".into(),
        payload: LuksHeader::payload_behind(key_bytes),
        key_bytes,
        digest: [1; 20],
        digest_salt: [2; 32],
        digest_iterations: 10,
        uuid: "5a5a5a5a-5a5a-4a5a-8a5a-5a5a5a5a5a5a".into(),
        slots,
    };
    header.encode().to_vec()
}

/// Seed image `number`: made anew by the engine.
pub fn image(number: usize) -> Vec<u8> {
    let (cluster_size, extended_l2, version, refcount_bits) = match number % COUNT {
        0 => (512, false, Version::V3, 16),
        1 => (4096, false, Version::V3, 16),
        2 => (16384, true, Version::V3, 16),
        3 => (512, false, Version::V2, 16),
        4 => (512, false, Version::V3, 1),
        _ => (4096, false, Version::V3, 64),
    };
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let options = CreateOptions {
        size: Some(cluster_size * 100),
        cluster_size,
        extended_l2,
        version,
        refcount_bits,
        ..CreateOptions::default()
    };
    create(&Target::Storage(storage.clone()), &options, &JobContext::quiet()).unwrap();
    let writable = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let layer = Layer::open_qcow2(storage.clone(), &writable).unwrap();
    let disk = Disk::open(vec![layer], DiskOptions::default()).unwrap();
    let at = |cluster: u64| GuestOffset(cluster * cluster_size);
    let full = |byte: u8| vec![byte; cluster_size as usize];
    disk.write(at(0), &full(0x11)).unwrap();
    disk.write(at(3), &full(0x22)[..cluster_size as usize / 2]).unwrap();
    disk.write(at(70), &full(0x33)).unwrap();
    let form = zeros_deflated(cluster_size as usize);
    if !extended_l2 {
        disk.write_compressed(&[(at(8), &form), (at(9), &form)]).unwrap();
    }
    if version == Version::V3 {
        disk.write_zeroes(at(5), cluster_size * 2, false).unwrap();
        let bitmap = NewBitmap {
            name: "bits".into(),
            granularity: None,
            enabled: true,
        };
        disk.bitmap_add(bitmap).unwrap();
    }
    for name in ["one", "two"].into_iter().take(if refcount_bits == 1 { 0 } else { 2 }) {
        let new = NewSnapshot {
            name: name.into(),
            allow_duplicate: false,
            date: Some((1, 2)),
            vm_clock_nsec: 3,
            icount: None,
        };
        disk.snapshot_create(new).unwrap();
        disk.write(at(1), &full(0x44)).unwrap();
    }
    disk.close().unwrap();
    drop(disk);
    let length = storage.length().unwrap() as usize;
    let mut bytes = vec![0; length];
    storage.read_at(qcow2_format::HostOffset(0), &mut bytes).unwrap();
    bytes
}
