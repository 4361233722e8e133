//! Internal snapshots in random order with writes, zeroes, discards and new sizes between, on images of many shapes, against a flat model of bytes
//! for the disk and for each snapshot; qemu-img checks the image every now and then and takes its turns at creating, applying and deleting.
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
    CheckOptions, Disk, DiskOptions, JobContext, Layer, LayerOptions, NewSnapshot, ResizeOptions, SnapshotChoice,
    Storage, check,
};
use qcow2_format::GuestOffset;
use support::{Folder, Random, assert_same, qemu_img, run};

const SIZE: usize = 2 << 20;

struct Shape {
    name: &'static str,
    options: &'static str,
    backing: usize,
    compressed: bool,
    /// Snapshots at a time that its refcounts can count.
    most: usize,
}

const fn shape(name: &'static str, options: &'static str) -> Shape {
    Shape {
        name,
        options,
        backing: 0,
        compressed: false,
        most: 5,
    }
}

const SHAPES: &[Shape] = &[
    shape("plain", "cluster_size=64k"),
    shape("small clusters", "cluster_size=512"),
    shape("wide refcounts", "cluster_size=512,refcount_bits=64"),
    shape("double refcounts", "cluster_size=1k,refcount_bits=32"),
    Shape {
        most: 2,
        ..shape("two bits", "cluster_size=512,refcount_bits=2")
    },
    shape("four bits", "cluster_size=4k,refcount_bits=4"),
    shape("eight bits", "cluster_size=512,refcount_bits=8"),
    shape("large clusters", "cluster_size=2M"),
    shape("version 2", "compat=0.10,cluster_size=4k"),
    shape("lazy", "cluster_size=4k,lazy_refcounts=on"),
    shape("subclusters", "cluster_size=16k,extended_l2=on"),
    shape("preallocated", "cluster_size=4k,preallocation=metadata"),
    Shape {
        backing: 1 << 20,
        ..shape("overlay", "cluster_size=64k")
    },
    Shape {
        backing: (1 << 20) + 5 * 512,
        ..shape("overlay with subclusters", "cluster_size=32k,extended_l2=on")
    },
    Shape {
        backing: 1 << 20,
        ..shape("overlay of version 2", "compat=0.10,cluster_size=4k")
    },
    Shape {
        compressed: true,
        ..shape("compressed", "cluster_size=64k")
    },
    Shape {
        compressed: true,
        most: 3,
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

fn open(folder: &Folder, shape: &Shape, options: DiskOptions) -> Disk {
    let writable = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let mut layers = vec![Layer::open_qcow2(open_file(&folder.path("a.qcow2")), &writable).unwrap()];
    if shape.backing > 0 {
        layers.push(Layer::open_raw(support::storage(&folder.path("base.raw")), &LayerOptions::default()).unwrap());
    }
    Disk::open(layers, options).unwrap()
}

fn fill(bytes: &mut [u8], random: &mut Random) {
    for chunk in bytes.chunks_mut(512) {
        let tag = random.next().to_le_bytes();
        chunk
            .iter_mut()
            .zip(tag.iter().cycle())
            .for_each(|(byte, tag)| *byte = *tag);
    }
}

fn make(folder: &Folder, shape: &Shape, random: &mut Random) -> Vec<u8> {
    let mut model = vec![0; SIZE];
    if shape.compressed {
        for at in (0..SIZE).step_by(65536 * 3) {
            fill(&mut model[at..at + 65536], random);
        }
        std::fs::write(folder.path("source.raw"), &model).unwrap();
        let args = [
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            shape.options,
            "source.raw",
            "a.qcow2",
        ];
        qemu_img(folder, &args);
        return model;
    }
    let size = SIZE.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", shape.options];
    if shape.backing > 0 {
        fill(&mut model[..shape.backing], random);
        std::fs::write(folder.path("base.raw"), &model[..shape.backing]).unwrap();
        args.extend(["-b", "base.raw", "-F", "raw"]);
    }
    args.extend(["a.qcow2", &size]);
    qemu_img(folder, &args);
    model
}

/// A snapshot as the test knows it.
struct Known {
    id: String,
    name: String,
    bytes: Vec<u8>,
}

/// The image, the disk's bytes, and those of its snapshots.
struct Bench<'a> {
    folder: &'a Folder,
    shape: &'a Shape,
    random: Random,
    model: Vec<u8>,
    known: Vec<Known>,
    names: u32,
}

impl Bench<'_> {
    fn name(&self, step: u32) -> String {
        format!("{}, step {step}", self.shape.name)
    }

    fn range(&mut self) -> (usize, usize) {
        let unit = *self.random.pick(&[1, 512, 512, 4096, 65536]);
        let begin = self.random.below(self.model.len() as u64) as usize / unit * unit;
        let most = *self.random.pick(&[700, 5000, 70_000, 400_000]);
        let length = (1 + self.random.below(most) as usize).next_multiple_of(unit);
        (begin, length.min(self.model.len() - begin))
    }

    fn change(&mut self, disk: &Disk) {
        let (begin, length) = self.range();
        let at = GuestOffset(begin as u64);
        match self.random.below(6) {
            0..=3 => {
                let mut bytes = vec![0; length];
                fill(&mut bytes, &mut self.random);
                disk.write(at, &bytes).unwrap();
                self.model[begin..begin + length].copy_from_slice(&bytes);
            }
            4 => {
                let unmap = self.random.below(2) == 0;
                disk.write_zeroes(at, length as u64, unmap).unwrap();
                self.model[begin..begin + length].fill(0);
            }
            _ => {
                disk.discard(at, length as u64).unwrap();
                let mut after = vec![0; length];
                disk.chain().read(at, &mut after).unwrap();
                for (byte, old) in after.iter().zip(&mut self.model[begin..begin + length]) {
                    assert!(*byte == 0 || byte == old, "{}: foreign bytes", self.shape.name);
                    *old = *byte;
                }
            }
        }
    }

    fn switch(&mut self, disk: &Disk) {
        let pick = self.random.below(self.known.len() as u64) as usize;
        match self.random.below(12) {
            0..=4 => self.create(disk),
            5..=7 if !self.known.is_empty() => {
                let known = &self.known[pick];
                match disk.snapshot_apply(&SnapshotChoice::IdOrName(known.name.clone())) {
                    Ok(()) => self.model = known.bytes.clone(),
                    // Before the disk lets go of what it has, what it gets is counted.
                    Err(error) => assert_eq!(
                        (error.code().as_str(), self.shape.most),
                        ("ERR_QCOW2_REFCOUNT_OVERFLOW", 2)
                    ),
                }
            }
            8 | 9 if !self.known.is_empty() => {
                let known = self.known.remove(pick);
                disk.snapshot_delete(&SnapshotChoice::Id(known.id)).unwrap();
            }
            10 if !self.known.is_empty() => {
                self.names += 1;
                let name = format!("renamed {}", self.names);
                let known = &mut self.known[pick];
                disk.snapshot_rename(&SnapshotChoice::Name(known.name.clone()), &name)
                    .unwrap();
                known.name = name;
            }
            11 if !self.shape.options.contains("0.10") => {
                let size = (SIZE / 2 + self.random.below(SIZE as u64) as usize) & !511;
                let options = ResizeOptions {
                    shrink: true,
                    ..ResizeOptions::default()
                };
                disk.resize(size as u64, options).unwrap();
                self.model.resize(size, 0);
            }
            _ => {}
        }
    }

    fn create(&mut self, disk: &Disk) {
        self.names += 1;
        let name = format!("name {}", self.names);
        let new = NewSnapshot {
            name: name.clone(),
            date: Some((1_700_000_000 + self.names, 5)),
            ..NewSnapshot::default()
        };
        if self.known.len() >= self.shape.most {
            if self.shape.most == 2 && self.model.iter().any(|byte| *byte != 0) {
                // Nothing that this disk has may be shared by all snapshots, so it may be possible all the same.
                match disk.snapshot_create(new) {
                    Ok(taken) => self.note(taken, name),
                    Err(error) => assert_eq!(error.code(), "ERR_QCOW2_REFCOUNT_OVERFLOW"),
                }
            }
            return;
        }
        match disk.snapshot_create(new) {
            Ok(taken) => self.note(taken, name),
            Err(error) => assert!(
                self.shape.options.contains("refcount_bits=2") && error.code() == "ERR_QCOW2_REFCOUNT_OVERFLOW",
                "{}: {error}",
                self.shape.name
            ),
        }
    }

    fn note(&mut self, taken: qcow2_format::Snapshot, name: String) {
        self.known.push(Known {
            id: String::from_utf8(taken.id).unwrap(),
            name,
            bytes: self.model.clone(),
        });
    }

    /// The disk and the snapshots hold what they should, and the lists agree.
    fn read_all(&self, disk: &Disk, step: u32) {
        let mut bytes = vec![1; self.model.len()];
        assert_eq!(disk.chain().virtual_size(), bytes.len() as u64, "{}", self.name(step));
        disk.chain().read(GuestOffset(0), &mut bytes).unwrap();
        assert_same(&bytes, &self.model, &self.name(step));
        let listed: Vec<_> = disk
            .snapshots()
            .iter()
            .map(|s| {
                (
                    String::from_utf8(s.id.clone()).unwrap(),
                    String::from_utf8(s.name.clone()).unwrap(),
                )
            })
            .collect();
        let known: Vec<_> = self.known.iter().map(|k| (k.id.clone(), k.name.clone())).collect();
        assert_eq!(listed, known, "{}", self.name(step));
        for known in &self.known {
            let view = disk.snapshot_view(&SnapshotChoice::Id(known.id.clone())).unwrap();
            assert_eq!(view.virtual_size(), known.bytes.len() as u64);
            let mut bytes = vec![1; known.bytes.len()];
            view.read(GuestOffset(0), &mut bytes).unwrap();
            assert_same(&bytes, &known.bytes, &format!("{} of {}", known.name, self.name(step)));
            let refused = disk.snapshot_delete(&SnapshotChoice::Id(known.id.clone())).unwrap_err();
            assert_eq!(refused.code(), "ERR_QCOW2_SNAPSHOT_IN_USE");
        }
    }

    /// The image is right on disk, while it is open: what a switch gave back is written with the next flushes.
    fn check_open(&self, disk: &Disk, step: u32) {
        disk.flush().unwrap();
        disk.flush().unwrap();
        let args: &[&str] = if self.shape.options.contains("lazy") {
            // The dirty bit is a finding as long as the disk is open.
            return;
        } else {
            &["check", "-q", "-U", "a.qcow2"]
        };
        let output = std::process::Command::new("qemu-img")
            .args(args)
            .current_dir(self.folder.path("."))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}{}",
            self.name(step),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The image is right once it is closed, for us and for qemu-img.
    fn check_closed(&self) {
        let layer =
            Layer::open_qcow2(support::storage(&self.folder.path("a.qcow2")), &LayerOptions::default()).unwrap();
        let report = check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap();
        assert_eq!(
            (report.corruptions, report.leaks, report.check_errors),
            (0, 0, 0),
            "{}: {:#?}",
            self.shape.name,
            report.findings
        );
        drop(layer);
        run(self.folder, "qemu-img", &["check", "-q", "a.qcow2"]);
        run(self.folder, "qemu-img", &["convert", "-O", "raw", "a.qcow2", "out.raw"]);
        let read = std::fs::read(self.folder.path("out.raw")).unwrap();
        assert_same(&read, &self.model, self.shape.name);
        for known in &self.known {
            let args = ["convert", "-l", &known.name, "-O", "raw", "a.qcow2", "out.raw"];
            run(self.folder, "qemu-img", &args);
            // qemu-img reads as much of it as the disk has now.
            let mut read = std::fs::read(self.folder.path("out.raw")).unwrap();
            let common = read.len().min(known.bytes.len());
            read.truncate(common);
            assert_same(
                &read,
                &known.bytes[..common],
                &format!("{} of {}", known.name, self.shape.name),
            );
        }
    }

    /// qemu-img's turn.
    fn qemu(&mut self) {
        let pick = self.random.below(self.known.len() as u64) as usize;
        match self.random.below(3) {
            0 if self.known.len() < self.shape.most.min(2) => {
                let largest = self.known.iter().map(|known| known.id.parse::<u32>().unwrap()).max();
                self.names += 1;
                let name = format!("qemu {}", self.names);
                qemu_img(self.folder, &["snapshot", "-c", &name, "a.qcow2"]);
                self.known.push(Known {
                    id: (largest.unwrap_or(0) + 1).to_string(),
                    name,
                    bytes: self.model.clone(),
                });
            }
            1 if !self.known.is_empty() && self.known[pick].bytes.len() == self.model.len() => {
                qemu_img(self.folder, &["snapshot", "-a", &self.known[pick].name, "a.qcow2"]);
                self.model = self.known[pick].bytes.clone();
            }
            2 if !self.known.is_empty() => {
                let known = self.known.remove(pick);
                qemu_img(self.folder, &["snapshot", "-d", &known.name, "a.qcow2"]);
            }
            _ => {}
        }
    }
}

fn exercise(shape: &Shape, seed: u64) {
    let folder = Folder::new();
    let mut random = Random::new(seed);
    let model = make(&folder, shape, &mut random);
    let mut bench = Bench {
        folder: &folder,
        shape,
        random,
        model,
        known: Vec::new(),
        names: 0,
    };
    for round in 0..3 {
        // With and without room for all refcount blocks at once.
        let options = if round == 1 {
            DiskOptions::default()
        } else {
            DiskOptions {
                cache_bytes: 0,
                ..DiskOptions::default()
            }
        };
        let disk = open(&folder, shape, options);
        for step in 0..14 {
            for _ in 0..bench.random.below(6) {
                bench.change(&disk);
            }
            bench.switch(&disk);
            bench.read_all(&disk, step);
            if step % 4 == 3 {
                bench.check_open(&disk, step);
            }
        }
        disk.close().unwrap();
        drop(disk);
        bench.check_closed();
        bench.qemu();
    }
}

#[test]
fn snapshots_keep_what_they_were_taken_of_whatever_happens_to_the_disk() {
    for (number, shape) in (0..).zip(SHAPES) {
        exercise(shape, 7000 + number);
    }
}
