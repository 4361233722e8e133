//! Power cuts in the middle of one operation on whole images, such as a commit or a repair: whoever runs it says what may be left of it.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use qcow2_engine::Storage;

use crate::cut::{Choice, Cut};
use crate::faults::{Fault, Faults};
use crate::log::{DATA, Event, IMAGE, Log};
use crate::random::mix;
use crate::scratch::Scratch;
use crate::storage::SimStorage;
use crate::sweep::{Bench, Failure};

/// How far the operation had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It had not returned, or with an error.
    Amid,
    /// It had returned with success: what it promises is durable.
    Done,
}

/// The files of an image, in the order in which they were given.
pub type Files = [Arc<dyn Storage>];

/// What an operation does to files.
pub type Action<'a> = dyn Fn(&Files) -> Result<(), String> + 'a;

/// What may be left of it. The files are open to any change.
pub type Verdict<'a> = dyn Fn(&Files, Ended) -> Result<(), String> + 'a;

/// An operation on one or two files, each of which begins with bytes that are durable.
pub struct Operation<'a> {
    /// The first file: the one that garbage may stand in where nothing was written.
    pub image: &'a [u8],
    /// The second.
    pub other: Option<&'a [u8]>,
    /// What is done.
    pub run: &'a Action<'a>,
    /// What may be left.
    pub judge: &'a Verdict<'a>,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Swept {
    /// States that were judged.
    pub states: u64,
    /// States that were the same as one before.
    pub duplicates: u64,
    /// Calls that were made to fail.
    pub faults: u64,
}

impl Operation<'_> {
    /// Cuts power at every place of the operation, at most `most` times, and judges what is left.
    ///
    /// # Errors
    /// The first state that is wrong.
    pub fn cut_power(&self, seed: u64, most: u64, bench: &Bench) -> Result<Swept, Failure> {
        let log = Arc::new(Log::default());
        let outcome = self.record(&log, &Arc::default());
        let events = log.take();
        let wrong = |text: String| Failure {
            at: events.len(),
            choice: None,
            text,
        };
        outcome.map_err(|text| wrong(format!("without a fault it fails: {text}")))?;
        let mut cut = Cut::new(self.image, self.other);
        let mut swept = Swept::default();
        let mut seen = HashSet::new();
        // Long operations are looked at here and there.
        let places = events.iter().filter(|event| is_place(event)).count() as u64;
        let every = (places * 8).div_ceil(most.max(1)).max(1);
        for (at, event) in events.iter().enumerate() {
            let end = matches!(event, Event::SyncEnd(..));
            if is_place(event) && (end || mix(seed ^ at as u64).is_multiple_of(every)) {
                for choice in choices(&cut, seed ^ at as u64, end) {
                    self.state(&mut cut, choice, Ended::Amid, bench, &mut seen, &mut swept)
                        .map_err(|text| Failure {
                            at,
                            choice: Some(choice),
                            text,
                        })?;
                }
            }
            cut.advance(at, event);
        }
        for choice in [
            Choice::Prefix,
            Choice::Subset(0),
            Choice::Torn(seed),
            Choice::Garbage(seed),
        ] {
            self.state(&mut cut, choice, Ended::Done, bench, &mut seen, &mut swept)
                .map_err(|text| Failure {
                    at: events.len(),
                    choice: Some(choice),
                    text,
                })?;
        }
        Ok(swept)
    }

    /// Lets calls of the operation fail, each kind at up to `most` places, and judges what is left, with and without power.
    ///
    /// # Errors
    /// The first state that is wrong.
    pub fn fail_calls(&self, seed: u64, most: u64, bench: &Bench) -> Result<Swept, Failure> {
        let counting = Arc::new(Faults::default());
        let _ = self.record(&Arc::default(), &counting);
        let calls = counting.calls().max(1);
        let mut swept = Swept::default();
        for fault in [Fault::Once, Fault::Sticky, Fault::Short, Fault::Full, Fault::Sync] {
            for number in 0..most.min(calls) {
                // Every call, or as many as are wanted, spread over all.
                let at = if most >= calls {
                    number
                } else {
                    (number * calls + mix(seed ^ number) % calls) / most.max(1) % calls
                };
                let log = Arc::new(Log::default());
                let faults = Arc::new(Faults::new(fault, at));
                let outcome = self.record(&log, &faults);
                if faults.hits() == 0 {
                    continue;
                }
                swept.faults += 1;
                let events = log.take();
                let mut cut = Cut::new(self.image, self.other);
                for (place, event) in events.iter().enumerate() {
                    cut.advance(place, event);
                }
                let ended = if outcome.is_ok() { Ended::Done } else { Ended::Amid };
                for choice in [Choice::Prefix, Choice::Torn(mix(seed ^ at))] {
                    let mut seen = HashSet::new();
                    self.state(&mut cut, choice, ended, bench, &mut seen, &mut swept)
                        .map_err(|text| Failure {
                            at: events.len(),
                            choice: Some(choice),
                            text: format!("{fault:?} at call {at} ended with {outcome:?}, and then: {text}"),
                        })?;
                }
            }
        }
        Ok(swept)
    }

    fn record(&self, log: &Arc<Log>, faults: &Arc<Faults>) -> Result<(), String> {
        let file = |file: u8, bytes: &[u8]| -> Arc<dyn Storage> {
            Arc::new(SimStorage::new(file, bytes.to_vec(), log.clone(), faults.clone(), None))
        };
        let mut files = vec![file(IMAGE, self.image)];
        files.extend(self.other.map(|bytes| file(DATA, bytes)));
        guarded(|| (self.run)(&files))
    }

    fn state(
        &self,
        cut: &mut Cut,
        choice: Choice,
        ended: Ended,
        bench: &Bench,
        seen: &mut HashSet<(u64, bool)>,
        swept: &mut Swept,
    ) -> Result<(), String> {
        let hash = cut.build(choice, [&bench.scratch[0], &bench.scratch[1]]);
        if !seen.insert((hash, ended == Ended::Done)) {
            swept.duplicates += 1;
            return Ok(());
        }
        swept.states += 1;
        let mut files = vec![as_storage(&bench.scratch[0])];
        if self.other.is_some() {
            files.push(as_storage(&bench.scratch[1]));
        }
        guarded(|| (self.judge)(&files, ended))
    }
}

fn as_storage(scratch: &Arc<Scratch>) -> Arc<dyn Storage> {
    scratch.clone()
}

fn is_place(event: &Event) -> bool {
    matches!(event, Event::Begin { .. } | Event::SyncEnd(..))
}

/// What may be there of what is pending.
fn choices(cut: &Cut, seed: u64, end: bool) -> Vec<Choice> {
    let count = cut.pending();
    let mut all = vec![Choice::Prefix];
    if count == 0 {
        return all;
    }
    if end && count <= 4 {
        all.extend((0..1 << count).map(Choice::Subset));
    } else if end {
        all.extend((0..count.min(12)).flat_map(|one| [Choice::Without(one), Choice::Only(one)]));
    } else {
        all.push(Choice::Only(count - 1));
    }
    for number in 0..if end { 3 } else { 1 } {
        let seed = mix(seed ^ mix(number));
        all.extend([Choice::Random(seed), Choice::Torn(seed)]);
        if end {
            all.extend([Choice::TornPages(seed), Choice::Garbage(seed)]);
        }
    }
    all
}

fn guarded(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}
