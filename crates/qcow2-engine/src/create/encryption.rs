//! Encryption of a new image.

use std::sync::Arc;

use qcow2_format::EncryptionMethod;

use crate::error::Result;
use crate::layer::{Count, GuestCipher};
use crate::luks::{LuksOptions, Secret, legacy_cipher, new_volume};
use crate::progress::JobContext;
use crate::sink::Encryption;

/// How a new image is encrypted.
#[derive(Clone, Debug)]
pub struct NewEncryption {
    /// The password that opens it.
    pub secret: Secret,
    /// The LUKS volume; none for the old AES-CBC method, which only programs that know no better need.
    pub luks: Option<LuksOptions>,
}

impl NewEncryption {
    pub(super) fn method(&self) -> EncryptionMethod {
        match self.luks {
            Some(_) => EncryptionMethod::Luks,
            None => EncryptionMethod::Aes,
        }
    }

    /// Whether the header is to be a file of its own.
    pub(super) fn is_detached(&self) -> bool {
        self.luks.as_ref().is_some_and(|options| options.detached)
    }

    /// Makes the key.
    pub(super) fn make(&self, job: &JobContext) -> Result<Encryption> {
        let Some(options) = &self.luks else {
            let cipher = GuestCipher::new(legacy_cipher(&self.secret)?, Count::Guest);
            return Ok(Encryption {
                header: Vec::new(),
                length: 0,
                cipher: Arc::new(cipher),
            });
        };
        let new = new_volume(&self.secret, options, job)?;
        Ok(Encryption {
            header: new.bytes,
            length: new.length,
            cipher: Arc::new(GuestCipher::new(new.cipher, Count::Host)),
        })
    }
}
