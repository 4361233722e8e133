//! We and qemu write one image in turns: bytes, zeroes, discards, snapshots, bitmaps, sizes. After each turn a flat model of bytes says what the disk, its
//! snapshots and its bitmaps hold; both of us read them, and both of us check the image.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use qcow2_engine::{Disk, DiskOptions, Layer, LayerOptions, NewBitmap, NewSnapshot, ResizeOptions, SnapshotChoice};
use qcow2_format::GuestOffset;
use support::dirty::{Granules, clean, dirty, qemu_dirty, writable};
use support::{Folder, Random, assert_same, qemu_img, qemu_io, run};

const SIZE: usize = (2 << 20) + 512 * 7;
const ROUNDS: u32 = 5;
const OPERATIONS: u32 = 36;

/// An image that both write.
#[derive(Clone, Copy, Default)]
struct Shape {
    options: &'static str,
    /// Bytes of a raw backing file.
    backing: usize,
    compressed: bool,
}

impl Shape {
    fn is(&self, option: &str) -> bool {
        self.options.contains(option)
    }

    fn snapshots(&self) -> bool {
        !self.is("data_file")
    }

    fn bitmaps(&self) -> bool {
        !self.is("compat=0.10")
    }
}

/// The image, and what it should hold.
struct Image {
    folder: Folder,
    shape: Shape,
    random: Random,
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    bitmaps: Vec<Granules>,
    names: u32,
}

fn open(folder: &Folder, shape: &Shape) -> qcow2_engine::Result<Disk> {
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let mut top = Layer::open_qcow2(writable(&folder.path("a.qcow2")), &options)?;
    if top.needs_data_file() {
        top.set_data_file(writable(&folder.path("data.raw")))?;
    }
    let mut layers = vec![top];
    if shape.backing > 0 {
        layers.push(Layer::open_raw(
            support::storage(&folder.path("base.raw")),
            &LayerOptions::default(),
        )?);
    }
    Disk::open(layers, DiskOptions::default())
}

impl Image {
    fn new(shape: Shape, seed: u64) -> Self {
        let folder = Folder::new();
        let mut random = Random::new(seed);
        let mut disk = vec![0; SIZE];
        let options = shape.options.replace("DATA", folder.path("data.raw").to_str().unwrap());
        if shape.compressed {
            for at in (0..SIZE - 65536).step_by(65536 * 3) {
                disk[at..at + 65536].fill(1 + random.below(255) as u8);
            }
            std::fs::write(folder.path("source.raw"), &disk).unwrap();
            qemu_img(
                &folder,
                &["convert", "-c", "-O", "qcow2", "-o", &options, "source.raw", "a.qcow2"],
            );
        } else {
            let size = SIZE.to_string();
            let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
            if shape.backing > 0 {
                for (at, byte) in disk[..shape.backing].iter_mut().enumerate() {
                    *byte = 1 + (at / 512 % 251) as u8;
                }
                std::fs::write(folder.path("base.raw"), &disk[..shape.backing]).unwrap();
                args.extend(["-b", "base.raw", "-F", "raw"]);
            }
            args.extend(["a.qcow2", &size]);
            qemu_img(&folder, &args);
        }
        Self {
            folder,
            shape,
            random,
            disk,
            snapshots: Vec::new(),
            bitmaps: Vec::new(),
            names: 0,
        }
    }

