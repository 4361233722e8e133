//! The parser: which bytes become literals and which become matches, counted as it goes.
#![allow(
    clippy::indexing_slicing,
    reason = "indices are masked to the arrays' lengths, which the compiler sees: no test is left in the loops"
)]

use std::ops::Range;

use super::symbols::{Histogram, Symbol};
use super::window::{Bytes, Links, MAX_MATCH, REACH, SEGMENT, Window, alike, load4, zeroed};
use crate::CodecError;

/// More than a segment has: one per match, which is 3 bytes or more, and one per chunk.
const SYMBOLS: usize = 32_768;

/// How hard to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effort {
    /// Positions further than the one found that are tried before a match is taken: 0 is greedy.
    pub(super) lazy: u8,
    /// Candidates looked at for one position.
    pub(super) depth: u32,
    /// A match this long is taken without looking further.
    pub(super) nice: usize,
    /// How far back matches of 3 bytes may reach; 0 for none. Beyond it they cost more than literals.
    pub(super) reach3: usize,
    /// Bytes per chunk, at least 2,048. Blocks begin where chunks do.
    pub(super) grain: usize,
}

/// A piece of a segment: its symbols, its bytes and what they count.
#[derive(Clone)]
pub(super) struct Chunk {
    pub(super) symbols: Range<usize>,
    pub(super) bytes: Range<usize>,
    pub(super) histogram: Histogram,
}

pub(super) struct Parser {
    symbols: Box<[Symbol; SYMBOLS]>,
    pub(super) chunks: Vec<Chunk>,
}

/// A match: its length, and its distance less one.
#[derive(Clone, Copy)]
struct Match {
    length: usize,
    near: usize,
}

impl Parser {
    pub(super) fn new() -> Result<Self, CodecError> {
        Ok(Self {
            symbols: zeroed()?,
            chunks: Vec::new(),
        })
    }

    pub(super) fn symbols(&self, range: Range<usize>) -> &[Symbol] {
        self.symbols.get(range).unwrap_or_default()
    }

    /// Parses a linked segment into chunks.
    pub(super) fn parse(&mut self, window: &Window, segment: Range<usize>, effort: &Effort) {
        match (effort.lazy, effort.reach3 > 0) {
            (0, false) => self.run::<0, false>(window, segment, effort),
            (0, true) => self.run::<0, true>(window, segment, effort),
            (1, _) => self.run::<1, true>(window, segment, effort),
            (_, _) => self.run::<2, true>(window, segment, effort),
        }
    }

    fn run<const LAZY: u8, const THREE: bool>(&mut self, window: &Window, segment: Range<usize>, effort: &Effort) {
        let (bytes, links) = (&*window.bytes, &*window.links);
        let search = Search {
            bytes,
            links,
            end: segment.end,
            effort: *effort,
        };
        let symbols = &mut *self.symbols;
        self.chunks.clear();
        let (mut at, mut used) = (segment.start, 0_usize);
        while at < segment.end {
            let (begin, first) = (at, used);
            let end = segment.end.min(at.wrapping_add(effort.grain));
            let mut histogram = Histogram::EMPTY;
            let mut run = at;
            while at < end {
                let link = links[at & (SEGMENT - 1)];
                let Some(mut found) = search.at::<THREE>(at, link) else {
                    histogram.literal(bytes[at & (SEGMENT - 1)]);
                    at = at.wrapping_add(1);
                    continue;
                };
                if LAZY > 0 {
                    while let Some((further, better)) = search.later::<LAZY>(at, found) {
                        for literal in at..at.wrapping_add(further) {
                            histogram.literal(bytes[literal & (SEGMENT - 1)]);
                        }
                        at = at.wrapping_add(further);
                        found = better;
                    }
                }
                let slot = histogram.matched(found.length, found.near);
                symbols[used & (SYMBOLS - 1)] = Symbol::new(at.wrapping_sub(run), found.length, found.near, slot);
                used = used.wrapping_add(1);
                at = at.wrapping_add(found.length);
                run = at;
            }
            if run < at {
                symbols[used & (SYMBOLS - 1)] = Symbol::new(at.wrapping_sub(run), 0, 0, 0);
                used = used.wrapping_add(1);
            }
            self.chunks.push(Chunk {
                symbols: first..used,
                bytes: begin..at,
                histogram,
            });
        }
    }
}

