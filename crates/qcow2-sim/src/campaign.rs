//! Many workloads from one seed, on all processors.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qcow2_engine::Weaken;

use crate::cut::Choice;
use crate::driver::{Conditions, Trace, run};
use crate::faults::{Fault, Faults};
use crate::log::Event;
use crate::plan::{Focus, Op, Plan, random};
use crate::qemu;
use crate::random::{Random, mix};
use crate::shape::SHAPES;
use crate::storage::Pause;
use crate::sweep::{Bench, Counts, Effort, Failure, Sweep};

/// What is run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Everything follows from it.
    pub seed: u64,
    /// Ends after so many states.
    pub states: u64,
    /// Ends after so long.
    pub time: Duration,
    /// Threads.
    pub workers: usize,
    /// How much is looked at in a workload.
    pub effort: Effort,
    /// Rules that are switched off.
    pub weaken: Weaken,
    /// Operations that are preferred, if only one kind is wanted.
    pub focus: Option<Focus>,
    /// Shapes that are wanted, by a part of their name; none: all.
    pub shape: Option<String>,
    /// Shapes that are not wanted, by a part of their name.
    pub without: Option<String>,
    /// One workload in so many has calls that fail; 0: none.
    pub faulty: u64,
    /// qemu-img checks one state in so many; 0: none.
    pub qemu: u64,
    /// Ends with so many bad states.
    pub most_bad: usize,
}

impl Default for Campaign {
    fn default() -> Self {
        Self {
            seed: 1,
            states: 50_000,
            time: Duration::from_secs(600),
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            effort: EFFORT,
            weaken: Weaken::default(),
            focus: None,
            shape: None,
            without: None,
            faulty: 6,
            qemu: 1500,
            most_bad: 1,
        }
    }
}

/// What is looked at if nobody says.
pub const EFFORT: Effort = Effort {
    everywhere: 1,
    at_ends: 4,
    most: 900,
    thorough: 12,
    recovery: 60,
    last: usize::MAX,
};

/// A workload that has a bad state.
#[derive(Clone, Debug)]
pub struct Bad {
    /// Number of the workload.
    pub number: u64,
    /// What is wrong.
    pub failure: Failure,
}

/// What a campaign came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was counted.
    pub counts: Counts,
    /// What is wrong.
    pub bad: Vec<Bad>,
    /// How long it took.
    pub time: Duration,
}

/// A workload with the conditions that it runs under.
pub struct Case {
    /// The workload.
    pub plan: Plan,
    /// Which call fails how: none if there is nothing to fail.
    pub fault: Option<(Fault, u64)>,
    /// Seed of what is random besides.
    pub seed: u64,
}

impl Campaign {
    /// Workload number `number`.
    pub fn case(&self, number: u64) -> Case {
        let mut stream = Random::new(&[self.seed, number]);
        let named =
            |index: usize, name: &Option<String>| name.as_ref().map(|name| SHAPES[index].name.contains(name.as_str()));
        let wanted: Vec<usize> = (0..SHAPES.len())
            .filter(|index| named(*index, &self.shape) != Some(false) && named(*index, &self.without) != Some(true))
            .collect();
        let shape = *stream.pick(&wanted);
        let kinds = [
            Focus::All,
            Focus::Sequential,
            Focus::Threads,
            Focus::Snapshots,
            Focus::Bitmaps,
            Focus::Reuse,
            Focus::Resize,
            Focus::Readers,
        ];
        let focus = self.focus.unwrap_or(*stream.pick(&kinds));
        let plan = random(shape, &SHAPES[shape], focus, &mut stream);
        let faulty = self.faulty > 0 && stream.one_in(self.faulty);
        let kinds = [
            Fault::Once,
            Fault::Once,
            Fault::Sticky,
            Fault::Short,
            Fault::Full,
            Fault::Sync,
        ];
        let fault = faulty.then(|| (*stream.pick(&kinds), stream.number() >> 16));
        Case {
            plan,
            fault,
            seed: stream.number(),
        }
    }

    /// Carries a case out.
    ///
    /// # Errors
    /// What kept it from beginning, in words.
    pub fn trace(&self, case: &Case) -> Result<Trace, String> {
        let Some((fault, at)) = case.fault else {
            return self.trace_with(case, None);
        };
        // How many calls there are is known after a run without.
        let calls = self.trace_with(case, None)?.calls;
        self.trace_with(case, Some((fault, at % calls.max(1))))
    }

    fn trace_with(&self, case: &Case, fault: Option<(Fault, u64)>) -> Result<Trace, String> {
        let threads = case.plan.ops.iter().any(Op::is_parallel);
        let conditions = Conditions {
            weaken: self.weaken,
            pause: threads.then(|| pause(case.seed)),
            faults: fault.map(|(fault, at)| Arc::new(Faults::new(fault, at))),
        };
        run(&case.plan, &conditions).map_err(|error| format!("beginning: {error}"))
    }