    fn range(&mut self, unit: &[usize]) -> (usize, usize) {
        let unit = *self.random.pick(unit);
        let begin = self.random.below(self.disk.len() as u64) as usize / unit * unit;
        let most = *self.random.pick(&[700, 5000, 70_000, 300_000]);
        let length = (1 + self.random.below(most) as usize).next_multiple_of(unit);
        (begin, length.min(self.disk.len() - begin))
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn changed(&mut self, begin: usize, length: usize) {
        for bitmap in self.bitmaps.iter_mut().filter(|bitmap| bitmap.enabled) {
            bitmap.mark(begin as u64..(begin + length) as u64);
        }
    }

    /// What a discard left: each byte is what it was, or zero.
    fn discarded(&mut self, begin: usize, after: &[u8]) {
        for (new, old) in after.iter().zip(&mut self.disk[begin..begin + after.len()]) {
            assert!(*new == 0 || new == old, "a discard brought foreign bytes");
            *old = *new;
        }
        self.changed(begin, after.len());
    }

    /// Our turn.
    fn ours(&mut self) {
        let disk = open(&self.folder, &self.shape).unwrap();
        for _ in 0..OPERATIONS {
            self.one(&disk);
        }
        let mut bytes = vec![1; self.disk.len()];
        disk.chain().read(GuestOffset(0), &mut bytes).unwrap();
        assert_same(&bytes, &self.disk, "our disk while we hold it");
        // qemu may look at it meanwhile, if it does not mind, and sees what was flushed.
        disk.flush().unwrap();
        run(
            &self.folder,
            "qemu-img",
            &["convert", "-U", "-O", "raw", "a.qcow2", "out.raw"],
        );
        assert_same(
            &std::fs::read(self.folder.path("out.raw")).unwrap(),
            &self.disk,
            "our disk by qemu while we hold it",
        );
        disk.close().unwrap();
    }

    fn one(&mut self, disk: &Disk) {
        let (begin, length) = self.range(&[1, 512, 4096, 65536]);
        let at = GuestOffset(begin as u64);
        match self.random.below(16) {
            0..=5 => {
                let value = 1 + self.random.below(255) as u8;
                disk.write(at, &vec![value; length]).unwrap();
                self.disk[begin..begin + length].fill(value);
                self.changed(begin, length);
            }
            6 | 7 => {
                disk.write_zeroes(at, length as u64, self.random.below(2) == 0).unwrap();
                self.disk[begin..begin + length].fill(0);
                self.changed(begin, length);
            }
            8 | 9 => {
                disk.discard(at, length as u64).unwrap();
                let mut after = vec![0; length];
                disk.chain().read(at, &mut after).unwrap();
                self.discarded(begin, &after);
            }
            10 => disk.flush().unwrap(),
            11 | 12 if self.shape.snapshots() => self.our_snapshot(disk),
            13 | 14 if self.shape.bitmaps() => self.our_bitmap(disk),
            15 if self.shape.bitmaps() => {
                let size = (SIZE / 2 + self.random.below(SIZE as u64) as usize) & !511;
                let options = ResizeOptions {
                    shrink: true,
                    ..ResizeOptions::default()
                };
                disk.resize(size as u64, options).unwrap();
                self.resized(size);
            }
            _ => {}
        }
    }

    fn resized(&mut self, size: usize) {
        self.disk.resize(size, 0);
        self.bitmaps.iter_mut().for_each(|bitmap| bitmap.resize(size as u64));
    }

    fn our_snapshot(&mut self, disk: &Disk) {
        let pick = self.random.below(self.snapshots.len() as u64) as usize;
        let choice = |image: &Self| SnapshotChoice::Name(image.snapshots[pick].0.clone());
        match self.random.below(3) {
            1 if !self.snapshots.is_empty() => {
                disk.snapshot_apply(&choice(self)).unwrap();
                let bytes = self.snapshots[pick].1.clone();
                self.resized(bytes.len());
                self.changed(0, bytes.len());
                self.disk = bytes;
            }
            2 if !self.snapshots.is_empty() => {
                disk.snapshot_delete(&choice(self)).unwrap();
                self.snapshots.remove(pick);
            }
            _ if self.snapshots.len() < 4 => {
                let name = self.name();
                let new = NewSnapshot {
                    name: name.clone(),
                    ..NewSnapshot::default()
                };
                disk.snapshot_create(new).unwrap();
                self.snapshots.push((name, self.disk.clone()));
            }
            _ => {}
        }
    }

    fn our_bitmap(&mut self, disk: &Disk) {
        let pick = self.random.below(self.bitmaps.len() as u64) as usize;
        let action = self.random.below(6);
        if self.bitmaps.is_empty() || (action == 0 && self.bitmaps.len() < 4) {
            let name = self.name();
            let granularity = 512 << self.random.below(9);
            let enabled = self.random.below(4) > 0;
            self.bitmaps
                .push(Granules::new(&name, granularity, enabled, self.disk.len() as u64));
            let granularity = Some(granularity);
            disk.bitmap_add(NewBitmap {
                name,
                granularity,
                enabled,
            })
            .unwrap();
            return;
        }
        let bitmap = &mut self.bitmaps[pick];
        match action {
            1 => {
                disk.bitmap_clear(&bitmap.name).unwrap();
                bitmap.dirty.fill(false);
            }
            2 => {
                bitmap.enabled = !bitmap.enabled;
                disk.bitmap_enable(&bitmap.name, bitmap.enabled).unwrap();
            }
            3 => {
                disk.bitmap_remove(&bitmap.name).unwrap();
                self.bitmaps.remove(pick);
            }
            _ => assert_eq!(
                dirty(disk, &bitmap.name),
                bitmap.ranges(),
                "{} while it is open",
                bitmap.name
            ),
        }
    }

    /// qemu's turn.
    fn theirs(&mut self) {
        let mut commands = Vec::new();
        for _ in 0..OPERATIONS {
            let (begin, length) = self.range(&[512, 512, 4096, 65536]);
            let value = 1 + self.random.below(255) as u8;
            let (flags, value) = match self.random.below(8) {
                0 | 1 => ("-z".to_owned(), 0),
                2 => ("-z -u".to_owned(), 0),
                _ => (format!("-P {value}"), value),
            };
            commands.push(format!("write {flags} {begin} {length}"));
            self.disk[begin..begin + length].fill(value);
            self.changed(begin, length);
            if self.random.below(6) == 0 {
                commands.push("flush".into());
            }
        }
        qemu_io(&self.folder, "a.qcow2", &commands);
        for _ in 0..3 {
            let (begin, length) = self.range(&[512, 4096, 65536]);
            qemu_io(&self.folder, "a.qcow2", &[format!("discard {begin} {length}")]);
            let after = self.by_qemu(&[]);
            self.discarded(begin, &after[begin..begin + length]);
        }
        if self.shape.snapshots() {
            self.their_snapshot();
        }
        if self.shape.bitmaps() {
            self.their_bitmap();
            if self.random.below(3) == 0 {
                self.their_growth();
            }
        }
    }

    /// What stands behind the end in the last cluster is shown by qemu when the disk grows: it belongs to the disk from then on.
    fn their_growth(&mut self) {
        let old = self.disk.len();
        let size = old + 512 * self.random.below(300) as usize;
        qemu_img(
            &self.folder,
            &["resize", "-q", "-f", "qcow2", "a.qcow2", &size.to_string()],
        );
        self.resized(size);
        let tail = old..old.next_multiple_of(65536).min(size);
        let shown = self.by_qemu(&[]);
        self.disk[tail.clone()].copy_from_slice(&shown[tail]);
    }

    fn their_snapshot(&mut self) {
        let pick = self.random.below(self.snapshots.len() as u64) as usize;
        let same_size = self
            .snapshots
            .get(pick)
            .is_some_and(|(_, bytes)| bytes.len() == self.disk.len());
        match self.random.below(3) {
            // What qemu makes of bitmaps then is its own affair.
            1 if same_size && self.bitmaps.is_empty() => {
                let (name, bytes) = &self.snapshots[pick];
                qemu_img(&self.folder, &["snapshot", "-a", name, "a.qcow2"]);
                self.disk.clone_from(bytes);
            }
            2 if !self.snapshots.is_empty() => {
                let (name, _) = self.snapshots.remove(pick);
                qemu_img(&self.folder, &["snapshot", "-d", &name, "a.qcow2"]);
            }
            _ if self.snapshots.len() < 4 => {
                let name = self.name();
                qemu_img(&self.folder, &["snapshot", "-c", &name, "a.qcow2"]);
                self.snapshots.push((name, self.disk.clone()));
            }
            _ => {}
        }
    }

    fn their_bitmap(&mut self) {
        let pick = self.random.below(self.bitmaps.len() as u64) as usize;
        let action = self.random.below(4);
        if self.bitmaps.is_empty() || (action == 0 && self.bitmaps.len() < 4) {
            let name = self.name();
            qemu_img(&self.folder, &["bitmap", "--add", "-g", "4096", "a.qcow2", &name]);
            self.bitmaps
                .push(Granules::new(&name, 4096, true, self.disk.len() as u64));
            return;
        }
        let bitmap = &mut self.bitmaps[pick];
        let act = |flag: &str, name: &str| qemu_img(&self.folder, &["bitmap", flag, "a.qcow2", name]);
        match action {
            1 => {
                act("--clear", &bitmap.name);
                bitmap.dirty.fill(false);
            }
            2 => {
                act(if bitmap.enabled { "--disable" } else { "--enable" }, &bitmap.name);
                bitmap.enabled = !bitmap.enabled;
            }
            _ => {
                act("--remove", &bitmap.name);
                self.bitmaps.remove(pick);
            }
        }
    }

    fn by_qemu(&self, more: &[&str]) -> Vec<u8> {
        let mut args = vec!["convert"];
        args.extend(more);
        args.extend(["-O", "raw", "a.qcow2", "out.raw"]);
        qemu_img(&self.folder, &args);
        std::fs::read(self.folder.path("out.raw")).unwrap()
    }

    /// Both of us find in the closed image what should be there, and nothing wrong with it.
    fn judge(&self, after: &str) {
        clean(&self.folder, "a.qcow2");
        assert_same(&self.by_qemu(&[]), &self.disk, after);
        let disk = open(&self.folder, &self.shape).unwrap();
        let mut bytes = vec![1; self.disk.len()];
        disk.chain().read(GuestOffset(0), &mut bytes).unwrap();
        assert_same(&bytes, &self.disk, after);
        assert_eq!(disk.snapshots().len(), self.snapshots.len(), "{after}");
        for (name, expected) in &self.snapshots {
            let view = disk.snapshot_view(&SnapshotChoice::Name(name.clone())).unwrap();
            let mut bytes = vec![1; expected.len()];
            view.read(GuestOffset(0), &mut bytes).unwrap();
            assert_same(&bytes, expected, &format!("{name} {after}"));
        }
        let names: Vec<String> = disk.bitmaps().into_iter().map(|bitmap| bitmap.name).collect();
        let expected: Vec<String> = self.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
        assert_eq!(names, expected, "{after}");
        for bitmap in &self.bitmaps {
            assert_eq!(dirty(&disk, &bitmap.name), bitmap.ranges(), "{} {after}", bitmap.name);
        }
        disk.close().unwrap();
        drop(disk);
        for (name, expected) in &self.snapshots {
            // qemu-img reads as much of a snapshot as the disk has now.
            let read = self.by_qemu(&["-l", name]);
            let common = read.len().min(expected.len());
            assert_same(&read[..common], &expected[..common], &format!("{name} by qemu {after}"));
        }
    }
}

fn alternate(shape: Shape, seed: u64) {
    let mut image = Image::new(shape, seed);
    for round in 0..ROUNDS {
        image.ours();
        image.judge(&format!("after our turn {round}"));
        image.theirs();
        image.judge(&format!("after qemu's turn {round}"));
    }
    for bitmap in &image.bitmaps {
        assert_eq!(
            qemu_dirty(&image.folder, "a.qcow2", &bitmap.name),
            bitmap.ranges(),
            "{} by qemu",
            bitmap.name
        );
    }
}

macro_rules! turns {
    ($($name:ident: $seed:literal, $shape:expr;)*) => {
        $(#[test]
        fn $name() {
            alternate($shape, $seed);
        })*
    };
}

const fn shape(options: &'static str) -> Shape {
    Shape {
        options,
        backing: 0,
        compressed: false,
    }
}

turns! {
    a_plain_image_in_turns: 1, shape("cluster_size=64k");
    small_clusters_in_turns: 2, shape("cluster_size=512,refcount_bits=64");
    narrow_refcounts_in_turns: 3, shape("cluster_size=4k,refcount_bits=8");
    lazy_refcounts_in_turns: 4, shape("cluster_size=4k,lazy_refcounts=on");
    version_2_in_turns: 5, shape("compat=0.10,cluster_size=4k");
    subclusters_in_turns: 6, shape("cluster_size=32k,extended_l2=on");
    a_data_file_in_turns: 7, shape("cluster_size=4k,data_file=DATA");
    a_raw_data_file_in_turns: 8, shape("cluster_size=64k,data_file=DATA,data_file_raw=on");
    a_preallocated_image_in_turns: 9, shape("cluster_size=4k,preallocation=metadata");
    an_overlay_in_turns: 10, Shape { backing: (1 << 20) + 512 * 3, ..shape("cluster_size=4k") };
    an_overlay_with_subclusters_in_turns: 11, Shape { backing: (1 << 20) + 512 * 3, ..shape("cluster_size=16k,extended_l2=on") };
    an_overlay_of_version_2_in_turns: 12, Shape { backing: 1 << 20, ..shape("compat=0.10,cluster_size=16k") };
    compressed_clusters_in_turns: 13, Shape { compressed: true, ..shape("cluster_size=4k") };
    large_compressed_clusters_in_turns: 14, Shape { compressed: true, ..shape("cluster_size=64k,compression_type=zstd") };
}

fn serve(folder: &Folder, socket: &Path) -> std::process::Child {
    let _ = std::fs::remove_file(socket);
    let mut server = Command::new("qemu-nbd")
        .args(["-t", "-f", "qcow2", "-k"])
        .arg(socket)
        .arg(folder.path("a.qcow2"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..1000 {
        if socket.exists() || server.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    server
}

#[test]
fn who_holds_the_image_is_left_alone_and_the_next_one_sees_its_bytes() {
    let mut image = Image::new(shape("cluster_size=64k"), 99);
    let socket = image.folder.path("nbd.sock");
    let url = format!("nbd+unix:///?socket={}", socket.display());
    for round in 0..3_u8 {
        let mut server = serve(&image.folder, &socket);
        let at = usize::from(round) * 100_352;
        run(
            &image.folder,
            "qemu-io",
            &[
                "-f",
                "raw",
                "-c",
                &format!("write -P {} {at} 70144", round + 1),
                "-c",
                "flush",
                &url,
            ],
        );
        image.disk[at..at + 70_144].fill(round + 1);
        assert_eq!(
            open(&image.folder, &image.shape).unwrap_err().code(),
            "ERR_QCOW2_LOCKED"
        );
        terminate(&mut server);
        let disk = open(&image.folder, &image.shape).unwrap();
        let mut bytes = vec![1; image.disk.len()];
        disk.chain().read(GuestOffset(0), &mut bytes).unwrap();
        assert_same(&bytes, &image.disk, "after qemu-nbd");
        let mut refused = serve(&image.folder, &socket);
        assert!(!refused.wait().unwrap().success(), "qemu-nbd does not get what we hold");
        disk.write(GuestOffset(at as u64 + 5), &[0xc0 + round; 9000]).unwrap();
        image.disk[at + 5..at + 9005].fill(0xc0 + round);
        disk.close().unwrap();
        drop(disk);
        image.judge("after we held it");
    }
}

/// Ends a server as its user would, so that it closes its image.
fn terminate(server: &mut std::process::Child) {
    let id = server.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    server.wait().unwrap();
}
