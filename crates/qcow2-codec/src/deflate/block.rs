//! Blocks: which of deflate's three forms is the shortest, to the bit and before one is written; and writing it.
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "indices are symbols, lengths and distances masked to the tables' lengths; what is cut to 16 bits has no more"
)]

use std::ops::Range;

use super::bits::Bits;
use super::header::Header;
use super::huffman;
use super::parse::Chunk;
use super::symbols::{
    DISTANCES, END_OF_BLOCK, FIRST_LENGTH, Histogram, LENGTH_BASE, LENGTH_EXTRA, LENGTH_SYMBOL, LITERALS, Symbol,
    distance_extra,
};
use super::window::{Bytes, MAX_MATCH, load4};

/// One less than deflate allows: four literals and seven bits left over fit into 64 then.
const LITERAL_LIMIT: usize = 14;
const DISTANCE_LIMIT: usize = 15;

/// Bytes in one stored block.
const STORED: usize = 65_535;

const LITERAL_MASK: usize = 511;

struct Lengths {
    literals: [u8; LITERALS],
    distances: [u8; DISTANCES],
}

/// RFC 1951, 3.2.6.
static FIXED: Lengths = {
    let mut literals = [8; LITERALS];
    let mut at = 144;
    while at < 280 {
        literals[at] = if at < 256 { 9 } else { 7 };
        at += 1;
    }
    Lengths {
        literals,
        distances: [5; DISTANCES],
    }
};

enum Form {
    Stored,
    Fixed,
    Dynamic(Box<(Lengths, Header)>),
}

/// A block as it will be written.
pub(super) struct Plan {
    form: Form,
    symbols: Range<usize>,
    bytes: Range<usize>,
    last: bool,
    /// Where it ends if it begins where it was planned to.
    pub(super) end: usize,
}

impl Plan {
    /// The shortest form of `chunk` behind `written` bits. An empty chunk is a block without symbols.
    pub(super) fn new(chunk: &Chunk, last: bool, written: usize) -> Self {
        let mut histogram = chunk.histogram;
        histogram.literals[END_OF_BLOCK] = 1;
        let mut lengths = Lengths {
            literals: [0; LITERALS],
            distances: [0; DISTANCES],
        };
        huffman::lengths(&histogram.literals, LITERAL_LIMIT, &mut lengths.literals);
        huffman::lengths(&histogram.distances, DISTANCE_LIMIT, &mut lengths.distances);
        let header = Header::new(&lengths.literals, &lengths.distances);
        let extra = usize::try_from(histogram.extra_bits()).unwrap_or(usize::MAX);
        let dynamic = written + 3 + header.bits() + lengths.bits(&histogram) + extra;
        let fixed = written + 3 + FIXED.bits(&histogram) + extra;
        let stored = stored_end(written, chunk.bytes.len());
        let (end, form) = if stored <= dynamic.min(fixed) && !chunk.bytes.is_empty() {
            (stored, Form::Stored)
        } else if fixed <= dynamic {
            (fixed, Form::Fixed)
        } else {
            (dynamic, Form::Dynamic(Box::new((lengths, header))))
        };
        Self {
            form,
            symbols: chunk.symbols.clone(),
            bytes: chunk.bytes.clone(),
            last,
            end,
        }
    }

    /// The symbols that [`write`](Self::write) wants.
    pub(super) fn symbols(&self) -> Range<usize> {
        self.symbols.clone()
    }

    pub(super) fn write(&self, bits: &mut Bits<'_>, bytes: &Bytes, symbols: &[Symbol]) {
        let last = u64::from(self.last);
        match &self.form {
            Form::Stored => self.write_stored(bits, bytes),
            Form::Fixed => {
                bits.put(last | 1 << 1, 3);
                FIXED.write(bits, bytes, self.bytes.start, symbols);
            }
            Form::Dynamic(codes) => {
                bits.put(last | 2 << 1, 3);
                codes.1.write(bits);
                codes.0.write(bits, bytes, self.bytes.start, symbols);
            }
        }
    }

    fn write_stored(&self, bits: &mut Bits<'_>, bytes: &Bytes) {
        let mut pieces = bytes[self.bytes.clone()].chunks(STORED).peekable();
        while let Some(piece) = pieces.next() {
            bits.put(u64::from(self.last && pieces.peek().is_none()), 3);
            let length = piece.len() as u16;
            bits.copy(&length.to_le_bytes());
            bits.copy(&(!length).to_le_bytes());
            bits.copy(piece);
        }
    }
}

