//! `compare` answers what qemu-img answers, normal and strict, at the same offset.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::process::Command;
use std::sync::Arc;

use qcow2_engine::storage::testing::{Operation, RecordingStorage};
use qcow2_engine::{
    Chain, ChainOptions, CompareOptions, Difference, Error, JobContext, Layer, LayerOptions, MemoryStorage, Storage,
    compare,
};
use support::{Folder, Random, chain, chain_with, qemu_img, qemu_io};

/// A stretch that both sides write, each in its own way.
#[derive(Clone, Copy)]
struct Slot {
    offset: u64,
    length: u64,
    /// 0: zeros.
    pattern: u64,
}

/// How a side is made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Raw,
    Qcow2(&'static str),
    Compressed(&'static str),
    Overlay(&'static str),
    ShortBacking,
}

const KINDS: [Kind; 12] = [
    Kind::Raw,
    Kind::Raw,
    Kind::Qcow2("cluster_size=65536"),
    Kind::Qcow2("cluster_size=512"),
    Kind::Qcow2("cluster_size=4096"),
    Kind::Qcow2("cluster_size=2M"),
    Kind::Qcow2("extended_l2=on"),
    Kind::Qcow2("preallocation=metadata"),
    Kind::Compressed("cluster_size=65536"),
    Kind::Compressed("cluster_size=4096,compression_type=zstd"),
    Kind::Overlay("cluster_size=4096"),
    Kind::ShortBacking,
];

fn slots(random: &mut Random, size: u64) -> Vec<Slot> {
    let width = 96 << 10;
    let mut slots = Vec::new();
    for n in 0..size / width {
        if random.below(3) == 0 {
            continue;
        }
        let offset = n * width + random.below(16) * 512;
        let length = 512 + random.below((width - 8192) / 512) * 512;
        let pattern = if random.below(4) == 0 { 0 } else { 1 + random.below(200) };
        slots.push(Slot {
            offset,
            length,
            pattern,
        });
    }
    slots
}

fn commands(random: &mut Random, slots: &[Slot]) -> Vec<String> {
    let mut slots = slots.to_vec();
    for n in (1..slots.len()).rev() {
        slots.swap(n, random.below(n as u64 + 1) as usize);
    }
    let mut commands = vec!["read 0 0".to_owned()];
    for Slot {
        offset,
        length,
        pattern,
    } in slots
    {
        let flags = match (pattern, random.below(3)) {
            (0, 0) => continue,
            (0, 1) => "-z".to_owned(),
            _ => format!("-P {pattern}"),
        };
        commands.push(format!("write {flags} {offset} {length}"));
    }
    commands
}

fn make(folder: &Folder, random: &mut Random, kind: Kind, name: &str, size: u64, slots: &[Slot]) -> String {
    let size = size.to_string();
    let create = |name: &str, words: &[&str], size: &str| {
        let words = [&["create", "-q"], words, &[name, size]].concat();
        qemu_img(folder, &words);
    };
    let raw = format!("{name}.raw");
    match kind {
        Kind::Raw => {
            create(&raw, &["-f", "raw"], &size);
            qemu_io(folder, &raw, &commands(random, slots));
            return raw;
        }
        Kind::Qcow2(options) => {
            create(name, &["-f", "qcow2", "-o", options], &size);
            qemu_io(folder, name, &commands(random, slots));
        }
        Kind::Compressed(options) => {
            create(&raw, &["-f", "raw"], &size);
            qemu_io(folder, &raw, &commands(random, slots));
            qemu_img(
                folder,
                &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, &raw, name],
            );
        }
        Kind::Overlay(options) => {
            let (below, above) = slots.split_at(slots.len() / 2);
            create(&raw, &["-f", "raw"], &size);
            qemu_io(folder, &raw, &commands(random, below));
            create(name, &["-f", "qcow2", "-o", options, "-b", &raw, "-F", "raw"], &size);
            qemu_io(folder, name, &commands(random, above));
        }
        Kind::ShortBacking => {
            create(&raw, &["-f", "raw"], "65536");
            create(name, &["-f", "qcow2", "-b", &raw, "-F", "raw"], &size);
            qemu_io(folder, name, &commands(random, slots));
        }
    }
    name.to_owned()
}

/// What qemu-img prints and the exit code of its comparison.
fn theirs(folder: &Folder, a: &str, b: &str, strict: bool) -> (String, i32) {
    let format = |name: &str| if name.ends_with(".raw") { "raw" } else { "qcow2" };
    let mut command = Command::new("qemu-img");
    command
        .current_dir(folder.path(""))
        .args(["compare", "-f", format(a), "-F", format(b)]);
    if strict {
        command.arg("-s");
    }
    let output = command.args([a, b]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (text, output.status.code().unwrap())
}

/// The same from our answer.
fn ours(a: &Chain, b: &Chain, strict: bool) -> (String, i32) {
    let answer = compare(a, b, CompareOptions { strict }, &JobContext::quiet()).unwrap();
    let common = a.virtual_size().min(b.virtual_size());
    let mut text = String::new();
    let warned = match answer.difference {
        Some(Difference::Content(at)) => at.0 >= common,
        Some(_) => false,
        None => true,
    };
    if answer.sizes_differ && warned {
        text.push_str("Warning: Image size mismatch!\n");
    }
    let (line, code) = match answer.difference {
        None => ("Images are identical.".to_owned(), 0),
        Some(Difference::Content(at)) => (format!("Content mismatch at offset {}!", at.0), 1),
        Some(Difference::Size) => ("Strict mode: Image size mismatch!".to_owned(), 1),
        Some(Difference::Allocation(at)) => (format!("Strict mode: Offset {} block status mismatch!", at.0), 1),
    };
    (text + &line + "\n", code)
}

#[track_caller]
fn assert_equal(folder: &Folder, a: &str, b: &str, what: &str) -> [i32; 2] {
    let chains = (chain(folder, a), chain(folder, b));
    [false, true].map(|strict| {
        let (ours, theirs) = (ours(&chains.0, &chains.1, strict), theirs(folder, a, b, strict));
        assert_eq!(ours, theirs, "{what}: strict {strict}");
        theirs.1
    })
}

#[test]
fn random_pairs_compare_as_qemu_img_says() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seed, cases) = (number("QCOW2_SEED").unwrap_or(1), number("QCOW2_CASES").unwrap_or(20));
    let mut random = Random::new(seed);
    let mut codes = [[0u64; 2]; 2];
    for case in 0..cases {
        let folder = Folder::new();
        let size = (1 << 20) + random.below(4000) * 512;
        let other_size = match random.below(4) {
            0 => size + (1 + random.below(2000)) * 512,
            _ => size,
        };
        let kinds = (*random.pick(&KINDS), *random.pick(&KINDS));
        let of_a = slots(&mut random, size);
        let mut of_b = of_a.clone();
        match random.below(5) {
            // One sector more, anywhere.
            0 | 1 => of_b.push(Slot {
                offset: random.below(other_size / 512) * 512,
                length: 512,
                pattern: random.below(3) * 77,
            }),
            // Zeros, or something, where only one of them is.
            2 if other_size > size => of_b.push(Slot {
                offset: size,
                length: other_size - size,
                pattern: random.below(2) * 9,
            }),
            _ => {}
        }
        let extra = of_b.split_off(of_a.len());
        let a = make(&folder, &mut random, kinds.0, "a", size, &of_a);
        let b = make(&folder, &mut random, kinds.1, "b", other_size, &[of_b, extra].concat());
        let what = format!("seed {seed}, case {case}, {kinds:?}, sizes {size} {other_size}");
        for (strict, code) in assert_equal(&folder, &a, &b, &what).into_iter().enumerate() {
            codes[strict][usize::from(code != 0)] += 1;
        }
    }
    assert!(
        cases < 10 || codes[0][0] > 2 && codes[0][1] > 2,
        "both answers come up: {codes:?}"
    );
}

