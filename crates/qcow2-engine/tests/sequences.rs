//! All sequences of one, two and three operations on clusters of every kind, against a flat model of bytes. After each, the disk, its snapshots and its
//! bitmaps hold what they should, before it is closed and when it is opened again, and a check finds nothing; every so often qemu is asked, too.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;

use qcow2_engine::{
    CheckOptions, Disk, JobContext, Layer, LayerOptions, NewBitmap, NewSnapshot, ResizeOptions, SnapshotChoice, check,
};
use qcow2_format::GuestOffset;
use support::bed::{Bed, Kind, Place, TARGET};
use support::dirty::{Granules, dirty};
use support::{Random, qemu_map};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Write,
    WriteInside,
    WriteAcross,
    ZeroUnmap,
    ZeroKeep,
    ZeroInside,
    Discard,
    DiscardAcross,
    Flush,
    Grow,
    Shrink,
    Take,
    Apply,
    Delete,
    AddBitmap,
    ClearBitmap,
}

use Operation::*;

const ALL: [Operation; 16] = [
    Write,
    WriteInside,
    WriteAcross,
    ZeroUnmap,
    ZeroKeep,
    ZeroInside,
    Discard,
    DiscardAcross,
    Flush,
    Grow,
    Shrink,
    Take,
    Apply,
    Delete,
    AddBitmap,
    ClearBitmap,
];

type Outcome = Result<(), String>;

fn fail<T>(text: impl Into<String>) -> Result<T, String> {
    Err(text.into())
}

fn refused(outcome: qcow2_engine::Result<()>, code: &str) -> Outcome {
    match outcome {
        Err(error) if error.code() == code => Ok(()),
        other => fail(format!("{other:?}, expected {code}")),
    }
}

/// What the disk should be.
struct Model<'a> {
    bed: &'a Bed,
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    bitmaps: Vec<Granules>,
    step: u8,
}

impl<'a> Model<'a> {
    fn new(bed: &'a Bed) -> Self {
        Self {
            bed,
            disk: bed.disk.clone(),
            snapshots: bed
                .snapshot
                .iter()
                .map(|bytes| ("first".to_owned(), bytes.clone()))
                .collect(),
            bitmaps: Vec::new(),
            step: 0,
        }
    }

    /// Where an operation works.
    fn range(&self, operation: Operation) -> (u64, u64) {
        let cluster = self.bed.cluster;
        let target = TARGET * cluster;
        match operation {
            WriteInside => (target + cluster / 4 + 3, cluster / 2),
            ZeroInside => (target + cluster / 4 - 5, cluster / 4 + 600.min(cluster / 4)),
            WriteAcross => (target + cluster / 2 + 1, cluster),
            DiscardAcross => (target - cluster / 2, cluster * 2),
            _ => (target, cluster),
        }
    }

    fn step(&mut self, disk: &Disk, operation: Operation) -> Outcome {
        self.step += 1;
        match operation {
            Flush => disk.flush().map_err(|error| error.to_string()),
            Grow | Shrink => self.resize(disk, operation),
            Take | Apply | Delete => self.snapshot(disk, operation),
            AddBitmap | ClearBitmap => self.bitmap(disk, operation),
            _ => self.change(disk, operation),
        }
    }

