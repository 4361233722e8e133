//! What an image may be after a crash: for each sector what it holds for certain, and what it may hold besides.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::contents::ZERO;
use crate::log::Outcome;

/// What an operation changes.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Sectors get contents. `weak`: or keep what they have, and nobody knows before a crash.
    Sectors {
        /// Number and content.
        entries: Vec<(u32, u32)>,
        /// See above.
        weak: bool,
    },
    /// What was done before is durable.
    Flush,
    /// At once and durably, the disk is another one.
    Switch(Switch),
    /// Nothing that the disk shows.
    Nothing,
}

/// What an operation that changes everything makes.
#[derive(Clone, Debug)]
pub struct Switch {
    /// New size in sectors; none: as before.
    pub size: Option<u32>,
    /// What all sectors hold; none: as before.
    pub contents: Option<Arc<Vec<u32>>>,
    /// The snapshots then.
    pub snapshots: Arc<Vec<SnapshotModel>>,
    /// What was written before is durable too.
    pub flushes: bool,
}

/// A snapshot as it must be.
#[derive(Clone, Debug)]
pub struct SnapshotModel {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its sectors hold; empty: not known.
    pub contents: Arc<Vec<u32>>,
}

/// Something that happens to bitmaps.
#[derive(Clone, Debug)]
pub struct BitmapMark {
    /// Its name.
    pub name: String,
    /// From this operation on it records everything; none: no longer.
    pub since: Option<u32>,
}

/// An operation as it was carried out.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it changes.
    pub effect: Effect,
    /// What it does to bitmaps, once it has returned.
    pub bitmap: Option<BitmapMark>,
    /// Its words, for reports.
    pub text: String,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    content: u32,
    op: u32,
    weak: bool,
}

/// What a disk may be.
#[derive(Clone, Debug)]
pub struct Expectation {
    durable: Vec<u32>,
    maybe: BTreeMap<u32, Vec<Entry>>,
    /// The snapshots.
    pub snapshots: Arc<Vec<SnapshotModel>>,
    /// Since which operation a bitmap records.
    pub bitmaps: BTreeMap<String, u32>,
    /// A bitmap is being changed: nothing is known of any.
    pub bitmap_busy: u32,
}

impl Expectation {
    /// A disk that holds `sectors`.
    pub fn new(sectors: Vec<u32>) -> Self {
        Self {
            durable: sectors,
            maybe: BTreeMap::new(),
            snapshots: Arc::default(),
            bitmaps: BTreeMap::new(),
            bitmap_busy: 0,
        }
    }

    /// Sectors of the disk.
    pub fn len(&self) -> usize {
        self.durable.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.durable.is_empty()
    }

    /// The first that a sector may hold.
    pub fn first(&self, sector: usize) -> u32 {
        self.durable[sector]
    }

    /// Everything else that it may hold.
    pub fn others(&self, sector: usize) -> impl Iterator<Item = u32> {
        let entries = self.maybe.get(&(sector as u32)).map_or(&[][..], Vec::as_slice);
        entries.iter().map(|entry| entry.content)
    }

    fn add(&mut self, op: u32, entries: &[(u32, u32)], weak: bool) {
        for &(sector, content) in entries {
            if (sector as usize) < self.durable.len() {
                self.maybe.entry(sector).or_default().push(Entry { content, op, weak });
            }
        }
    }

    fn weaken(&mut self, op: u32) {
        for entry in self.maybe.values_mut().flatten().filter(|entry| entry.op == op) {
            entry.weak = true;
        }
    }

    /// Everything of operations that `covered` names is durable.
    fn flush(&mut self, covered: impl Fn(u32) -> bool) {
        let durable = &mut self.durable;
        self.maybe.retain(|&sector, entries| {
            let last = entries.iter().rposition(|entry| !entry.weak && covered(entry.op));
            if let Some(last) = last {
                durable[sector as usize] = entries[last].content;
                entries.drain(..=last);
            }
            !entries.is_empty()
        });
    }

    fn switch(&mut self, switch: &Switch) {
        if let Some(contents) = &switch.contents {
            self.durable = contents.to_vec();
            self.maybe.clear();
        }
        if let Some(size) = switch.size {
            self.durable.resize(size as usize, ZERO);
            self.maybe.retain(|sector, _| *sector < size);
        }
        self.snapshots = switch.snapshots.clone();
    }
}

