//! What a chain knows of its own map: the merged runs of all layers, so that a warm read costs the same at any depth.
//!
//! The disk is cut into regions. Each keeps the runs of those parts of it that were asked for, merged and in order, with gaps where nothing is
//! known. An error is never kept.

use crate::sync::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::PoisonError;

use qcow2_format::GuestOffset;

use super::resolve::append;
use crate::run::Run;

/// Guest bytes of a region.
pub(super) const REGION: u64 = 16 << 20;
/// Runs that a region keeps at most; where the map is finer, reads look into the tables.
const MAX_RUNS: usize = 4096;
/// Changes of the map that are remembered for look-ups under way.
const RECENT: usize = 512;
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
    /// The last changes of the map, each with the generation that it began.
    recent: VecDeque<(u64, Run)>,
    /// What was looked up in an earlier generation is not kept: what has changed since is not known any more.
    floor: u64,
}

#[derive(Debug, Default)]
struct Region {
    runs: Vec<Run>,
    /// Where each of them begins in the region: a search touches a few cache lines of these instead of one for each run that it looks at.
    starts: Vec<u32>,
    used: bool,
    /// It has more runs than it may keep.
    full: bool,
}

impl Region {
    fn bytes(&self) -> u64 {
        (self.runs.capacity() * size_of::<Run>() + self.starts.capacity() * size_of::<u32>()) as u64 + OVERHEAD
    }

    /// The runs from the one on that `at`, which lies in the region, lies in or behind.
    fn from(&self, at: GuestOffset) -> &[Run] {
        let at = start_in_region(at);
        let behind = self.starts.partition_point(|&start| start <= at);
        let first = behind.saturating_sub(1);
        self.runs.get(first..).unwrap_or_default()
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
        let starts = new.iter().map(|run| start_in_region(run.start));
        self.starts.splice(from..to.max(from), starts);
        self.runs.splice(from..to.max(from), new);
    }
}

fn start_in_region(at: GuestOffset) -> u32 {
    u32::try_from(at.0 % REGION).unwrap_or(0)
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
        if generation < state.floor {
            return;
        }
        state.put(runs);
        // What changed meanwhile may be newer than what was found.
        let newer = state.recent.partition_point(|(begun, _)| *begun <= generation);
        for index in newer..state.recent.len() {
            if let Some((_, run)) = state.recent.get(index).copied() {
                state.change(&run);
            }
        }
        state.shrink(self.budget);
    }

    /// The map has changed: puts `run` in the place of what is known of its range, also of what is being looked up now.
    pub(super) fn change(&self, run: &Run) {
        let mut state = self.lock();
        state.generation += 1;
        let generation = state.generation;
        state.recent.push_back((generation, *run));
        if state.recent.len() > RECENT {
            state.floor = state.recent.pop_front().map_or(generation, |(begun, _)| begun);
        }
        state.change(run);
        state.shrink(self.budget);
    }

    /// Forgets everything, also what is being looked up now.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        let generation = state.generation + 1;
        *state = State {
            generation,
            floor: generation,
            ..State::default()
        };
    }
}