#[test]
fn fixed_pairs_compare_as_qemu_img_says() {
    let folder = Folder::new();
    let create = |name: &str, words: &[&str], size: &str, writes: &[&str]| {
        let format = if name.ends_with(".raw") { "raw" } else { "qcow2" };
        qemu_img(
            &folder,
            &[&["create", "-q", "-f", format], words, &[name, size]].concat(),
        );
        let writes: Vec<String> = writes.iter().map(|&write| write.to_owned()).collect();
        if !writes.is_empty() {
            qemu_io(&folder, name, &writes);
        }
    };
    create("nothing", &[], "1M", &[]);
    create("nothing4k", &["-o", "cluster_size=4k"], "1M", &[]);
    create("zeros", &[], "1M", &["write -z 0 1M"]);
    create("kept", &[], "1M", &["write -P 3 0 64k", "write -z 0 1M"]);
    create("written", &[], "1M", &["write -P 0 0 1M"]);
    create("hole.raw", &[], "1M", &[]);
    create("written.raw", &[], "1M", &["write -P 0 0 1M"]);
    create("longer", &[], "1537k", &[]);
    create("longer.raw", &[], "2M", &["write -P 0 1M 1M"]);
    create("other.raw", &[], "2M", &["write -P 1 1600k 1k"]);
    create("in-order", &[], "1M", &["write -P 1 0 1M"]);
    create("backwards", &[], "1M", &["write -P 1 512k 512k", "write -P 1 0 512k"]);
    create("vast", &[], "9G", &[]);
    create("vast4k", &["-o", "cluster_size=4k"], "9G", &[]);
    create("vast2m", &["-o", "cluster_size=2M"], "9G", &[]);
    create("none", &[], "0", &[]);
    let pairs = [
        ("nothing", "nothing"),
        ("nothing", "nothing4k"),
        ("nothing", "zeros"),
        ("nothing", "hole.raw"),
        ("zeros", "kept"),
        ("zeros", "hole.raw"),
        ("written", "nothing"),
        ("written", "written.raw"),
        ("hole.raw", "written.raw"),
        ("nothing", "longer"),
        ("longer.raw", "nothing"),
        ("nothing", "other.raw"),
        ("in-order", "backwards"),
        ("vast", "vast4k"),
        ("vast", "vast2m"),
        ("none", "none"),
        ("none", "other.raw"),
    ];
    for (a, b) in pairs {
        assert_equal(&folder, a, b, &format!("{a} {b}"));
    }
}

