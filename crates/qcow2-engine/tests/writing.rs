//! Random writes, zeroes, discards and flushes on images of many shapes, against a flat model of bytes; afterwards the image is checked by us and by
//! qemu-img, and read by both.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::path::Path;
use std::sync::Arc;

use qcow2_engine::storage::{AllowSpecial, FileStorage, OpenMode};
use qcow2_engine::{
    CheckOptions, Disk, DiskOptions, JobContext, Layer, LayerOptions, Preallocation, ResizeOptions, Storage, check,
};
use qcow2_format::GuestOffset;
use support::{Folder, Random, assert_same, qemu_img, qemu_io, run};

const SIZE: usize = 3 << 20;

/// An image to be written.
struct Shape {
    name: &'static str,
    options: &'static str,
    /// Bytes of a raw backing file.
    backing: usize,
    compressed: bool,
}

const fn shape(name: &'static str, options: &'static str) -> Shape {
    Shape {
        name,
        options,
        backing: 0,
        compressed: false,
    }
}

const SHAPES: &[Shape] = &[
    shape("plain", "cluster_size=64k"),
    shape("small clusters", "cluster_size=512"),
    shape("narrow refcounts", "cluster_size=512,refcount_bits=1"),
    shape("wide refcounts", "cluster_size=512,refcount_bits=64"),
    shape("two bits", "cluster_size=4k,refcount_bits=2"),
    shape("large clusters", "cluster_size=2M"),
    shape("version 2", "compat=0.10,cluster_size=4k"),
    shape("lazy", "cluster_size=4k,lazy_refcounts=on"),
    shape("subclusters", "cluster_size=16k,extended_l2=on"),
    shape("large subclusters", "cluster_size=128k,extended_l2=on"),
    shape("preallocated", "cluster_size=4k,preallocation=metadata"),
    shape("data file", "cluster_size=4k,data_file=DATA"),
    shape("raw data file", "cluster_size=64k,data_file=DATA,data_file_raw=on"),
    shape(
        "data file with subclusters",
        "cluster_size=16k,extended_l2=on,data_file=DATA",
    ),
    Shape {
        backing: 2 << 20,
        ..shape("overlay", "cluster_size=64k")
    },
    Shape {
        backing: (2 << 20) + 5 * 512,
        ..shape("overlay with subclusters", "cluster_size=32k,extended_l2=on")
    },
    Shape {
        backing: 2 << 20,
        ..shape("overlay of version 2", "compat=0.10,cluster_size=4k")
    },
    Shape {
        compressed: true,
        ..shape("compressed", "cluster_size=64k")
    },
    Shape {
        compressed: true,
        ..shape("compressed, small clusters", "cluster_size=4k,refcount_bits=8")
    },
    Shape {
        compressed: true,
        ..shape("compressed with subclusters", "cluster_size=16k,extended_l2=on")
    },
];

fn open_file(path: &Path) -> Arc<dyn Storage> {
    let mode = OpenMode {
        writable: true,
        special: AllowSpecial::No,
    };
    Arc::new(FileStorage::open(path, mode).unwrap())
}

fn layers(folder: &Folder, shape: &Shape) -> Vec<Layer> {
    let writable = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let mut top = Layer::open_qcow2(open_file(&folder.path("a.qcow2")), &writable).unwrap();
    if top.needs_data_file() {
        top.set_data_file(open_file(&folder.path("data.raw"))).unwrap();
    }
    let mut layers = vec![top];
    if shape.backing > 0 {
        layers.push(Layer::open_raw(support::storage(&folder.path("base.raw")), &LayerOptions::default()).unwrap());
    }
    layers
}

fn make(folder: &Folder, shape: &Shape, random: &mut Random) -> Vec<u8> {
    let mut model = vec![0; SIZE];
    let fill = |bytes: &mut [u8], random: &mut Random| {
        for chunk in bytes.chunks_mut(512) {
            let tag = random.next().to_le_bytes();
            chunk
                .iter_mut()
                .zip(tag.iter().cycle())
                .for_each(|(byte, tag)| *byte = *tag);
        }
    };
    let options = shape.options.replace("DATA", folder.path("data.raw").to_str().unwrap());
    if shape.compressed {
        for at in (0..SIZE).step_by(65536 * 3) {
            fill(&mut model[at..at + 65536], random);
        }
        std::fs::write(folder.path("source.raw"), &model).unwrap();
        let args = ["convert", "-c", "-O", "qcow2", "-o", &options, "source.raw", "a.qcow2"];
        qemu_img(folder, &args);
        return model;
    }
    let size = SIZE.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if shape.backing > 0 {
        fill(&mut model[..shape.backing], random);
        std::fs::write(folder.path("base.raw"), &model[..shape.backing]).unwrap();
        args.extend(["-b", "base.raw", "-F", "raw"]);
    }
    args.extend(["a.qcow2", &size]);
    qemu_img(folder, &args);
    model
}