impl State {
    /// Grows with every change of the map, and whenever everything is forgotten.
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
            if !region.used {
                region.used = true;
            }
            for run in region.from(at) {
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

    /// As [`State::put`], but only where something is known; where there is no room, nothing is known any more.
    fn change(&mut self, run: &Run) {
        let mut left = Some(*run);
        while let Some(run) = left {
            let number = run.start.0 / REGION;
            let end = GuestOffset((number + 1).saturating_mul(REGION));
            left = run.cut(end, run.end());
            let (Some(piece), Some(region)) = (run.cut(run.start, end), self.regions.get_mut(&number)) else {
                continue;
            };
            let before = region.bytes();
            if region.runs.len() + 2 > MAX_RUNS {
                self.regions.remove(&number);
                self.clock.retain(|other| *other != number);
                self.bytes = self.bytes.saturating_sub(before);
                continue;
            }
            region.full = false;
            region.put(&[piece]);
            self.bytes = self.bytes.saturating_sub(before).saturating_add(region.bytes());
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

#[cfg(test)]
mod tests {
    use qcow2_format::HostOffset;

    use super::*;
    use crate::run::RunKind;

    fn data(start: u64, length: u64, host: u64) -> Run {
        Run {
            start: GuestOffset(start),
            length,
            depth: 0,
            kind: RunKind::Data { host: HostOffset(host) },
        }
    }

    fn known(index: &Index, start: u64, end: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut state = index.lock();
        let to = state.known(GuestOffset(start), GuestOffset(end), |run| {
            runs.push(run);
            true
        });
        assert_eq!(to, runs.last().map_or(GuestOffset(start), Run::end));
        runs
    }

    /// Sixteen writers of a fresh overlay changed the map so often that nothing that was looked up was ever kept, and each looked through all layers.
    #[test]
    fn what_changes_while_something_is_looked_up_is_newer_than_what_was_found() {
        let index = Index::new(u64::MAX);
        let before = index.lock().generation();
        index.change(&data(10, 5, 1000));
        assert!(known(&index, 0, 100).is_empty());
        index.keep(before, &[data(0, 100, 0)]);
        assert_eq!(
            known(&index, 0, 100),
            [data(0, 10, 0), data(10, 5, 1000), data(15, 85, 15)]
        );
        // Too many changes to remember, and nothing found before them is kept.
        let before = index.lock().generation();
        (0..1000).for_each(|n| index.change(&data(200 + n % 7, 1, 5000 + n)));
        index.keep(before, &[data(100, 200, 9000)]);
        assert!(known(&index, 100, 300).is_empty());
        let before = index.lock().generation();
        index.forget();
        index.keep(before, &[data(0, 100, 0)]);
        assert!(known(&index, 0, 100).is_empty());
    }

    /// A map in which place `n` stands at `map[n]`, kept and asked for in random parts, with a border of regions in its middle.
    #[test]
    fn parts_that_overlap_or_touch_become_the_map_that_they_were_cut_from() {
        let mut seed = 5u64;
        let mut below = |end: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).unwrap() % end
        };
        let base = REGION - 40;
        let map: Vec<u64> = (0..80u64).map(|n| if n / 7 % 2 == 0 { n } else { 1000 - n }).collect();
        for _ in 0..50 {
            let index = Index::new(u64::MAX);
            let mut put = [false; 80];
            for _ in 0..60 {
                let from = below(80);
                let to = (from + 1 + below(12)).min(80);
                let mut runs = Vec::new();
                for (place, host) in (base..).zip(&map).take(to).skip(from) {
                    append(&mut runs, data(place, 1, *host));
                }
                index.keep(0, &runs);
                put[from..to].fill(true);
                let from = below(80);
                let answer = known(&index, base + from as u64, base + 80);
                let length = put[from..].iter().take_while(|&&put| put).count();
                assert_eq!(answer.iter().map(|run| run.length).sum::<u64>(), length as u64);
                for (place, host) in (base..).zip(&map).skip(from).take(length) {
                    let at = GuestOffset(place);
                    let piece = answer.iter().find_map(|run| run.cut(at, GuestOffset(at.0 + 1)));
                    assert_eq!(
                        piece.unwrap().kind,
                        RunKind::Data {
                            host: HostOffset(*host)
                        }
                    );
                }
                for pair in answer.windows(2) {
                    let border = pair[1].start.0 == REGION;
                    let mut merged = vec![pair[0]];
                    append(&mut merged, pair[1]);
                    assert!(border || merged.len() == 2, "runs are maximal: {pair:?}");
                }
            }
        }
    }

    #[test]
    fn the_budget_holds_and_what_is_used_stays() {
        let budget = 20 * (OVERHEAD + 4 * (size_of::<Run>() + size_of::<u32>()) as u64);
        let index = Index::new(budget);
        for n in 0..1000 {
            index.keep(0, &[data(0, 512, 0)]);
            index.keep(0, &[data(n * REGION, 512, n * 512)]);
            assert!(index.lock().bytes <= budget);
            if n > 0 {
                assert!(known(&index, 0, 512).len() == 1, "used all the time: {n}");
            }
            let state = index.lock();
            let real: u64 = state.regions.values().map(Region::bytes).sum();
            assert_eq!((state.bytes, state.clock.len()), (real, state.regions.len()));
        }
        assert!(index.lock().regions.len() >= 10);
    }

    #[test]
    fn a_region_keeps_no_more_runs_than_it_may_and_says_so() {
        let index = Index::new(u64::MAX);
        let runs: Vec<Run> = (0..2 * MAX_RUNS as u64).map(|n| data(n * 512, 512, n * 1024)).collect();
        for part in runs.chunks(1000) {
            index.keep(0, part);
        }
        let state = index.lock();
        assert!(state.regions[&0].runs.len() <= MAX_RUNS && state.regions[&0].runs.len() > MAX_RUNS - 1000);
        assert!(!state.has_room(GuestOffset(5)) && state.has_room(GuestOffset(REGION)));
    }

    #[test]
    fn what_was_looked_up_before_everything_was_forgotten_is_not_kept() {
        let index = Index::new(u64::MAX);
        let before = index.lock().generation();
        index.keep(before, &[data(0, 512, 0)]);
        index.forget();
        index.keep(before, &[data(512, 512, 512)]);
        assert!(known(&index, 0, 1024).is_empty() && known(&index, 512, 1024).is_empty());
        let now = index.lock().generation();
        index.keep(now, &[data(0, 512, 0)]);
        assert_eq!(known(&index, 0, 1024).len(), 1);
    }
}
