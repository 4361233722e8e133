//! Decoding, frame by frame, each in one call straight into the output. So the output is the window: no frame can make
//! the library allocate, however large a window or a content it claims.

use zstd_safe::zstd_sys::ZSTD_ErrorCode::{ZSTD_error_dstSize_tooSmall, ZSTD_error_srcSize_wrong};
use zstd_safe::{DCtx, find_frame_compressed_size, get_error_name, is_error_kind};

use super::frame::{self, Frame};
use crate::{CodecError, Compression};

/// Frames per cluster, skippable and empty ones included. A writer in pieces of 512 bytes fills the largest cluster with
/// this many; an input made of nothing but frame headers could hold sixty times more.
const MAX_FRAMES: usize = 4096;

#[derive(Default)]
pub(crate) struct Decoder {
    context: Option<DCtx<'static>>,
}

impl Decoder {
    /// As many frames as it takes to fill `output`; the last one must end with it.
    pub(crate) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
        let wanted = output.len();
        let context = self.context()?;
        let (mut input, mut rest) = (input, output);
        let mut frames = 0;
        while !rest.is_empty() {
            let produced = wanted - rest.len();
            if input.is_empty() {
                return Err(CodecError::Short {
                    compression: Compression::Zstd,
                    produced,
                    wanted,
                });
            }
            if frames == MAX_FRAMES {
                return Err(CodecError::TooManyFrames { max: MAX_FRAMES });
            }
            frames += 1;
            let kind = frame::judge(input).map_err(|error| after(error, produced, wanted))?;
            let len = find_frame_compressed_size(input).map_err(|code| broken(code, wanted))?;
            let (frame, next) = input.split_at_checked(len).ok_or(CUT)?;
            if let Frame::Data = kind {
                let filled = context.decompress(rest, frame).map_err(|code| broken(code, wanted))?;
                rest = rest.get_mut(filled..).ok_or(OVERRUN)?;
            }
            input = next;
        }
        Ok(())
    }

    fn context(&mut self) -> Result<&mut DCtx<'static>, CodecError> {
        match &mut self.context {
            Some(context) => Ok(context),
            empty => {
                let context = DCtx::try_create().ok_or(CodecError::OutOfMemory {
                    compression: Compression::Zstd,
                })?;
                Ok(empty.insert(context))
            }
        }
    }
}

/// After the first frame, bytes that begin no frame are padding: the data is short, not garbage.
fn after(error: CodecError, produced: usize, wanted: usize) -> CodecError {
    match error {
        CodecError::Corrupt { compression, .. } if produced > 0 => CodecError::Short {
            compression,
            produced,
            wanted,
        },
        error => error,
    }
}

fn broken(code: usize, wanted: usize) -> CodecError {
    if is_error_kind(code, ZSTD_error_dstSize_tooSmall) {
        CodecError::Long {
            compression: Compression::Zstd,
            wanted,
        }
    } else if is_error_kind(code, ZSTD_error_srcSize_wrong) {
        CUT
    } else {
        CodecError::Corrupt {
            compression: Compression::Zstd,
            reason: get_error_name(code),
        }
    }
}

const CUT: CodecError = CodecError::Corrupt {
    compression: Compression::Zstd,
    reason: "the input ends inside a frame",
};
const OVERRUN: CodecError = CodecError::Library {
    compression: Compression::Zstd,
    reason: "reported more bytes than there was room for",
};
