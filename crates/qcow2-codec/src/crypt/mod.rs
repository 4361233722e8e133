//! Ciphers over sectors of 512 bytes, keys from passwords, and the anti-forensic split of LUKS.
//!
//! Names are those of QEMU's options. What holds a key wipes it when it is dropped and prints none of it.

mod error;
mod hash;
mod hidden;
mod iv;
mod kdf;
mod modes;
mod rounds;
mod sector;
mod split;
mod stack;
mod tweaks;
mod twofish;

pub use error::CryptError;
pub use hash::HashAlgorithm;
pub use kdf::pbkdf2;
pub use sector::SectorCipher;
pub use split::{merge, split};
pub use subtle::ConstantTimeEq;
pub use zeroize::{Zeroize, Zeroizing};

/// Bytes that are encrypted at a time, with an initialisation vector of their own.
pub const SECTOR: usize = 512;

/// A block cipher with the length of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum CipherAlgorithm {
    Aes128,
    Aes192,
    Aes256,
    Cast5_128,
    Serpent128,
    Serpent192,
    Serpent256,
    Twofish128,
    Twofish192,
    Twofish256,
}

impl CipherAlgorithm {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::Aes128,
        Self::Aes192,
        Self::Aes256,
        Self::Cast5_128,
        Self::Serpent128,
        Self::Serpent192,
        Self::Serpent256,
        Self::Twofish128,
        Self::Twofish192,
        Self::Twofish256,
    ];

    /// As in `cipher-alg`: `aes-256`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "aes-128",
            Self::Aes192 => "aes-192",
            Self::Aes256 => "aes-256",
            Self::Cast5_128 => "cast5-128",
            Self::Serpent128 => "serpent-128",
            Self::Serpent192 => "serpent-192",
            Self::Serpent256 => "serpent-256",
            Self::Twofish128 => "twofish-128",
            Self::Twofish192 => "twofish-192",
            Self::Twofish256 => "twofish-256",
        }
    }

    /// The cipher without the length of its key, as a LUKS header has it: `aes`.
    pub fn family(self) -> &'static str {
        self.name().split('-').next().unwrap_or_default()
    }

    /// The one of a family that takes keys of `bytes` bytes.
    pub fn with_key(family: &str, bytes: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.family() == family && known.key_len() == bytes)
    }

    /// Bytes of its key.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128 | Self::Cast5_128 | Self::Serpent128 | Self::Twofish128 => 16,
            Self::Aes192 | Self::Serpent192 | Self::Twofish192 => 24,
            Self::Aes256 | Self::Serpent256 | Self::Twofish256 => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Cast5_128 => 8,
            _ => 16,
        }
    }
}

/// How blocks of a sector depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum CipherMode {
    Ecb,
    Cbc,
    Xts,
}

impl CipherMode {
    /// As in `cipher-mode`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ecb => "ecb",
            Self::Cbc => "cbc",
            Self::Xts => "xts",
        }
    }

    /// The mode of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ecb, Self::Cbc, Self::Xts]
            .into_iter()
            .find(|known| known.name() == name)
    }
}

/// What a sector's number becomes before it is mixed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IvGenerator {
    /// Its low 32 bits.
    Plain,
    /// All 64 bits.
    Plain64,
    /// Encrypted with the hash of the key.
    Essiv(HashAlgorithm),
}

impl IvGenerator {
    /// As in `ivgen-alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv(_) => "essiv",
        }
    }
}

/// All that a cipher over sectors is, but for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CipherSpec {
    /// The cipher.
    pub algorithm: CipherAlgorithm,
    /// Its mode.
    pub mode: CipherMode,
    /// Its initialisation vectors.
    pub iv: IvGenerator,
}

impl CipherSpec {
    /// What qcow2's method 1 uses: the key is 16 bytes of the password, the sector counts in the guest.
    pub const LEGACY_AES: Self = Self {
        algorithm: CipherAlgorithm::Aes128,
        mode: CipherMode::Cbc,
        iv: IvGenerator::Plain64,
    };

    /// Bytes of the key: two for XTS.
    pub const fn key_len(&self) -> usize {
        let one = self.algorithm.key_len();
        match self.mode {
            CipherMode::Xts => one * 2,
            _ => one,
        }
    }

    /// The cipher of a LUKS header: `aes`, `xts-plain64` and the length of its key in bytes.
    ///
    /// # Errors
    /// [`CryptError::Unsupported`] with the name that is not known here.
    pub fn parse(cipher: &str, mode: &str, key_bytes: usize) -> Result<Self, CryptError> {
        let unsupported = |what, name: &str| CryptError::Unsupported {
            what,
            name: name.to_owned(),
        };
        let (mode_name, iv_name) = mode.split_once('-').ok_or_else(|| unsupported("cipher mode", mode))?;
        let mode = CipherMode::named(mode_name).ok_or_else(|| unsupported("cipher mode", mode_name))?;
        let one = if mode == CipherMode::Xts {
            key_bytes / 2
        } else {
            key_bytes
        };
        let algorithm = CipherAlgorithm::with_key(cipher, one);
        let whole = mode != CipherMode::Xts || key_bytes.is_multiple_of(2);
        let algorithm = algorithm
            .filter(|_| whole)
            .ok_or_else(|| unsupported("cipher", &format!("{cipher} with a key of {key_bytes} bytes")))?;
        let iv = match iv_name.split_once(':') {
            None if iv_name == "plain" => IvGenerator::Plain,
            None if iv_name == "plain64" => IvGenerator::Plain64,
            Some(("essiv", hash)) => {
                IvGenerator::Essiv(HashAlgorithm::named(hash).ok_or_else(|| unsupported("hash", hash))?)
            }
            _ => return Err(unsupported("IV generator", iv_name)),
        };
        let spec = Self { algorithm, mode, iv };
        spec.check()?;
        Ok(spec)
    }

    /// The mode as a LUKS header has it: `xts-plain64`, `cbc-essiv:sha256`.
    pub fn mode_name(&self) -> String {
        match self.iv {
            IvGenerator::Essiv(hash) => format!("{}-essiv:{}", self.mode.name(), hash.name()),
            iv => format!("{}-{}", self.mode.name(), iv.name()),
        }
    }

    /// Refuses what does not go together: XTS with blocks of 8 bytes, ESSIV with a hash that is no key of the cipher.
    ///
    /// # Errors
    /// [`CryptError::Unsupported`].
    pub fn check(&self) -> Result<(), CryptError> {
        if self.mode == CipherMode::Xts && self.algorithm.block_len() != 16 {
            return Err(CryptError::Unsupported {
                what: "cipher mode",
                name: format!("xts with {}", self.algorithm.name()),
            });
        }
        if let IvGenerator::Essiv(hash) = self.iv
            && self.mode != CipherMode::Ecb
        {
            iv::essiv_algorithm(self.algorithm, hash)?;
        }
        Ok(())
    }
}

/// Fills `out` with the system's random bytes.
///
/// # Errors
/// [`CryptError::Random`] if it has none.
pub fn random(out: &mut [u8]) -> Result<(), CryptError> {
    getrandom::fill(out).map_err(|_| CryptError::Random)
}
