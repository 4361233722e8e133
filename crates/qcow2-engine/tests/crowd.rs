//! Many threads write one image at once, each to places of its own: parts of clusters that all of them share, and clusters that nobody else touches. Each
//! finds at once what it wrote, whatever the others do, and in the end the image holds all of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use qcow2_engine::{
    CheckOptions, Disk, DiskOptions, JobContext, Layer, LayerOptions, MemoryStorage, NewBitmap, ResizeOptions, Storage,
    check,
};
use qcow2_format::{GuestOffset, HostOffset};
use support::{Folder, Random, assert_same, qemu_img, qemu_io, run};

const THREADS: usize = 6;
const SIZE: usize = 1 << 20;
/// Below it all threads have a part of every cluster; above it whole clusters.
const SHARED: usize = SIZE / 2;
const OPERATIONS: u32 = 220;

/// A file in memory that takes its time, now and then, before or after it does what it is told.
#[derive(Debug)]
struct Slow {
    inner: MemoryStorage,
    calls: AtomicU64,
    seed: u64,
}

impl Slow {
    fn wait(&self) {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match Random::new(self.seed ^ call).next() >> 32 & 15 {
            0 => std::thread::sleep(Duration::from_micros(60)),
            1..=4 => std::thread::yield_now(),
            _ => {}
        }
    }
}

impl Storage for Slow {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait();
        let filled = self.inner.read_at(offset, buffer);
        self.wait();
        filled
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        self.wait();
        let (first, rest) = bytes.split_at(bytes.len() / 1024 * 512);
        self.inner.write_at(offset, first)?;
        self.wait();
        self.inner.write_at(HostOffset(offset.0 + first.len() as u64), rest)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.wait();
        self.wait();
        Ok(())
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        self.wait();
        let punched = self.inner.punch(offset, length);
        self.wait();
        punched
    }
}

/// What one thread does, and what it knows of the disk: the bytes of its own places.
struct Writer<'a> {
    disk: &'a Disk,
    number: usize,
    cluster: usize,
    random: Random,
    bytes: Vec<u8>,
}

impl Writer<'_> {
    /// A part of a cluster that is this thread's own; it lies askew, so that sectors are shared too.
    fn part(&mut self) -> (usize, usize) {
        let cluster = self.random.below((SHARED / self.cluster) as u64) as usize * self.cluster;
        let begin = self.cluster * self.number / THREADS;
        let end = self.cluster * (self.number + 1) / THREADS;
        let at = begin + self.random.below((end - begin) as u64 / 2) as usize;
        (cluster + at, 1 + self.random.below((end - at) as u64) as usize)
    }

    /// Some whole clusters of this thread's own.
    fn whole(&mut self) -> (usize, usize) {
        let own = (SIZE - SHARED) / self.cluster / THREADS;
        let first = self.random.below(own as u64) as usize;
        let count = (1 + self.random.below(5) as usize).min(own - first);
        (
            SHARED + (own * self.number + first) * self.cluster,
            count * self.cluster,
        )
    }

    fn work(&mut self) {
        for _ in 0..OPERATIONS {
            let whole = self.random.below(3) == 0;
            let (begin, length) = if whole { self.whole() } else { self.part() };
            let at = GuestOffset(begin as u64);
            let value = match self.random.below(10) {
                0..=3 => {
                    let value = (1 + self.number as u64 * 40 + self.random.below(40)) as u8;
                    self.disk.write(at, &vec![value; length]).unwrap();
                    Some(value)
                }
                4 | 5 => {
                    let unmap = self.random.below(2) == 0;
                    self.disk.write_zeroes(at, length as u64, unmap).unwrap();
                    Some(0)
                }
                6 if whole => {
                    self.disk.discard(at, length as u64).unwrap();
                    Some(0)
                }
                7 if self.random.below(3) == 0 => {
                    self.disk.flush().unwrap();
                    None
                }
                _ => None,
            };
            let own = &mut self.bytes[begin..begin + length];
            if let Some(value) = value {
                own.fill(value);
            }
            let mut found = vec![0xff; length];
            assert_eq!(self.disk.chain().read(at, &mut found).unwrap(), length);
            assert_same(&found, own, &format!("thread {} at {begin:#x}", self.number));
        }
    }
}

