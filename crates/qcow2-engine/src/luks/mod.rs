//! Encryption of guest data: LUKS1 volumes, keys, and the cipher that a layer reads and writes through.

mod create;
mod secret;
mod slots;
mod unlock;
mod volume;

pub use create::LuksOptions;
pub(crate) use create::new_volume;
pub use secret::Secret;
pub use slots::{KeySlotChange, NewKeySlot};
pub(crate) use slots::{SlotPlan, apply as apply_slots, plan as plan_slots};
pub(crate) use unlock::unlock;
pub use volume::LuksVolume;

use qcow2_codec::crypt::{CipherSpec, CryptError, SectorCipher};

use crate::error::{Error, Result};

/// The cipher of qcow2's legacy method: its key is the first 16 bytes of the password, zeros behind it.
pub(crate) fn legacy_cipher(secret: &Secret) -> Result<SectorCipher> {
    let mut key = qcow2_codec::crypt::Zeroizing::new([0u8; 16]);
    for (to, from) in key.iter_mut().zip(secret.bytes()) {
        *to = *from;
    }
    SectorCipher::new(&CipherSpec::LEGACY_AES, &*key).map_err(|error| failed(None, error))
}

/// The cipher of a volume's payload.
pub(crate) fn cipher(volume: &LuksVolume, key: &Secret) -> Result<SectorCipher> {
    SectorCipher::new(&volume.spec, key.bytes()).map_err(|error| failed(None, error))
}

/// What a cipher says, as an error of the image.
pub(crate) fn failed(path: Option<std::path::PathBuf>, error: CryptError) -> Error {
    match error {
        CryptError::Stopped => Error::Cancelled,
        CryptError::Random => Error::Io {
            operation: "getrandom",
            path: None,
            source: std::io::ErrorKind::Other.into(),
        },
        CryptError::Unsupported { .. } => Error::State {
            code: "CIPHER_UNSUPPORTED",
            path,
            reason: error.to_string(),
        },
        _ => Error::Internal {
            message: error.to_string(),
        },
    }
}
