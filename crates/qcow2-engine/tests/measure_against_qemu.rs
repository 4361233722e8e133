//! `measure` answers qemu-img's numbers: for sizes and for images of every kind, for every kind of target.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::process::Command;

use qcow2_engine::{Chain, ChainOptions, JobContext, MeasureSource, MeasureTarget, Measurement, measure};
use qcow2_format::{Geometry, RefcountOrder, Version};
use support::{Folder, Random, chain, chain_with, qemu_img, qemu_io};

/// A target, as we and as qemu-img are told of it.
#[derive(Clone, Debug)]
struct Target {
    raw: bool,
    cluster_bits: u32,
    refcount_bits: u32,
    extended: bool,
    version2: bool,
    preallocation: &'static str,
    data_file: bool,
    backing: bool,
}

impl Target {
    const PLAIN: Self = Self {
        raw: false,
        cluster_bits: 16,
        refcount_bits: 16,
        extended: false,
        version2: false,
        preallocation: "off",
        data_file: false,
        backing: false,
    };

    fn random(random: &mut Random) -> Self {
        let target = Self {
            raw: random.below(12) == 0,
            cluster_bits: 9 + random.below(13) as u32,
            refcount_bits: 1 << random.below(7),
            extended: random.below(4) == 0,
            version2: random.below(5) == 0,
            preallocation: ["off", "off", "metadata", "falloc", "full"][random.below(5) as usize],
            data_file: random.below(6) == 0,
            backing: random.below(5) == 0,
        };
        let version2 = target.version2 && target.refcount_bits == 16 && !target.extended && !target.data_file;
        Self {
            extended: target.extended && target.cluster_bits >= 14,
            version2,
            ..target
        }
    }

    fn ours(&self) -> MeasureTarget {
        if self.raw {
            return MeasureTarget::Raw;
        }
        MeasureTarget::Qcow2 {
            geometry: Geometry::new(self.cluster_bits, self.extended).unwrap(),
            refcount_order: RefcountOrder::from_bits(self.refcount_bits).unwrap(),
            version: if self.version2 { Version::V2 } else { Version::V3 },
            preallocated: matches!(self.preallocation, "falloc" | "full"),
            encryption: 0,
            backing: self.backing,
        }
    }

    fn words(&self) -> Vec<String> {
        if self.raw {
            return vec!["-O".into(), "raw".into()];
        }
        let mut options = format!(
            "cluster_size={},refcount_bits={},compat={},preallocation={},extended_l2={}",
            1u64 << self.cluster_bits,
            self.refcount_bits,
            if self.version2 { "0.10" } else { "1.1" },
            self.preallocation,
            if self.extended { "on" } else { "off" },
        );
        if self.data_file {
            options.push_str(",data_file=elsewhere");
        }
        if self.backing {
            options.push_str(",backing_file=base.raw,backing_fmt=raw");
        }
        vec!["-O".into(), "qcow2".into(), "-o".into(), options]
    }
}

/// What qemu-img says; `None`: it refuses.
fn theirs(folder: &Folder, target: &Target, source: &[&str]) -> Option<Measurement> {
    let output = Command::new("qemu-img")
        .current_dir(folder.path(""))
        .args(["measure", "--output=json"])
        .args(target.words())
        .args(source)
        .output()
        .unwrap_or_else(|error| panic!("these tests need qemu-img: {error}"));
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("too large"), "{target:?} {source:?}: {text}");
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |key: &str| {
        let at = text.find(&format!("\"{key}\": "))? + key.len() + 4;
        let end = text[at..].find(|c: char| !c.is_ascii_digit())?;
        text[at..at + end].parse().ok()
    };
    Some(Measurement {
        required: number("required")?,
        fully_allocated: number("fully-allocated")?,
        bitmaps: number("bitmaps"),
    })
}

#[track_caller]
fn assert_equal(folder: &Folder, target: &Target, source: MeasureSource<'_>, words: &[&str]) {
    let ours = measure(source, target.ours(), &JobContext::quiet());
    assert_eq!(ours.ok(), theirs(folder, target, words), "{target:?} {words:?}");
}

fn cases(default: u64) -> u64 {
    let asked = std::env::var("QCOW2_CASES").ok().and_then(|cases| cases.parse().ok());
    asked.unwrap_or(default)
}

fn seed() -> u64 {
    let asked = std::env::var("QCOW2_SEED").ok().and_then(|seed| seed.parse().ok());
    asked.unwrap_or(1)
}

