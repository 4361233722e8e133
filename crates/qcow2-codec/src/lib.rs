//! Bytes to bytes: deflate, zstd and LZ4 clusters, and the all-zero test.
#![deny(unsafe_code)]

/// Why bytes could not be decoded, or a compressor not be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// The stream ended before the output was full.
    Short {
        /// Bytes that came out.
        produced: usize,
        /// Bytes that were wanted.
        wanted: usize,
    },
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Short { produced, wanted } = self;
        write!(f, "the stream ends after {produced} of {wanted} bytes")
    }
}

impl std::error::Error for CodecError {}
