//! Goes through the log of a workload, cuts power at every place in it, and judges what is left.

use std::collections::HashSet;
use std::sync::Arc;

use crate::cut::{Choice, Cut};
use crate::driver::Trace;
use crate::judge::{Case, Files, Found, files, judge};
use crate::log::{Event, Outcome};
use crate::model::{Effect, Oracle};
use crate::random::mix;
use crate::scratch::Scratch;

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Random choices at every place, of each kind.
    pub everywhere: u64,
    /// The same before a sync or an operation ends, where most is pending.
    pub at_ends: u64,
    /// Most states of a workload.
    pub most: u64,
    /// One of so many states is judged thoroughly; those with snapshots are more often.
    pub thorough: u64,
    /// One of so many is cut again while it is recovered; 0: none.
    pub recovery: u64,
    /// Only so many entries at the end of a log are looked at.
    pub last: usize,
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// States that were judged, by generator: P, S, T, G, R, E.
    pub states: [u64; 6],
    /// States that were the same as one before.
    pub duplicates: u64,
    /// Most clusters that leaked in one.
    pub most_leaks: u64,
    /// States with leaks.
    pub leaking: u64,
    /// States that were repaired.
    pub repaired: u64,
    /// Snapshots that were compared.
    pub snapshots: u64,
    /// Bitmaps that were consistent.
    pub bitmaps: u64,
    /// States that were judged thoroughly.
    pub thorough: u64,
    /// States that show what was under way, whole.
    pub instead: u64,
    /// States that qemu-img has checked, too.
    pub qemu: u64,
    /// Workloads.
    pub workloads: u64,
    /// Calls that failed, in workloads.
    pub faults: u64,
}

/// The generators' letters.
pub const GENERATORS: [char; 6] = ['P', 'S', 'T', 'G', 'R', 'E'];

impl Counts {
    /// All states.
    pub fn all(&self) -> u64 {
        self.states.iter().sum()
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.states.iter_mut().zip(other.states) {
            *mine += theirs;
        }
        self.duplicates += other.duplicates;
        self.most_leaks = self.most_leaks.max(other.most_leaks);
        self.leaking += other.leaking;
        self.repaired += other.repaired;
        self.snapshots += other.snapshots;
        self.bitmaps += other.bitmaps;
        self.thorough += other.thorough;
        self.instead += other.instead;
        self.qemu += other.qemu;
        self.workloads += other.workloads;
        self.faults += other.faults;
    }

    fn note(&mut self, letter: char, found: Found, thorough: bool) {
        let index = GENERATORS.iter().position(|other| *other == letter).unwrap_or(0);
        self.states[index] += 1;
        self.leaking += u64::from(found.leaks > 0);
        self.most_leaks = self.most_leaks.max(found.leaks);
        self.repaired += u64::from(found.repaired);
        self.snapshots += found.snapshots;
        self.bitmaps += found.bitmaps;
        self.thorough += u64::from(thorough);
        self.instead += u64::from(found.instead);
    }
}

/// A state that is wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Place in the log.
    pub at: usize,
    /// What was on the disks; none if the workload itself went wrong.
    pub choice: Option<Choice>,
    /// What is wrong.
    pub text: String,
}

/// Scratch files that are used again and again.
#[derive(Debug, Default)]
pub struct Bench {
    pub(crate) scratch: [Arc<Scratch>; 2],
    pub(crate) second: [Arc<Scratch>; 2],
}

/// Something else that looks at states: their number, and the files.
pub type Witness<'a> = &'a mut dyn FnMut(u64, &Files) -> Result<bool, String>;

/// A sweep over one trace.
pub struct Sweep<'a> {
    pub(crate) trace: &'a Trace,
    pub(crate) effort: Effort,
    pub(crate) bench: &'a Bench,
    pub(crate) counts: &'a mut Counts,
    seen: HashSet<u64>,
    seed: u64,
    judged: u64,
    /// States of workloads with calls that fail are counted apart.
    letter: Option<char>,
}

impl<'a> Sweep<'a> {
    /// Prepares to go through `trace`.
    pub fn new(
        trace: &'a Trace,
        effort: Effort,
        bench: &'a Bench,
        counts: &'a mut Counts,
        seed: u64,
        faulty: bool,
    ) -> Self {
        Self {
            trace,
            effort,
            bench,
            counts,
            seen: HashSet::new(),
            seed,
            judged: 0,
            letter: faulty.then_some('E'),
        }
    }

    /// Goes through it; the first state that is wrong ends it.
    ///
    /// # Errors
    /// That state.
    pub fn run(&mut self, witness: Witness<'_>) -> Result<(), Failure> {
        self.counts.workloads += 1;
        if let Some(text) = &self.trace.wrong {
            return Err(Failure {
                at: self.trace.events.len(),
                choice: None,
                text: text.clone(),
            });
        }
        let trace = self.trace;
        let mut cut = Cut::new(&trace.begin.image, trace.begin.data.as_deref());
        let mut oracle = Oracle::new(&trace.steps, trace.expectation());
        for (at, event) in trace.events.iter().enumerate() {
            if self.judged >= self.effort.most {
                break;
            }
            let end = matches!(event, Event::SyncEnd(..) | Event::OpEnd(..));
            let wanted = trace.events.len() - at <= self.effort.last;
            if wanted && (end || matches!(event, Event::Begin { .. })) {
                self.place(at, end, &mut cut, &oracle, witness)?;
            }
            cut.advance(at, event);
            match event {
                Event::OpBegin(op) => oracle.begin(*op, at),
                Event::OpEnd(op, outcome) => {
                    oracle.end(*op, *outcome, at);
                    if *outcome == Outcome::Done && wanted {
                        self.state(at + 1, Choice::Prefix, &mut cut, &oracle, witness)?;
                        self.state(at + 1, Choice::Subset(0), &mut cut, &oracle, witness)?;
                    }
                }
                _ => {}
            }
        }
        self.place(trace.events.len(), true, &mut cut, &oracle, witness)
    }

