//! *commit*: what the layers above a base hold is written into the base.
//!
//! The layers above are a chain of their own, so its runs tell what they hold: data and zeros are copied, what they leave unallocated is not touched.
//! As long as they keep what they have, the whole chain reads the same whatever has become of the base, so that a commit that was cut short anywhere is
//! begun again. They are emptied, if at all, once the base is closed: everything is on its device then, and it is marked clean.

use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use qcow2_format::GuestOffset;

use crate::buffer::Buffer;
use crate::chain::{Chain, FetchContext};
use crate::convert::Pace;
use crate::disk::{Disk, ResizeOptions};
use crate::error::{Error, Result};
use crate::layer::same_place;
use crate::parallel;
use crate::pipeline::{self, Crowd};
use crate::progress::JobContext;
use crate::run::{Run, RunKind};

/// Bytes that are copied at a time, unless a cluster is larger.
const PIECE: u64 = 1 << 20;
/// Bytes that are zeroed at a time: small enough to be stopped soon where zeros have to be written.
const ZEROS: u64 = 64 << 20;
/// So many bytes are written before a flush is begun beside the copying.
const FLUSH: u64 = 64 << 20;
/// Pieces under way or waiting for their turn, for each thread.
const AHEAD: usize = 4;
/// Runs that a resolve answers at most.
const RUNS: usize = 512;

/// What a write fails with after something else has failed.
const POISONED: &str = "ERR_QCOW2_POISONED";

/// How to commit.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommitOptions {
    /// Most bytes that are copied in a second.
    pub rate_limit: Option<u64>,
    /// The top is emptied once the base has everything. Right only if nothing lies between the two.
    pub empty: bool,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// Virtual size of the base in bytes, now.
    pub virtual_size: u64,
    /// Guest bytes that were written to the base.
    pub data_bytes: u64,
    /// Guest bytes that the base was made to read as zeros.
    pub zero_bytes: u64,
    /// The base had to become larger.
    pub grown: bool,
    /// The top was emptied.
    pub emptied: bool,
}

/// Writes what the layers of `top` hold into `base`, which is the disk below them and not one of them, and closes `base`. If it is smaller it grows.
/// Nobody else uses either.
///
/// # Errors
/// [`Error::State`] with code `BACKING_LOOP` if `base` lies on a file of `top`; [`Error::Invalid`] for emptying a top with layers between it and the base;
/// those of reading `top` and of writing, growing and closing `base`; [`Error::Cancelled`]. Until the top is emptied the whole chain reads the same.
pub fn commit(top: &Disk, base: &Disk, options: &CommitOptions, job: &JobContext) -> Result<CommitReport> {
    let upper = &**top.chain();
    refuse(upper, base, options)?;
    let size = upper.virtual_size();
    job.progress.begin("commit", size);
    let grown = base.chain().virtual_size() < size;
    if grown {
        let whole = size.checked_next_multiple_of(512).unwrap_or(size);
        base.resize(whole, ResizeOptions::default())?;
    }
    let mut report = copy(upper, base, options, job)?;
    report.grown = grown;
    job.cancel.check()?;
    base.close()?;
    if options.empty {
        top.make_empty()?;
        report.emptied = true;
    }
    job.progress.finish();
    Ok(report)
}

fn refuse(upper: &Chain, base: &Disk, options: &CommitOptions) -> Result<()> {
    for layer in base.chain().layers() {
        if upper
            .layers()
            .any(|above| same_place(&**above.storage(), &**layer.storage()))
        {
            return Err(layer.state("BACKING_LOOP", "the image is its own backing file"));
        }
    }
    if options.empty && upper.layers().len() > 1 {
        return Err(Error::Invalid {
            argument: "drop",
            reason: "what lies between the top and the base would come to light if the top were emptied".into(),
        });
    }
    Ok(())
}

/// A range that the upper layers hold.
enum Piece {
    Data { start: u64, runs: Vec<Run> },
    Zero { start: u64, length: u64 },
}

/// What is written next.
enum Step {
    Data { start: u64, bytes: Buffer },
    Zero { start: u64, length: u64 },
}