    fn change(&mut self, disk: &Disk, operation: Operation) -> Outcome {
        let (begin, length) = self.range(operation);
        let bytes: Vec<u8> = (0..length)
            .map(|at| 0x40 + self.step * 8 + (at / 100 % 8) as u8)
            .collect();
        let at = GuestOffset(begin);
        let outcome = match operation {
            ZeroUnmap | ZeroInside => {
                disk.write_zeroes(at, length, operation == ZeroUnmap || self.step.is_multiple_of(2))
            }
            ZeroKeep => disk.write_zeroes(at, length, false),
            Discard | DiscardAcross => disk.discard(at, length),
            _ => disk.write(at, &bytes),
        };
        if begin + length > self.disk.len() as u64 {
            return match outcome {
                Err(error) if error.code().ends_with("INVALID_ARGUMENT") || error.code().contains("RANGE") => Ok(()),
                other => fail(format!("beyond the end: {other:?}")),
            };
        }
        outcome.map_err(|error| error.to_string())?;
        self.bitmaps
            .iter_mut()
            .for_each(|bitmap| bitmap.mark(begin..begin + length));
        let target = &mut self.disk[begin as usize..(begin + length) as usize];
        match operation {
            Write | WriteInside | WriteAcross => target.copy_from_slice(&bytes),
            Discard | DiscardAcross if operation == DiscardAcross || self.bed.keeps_discarded() => {
                // What a discard leaves of clusters that it covers in part is its own affair: each byte is what it was, or zero.
                let mut after = vec![1; length as usize];
                disk.chain().read(at, &mut after).map_err(|error| error.to_string())?;
                let cluster = self.bed.cluster as usize;
                for (at, (old, new)) in target.iter_mut().zip(after).enumerate() {
                    let whole = (cluster / 2..cluster / 2 + cluster).contains(&at) && !self.bed.keeps_discarded();
                    if new != 0 && (whole || new != *old) {
                        return fail(format!("a discard left {new:#x} at {at}"));
                    }
                    *old = new;
                }
            }
            _ => target.fill(0),
        }
        Ok(())
    }

    fn resize(&mut self, disk: &Disk, operation: Operation) -> Outcome {
        let cluster = self.bed.cluster as usize;
        let half = TARGET as usize * cluster + (cluster / 2).next_multiple_of(512) % cluster;
        let size = match operation {
            Grow => self.disk.len() + cluster * 2 + 512,
            _ if self.disk.len() > half => half,
            _ if self.disk.len() > cluster => cluster,
            _ => 512,
        };
        let options = ResizeOptions {
            shrink: true,
            ..ResizeOptions::default()
        };
        let outcome = disk.resize(size as u64, options);
        if self.bed.has("compat=0.10") && !self.snapshots.is_empty() {
            return refused(outcome, "ERR_QCOW2_RESIZE_SNAPSHOTS");
        }
        outcome.map_err(|error| error.to_string())?;
        self.disk.resize(size, 0);
        self.bitmaps.iter_mut().for_each(|bitmap| bitmap.resize(size as u64));
        Ok(())
    }

    fn snapshot(&mut self, disk: &Disk, operation: Operation) -> Outcome {
        let name = format!("s{}", self.step);
        let first = self.snapshots.first().map(|(name, _)| name.clone());
        let choice = SnapshotChoice::Name(first.clone().unwrap_or_default());
        let outcome = match operation {
            Take => {
                let name = name.clone();
                disk.snapshot_create(NewSnapshot {
                    name,
                    ..NewSnapshot::default()
                })
                .map(drop)
            }
            Apply => disk.snapshot_apply(&choice),
            _ => disk.snapshot_delete(&choice),
        };
        let unsupported = self.bed.place != Place::Inside || self.bed.has("refcount_bits=1");
        let refused = if operation != Take && first.is_none() {
            Some("ERR_QCOW2_NO_SNAPSHOT")
        } else if unsupported {
            Some("ERR_QCOW2_SNAPSHOT_UNSUPPORTED")
        } else {
            None
        };
        match (outcome, refused) {
            (Ok(()), None) => {}
            (Err(error), Some(code)) if error.code() == code || unsupported => return Ok(()),
            // Two bits count to three: an image that has as many references to a cluster stays as it is.
            (Err(error), None)
                if self.bed.has("refcount_bits=2")
                    && self.snapshots.len() >= 2
                    && error.code() == "ERR_QCOW2_REFCOUNT_OVERFLOW" =>
            {
                return Ok(());
            }
            (other, _) => return fail(format!("{operation:?}: {other:?}, expected {refused:?}")),
        }
        match operation {
            Take => self.snapshots.push((name, self.disk.clone())),
            Apply => {
                self.disk.clone_from(&self.snapshots[0].1);
                let size = self.disk.len() as u64;
                for bitmap in &mut self.bitmaps {
                    bitmap.resize(size);
                    bitmap.mark(0..size);
                }
            }
            _ => drop(self.snapshots.remove(0)),
        }
        Ok(())
    }

