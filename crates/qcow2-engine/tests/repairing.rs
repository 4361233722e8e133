//! Images with damaged refcounts, refcount structures and COPIED flags are repaired: qemu-img finds nothing any more, the disk and its snapshots hold
//! what they held, a second repair writes nothing, and no crash in the middle does harm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::io;
use std::sync::Arc;

use qcow2_engine::storage::testing::{FailingStorage, Operation, RecordingStorage};
use qcow2_engine::{
    Chain, ChainOptions, Error, JobContext, Layer, LayerOptions, MemoryStorage, RepairMode, RepairOptions,
    RepairReport, Storage, repair,
};
use qcow2_format::{GuestOffset, HostOffset};
use support::{Folder, Random, qemu_img, qemu_io};

/// An image that qemu made, and what it holds.
struct Sample {
    name: &'static str,
    bytes: Vec<u8>,
    cluster: usize,
    refcount_bits: usize,
    step: usize,
    /// The data file, if it has one.
    data: Option<Vec<u8>>,
}

const SHAPES: &[(&str, &str, &[&str])] = &[
    ("plain", "cluster_size=64k", &[]),
    ("snapshots", "cluster_size=4k", &["snapshots"]),
    (
        "small clusters",
        "cluster_size=512",
        &["snapshots", "compressed", "bitmap"],
    ),
    ("one bit", "cluster_size=512,refcount_bits=1", &[]),
    ("two bits", "cluster_size=1k,refcount_bits=2", &["snapshots", "bitmap"]),
    ("four bits", "cluster_size=4k,refcount_bits=4", &["compressed"]),
    (
        "eight bits",
        "cluster_size=4k,refcount_bits=8",
        &["compressed", "snapshots"],
    ),
    ("32 bits", "cluster_size=1k,refcount_bits=32", &["snapshots"]),
    (
        "64 bits",
        "cluster_size=512,refcount_bits=64",
        &["snapshots", "compressed"],
    ),
    ("large clusters", "cluster_size=2M", &["snapshots"]),
    ("version 2", "compat=0.10,cluster_size=4k", &["snapshots", "compressed"]),
    (
        "subclusters",
        "cluster_size=16k,extended_l2=on",
        &["snapshots", "bitmap"],
    ),
    ("lazy", "cluster_size=4k,lazy_refcounts=on", &["snapshots"]),
    ("data file", "cluster_size=4k,data_file=d.raw", &["bitmap"]),
];

impl Sample {
    fn new(name: &'static str, options: &str, contents: &[&str]) -> Self {
        let folder = Folder::new();
        let has = |what| contents.contains(&what);
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "2M"],
        );
        let io = |commands: &[&str]| {
            qemu_io(
                &folder,
                "a.qcow2",
                &commands.iter().map(|c| (*c).into()).collect::<Vec<_>>(),
            )
        };
        if has("bitmap") {
            qemu_img(&folder, &["bitmap", "--add", "-g", "4096", "a.qcow2", "b"]);
        }
        io(&["write -P 1 0 300k", "write -P 2 700k 1k", "write -z 400k 64k"]);
        if has("compressed") {
            io(&[
                "write -c -P 9 1M 4k",
                "write -c -P 10 1028k 4k",
                "write -c -P 11 1032k 64k",
            ]);
        }
        if has("snapshots") {
            qemu_img(&folder, &["snapshot", "-c", "one", "a.qcow2"]);
            io(&["write -P 3 100k 30k"]);
            qemu_img(&folder, &["snapshot", "-c", "two", "a.qcow2"]);
            io(&["write -P 4 900k 9k", "write -P 5 0 512"]);
        }
        let bytes = std::fs::read(folder.path("a.qcow2")).unwrap();
        let bits = u32::from_be_bytes(bytes[20..24].try_into().unwrap());
        let version2 = bytes[7] == 2;
        Self {
            name,
            cluster: 1 << bits,
            refcount_bits: if version2 { 16 } else { 1 << bytes[99] },
            step: if !version2 && bytes[79] & 16 != 0 { 16 } else { 8 },
            data: std::fs::read(folder.path("d.raw")).ok(),
            bytes,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        SHAPES
            .iter()
            .map(|(name, options, contents)| Self::new(name, options, contents))
    }

    fn word(&self, at: usize) -> usize {
        word(&self.bytes, at)
    }

    /// Offsets of the refcount blocks.
    fn blocks(&self) -> Vec<usize> {
        let table = self.word(48);
        let clusters = u32::from_be_bytes(self.bytes[56..60].try_into().unwrap()) as usize;
        let entries = (table..table + clusters * self.cluster).step_by(8);
        entries.map(|at| self.word(at)).filter(|block| *block != 0).collect()
    }

    /// Offsets of the entries of the active L1 table, and of those of its L2 tables, that name something.
    fn entries(&self) -> Vec<usize> {
        let (l1, count) = (
            self.word(40),
            u32::from_be_bytes(self.bytes[36..40].try_into().unwrap()),
        );
        let named = |at: &usize| self.word(*at) & 0x00ff_ffff_ffff_fe00 != 0 && self.word(*at) & (1 << 62) == 0;
        let mut entries: Vec<usize> = (0..count as usize).map(|n| l1 + n * 8).filter(named).collect();
        for l1 in entries.clone() {
            let table = self.word(l1) & 0x00ff_ffff_ffff_fe00;
            entries.extend((table..table + self.cluster).step_by(self.step).filter(named));
        }
        entries
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn put(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 8].copy_from_slice(&(value as u64).to_be_bytes());
}