/// Whose place it is, if anybody's.
fn owner(at: usize, cluster: usize) -> Option<usize> {
    if at < SHARED {
        let within = at % cluster;
        return (0..THREADS).find(|number| within < cluster * (number + 1) / THREADS);
    }
    let own = (SIZE - SHARED) / cluster / THREADS;
    Some((at - SHARED) / cluster / own).filter(|&number| number < THREADS)
}

/// Reads anywhere while others write: each byte is what was there before, zero, or its owner's.
fn watch(disk: &Disk, before: &[u8], cluster: usize, mut random: Random, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let begin = random.below(SIZE as u64) as usize;
        let length = (1 + random.below(60_000) as usize).min(SIZE - begin);
        let mut found = vec![0xff; length];
        disk.chain().read(GuestOffset(begin as u64), &mut found).unwrap();
        for (at, &byte) in (begin..).zip(&found) {
            let right = byte == 0 || byte == before[at] || owner(at, cluster) == Some((usize::from(byte) - 1) / 40);
            assert!(right, "{at:#x} reads as {byte}, which nobody wrote there");
        }
    }
}

/// Tells those who watch that there is nothing more to see, also if something went wrong.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn layers(image: &Arc<Slow>, data: &Arc<Slow>, backing: &[u8], writable: bool) -> Vec<Layer> {
    let options = LayerOptions {
        writable,
        ..LayerOptions::default()
    };
    let mut top = Layer::open_qcow2(Arc::clone(image) as Arc<dyn Storage>, &options).unwrap();
    if top.needs_data_file() {
        top.set_data_file(Arc::clone(data) as Arc<dyn Storage>).unwrap();
    }
    let mut layers = vec![top];
    if !backing.is_empty() {
        let storage = Arc::new(MemoryStorage::new(backing.to_vec()));
        layers.push(Layer::open_raw(storage, &LayerOptions::default()).unwrap());
    }
    layers
}

