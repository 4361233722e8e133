//! Guest range to runs, through all layers.

use qcow2_format::GuestOffset;

use super::Chain;
use super::mapping::{Answer, Cursor, View};
use crate::error::Result;
use crate::run::{Run, RunKind};

/// A guest range as the walk finds it: one answer, not yet merged with its neighbours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) start: GuestOffset,
    pub(crate) length: u64,
    /// The layer that answers, or, for an unallocated piece, the last one that could have.
    pub(crate) depth: u32,
    pub(crate) answer: Answer,
    /// Unallocated, and the layer below `depth` ends before `start`.
    pub(crate) past_backing: bool,
}

/// Walks a guest range from its begin, layer by layer, without recursion: for each layer it keeps up to where that layer is known to leave the
/// answer to those below.
pub(crate) struct Walk<'a> {
    chain: &'a Chain,
    at: u64,
    end: u64,
    levels: Vec<Level>,
}

#[derive(Clone, Default)]
struct Level {
    cursor: Cursor,
    /// From where the walk is up to here this layer has nothing.
    clear: u64,
}

impl<'a> Walk<'a> {
    /// A walk over `length` bytes from `start`, as far as they lie inside the disk.
    pub(crate) fn new(chain: &'a Chain, start: GuestOffset, length: u64) -> Self {
        Self {
            chain,
            at: start.0,
            end: start.0.saturating_add(length).min(chain.virtual_size()),
            levels: vec![Level::default(); chain.views.len()],
        }
    }

    /// The same, passing by: of the tables that it goes through, only those it begins in are kept.
    pub(crate) fn passing(chain: &'a Chain, start: GuestOffset, length: u64) -> Self {
        let mut walk = Self::new(chain, start, length);
        for level in &mut walk.levels {
            level.cursor = Cursor::passing();
        }
        walk
    }

    /// The next piece.
    ///
    /// # Errors
    /// What forbids following the entry at this place; the walk then stands still.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let at = GuestOffset(self.at);
        let mut limit = self.end - self.at;
        let mut known = self.levels.iter().take_while(|level| level.clear > at.0).count();
        if let Some(level) = known.checked_sub(1).and_then(|above| self.levels.get(above)) {
            limit = limit.min(level.clear - at.0);
        }
        loop {
            let (view, level) = match (self.chain.views.get(known), self.levels.get_mut(known)) {
                (Some(view), Some(level)) => (view, level),
                // Not reached: the last layer never leaves the answer to one below.
                _ => return Ok(None),
            };
            let (answer, length) = view.answer(at, limit, &self.chain.cache, &mut level.cursor)?;
            limit = limit.min(length);
            if !matches!(answer, Answer::Unallocated { .. }) {
                return Ok(Some(self.piece(limit, view, answer, false)));
            }
            let Some(below) = self.chain.views.get(known + 1) else {
                return Ok(Some(self.piece(limit, view, answer, false)));
            };
            if at.0 >= below.virtual_size() {
                return Ok(Some(self.piece(limit, view, answer, true)));
            }
            limit = limit.min(below.virtual_size() - at.0);
            level.clear = at.0 + limit;
            known += 1;
        }
    }

    fn piece(&mut self, length: u64, view: &View, answer: Answer, past_backing: bool) -> Piece {
        let start = GuestOffset(self.at);
        self.at += length;
        Piece {
            start,
            length,
            depth: view.depth,
            answer,
            past_backing,
        }
    }
}

impl Piece {
    pub(super) fn run(&self) -> Run {
        let kind = match self.answer {
            Answer::Data { host } => RunKind::Data { host },
            Answer::Zero { host } => RunKind::Zero { explicit: true, host },
            Answer::Compressed { descriptor, cluster } => RunKind::Compressed { descriptor, cluster },
            Answer::Unallocated { .. } if self.past_backing => RunKind::Zero {
                explicit: false,
                host: None,
            },
            Answer::Unallocated { .. } => RunKind::Unallocated,
        };
        Run {
            start: self.start,
            length: self.length,
            depth: self.depth,
            kind,
        }
    }
}

/// The maximal runs of a range, at most `max`. A fault behind the first run ends them early: it is met again when it is the first.
pub(super) fn resolve(chain: &Chain, start: GuestOffset, length: u64, max: usize) -> Result<Vec<Run>> {
    let mut walk = Walk::new(chain, start, length);
    let mut runs: Vec<Run> = Vec::new();
    loop {
        let piece = match walk.next() {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(runs),
            Err(error) if runs.is_empty() => return Err(error),
            Err(_) => return Ok(runs),
        };
        let run = piece.run();
        let full = runs.len() >= max;
        match runs.last_mut() {
            Some(last) if continues(last, &run) => last.length += run.length,
            Some(_) if full => return Ok(runs),
            _ => runs.push(run),
        }
    }
}

/// Adds `run`, which does not begin before the last of `runs` ends.
pub(super) fn append(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end() == run.start && continues(last, &run) => last.length += run.length,
        _ => runs.push(run),
    }
}

/// Whether `next`, which begins where `last` ends, is more of the same.
fn continues(last: &Run, next: &Run) -> bool {
    let adjacent = |a: qcow2_format::HostOffset, b| a.checked_add(last.length) == Some(b);
    last.depth == next.depth
        && match (last.kind, next.kind) {
            (RunKind::Data { host: a }, RunKind::Data { host: b }) => adjacent(a, b),
            (RunKind::Zero { explicit: x, host: a }, RunKind::Zero { explicit: y, host: b }) => {
                x == y
                    && match (a, b) {
                        (None, None) => true,
                        (Some(a), Some(b)) => adjacent(a, b),
                        _ => false,
                    }
            }
            (RunKind::Compressed { .. }, RunKind::Compressed { .. }) | (RunKind::Unallocated, RunKind::Unallocated) => {
                last.kind == next.kind
            }
            _ => false,
        }
}
