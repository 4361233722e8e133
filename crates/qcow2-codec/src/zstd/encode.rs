//! Encoding: one frame with its content size and no checksum, as QEMU writes it.

use std::ops::RangeInclusive;

use zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_memory_allocation;
use zstd_safe::{CCtx, CParameter, compress_bound, get_error_name, is_error_kind};

use crate::scratch::Scratch;
use crate::{CodecError, Compression};

/// The library goes down to -131072, in ever smaller steps towards a copy; -7 is where it has become faster than useful.
pub(crate) const LEVELS: RangeInclusive<i32> = -7..=22;
const DEFAULT_LEVEL: i32 = 3;

pub(crate) struct Encoder {
    context: CCtx<'static>,
    scratch: Scratch,
}

impl Encoder {
    /// `level` must be one of [`LEVELS`]; `None` is the default.
    pub(crate) fn new(level: Option<i32>) -> Result<Self, CodecError> {
        let mut context = CCtx::try_create().ok_or(CodecError::OutOfMemory {
            compression: Compression::Zstd,
        })?;
        for parameter in [
            CParameter::CompressionLevel(level.unwrap_or(DEFAULT_LEVEL)),
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(false),
        ] {
            context.set_parameter(parameter).map_err(failed)?;
        }
        Ok(Self {
            context,
            scratch: Scratch::default(),
        })
    }

    pub(crate) fn encode(&mut self, input: &[u8], limit: usize) -> Result<Option<&[u8]>, CodecError> {
        // Always the same, full room: zstd chooses other blocks when space runs out, and the bytes must not depend on
        // the limit.
        let room = compress_bound(input.len());
        let output = self
            .scratch
            .room(room, Compression::Zstd)?
            .get_mut(..room)
            .unwrap_or_default();
        let len = self.context.compress2(output, input).map_err(failed)?;
        Ok(self.scratch.below(len, limit))
    }
}

fn failed(code: usize) -> CodecError {
    if is_error_kind(code, ZSTD_error_memory_allocation) {
        CodecError::OutOfMemory {
            compression: Compression::Zstd,
        }
    } else {
        CodecError::Library {
            compression: Compression::Zstd,
            reason: get_error_name(code),
        }
    }
}
