//! What is on the disks when power fails: what was synced for certain, and of the rest what a choice says.

use crate::contents::ZERO;
use crate::log::{Change, DATA, Event, IMAGE, SECTOR};
use crate::random::{Random, mix};
use crate::scratch::Scratch;

/// A change that no sync has covered.
#[derive(Clone, Debug)]
struct Pending {
    id: u32,
    file: u8,
    change: Change,
    ended: Option<usize>,
    /// A sync that failed should have covered it: none will.
    lost: bool,
}

/// The files that are certain, and what is not.
pub struct Cut {
    bases: [Vec<u8>; 2],
    hashes: [u64; 2],
    /// Sectors of the image that somebody has written, or that were there.
    written: Vec<bool>,
    pending: Vec<Pending>,
    syncs: Vec<(u32, u8, usize)>,
    /// Which bases have changed since the scratch files were filled.
    changed: [bool; 2],
    /// Whether there is a raw data file, where a hole is a write of zeros.
    pub generation: u64,
}

/// What becomes of what is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Everything is there: a process was killed.
    Prefix,
    /// Of the first 64 changes those whose bits are set.
    Subset(u64),
    /// All but one.
    Without(usize),
    /// One alone.
    Only(usize),
    /// Any.
    Random(u64),
    /// Any, and of those any sectors.
    Torn(u64),
    /// Any, and of those any pages of 4096 bytes.
    TornPages(u64),
    /// Any; what nobody has written yet, and what was given back, holds garbage.
    Garbage(u64),
}

impl Choice {
    /// The generator's letter.
    pub fn letter(self) -> char {
        match self {
            Self::Prefix => 'P',
            Self::Subset(_) | Self::Without(_) | Self::Only(_) | Self::Random(_) => 'S',
            Self::Torn(_) | Self::TornPages(_) => 'T',
            Self::Garbage(_) => 'G',
        }
    }
}

fn sector_hash(file: u8, number: u64, bytes: &[u8]) -> u64 {
    let mut all = 0u64;
    let mut any = 0u64;
    for word in bytes.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*word);
        any |= word;
        all = (all.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    if any == 0 {
        0
    } else {
        mix(all ^ mix(number << 1 | u64::from(file)))
    }
}

fn hash(file: u8, bytes: &[u8]) -> u64 {
    let sectors = (0u64..).zip(bytes.chunks(SECTOR));
    sectors.fold(0, |all, (number, bytes)| {
        all.wrapping_add(sector_hash(file, number, bytes))
    })
}

impl Cut {
    /// Files that begin with these bytes.
    pub fn new(image: &[u8], data: Option<&[u8]>) -> Self {
        let data = data.unwrap_or_default();
        Self {
            bases: [image.to_vec(), data.to_vec()],
            hashes: [hash(IMAGE, image), hash(DATA, data)],
            written: vec![true; image.len().div_ceil(SECTOR)],
            pending: Vec::new(),
            syncs: Vec::new(),
            changed: [true; 2],
            generation: 0,
        }
    }

    /// Changes that are pending.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Their numbers in the log.
    pub fn ids(&self) -> Vec<u32> {
        self.pending.iter().map(|pending| pending.id).collect()
    }

    /// Goes over one entry of the log.
    pub fn advance(&mut self, at: usize, event: &Event) {
        match event {
            Event::Begin { id, file, change } => self.pending.push(Pending {
                id: *id,
                file: *file,
                change: change.clone(),
                ended: None,
                lost: false,
            }),
            Event::End(id) => {
                if let Some(pending) = self.pending.iter_mut().rev().find(|pending| pending.id == *id) {
                    pending.ended = Some(at);
                }
            }
            Event::SyncBegin { id, file } => self.syncs.push((*id, *file, at)),
            Event::SyncEnd(id, passed) => {
                let Some(index) = self.syncs.iter().position(|sync| sync.0 == *id) else {
                    return;
                };
                let (_, file, begun) = self.syncs.swap_remove(index);
                self.synced(file, begun, *passed);
            }
            Event::OpBegin(_) | Event::OpEnd(..) => {}
        }
    }

