use crate::{CodecError, Compression, deflate, lz4, zstd};

/// Turns compressed clusters back into clusters. One per worker thread, reused; each compression's context is made when
/// it is first needed.
#[derive(Default)]
pub struct Decoder {
    inflate: deflate::Inflate,
    zstd: zstd::Decoder,
}

impl Decoder {
    /// A decoder that takes the fastest library for each compression.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder that inflates in memory-safe Rust only, for images that nobody vouches for. Deflate is about a quarter
    /// slower; the other compressions are the same as in [`Decoder::new`] (LZ4 is safe Rust, zstd is the C library).
    pub fn memory_safe() -> Self {
        Self {
            inflate: deflate::Inflate::memory_safe(),
            ..Self::default()
        }
    }

    /// Fills `output`, one cluster, from `input`.
    ///
    /// The output is filled exactly or it is an error. What follows in `input` is ignored, since compressed clusters
    /// are padded to sectors, with whatever happened to be there. A deflate stream may even go on after the output is
    /// full, or lack its end mark; a zstd frame must end where the output ends, and an LZ4 block too.
    ///
    /// # Errors
    /// [`CodecError::Short`], [`CodecError::Long`], [`CodecError::Corrupt`] and, for zstd, [`CodecError::Window`],
    /// [`CodecError::Dictionary`] and [`CodecError::TooManyFrames`] say what is wrong with `input`;
    /// [`CodecError::OutOfMemory`] that a context could not be made.
    pub fn decode(&mut self, compression: Compression, input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
        match compression {
            Compression::Deflate => self.inflate.decode(input, output),
            Compression::Zstd => self.zstd.decode(input, output),
            Compression::Lz4 => lz4::decode(input, output),
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}
