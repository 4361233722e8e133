//! Deflating into a 4 KiB window. A library fills this module for now; nothing outside it knows which.
//!
//! The window is 12 bits because that is what QEMU writes and what a reader may rely on: a decoder that keeps no more
//! than 4 KiB of history must be able to follow.

use std::ops::RangeInclusive;

use zlib_rs::{DeflateConfig, DeflateError, DeflateFlush, Status};

use crate::scratch::Scratch;
use crate::{CodecError, Compression};

pub(crate) const LEVELS: RangeInclusive<i32> = 1..=9;
const DEFAULT_LEVEL: i32 = 6;

/// Ends a deflate block every 8,192 symbols. The library's usual 16,384 and QEMU's 32,768 make larger output (0.2 to 1 %).
const BLOCK_SYMBOLS: i32 = 7;

/// Matches reach back 2^12 bytes. Negative is the library's sign for "raw, no wrapper".
const RAW_4_KIB: i32 = -12;

pub(crate) struct Deflate {
    config: DeflateConfig,
    scratch: Scratch,
}

impl Deflate {
    /// `level` must be one of [`LEVELS`]; `None` is the default.
    pub(crate) fn new(level: Option<i32>) -> Self {
        let level = library_level(level.unwrap_or(DEFAULT_LEVEL));
        let config = DeflateConfig {
            level,
            window_bits: RAW_4_KIB,
            mem_level: BLOCK_SYMBOLS,
            ..DeflateConfig::default()
        };
        Self {
            config,
            scratch: Scratch::default(),
        }
    }

    pub(crate) fn encode(&mut self, input: &[u8], limit: usize) -> Result<Option<&[u8]>, CodecError> {
        // The library stops by itself when a cluster turns out not to shrink, and calls a stream ended only if a byte of
        // room is left: so `limit` bytes, for a stream of fewer.
        let output = self
            .scratch
            .room(limit, Compression::Deflate)?
            .get_mut(..limit)
            .unwrap_or_default();
        // A new state for every cluster: resetting one whose output ran full makes zlib-rs 0.6.8 panic.
        let mut state = zlib_rs::Deflate::new_with_config(self.config);
        match state.compress(input, output, DeflateFlush::Finish) {
            Ok(Status::StreamEnd) => {
                let len = usize::try_from(state.total_out()).unwrap_or(usize::MAX);
                Ok(self.scratch.below(len, limit))
            }
            Ok(Status::Ok | Status::BufError) => Ok(None),
            Err(DeflateError::MemError) => Err(CodecError::OutOfMemory {
                compression: Compression::Deflate,
            }),
            Err(error) => Err(CodecError::Library {
                compression: Compression::Deflate,
                reason: error.as_str(),
            }),
        }
    }
}

/// Our levels in the library's. Its 9 is what C zlib calls 6 in size, and QEMU writes C zlib's 6; nothing above it
/// shrinks further.
fn library_level(level: i32) -> i32 {
    match level {
        ..=4 => level,
        5 => 7,
        _ => 9,
    }
}
