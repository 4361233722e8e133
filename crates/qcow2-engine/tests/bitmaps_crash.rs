//! Bitmaps across crashes: at any point, with any part of what was not synced lost, a bitmap is either declared inconsistent or covers all that has
//! changed; one that nothing was to change is whole; and nothing is damaged.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use qcow2_engine::storage::testing::{Operation, RecordingStorage};
use qcow2_engine::{
    Disk, DiskOptions, Layer, LayerOptions, MemoryStorage, NewBitmap, NewSnapshot, ResizeOptions, SnapshotChoice,
    Storage, Weaken,
};
use qcow2_format::GuestOffset;
use support::dirty::{Granules, dirty, our_check, try_disk};
use support::{Folder, Random, qemu_img};

const SIZE: u64 = 1 << 20;
const TORN: &str = "cluster_size=8k";

fn open(storage: Arc<dyn Storage>, weaken: Weaken) -> Disk {
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let layer = Layer::open_qcow2(storage, &options).unwrap();
    let options = DiskOptions {
        weaken,
        ..DiskOptions::default()
    };
    Disk::open(vec![layer], options).unwrap()
}

fn make(options: &str) -> Vec<u8> {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            "a.qcow2",
            &SIZE.to_string(),
        ],
    );
    if options == TORN {
        // An unknown extension, so that the next one's data crosses a sector.
        let mut bytes = std::fs::read(folder.path("a.qcow2")).unwrap();
        bytes[504..512].copy_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 1, 0xe8]);
        bytes[1000..1008].fill(0);
        std::fs::write(folder.path("a.qcow2"), bytes).unwrap();
    }
    let disk = support::dirty::disk(&folder, "a.qcow2");
    for (name, enabled, granularity) in [("still", false, 512), ("follows", true, 512), ("coarse", true, 65536)] {
        let (name, granularity) = (name.into(), Some(granularity));
        let new = NewBitmap {
            name,
            granularity,
            enabled,
        };
        disk.bitmap_add(new).unwrap();
    }
    disk.bitmap_mark("still", &[4096..8192, 700_000..800_000]).unwrap();
    disk.bitmap_mark("follows", std::slice::from_ref(&(0..512))).unwrap();
    disk.close().unwrap();
    drop(disk);
    let bytes = std::fs::read(folder.path("a.qcow2")).unwrap();
    assert!(options != TORN || bytes[1000..1004] == [0x23, 0x85, 0x28, 0x75]);
    bytes
}

/// What is required of a state on disk.
#[derive(Clone)]
struct Required {
    /// These are there, with at least so much dirty, or inconsistent.
    following: Vec<Granules>,
    /// This one is as it was, unless it is being changed.
    still: Option<Granules>,
    disk: Vec<u8>,
    /// The header cannot name another directory in one sector: meanwhile there is none.
    torn_header: bool,
    /// What a snapshot holds.
    snapshot: Option<Vec<u8>>,
}

fn apply(bytes: &mut Vec<u8>, operation: &Operation) {
    let mut reach = |end: usize| {
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
    };
    match operation {
        Operation::Write { offset, bytes: new } => {
            let begin = offset.0 as usize;
            reach(begin + new.len());
            bytes[begin..begin + new.len()].copy_from_slice(new);
        }
        Operation::SetLength { length } => bytes.resize(*length as usize, 0),
        Operation::Punch { offset, length } => {
            let end = ((offset.0 + length) as usize).min(bytes.len());
            bytes[(offset.0 as usize).min(end)..end].fill(0);
        }
        _ => {}
    }
}

/// Some sectors of a write.
fn tear(operation: &Operation, random: &mut Random) -> Vec<Operation> {
    let Operation::Write { offset, bytes } = operation else {
        return vec![operation.clone()];
    };
    let sectors = (0u64..).zip(bytes.chunks(512)).filter(|_| random.below(2) == 0);
    sectors
        .map(|(number, sector)| Operation::Write {
            offset: offset.checked_add(number * 512).unwrap(),
            bytes: sector.to_vec(),
        })
        .collect()
}

struct Judge {
    seen: HashSet<u64>,
    bad: Vec<String>,
}

impl Judge {
    fn state(&mut self, bytes: Vec<u8>, required: &Required, what: &str) {
        let mut hasher = DefaultHasher::new();
        (bytes.as_slice(), what).hash(&mut hasher);
        if self.seen.insert(hasher.finish())
            && let Err(reason) = judge(bytes, required)
        {
            self.bad.push(format!("{what}: {reason}"));
        }
    }
}

