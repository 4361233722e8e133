//! From tables to the index: looking up what a read wants, and what stands beside it.

use std::sync::Arc;

use qcow2_format::GuestOffset;

use super::Chain;
use super::index::REGION;
use super::mapping::View;
use super::resolve::{Walk, append};
use crate::error::Result;
use crate::run::Run;

/// Runs that are looked up at a time at most.
const RUNS: usize = 2048;

/// The guest range, a power of two, that is looked up as a whole: in every layer it is within one piece of a table, or in a region.
pub(super) fn span(views: &[Arc<View>]) -> u64 {
    let spans = views.iter().filter_map(|view| view.piece_span());
    spans.min().unwrap_or(REGION).min(REGION)
}

impl Chain {
    /// Forgets everything that is kept of the layers' files, also what is being looked up or decoded now: for whoever changes them in a way that is
    /// not followed run by run.
    pub fn forget(&self) {
        self.cache.clear();
        self.decoded.cache.clear();
        self.index.forget();
    }

    /// As [`Chain::resolve`], from the index where it knows, into `runs`.
    ///
    /// # Errors
    /// As [`Chain::resolve`].
    pub(super) fn runs(&self, start: GuestOffset, length: u64, max: usize, runs: &mut Vec<Run>) -> Result<()> {
        let end = GuestOffset(start.0.saturating_add(length).min(self.virtual_size()));
        runs.clear();
        let (generation, has_room) = {
            let mut state = self.index.lock();
            state.known(start, end, |run| {
                runs.push(run);
                runs.len() < max
            });
            (state.generation(), state.has_room(start))
        };
        if !runs.is_empty() || start >= end {
            return Ok(());
        }
        if !has_room {
            *runs = self.resolve(start, length, max)?;
            return Ok(());
        }
        let found = self.look_up(start)?;
        self.index.keep(generation, &found);
        let wanted = found.iter().filter_map(|run| run.cut(start, end));
        runs.extend(wanted.take(max));
        Ok(())
    }

    /// The runs around `start`, without gaps, at least one of them from there on.
    fn look_up(&self, start: GuestOffset) -> Result<Vec<Run>> {
        let begin = GuestOffset(start.0 & !(self.fill_span - 1));
        let end = begin.0.saturating_add(self.fill_span);
        let mut runs = Vec::new();
        let ended = self.walk(begin, end, &mut runs);
        if runs.last().is_some_and(|run| run.end() > start) {
            return Ok(runs);
        }
        if begin == start {
            ended?;
        }
        // There were too many before it, or one that cannot be followed: that is no fault of what is wanted.
        runs.clear();
        let ended = self.walk(start, end, &mut runs);
        if runs.is_empty() {
            ended?;
        }
        Ok(runs)
    }

    /// Adds the runs from `begin` on, up to `end`, the first that cannot be followed, or so many.
    fn walk(&self, begin: GuestOffset, end: u64, runs: &mut Vec<Run>) -> Result<()> {
        let mut walk = Walk::new(self, begin, end - begin.0);
        while runs.len() < RUNS {
            let Some(piece) = walk.next()? else { break };
            append(runs, piece.run());
        }
        Ok(())
    }
}