    fn bitmap(&mut self, disk: &Disk, operation: Operation) -> Outcome {
        if operation == AddBitmap {
            let name = format!("b{}", self.step);
            if self.bed.has("compat=0.10") {
                let new = NewBitmap {
                    name,
                    granularity: None,
                    enabled: true,
                };
                return refused(disk.bitmap_add(new), "ERR_QCOW2_BITMAP_UNSUPPORTED");
            }
            let granularity = 512 << (self.step % 2);
            self.bitmaps
                .push(Granules::new(&name, granularity, true, self.disk.len() as u64));
            let granularity = Some(granularity);
            return disk
                .bitmap_add(NewBitmap {
                    name,
                    granularity,
                    enabled: true,
                })
                .map_err(|error| error.to_string());
        }
        let Some(bitmap) = self.bitmaps.first_mut() else {
            return match disk.bitmap_clear("none") {
                Err(error) if error.code() == "ERR_QCOW2_NO_BITMAP" => Ok(()),
                other => fail(format!("a bitmap that is not there: {other:?}")),
            };
        };
        disk.bitmap_clear(&bitmap.name).map_err(|error| error.to_string())?;
        bitmap.dirty.fill(false);
        Ok(())
    }

    /// What the disk, its snapshots and its bitmaps say is what they should.
    fn judge(&self, disk: &Disk, when: &str) -> Outcome {
        let mut bytes = vec![0xee; self.disk.len()];
        if disk.chain().virtual_size() != bytes.len() as u64 {
            return fail(format!("{when}: a size of {}", disk.chain().virtual_size()));
        }
        disk.chain()
            .read(GuestOffset(0), &mut bytes)
            .map_err(|error| error.to_string())?;
        same(&bytes, &self.disk, when)?;
        if disk.snapshots().len() != self.snapshots.len() {
            return fail(format!("{when}: {} snapshots", disk.snapshots().len()));
        }
        for (name, expected) in &self.snapshots {
            let view = disk
                .snapshot_view(&SnapshotChoice::Name(name.clone()))
                .map_err(|error| error.to_string())?;
            let mut bytes = vec![0xee; expected.len()];
            view.read(GuestOffset(0), &mut bytes)
                .map_err(|error| error.to_string())?;
            same(&bytes, expected, &format!("{when}: snapshot {name}"))?;
        }
        for (bitmap, info) in self.bitmaps.iter().zip(disk.bitmaps()) {
            let found = dirty(disk, &bitmap.name);
            if found != bitmap.ranges() || info.inconsistent {
                return fail(format!(
                    "{when}: {} is {found:?}, not {:?}",
                    bitmap.name,
                    bitmap.ranges()
                ));
            }
        }
        Ok(())
    }
}

fn same(found: &[u8], expected: &[u8], when: &str) -> Outcome {
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => fail(format!(
            "{when}: {:#x} at {at:#x}, expected {:#x}",
            found[at], expected[at]
        )),
    }
}