fn copy(upper: &Chain, base: &Disk, options: &CommitOptions, job: &JobContext) -> Result<CommitReport> {
    let largest = upper.layers().filter_map(|layer| layer.cluster_size()).max();
    let mut held = Held {
        chain: upper,
        job,
        piece: PIECE.max(largest.unwrap_or(0)),
        at: 0,
        end: upper.virtual_size(),
        runs: VecDeque::new(),
    };
    let threads = parallel::default_threads();
    let crowd = Crowd {
        threads,
        window: AHEAD.saturating_mul(threads),
    };
    let spare: Mutex<Vec<Buffer>> = Mutex::default();
    let spares = || spare.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pace = Pace::new(options.rate_limit);
    let (mut data_bytes, mut zero_bytes) = (0u64, 0u64);
    std::thread::scope(|scope| {
        let (ask, asked) = sync_channel(1);
        let mut unflushed = 0;
        let mut flush_now = move |length: u64| {
            unflushed += length;
            // One that is under way does for this, too.
            if unflushed >= FLUSH && ask.try_send(()).is_ok() {
                unflushed = 0;
            }
        };
        // The device begins early. After a flush that failed no write succeeds: it is the flush that tells why.
        let flusher = std::thread::Builder::new().name("qcow2-flush".into());
        let flushing = flusher.spawn_scoped(scope, move || {
            for () in asked {
                base.flush()?;
            }
            Ok(())
        });
        let copied = pipeline::run(
            crowd,
            || held.next(),
            || Ok(FetchContext::default()),
            |context, piece| match piece {
                Piece::Zero { start, length } => Ok(Step::Zero { start, length }),
                Piece::Data { start, runs } => {
                    let mut bytes = spares().pop().unwrap_or_default();
                    let length: u64 = runs.iter().map(|run| run.length).sum();
                    bytes.resize(usize::try_from(length).unwrap_or(usize::MAX))?;
                    upper.fetch(&runs, GuestOffset(start), &mut bytes, context)?;
                    Ok(Step::Data { start, bytes })
                }
            },
            |step| match step {
                Step::Zero { start, length } => {
                    base.write_zeroes(GuestOffset(start), length, true)?;
                    zero_bytes = zero_bytes.saturating_add(length);
                    job.progress.advance(length);
                    Ok(())
                }
                Step::Data { start, bytes } => {
                    let length = bytes.len() as u64;
                    base.write(GuestOffset(start), &bytes)?;
                    data_bytes = data_bytes.saturating_add(length);
                    job.progress.advance(length);
                    spares().push(bytes);
                    flush_now(length);
                    pace.keep(length, job)
                }
            },
        );
        drop(flush_now);
        match flushing.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(Err(error))) if !matches!(&copied, Err(first) if first.code() != POISONED) => Err(error),
            Ok(Ok(_)) => copied,
            // A thread that the system refuses is no matter: the last flush does it all.
            Ok(Err(_)) | Err(_) => copied,
        }
    })?;
    Ok(CommitReport {
        virtual_size: base.chain().virtual_size(),
        data_bytes,
        zero_bytes,
        grown: false,
        emptied: false,
    })
}

/// The walk over what the upper layers hold.
struct Held<'a> {
    chain: &'a Chain,
    job: &'a JobContext,
    piece: u64,
    /// Up to where `runs` reach.
    at: u64,
    end: u64,
    runs: VecDeque<Run>,
}

impl Held<'_> {
    /// The next piece: data up to a multiple of the piece size, so that no compressed cluster is met twice.
    fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            self.job.cancel.check()?;
            let Some(run) = self.run()? else { return Ok(None) };
            match run.kind {
                RunKind::Unallocated => self.job.progress.advance(run.length),
                RunKind::Zero { .. } => {
                    let (start, length) = (run.start.0, run.length.min(ZEROS));
                    self.give_back(run, start.saturating_add(length));
                    return Ok(Some(Piece::Zero { start, length }));
                }
                RunKind::Data { .. } | RunKind::Compressed { .. } => return self.data(run).map(Some),
            }
        }
    }

    fn data(&mut self, first: Run) -> Result<Piece> {
        let start = first.start.0;
        let border = (start / self.piece).saturating_add(1).saturating_mul(self.piece);
        let mut runs = Vec::new();
        let mut next = Some(first);
        while let Some(run) = next {
            if !matches!(run.kind, RunKind::Data { .. } | RunKind::Compressed { .. }) {
                self.runs.push_front(run);
                break;
            }
            let end = run.end();
            runs.extend(run.cut(run.start, GuestOffset(border)));
            if end.0 >= border {
                self.give_back(run, border);
                break;
            }
            next = self.run()?;
        }
        Ok(Piece::Data { start, runs })
    }

    /// What of `run` lies behind `from` comes next.
    fn give_back(&mut self, run: Run, from: u64) {
        if let Some(rest) = run.cut(GuestOffset(from), run.end()) {
            self.runs.push_front(rest);
        }
    }

    fn run(&mut self) -> Result<Option<Run>> {
        if self.runs.is_empty() && self.at < self.end {
            let runs = self.chain.resolve(GuestOffset(self.at), self.end - self.at, RUNS)?;
            let end = runs.last().map_or(self.at, |run| run.end().0);
            if end <= self.at {
                return Err(Error::Internal {
                    message: format!("nothing is resolved at {:#x}, inside the disk", self.at),
                });
            }
            self.at = end;
            self.runs.extend(runs);
        }
        Ok(self.runs.pop_front())
    }
}
