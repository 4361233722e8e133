//! LZ4: a 4-byte big-endian length, then one LZ4 block of that length. `docs/lz4.md` is the specification.

use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use crate::scratch::Scratch;
use crate::{CodecError, Compression};

/// Bytes of the length before the block. An LZ4 block does not say where it ends, and the sectors' padding follows.
const PREFIX: usize = 4;

/// Inputs this long and longer cannot be indexed with 16 bits in lz4_flex's hash table.
const LARGE: usize = u16::MAX as usize;

pub(crate) fn decode(input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
    let (prefix, rest) = input.split_first_chunk::<PREFIX>().ok_or(CUT)?;
    let len = usize::try_from(u32::from_be_bytes(*prefix)).map_err(|_| CUT)?;
    let block = rest.get(..len).ok_or(CUT)?;
    let wanted = output.len();
    match decompress_into(block, output) {
        Ok(produced) if produced == wanted => Ok(()),
        Ok(produced) => Err(CodecError::Short {
            compression: Compression::Lz4,
            produced,
            wanted,
        }),
        Err(DecompressError::OutputTooSmall { .. }) => Err(CodecError::Long {
            compression: Compression::Lz4,
            wanted,
        }),
        Err(error) => Err(corrupt(reason(&error))),
    }
}

#[derive(Default)]
pub(crate) struct Encoder {
    /// One table for each side of [`LARGE`], each made when first needed: which one is used shows in the bytes, so it must
    /// depend on this input alone and not on earlier ones.
    small: Option<CompressTable>,
    large: Option<CompressTable>,
    scratch: Scratch,
}

impl Encoder {
    pub(crate) fn encode(&mut self, input: &[u8], limit: usize) -> Result<Option<&[u8]>, CodecError> {
        let table = if input.len() < LARGE {
            self.small.get_or_insert_with(CompressTable::small)
        } else {
            self.large.get_or_insert_with(CompressTable::large)
        };
        let room = PREFIX + get_maximum_output_size(input.len());
        let output = self.scratch.room(room, Compression::Lz4)?;
        let (prefix, block) = output.split_first_chunk_mut::<PREFIX>().ok_or(NO_ROOM)?;
        let len = compress_into_with_table(input, block, table).map_err(|_| NO_ROOM)?;
        *prefix = u32::try_from(len).map_err(|_| NO_ROOM)?.to_be_bytes();
        Ok(self.scratch.below(PREFIX + len, limit))
    }
}

fn reason(error: &DecompressError) -> &'static str {
    match error {
        DecompressError::LiteralOutOfBounds => "literals reach beyond the block",
        DecompressError::ExpectedAnotherByte => "the block ends inside a sequence",
        DecompressError::OffsetZero => "a match with offset 0",
        DecompressError::OffsetOutOfBounds => "a match before the start of the data",
        _ => "not an LZ4 block",
    }
}

const CUT: CodecError = corrupt("the block reaches beyond the input");
const NO_ROOM: CodecError = CodecError::Library {
    compression: Compression::Lz4,
    reason: "the room it asked for does not suffice",
};

const fn corrupt(reason: &'static str) -> CodecError {
    CodecError::Corrupt {
        compression: Compression::Lz4,
        reason,
    }
}