    /// Judges one state alone.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn only(&mut self, wanted: usize, choice: Choice) -> Result<(), Failure> {
        let trace = self.trace;
        let mut cut = Cut::new(&trace.begin.image, trace.begin.data.as_deref());
        let mut oracle = Oracle::new(&trace.steps, trace.expectation());
        for (at, event) in trace.events.iter().enumerate().take(wanted) {
            cut.advance(at, event);
            match event {
                Event::OpBegin(op) => oracle.begin(*op, at),
                Event::OpEnd(op, outcome) => oracle.end(*op, *outcome, at),
                _ => {}
            }
        }
        self.state(wanted, choice, &mut cut, &oracle, &mut |_, _| Ok(false))
    }

    /// Every state that is wanted at a place in the log.
    fn place(
        &mut self,
        at: usize,
        end: bool,
        cut: &mut Cut,
        oracle: &Oracle<'_>,
        witness: Witness<'_>,
    ) -> Result<(), Failure> {
        self.state(at, Choice::Prefix, cut, oracle, witness)?;
        let count = cut.pending();
        if count == 0 {
            return Ok(());
        }
        let randoms = if end {
            self.effort.at_ends
        } else {
            self.effort.everywhere
        };
        if end && count <= 5 {
            for mask in 0..1 << count {
                self.state(at, Choice::Subset(mask), cut, oracle, witness)?;
            }
        } else if end {
            for one in 0..count.min(24) {
                self.state(at, Choice::Without(one), cut, oracle, witness)?;
                self.state(at, Choice::Only(one), cut, oracle, witness)?;
            }
        } else {
            self.state(at, Choice::Only(count - 1), cut, oracle, witness)?;
        }
        for number in 0..randoms {
            let seed = mix(self.seed ^ mix(at as u64 ^ mix(number)));
            if count > 1 {
                self.state(at, Choice::Random(seed), cut, oracle, witness)?;
            }
            self.state(at, Choice::Torn(seed), cut, oracle, witness)?;
            if number % 2 == 0 {
                self.state(at, Choice::TornPages(seed), cut, oracle, witness)?;
                self.state(at, Choice::Garbage(seed), cut, oracle, witness)?;
            }
        }
        Ok(())
    }

    /// Judges one state, unless it was judged before.
    pub fn state(
        &mut self,
        at: usize,
        choice: Choice,
        cut: &mut Cut,
        oracle: &Oracle<'_>,
        witness: Witness<'_>,
    ) -> Result<(), Failure> {
        if self.judged >= self.effort.most {
            return Ok(());
        }
        let hash = cut.build(choice, [&self.bench.scratch[0], &self.bench.scratch[1]]);
        if !self.seen.insert(mix(hash ^ mix(oracle.version))) {
            self.counts.duplicates += 1;
            return Ok(());
        }
        self.judged += 1;
        let wrong = |text: String| Failure {
            at,
            choice: Some(choice),
            text,
        };
        let thorough = self.is_thorough(hash, oracle);
        let case = self.case(oracle, thorough);
        let files = files(
            [&self.bench.scratch[0], &self.bench.scratch[1]],
            self.trace.begin.data.is_some(),
        );
        if self.effort.recovery > 0 && hash.is_multiple_of(self.effort.recovery) {
            self.recovery(&case, &files, hash).map_err(wrong)?;
            // It has been changed by that.
            cut.build(choice, [&self.bench.scratch[0], &self.bench.scratch[1]]);
        }
        // Version 2 has no bit to declare an operation on snapshots with: flags may be repairable then.
        let declared = !(self.trace.shape.version2 && case.switching);
        if declared && witness(hash, &files).map_err(wrong)? {
            self.counts.qemu += 1;
            cut.build(choice, [&self.bench.scratch[0], &self.bench.scratch[1]]);
        }
        let found = judge(&case, &files).map_err(wrong)?;
        self.counts
            .note(self.letter.unwrap_or(choice.letter()), found, thorough);
        Ok(())
    }

    fn is_thorough(&self, hash: u64, oracle: &Oracle<'_>) -> bool {
        let often = oracle.now.snapshots.is_empty() && oracle.instead.is_none();
        let every = if often {
            self.effort.thorough
        } else {
            self.effort.thorough.div_ceil(3)
        };
        mix(hash).is_multiple_of(every.max(1))
    }

    fn case<'b>(&self, oracle: &'b Oracle<'_>, thorough: bool) -> Case<'b>
    where
        'a: 'b,
    {
        let steps = &self.trace.steps;
        let switching = oracle.broken
            || oracle
                .running
                .iter()
                .any(|op| matches!(steps[*op as usize].effect, Effect::Switch(_)));
        Case {
            shape: self.trace.shape,
            begin: &self.trace.begin,
            contents: &self.trace.contents,
            now: &oracle.now,
            instead: oracle.instead.as_ref(),
            thorough,
            switching,
            // Calls that fail, and requests that hold up reclaiming, leak more.
            leaks: oracle
                .leak_bound(self.trace.shape.cluster)
                .filter(|_| self.letter.is_none() && oracle.running.len() < 2),
        }
    }

    /// Cuts power while the state in the files is recovered, and judges what is left of that.
    fn recovery(&mut self, case: &Case<'_>, files: &Files, hash: u64) -> Result<(), String> {
        let count = crate::again::recovery(case, files, self.bench, hash)?;
        self.counts.states[4] += count;
        Ok(())
    }
}