fn crowd(options: &str, cluster: usize, backing: bool, prepare: &[&str], seed: u64) {
    let folder = Folder::new();
    let data = folder.path("data.raw");
    let named = options.replace("DATA", data.to_str().unwrap());
    let size = SIZE.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &named];
    let below: Vec<u8> = if backing {
        (0..SIZE).map(|at| 0xf0 | (at / 512 % 15) as u8).collect()
    } else {
        Vec::new()
    };
    if backing {
        std::fs::write(folder.path("base.raw"), &below).unwrap();
        args.extend(["-b", "base.raw", "-F", "raw"]);
    }
    args.extend(["a.qcow2", &size]);
    qemu_img(&folder, &args);
    let commands: Vec<String> = prepare.iter().map(|&command| command.to_owned()).collect();
    if !commands.is_empty() {
        qemu_io(&folder, "a.qcow2", &commands);
    }
    qemu_img(&folder, &["convert", "-O", "raw", "a.qcow2", "out.raw"]);
    let before = std::fs::read(folder.path("out.raw")).unwrap();
    let slow = |bytes: Vec<u8>| {
        Arc::new(Slow {
            inner: MemoryStorage::new(bytes),
            calls: AtomicU64::new(0),
            seed,
        })
    };
    let image = slow(std::fs::read(folder.path("a.qcow2")).unwrap());
    let storage = slow(std::fs::read(&data).unwrap_or_default());
    let options = DiskOptions {
        cache_bytes: 1 << 20,
        dirty_bytes: 8 << 10,
        ..DiskOptions::default()
    };
    let disk = Disk::open(layers(&image, &storage, &below, true), options).unwrap();
    disk.bitmap_add(NewBitmap {
        name: "b".into(),
        granularity: Some(512),
        enabled: true,
    })
    .unwrap();
    let mut writers: Vec<Writer<'_>> = (0..THREADS)
        .map(|number| Writer {
            disk: &disk,
            number,
            cluster,
            random: Random::new(seed * 100 + number as u64),
            bytes: before.clone(),
        })
        .collect();
    let done = AtomicBool::new(false);
    let size = std::thread::scope(|scope| {
        let _ended = Ended(&done);
        for number in 0..2 {
            let random = Random::new(seed * 31 + number);
            scope.spawn(|| watch(&disk, &before, cluster, random, &done));
        }
        let working: Vec<_> = writers.iter_mut().map(|writer| scope.spawn(|| writer.work())).collect();
        // Meanwhile the disk changes its size, which nobody notices who does not look there.
        let mut size = SIZE;
        for round in 0..12 {
            size = if round % 3 == 2 {
                SIZE
            } else {
                size + 512 * (1 + round * 7)
            };
            let resize = ResizeOptions {
                shrink: true,
                ..ResizeOptions::default()
            };
            disk.resize(size as u64, resize).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        for thread in working {
            thread.join().unwrap();
        }
        size
    });
    let mut expected = before.clone();
    for writer in &writers {
        for (at, byte) in writer
            .bytes
            .iter()
            .enumerate()
            .filter(|&(at, byte)| *byte != before[at])
        {
            expected[at] = *byte;
        }
    }
    expected.resize(size, 0);
    drop(writers);
    let mut found = vec![0xff; size];
    disk.chain().read(GuestOffset(0), &mut found).unwrap();
    assert_same(&found, &expected, "open");
    let dirty = disk.bitmap_dirty("b", GuestOffset(0), 1 << 20).unwrap();
    for at in (0..SIZE).filter(|&at| expected[at] != before[at]) {
        assert!(
            dirty.iter().any(|range| range.contains(&(at as u64))),
            "{at:#x} was changed and is not dirty"
        );
    }
    disk.close().unwrap();
    drop(disk);
    let layer = layers(&image, &storage, &below, false).remove(0);
    let report = check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap();
    assert_eq!(
        (report.corruptions, report.leaks, report.check_errors),
        (0, 0, 0),
        "{:#?}",
        report.findings
    );
    std::fs::write(folder.path("a.qcow2"), image.inner.to_vec()).unwrap();
    if data.exists() {
        std::fs::write(&data, storage.inner.to_vec()).unwrap();
    }
    run(&folder, "qemu-img", &["check", "-q", "a.qcow2"]);
    qemu_img(&folder, &["convert", "-O", "raw", "a.qcow2", "out.raw"]);
    assert_same(&std::fs::read(folder.path("out.raw")).unwrap(), &expected, "by qemu");
}

macro_rules! crowds {
    ($($name:ident: $seed:literal, $options:literal, $cluster:literal, $backing:literal, $prepare:expr;)*) => {
        $(#[test]
        fn $name() {
            for round in 0..2 {
                crowd($options, $cluster, $backing, $prepare, $seed + round * 1000);
            }
        })*
    };
}

crowds! {
    in_a_plain_image: 1, "cluster_size=4k", 4096, false, &[];
    in_small_clusters: 2, "cluster_size=512,refcount_bits=64", 512, false, &[];
    in_large_clusters: 3, "cluster_size=64k", 65536, false, &[];
    in_subclusters: 4, "cluster_size=16k,extended_l2=on", 16384, false, &[];
    in_an_overlay: 5, "cluster_size=4k", 4096, true, &[];
    in_an_overlay_with_subclusters: 6, "cluster_size=16k,extended_l2=on", 16384, true, &[];
    in_a_data_file: 7, "cluster_size=4k,data_file=DATA", 4096, false, &[];
    in_a_raw_data_file: 8, "cluster_size=4k,data_file=DATA,data_file_raw=on", 4096, false, &[];
    in_a_data_file_with_subclusters: 9, "cluster_size=16k,extended_l2=on,data_file=DATA", 16384, false, &[];
    with_lazy_refcounts: 10, "cluster_size=4k,lazy_refcounts=on", 4096, false, &[];
    in_preallocated_clusters: 11, "cluster_size=4k,preallocation=metadata", 4096, false, &[];
    in_compressed_clusters: 12, "cluster_size=64k", 65536, false,
        &["write -c -P 7 0 64k", "write -c -P 8 64k 64k", "write -c -P 9 192k 64k", "write -c -P 9 768k 64k"];
}