#[test]
fn sizes_need_what_qemu_img_says() {
    const SIZES: [u64; 12] = [
        0,
        1,
        511,
        512,
        (1 << 20) + 512,
        1 << 30,
        (3 << 30) + 1,
        10 << 40,
        (1 << 50) + 513,
        2 << 50,
        1 << 61,
        (1 << 63) - 512,
    ];
    let folder = Folder::new();
    let mut random = Random::new(seed());
    for size in SIZES {
        for n in 0..cases(3) {
            let target = if n == 0 {
                Target::PLAIN
            } else {
                Target::random(&mut random)
            };
            let words = ["--size", &size.to_string()];
            // Without a source qemu-img does not look at the backing file, and has no numbers behind the end of theirs.
            if target.raw && size > i64::MAX as u64 - 512 {
                continue;
            }
            assert_equal(&folder, &target, MeasureSource::Size(size), &words);
        }
    }
}

/// Images of every kind: name, words that open it for qemu-img, and our chain.
fn sources(folder: &Folder) -> Vec<(Vec<&'static str>, Chain)> {
    let img = |words: &[&str]| {
        qemu_img(folder, words);
    };
    let io = |name: &str, commands: &[&str]| {
        let commands: Vec<String> = commands.iter().map(|&command| command.to_owned()).collect();
        qemu_io(folder, name, &commands);
    };
    img(&["create", "-q", "-f", "raw", "base.raw", "6M"]);
    io(
        "base.raw",
        &["write -P 1 64k 4k", "write -P 2 1M 260k", "write -P 3 5M 512"],
    );
    std::fs::write(folder.path("odd.raw"), vec![7u8; (1 << 20) + 700]).unwrap();
    img(&["create", "-q", "-f", "qcow2", "zeroes", "6M"]);
    io(
        "zeroes",
        &[
            "write -P 1 0 1M",
            "write -z 256k 192k",
            "write -z 3M 1M",
            "write -P 0 5M 64k",
        ],
    );
    img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "packed", "6M"]);
    let packed = [
        "write -c -P 1 0 4k",
        "write -c -P 2 4k 4k",
        "write -c -P 9 2M 4k",
        "write -P 1 4M 5k",
    ];
    io("packed", &packed);
    img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on,cluster_size=128k",
        "ext",
        "6M",
    ]);
    io(
        "ext",
        &[
            "write -P 1 0 4k",
            "write -P 1 20k 4k",
            "write -z 1M 8k",
            "write -P 2 1500k 300k",
        ],
    );
    img(&[
        "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "overlay", "8M",
    ]);
    io(
        "overlay",
        &["write -P 5 1100k 8k", "write -z 5M 64k", "write -P 6 7M 1k"],
    );
    img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512",
        "-b",
        "overlay",
        "-F",
        "qcow2",
        "top",
        "4M",
    ]);
    io("top", &["write -P 8 3M 700k"]);
    img(&["create", "-q", "-f", "qcow2", "snap", "6M"]);
    io("snap", &["write -P 1 0 1M"]);
    img(&["snapshot", "-c", "one", "snap"]);
    io("snap", &["write -P 1 2M 1M", "write -z 0 512k"]);
    img(&["create", "-q", "-f", "qcow2", "marked", "6G"]);
    img(&["bitmap", "--add", "-g", "512", "marked", "fine"]);
    img(&[
        "bitmap",
        "--add",
        "marked",
        "a-bitmap-with-a-rather-long-name-that-takes-its-room",
    ]);
    io("marked", &["write -P 1 3G 70k"]);
    img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "6M"]);
    io("old", &["write -P 1 3M 70k"]);
    img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "preallocation=metadata",
        "reserved",
        "6M",
    ]);
    io("reserved", &["write -P 1 3M 70k"]);
    img(&["create", "-q", "-f", "qcow2", "empty", "0"]);
    let plain = |name: &'static str| {
        let format = if name.ends_with(".raw") { "raw" } else { "qcow2" };
        (vec!["-f", format, name], chain(folder, name))
    };
    let mut sources: Vec<_> = [
        "base.raw", "odd.raw", "zeroes", "packed", "ext", "overlay", "top", "snap", "marked", "old", "reserved",
        "empty",
    ]
    .map(plain)
    .into();
    let snapshot = ChainOptions {
        snapshot: Some("one".into()),
        ..ChainOptions::default()
    };
    sources.push((
        vec!["-f", "qcow2", "-l", "one", "snap"],
        chain_with(folder, "snap", snapshot),
    ));
    sources
}

#[test]
fn images_need_what_qemu_img_says() {
    let folder = Folder::new();
    let mut random = Random::new(seed());
    for (words, chain) in sources(&folder) {
        for n in 0..cases(4) {
            let target = if n == 0 {
                Target::PLAIN
            } else {
                Target::random(&mut random)
            };
            assert_equal(&folder, &target, MeasureSource::Chain(&chain), &words);
        }
    }
}