struct Search<'a> {
    bytes: &'a Bytes,
    links: &'a Links,
    end: usize,
    effort: Effort,
}

impl Search<'_> {
    /// The match to take at a position, if nothing better begins behind it.
    #[inline(always)]
    fn at<const THREE: bool>(&self, at: usize, link: u32) -> Option<Match> {
        let (near, near3) = ((link & 0xFFFF) as usize, (link >> 16) as usize);
        if near < REACH {
            let found = self.longest(at, near, 3, self.effort.depth);
            if found.length > 3 {
                return Some(found);
            }
        }
        if THREE && near3 < self.effort.reach3 {
            let candidate = at.wrapping_sub(near3.wrapping_add(1));
            let differing = load4(self.bytes, at) ^ load4(self.bytes, candidate);
            if differing << 8 == 0 && self.end.wrapping_sub(at) >= 3 {
                return Some(Match { length: 3, near: near3 });
            }
        }
        None
    }

    /// A match that begins a byte or two later and saves more than the literals before it cost.
    #[inline(always)]
    fn later<const LAZY: u8>(&self, at: usize, found: Match) -> Option<(usize, Match)> {
        if found.length >= self.effort.nice {
            return None;
        }
        let depth = self.effort.depth >> 1;
        let one = self.other(at.wrapping_add(1), found.length.wrapping_sub(1), depth);
        if let Some(other) = one
            && worth(found, other) > 2
        {
            return Some((1, other));
        }
        if LAZY > 1 {
            let two = self.other(at.wrapping_add(2), found.length, depth >> 1);
            if let Some(other) = two
                && worth(found, other) > 6
            {
                return Some((2, other));
            }
        }
        None
    }

    /// The longest match at `at`, if it is longer than `than`.
    #[inline(always)]
    fn other(&self, at: usize, than: usize, depth: u32) -> Option<Match> {
        let near = (self.links[at & (SEGMENT - 1)] & 0xFFFF) as usize;
        if near >= REACH || at >= self.end {
            return None;
        }
        let than = than.max(3);
        let other = self.longest(at, near, than, depth);
        (other.length > than).then_some(other)
    }

    /// The longest of the first `depth` candidates that is longer than `than`, which is 3 or more; the nearest of equals. `near` is the first one's link.
    #[inline(always)]
    fn longest(&self, at: usize, near: usize, than: usize, mut depth: u32) -> Match {
        let (bytes, links) = (self.bytes, self.links);
        let most = MAX_MATCH.min(self.end.wrapping_sub(at));
        let enough = self.effort.nice.min(most);
        let head = load4(bytes, at);
        let mut best = Match { length: than, near: 0 };
        let mut tail = load4(bytes, at.wrapping_add(than).wrapping_sub(3));
        let mut near = near;
        loop {
            let candidate = at.wrapping_sub(near).wrapping_sub(1);
            if load4(bytes, candidate.wrapping_add(best.length).wrapping_sub(3)) == tail
                && load4(bytes, candidate) == head
            {
                let length = alike(bytes, candidate, at, most);
                if length > best.length {
                    best = Match { length, near };
                    if length >= enough {
                        return best;
                    }
                    tail = load4(bytes, at.wrapping_add(length).wrapping_sub(3));
                }
            }
            depth = depth.wrapping_sub(1);
            if depth == 0 {
                return best;
            }
            near = near
                .wrapping_add((links[candidate & (SEGMENT - 1)] & 0xFFFF) as usize)
                .wrapping_add(1);
            if near >= REACH {
                return best;
            }
        }
    }
}

/// What taking `other` instead of `found` saves, in bits, roughly: a byte more is worth four.
#[inline(always)]
fn worth(found: Match, other: Match) -> i64 {
    // Both fit: lengths have 9 bits, distances 12.
    let bits = |matched: Match| {
        let distance_bits = 63_u32.wrapping_sub((matched.near as u64 | 1).leading_zeros());
        (matched.length as i64)
            .wrapping_mul(4)
            .wrapping_sub(i64::from(distance_bits))
    };
    bits(other).wrapping_sub(bits(found))
}