fn judge(bytes: Vec<u8>, required: &Required) -> Result<(), String> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes));
    // What is marked dirty is repaired by this.
    drop(try_disk(storage.clone()).map_err(|error| error.to_string())?);
    let report = our_check(storage.clone());
    if report.corruptions + report.check_errors > 0 {
        return Err(format!("{:?}", report.findings));
    }
    let disk = try_disk(storage.clone()).map_err(|error| error.to_string())?;
    let infos = disk.bitmaps();
    if required.torn_header && infos.is_empty() {
        return Ok(());
    }
    let info = |name: &str| {
        infos
            .iter()
            .find(|info| info.name == name)
            .ok_or(format!("{name} is lost"))
    };
    if let Some(still) = &required.still
        && (info(&still.name)?.inconsistent || dirty(&disk, &still.name) != still.ranges())
    {
        return Err("what nothing was to change has changed".into());
    }
    let size = disk.chain().virtual_size().min(SIZE);
    let mut now = vec![0; size as usize];
    disk.chain().read(GuestOffset(0), &mut now).unwrap();
    for model in &required.following {
        if info(&model.name)?.inconsistent {
            continue;
        }
        let mut wanted = model.clone();
        for (at, (new, old)) in now.chunks(512).zip(required.disk.chunks(512)).enumerate() {
            if new != old {
                wanted.mark(at as u64 * 512..at as u64 * 512 + 512);
            }
        }
        wanted.resize(size);
        let mut found = wanted.clone();
        found.dirty.fill(false);
        dirty(&disk, &model.name)
            .into_iter()
            .for_each(|range| found.mark(range));
        if wanted
            .dirty
            .iter()
            .zip(&found.dirty)
            .any(|(wanted, found)| *wanted && !found)
        {
            return Err(format!("{} misses what has changed", model.name));
        }
    }
    // What is inconsistent can be removed, and then nothing is wrong.
    for info in infos.iter().filter(|info| info.inconsistent) {
        disk.bitmap_remove(&info.name).map_err(|error| error.to_string())?;
    }
    disk.write(GuestOffset(0), &[9; 700]).unwrap();
    disk.close().map_err(|error| error.to_string())?;
    drop(disk);
    let report = our_check(storage);
    if report.corruptions + report.check_errors > 0 {
        return Err(format!("after it was used again: {:?}", report.findings));
    }
    Ok(())
}

/// Runs a workload; returns every state that a crash in it may leave and that is not right.
fn run(options: &str, seed: u64, steps: usize, weaken: Weaken) -> (usize, Vec<String>) {
    let image = make(options);
    let recording = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::new(image.clone()))));
    let mut random = Random::new(seed);
    let mut judge = Judge {
        seen: HashSet::new(),
        bad: Vec::new(),
    };
    let mut still = Granules::new("still", 512, false, SIZE);
    still.mark(4096..8192);
    still.mark(700_000..800_000);
    let mut required = Required {
        following: vec![
            Granules::new("follows", 512, true, SIZE),
            Granules::new("coarse", 65536, true, SIZE),
        ],
        still: Some(still),
        disk: vec![0; SIZE as usize],
        torn_header: options == TORN,
        snapshot: None,
    };
    required.following[0].mark(0..512);
    let (mut durable, mut epoch) = (image, Vec::new());
    let mut disk = Some(open(recording.clone(), weaken));
    recording.take();
    for number in 0..steps {
        let mut before = required.clone();
        let what = step(&mut disk, &recording, &mut random, &mut before, &mut required, weaken);
        let what = format!("{options}, seed {seed}, step {number}: {what}");
        for operation in recording.take() {
            match operation {
                Operation::Read { .. } => continue,
                Operation::Sync => {
                    epoch.drain(..).for_each(|operation| apply(&mut durable, &operation));
                    continue;
                }
                other => epoch.push(other),
            }
            crash(&durable, &epoch, &before, &mut judge, &mut random, &what);
        }
        crash(&durable, &epoch, &required, &mut judge, &mut random, &what);
        if !judge.bad.is_empty() {
            break;
        }
    }
    (judge.seen.len(), judge.bad)
}

/// States of a crash after the last operation of `epoch`.
fn crash(durable: &[u8], epoch: &[Operation], required: &Required, judge: &mut Judge, random: &mut Random, what: &str) {
    let mut state = |operations: &[Operation]| {
        let mut bytes = durable.to_vec();
        operations.iter().for_each(|operation| apply(&mut bytes, operation));
        judge.state(bytes, required, what);
    };
    state(epoch);
    if let Some(last) = epoch.last() {
        state(std::slice::from_ref(last));
        state(&tear(last, random));
    }
    for _ in 0..3 {
        let some: Vec<Operation> = epoch.iter().filter(|_| random.below(2) == 0).cloned().collect();
        state(&some);
        state(
            &some
                .iter()
                .flat_map(|operation| tear(operation, random))
                .collect::<Vec<_>>(),
        );
    }
}