/// A way to damage an image.
type Damage = (&'static str, fn(&Sample, &mut Vec<u8>, &mut Random));

const DAMAGES: &[Damage] = &[
    ("no refcounts", |sample, bytes, _| {
        for block in sample.blocks() {
            bytes[block..block + sample.cluster].fill(0);
        }
    }),
    ("wild refcounts", |sample, bytes, random| {
        for block in sample.blocks() {
            let used = 64.min(sample.cluster);
            for _ in 0..9 {
                bytes[block + random.below(used as u64) as usize] = random.next() as u8;
            }
        }
    }),
    ("leaks", |sample, bytes, _| {
        for block in sample.blocks() {
            let end = block + sample.cluster;
            let begin = bytes[block..end].iter().rposition(|byte| *byte != 0).unwrap() + block + 1;
            // Whole refcounts, each one.
            let width = (sample.refcount_bits / 8).max(1);
            let mut at = begin.next_multiple_of(8);
            while at + width <= end && at < begin + 100 {
                bytes[at + width - 1] = 1;
                at += width;
            }
        }
    }),
    ("wrong flags", |sample, bytes, random| {
        for at in sample.entries() {
            if random.below(3) == 0 {
                bytes[at] ^= 0x80;
            }
        }
    }),
    ("empty refcount table", |sample, bytes, _| {
        let table = sample.word(48);
        bytes[table..table + sample.cluster].fill(0);
    }),
    ("refcount table nowhere", |sample, bytes, _| {
        put(bytes, 48, 1 << 40 & !(sample.cluster - 1));
    }),
    ("no refcount table", |_, bytes, _| bytes[56..60].fill(0)),
    ("refcount table over the L1 table", |sample, bytes, _| {
        put(bytes, 48, sample.word(40))
    }),
    ("a block over data", |sample, bytes, _| {
        let data = sample.word(*sample.entries().last().unwrap()) & 0x00ff_ffff_ffff_fe00;
        put(bytes, sample.word(48), data);
    }),
    ("a block over the header", |sample, bytes, _| {
        put(bytes, sample.word(48), 0);
        put(bytes, sample.word(48), sample.cluster / 512 * 512);
    }),
    ("an unaligned block", |sample, bytes, _| {
        let block = sample.word(sample.word(48));
        put(bytes, sample.word(48), block + 512);
    }),
    ("a block beyond the end", |sample, bytes, _| {
        put(bytes, sample.word(48), 1 << 40)
    }),
    ("reserved bits of a refcount table entry", |sample, bytes, _| {
        let block = sample.word(sample.word(48));
        put(bytes, sample.word(48), block | 4);
    }),
    ("one block twice", |sample, bytes, _| {
        let block = sample.word(sample.word(48));
        put(bytes, sample.word(48) + 8, block);
    }),
    ("marked dirty", |sample, bytes, random| {
        if bytes[7] == 3 {
            bytes[79] |= 1;
        }
        for block in sample.blocks() {
            bytes[block + random.below(8) as usize] = 0;
        }
    }),
    ("snapshots with too much extra data", |sample, bytes, _| {
        snapshot_table(sample, bytes, |extra| extra.resize(1300, 7));
    }),
    ("snapshots that lack their size", |sample, bytes, _| {
        if bytes[7] == 3 {
            snapshot_table(sample, bytes, |extra| extra.truncate(8));
        }
    }),
    ("clusters of zeros at places that are none", |sample, bytes, _| {
        let (entries, size) = (sample.entries(), sample.cluster);
        // With clusters of 512 bytes every place is one.
        if bytes[7] == 3 && sample.step == 8 && sample.data.is_none() && size > 512 {
            let table = entries.last().unwrap() / size * size;
            let free = |at: &usize| sample.word(*at) == 0;
            for at in (table..table + size).step_by(8).filter(free).take(3) {
                put(bytes, at, (size * 5 + 512) | 1);
            }
        }
    }),
    ("marked corrupt", |_, bytes, _| {
        if bytes[7] == 3 {
            bytes[79] |= 2;
        }
    }),
];

/// Writes the snapshot table again with other extra data, if there is one and room for it.
fn snapshot_table(sample: &Sample, bytes: &mut [u8], change: fn(&mut Vec<u8>)) {
    let (begin, count) = (
        sample.word(64),
        u32::from_be_bytes(sample.bytes[60..64].try_into().unwrap()),
    );
    let (mut at, mut table) = (begin, Vec::new());
    for _ in 0..count {
        let half = |place: usize| u16::from_be_bytes(sample.bytes[place..place + 2].try_into().unwrap()) as usize;
        let extra = u32::from_be_bytes(sample.bytes[at + 36..at + 40].try_into().unwrap()) as usize;
        let (names, end) = (at + 40 + extra, at + 40 + extra + half(at + 12) + half(at + 14));
        let mut kept = sample.bytes[at + 40..names].to_vec();
        change(&mut kept);
        table.extend_from_slice(&sample.bytes[at..at + 36]);
        table.extend_from_slice(&(kept.len() as u32).to_be_bytes());
        table.extend_from_slice(&kept);
        table.extend_from_slice(&sample.bytes[names..end]);
        table.resize(table.len().next_multiple_of(8), 0);
        at = end.next_multiple_of(8);
    }
    if table.len() <= sample.cluster {
        bytes[begin..begin + table.len()].copy_from_slice(&table);
    }
}

fn mend(storage: &Arc<dyn Storage>, mode: RepairMode) -> Result<RepairReport, Error> {
    repair(storage, None, RepairOptions::new(mode), &JobContext::quiet())
}

fn mended(bytes: &[u8]) -> (Vec<u8>, RepairReport) {
    let memory = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let report = mend(&(memory.clone() as Arc<dyn Storage>), RepairMode::All).unwrap();
    (memory.to_vec(), report)
}

/// What the disk and its snapshots hold. Locks are of no interest here, nor are marks.
fn contents(sample: &Sample, bytes: &[u8]) -> Vec<Vec<u8>> {
    let open = || {
        let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
        let mut layer = Layer::open_qcow2(storage, &LayerOptions::default()).unwrap();
        if let Some(data) = &sample.data {
            layer.set_data_file(Arc::new(MemoryStorage::new(data.clone()))).unwrap();
        }
        layer
    };
    let names: Vec<String> = open()
        .snapshots()
        .iter()
        .map(|snapshot| String::from_utf8(snapshot.id.clone()).unwrap())
        .collect();
    let mut all = Vec::new();
    for name in [None].into_iter().chain(names.into_iter().map(Some)) {
        let options = ChainOptions {
            snapshot: name,
            ..ChainOptions::default()
        };
        let chain = Chain::new(vec![open()], options).unwrap();
        let mut disk = vec![0xaa; chain.virtual_size() as usize];
        chain.read(GuestOffset(0), &mut disk).unwrap();
        all.push(disk);
    }
    all
}

/// Exit code and text of `qemu-img check`.
fn qemu_check(sample: &Sample, bytes: &[u8], repair: Option<&str>) -> (i32, String, Vec<u8>) {
    let folder = Folder::new();
    std::fs::write(folder.path("a.qcow2"), bytes).unwrap();
    if let Some(data) = &sample.data {
        std::fs::write(folder.path("d.raw"), data).unwrap();
    }
    let mut command = std::process::Command::new("qemu-img");
    command
        .args(["check", "-q", "-f", "qcow2"])
        .current_dir(folder.path("."));
    if let Some(mode) = repair {
        command.args(["-r", mode]);
    }
    let output = command.arg("a.qcow2").output().expect("these tests need qemu-img 10");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // A file that qemu-img made enormous is of no use.
    let path = folder.path("a.qcow2");
    let small = std::fs::metadata(&path).unwrap().len() < 256 << 20;
    let after = if small {
        std::fs::read(&path).unwrap()
    } else {
        Vec::new()
    };
    (output.status.code().unwrap(), text, after)
}

#[track_caller]
fn assert_sound(sample: &Sample, bytes: &[u8], what: &str) {
    let (code, text, _) = qemu_check(sample, bytes, None);
    assert_eq!((code, text.as_str()), (0, ""), "{what}");
    if bytes[7] == 3 {
        assert_eq!(bytes[79] & 3, 0, "{what}: marks");
    }
}

#[test]
fn every_damage_of_every_shape_is_repaired() {
    let mut random = Random::new(11);
    let mut repaired = 0;
    for sample in Sample::all() {
        let expected = contents(&sample, &sample.bytes);
        for (damage, make) in DAMAGES {
            let what = format!("{}: {damage}", sample.name);
            let mut bytes = sample.bytes.clone();
            make(&sample, &mut bytes, &mut random);
            let (after, report) = mended(&bytes);
            assert_sound(&sample, &after, &what);
            assert!(!report.still_marked, "{what}");
            assert_eq!(
                (report.after.corruptions, report.after.leaks, report.after.check_errors),
                (0, 0, 0),
                "{what}: {:?}",
                report.after.findings.first()
            );
            assert!(contents(&sample, &after) == expected, "{what}: contents");
            if bytes != after {
                repaired += 1;
            }

            // Once more: nothing is written.
            let recorder = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::new(after.clone()))));
            let report = mend(&(recorder.clone() as Arc<dyn Storage>), RepairMode::All).unwrap();
            assert_eq!((report.leaks_fixed, report.corruptions_fixed), (0, 0), "{what}");
            let changes = |operation: &Operation| !matches!(operation, Operation::Read { .. } | Operation::Sync);
            assert!(!recorder.take().iter().any(changes), "{what}: a second repair wrote");
        }
    }
    assert!(repaired > SHAPES.len() * (DAMAGES.len() - 3), "{repaired}");
}

