//! How far a job is, in bytes.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::cancel::CancelToken;

/// Reports come at most this often.
const INTERVAL: Duration = Duration::from_millis(100);

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressReport {
    /// What it is doing, such as `"convert"` or `"sync"`.
    pub phase: &'static str,
    /// Bytes of work done.
    pub done: u64,
    /// Bytes of work in all.
    pub total: u64,
}

type Listener = Box<dyn Fn(ProgressReport) + Send + Sync>;

/// The progress channel of one job: shared by its workers, throttled to ten reports a second, never going backwards within a phase.
pub struct Progress {
    listener: Option<Listener>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    report: Option<ProgressReport>,
    sent: Option<Instant>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

impl Progress {
    /// A channel that calls `listener`.
    pub fn new(listener: impl Fn(ProgressReport) + Send + Sync + 'static) -> Self {
        Self {
            listener: Some(Box::new(listener)),
            state: Mutex::default(),
        }
    }

    /// A channel that nobody listens to.
    pub fn silent() -> Self {
        Self {
            listener: None,
            state: Mutex::default(),
        }
    }

    /// Begins a phase of `total` bytes.
    pub fn begin(&self, phase: &'static str, total: u64) {
        self.update(true, |report| *report = Some(ProgressReport { phase, done: 0, total }));
    }

    /// `bytes` more bytes of the phase are done.
    pub fn advance(&self, bytes: u64) {
        self.update(false, |report| {
            if let Some(report) = report {
                report.done = report.done.saturating_add(bytes).min(report.total);
            }
        });
    }

    /// The phase is done: reported at once.
    pub fn finish(&self) {
        self.update(true, |report| {
            if let Some(report) = report {
                report.done = report.total;
            }
        });
    }

    fn update(&self, at_once: bool, change: impl FnOnce(&mut Option<ProgressReport>)) {
        let Some(listener) = &self.listener else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.report);
        let due = state.sent.is_none_or(|sent| sent.elapsed() >= INTERVAL);
        if let Some(report) = state.report.filter(|_| at_once || due) {
            state.sent = Some(Instant::now());
            listener(report);
        }
    }
}

/// What every job is given: how to be stopped and where to report.
#[derive(Debug)]
pub struct JobContext {
    /// Set by the caller to stop the job.
    pub cancel: CancelToken,
    /// Where the job tells how far it is.
    pub progress: Progress,
}

impl JobContext {
    /// For callers that neither stop nor watch.
    pub fn quiet() -> Self {
        Self {
            cancel: CancelToken::new(),
            progress: Progress::silent(),
        }
    }
}
