//! Deflating into a 4 KiB window: link, parse, split, plan, write, each a pass over a segment of up to 64 KiB.
//!
//! The window is 12 bits because that is what QEMU writes and what a reader may rely on: a decoder that keeps no more
//! than 4 KiB of history must be able to follow. That it is so small is also what makes passes the right shape: the
//! whole cluster is known, and a link never has to reach far.

use std::ops::RangeInclusive;

use super::bits::Bits;
use super::block::Plan;
use super::parse::{Chunk, Effort, Parser};
use super::split;
use super::symbols::Histogram;
use super::window::Window;
use crate::scratch::Scratch;
use crate::{CodecError, Compression};

pub(crate) const LEVELS: RangeInclusive<i32> = 1..=9;

/// Levels 1 to 3.
const FAST: Effort = Effort {
    lazy: 0,
    depth: 4,
    nice: 30,
    reach3: 0,
    grain: 4096,
};

/// Levels 4 to 6, and without a level.
const DEFAULT: Effort = Effort {
    lazy: 1,
    depth: 10,
    nice: 64,
    reach3: 4096,
    grain: 4096,
};

/// The same for short segments: dividing them into blocks, which pays for a shallow search elsewhere, saves little there.
const DEFAULT_SHORT: Effort = Effort { depth: 32, ..DEFAULT };
const SHORT: usize = 16_384;

/// Levels 7 to 9.
const SMALL: Effort = Effort {
    lazy: 2,
    depth: 64,
    nice: 258,
    reach3: 4096,
    grain: 2048,
};

/// Bytes that the bit writer may touch beyond its last one.
const SLACK: usize = 16;

pub(crate) struct Deflate {
    effort: Effort,
    window: Window,
    parser: Parser,
    plans: Vec<Plan>,
    scratch: Scratch,
}

impl Deflate {
    /// `level` must be one of [`LEVELS`]; `None` is the default.
    ///
    /// # Errors
    /// [`CodecError::OutOfMemory`].
    pub(crate) fn new(level: Option<i32>) -> Result<Self, CodecError> {
        Ok(Self {
            effort: match level {
                Some(..=3) => FAST,
                Some(7..) => SMALL,
                _ => DEFAULT,
            },
            window: Window::new()?,
            parser: Parser::new()?,
            plans: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    pub(crate) fn encode(&mut self, input: &[u8], limit: usize) -> Result<Option<&[u8]>, CodecError> {
        self.window.begin(input.len());
        let (mut rest, mut written) = (input, 0);
        loop {
            let (segment, left) = self.window.fill(rest);
            rest = left;
            let bytes = self.window.bytes.get(segment.clone()).unwrap_or_default();
            let sample = Sample::new(bytes);
            let effort = &if sample.is_random() {
                FAST
            } else {
                let short = bytes.len() <= SHORT && self.effort == DEFAULT;
                let effort = if short { DEFAULT_SHORT } else { self.effort };
                Effort {
                    reach3: sample.reach3(effort.reach3),
                    ..effort
                }
            };
            if effort.reach3 > 0 {
                self.window.link::<true>(segment.clone());
            } else {
                self.window.link::<false>(segment.clone());
            }
            self.parser.parse(&self.window, segment, effort);
            let least = usize::try_from(split::least_bits(&self.parser.chunks)).unwrap_or(usize::MAX);
            if (written + least).div_ceil(8) >= limit {
                return Ok(None);
            }
            let end = self.plan(written, rest.is_empty());
            if end.div_ceil(8) >= limit {
                return Ok(None);
            }
            let room = self.scratch.room(end / 8 + SLACK, Compression::Deflate)?;
            let mut bits = Bits::new(room, written);
            for plan in &self.plans {
                plan.write(&mut bits, &self.window.bytes, self.parser.symbols(plan.symbols()));
            }
            debug_assert_eq!(bits.written(), end, "a plan is kept to the bit");
            written = end;
            if rest.is_empty() {
                return Ok(self.scratch.below(written.div_ceil(8), limit));
            }
        }
    }

    /// The blocks of a parsed segment, which begins behind `written` bits. The answer is where it ends.
    fn plan(&mut self, written: usize, last: bool) -> usize {
        let chunks = &mut self.parser.chunks;
        if chunks.is_empty() {
            // Nothing to say still takes a block that says it.
            chunks.push(Chunk {
                symbols: 0..0,
                bytes: 0..0,
                histogram: Histogram::EMPTY,
            });
        }
        split::join(chunks);
        self.plans.clear();
        let mut end = written;
        let final_block = chunks.len() - 1;
        for (number, chunk) in chunks.iter().enumerate() {
            let plan = Plan::new(chunk, last && number == final_block, end);
            end = plan.end;
            self.plans.push(plan);
        }
        end
    }
}

/// What a sixteenth of a segment says about the rest. It only changes how hard matches are looked for.
struct Sample {
    counts: [u32; 256],
    taken: u32,
}

impl Sample {
    fn new(bytes: &[u8]) -> Self {
        let mut sample = Self {
            counts: [0; 256],
            taken: 0,
        };
        let every = if bytes.len() < 32_768 { 256 } else { 1024 };
        for piece in bytes.chunks(every) {
            let piece = piece.iter().take(64);
            sample.taken += u32::try_from(piece.len()).unwrap_or(0);
            for &byte in piece {
                if let Some(count) = sample.counts.get_mut(usize::from(byte)) {
                    *count = count.wrapping_add(1);
                }
            }
        }
        sample
    }

    /// Whether the bytes are spread as evenly as random ones.
    ///
    /// The sum of the squared counts of `n` even bytes is `n + n²/256`, give or take `n / 11`; six times that is allowed.
    fn is_random(&self) -> bool {
        let taken = u64::from(self.taken);
        let squares: u64 = self.counts.iter().map(|&count| u64::from(count).pow(2)).sum();
        taken >= 256 && squares < taken + taken * taken / 256 + taken * 37 / 64
    }

    /// How far back a match of 3 bytes costs less than 3 literals do, where these cost what the sample says.
    fn reach3(&self, most: usize) -> usize {
        // Few samples make any data look simpler than it is.
        if self.taken < 512 {
            return most;
        }
        let literals = 3 * split::entropy_of_bytes(&self.counts) / u64::from(self.taken.max(1));
        // Half a dozen bits go into the two symbols, the rest is there for the distance's extra bits.
        let spare = (literals >> split::BIT).saturating_sub(6);
        most.min(1 << spare.min(12))
    }
}