/// Where `len` bytes stored behind `written` bits end.
fn stored_end(written: usize, len: usize) -> usize {
    let head = |at: usize| (at + 3).next_multiple_of(8) + 32;
    let pieces = len.div_ceil(STORED).max(1);
    // All heads but the first begin at a whole byte.
    head(written) + (pieces - 1) * head(0) + 8 * len
}

/// Code and its length.
type Code = (u16, u16);

impl Lengths {
    fn bits(&self, histogram: &Histogram) -> usize {
        let bits = |counts: &[u32], lengths: &[u8]| -> usize {
            let pairs = counts.iter().zip(lengths);
            pairs
                .map(|(&count, &length)| count as usize * usize::from(length))
                .sum()
        };
        bits(&histogram.literals, &self.literals) + bits(&histogram.distances, &self.distances)
    }

    /// Symbols and the end of the block. `at` is the position of the first one's bytes.
    fn write(&self, bits: &mut Bits<'_>, bytes: &Bytes, mut at: usize, symbols: &[Symbol]) {
        let (literals, lengths, distances) = self.tables();
        for &symbol in symbols {
            at = write_literals(bits, bytes, at, symbol.literals(), &literals);
            let length = symbol.length();
            if length > 0 {
                let (code, count) = lengths[length & LITERAL_MASK];
                bits.add(u64::from(code), count);
                let slot = symbol.slot() & (DISTANCES - 1);
                let (code, count, extra) = distances[slot];
                bits.add(u64::from(code), u32::from(count));
                bits.add(u64::from(symbol.near() & ((1 << (extra & 15)) - 1)), u32::from(extra));
                bits.flush();
                at = at.wrapping_add(length);
            }
        }
        let (code, count) = lengths[0];
        bits.put(u64::from(code), count);
    }

    /// The literals' codes; the lengths' with their extra bits, and at 0 the end of the block; the distances', and how
    /// many extra bits they have.
    #[allow(clippy::type_complexity, reason = "three tables, used once")]
    fn tables(&self) -> ([Code; 256], [(u32, u32); 512], [(u16, u8, u8); DISTANCES]) {
        let mut codes = [0; LITERALS];
        huffman::codes(&self.literals, &mut codes);
        let mut literals = [(0, 0); 256];
        for (entry, (&code, &length)) in literals.iter_mut().zip(codes.iter().zip(&self.literals)) {
            *entry = (code, u16::from(length));
        }
        let mut lengths = [(0, 0); 512];
        lengths[0] = (codes[END_OF_BLOCK].into(), self.literals[END_OF_BLOCK].into());
        for length in 3..=MAX_MATCH {
            let slot = usize::from(LENGTH_SYMBOL[length]) - 1;
            let count = u32::from(self.literals[FIRST_LENGTH + slot]);
            let extra = length as u32 - u32::from(LENGTH_BASE[slot]);
            lengths[length] = (
                u32::from(codes[FIRST_LENGTH + slot]) | extra << count,
                count + u32::from(LENGTH_EXTRA[slot]),
            );
        }
        let mut codes = [0; DISTANCES];
        huffman::codes(&self.distances, &mut codes);
        let mut distances = [(0, 0, 0); DISTANCES];
        for (slot, entry) in distances.iter_mut().enumerate() {
            *entry = (codes[slot], self.distances[slot], distance_extra(slot) as u8);
        }
        (literals, lengths, distances)
    }
}

/// Four at a time, whether there are four or not: the surplus ones get no bits, which is cheaper than asking.
#[inline(always)]
fn write_literals(bits: &mut Bits<'_>, bytes: &Bytes, mut at: usize, count: usize, codes: &[Code; 256]) -> usize {
    let mut left = count;
    while left > 0 {
        let word = load4(bytes, at);
        for nth in 0..4_usize {
            let (code, length) = codes[(word >> (8 * nth)) as usize & 0xFF];
            let wanted = left > nth;
            bits.add(
                if wanted { u64::from(code) } else { 0 },
                if wanted { u32::from(length) } else { 0 },
            );
        }
        bits.flush();
        let written = left.min(4);
        at = at.wrapping_add(written);
        left = left.wrapping_sub(written);
    }
    at
}
