//! The match finder's half that looks at every byte: the input where it can be read without bounds tests, and for each
//! position the distance to where its first bytes stood last.
//!
//! Positions are those of the buffer, [`SEGMENT`] of them. A longer cluster passes through it in segments, each behind
//! the last 4 KiB of the one before. A *link* is a distance less one in 16 bits: whoever walks them adds distances up and
//! stops beyond [`REACH`], so no link needs a value that means "none".
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "indices are masked to the arrays' lengths, which the compiler sees: no test is left in the loops. Positions and hashes keep their low bits on purpose"
)]

use crate::{CodecError, Compression};

/// The longest match deflate knows, and the padding that a comparison may look into.
pub(super) const MAX_MATCH: usize = 258;

/// How far back a match may reach, in bytes.
pub(super) const REACH: usize = 4096;

/// Positions in the buffer.
pub(super) const SEGMENT: usize = 65_536;

const POSITION: usize = SEGMENT - 1;
const PADDING: usize = 1024;
const LENGTH: usize = 511;

/// Bytes after a segment that its last hashes see. They are the input's, or zeros, and never what was there before.
const AHEAD: usize = 16;

/// Fibonacci hashing: the golden ratio's bits, of which the upper ones of a product are well mixed.
const GOLDEN: u32 = 0x9E37_79B1;
const BITS4: u32 = 16;
const BITS3: u32 = 14;

/// Where the counting of a cluster's positions starts after the heads were cleared: a cleared head is then out of reach.
const START: usize = REACH;

pub(super) type Bytes = [u8; SEGMENT + PADDING];

/// Two links per position: of the last 4 bytes alike in the low half, of the last 3 in the high one.
pub(super) type Links = [u32; SEGMENT];

pub(super) struct Window {
    pub(super) bytes: Box<Bytes>,
    pub(super) links: Box<Links>,
    heads4: Box<[u16; 1 << BITS4]>,
    heads3: Box<[u16; 1 << BITS3]>,
    /// What the next cluster's first position counts as. Clusters are kept [`REACH`] apart, so that none sees another.
    next: usize,
    /// What the buffer's position 0 counts as; of it 16 bits are used.
    base: usize,
    /// Where the current segment ends.
    end: usize,
}

impl Window {
    pub(super) fn new() -> Result<Self, CodecError> {
        Ok(Self {
            bytes: zeroed()?,
            links: zeroed()?,
            heads4: zeroed()?,
            heads3: zeroed()?,
            next: START,
            base: START,
            end: 0,
        })
    }

    /// Begins a cluster of `len` bytes and forgets the ones before.
    ///
    /// Small clusters share the 2^16 positions between two clearings of the heads: clearing 160 KiB for each 512 bytes
    /// would take longer than encoding them. Where a cluster starts in them changes no result, as all that is not its own is out
    /// of its reach; clusters that go around always start at the same position.
    pub(super) fn begin(&mut self, len: usize) {
        let fits = |start: usize| start.saturating_add(len) <= SEGMENT;
        if !fits(self.next) {
            self.heads4.fill(0);
            self.heads3.fill(0);
            self.next = START;
        }
        self.base = self.next;
        self.next = if fits(self.base) {
            self.base + len + REACH
        } else {
            SEGMENT + 1
        };
        self.end = 0;
    }

    /// Takes the next segment from the front of `rest`. The answer is its positions, and what is left of `rest`.
    pub(super) fn fill<'a>(&mut self, rest: &'a [u8]) -> (std::ops::Range<usize>, &'a [u8]) {
        let from = self.end.min(REACH);
        if self.end > REACH {
            let slide = self.end - REACH;
            self.bytes.copy_within(slide..self.end, 0);
            self.links.copy_within(slide..self.end, 0);
            self.base += slide;
        }
        let (segment, left) = rest.split_at(rest.len().min(SEGMENT - from));
        let end = from + segment.len();
        self.bytes[from..end].copy_from_slice(segment);
        let ahead = left.len().min(AHEAD);
        self.bytes[end..end + ahead].copy_from_slice(&left[..ahead]);
        self.bytes[end + ahead..end + AHEAD].fill(0);
        self.end = end;
        (from..end, left)
    }

    /// Links the positions of `segment`; without `THREE` the links of 3 bytes are out of reach.
    pub(super) fn link<const THREE: bool>(&mut self, segment: std::ops::Range<usize>) {
        let bytes = &*self.bytes;
        let (heads4, heads3) = (&mut *self.heads4, &mut *self.heads3);
        let base = self.base as u16;
        let from = segment.start;
        for (index, link) in self.links[segment].iter_mut().enumerate() {
            let at = from.wrapping_add(index) & POSITION;
            let word = load4(bytes, at);
            let position = base.wrapping_add(at as u16);
            let head = &mut heads4[(word.wrapping_mul(GOLDEN) >> (32 - BITS4)) as usize];
            let near = u32::from(position.wrapping_sub(*head));
            *head = position.wrapping_add(1);
            *link = if THREE {
                let head = &mut heads3[((word << 8).wrapping_mul(GOLDEN) >> (32 - BITS3)) as usize];
                let near3 = u32::from(position.wrapping_sub(*head));
                *head = position.wrapping_add(1);
                near | near3 << 16
            } else {
                near | 0xFFFF_0000
            };
        }
    }
}

