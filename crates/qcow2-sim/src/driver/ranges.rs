//! Operations on ranges: what they write, and what the disk holds afterwards.

use std::sync::atomic::Ordering;

use qcow2_format::GuestOffset;

use super::Driver;
use crate::contents::ZERO;
use crate::log::SECTOR;
use crate::model::Effect;
use crate::plan::Op;

impl Driver {
    pub(super) fn simple(&self, op: &Op) {
        self.settle_unknown();
        match op {
            Op::Write { offset, length } => {
                let Some((offset, length)) = self.cut(*offset, *length) else {
                    return;
                };
                let (bytes, entries) = self.bytes_for(offset, length);
                let effect = Effect::Sectors {
                    entries: entries.clone(),
                    weak: false,
                };
                let (_, done) = self.step(effect, None, format!("write {offset:#x}+{length:#x}"), || {
                    self.disk().write(GuestOffset(offset), &bytes)
                });
                self.settle(&entries, done.is_some());
            }
            Op::Zero { offset, length, unmap } => {
                let Some((offset, length)) = self.cut(*offset, *length) else {
                    return;
                };
                let entries = self.entries_for_zeros(offset, length);
                let effect = Effect::Sectors {
                    entries: entries.clone(),
                    weak: false,
                };
                let text = format!("zero {offset:#x}+{length:#x} unmap {unmap}");
                let (_, done) = self.step(effect, None, text, || {
                    self.disk().write_zeroes(GuestOffset(offset), length, *unmap)
                });
                self.settle(&entries, done.is_some());
            }
            Op::Discard { offset, length } => {
                let Some((offset, length)) = self.cut(*offset, *length) else {
                    return;
                };
                let (first, last) = (offset.div_ceil(512), (offset + length) / 512);
                let entries: Vec<(u32, u32)> = (first..last).map(|sector| (sector as u32, ZERO)).collect();
                let effect = Effect::Sectors {
                    entries: entries.clone(),
                    weak: true,
                };
                let text = format!("discard {offset:#x}+{length:#x}");
                let _ = self.step(effect, None, text, || self.disk().discard(GuestOffset(offset), length));
                self.settle(&entries, false);
            }
            Op::Read { offset, length } => self.look(*offset, *length),
            Op::Flush => {
                let _ = self.step(Effect::Flush, None, "flush".to_owned(), || self.disk().flush());
            }
            _ => {}
        }
    }

    /// Reads while others write: every sector holds something that was written to it at some time.
    pub(super) fn look(&self, offset: u64, length: u64) {
        let Some((offset, length)) = self.cut(offset / 512 * 512, length.next_multiple_of(512)) else {
            return;
        };
        let mut bytes = vec![0; length as usize];
        if let Err(error) = self.disk().chain().read(GuestOffset(offset), &mut bytes) {
            if !self.faulty {
                self.wrong(format!("reading fails: {error}"));
            }
            return;
        }
        let mut shared = self.shared();
        let shared = &mut *shared;
        for (sector, there) in (offset / 512..).zip(bytes.chunks(SECTOR)) {
            let begin = self.begin.sectors.get(sector as usize).copied().unwrap_or(ZERO);
            let versions = shared.versions.get(&(sector as u32)).map_or(&[][..], Vec::as_slice);
            let known = [ZERO, begin]
                .iter()
                .chain(versions)
                .any(|content| shared.contents.get(*content) == there);
            if !known {
                let what = shared.contents.find(there).map(|content| shared.contents.op(content));
                let text =
                    format!("a read of sector {sector:#x} finds what was never written there: operation {what:?}");
                shared.wrong.get_or_insert(text);
            }
        }
    }

