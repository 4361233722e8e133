//! Every bit of a small image's metadata, flipped one at a time: never a panic, a hang or much memory, and what is not an error reads.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::{Chain, ChainOptions, Layer, LayerOptions, MemoryStorage, Result, Storage};
use qcow2_format::{GuestOffset, HostOffset};
use support::{Folder, qemu_img, qemu_io};

const SIZE: usize = 40 << 10;

/// An image with a bit of everything: data, compressed and zero clusters, two snapshots, a bitmap, a backing file.
fn image(options: &str, compressed: bool) -> Vec<u8> {
    let folder = Folder::new();
    std::fs::write(folder.path("b.raw"), vec![0x77; SIZE / 2]).unwrap();
    let size = SIZE.to_string();
    let args = [
        "create", "-q", "-f", "qcow2", "-o", options, "-b", "b.raw", "-F", "raw", "a.qcow2", &size,
    ];
    qemu_img(&folder, &args);
    let mut commands = vec!["write -P 1 0 8k".to_owned(), "write -P 4 30k 9k".to_owned()];
    if compressed {
        commands.push("write -c -P 2 16k 8k".to_owned());
    }
    if !options.contains("0.10") {
        commands.push("write -z 8k 8k".to_owned());
    }
    qemu_io(&folder, "a.qcow2", &commands);
    for name in ["one", "two"] {
        qemu_img(&folder, &["snapshot", "-c", name, "a.qcow2"]);
    }
    if !options.contains("0.10") {
        qemu_img(&folder, &["bitmap", "--add", "a.qcow2", "bits"]);
    }
    std::fs::read(folder.path("a.qcow2")).unwrap()
}

/// Reads the active disk and a snapshot, and asks for both maps.
fn use_it(storage: Arc<dyn Storage>, snapshot: Option<&str>) -> Result<Vec<u8>> {
    let options = LayerOptions::default();
    let top = Layer::open_qcow2(storage, &options)?;
    let below = Layer::open_raw(Arc::new(MemoryStorage::new(vec![0x77; SIZE / 2])), &options)?;
    let layers = if top.extensions().is_some_and(|e| e.backing_name.is_some()) {
        vec![top, below]
    } else {
        vec![top]
    };
    let options = ChainOptions {
        snapshot: snapshot.map(Into::into),
        ..ChainOptions::default()
    };
    let chain = Chain::new(layers, options)?;
    let mut bytes = vec![0; SIZE];
    let count = chain.read(GuestOffset(0), &mut bytes)?;
    bytes.truncate(count);
    let (mut at, mut steps) = (0, 0);
    while at < chain.virtual_size() && steps < 1000 {
        let some = chain.status(GuestOffset(at), u64::MAX, 100)?;
        let runs = chain.resolve(GuestOffset(at), u64::MAX, 100)?;
        at = some.last().unwrap().start.0 + some.last().unwrap().length;
        assert!(
            runs.iter()
                .all(|run| run.length > 0 && run.end().0 <= chain.virtual_size())
        );
        steps += 1;
    }
    Ok(bytes)
}

/// The parts of the image that are not guest data: everything but the runs of the active disk.
fn metadata(image: &[u8]) -> Vec<usize> {
    let storage = Arc::new(MemoryStorage::new(image.to_vec()));
    let layer = Layer::open_qcow2(storage, &LayerOptions::default()).unwrap();
    let options = ChainOptions {
        without_backing: true,
        ..ChainOptions::default()
    };
    let chain = Chain::new(vec![layer], options).unwrap();
    let mut data = vec![false; image.len()];
    for status in chain.status(GuestOffset(0), u64::MAX, usize::MAX).unwrap() {
        if let Some(HostOffset(at)) = status.offset.filter(|_| status.data) {
            let end = (at as usize + status.length as usize).min(image.len());
            data[at as usize..end].fill(true);
        }
    }
    (0..image.len()).filter(|&at| !data[at]).collect()
}

/// The bits to flip at `at`: all of them near anything that is not zero, one now and then in between.
fn bits(image: &[u8], at: usize) -> std::ops::Range<u32> {
    let line = at / 32 * 32;
    let near = &image[line..(line + 32).min(image.len())];
    match () {
        () if near.iter().any(|&byte| byte != 0) => 0..8,
        () if at % 256 == 7 => 0..1,
        () => 0..0,
    }
}

#[test]
fn a_flipped_bit_of_metadata_is_an_error_or_a_disk() {
    for (options, compressed) in [
        ("cluster_size=1024,refcount_bits=16", true),
        ("cluster_size=16384,extended_l2=on", false),
        ("cluster_size=512,compat=0.10", false),
    ] {
        let image = image(options, compressed);
        let right = use_it(Arc::new(MemoryStorage::new(image.clone())), None).unwrap();
        let storage = Arc::new(MemoryStorage::new(image.clone()));
        let (mut errors, mut same, mut other) = (0u32, 0u32, 0u32);
        for at in metadata(&image) {
            for bit in bits(&image, at) {
                storage
                    .write_at(HostOffset(at as u64), &[image[at] ^ 1 << bit])
                    .unwrap();
                match use_it(storage.clone(), None) {
                    Ok(bytes) if bytes == right => same += 1,
                    Ok(_) => other += 1,
                    Err(error) => {
                        assert!(error.code().starts_with("ERR_QCOW2_") && error.code() != "ERR_QCOW2_INTERNAL");
                        errors += 1;
                    }
                }
            }
            let _ = use_it(storage.clone(), Some("two"));
            storage.write_at(HostOffset(at as u64), &[image[at]]).unwrap();
        }
        // A flipped offset may name other bytes, which nothing can tell; the header never does.
        assert!(
            errors > 500 && same > 500 && other < errors + same,
            "{options}: {errors} {same} {other}"
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    if let Some(kib) = peak.and_then(|line| line.trim().strip_suffix("kB")) {
        let kib: u64 = kib.trim().parse().unwrap();
        assert!(kib < 256 << 10, "peak memory is {kib} KiB");
    }
}