/// Runs a sequence; `ask_qemu`: qemu judges the outcome too.
fn run(bed: &Bed, sequence: &[Operation], ask_qemu: bool) -> Outcome {
    let files = bed.files();
    let mut model = Model::new(bed);
    let disk = bed.open(&files).map_err(|error| error.to_string())?;
    for (number, &operation) in sequence.iter().enumerate() {
        model
            .step(&disk, operation)
            .map_err(|text| format!("step {number}: {text}"))?;
    }
    model.judge(&disk, "open")?;
    disk.close().map_err(|error| format!("closing: {error}"))?;
    drop(disk);
    let mut layer = Layer::open_qcow2(Arc::clone(&files.image) as _, &LayerOptions::default())
        .map_err(|error| error.to_string())?;
    if layer.needs_data_file() {
        layer
            .set_data_file(Arc::clone(&files.data) as _)
            .map_err(|error| error.to_string())?;
    }
    let report = check(&layer, &CheckOptions::default(), &JobContext::quiet()).map_err(|error| error.to_string())?;
    drop(layer);
    if (report.corruptions, report.leaks, report.check_errors) != (0, 0, 0) {
        return fail(format!("check: {:?}", report.findings));
    }
    if bed.place == Place::RawDataFile {
        let raw = files.data.to_vec();
        let common = raw.len().min(model.disk.len());
        same(&raw[..common], &model.disk[..common], "the raw data file")?;
        if model.disk[common..].iter().any(|byte| *byte != 0) {
            return fail("the raw data file is short");
        }
    }
    if ask_qemu {
        qemu(bed, &model, &files.image.to_vec(), &files.data.to_vec())?;
    }
    let disk = bed.open(&files).map_err(|error| format!("opening again: {error}"))?;
    model.judge(&disk, "opened again")?;
    disk.close().map_err(|error| error.to_string())
}

