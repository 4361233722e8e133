//! Judges what a crash has left: it opens, it checks, every sector holds what it may, snapshots are what they were and stay so, and opening again
//! changes nothing.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use qcow2_engine::{
    CheckOptions, Disk, DiskOptions, FindingCode, JobContext, NewSnapshot, Severity, SnapshotChoice, Storage, check,
};
use qcow2_format::GuestOffset;

use crate::contents::Contents;
use crate::log::SECTOR;
use crate::model::{Expectation, SnapshotModel};
use crate::open;
use crate::random::Random;
use crate::scratch::Scratch;
use crate::shape::{Begin, Shape};

/// What is judged against.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// The shape.
    pub shape: &'static Shape,
    /// How the image began.
    pub begin: &'a Begin,
    /// What sectors can hold.
    pub contents: &'a Contents,
    /// What the image may be.
    pub now: &'a Expectation,
    /// What it may be instead.
    pub instead: Option<&'a Expectation>,
    /// Writes afterwards, and looks again.
    pub thorough: bool,
    /// An operation on snapshots is under way.
    pub switching: bool,
    /// Most clusters that may leak, if that is known.
    pub leaks: Option<u64>,
}

/// What was found in a state that is right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Clusters that leak.
    pub leaks: u64,
    /// It was repaired.
    pub repaired: bool,
    /// Snapshots that were read.
    pub snapshots: u64,
    /// Bitmaps that were consistent.
    pub bitmaps: u64,
    /// It is as it would be after what was under way.
    pub instead: bool,
}

/// The files of a state.
#[derive(Clone, Debug)]
pub struct Files {
    /// The image.
    pub image: Arc<dyn Storage>,
    /// Its data file.
    pub data: Option<Arc<dyn Storage>>,
}

/// Judges the state in `files`.
///
/// # Errors
/// What is wrong, in words.
pub fn judge(case: &Case<'_>, files: &Files) -> Result<Found, String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| Judge { case, files }.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

struct Judge<'a> {
    case: &'a Case<'a>,
    files: &'a Files,
}

