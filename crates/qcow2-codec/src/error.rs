use std::fmt;

use crate::Compression;

/// Why bytes could not be decoded, or an encoder could not be made or used.
///
/// After a failed decode the output holds unspecified bytes: parts of the cluster, or what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// The input breaks the rules of its compression, a checksum included.
    Corrupt {
        /// The compression the input was read as.
        compression: Compression,
        /// Which rule, in the words of whoever found it.
        reason: &'static str,
    },
    /// The input ends, or says it ends, before the output is full.
    Short {
        /// The compression the input was read as.
        compression: Compression,
        /// Bytes that came out.
        produced: usize,
        /// Bytes that should have: the length of the output.
        wanted: usize,
    },
    /// The input holds more than the output, and its compression marks where it ends (zstd and LZ4; a deflate stream may
    /// go on).
    Long {
        /// The compression the input was read as.
        compression: Compression,
        /// The length of the output.
        wanted: usize,
    },
    /// A zstd frame asks for a window beyond 2^27 bytes, zstd's own limit for input it has no reason to trust.
    Window {
        /// Base-2 logarithm of the window, rounded up.
        log: u32,
        /// The largest one that is taken.
        max: u32,
    },
    /// A zstd frame needs a dictionary, and there is none.
    Dictionary {
        /// The dictionary's id in the frame header.
        id: u32,
    },
    /// More zstd frames, empty and skippable ones included, than any writer has a use for.
    TooManyFrames {
        /// How many are taken.
        max: usize,
    },
    /// A level that this compression does not have.
    LevelOutOfRange {
        /// The compression asked for.
        compression: Compression,
        /// The level asked for.
        level: i32,
        /// The lowest there is.
        min: i32,
        /// The highest there is.
        max: i32,
    },
    /// A level for a compression that has none (LZ4).
    NoLevels {
        /// The compression asked for.
        compression: Compression,
    },
    /// The memory for a context or for the encoder's buffer is not to be had.
    OutOfMemory {
        /// The compression asked for.
        compression: Compression,
    },
    /// A library refused what it must not refuse: a fault of this program or of the library, never of the input.
    Library {
        /// The compression asked for.
        compression: Compression,
        /// The library's own words.
        reason: &'static str,
    },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { compression, reason } => write!(f, "corrupt {compression} data: {reason}"),
            Self::Short {
                compression,
                produced,
                wanted,
            } => {
                write!(f, "{compression} data ends after {produced} of {wanted} bytes")
            }
            Self::Long { compression, wanted } => write!(f, "{compression} data holds more than {wanted} bytes"),
            Self::Window { log, max } => write!(f, "zstd frame wants a window of 2^{log} bytes, more than 2^{max}"),
            Self::Dictionary { id } => write!(f, "zstd frame needs dictionary {id:#x}"),
            Self::TooManyFrames { max } => write!(f, "zstd data has more than {max} frames"),
            Self::LevelOutOfRange {
                compression,
                level,
                min,
                max,
            } => {
                write!(f, "{compression} has levels {min} to {max}, not {level}")
            }
            Self::NoLevels { compression } => write!(f, "{compression} has no levels"),
            Self::OutOfMemory { compression } => write!(f, "no memory for {compression}"),
            Self::Library { compression, reason } => write!(f, "{compression} library failed: {reason}"),
        }
    }
}

impl std::error::Error for CodecError {}