fn memory_disk(bytes: Vec<u8>) -> (Arc<RecordingStorage>, Chain) {
    let storage = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::new(bytes))));
    let layer = Layer::open_raw(storage.clone(), &LayerOptions::default()).unwrap();
    (storage, Chain::new(vec![layer], ChainOptions::default()).unwrap())
}

fn bytes_read(operations: &[Operation]) -> u64 {
    let length = |operation: &Operation| match operation {
        Operation::Read { length, .. } => *length as u64,
        _ => 0,
    };
    operations.iter().map(length).sum()
}

#[test]
fn the_first_difference_wins_whoever_finds_one_first() {
    let sound: Vec<u8> = (0..40u32 << 20).map(|n| (n / 512 % 251) as u8 | 1).collect();
    let mut random = Random::new(7);
    for _ in 0..4 {
        let mut other = sound.clone();
        let places: Vec<usize> = (0..5).map(|_| random.below(sound.len() as u64) as usize).collect();
        places.iter().for_each(|&at| other[at] ^= 1);
        let first = places.iter().min().unwrap() / 512 * 512;
        let ((_, a), (_, b)) = (memory_disk(sound.clone()), memory_disk(other));
        let answer = compare(&a, &b, CompareOptions::default(), &JobContext::quiet()).unwrap();
        assert_eq!(
            answer.difference,
            Some(Difference::Content(qcow2_format::GuestOffset(first as u64)))
        );
    }
}

