use std::ops::RangeInclusive;

use crate::{CodecError, Compression, deflate, lz4, zstd};

/// Turns clusters into compressed clusters. One per worker thread, reused.
///
/// The same input at the same level becomes the same bytes, whatever the encoder did before and whatever the limit, so
/// that an image does not depend on how its clusters were dealt out to threads.
pub struct Encoder {
    kind: Kind,
}

enum Kind {
    Deflate(deflate::Deflate),
    Zstd(zstd::Encoder),
    Lz4(Box<lz4::Encoder>),
}

/// The levels of a compression, `None` if it has none. More means smaller and slower.
///
/// Deflate: 1 to 9, of which 1 to 3 are fast, 4 to 6 the default, not larger than QEMU's, and 7 to 9 small. zstd: -7 to 22, by default 3, as QEMU's; 0 is the
/// default too. LZ4 has none.
pub fn level_range(compression: Compression) -> Option<RangeInclusive<i32>> {
    match compression {
        Compression::Deflate => Some(deflate::LEVELS),
        Compression::Zstd => Some(zstd::LEVELS),
        Compression::Lz4 => None,
    }
}

impl Encoder {
    /// An encoder for one compression at one level; `None` is the default level.
    ///
    /// # Errors
    /// [`CodecError::LevelOutOfRange`] outside [`level_range`], [`CodecError::NoLevels`] for a compression without,
    /// [`CodecError::OutOfMemory`].
    pub fn new(compression: Compression, level: Option<i32>) -> Result<Self, CodecError> {
        if let Some(level) = level {
            let range = level_range(compression).ok_or(CodecError::NoLevels { compression })?;
            if !range.contains(&level) {
                let (min, max) = range.into_inner();
                return Err(CodecError::LevelOutOfRange {
                    compression,
                    level,
                    min,
                    max,
                });
            }
        }
        let kind = match compression {
            Compression::Deflate => Kind::Deflate(deflate::Deflate::new(level)?),
            Compression::Zstd => Kind::Zstd(zstd::Encoder::new(level)?),
            Compression::Lz4 => Kind::Lz4(Box::default()),
        };
        Ok(Self { kind })
    }

    /// The compressed form of `input`, one cluster, if it is shorter than `limit` bytes. `None` says that it is not, and
    /// that the cluster is better stored as it is.
    ///
    /// The bytes lie in a buffer of the encoder and stay until its next use.
    ///
    /// # Errors
    /// [`CodecError::OutOfMemory`]; [`CodecError::Library`] if a library refuses an input it must take.
    pub fn encode<'a>(&'a mut self, input: &[u8], limit: usize) -> Result<Option<&'a [u8]>, CodecError> {
        match &mut self.kind {
            Kind::Deflate(encoder) => encoder.encode(input, limit),
            Kind::Zstd(encoder) => encoder.encode(input, limit),
            Kind::Lz4(encoder) => encoder.encode(input, limit),
        }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Deflate(_) => Compression::Deflate,
            Kind::Zstd(_) => Compression::Zstd,
            Kind::Lz4(_) => Compression::Lz4,
        };
        f.debug_struct("Encoder")
            .field("compression", &kind)
            .finish_non_exhaustive()
    }
}