    fn synced(&mut self, file: u8, begun: usize, passed: bool) {
        let mut kept = Vec::with_capacity(self.pending.len());
        for mut pending in std::mem::take(&mut self.pending) {
            let covered = pending.file == file && pending.ended.is_some_and(|ended| ended < begun);
            if covered && passed && !pending.lost {
                self.settle(&pending);
            } else {
                pending.lost |= covered;
                kept.push(pending);
            }
        }
        self.pending = kept;
        if passed {
            self.generation += 1;
        }
    }

    /// A change is certain now.
    fn settle(&mut self, pending: &Pending) {
        let file = usize::from(pending.file);
        let base = &mut self.bases[file];
        let total = &mut self.hashes[file];
        self.changed[file] = true;
        let mut put = |base: &mut Vec<u8>, number: u64, new: &[u8]| {
            let begin = number as usize * SECTOR;
            let end = (begin + SECTOR).min(base.len());
            let old = &mut base[begin..end];
            *total = total.wrapping_sub(sector_hash(pending.file, number, old));
            old.copy_from_slice(&new[..old.len()]);
            *total = total.wrapping_add(sector_hash(pending.file, number, old));
        };
        match &pending.change {
            Change::Write { first, bytes, end } => {
                if (base.len() as u64) < *end {
                    base.resize(*end as usize, 0);
                }
                for (number, sector) in (*first..).zip(bytes.chunks(SECTOR)) {
                    if number as usize * SECTOR < base.len() {
                        put(base, number, sector);
                    }
                }
            }
            Change::Punch { offset, length } => {
                let (begin, end) = (*offset as usize, (offset + length).min(base.len() as u64) as usize);
                if begin < end {
                    base[begin..end].fill(0);
                    *total = hash(pending.file, base);
                }
            }
            Change::SetLength(length) => {
                base.resize(*length as usize, 0);
                *total = hash(pending.file, base);
            }
            Change::Grow(length) => {
                base.resize(base.len().max(*length as usize), 0);
                *total = hash(pending.file, base);
            }
        }
        if pending.file == IMAGE {
            self.note_written(&pending.change);
        }
    }

    fn note_written(&mut self, change: &Change) {
        if let Change::Write { first, bytes, .. } = change {
            let (first, count) = (*first as usize, bytes.len() / SECTOR);
            if self.written.len() < first + count {
                self.written.resize(first + count, false);
            }
            self.written[first..first + count].fill(true);
        }
    }

    /// Puts the state of a choice into the files; returns its hash.
    pub fn build(&mut self, choice: Choice, files: [&Scratch; 2]) -> u64 {
        for (file, scratch) in files.iter().enumerate() {
            scratch.reset(&self.bases[file], std::mem::take(&mut self.changed[file]));
        }
        let mut total = self.hashes[0].wrapping_add(self.hashes[1]);
        let seed = match choice {
            Choice::Random(seed) | Choice::Torn(seed) | Choice::TornPages(seed) | Choice::Garbage(seed) => seed,
            _ => 0,
        };
        let mut random = Random::new(&[seed, 0xC0DE]);
        let dense = random.below(4);
        for (number, pending) in self.pending.iter().enumerate() {
            let taken = match choice {
                Choice::Prefix => !pending.lost,
                Choice::Subset(mask) => number >= 64 || mask >> number & 1 == 1,
                Choice::Without(one) => number != one,
                Choice::Only(one) => number == one,
                // Mostly there, mostly not, or half.
                _ => random.below(4) >= dense,
            };
            if taken {
                apply(
                    pending,
                    choice,
                    files[usize::from(pending.file)],
                    &mut random,
                    &mut total,
                );
            }
        }
        if matches!(choice, Choice::Garbage(_)) {
            self.garbage(files[0], &mut random, &mut total);
        }
        let lengths = files.map(|file| file.len() as u64);
        total ^ mix(lengths[0] ^ mix(lengths[1]))
    }

