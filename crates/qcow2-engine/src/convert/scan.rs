//! The source's mapping, cut into pieces of work. The cuts depend on the mapping alone.

use std::collections::VecDeque;
use std::sync::Arc;

use qcow2_format::GuestOffset;

use super::salvage::Losses;
use super::source::{Source, Stretch};
use crate::error::{Error, Result};
use crate::progress::JobContext;

/// Stretches that are asked for at a time.
const BATCH: usize = 512;
/// A range without content inside a chunk is worth an item of its own from this length on.
const WORTHWHILE: u64 = 64 << 10;
/// What is taken for data where the mapping cannot be told.
const UNKNOWN: u64 = 64 << 10;

/// A piece of work: whole clusters of the target, but at the end of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Has to be looked at.
    Chunk { start: GuestOffset, length: u64 },
    /// Reads as zeros.
    Zero { start: GuestOffset, length: u64 },
    /// Reads as the target's backing file.
    Leave { start: GuestOffset, length: u64 },
}

/// What cuts.
#[derive(Debug)]
pub(super) struct Scanner {
    pub(super) source: Source,
    /// What the target's backing file has.
    pub(super) backing: Option<Source>,
    /// Virtual size of the target.
    pub(super) size: u64,
    /// Cluster size of the target.
    pub(super) cluster: u64,
    /// Chunks end at multiples of this.
    pub(super) chunk: u64,
    /// The target can say that a cluster reads as zeros although its backing file has data.
    pub(super) says_zero: bool,
    /// Zeros are data.
    pub(super) stores_zeros: bool,
    /// What is noted, instead of failing, where the mapping cannot be told.
    pub(super) losses: Option<Arc<Losses>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Look,
    Zero,
    Leave,
}

impl Scanner {
    /// The items in rising order.
    pub(super) fn items(self, job: &JobContext) -> impl FnMut() -> Result<Option<Item>> + use<'_> {
        let mut walk = Walk {
            source: Stretches::default(),
            backing: Stretches::default(),
            spans: VecDeque::new(),
            seen: 0,
            scanner: self,
        };
        let mut at = 0;
        move || {
            job.cancel.check()?;
            let item = walk.next(at)?;
            if let Some(Item::Chunk { length, .. } | Item::Zero { length, .. } | Item::Leave { length, .. }) = item {
                at += length;
            }
            Ok(item)
        }
    }

    fn class(&self, source: Stretch, backing: Option<Stretch>) -> Class {
        let Some(backing) = backing else {
            return if source.zero && !self.stores_zeros {
                Class::Zero
            } else {
                Class::Look
            };
        };
        let same_place = source.place.is_some() && source.place == backing.place;
        if (source.zero && backing.zero) || same_place {
            Class::Leave
        } else if source.zero && self.says_zero && !self.stores_zeros {
            Class::Zero
        } else {
            Class::Look
        }
    }

    /// `offset` rounded up to a cluster, not past the end.
    fn round_up(&self, offset: u64) -> u64 {
        offset.next_multiple_of(self.cluster).min(self.size)
    }

    /// `offset` rounded down to a cluster, but the end is as good as a border.
    fn round_down(&self, offset: u64) -> u64 {
        if offset >= self.size {
            self.size
        } else {
            offset - offset % self.cluster
        }
    }
}

/// A scanner on its way.
struct Walk {
    scanner: Scanner,
    source: Stretches,
    backing: Stretches,
    /// Classes from the first that is not yet behind, with their ends.
    spans: VecDeque<(Class, u64)>,
    /// Where the last span ends.
    seen: u64,
}