/// Follows the marks of a log.
#[derive(Debug)]
pub struct Oracle<'a> {
    steps: &'a [Step],
    /// What the image may be, as things stand.
    pub now: Expectation,
    /// What it may be instead, while something changes everything.
    pub instead: Option<Expectation>,
    ended: HashMap<u32, usize>,
    flushes: HashMap<u32, usize>,
    /// Grows with every mark that makes the oracle stricter.
    pub version: u64,
    /// What was begun and has not ended.
    pub running: Vec<u32>,
    /// Sectors that were changed, and operations that did, since the last flush, and between that and the one before.
    recent: [(u64, u64); 2],
    /// Something has changed the whole mapping, or bitmaps.
    unbounded: bool,
    /// An operation that changes everything has failed on the way.
    pub broken: bool,
}

impl<'a> Oracle<'a> {
    /// Begins with a disk that holds `begin`.
    pub fn new(steps: &'a [Step], begin: Expectation) -> Self {
        Self {
            steps,
            now: begin,
            instead: None,
            ended: HashMap::new(),
            flushes: HashMap::new(),
            version: 0,
            running: Vec::new(),
            recent: [(0, 0); 2],
            unbounded: false,
            broken: false,
        }
    }

    /// Most clusters that may leak: what was allocated or unlinked and not yet reclaimed by the flush after the next; none where that cannot be told.
    pub fn leak_bound(&self, cluster: u64) -> Option<u64> {
        let (sectors, ops) = (self.recent[0].0 + self.recent[1].0, self.recent[0].1 + self.recent[1].1);
        // A cluster that is written can take the place of another one, and so can its table; each operation has two edges.
        let clusters = sectors * 512 / cluster + 2 * ops;
        (!self.unbounded).then_some(4 * clusters + 16)
    }

    /// Operation `op` was called; `at` is the place in the log.
    pub fn begin(&mut self, op: u32, at: usize) {
        let step = &self.steps[op as usize];
        self.running.push(op);
        if step.bitmap.is_some() {
            self.now.bitmap_busy += 1;
        }
        self.unbounded |= matches!(step.effect, Effect::Switch(_)) || step.bitmap.is_some();
        match &step.effect {
            Effect::Sectors { entries, weak } => {
                self.recent[0].0 += entries.len() as u64;
                self.recent[0].1 += 1;
                self.now.add(op, entries, *weak);
                if let Some(instead) = &mut self.instead {
                    instead.add(op, entries, *weak);
                }
            }
            Effect::Flush => {
                self.flushes.insert(op, at);
            }
            Effect::Switch(switch) => {
                let mut instead = self.now.clone();
                if switch.flushes {
                    instead.flush(|op| self.ended.contains_key(&op));
                }
                instead.switch(switch);
                self.instead = Some(instead);
            }
            Effect::Nothing => {}
        }
    }

    /// Operation `op` has returned.
    pub fn end(&mut self, op: u32, outcome: Outcome, at: usize) {
        let step = &self.steps[op as usize];
        self.running.retain(|other| *other != op);
        let done = outcome == Outcome::Done;
        if let Some(mark) = &step.bitmap {
            if done {
                match mark.since {
                    Some(since) => self.now.bitmaps.insert(mark.name.clone(), since),
                    None => self.now.bitmaps.remove(&mark.name),
                };
            }
            // After a failure nothing is known of bitmaps any more.
            if outcome != Outcome::Failed {
                self.now.bitmap_busy -= 1;
            }
        }
        match &step.effect {
            Effect::Sectors { .. } if done => {
                self.ended.insert(op, at);
            }
            Effect::Sectors { .. } => {
                self.now.weaken(op);
                if let Some(instead) = &mut self.instead {
                    instead.weaken(op);
                }
            }
            Effect::Flush if done => {
                self.recent = [(0, 0), self.recent[0]];
                let begun = self.flushes.get(&op).copied().unwrap_or(0);
                let covered = |op: u32| self.ended.get(&op).is_some_and(|at| *at < begun);
                self.now.flush(covered);
                if let Some(instead) = &mut self.instead {
                    instead.flush(covered);
                }
                self.version += 1;
            }
            Effect::Switch(_) if done => {
                if let Some(instead) = self.instead.take() {
                    let bitmaps = std::mem::take(&mut self.now.bitmaps);
                    let busy = self.now.bitmap_busy;
                    self.now = instead;
                    self.now.bitmaps = bitmaps;
                    self.now.bitmap_busy = busy;
                }
                self.version += 1;
            }
            Effect::Switch(_) if outcome == Outcome::Refused => self.instead = None,
            Effect::Switch(_) => self.broken = true,
            _ => {}
        }
    }
}
