//! Bytes to bytes: the compressed clusters of an image, the all-zero test, and hashes.
//!
//! This crate knows nothing of qcow2. It turns one cluster's compressed bytes into exactly one cluster
//! ([`Decoder`]), one cluster into fewer bytes ([`Encoder`]), and says whether a cluster is nothing but zeros
//! ([`is_zero`]). Compressed bytes come from files that nobody vouches for, so a decoder's only outcomes are "exactly
//! the cluster" and a typed [`CodecError`]; it writes nowhere but into the output, and what it allocates does not
//! depend on what the bytes claim.
//!
//! A [`Decoder`] and an [`Encoder`] belong to one worker thread each and are reused: setting up a zstd context for every
//! cluster costs up to a quarter of the time.
#![deny(unsafe_code)]

pub mod crypt;
mod decoder;
mod deflate;
mod encoder;
mod error;
mod hash;
mod lz4;
mod scratch;
mod zero;
mod zstd;

pub use decoder::Decoder;
pub use encoder::{Encoder, level_range};
pub use error::CodecError;
pub use hash::{DigestAlgorithm, Hash, Hasher};
pub use zero::{first_nonzero, is_zero, zero_prefix};

/// Which compression a cluster uses. (The numbers that stand for them in a file are no business of this crate.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Raw deflate (RFC 1951), without a zlib or gzip wrapper.
    Deflate,
    /// One or more zstd frames (RFC 8878), without a dictionary.
    Zstd,
    /// A 4-byte big-endian length and one LZ4 block of that length (`docs/lz4.md`).
    Lz4,
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        })
    }
}