    /// Bytes to be written, and what the sectors hold then.
    pub(super) fn bytes_for(&self, offset: u64, length: u64) -> (Vec<u8>, Vec<(u32, u32)>) {
        let tag = u64::from(self.tags.fetch_add(1, Ordering::SeqCst)) << 32;
        let mut shared = self.shared();
        let shared = &mut *shared;
        let op = shared.steps.len() as u32;
        let (first, last) = (offset / 512, (offset + length).div_ceil(512));
        let mut entries = Vec::new();
        let mut all = Vec::new();
        for sector in first..last {
            let new = shared.contents.tagged(tag | sector, op);
            let (begin, end) = (
                offset.saturating_sub(sector * 512).min(512) as usize,
                (offset + length - sector * 512).min(512) as usize,
            );
            let content = if (begin, end) == (0, SECTOR) {
                new
            } else {
                let old = shared.current[sector as usize];
                let mut mixed = shared.contents.get(old).to_vec();
                mixed[begin..end].copy_from_slice(&shared.contents.get(new)[begin..end]);
                shared.contents.add(&mixed, op)
            };
            all.extend_from_slice(&shared.contents.get(new)[begin..end]);
            entries.push((sector as u32, content));
            shared.versions.entry(sector as u32).or_default().push(content);
        }
        (all, entries)
    }

    pub(super) fn entries_for_zeros(&self, offset: u64, length: u64) -> Vec<(u32, u32)> {
        let mut shared = self.shared();
        let shared = &mut *shared;
        let op = shared.steps.len() as u32;
        let (first, last) = (offset / 512, (offset + length).div_ceil(512));
        let mut entry = |sector: u64| {
            let (begin, end) = (
                offset.saturating_sub(sector * 512).min(512) as usize,
                (offset + length - sector * 512).min(512) as usize,
            );
            let content = if (begin, end) == (0, SECTOR) {
                ZERO
            } else {
                let mut mixed = shared.contents.get(shared.current[sector as usize]).to_vec();
                mixed[begin..end].fill(0);
                shared.contents.add(&mixed, op)
            };
            shared.versions.entry(sector as u32).or_default().push(content);
            (sector as u32, content)
        };
        (first..last).map(&mut entry).collect()
    }

    /// Notes what was not known while reads failed.
    pub(super) fn settle_unknown(&self) {
        let unknown: Vec<u32> = self.shared().unknown.keys().copied().collect();
        for sector in unknown {
            let current = self.shared().current[sector as usize];
            self.settle(&[(sector, current)], false);
        }
    }

    /// Notes what sectors hold now: what was written if that is `sure`, else what they say, which must be the old or the new, or what of before
    /// was not known.
    pub(super) fn settle(&self, entries: &[(u32, u32)], sure: bool) {
        if sure {
            let mut shared = self.shared();
            let op = shared.steps.len() as u32 - 1;
            shared.touched.extend(entries.iter().map(|(sector, _)| (op, *sector)));
            for &(sector, content) in entries {
                shared.current[sector as usize] = content;
                shared.unknown.remove(&sector);
            }
            return;
        }
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        let mut bytes = vec![0; (last.0 - first.0 + 1) as usize * SECTOR];
        if let Err(error) = self
            .disk()
            .chain()
            .read(GuestOffset(u64::from(first.0) * 512), &mut bytes)
        {
            if !self.faulty {
                self.wrong(format!("reading back failed: {error}"));
            }
            // Not known until reads work again: any of those that could not be read may have happened.
            let mut shared = self.shared();
            for &(sector, content) in entries {
                shared.unknown.entry(sector).or_default().push(content);
            }
            return;
        }
        let mut shared = self.shared();
        for (&(sector, content), there) in entries.iter().zip(bytes.chunks(SECTOR)) {
            let old = shared.current[sector as usize];
            let earlier = shared.unknown.remove(&sector).unwrap_or_default();
            let candidates = [content, old].into_iter().chain(earlier);
            let found = { candidates }.find(|candidate| shared.contents.get(*candidate) == there);
            if let Some(found) = found {
                let op = shared.steps.len() as u32 - 1;
                if old != found {
                    shared.touched.push((op, sector));
                }
                shared.current[sector as usize] = found;
            } else {
                let what = shared.contents.find(there).map(|content| shared.contents.op(content));
                let text = format!("sector {sector:#x} reads neither as before nor as asked for: {what:?}");
                shared.wrong.get_or_insert(text);
            }
        }
    }
}
