//! The ranges that have to be read, compared by several threads.

use qcow2_format::GuestOffset;

use super::Difference;
use super::walk::Walk;
use crate::buffer::Buffer;
use crate::chain::{Chain, FetchContext};
use crate::error::{Error, Result};
use crate::layer::GuestData;
use crate::parallel;
use crate::pipeline::{self, Crowd};
use crate::progress::JobContext;
use crate::run::{Run, RunKind};

/// Pieces under way, for each thread: they hold no memory while they wait.
const AHEAD: usize = 16;
/// Runs that a resolve answers at most.
const RUNS: usize = 1024;
/// Differences are told by the sector.
const SECTOR: usize = 512;

/// What ends a comparison early.
#[derive(Debug)]
pub(super) enum Stop {
    Differs(Difference),
    Fails(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fails(error)
    }
}

/// Compares what `walk` finds. The first difference by offset, unless an error comes before it.
pub(super) fn compare(sides: (&Chain, &Chain), mut walk: Walk<'_>, context: &JobContext) -> Result<Option<Difference>> {
    let pieces = Pieces {
        sides: [sides.0, sides.1],
        context,
    };
    let threads = parallel::default_threads();
    let crowd = Crowd {
        threads,
        window: AHEAD.saturating_mul(threads),
    };
    let outcome = pipeline::run(
        crowd,
        || walk.next(),
        || Ok(Scratch::default()),
        |scratch, (start, end)| match pieces.compare(start, end, scratch)? {
            Some(at) => Err(Stop::Differs(Difference::Content(GuestOffset(at)))),
            None => {
                context.progress.advance(end - start);
                Ok(())
            }
        },
        |()| Ok(()),
    );
    match outcome {
        Ok(()) => Ok(None),
        Err(Stop::Differs(difference)) => Ok(Some(difference)),
        Err(Stop::Fails(error)) => Err(error),
    }
}

struct Pieces<'a> {
    sides: [&'a Chain; 2],
    context: &'a JobContext,
}

/// What a thread keeps from piece to piece.
#[derive(Default)]
struct Scratch {
    sides: [Reader; 2],
}

#[derive(Default)]
struct Reader {
    context: FetchContext,
    buffer: Buffer,
}

impl Reader {
    fn fetch(&mut self, chain: &Chain, runs: &[Run], start: GuestOffset, length: usize) -> Result<&[u8]> {
        self.buffer.resize(length)?;
        chain.fetch(runs, start, &mut self.buffer, &mut self.context)?;
        Ok(&self.buffer)
    }
}

