//! What a chain knows of its own map: the merged runs of all layers, so that a warm read costs the same at any depth.
//!
//! The disk is cut into regions. Each keeps the runs of those parts of it that were asked for, merged and in order, with gaps where nothing is
//! known. An error is never kept.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow2_format::GuestOffset;

use super::resolve::append;
use crate::run::Run;

/// Guest bytes of a region.
pub(super) const REGION: u64 = 16 << 20;
/// Runs that a region keeps at most; where the map is finer, reads look into the tables.
const MAX_RUNS: usize = 4096;
/// What a region takes besides its runs, about.
const OVERHEAD: u64 = 128;

/// The regions of a chain, within a byte budget. What was not used since the hand last passed goes first (a clock).
#[derive(Debug)]
pub(super) struct Index {
    budget: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    regions: HashMap<u64, Region, BuildHasherDefault<RegionHasher>>,
    clock: VecDeque<u64>,
    bytes: u64,
    generation: u64,
}

#[derive(Debug, Default)]
struct Region {
    runs: Vec<Run>,
    used: bool,
    /// It has more runs than it may keep.
    full: bool,
}

impl Region {
    fn bytes(&self) -> u64 {
        (self.runs.capacity() * size_of::<Run>()) as u64 + OVERHEAD
    }

    /// Puts `runs`, which are in order, without gaps and inside the region, in the place of what is known of their range.
    fn put(&mut self, runs: &[Run]) {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
            return;
        };
        let (start, end) = (first.start, last.end());
        // What overlaps or touches.
        let from = self.runs.partition_point(|old| old.end() < start);
        let to = self.runs.partition_point(|old| old.start <= end);
        let mut new = Vec::with_capacity(runs.len() + 2);
        if let Some(left) = self.runs.get(from).and_then(|old| old.cut(old.start, start)) {
            append(&mut new, left);
        }
        for run in runs {
            append(&mut new, *run);
        }
        let last = to.checked_sub(1).and_then(|last| self.runs.get(last));
        if let Some(right) = last.and_then(|old| old.cut(end, old.end())) {
            append(&mut new, right);
        }
        self.runs.splice(from..to.max(from), new);
    }
}

impl Index {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            state: Mutex::default(),
        }
    }

    /// The state, waiting for it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless somebody has it.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state.try_lock().ok()
    }

    /// Keeps `runs`, which are in order and without gaps, found when the generation was `generation`.
    pub(super) fn keep(&self, generation: u64, runs: &[Run]) {
        let mut state = self.lock();
        if state.generation == generation {
            state.put(runs);
            state.shrink(self.budget);
        }
    }

    /// Forgets everything, also what is being looked up now.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        *state = State {
            generation: state.generation.wrapping_add(1),
            ..State::default()
        };
    }
}

impl State {
    /// Changes whenever everything is forgotten.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether more runs of the region of `at` are kept when they are found.
    pub(super) fn has_room(&self, at: GuestOffset) -> bool {
        self.regions.get(&(at.0 / REGION)).is_none_or(|region| !region.full)
    }

    /// Gives `take` the runs from `at` to `end`, cut to that, as far as they are known without a gap and as long as it says so. Returns where that
    /// ends.
    pub(super) fn known(
        &mut self,
        at: GuestOffset,
        end: GuestOffset,
        mut take: impl FnMut(Run) -> bool,
    ) -> GuestOffset {
        let mut at = at;
        while at < end {
            let begin = at;
            let Some(region) = self.regions.get_mut(&(at.0 / REGION)) else {
                return at;
            };
            region.used = true;
            let first = region.runs.partition_point(|run| run.end() <= at);
            for run in region.runs.get(first..).unwrap_or_default() {
                let piece = if run.start <= at { run.cut(at, end) } else { None };
                let Some(piece) = piece else { break };
                if !take(piece) {
                    return at;
                }
                at = piece.end();
            }
            if at == begin || !at.0.is_multiple_of(REGION) {
                // A gap, or the end.
                return at;
            }
        }
        at
    }

    fn put(&mut self, runs: &[Run]) {
        let mut runs = runs.iter().copied();
        let mut next = runs.next();
        while let Some(run) = next {
            let number = run.start.0 / REGION;
            let end = GuestOffset((number + 1).saturating_mul(REGION));
            let mut inside = Vec::new();
            while let Some(piece) = next.and_then(|run| run.cut(run.start, end)) {
                inside.push(piece);
                next = next.and_then(|run| run.cut(end, run.end())).or_else(|| runs.next());
            }
            self.put_in_region(number, &inside);
        }
    }

    fn put_in_region(&mut self, number: u64, runs: &[Run]) {
        let State {
            regions, clock, bytes, ..
        } = self;
        let region = regions.entry(number).or_insert_with(|| {
            clock.push_back(number);
            *bytes += OVERHEAD;
            Region::default()
        });
        if region.runs.len() + runs.len() > MAX_RUNS {
            region.full = true;
            return;
        }
        let before = region.bytes();
        region.put(runs);
        *bytes = bytes.saturating_sub(before).saturating_add(region.bytes());
    }

    fn shrink(&mut self, budget: u64) {
        // Twice around at most: the first pass takes the marks away.
        for _ in 0..self.clock.len().saturating_mul(2) {
            if self.bytes <= budget {
                break;
            }
            let Some(number) = self.clock.pop_front() else { break };
            let Some(region) = self.regions.get_mut(&number) else {
                continue;
            };
            if std::mem::take(&mut region.used) {
                self.clock.push_back(number);
            } else if let Some(region) = self.regions.remove(&number) {
                self.bytes = self.bytes.saturating_sub(region.bytes());
            }
        }
    }
}

/// Region numbers are small and in order: spreading their bits is enough, and a tenth of what the hash of std costs.
#[derive(Debug, Default)]
pub(super) struct RegionHasher(u64);

impl Hasher for RegionHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, number: u64) {
        let spread = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }
}
