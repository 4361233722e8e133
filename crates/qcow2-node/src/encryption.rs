//! Keys on their way in, and what an encrypted image says of itself.

use std::sync::Arc;

use napi::Env;
use qcow2_engine::crypt::{CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvGenerator};
use qcow2_engine::{Error, LuksOptions, LuksVolume, NewEncryption, Secret};

use crate::call::accept;
use crate::handles::{Handle, Resource};
use crate::numbers::whole;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::raw::Bytes;
use crate::words::unknown;

/// How a new image is encrypted. Names are those of QEMU's options.
#[napi(object, object_to_js = false)]
pub struct EncryptionSpec {
    /// `luks`, or `aes` for the old method.
    pub method: String,
    /// The password; copied, and the copy is wiped.
    #[napi(ts_type = "Uint8Array")]
    pub secret: Bytes,
    /// Such as `aes-256`.
    pub cipher: String,
    /// Such as `xts`.
    pub cipher_mode: String,
    /// Such as `plain64`.
    pub iv_generator: String,
    /// The hash of `essiv`.
    pub iv_hash: Option<String>,
    /// Such as `sha256`.
    pub hash: String,
    /// Milliseconds that one try of a password is to take.
    pub iter_time: f64,
    /// The header is to be a file of its own.
    pub detached_header: Option<bool>,
}

/// What a LUKS header says.
#[napi(object, object_from_js = false)]
pub struct LuksFacts {
    /// Such as `aes-256`.
    pub cipher: String,
    /// Such as `xts`.
    pub cipher_mode: String,
    /// Such as `plain64`.
    pub iv_generator: String,
    /// The hash of `essiv`.
    pub iv_hash: Option<String>,
    /// Such as `sha256`.
    pub hash: String,
    /// As the header has it.
    pub uuid: String,
    /// Bytes from the begin of the header to its payload.
    pub payload_offset: f64,
    /// Iterations of the key's digest.
    pub digest_iterations: f64,
    /// The header is in a file of its own.
    pub detached_header: bool,
    /// All eight.
    pub slots: Vec<KeySlotFacts>,
}

/// What a key slot says.
#[napi(object, object_from_js = false)]
pub struct KeySlotFacts {
    /// Whether it holds the key.
    pub active: bool,
    /// Iterations of its derivation.
    pub iterations: f64,
    /// Bytes from the begin of the header to its material.
    pub key_offset: f64,
}

impl LuksFacts {
    pub(crate) fn of(volume: &LuksVolume, detached_header: bool) -> Self {
        let LuksVolume { header, spec, hash, .. } = volume;
        let sector = qcow2_format::luks::SECTOR as f64;
        Self {
            cipher: spec.algorithm.name().to_owned(),
            cipher_mode: spec.mode.name().to_owned(),
            iv_generator: spec.iv.name().to_owned(),
            iv_hash: match spec.iv {
                IvGenerator::Essiv(hash) => Some(hash.name().to_owned()),
                _ => None,
            },
            hash: hash.name().to_owned(),
            uuid: header.uuid.clone(),
            payload_offset: f64::from(header.payload) * sector,
            digest_iterations: f64::from(header.digest_iterations),
            detached_header,
            slots: header
                .slots
                .iter()
                .map(|slot| KeySlotFacts {
                    active: slot.active,
                    iterations: f64::from(slot.iterations),
                    key_offset: f64::from(slot.material) * sector,
                })
                .collect(),
        }
    }
}

/// Gives an encrypted layer its key, which may take as long as its header asks for. Nobody else may be using the layer; failing closes it. `legacy`: the
/// old method is meant. Completes with nothing.
#[napi(catch_unwind)]
pub fn unlock_layer(
    env: Env,
    id: CallId,
    layer: Handle,
    #[napi(ts_arg_type = "Uint8Array")] secret: Bytes,
    legacy: bool,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let secret = Secret::new(secret.0);
        let mut lent = call.borrow_layer(layer)?;
        call.run(Lane::Long, move |job| {
            lent.unlock(&secret, legacy, job)?;
            Outcome::value(move |_, instance, values| {
                instance
                    .handles
                    .borrow_mut()
                    .give_back(layer, Resource::Layer(Arc::new(lent)));
                values.add(true)
            })
        })
    })
}

impl EncryptionSpec {
    pub(crate) fn accept(self) -> Result<NewEncryption, Error> {
        let secret = Secret::new(self.secret.0);
        if self.method == "aes" {
            return Ok(NewEncryption { secret, luks: None });
        }
        if self.method != "luks" {
            return Err(unknown("encryption", &self.method));
        }
        let hash = |name: &str| HashAlgorithm::named(name).ok_or_else(|| unsupported("hash", name));
        let algorithm = CipherAlgorithm::ALL
            .into_iter()
            .find(|known| known.name() == self.cipher);
        let iv = match (self.iv_generator.as_str(), &self.iv_hash) {
            ("plain", None) => IvGenerator::Plain,
            ("plain64", None) => IvGenerator::Plain64,
            ("essiv", name) => IvGenerator::Essiv(hash(name.as_deref().unwrap_or("sha256"))?),
            (name, _) => return Err(unsupported("IV generator", name)),
        };
        Ok(NewEncryption {
            secret,
            luks: Some(LuksOptions {
                cipher: CipherSpec {
                    algorithm: algorithm.ok_or_else(|| unsupported("cipher", &self.cipher))?,
                    mode: CipherMode::named(&self.cipher_mode)
                        .ok_or_else(|| unsupported("cipher mode", &self.cipher_mode))?,
                    iv,
                },
                hash: hash(&self.hash)?,
                detached: self.detached_header == Some(true),
                iter_time: whole("iterTime", self.iter_time)?,
            }),
        })
    }
}

fn unsupported(what: &str, name: &str) -> Error {
    Error::State {
        code: "CIPHER_UNSUPPORTED",
        path: None,
        reason: format!("the {what} {name:?} is not supported"),
    }
}