/// The 4 bytes at a position.
#[inline(always)]
pub(super) fn load4(bytes: &Bytes, at: usize) -> u32 {
    let at = at & POSITION;
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// How many bytes from `a` and from `b` on are alike, up to `most` (at most [`MAX_MATCH`]).
#[inline(always)]
pub(super) fn alike(bytes: &Bytes, a: usize, b: usize, most: usize) -> usize {
    let mut len = 0;
    loop {
        let differing = load8(bytes, a, len) ^ load8(bytes, b, len);
        if differing != 0 {
            return (len + (differing.trailing_zeros() >> 3) as usize).min(most);
        }
        len = (len + 8) & LENGTH;
        if len >= most {
            return most;
        }
    }
}

#[inline(always)]
fn load8(bytes: &Bytes, at: usize, further: usize) -> u64 {
    let at = (at & POSITION) + (further & LENGTH);
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// An array on the heap that never was on the stack.
///
/// # Errors
/// [`CodecError::OutOfMemory`].
pub(super) fn zeroed<T: Copy + Default, const N: usize>() -> Result<Box<[T; N]>, CodecError> {
    let none = |_| CodecError::OutOfMemory {
        compression: Compression::Deflate,
    };
    let mut values = Vec::new();
    values.try_reserve_exact(N).map_err(none)?;
    values.resize(N, T::default());
    values.into_boxed_slice().try_into().map_err(|_| CodecError::Library {
        compression: Compression::Deflate,
        reason: "a table has another length than it was given",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distances to the last occurrence of `width` bytes, by looking.
    fn searched(input: &[u8], width: usize) -> Vec<Option<usize>> {
        (0..input.len() + 1 - width)
            .map(|at| {
                let here = &input[at..at + width];
                (1..=at.min(REACH)).find(|distance| &input[at - distance..][..width] == here)
            })
            .collect()
    }

    fn numbers(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(0x0019_660D).wrapping_add(0x3C6E_F35F);
                (state >> 29) as u8
            })
            .collect()
    }

    #[test]
    fn the_nearest_occurrence_is_linked_in_clusters_of_any_length() {
        let mut window = Window::new().unwrap();
        for len in [4, 600, 65_536, 600, 150_000, 4096] {
            let input = numbers(len);
            let expected = searched(&input, 4);
            window.begin(len);
            let (mut rest, mut done) = (&input[..], 0);
            while !rest.is_empty() {
                let (segment, left) = window.fill(rest);
                window.link::<true>(segment.clone());
                for at in segment.clone() {
                    let nth = done + at - segment.start;
                    if let Some(&Some(distance)) = expected.get(nth) {
                        // A collision hides it behind a nearer one, which few do.
                        let near = (window.links[at] & 0xFFFF) as usize + 1;
                        assert!(near <= distance, "{len}: {nth} is linked over {near}, not {distance}");
                    }
                }
                done += segment.len();
                rest = left;
            }
            assert_eq!(done, len);
        }
    }

    #[test]
    fn a_cluster_sees_none_of_the_clusters_before() {
        let input = numbers(3000);
        let mut window = Window::new().unwrap();
        let mut first = None;
        for _ in 0..40 {
            window.begin(input.len());
            let (segment, _) = window.fill(&input);
            window.link::<true>(segment.clone());
            let links: Vec<_> = window.links[segment]
                .iter()
                .map(|link| [link & 0xFFFF, link >> 16].map(|near| (near < REACH as u32).then_some(near)))
                .collect();
            let first = first.get_or_insert_with(|| links.clone());
            assert!(*first == links);
        }
    }

    #[test]
    fn likeness_is_counted_to_the_byte_and_no_further_than_asked() {
        let mut window = Window::new().unwrap();
        for len in 0..=MAX_MATCH {
            window.bytes.fill(7);
            window.bytes[1000 + len] = 8;
            assert_eq!(alike(&window.bytes, 0, 1000, MAX_MATCH), len);
            assert_eq!(alike(&window.bytes, 0, 1000, len / 2), len / 2);
        }
    }
}