/// A range, aligned more often than not.
fn range(random: &mut Random, size: usize) -> (usize, usize) {
    let unit = *random.pick(&[1, 512, 512, 4096, 65536]);
    let begin = random.below(size as u64) as usize / unit * unit;
    let most = *random.pick(&[700, 5000, 70_000, 400_000]);
    let length = (1 + random.below(most) as usize).next_multiple_of(unit);
    (begin, length.min(size - begin))
}

fn judge(folder: &Folder, shape: &Shape, model: &[u8]) {
    let layer = Layer::open_qcow2(support::storage(&folder.path("a.qcow2")), &LayerOptions::default()).unwrap();
    let report = check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap();
    assert_eq!(
        (report.corruptions, report.leaks, report.check_errors),
        (0, 0, 0),
        "{}: {:#?}",
        shape.name,
        report.findings
    );
    drop(layer);
    run(folder, "qemu-img", &["check", "-q", "a.qcow2"]);
    run(folder, "qemu-img", &["convert", "-O", "raw", "a.qcow2", "out.raw"]);
    assert_same(&std::fs::read(folder.path("out.raw")).unwrap(), model, shape.name);
}

fn exercise(shape: &Shape, seed: u64) {
    let folder = Folder::new();
    let mut random = Random::new(seed);
    let mut model = make(&folder, shape, &mut random);
    for _ in 0..4 {
        let disk = Disk::open(layers(&folder, shape), DiskOptions::default()).unwrap();
        for _ in 0..120 {
            let (begin, length) = range(&mut random, model.len());
            let at = GuestOffset(begin as u64);
            match random.below(11) {
                0..=4 => {
                    let mut bytes = vec![0; length];
                    for chunk in bytes.chunks_mut(512) {
                        let tag = random.next().to_le_bytes();
                        chunk
                            .iter_mut()
                            .zip(tag.iter().cycle())
                            .for_each(|(byte, tag)| *byte = *tag);
                    }
                    disk.write(at, &bytes).unwrap();
                    model[begin..begin + length].copy_from_slice(&bytes);
                }
                5 | 6 => {
                    disk.write_zeroes(at, length as u64, random.below(2) == 0).unwrap();
                    model[begin..begin + length].fill(0);
                }
                7 => {
                    disk.discard(at, length as u64).unwrap();
                    // What a discard leaves is its own affair, within bounds: each byte is what it was, or zero.
                    let mut after = vec![0; length];
                    disk.chain().read(at, &mut after).unwrap();
                    for (byte, old) in after.iter().zip(&mut model[begin..begin + length]) {
                        assert!(
                            *byte == 0 || byte == old,
                            "{}: a discard brought foreign bytes",
                            shape.name
                        );
                        *old = *byte;
                    }
                }
                8 => disk.flush().unwrap(),
                9 if random.below(4) == 0 => {
                    let size = 1 + random.below(10_000) as usize;
                    let preallocation = *random.pick(&[
                        Preallocation::Off,
                        Preallocation::Off,
                        Preallocation::Metadata,
                        Preallocation::Falloc,
                        Preallocation::Full,
                    ]);
                    let options = ResizeOptions {
                        shrink: size * 512 < model.len(),
                        preallocation: if size * 512 < model.len() {
                            Preallocation::Off
                        } else {
                            preallocation
                        },
                    };
                    disk.resize(size as u64 * 512, options).unwrap();
                    model.resize(size * 512, 0);
                    assert_eq!(disk.chain().virtual_size(), size as u64 * 512);
                }
                _ => {
                    let mut bytes = vec![1; length];
                    assert_eq!(disk.chain().read(at, &mut bytes).unwrap(), length);
                    assert_same(&bytes, &model[begin..begin + length], shape.name);
                }
            }
        }
        let mut bytes = vec![1; model.len()];
        disk.chain().read(GuestOffset(0), &mut bytes).unwrap();
        assert_same(&bytes, &model, shape.name);
        disk.close().unwrap();
        drop(disk);
        judge(&folder, shape, &model);
        if shape.options.contains("data_file_raw") {
            assert_same(
                &std::fs::read(folder.path("data.raw")).unwrap(),
                &model,
                "the raw data file",
            );
        }
        // qemu changes it in between.
        let begin = random.below(model.len() as u64 / 512) as usize * 512;
        let length = (512 * 9).min(model.len() - begin);
        qemu_io(&folder, "a.qcow2", &[format!("write -P 0xa7 {begin} {length}")]);
        model[begin..begin + length].fill(0xa7);
    }
}

#[test]
fn random_changes_leave_what_a_flat_model_says() {
    for (number, shape) in (0..).zip(SHAPES) {
        exercise(shape, 1000 + number);
    }
}
