//! Operations on the disk as a whole: sizes, snapshots, bitmaps.

use std::sync::Arc;

use qcow2_engine::{Disk, Error, NewBitmap, NewSnapshot, Preallocation, ResizeOptions, SnapshotChoice};

use qcow2_format::{GuestOffset, Snapshot};

use super::Driver;
use crate::contents::ZERO;
use crate::model::{BitmapMark, Effect, SnapshotModel, Switch};

impl Driver {
    pub(super) fn resize(&mut self, size: u64, preallocate: bool) {
        let sectors = (size / 512) as u32;
        let effect = Effect::Switch(Switch {
            size: Some(sectors),
            contents: None,
            snapshots: self.snapshots.clone(),
            flushes: false,
        });
        let options = ResizeOptions {
            shrink: true,
            preallocation: if preallocate && size > self.size() {
                Preallocation::Metadata
            } else {
                Preallocation::Off
            },
        };
        let (_, done) = self.step(effect, None, format!("resize {size:#x} {preallocate}"), || {
            self.disk().resize(size, options)
        });
        if done.is_some() || self.went_through(|this| Some(this.size() == size)) {
            let mut shared = self.shared();
            shared.current.resize(sectors as usize, ZERO);
            shared.touched.retain(|(_, sector)| *sector < sectors);
        }
    }

    pub(super) fn switch_snapshots(
        &self,
        snapshots: Vec<SnapshotModel>,
        flushes: bool,
    ) -> (Effect, Arc<Vec<SnapshotModel>>) {
        let snapshots = Arc::new(snapshots);
        let effect = Effect::Switch(Switch {
            size: None,
            contents: None,
            snapshots: snapshots.clone(),
            flushes,
        });
        (effect, snapshots)
    }

    pub(super) fn keep(&mut self, done: bool, snapshots: Arc<Vec<SnapshotModel>>) {
        let there = |this: &Self| {
            let there = this.disk().snapshots();
            let same = |(there, wanted): (&Snapshot, &SnapshotModel)| {
                there.id == wanted.id.as_bytes() && there.name == wanted.name.as_bytes()
            };
            Some(there.len() == snapshots.len() && there.iter().zip(snapshots.iter()).all(same))
        };
        if done || self.went_through(there) {
            self.snapshots = snapshots;
        }
    }

    pub(super) fn snapshot_create(&mut self) {
        let Some((snapshots, effect, new)) = self.next_snapshot() else {
            return;
        };
        let done = self.create_snapshot(effect, new, &snapshots);
        self.keep(done, snapshots);
    }

    /// A snapshot of what the disk holds now: the list with it, and what taking it changes.
    pub(super) fn next_snapshot(&mut self) -> Option<(Arc<Vec<SnapshotModel>>, Effect, NewSnapshot)> {
        if self.snapshots.len() >= 4 {
            return None;
        }
        self.names += 1;
        let name = format!("snapshot {}", self.names);
        let ids = self
            .snapshots
            .iter()
            .filter_map(|snapshot| snapshot.id.parse::<u32>().ok());
        let id = (ids.max().unwrap_or(0) + 1).to_string();
        let mut snapshots = self.snapshots.to_vec();
        let contents = Arc::new(self.shared().current.clone());
        snapshots.push(SnapshotModel {
            id,
            name: name.clone(),
            contents,
        });
        let (effect, snapshots) = self.switch_snapshots(snapshots, true);
        let new = NewSnapshot {
            name,
            ..NewSnapshot::default()
        };
        Some((snapshots, effect, new))
    }

    /// Takes the last one of `snapshots`. Whether that succeeded.
    pub(super) fn create_snapshot(&self, effect: Effect, new: NewSnapshot, snapshots: &[SnapshotModel]) -> bool {
        let text = format!("create {}", new.name);
        let (_, done) = self.step(effect, None, text, || self.disk().snapshot_create(new));
        let id = snapshots
            .last()
            .map(|snapshot| snapshot.id.as_str())
            .unwrap_or_default();
        if let Some(made) = &done
            && made.id != id.as_bytes()
        {
            let there = String::from_utf8_lossy(&made.id);
            self.wrong(format!("a new snapshot has id {there:?}, not {id}"));
        }
        done.is_some()
    }

    pub(super) fn chosen(&self, which: u64) -> Option<usize> {
        let count = self.snapshots.len() as u64;
        (count > 0).then(|| (which % count) as usize)
    }

    pub(super) fn snapshot_apply(&mut self, which: u64) {
        let Some(chosen) = self.chosen(which) else { return };
        let snapshot = self.snapshots[chosen].clone();
        let effect = Effect::Switch(Switch {
            size: None,
            contents: Some(snapshot.contents.clone()),
            snapshots: self.snapshots.clone(),
            flushes: true,
        });
        let choice = SnapshotChoice::Id(snapshot.id.clone());
        let (_, done) = self.step(effect, None, format!("apply {}", snapshot.name), || {
            self.disk().snapshot_apply(&choice)
        });
        if done.is_some() || self.went_through(|this| this.holds(&snapshot.contents)) {
            self.switched(&snapshot.contents);
        }
    }

    pub(super) fn snapshot_delete(&mut self, which: u64) {
        let Some(chosen) = self.chosen(which) else { return };
        let mut snapshots = self.snapshots.to_vec();
        let snapshot = snapshots.remove(chosen);
        let (effect, snapshots) = self.switch_snapshots(snapshots, false);
        let choice = SnapshotChoice::Id(snapshot.id.clone());
        let (_, done) = self.step(effect, None, format!("delete {}", snapshot.name), || {
            self.disk().snapshot_delete(&choice)
        });
        self.keep(done.is_some(), snapshots);
    }