fn qemu(bed: &Bed, model: &Model<'_>, image: &[u8], data: &[u8]) -> Outcome {
    std::fs::write(bed.folder.path("a.qcow2"), image).unwrap();
    std::fs::write(bed.folder.path("data.raw"), data).unwrap();
    for args in [
        &["check", "-q", "a.qcow2"][..],
        &["convert", "-O", "raw", "a.qcow2", "out.raw"],
    ] {
        let output = Command::new("qemu-img")
            .args(args)
            .current_dir(bed.folder.path("."))
            .output()
            .unwrap();
        if !output.status.success() {
            return fail(format!(
                "{args:?}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    }
    let read = std::fs::read(bed.folder.path("out.raw")).unwrap();
    if read.len() != model.disk.len() {
        return fail(format!("qemu: a size of {}", read.len()));
    }
    same(&read, &model.disk, "qemu")
}

/// Runs all sequences of up to three operations on a bed, and some longer ones, and names those that went wrong.
fn exhaust(bed: &Bed) {
    let mut wrong = Vec::new();
    let mut count = 0_u32;
    let mut one = |sequence: &[Operation]| {
        count += 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| run(bed, sequence, count % 211 == 1)));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(text)) => wrong.push(format!("{sequence:?}: {text}")),
            Err(_) => wrong.push(format!("{sequence:?}: panicked")),
        }
    };
    for a in ALL {
        one(&[a]);
        for b in ALL {
            one(&[a, b]);
            for c in ALL {
                one(&[a, b, c]);
            }
        }
    }
    let mut random = Random::new(7);
    for _ in 0..300 {
        let length = 4 + random.below(12);
        let sequence: Vec<Operation> = (0..length).map(|_| *random.pick(&ALL)).collect();
        one(&sequence);
    }
    assert_eq!(count, 16 + 16 * 16 + 16 * 16 * 16 + 300);
    wrong.sort_by_key(String::len);
    assert!(
        wrong.is_empty(),
        "{}: {} of {count} went wrong:\n{}",
        bed.name,
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
}

macro_rules! sequences {
    ($($name:ident: $kind:ident, $place:ident, $cluster:literal, $more:literal;)*) => {
        $(#[test]
        fn $name() {
            exhaust(&Bed::new(Kind::$kind, Place::$place, $cluster, $more));
        })*
    };
}

sequences! {
    on_unallocated_clusters: Unallocated, Inside, 1024, "";
    on_backed_clusters: Backed, Inside, 1024, "";
    on_clusters_that_are_backed_in_part: BackedInPart, Inside, 2048, "";
    on_zero_clusters: Zero, Inside, 1024, "";
    on_zero_clusters_with_an_offset: ZeroWithOffset, Inside, 1024, "";
    on_zero_clusters_over_a_backing_file: ZeroOverBacking, Inside, 1024, "";
    on_data_clusters: Data, Inside, 512, "";
    on_data_clusters_of_an_image_with_lazy_refcounts: Data, Inside, 1024, ",lazy_refcounts=on";
    on_clusters_shared_with_a_snapshot: Shared, Inside, 1024, "";
    on_shared_clusters_with_wide_refcounts: Shared, Inside, 512, ",refcount_bits=64";
    on_shared_clusters_with_refcounts_of_two_bits: Shared, Inside, 1024, ",refcount_bits=2";
    on_data_clusters_with_refcounts_of_one_bit: Data, Inside, 512, ",refcount_bits=1";
    on_data_clusters_of_version_2: Data, Inside, 1024, ",compat=0.10";
    on_shared_clusters_of_version_2: Shared, Inside, 1024, ",compat=0.10";
    on_backed_clusters_of_version_2: Backed, Inside, 1024, ",compat=0.10";
    on_compressed_clusters: Compressed, Inside, 1024, "";
    on_clusters_with_some_subclusters: Subclusters, Inside, 16384, "";
    on_clusters_with_some_subclusters_backed: SubclustersBacked, Inside, 16384, "";
    on_unallocated_clusters_of_a_data_file: Unallocated, DataFile, 1024, "";
    on_backed_clusters_of_a_data_file: Backed, DataFile, 1024, "";
    on_zero_clusters_of_a_data_file: Zero, DataFile, 1024, "";
    on_zero_clusters_with_an_offset_of_a_data_file: ZeroWithOffset, DataFile, 1024, "";
    on_data_clusters_of_a_data_file: Data, DataFile, 1024, "";
    on_clusters_with_some_subclusters_of_a_data_file: Subclusters, DataFile, 16384, "";
    on_data_clusters_of_a_raw_data_file: Data, RawDataFile, 1024, "";
    on_zero_clusters_with_an_offset_of_a_raw_data_file: ZeroWithOffset, RawDataFile, 1024, "";
    on_unallocated_clusters_of_a_raw_data_file: Unallocated, RawDataFile, 1024, "";
}

/// The third cluster of a bed as qemu sees it: depth, whether it is zero, data, compressed, and whether it has an offset.
fn seen(kind: Kind, place: Place, cluster: u64) -> (u32, bool, bool, bool, bool) {
    let bed = Bed::new(kind, place, cluster, "");
    let middle = cluster * TARGET + cluster / 4;
    let map = qemu_map(&bed.folder, "a.qcow2");
    let entry = map
        .iter()
        .find(|entry| entry.0 <= middle && middle < entry.0 + entry.1)
        .unwrap();
    (entry.2, entry.4, entry.5, entry.6, entry.7.is_some())
}

#[test]
fn the_clusters_are_of_the_kinds_that_they_are_called() {
    for place in [Place::Inside, Place::DataFile] {
        assert_eq!(seen(Kind::Unallocated, place, 1024), (0, true, false, false, false));
        assert_eq!(seen(Kind::Backed, place, 1024), (1, false, true, false, true));
        assert_eq!(seen(Kind::BackedInPart, place, 2048), (1, false, true, false, true));
        assert_eq!(seen(Kind::Zero, place, 1024), (0, true, false, false, false));
        assert_eq!(seen(Kind::ZeroWithOffset, place, 1024), (0, true, false, false, true));
        assert_eq!(seen(Kind::ZeroOverBacking, place, 1024), (0, true, false, false, false));
        assert_eq!(seen(Kind::Data, place, 1024), (0, false, true, false, true));
        // A quarter into the cluster is where its subclusters are zero.
        assert!(seen(Kind::Subclusters, place, 16384).1);
        assert_eq!(seen(Kind::SubclustersBacked, place, 16384).0, 0);
    }
    assert_eq!(
        seen(Kind::Compressed, Place::Inside, 1024),
        (0, false, true, true, false)
    );
    assert_eq!(seen(Kind::Shared, Place::Inside, 1024), (0, false, true, false, true));
}