impl Judge<'_> {
    fn run(&self) -> Result<Found, String> {
        let mut found = Found {
            repaired: self.recover()?,
            ..Found::default()
        };
        found.leaks = self.check("after the crash", !self.case.shape.version2 || !self.case.switching)?;
        if let Some(most) = self.case.leaks.filter(|most| found.leaks > *most) {
            return Err(format!("{} clusters leak, and at most {most} may", found.leaks));
        }
        let disk = self.open()?;
        let bytes = read(&disk)?;
        let (expectation, instead) = self.compare(&bytes, &disk)?;
        found.instead = instead;
        found.snapshots = expectation.snapshots.len() as u64;
        self.snapshots(&expectation.snapshots, "after the crash")?;
        found.bitmaps = self.bitmaps(&disk, &bytes, expectation)?;
        disk.close().map_err(|error| format!("closing fails: {error}"))?;
        drop(disk);
        self.fixed_point()?;
        if self.case.thorough {
            self.go_on(bytes, expectation)?;
        }
        Ok(found)
    }

    fn recover(&self) -> Result<bool, String> {
        open::recover(&self.files.image, self.files.data.as_ref(), self.case.begin)
            .map_err(|error| format!("recovery fails: {error}"))
    }

    fn open(&self) -> Result<Disk, String> {
        let options = DiskOptions {
            cache_bytes: 1 << 20,
            ..DiskOptions::default()
        };
        open::disk(&self.files.image, self.files.data.as_ref(), self.case.begin, &options)
            .map_err(|error| format!("opening fails: {error}"))
    }

    /// Nothing but leaks. Returns how many.
    fn check(&self, when: &str, strict: bool) -> Result<u64, String> {
        let layers = open::layers(&self.files.image, self.files.data.as_ref(), self.case.begin, false)
            .map_err(|error| format!("opening for a check fails: {error}"))?;
        let top = layers.first().ok_or("no layer")?;
        let report = check(top, &CheckOptions { max_findings: 64 }, &JobContext::quiet())
            .map_err(|error| format!("the check fails: {error}"))?;
        let bad = report
            .findings
            .iter()
            .find(|finding| finding.severity != Severity::Leak && (strict || finding.code != FindingCode::CopiedFlag));
        match bad {
            Some(finding) => Err(format!(
                "check {when}: {} errors, {} corruptions, {} leaks; {finding:?}",
                report.check_errors, report.corruptions, report.leaks
            )),
            None => Ok(report.leaks),
        }
    }

    /// Which of the possible disks this is.
    fn compare(&self, bytes: &[u8], disk: &Disk) -> Result<(&Expectation, bool), String> {
        let snapshots = disk
            .chain()
            .layer(0)
            .map(|layer| layer.snapshots().to_vec())
            .unwrap_or_default();
        let fits = |expectation: &Expectation| -> Result<(), String> {
            if bytes.len() != expectation.len() * SECTOR {
                return Err(format!(
                    "the disk has {:#x} bytes, not {:#x}",
                    bytes.len(),
                    expectation.len() * SECTOR
                ));
            }
            self.sectors(bytes, expectation)?;
            let same = snapshots.len() == expectation.snapshots.len()
                && snapshots
                    .iter()
                    .zip(expectation.snapshots.iter())
                    .all(|(there, wanted)| there.id == wanted.id.as_bytes() && there.name == wanted.name.as_bytes());
            if !same {
                let there: Vec<_> = snapshots
                    .iter()
                    .map(|snapshot| String::from_utf8_lossy(&snapshot.name))
                    .collect();
                let wanted: Vec<_> = expectation.snapshots.iter().map(|snapshot| &snapshot.name).collect();
                return Err(format!("snapshots {there:?}, not {wanted:?}"));
            }
            Ok(())
        };
        match (fits(self.case.now), self.case.instead) {
            (Ok(()), _) => Ok((self.case.now, false)),
            (Err(error), None) => Err(error),
            (Err(error), Some(instead)) => match fits(instead) {
                Ok(()) => Ok((instead, true)),
                Err(other) => Err(format!("neither before nor after: {error}; {other}")),
            },
        }
    }

    fn sectors(&self, bytes: &[u8], expectation: &Expectation) -> Result<(), String> {
        let contents = self.case.contents;
        for (number, there) in bytes.chunks(SECTOR).enumerate() {
            let first = expectation.first(number);
            if contents.get(first) == there || expectation.others(number).any(|other| contents.get(other) == there) {
                continue;
            }
            let allowed: Vec<_> = std::iter::once(first).chain(expectation.others(number)).collect();
            let allowed: Vec<_> = allowed
                .iter()
                .map(|content| (*content, contents.op(*content)))
                .collect();
            let what = contents.find(there).map_or_else(
                || "foreign bytes".to_owned(),
                |content| format!("content {content} of operation {}", contents.op(content)),
            );
            return Err(format!(
                "sector {number:#x} holds {what}; it may hold (content, operation) {allowed:?}"
            ));
        }
        Ok(())
    }

    fn snapshots(&self, wanted: &[SnapshotModel], when: &str) -> Result<(), String> {
        for snapshot in wanted {
            let chain = open::snapshot(
                &self.files.image,
                self.files.data.as_ref(),
                self.case.begin,
                &snapshot.id,
            )
            .map_err(|error| format!("{when} snapshot {} does not open: {error}", snapshot.id))?;
            if snapshot.contents.is_empty() {
                // Not known.
                continue;
            }
            let size = snapshot.contents.len() * SECTOR;
            if chain.virtual_size() != size as u64 {
                return Err(format!("{when} snapshot {} has another size", snapshot.id));
            }
            let mut bytes = vec![0; size];
            chain
                .read(GuestOffset(0), &mut bytes)
                .map_err(|error| format!("{when} snapshot {}: {error}", snapshot.id))?;
            let contents = self.case.contents;
            let wrong = bytes
                .chunks(SECTOR)
                .zip(snapshot.contents.iter())
                .position(|(there, wanted)| contents.get(*wanted) != there);
            if let Some(sector) = wrong {
                let there = contents
                    .find(&bytes[sector * SECTOR..][..SECTOR])
                    .map(|content| contents.op(content));
                return Err(format!(
                    "{when} snapshot {} has changed in sector {sector:#x}: operation {there:?}",
                    snapshot.id
                ));
            }
        }
        Ok(())
    }

    /// A bitmap that claims to be right covers everything that was changed since it began.
    fn bitmaps(&self, disk: &Disk, bytes: &[u8], expectation: &Expectation) -> Result<u64, String> {
        let mut consistent = 0;
        for bitmap in disk.bitmaps().iter().filter(|bitmap| !bitmap.inconsistent) {
            consistent += 1;
            if expectation.bitmap_busy > 0 || self.case.now.bitmap_busy > 0 {
                continue;
            }
            let Some(since) = self.case.now.bitmaps.get(&bitmap.name) else {
                continue;
            };
            let dirty = disk
                .bitmap_dirty(&bitmap.name, GuestOffset(0), usize::MAX)
                .map_err(|error| format!("bitmap {}: {error}", bitmap.name))?;
            for (number, there) in bytes.chunks(SECTOR).enumerate() {
                let candidates = std::iter::once(expectation.first(number)).chain(expectation.others(number));
                let Some(content) = { candidates }.find(|content| self.case.contents.get(*content) == there) else {
                    continue;
                };
                let at = number as u64 * 512;
                if self.case.contents.op(content) > *since && !dirty.iter().any(|range| range.contains(&at)) {
                    return Err(format!(
                        "bitmap {} says consistent and clean at {at:#x}, which operation {} wrote, after {since}",
                        bitmap.name,
                        self.case.contents.op(content)
                    ));
                }
            }
        }
        Ok(consistent)
    }

    /// Opening and closing a second time changes nothing.
    fn fixed_point(&self) -> Result<(), String> {
        let (image, data) = (
            contents_of(&self.files.image)?,
            self.files.data.as_ref().map(contents_of).transpose()?,
        );
        if self.recover()? {
            return Err("a second repair is necessary".to_owned());
        }
        let disk = self.open()?;
        disk.close().map_err(|error| format!("closing again fails: {error}"))?;
        drop(disk);
        if contents_of(&self.files.image)? != image || self.files.data.as_ref().map(contents_of).transpose()? != data {
            return Err("opening and closing again changes the files".to_owned());
        }
        Ok(())
    }

    /// Writes on: nothing that the disk or a snapshot holds changes but what is written.
    fn go_on(&self, mut bytes: Vec<u8>, expectation: &Expectation) -> Result<(), String> {
        let mut random = Random::new(&[bytes.len() as u64, expectation.snapshots.len() as u64]);
        let disk = self.open()?;
        let fail = |error: qcow2_engine::Error| format!("after recovery: {error}");
        for number in 0..50u64 {
            let at = random.below(bytes.len() as u64 / 512) * 512;
            let length = (512 * (1 + random.below(6))).min(bytes.len() as u64 - at);
            let range = at as usize..(at + length) as usize;
            match random.below(8) {
                0 => {
                    disk.write_zeroes(GuestOffset(at), length, number % 2 == 0)
                        .map_err(fail)?;
                    bytes[range].fill(0);
                }
                1 if number % 4 == 0 => disk.flush().map_err(fail)?,
                _ => {
                    let byte = (random.number() | 1) as u8;
                    bytes[range.clone()].fill(byte);
                    disk.write(GuestOffset(at), &bytes[range]).map_err(fail)?;
                }
            }
        }
        disk.flush().map_err(fail)?;
        if read(&disk)? != bytes {
            return Err("after recovery and 50 writes the disk reads wrong".to_owned());
        }
        self.snapshots(&expectation.snapshots, "after 50 writes")?;
        let mut rest = expectation.snapshots.to_vec();
        if self.case.shape.snapshots() {
            if let Some(first) = rest.first().cloned() {
                disk.snapshot_delete(&SnapshotChoice::Id(first.id))
                    .or_else(not_yet)
                    .map_err(fail)?;
                rest.remove(0);
            }
            let new = NewSnapshot {
                name: "new".to_owned(),
                ..NewSnapshot::default()
            };
            disk.snapshot_create(new).map(|_| ()).or_else(not_yet).map_err(fail)?;
            self.snapshots(&rest, "after deleting one and taking one")?;
        }
        if read(&disk)? != bytes {
            return Err("after deleting a snapshot and taking one the disk reads wrong".to_owned());
        }
        disk.close().map_err(fail)?;
        drop(disk);
        self.check("at the end", true)?;
        open::repair_leaks(&self.files.image, self.files.data.as_ref())
            .map_err(|error| format!("giving back what leaks fails: {error}"))?;
        match self.check("without leaks", true)? {
            0 => {}
            leaks => return Err(format!("{leaks} clusters still leak after a repair of leaks")),
        }
        let disk = self.open()?;
        if read(&disk)? != bytes {
            return Err("after recovery, writes and closing the disk reads wrong".to_owned());
        }
        Ok(())
    }
}

fn not_yet(error: qcow2_engine::Error) -> Result<(), qcow2_engine::Error> {
    match error {
        qcow2_engine::Error::State {
            code: "REFCOUNT_OVERFLOW",
            ..
        } => Ok(()),
        other => Err(other),
    }
}

fn read(disk: &Disk) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; disk.chain().virtual_size().min(1 << 28) as usize];
    let count = disk
        .chain()
        .read(GuestOffset(0), &mut bytes)
        .map_err(|error| format!("reading fails: {error}"))?;
    if count == bytes.len() {
        Ok(bytes)
    } else {
        Err(format!("a read is short: {count:#x} bytes"))
    }
}

fn contents_of(storage: &Arc<dyn Storage>) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; storage.length().map_err(|error| error.to_string())? as usize];
    storage
        .read_at(qcow2_format::HostOffset(0), &mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// The files of a state that is in `scratch`.
pub fn files(scratch: [&Arc<Scratch>; 2], has_data: bool) -> Files {
    Files {
        image: scratch[0].clone(),
        data: has_data.then(|| -> Arc<dyn Storage> { scratch[1].clone() }),
    }
}
