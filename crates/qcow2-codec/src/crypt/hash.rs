//! Hashes by name.

use hmac::digest::{Digest, FixedOutputReset};
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};

/// A hash that LUKS headers name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum HashAlgorithm {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
}

impl HashAlgorithm {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Ripemd160,
    ];

    /// As in `hash-alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Ripemd160 => "ripemd160",
        }
    }

    /// The hash of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Bytes that are compressed at a time.
    pub(super) const fn block_len(self) -> usize {
        match self {
            Self::Sha384 | Self::Sha512 => 128,
            _ => 64,
        }
    }

    /// The digest of `parts`, one behind the other; as much of it as `out` has room for.
    pub(super) fn digest(self, parts: &[&[u8]], out: &mut [u8]) {
        fn run<D: Digest + FixedOutputReset>(parts: &[&[u8]], out: &mut [u8]) {
            let mut hash = D::new();
            for part in parts {
                Digest::update(&mut hash, part);
            }
            for (to, from) in out.iter_mut().zip(hash.finalize()) {
                *to = from;
            }
        }
        match self {
            Self::Sha1 => run::<Sha1>(parts, out),
            Self::Sha224 => run::<Sha224>(parts, out),
            Self::Sha256 => run::<Sha256>(parts, out),
            Self::Sha384 => run::<Sha384>(parts, out),
            Self::Sha512 => run::<Sha512>(parts, out),
            Self::Ripemd160 => run::<Ripemd160>(parts, out),
        }
    }
}