    pub(super) fn snapshot_rename(&mut self, which: u64) {
        let Some(chosen) = self.chosen(which) else { return };
        self.names += 1;
        let name = format!("renamed {}", self.names);
        let mut snapshots = self.snapshots.to_vec();
        let choice = SnapshotChoice::Id(snapshots[chosen].id.clone());
        snapshots[chosen].name.clone_from(&name);
        let (effect, snapshots) = self.switch_snapshots(snapshots, false);
        let (_, done) = self.step(effect, None, format!("rename to {name}"), || {
            self.disk().snapshot_rename(&choice, &name)
        });
        self.keep(done.is_some(), snapshots);
    }

    pub(super) fn bitmap_step(
        &mut self,
        name: &str,
        records: bool,
        text: &str,
        call: impl FnOnce(&Disk) -> Result<(), Error>,
    ) -> bool {
        let op = self.shared().steps.len() as u32;
        let mark = BitmapMark {
            name: name.to_owned(),
            since: records.then_some(op),
        };
        let (_, done) = self.step(Effect::Nothing, Some(mark), format!("{text} {name}"), || {
            call(self.disk())
        });
        if done.is_none() && self.faulty {
            self.stop = true;
        }
        done.is_some()
    }

    pub(super) fn bitmap_add(&mut self, enabled: bool) {
        if self.bitmaps.len() >= 3 {
            return;
        }
        self.names += 1;
        let name = format!("bitmap-{}", self.names);
        let granularity = Some(512 << (self.names % 5 * 2));
        let new = NewBitmap {
            name: name.clone(),
            granularity,
            enabled,
        };
        if self.bitmap_step(&name, enabled, "add", |disk| disk.bitmap_add(new)) {
            let since = self.last_op(enabled);
            self.bitmaps.push((name, since));
        }
    }

    pub(super) fn chosen_bitmap(&self, which: u64) -> Option<String> {
        let count = self.bitmaps.len() as u64;
        (count > 0).then(|| self.bitmaps[(which % count) as usize].0.clone())
    }

    pub(super) fn bitmap_clear(&mut self, which: u64) {
        let Some(name) = self.chosen_bitmap(which) else { return };
        let records = self
            .disk()
            .bitmaps()
            .iter()
            .any(|bitmap| bitmap.name == name && bitmap.enabled);
        if self.bitmap_step(&name, records, "clear", |disk| disk.bitmap_clear(&name)) {
            self.restart(&name, records);
        }
    }

    pub(super) fn bitmap_remove(&mut self, which: u64) {
        let Some(name) = self.chosen_bitmap(which) else { return };
        if self.bitmap_step(&name, false, "remove", |disk| disk.bitmap_remove(&name)) {
            self.bitmaps.retain(|(other, _)| *other != name);
        }
    }

    pub(super) fn bitmap_enable(&mut self, which: u64, enabled: bool) {
        let Some(name) = self.chosen_bitmap(which) else { return };
        let text = if enabled { "enable" } else { "disable" };
        if self.bitmap_step(&name, enabled, text, |disk| disk.bitmap_enable(&name, enabled)) {
            self.restart(&name, enabled);
        }
    }

    /// The number of the operation that has just returned, if a bitmap records from it on.
    fn last_op(&self, records: bool) -> Option<u32> {
        records.then(|| self.shared().steps.len() as u32 - 1)
    }

    fn restart(&mut self, name: &str, records: bool) {
        let since = self.last_op(records);
        for bitmap in self.bitmaps.iter_mut().filter(|bitmap| bitmap.0 == name) {
            bitmap.1 = since;
        }
    }

    /// The disk holds something else now.
    fn switched(&self, contents: &[u32]) {
        let mut shared = self.shared();
        let shared = &mut *shared;
        let op = shared.steps.len() as u32 - 1;
        for (sector, content) in (0u32..).zip(contents) {
            if shared.current.get(sector as usize) != Some(content) {
                shared.touched.push((op, sector));
            }
        }
        shared.touched.retain(|(_, sector)| (*sector as usize) < contents.len());
        shared.current = contents.to_vec();
    }

    /// After a clean close every bitmap is there, is right, and covers what was changed while it recorded.
    pub(super) fn verify_bitmaps(&self) {
        let there = self.disk().bitmaps();
        for (name, since) in &self.bitmaps {
            let Some(bitmap) = there.iter().find(|bitmap| bitmap.name == *name) else {
                self.wrong(format!("{name} is not there after closing"));
                return;
            };
            if bitmap.inconsistent {
                self.wrong(format!("{name} is inconsistent after closing"));
                return;
            }
            let Some(since) = since else { continue };
            let dirty = match self.disk().bitmap_dirty(name, GuestOffset(0), usize::MAX) {
                Ok(dirty) => dirty,
                Err(error) => {
                    self.wrong(format!("{name}: {error}"));
                    return;
                }
            };
            let shared = self.shared();
            let covered = |sector: u32| dirty.iter().any(|range| range.contains(&(u64::from(sector) * 512)));
            let missed = shared
                .touched
                .iter()
                .find(|(op, sector)| op > since && !covered(*sector))
                .copied();
            drop(shared);
            if let Some((op, sector)) = missed {
                self.wrong(format!("{name} misses sector {sector:#x}, changed by operation {op}"));
            }
        }
    }
}
