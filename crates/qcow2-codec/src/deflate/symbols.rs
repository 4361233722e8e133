//! What deflate's alphabets mean (RFC 1951, 3.2.5), and how often a piece of input uses each symbol.
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "indices are masked to the arrays' lengths, or are evaluated while compiling"
)]

use super::window::{MAX_MATCH, REACH};

/// Literals, the end of the block, lengths, and two that the fixed code has and nobody may use.
pub(super) const LITERALS: usize = 288;
/// 30, and two that the fixed code has and nobody may use.
pub(super) const DISTANCES: usize = 32;
pub(super) const END_OF_BLOCK: usize = 256;
pub(super) const FIRST_LENGTH: usize = 257;

/// Extra bits of the length symbols from [`FIRST_LENGTH`] on.
pub(super) const LENGTH_EXTRA: [u8; 29] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];

/// The shortest length of each length symbol.
pub(super) const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258,
];

/// The length symbol, less [`END_OF_BLOCK`], of a length: 1 to 29.
pub(super) static LENGTH_SYMBOL: [u8; 512] = {
    let mut symbols = [0; 512];
    let mut slot = 0;
    while slot < LENGTH_BASE.len() {
        let mut length = LENGTH_BASE[slot] as usize;
        // Each runs to the next one's start; 258 belongs to the last, though the one before could say it too.
        while length <= MAX_MATCH {
            symbols[length] = slot as u8 + 1;
            length += 1;
        }
        slot += 1;
    }
    symbols
};

/// The distance symbol of a distance less one.
pub(super) static DISTANCE_SLOT: [u8; REACH] = {
    let mut slots = [0; REACH];
    let mut distance = 0;
    while distance < REACH {
        slots[distance] = if distance < 4 {
            distance as u8
        } else {
            let log = distance.ilog2();
            (2 * log) as u8 + ((distance >> (log - 1)) & 1) as u8
        };
        distance += 1;
    }
    slots
};

/// Extra bits of a distance symbol: the low bits of the distance less one.
pub(super) const fn distance_extra(slot: usize) -> u32 {
    (slot as u32 >> 1).saturating_sub(1)
}

/// A run of literals, of which the bytes are in the input, and the match behind it, if its length is not 0.
#[derive(Clone, Copy, Default)]
pub(super) struct Symbol(u64);

impl Symbol {
    #[inline(always)]
    pub(super) fn new(literals: usize, length: usize, near: usize, slot: u8) -> Self {
        Self(
            literals as u64 & 0xFFFF
                | (length as u64 & 0x1FF) << 16
                | (near as u64 & 0xFFFF) << 32
                | u64::from(slot) << 48,
        )
    }

    #[inline(always)]
    pub(super) fn literals(self) -> usize {
        self.0 as usize & 0xFFFF
    }

    #[inline(always)]
    pub(super) fn length(self) -> usize {
        (self.0 >> 16) as usize & 0x1FF
    }

    /// The distance less one.
    #[inline(always)]
    pub(super) fn near(self) -> u32 {
        (self.0 >> 32) as u32 & 0xFFFF
    }

    #[inline(always)]
    pub(super) fn slot(self) -> usize {
        (self.0 >> 48) as usize & 31
    }
}

/// How often each symbol occurs. The end of the block is not counted.
#[derive(Clone, Copy)]
pub(super) struct Histogram {
    pub(super) literals: [u32; LITERALS],
    pub(super) distances: [u32; DISTANCES],
}

impl Histogram {
    pub(super) const EMPTY: Self = Self {
        literals: [0; LITERALS],
        distances: [0; DISTANCES],
    };

    #[inline(always)]
    pub(super) fn literal(&mut self, byte: u8) {
        let count = &mut self.literals[usize::from(byte)];
        *count = count.wrapping_add(1);
    }

    /// Counts a match; the answer is its distance symbol.
    #[inline(always)]
    pub(super) fn matched(&mut self, length: usize, near: usize) -> u8 {
        let symbol = usize::from(LENGTH_SYMBOL[length & 511]);
        let count = &mut self.literals[END_OF_BLOCK + (symbol & 31)];
        *count = count.wrapping_add(1);
        let slot = DISTANCE_SLOT[near & (REACH - 1)];
        let count = &mut self.distances[usize::from(slot) & 31];
        *count = count.wrapping_add(1);
        slot
    }

    pub(super) fn add(&mut self, other: &Self) {
        let pairs = self.literals.iter_mut().zip(&other.literals);
        for (mine, theirs) in pairs.chain(self.distances.iter_mut().zip(&other.distances)) {
            *mine = mine.wrapping_add(*theirs);
        }
    }

    /// Bits behind the symbols that no code can save.
    pub(super) fn extra_bits(&self) -> u64 {
        let lengths = self.literals[FIRST_LENGTH..].iter().zip(LENGTH_EXTRA);
        let lengths: u64 = lengths.map(|(&count, extra)| u64::from(count) * u64::from(extra)).sum();
        let distances = self.distances.iter().enumerate();
        let distances: u64 = distances
            .map(|(slot, &count)| u64::from(count) * u64::from(distance_extra(slot)))
            .sum();
        lengths + distances
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_lies_in_the_range_of_its_symbol() {
        for (length, symbol) in LENGTH_SYMBOL.iter().enumerate().take(MAX_MATCH + 1).skip(3) {
            let slot = usize::from(*symbol) - 1;
            let base = usize::from(LENGTH_BASE[slot]);
            assert!(length >= base && length - base < 1 << LENGTH_EXTRA[slot], "{length}");
        }
        assert_eq!(LENGTH_SYMBOL[258], 29);
    }

    #[test]
    fn every_distance_is_its_symbols_base_and_its_low_bits() {
        // Base distances of RFC 1951, as far as the window goes.
        let bases = [
            1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073,
        ];
        for distance in 1..=REACH {
            let slot = usize::from(DISTANCE_SLOT[distance - 1]);
            let extra = (distance - 1) & ((1 << distance_extra(slot)) - 1);
            assert_eq!(bases[slot] + extra, distance);
        }
    }

    #[test]
    fn a_symbol_keeps_what_it_is_given() {
        let symbol = Symbol::new(4321, 258, 4095, 23);
        assert_eq!(
            (symbol.literals(), symbol.length(), symbol.near(), symbol.slot()),
            (4321, 258, 4095, 23)
        );
    }
}