impl Walk {
    fn next(&mut self, at: u64) -> Result<Option<Item>> {
        let size = self.scanner.size;
        if at >= size {
            return Ok(None);
        }
        let start = GuestOffset(at);
        let (class, end) = self.span(at)?;
        let whole = self.scanner.round_down(end).saturating_sub(at);
        if class != Class::Look && whole > 0 {
            return Ok(Some(match class {
                Class::Leave => Item::Leave { start, length: whole },
                _ => Item::Zero { start, length: whole },
            }));
        }
        let border = (at / self.scanner.chunk)
            .saturating_add(1)
            .saturating_mul(self.scanner.chunk);
        let border = border.min(size);
        let mut stop = end;
        while stop < border {
            let (class, end) = self.span(stop)?;
            let (from, to) = (self.scanner.round_up(stop), self.scanner.round_down(end));
            if class != Class::Look && from < border && to.saturating_sub(from) >= WORTHWHILE.max(self.scanner.cluster)
            {
                let length = from - at;
                return Ok(Some(Item::Chunk { start, length }));
            }
            stop = end;
        }
        Ok(Some(Item::Chunk {
            start,
            length: border - at,
        }))
    }

    /// The class of what is at `at`, and how far it goes, at least up to the next chunk's border if it is one of the two without content.
    fn span(&mut self, at: u64) -> Result<(Class, u64)> {
        while self
            .spans
            .front()
            .is_some_and(|(_, end)| *end <= at && *end < self.seen)
        {
            self.spans.pop_front();
        }
        loop {
            let number = self.spans.iter().position(|(_, end)| *end > at);
            let last = number.is_some_and(|number| number + 1 == self.spans.len());
            match number.and_then(|number| self.spans.get(number)) {
                // The last span may go on; what has to be looked at need not be known to its end.
                Some(&(class, end))
                    if !last
                        || end >= self.scanner.size
                        || (class == Class::Look && end >= at.saturating_add(self.scanner.chunk)) =>
                {
                    return Ok((class, end));
                }
                _ => self.look_on()?,
            }
        }
    }

    /// Appends one more stretch to the spans.
    fn look_on(&mut self) -> Result<()> {
        let at = self.seen;
        let losses = self.scanner.losses.as_deref();
        let source = self.source.at(&self.scanner.source, at, losses)?;
        let backing = match &self.scanner.backing {
            Some(backing) => Some(self.backing.at(backing, at, None)?),
            None => None,
        };
        let length = backing.map_or(source.length, |backing| backing.length.min(source.length));
        let end = at.saturating_add(length).min(self.scanner.size);
        let class = self.scanner.class(source, backing);
        match self.spans.back_mut() {
            Some((last, last_end)) if *last == class => *last_end = end,
            _ => self.spans.push_back((class, end)),
        }
        self.seen = end;
        Ok(())
    }
}

/// The stretches of one source that were asked for and are not yet behind.
#[derive(Default)]
struct Stretches {
    known: VecDeque<Stretch>,
    begin: u64,
}

impl Stretches {
    /// What is at `at`, from there on.
    fn at(&mut self, source: &Source, at: u64, losses: Option<&Losses>) -> Result<Stretch> {
        loop {
            let Some(first) = self.known.front() else {
                self.begin = at;
                match (source.stretches(at, BATCH), losses) {
                    (Ok(stretches), _) => self.known.extend(stretches),
                    (Err(error @ (Error::Closed | Error::Cancelled)), _) | (Err(error), None) => return Err(error),
                    (Err(error), Some(losses)) => {
                        // It is read all the same: what cannot be is lost then.
                        let length = UNKNOWN - at % UNKNOWN;
                        losses.note(at, length, true, &error);
                        self.known.push_back(Stretch {
                            length,
                            zero: false,
                            place: None,
                        });
                    }
                }
                if self.known.is_empty() {
                    return Err(crate::sink::internal("a source has no status"));
                }
                continue;
            };
            let end = self.begin.saturating_add(first.length);
            if end > at {
                let passed = at - self.begin;
                return Ok(Stretch {
                    length: end - at,
                    zero: first.zero,
                    place: first.place.map(|(file, offset)| (file, offset.saturating_add(passed))),
                });
            }
            self.begin = end;
            self.known.pop_front();
        }
    }
}