#[test]
fn a_difference_at_the_start_does_not_read_to_the_end() {
    let (first, a) = memory_disk(vec![1; 256 << 20]);
    let (_, b) = memory_disk(vec![2; 256 << 20]);
    compare(&a, &b, CompareOptions::default(), &JobContext::quiet()).unwrap();
    assert!(bytes_read(&first.take()) <= 128 << 20);
}

#[test]
fn what_both_sides_share_is_not_read() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "raw", "base.raw", "64M"]);
    qemu_io(&folder, "base.raw", &["write -P 5 0 64M".to_owned()]);
    qemu_img(
        &folder,
        &["convert", "-c", "-f", "raw", "-O", "qcow2", "base.raw", "packed"],
    );
    qemu_img(&folder, &["snapshot", "-c", "one", "packed"]);
    qemu_io(
        &folder,
        "packed",
        &["write -P 5 1M 64k".to_owned(), "write -P 6 60M 64k".to_owned()],
    );
    let recorded = |snapshot: Option<&str>| {
        let storage = Arc::new(RecordingStorage::new(support::storage(&folder.path("packed"))));
        let layer = Layer::open_qcow2(storage.clone(), &LayerOptions::default()).unwrap();
        let options = ChainOptions {
            snapshot: snapshot.map(str::to_owned),
            ..ChainOptions::default()
        };
        (storage, Chain::new(vec![layer], options).unwrap())
    };
    let ((storage, now), (_, then)) = (recorded(None), recorded(Some("one")));
    storage.take();
    let answer = compare(&now, &then, CompareOptions::default(), &JobContext::quiet()).unwrap();
    assert_eq!(
        answer.difference,
        Some(Difference::Content(qcow2_format::GuestOffset(60 << 20)))
    );
    // The clusters that were written since, and tables.
    assert!(bytes_read(&storage.take()) <= 512 << 10);
    let now = chain_with(&folder, "packed", ChainOptions::default());
    assert!(matches!(
        compare(&now, &chain(&folder, "base.raw"), CompareOptions::default(), &JobContext::quiet()),
        Ok(answer) if answer.difference.is_some()
    ));
}

#[test]
fn a_cancelled_comparison_says_so() {
    let ((_, a), (_, b)) = (memory_disk(vec![1; 1 << 20]), memory_disk(vec![1; 1 << 20]));
    let context = JobContext::quiet();
    context.cancel.cancel();
    assert!(matches!(
        compare(&a, &b, CompareOptions::default(), &context),
        Err(Error::Cancelled)
    ));
}

#[test]
fn an_unreadable_table_is_an_error_only_if_there_is_no_difference_before_it() {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=1024", "sound", "1M"],
    );
    qemu_io(&folder, "sound", &["write -P 1 0 1M".to_owned()]);
    let sound = std::fs::read(folder.path("sound")).unwrap();
    let open = |bytes: Vec<u8>| {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes));
        let layer = Layer::open_qcow2(storage, &LayerOptions::default()).unwrap();
        Chain::new(vec![layer], ChainOptions::default()).unwrap()
    };
    let l1 = open(sound.clone()).layer(0).unwrap().header().unwrap().l1_offset.0 as usize;
    let mut damaged = sound.clone();
    // The last table is named unaligned.
    damaged[l1 + 7 * 8 + 6] |= 2;
    let (a, b) = (open(sound.clone()), open(damaged.clone()));
    let outcome = compare(&a, &b, CompareOptions::default(), &JobContext::quiet());
    assert!(matches!(outcome, Err(Error::Entry { .. })), "{outcome:?}");
    let differing: Vec<u8> = vec![2; 1 << 20];
    let (_, raw) = memory_disk(differing);
    let answer = compare(&b, &raw, CompareOptions::default(), &JobContext::quiet()).unwrap();
    assert_eq!(
        answer.difference,
        Some(Difference::Content(qcow2_format::GuestOffset(0)))
    );
}