    /// Space behind the old end that no write has reached.
    fn garbage(&self, image: &Scratch, random: &mut Random, total: &mut u64) {
        let count = image.len() / SECTOR;
        let mut written = self.written.clone();
        written.resize(count.max(written.len()), false);
        for pending in self.pending.iter().filter(|pending| pending.file == IMAGE) {
            if let Change::Write { first, bytes, .. } = &pending.change {
                let (first, end) = (*first as usize, *first as usize + bytes.len() / SECTOR);
                // Half of what was dropped holds garbage, too; the rest holds zeros.
                if end <= written.len() && random.one_in(2) {
                    written[first.min(end)..end].fill(true);
                }
            }
        }
        for (number, _) in written.iter().enumerate().take(count).filter(|(_, written)| !**written) {
            image.change(number * SECTOR, (number + 1) * SECTOR, |bytes| {
                if bytes.iter().all(|byte| *byte == 0) {
                    fill(bytes, random);
                    *total = total.wrapping_add(sector_hash(IMAGE, number as u64, bytes));
                }
            });
        }
    }
}

fn fill(bytes: &mut [u8], random: &mut Random) {
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&random.number().to_le_bytes()[..word.len()]);
    }
}

fn apply(pending: &Pending, choice: Choice, scratch: &Scratch, random: &mut Random, total: &mut u64) {
    let file = pending.file;
    match &pending.change {
        Change::Write { first, bytes, end } => {
            let torn = matches!(choice, Choice::Torn(_)) && !random.one_in(3);
            let pages = matches!(choice, Choice::TornPages(_)) && !random.one_in(3);
            let page_seed = random.number();
            let begin = *first as usize * SECTOR;
            let kept = |number: u64, random: &mut Random| {
                if torn {
                    random.one_in(2)
                } else if pages {
                    mix(page_seed ^ (number / 8)) & 1 == 0
                } else {
                    true
                }
            };
            let length = if torn || pages { scratch.len() } else { *end as usize };
            if scratch.len() < length {
                scratch.truncate(length);
            }
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                let number = first + index as u64;
                if !kept(number, random) {
                    continue;
                }
                let at = begin + index * SECTOR;
                let to = (at + SECTOR).min((*end as usize).max(scratch.len()));
                if to <= at {
                    continue;
                }
                scratch.change(at, to, |target| {
                    *total = total.wrapping_sub(sector_hash(file, number, target));
                    target.copy_from_slice(&sector[..target.len()]);
                    *total = total.wrapping_add(sector_hash(file, number, target));
                });
            }
        }
        Change::Punch { offset, length } => {
            let end = (offset + length).min(scratch.len() as u64);
            let garbage = matches!(choice, Choice::Garbage(_)) && file == IMAGE && random.one_in(2);
            let mut at = *offset;
            while at < end {
                let to = ((at / 512 + 1) * 512).min(end);
                scratch.change(at as usize, to as usize, |target| {
                    let number = at / 512;
                    *total = total.wrapping_sub(sector_hash(file, number, target));
                    if garbage {
                        fill(target, random)
                    } else {
                        target.fill(0)
                    }
                    *total = total.wrapping_add(sector_hash(file, number, target));
                });
                at = to;
            }
        }
        Change::SetLength(length) => {
            scratch.truncate(*length as usize);
            *total = total.wrapping_add(mix(*length ^ 0x5E7));
        }
        Change::Grow(length) if (*length as usize) > scratch.len() => {
            scratch.truncate(*length as usize);
            *total = total.wrapping_add(mix(*length ^ 0x5E8));
        }
        Change::Grow(_) => {}
    }
}

const _: () = assert!(ZERO == 0);
