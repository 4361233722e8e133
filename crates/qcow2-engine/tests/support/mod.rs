//! What the tests of this crate share: a folder that goes away, qemu's programs, numbers from a seed, and a disk as plain bytes.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "shared by several test programs, none of which uses all of it"
)]

pub mod bed;
pub mod bytes;
pub mod damages;
pub mod dirty;
pub mod overlays;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use qcow2_engine::storage::OpenMode;
use qcow2_engine::{Chain, ChainOptions, FileStorage, Format, Layer, LayerOptions, Storage};
use qcow2_format::GuestOffset;

/// A folder of a test's own, removed with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "qcow2-engine-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs one of qemu's programs in `folder` and returns what it prints. A missing program fails the test by name.
pub fn run(folder: &Folder, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(&folder.0)
        .output()
        .unwrap_or_else(|error| panic!("these tests need {program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && !text.contains("failed:"),
        "{program} {args:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

pub fn qemu_img(folder: &Folder, args: &[&str]) -> String {
    run(folder, "qemu-img", args)
}

pub fn qemu_io(folder: &Folder, name: &str, commands: &[String]) {
    let mut args = vec!["-f", if name.ends_with(".raw") { "raw" } else { "qcow2" }];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(name);
    run(folder, "qemu-io", &args);
}

/// xorshift64*: numbers that a seed repeats.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

pub fn storage(path: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, OpenMode::default()).unwrap())
}

pub fn layer(path: &Path) -> Layer {
    let storage = storage(path);
    let mut prefix = [0; 512];
    let filled = storage.read_at(qcow2_format::HostOffset(0), &mut prefix).unwrap();
    let options = LayerOptions::default();
    match Format::probe(&prefix[..filled]) {
        Format::Qcow2 => Layer::open_qcow2(storage, &options).unwrap(),
        Format::Raw | Format::Luks => Layer::open_raw(storage, &options).unwrap(),
    }
}

/// The chain of an image and everything that it names, in the folder of the test.
pub fn chain_with(folder: &Folder, name: &str, options: ChainOptions) -> Chain {
    let mut layers = Vec::new();
    let mut next = Some(name.to_owned());
    while let Some(name) = next {
        let mut layer = layer(&folder.path(&name));
        if layer.needs_data_file() {
            let data = layer.extensions().unwrap().data_file.clone().unwrap();
            layer.set_data_file(storage(&folder.path(&data))).unwrap();
        }
        next = layer.extensions().and_then(|e| e.backing_name.clone());
        layers.push(layer);
    }
    Chain::new(layers, options).unwrap()
}

pub fn chain(folder: &Folder, name: &str) -> Chain {
    chain_with(folder, name, ChainOptions::default())
}

pub fn read_all(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xaa; chain.virtual_size() as usize];
    assert_eq!(chain.read(GuestOffset(0), &mut bytes).unwrap(), bytes.len());
    bytes
}

/// Fails with the first difference rather than with megabytes.
#[track_caller]
pub fn assert_same(actual: &[u8], expected: &[u8], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    if let Some(at) = actual.iter().zip(expected).position(|(a, b)| a != b) {
        panic!(
            "{what}: first difference at {at:#x}: {:#x}, expected {:#x}",
            actual[at], expected[at]
        );
    }
}

/// One line of `qemu-img map --output=json`: start, length, depth, present, zero, data, compressed, offset.
pub type MapEntry = (u64, u64, u32, bool, bool, bool, bool, Option<u64>);

pub fn qemu_map(folder: &Folder, name: &str) -> Vec<MapEntry> {
    let text = qemu_img(folder, &["map", "--output=json", name]);
    text.lines()
        .filter(|line| line.contains("start"))
        .map(parse_line)
        .collect()
}

fn parse_line(line: &str) -> MapEntry {
    let field = |name: &str| {
        let at = line.find(&format!("\"{name}\": "))? + name.len() + 4;
        let rest = &line[at..];
        let end = rest.find([',', '}']).unwrap();
        Some(rest[..end].to_owned())
    };
    let number = |name: &str| field(name).map(|text| text.parse::<u64>().unwrap());
    let flag = |name: &str| field(name).unwrap() == "true";
    (
        number("start").unwrap(),
        number("length").unwrap(),
        number("depth").unwrap() as u32,
        flag("present"),
        flag("zero"),
        flag("data"),
        flag("compressed"),
        number("offset"),
    )
}

/// The same from our status, asked in portions of `portion` entries.
pub fn our_map(chain: &Chain, portion: usize) -> Vec<MapEntry> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < chain.virtual_size() {
        let found = chain
            .status(GuestOffset(at), chain.virtual_size() - at, portion)
            .unwrap();
        for s in &found {
            assert_eq!(s.start.0, at, "status leaves no gap");
            at += s.length;
            let offset = s.offset.map(|offset| offset.0);
            entries.push((
                s.start.0,
                s.length,
                s.depth,
                s.present,
                s.zero,
                s.data,
                s.compressed,
                offset,
            ));
        }
        assert!(!found.is_empty());
    }
    entries
}

/// A disk as plain bytes, changed by the same commands as an image.
#[derive(Clone)]
pub struct Model(pub Vec<u8>);

impl Model {
    /// The disk of `size` bytes over this one, which may be shorter or longer.
    pub fn overlay(&self, size: usize) -> Self {
        let mut bytes = self.0.clone();
        bytes.resize(size, 0);
        Self(bytes)
    }
}

/// How an image is filled: what it may hold.
#[derive(Clone, Copy)]
pub struct Filling {
    pub cluster: u64,
    pub compressed: bool,
    pub zeroes: bool,
}

/// A few random commands for qemu-io, done to the model too.
pub fn random_commands(random: &mut Random, model: &mut Model, filling: Filling, count: usize) -> Vec<String> {
    let size = model.0.len() as u64;
    let mut commands = Vec::new();
    let mut touched = std::collections::HashSet::new();
    for _ in 0..count {
        let pattern = 1 + random.below(255);
        let unit = *random.pick(&[512, 4096, filling.cluster]);
        let mut offset = random.below(size.div_ceil(unit)) * unit;
        let mut length = (1 + random.below(5)) * unit;
        let kind = random.below(10);
        // qemu-io compresses whole clusters only, and only those that nothing was written to.
        let compress = filling.compressed && kind < 5 && !touched.contains(&(offset / filling.cluster));
        if compress {
            offset -= offset % filling.cluster;
            length = filling.cluster;
        }
        length = length.min(size - offset);
        touched.extend(offset / filling.cluster..=(offset + length) / filling.cluster);
        if length == 0 {
            continue;
        }
        let range = offset as usize..(offset + length) as usize;
        let (flags, value) = match kind {
            _ if compress => (format!("-c -P {pattern}"), pattern),
            7 if filling.zeroes => ("-z".to_owned(), 0),
            8 if filling.zeroes => ("-z -u".to_owned(), 0),
            _ => (format!("-P {pattern}"), pattern),
        };
        commands.push(format!("write {flags} {offset} {length}"));
        model.0[range].fill(value as u8);
    }
    commands
}
