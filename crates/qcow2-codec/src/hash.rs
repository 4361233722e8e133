//! The hashes that digests are made of.

use sha2::Digest as _;

/// What a hash function answers: 256 bits of whichever function.
pub type Hash = [u8; 32];

/// Which hash function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestAlgorithm {
    /// BLAKE3 with its 32 bytes of output, without a key.
    #[default]
    Blake3,
    /// SHA-256 (FIPS 180-4).
    Sha256,
}

impl DigestAlgorithm {
    /// As digests spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }

    /// The function of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Blake3, Self::Sha256]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// The hash of `parts`, one behind the other.
    pub fn hash(self, parts: &[&[u8]]) -> Hash {
        let mut hasher = Hasher::new(self);
        for part in parts {
            hasher.update(part);
        }
        hasher.finish()
    }
}

/// A hash on its way.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Blake3(Box<blake3::Hasher>),
    Sha256(sha2::Sha256),
}

impl Hasher {
    /// Of no bytes yet.
    pub fn new(algorithm: DigestAlgorithm) -> Self {
        Self(match algorithm {
            DigestAlgorithm::Blake3 => State::Blake3(Box::default()),
            DigestAlgorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
        })
    }

    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Blake3(hasher) => drop(hasher.update(bytes)),
            State::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// The hash of all of them; then it begins anew.
    pub fn finish(&mut self) -> Hash {
        match &mut self.0 {
            State::Blake3(hasher) => {
                let hash = *hasher.finalize().as_bytes();
                hasher.reset();
                hash
            }
            State::Sha256(hasher) => hasher.finalize_reset().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(hash: Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The input of BLAKE3's published vectors: the bytes 0 to 250, over and over.
    fn counted(length: usize) -> Vec<u8> {
        (0..251u8).cycle().take(length).collect()
    }

    #[test]
    fn the_published_vectors_come_out() {
        let blake3 = [
            (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
            (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
            (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
            (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
        ];
        for (length, expected) in blake3 {
            assert_eq!(
                hex(DigestAlgorithm::Blake3.hash(&[&counted(length)])),
                expected,
                "{length}"
            );
        }
        let sha256 = [
            ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (
                "abc",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
        ];
        for (text, expected) in sha256 {
            assert_eq!(
                hex(DigestAlgorithm::Sha256.hash(&[text.as_bytes()])),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn parts_make_no_difference_and_a_hasher_begins_anew() {
        let bytes = counted(100_000);
        for algorithm in [DigestAlgorithm::Blake3, DigestAlgorithm::Sha256] {
            let whole = algorithm.hash(&[&bytes]);
            let mut hasher = Hasher::new(algorithm);
            for _ in 0..2 {
                for part in bytes.chunks(4097) {
                    hasher.update(part);
                }
                assert_eq!(hasher.finish(), whole, "{algorithm:?}");
            }
            assert_eq!(DigestAlgorithm::named(algorithm.name()), Some(algorithm));
        }
        assert_eq!(DigestAlgorithm::named("md5"), None);
    }
}