impl Pieces<'_> {
    /// The first sector of `start..end` that differs.
    fn compare(&self, start: u64, end: u64, scratch: &mut Scratch) -> Result<Option<u64>> {
        let mut at = start;
        while at < end {
            self.context.cancel.check()?;
            let [a, b] = self.sides;
            let (_tickets, runs) = ([a.ticket(), b.ticket()], [runs(a, at, end)?, runs(b, at, end)?]);
            let [a, b] = &runs;
            let covered = covered(a).min(covered(b)).min(end);
            for range in self.ranges(&runs, at, covered) {
                if let Some(sector) = self.compare_range(&runs, &range, scratch)? {
                    return Ok(Some(sector));
                }
            }
            at = covered;
        }
        Ok(None)
    }

    /// What of `at..end` has to be looked at: neighbours joined.
    fn ranges(&self, [a, b]: &[Vec<Run>; 2], mut at: u64, end: u64) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        let (mut in_a, mut in_b) = (a.iter().peekable(), b.iter().peekable());
        while let (Some(run_a), Some(run_b)) = (in_a.peek(), in_b.peek()) {
            if at >= end {
                break;
            }
            let stop = run_a.end().0.min(run_b.end().0).min(end);
            let zero = (is_zero(run_a), is_zero(run_b));
            if zero != (true, true) && !self.same_bytes(run_a, run_b, at) {
                match ranges.last_mut() {
                    Some(last) if last.end == at => {
                        last.end = stop;
                        last.zero = both(last.zero, zero);
                    }
                    _ => ranges.push(Range {
                        start: at,
                        end: stop,
                        zero,
                    }),
                }
            }
            at = stop;
            in_a.next_if(|run| run.end().0 <= at);
            in_b.next_if(|run| run.end().0 <= at);
        }
        ranges
    }

    /// Whether both runs are, at `at`, the same bytes of the same file.
    fn same_bytes(&self, run_a: &Run, run_b: &Run, at: u64) -> bool {
        let [a, b] = self.sides;
        let (Some(a), Some(b)) = (a.view(run_a.depth), b.view(run_b.depth)) else {
            return false;
        };
        let place = |run: &Run, host: qcow2_format::HostOffset| host.checked_add(at.saturating_sub(run.start.0));
        match (run_a.kind, run_b.kind) {
            (RunKind::Data { host }, RunKind::Data { host: other }) => {
                place(run_a, host) == place(run_b, other) && same_data(a.layer.guest_data(), b.layer.guest_data())
            }
            (RunKind::Compressed { .. }, RunKind::Compressed { .. }) => {
                run_a.kind == run_b.kind && crate::layer::same_place(&**a.layer.storage(), &**b.layer.storage())
            }
            _ => false,
        }
    }

    fn compare_range(&self, runs: &[Vec<Run>; 2], range: &Range, scratch: &mut Scratch) -> Result<Option<u64>> {
        let length = usize::try_from(range.end - range.start).map_err(|_| Error::Internal {
            message: "a piece is longer than memory".into(),
        })?;
        let [a, b] = &mut scratch.sides;
        let ([chain_a, chain_b], [runs_a, runs_b]) = (self.sides, runs);
        let start = GuestOffset(range.start);
        let sector = match range.zero {
            (true, _) => first_nonzero(b.fetch(chain_b, runs_b, start, length)?),
            (_, true) => first_nonzero(a.fetch(chain_a, runs_a, start, length)?),
            _ => first_difference(
                a.fetch(chain_a, runs_a, start, length)?,
                b.fetch(chain_b, runs_b, start, length)?,
            ),
        };
        Ok(sector.map(|sector| range.start + (sector * SECTOR) as u64))
    }
}

/// A range that one side at least has bytes for, and which of the sides is nothing but zeros in it.
struct Range {
    start: u64,
    end: u64,
    zero: (bool, bool),
}

fn both(one: (bool, bool), other: (bool, bool)) -> (bool, bool) {
    (one.0 && other.0, one.1 && other.1)
}

/// The runs from `at` to `end` or not quite as far. Behind the end of the disk: one of zeros.
pub(crate) fn runs(chain: &Chain, at: u64, end: u64) -> Result<Vec<Run>> {
    if at < chain.virtual_size() {
        return chain.resolve(GuestOffset(at), end - at, RUNS);
    }
    Ok(vec![Run {
        start: GuestOffset(at),
        length: end - at,
        depth: 0,
        kind: RunKind::Unallocated,
    }])
}

pub(crate) fn covered(runs: &[Run]) -> u64 {
    runs.last().map_or(0, |run| run.end().0)
}

pub(crate) fn is_zero(run: &Run) -> bool {
    matches!(run.kind, RunKind::Zero { .. } | RunKind::Unallocated)
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    qcow2_codec::first_nonzero(bytes).map(|at| at / SECTOR)
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.chunks(SECTOR).zip(b.chunks(SECTOR)).position(|(a, b)| a != b)
}

/// Whether the same place in both is the same bytes: who has which key is not compared.
fn same_data(a: &GuestData, b: &GuestData) -> bool {
    !a.is_encrypted() && !b.is_encrypted() && crate::layer::same_place(&**a.storage(), &**b.storage())
}