/// qemu-img's repair of a copy leaves the same disk, where it can repair at all.
#[test]
fn the_guest_sees_what_it_sees_after_a_repair_by_qemu_img() {
    let mut random = Random::new(12);
    let mut compared = 0;
    for sample in Sample::all().filter(|sample| sample.cluster < 1 << 20) {
        // For a block beyond the end qemu-img makes the file that long, and takes minutes.
        for (damage, make) in DAMAGES.iter().filter(|(name, _)| *name != "a block beyond the end") {
            let mut bytes = sample.bytes.clone();
            make(&sample, &mut bytes, &mut random);
            let (code, _, theirs) = qemu_check(&sample, &bytes, Some("all"));
            if code == 0 && !theirs.is_empty() {
                let (ours, _) = mended(&bytes);
                let (ours, theirs) = (contents(&sample, &ours), contents(&sample, &theirs));
                assert!(ours == contents(&sample, &sample.bytes), "{}: {damage}", sample.name);
                // Where there are bitmaps, qemu-img 10.0 loses the snapshots: it writes a header before it has read their table.
                let both = ours.len().min(theirs.len());
                assert!(ours[..both] == theirs[..both], "{}: {damage}", sample.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 50, "{compared}");
}

/// The writes of a repair, applied to what it began with: each prefix, and each with a part of what was not synced yet.
fn crashes(before: &[u8], log: &[Operation], random: &mut Random) -> Vec<(bool, Vec<u8>)> {
    let mut states = Vec::new();
    let mut durable = before.to_vec();
    let mut pending: Vec<(HostOffset, Vec<u8>)> = Vec::new();
    let apply = |bytes: &mut Vec<u8>, offset: HostOffset, data: &[u8]| {
        let begin = offset.0 as usize;
        bytes.resize(bytes.len().max(begin + data.len()), 0);
        bytes[begin..begin + data.len()].copy_from_slice(data);
    };
    for operation in log {
        match operation {
            Operation::Write { offset, bytes } => {
                let sectors = bytes.chunks(512).zip(0u64..);
                pending.extend(sectors.map(|(sector, n)| (HostOffset(offset.0 + n * 512), sector.to_vec())));
                for _ in 0..2 {
                    let mut state = durable.clone();
                    for (offset, sector) in &pending {
                        if random.below(2) == 0 {
                            apply(&mut state, *offset, sector);
                        }
                    }
                    states.push((false, state));
                }
            }
            Operation::Sync => {
                for (offset, sector) in pending.drain(..) {
                    apply(&mut durable, offset, &sector);
                }
                states.push((true, durable.clone()));
            }
            _ => {}
        }
    }
    states
}

#[test]
fn a_crash_at_any_write_leaves_an_image_that_is_repaired_again() {
    let mut random = Random::new(13);
    let mut tried = 0;
    for sample in Sample::all().filter(|sample| sample.cluster <= 4096) {
        let expected = contents(&sample, &sample.bytes);
        for (damage, make) in DAMAGES {
            let what = format!("{}: {damage}", sample.name);
            let mut bytes = sample.bytes.clone();
            make(&sample, &mut bytes, &mut random);
            let recorder = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::new(bytes.clone()))));
            mend(&(recorder.clone() as Arc<dyn Storage>), RepairMode::All).unwrap();
            let log = recorder.take();
            let states = crashes(&bytes, &log, &mut random);
            let last = states.len().saturating_sub(1);
            for (number, (_, state)) in states.into_iter().enumerate() {
                // Before it is marked nothing gets worse: leaks may have been given back.
                let marked = sample.bytes[7] == 3 && state[79] & 1 != 0;
                assert!(
                    marked || corruptions(&state) <= corruptions(&bytes),
                    "{what}: state {number} of {last} is worse than before"
                );
                let (after, report) = mended(&state);
                assert!(
                    !report.still_marked && report.after.corruptions == 0,
                    "{what}: {number}"
                );
                assert_eq!(report.after.leaks, 0, "{what}: {number}");
                assert!(contents(&sample, &after) == expected, "{what}: {number}: contents");
                if random.below(25) == 0 {
                    assert_sound(&sample, &after, &what);
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}

fn corruptions(bytes: &[u8]) -> u64 {
    let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let options = LayerOptions {
        for_check: true,
        metadata_only: true,
        ..LayerOptions::default()
    };
    let layer = Layer::open_qcow2(storage, &options).unwrap();
    let report = qcow2_engine::check(&layer, &qcow2_engine::CheckOptions::default(), &JobContext::quiet()).unwrap();
    report.corruptions
}

#[test]
fn a_repair_that_a_storage_stops_can_be_done_again() {
    let sample = Sample::new("small clusters", "cluster_size=512", &["snapshots", "compressed"]);
    let expected = contents(&sample, &sample.bytes);
    let mut random = Random::new(14);
    for (damage, make) in DAMAGES {
        let mut bytes = sample.bytes.clone();
        make(&sample, &mut bytes, &mut random);
        for fail_at in (0..).step_by(7) {
            let memory = Arc::new(MemoryStorage::new(bytes.clone()));
            let failing: Arc<dyn Storage> =
                Arc::new(FailingStorage::new(memory.clone(), fail_at, true, io::ErrorKind::Other));
            let outcome = mend(&failing, RepairMode::All);
            if let Ok(report) = &outcome
                && report.after.check_errors == 0
            {
                break;
            }
            let (after, report) = mended(&memory.to_vec());
            assert_eq!(
                (report.after.corruptions, report.after.leaks),
                (0, 0),
                "{damage}: {fail_at}"
            );
            assert!(contents(&sample, &after) == expected, "{damage}: {fail_at}");
        }
    }
}

#[test]
fn leaks_are_given_back_without_raising_anything() {
    let mut random = Random::new(15);
    for sample in Sample::all() {
        let mut bytes = sample.bytes.clone();
        (DAMAGES.iter().find(|(name, _)| *name == "leaks").unwrap().1)(&sample, &mut bytes, &mut random);
        // What is leaked lies inside the file.
        bytes.resize(bytes.len().next_multiple_of(sample.cluster) + 120 * sample.cluster, 0);
        let (code, _, _) = qemu_check(&sample, &bytes, None);
        assert_eq!(code, 3, "{}: there are leaks", sample.name);
        let memory = Arc::new(MemoryStorage::new(bytes.clone()));
        let report = mend(&(memory.clone() as Arc<dyn Storage>), RepairMode::Leaks).unwrap();
        assert!(
            report.leaks_fixed > 0 && report.corruptions_fixed == 0,
            "{}",
            sample.name
        );
        let after = memory.to_vec();
        assert_sound(&sample, &after, sample.name);
        let refcounts_only = after.iter().zip(&sample.bytes).all(|(after, before)| after == before);
        assert!(refcounts_only, "{}", sample.name);

        // Refcounts that are too low stay so.
        let block = sample.blocks()[0];
        bytes[block..block + 8].fill(0);
        let memory = Arc::new(MemoryStorage::new(bytes.clone()));
        let report = mend(&(memory.clone() as Arc<dyn Storage>), RepairMode::Leaks).unwrap();
        assert!(
            report.leaks_fixed > 0 && report.after.corruptions > 0,
            "{}",
            sample.name
        );
        assert_eq!(memory.to_vec()[block..block + 8], [0; 8], "{}", sample.name);
    }
}
