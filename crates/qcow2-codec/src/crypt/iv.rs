//! Initialisation vectors: what a sector's number becomes.

use zeroize::Zeroizing;

use super::modes::{OneBlock, keyed};
use super::{CipherAlgorithm, CryptError, HashAlgorithm, IvGenerator};

/// Makes the vectors of a cipher's sectors.
pub(super) enum Iv {
    Plain,
    Plain64,
    Essiv(Box<dyn OneBlock>),
}

impl Iv {
    pub(super) fn new(iv: IvGenerator, algorithm: CipherAlgorithm, key: &[u8]) -> Result<Self, CryptError> {
        let hash = match iv {
            IvGenerator::Plain => return Ok(Self::Plain),
            IvGenerator::Plain64 => return Ok(Self::Plain64),
            IvGenerator::Essiv(hash) => hash,
        };
        let algorithm = essiv_algorithm(algorithm, hash)?;
        let mut salt = Zeroizing::new(vec![0; hash.digest_len()]);
        hash.digest(&[key], &mut salt);
        Ok(Self::Essiv(keyed(algorithm, &salt)?))
    }

    /// The vector of a sector; `out` is a block, and begins as zeros.
    pub(super) fn fill(&self, sector: u64, out: &mut [u8]) {
        let number = match self {
            Self::Plain => sector & u64::from(u32::MAX),
            Self::Plain64 | Self::Essiv(_) => sector,
        };
        for (to, from) in out.iter_mut().zip(number.to_le_bytes()) {
            *to = from;
        }
        if let Self::Essiv(cipher) = self {
            cipher.encrypt(out);
        }
    }
}

/// The cipher that makes the vectors: of the same family, with the digest as its key.
pub(super) fn essiv_algorithm(algorithm: CipherAlgorithm, hash: HashAlgorithm) -> Result<CipherAlgorithm, CryptError> {
    let known = CipherAlgorithm::with_key(algorithm.family(), hash.digest_len());
    known
        .filter(|known| known.block_len() == 16)
        .ok_or_else(|| CryptError::Unsupported {
            what: "IV generator",
            name: format!("essiv:{} with {}", hash.name(), algorithm.name()),
        })
}
