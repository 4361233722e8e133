//! A cipher with its key, over sectors.

use std::fmt;

use super::hidden::Hidden;
use super::iv::Iv;
use super::modes::sectors;
use super::stack::{DEEP, SHALLOW, wiped};
use super::{CipherMode, CipherSpec, CryptError, SECTOR};

/// A cipher with its key. Shared between threads; its key schedule is wiped when it is dropped.
pub struct SectorCipher {
    spec: CipherSpec,
    sectors: Hidden,
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorCipher")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl SectorCipher {
    /// The cipher with that key.
    ///
    /// # Errors
    /// [`CryptError::KeyLength`], [`CryptError::Unsupported`].
    pub fn new(spec: &CipherSpec, key: &[u8]) -> Result<Self, CryptError> {
        spec.check()?;
        if key.len() != spec.key_len() {
            return Err(CryptError::KeyLength {
                length: key.len(),
                wanted: spec.key_len(),
            });
        }
        let sectors = wiped::<DEEP, _>(|| {
            let iv = match spec.mode {
                CipherMode::Ecb => None,
                _ => Some(Iv::new(spec.iv, spec.algorithm, key)?),
            };
            sectors(spec.algorithm, spec.mode, iv, key)
        })?;
        Ok(Self { spec: *spec, sectors })
    }

    /// What it is.
    pub fn spec(&self) -> &CipherSpec {
        &self.spec
    }

    /// Encrypts whole sectors in place; `first` is the number of the first, the others count on.
    ///
    /// # Errors
    /// [`CryptError::NotSectors`].
    pub fn encrypt(&self, first: u64, bytes: &mut [u8]) -> Result<(), CryptError> {
        whole(bytes)?;
        wiped::<SHALLOW, _>(|| self.sectors.encrypt(first, bytes));
        Ok(())
    }

    /// Decrypts what [`SectorCipher::encrypt`] made.
    ///
    /// # Errors
    /// [`CryptError::NotSectors`].
    pub fn decrypt(&self, first: u64, bytes: &mut [u8]) -> Result<(), CryptError> {
        whole(bytes)?;
        wiped::<SHALLOW, _>(|| self.sectors.decrypt(first, bytes));
        Ok(())
    }
}

fn whole(bytes: &[u8]) -> Result<(), CryptError> {
    if bytes.len().is_multiple_of(SECTOR) {
        return Ok(());
    }
    Err(CryptError::NotSectors { length: bytes.len() })
}