    /// Lets every call of a workload fail in turn, in the given way. Returns how many calls there were.
    ///
    /// # Errors
    /// The first bad state, and of which call.
    pub fn every_call(&self, case: &Case, fault: Fault, bench: &Bench, counts: &mut Counts) -> Result<u64, String> {
        let calls = self.trace_with(case, None)?.calls;
        for at in 0..calls {
            let trace = self.trace_with(case, Some((fault, at)))?;
            counts.faults += trace.errors;
            let mut sweep = Sweep::new(&trace, self.effort, bench, counts, case.seed ^ at, true);
            sweep
                .run(&mut |_, _| Ok(false))
                .map_err(|failure| format!("{fault:?} at call {at}: {failure:?}"))?;
        }
        Ok(calls)
    }

    /// Runs workload `number`.
    ///
    /// # Errors
    /// The first bad state.
    pub fn workload(&self, case: &Case, bench: &Bench, counts: &mut Counts) -> Result<(), Failure> {
        let trace = self.trace(case).map_err(|text| Failure {
            at: 0,
            choice: None,
            text,
        })?;
        self.sweep(case, &trace, bench, counts)
    }

    /// Cuts power at every place of a workload that was carried out.
    ///
    /// # Errors
    /// The first bad state.
    pub fn sweep(&self, case: &Case, trace: &Trace, bench: &Bench, counts: &mut Counts) -> Result<(), Failure> {
        counts.faults += trace.errors;
        let mut effort = self.effort;
        if case.fault.is_some() {
            // From a little before the first failure on; what comes before is as in any workload.
            let failed = |event: &Event| matches!(event, Event::OpEnd(_, crate::log::Outcome::Failed));
            let first = trace.events.iter().position(failed).unwrap_or(trace.events.len());
            effort.last = effort.last.min(trace.events.len() - first + 30);
            effort.most = effort.most.min(160);
        }
        let mut sweep = Sweep::new(trace, effort, bench, counts, case.seed, case.fault.is_some());
        let every = self.qemu;
        sweep.run(&mut |hash, files| {
            if every == 0 || !mix(hash ^ 0x51).is_multiple_of(every) {
                return Ok(false);
            }
            qemu::check(files, &trace.begin)
        })
    }

    /// Judges one state of a workload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn state(&self, trace: &Trace, seed: u64, at: usize, choice: Choice, bench: &Bench) -> Result<(), Failure> {
        let mut counts = Counts::default();
        let effort = Effort {
            thorough: 1,
            recovery: 1,
            most: u64::MAX,
            ..self.effort
        };
        Sweep::new(trace, effort, bench, &mut counts, seed, false).only(at, choice)
    }

    /// Runs workloads until there are enough states, or time is up, or too many are bad. `report` is called now and then.
    pub fn run(&self, report: impl Fn(&Counts, Duration) + Sync) -> Outcome {
        let begin = Instant::now();
        let next = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let total: Mutex<Outcome> = Mutex::default();
        let said = Mutex::new(begin);
        // What each worker is at, and since when.
        let at: Vec<Mutex<Option<(u64, Instant)>>> = (0..self.workers.max(1)).map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| watch(&at, &done));
            for mine in &at {
                let (next, done, total, said, report) = (&next, &done, &total, &said, &report);
                scope.spawn(move || {
                    let bench = Bench::default();
                    while !done.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        *mine.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, Instant::now()));
                        let mut counts = Counts::default();
                        let outcome = self.workload(&self.case(number), &bench, &mut counts);
                        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                        total.counts.add(&counts);
                        if let Err(failure) = outcome {
                            total.bad.push(Bad { number, failure });
                        }
                        let time = begin.elapsed();
                        if total.counts.all() >= self.states || time >= self.time || total.bad.len() >= self.most_bad {
                            done.store(true, Ordering::Relaxed);
                        }
                        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                        if said.elapsed() > Duration::from_secs(10) {
                            *said = Instant::now();
                            report(&total.counts, time);
                        }
                    }
                });
            }
        });
        let mut outcome = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome.time = begin.elapsed();
        outcome
    }
}

/// Says which workload hangs.
#[allow(clippy::print_stderr, reason = "nothing else comes to an end then")]
fn watch(at: &[Mutex<Option<(u64, Instant)>>], done: &AtomicBool) {
    let patience = Duration::from_secs(120);
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        for mine in at {
            let mut mine = mine.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((number, since)) = &mut *mine
                && since.elapsed() > patience
            {
                eprintln!("workload {number} has not come to an end for {patience:?}");
                *since = Instant::now();
            }
        }
    }
}

/// Lets others go on at random moments.
pub fn pause(seed: u64) -> Pause {
    let count = AtomicU64::new(0);
    Arc::new(
        move |read| match mix(seed ^ count.fetch_add(1, Ordering::Relaxed)) % 16 {
            0..=3 => std::thread::yield_now(),
            4 | 5 if read => std::thread::sleep(Duration::from_micros(300)),
            4 | 5 => std::thread::sleep(Duration::from_micros(30)),
            _ => {}
        },
    )
}