/// One operation. `during`: what a crash in it must leave; `after`: what one behind it must.
fn step(
    disk: &mut Option<Disk>,
    recording: &Arc<RecordingStorage>,
    random: &mut Random,
    during: &mut Required,
    after: &mut Required,
    weaken: Weaken,
) -> String {
    let open_disk = disk.take().unwrap_or_else(|| open(recording.clone(), weaken));
    let begin = random.below(SIZE / 512 - 1) * 512;
    let length = (512 * (1 + random.below(40))).min(SIZE - begin);
    let at = GuestOffset(begin);
    let mut said = format!("at {begin:#x} {length:#x}: ");
    let kind = random.below(18);
    said.push_str(match kind {
        0..=4 => {
            let bytes = vec![1 + random.below(255) as u8; length as usize];
            open_disk.write(at, &bytes).unwrap();
            after.disk[begin as usize..(begin + length) as usize].copy_from_slice(&bytes);
            after
                .following
                .iter_mut()
                .for_each(|model| model.mark(begin..begin + length));
            "write"
        }
        5 => {
            open_disk.write_zeroes(at, length, true).unwrap();
            after.disk[begin as usize..(begin + length) as usize].fill(0);
            after
                .following
                .iter_mut()
                .for_each(|model| model.mark(begin..begin + length));
            "zero"
        }
        6 | 7 => {
            open_disk.flush().unwrap();
            "flush"
        }
        8 => {
            open_disk.bitmap_clear("follows").unwrap();
            during.following.remove(0);
            after.following[0].dirty.fill(false);
            "clear"
        }
        9 => {
            let new = NewBitmap {
                name: format!("new {}", random.below(1 << 40)),
                granularity: Some(4096),
                enabled: random.below(2) == 0,
            };
            open_disk.bitmap_add(new).unwrap();
            "add"
        }
        10 => {
            let last = open_disk.bitmaps().pop().map(|info| info.name);
            if let Some(name) = last.filter(|name| name.starts_with("new")) {
                open_disk.bitmap_remove(&name).unwrap();
            }
            "remove"
        }
        11 if random.below(2) == 0 => {
            during.still = None;
            after.still = None;
            let bigger = SIZE + 512 * random.below(4000);
            let options = ResizeOptions {
                shrink: true,
                ..ResizeOptions::default()
            };
            open_disk.resize(bigger, options).unwrap();
            "resize"
        }
        12 => {
            open_disk.bitmap_merge("coarse", "follows").unwrap();
            let ranges = after.following[0].ranges();
            ranges.into_iter().for_each(|range| after.following[1].mark(range));
            "merge"
        }
        13 => {
            let name = "snapshot".into();
            let snapshot = NewSnapshot {
                name,
                ..NewSnapshot::default()
            };
            if after.snapshot.is_none() {
                open_disk.snapshot_create(snapshot).unwrap();
                after.snapshot = Some(after.disk.clone());
            }
            "snapshot"
        }
        14 if after.snapshot.is_some() => {
            during.still = None;
            after.still = None;
            open_disk
                .snapshot_apply(&SnapshotChoice::Name("snapshot".into()))
                .unwrap();
            after.disk = after.snapshot.clone().unwrap_or_default();
            after.following.iter_mut().for_each(|model| model.mark(0..SIZE));
            "apply"
        }
        15 if after.snapshot.take().is_some() => {
            open_disk
                .snapshot_delete(&SnapshotChoice::Name("snapshot".into()))
                .unwrap();
            "delete"
        }
        _ => {
            open_disk.close().unwrap();
            return "close".into();
        }
    });
    *disk = Some(open_disk);
    said
}

fn stands(options: &str, seeds: std::ops::Range<u64>) {
    let mut states = 0;
    for seed in seeds {
        let (seen, bad) = run(options, seed, 40, Weaken::default());
        assert!(bad.is_empty(), "{} bad states, the first: {}", bad.len(), bad[0]);
        states += seen;
    }
    assert!(states > 500, "{states}");
}

#[test]
fn a_crash_leaves_bitmaps_whole_or_inconsistent_with_64_kib_clusters() {
    stands("cluster_size=64k", 1..4);
}

#[test]
fn a_crash_leaves_bitmaps_whole_or_inconsistent_with_small_clusters() {
    stands("cluster_size=512", 5..10);
    stands("cluster_size=4k", 7..10);
    stands("cluster_size=4k,lazy_refcounts=on", 10..14);
}

#[test]
fn a_crash_leaves_bitmaps_whole_or_inconsistent_or_dropped_where_the_header_is_torn() {
    stands(TORN, 20..25);
}

#[test]
fn a_bitmap_that_is_not_marked_as_in_use_is_found_to_lie() {
    let found = (1..6).any(|seed| {
        !run("cluster_size=64k", seed, 40, Weaken::BITMAP_NOT_IN_USE)
            .1
            .is_empty()
    });
    assert!(found, "the rule is not needed, or this test sees nothing");
}
