//! New LUKS1 headers, laid out as QEMU and cryptsetup do.

use std::time::{Duration, Instant};

use qcow2_codec::crypt::{
    CipherAlgorithm, CipherMode, CipherSpec, CryptError, HashAlgorithm, IvGenerator, SECTOR, SectorCipher, pbkdf2,
    random, split,
};
use qcow2_format::HostOffset;
use qcow2_format::luks::{self, KeySlot, LuksHeader};

use super::unlock::slot_cipher;
use super::{LuksVolume, Secret, failed};
use crate::error::{Error, Result};
use crate::progress::JobContext;

/// Fewer iterations than this are no protection, however slow the machine.
const LEAST_ITERATIONS: u64 = 1000;
/// A measurement that took this long is one.
const MEASURED: Duration = Duration::from_millis(8);
/// QEMU and cryptsetup spend an eighth of the time on the digest.
const DIGEST_SHARE: u64 = 8;

/// What a new volume is to be. The defaults are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuksOptions {
    /// The cipher.
    pub cipher: CipherSpec,
    /// Hash of all derivations.
    pub hash: HashAlgorithm,
    /// The header is a file of its own, and the payload begins at the begin of another one.
    pub detached: bool,
    /// Milliseconds of processor time that this machine is to need for one try of a password. However few they are, 1000 iterations are made.
    pub iter_time: u64,
}

impl Default for LuksOptions {
    fn default() -> Self {
        Self {
            cipher: CipherSpec {
                algorithm: CipherAlgorithm::Aes256,
                mode: CipherMode::Xts,
                iv: IvGenerator::Plain64,
            },
            hash: HashAlgorithm::Sha256,
            detached: false,
            iter_time: 2000,
        }
    }
}

impl LuksOptions {
    /// Bytes of the header with its key slots, up to the payload.
    pub fn header_bytes(&self) -> u64 {
        let key_bytes = u32::try_from(self.cipher.key_len()).unwrap_or(u32::MAX);
        u64::from(LuksHeader::payload_behind(key_bytes)).saturating_mul(luks::SECTOR)
    }
}

/// A volume that was made: its bytes are still to be written.
#[derive(Debug)]
pub(crate) struct NewLuks {
    /// Its header and the material of its first key slot; what follows up to [`NewLuks::length`] is zeros.
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the header and all slots: up to the payload, where that follows.
    pub(crate) length: u64,
    /// The cipher with the master key.
    pub(crate) cipher: SectorCipher,
}

/// Makes a volume with a new master key, which `secret` opens by key slot 0.
///
/// # Errors
/// [`Error::State`] with code `CIPHER_UNSUPPORTED` for what does not go together; [`Error::Invalid`] for no time at all; [`Error::Cancelled`].
pub(crate) fn new_volume(secret: &Secret, options: &LuksOptions, job: &JobContext) -> Result<NewLuks> {
    options.cipher.check().map_err(|error| failed(None, error))?;
    let key_bytes = u32::try_from(options.cipher.key_len()).unwrap_or(u32::MAX);
    let mut key = Secret::zeros(options.cipher.key_len());
    fill(key.bytes_mut())?;
    let mut header = LuksHeader {
        cipher: options.cipher.algorithm.family().to_owned(),
        mode: options.cipher.mode_name(),
        hash: options.hash.name().to_owned(),
        payload: if options.detached {
            0
        } else {
            LuksHeader::payload_behind(key_bytes)
        },
        key_bytes,
        digest: [0; 20],
        digest_salt: [0; 32],
        digest_iterations: 0,
        uuid: uuid()?,
        slots: Default::default(),
    };
    for (number, slot) in (0..).zip(&mut header.slots) {
        slot.material = LuksHeader::place(number, key_bytes);
    }
    let rate = rate(options.hash, job)?;
    fill(&mut header.digest_salt)?;
    header.digest_iterations = iterations(
        rate,
        (options.hash, options.iter_time),
        header.digest.len(),
        DIGEST_SHARE,
    )?;
    let mut digest = [0; 20];
    pbkdf2(
        options.hash,
        key.bytes(),
        &header.digest_salt,
        header.digest_iterations,
        &mut digest,
        &|| !job.cancel.is_cancelled(),
    )
    .map_err(|error| failed(None, error))?;
    header.digest = digest;
    let mut volume = LuksVolume {
        header,
        offset: HostOffset(0),
        spec: options.cipher,
        hash: options.hash,
    };
    let (slot, material) = new_slot(
        &volume,
        0,
        secret,
        &key,
        iterations(rate, (options.hash, options.iter_time), key.bytes().len(), 1)?,
        job,
    )?;
    if let Some(first) = volume.header.slots.first_mut() {
        *first = slot;
    }
    let mut bytes = volume.header.encode().to_vec();
    let place = u64::from(LuksHeader::place(0, key_bytes)) * luks::SECTOR;
    bytes.resize(usize::try_from(place).unwrap_or(bytes.len()), 0);
    bytes.extend_from_slice(&material);
    let cipher = SectorCipher::new(&options.cipher, key.bytes()).map_err(|error| failed(None, error))?;
    Ok(NewLuks {
        length: options.header_bytes(),
        bytes,
        cipher,
    })
}

/// Slot `number` with the master key under `secret`, and its material.
pub(super) fn new_slot(
    volume: &LuksVolume,
    number: usize,
    secret: &Secret,
    key: &Secret,
    iterations: u32,
    job: &JobContext,
) -> Result<(KeySlot, Vec<u8>)> {
    let place = volume.header.slots.get(number).map_or(0, |slot| slot.material);
    let mut slot = KeySlot {
        active: true,
        iterations,
        salt: [0; 32],
        material: place,
    };
    fill(&mut slot.salt)?;
    let cipher = slot_cipher(volume, &slot, secret, job)?;
    let length = usize::try_from(luks::material_bytes(volume.header.key_bytes)).unwrap_or(0);
    let mut stripes = Secret::zeros(length.next_multiple_of(SECTOR));
    let wrong = |error| failed(None, error);
    let target = stripes.bytes_mut().get_mut(..length).unwrap_or_default();
    split(volume.hash, key.bytes(), target).map_err(wrong)?;
    cipher.encrypt(0, stripes.bytes_mut()).map_err(wrong)?;
    Ok((slot, stripes.bytes().get(..length).unwrap_or_default().to_vec()))
}

/// Iterations of one block of output that this machine does in a second, by the best of a few short runs.
pub(super) fn rate(hash: HashAlgorithm, job: &JobContext) -> Result<u64> {
    let mut count = 1u32 << 12;
    let mut best = 0u64;
    let mut runs = 0;
    while runs < 3 {
        job.cancel.check()?;
        let begin = Instant::now();
        let mut out = vec![0; hash.digest_len()];
        pbkdf2(hash, b"password", &[0; 32], count, &mut out, &|| true).map_err(|error| failed(None, error))?;
        let took = begin.elapsed();
        if took < MEASURED && count < 1 << 24 {
            count *= 2;
            continue;
        }
        let nanoseconds = took.as_nanos().max(1);
        let rate = u128::from(count) * 1_000_000_000 / nanoseconds;
        best = best.max(u64::try_from(rate).unwrap_or(u64::MAX));
        runs += 1;
    }
    Ok(best)
}

/// How many iterations of a hash take so many milliseconds, divided by `share`, for `length` bytes of output.
pub(super) fn iterations(rate: u64, (hash, time): (HashAlgorithm, u64), length: usize, share: u64) -> Result<u32> {
    let blocks = length.div_ceil(hash.digest_len()).max(1) as u128;
    let wanted = u128::from(rate) * u128::from(time) / 1000 / blocks / u128::from(share);
    let most = u128::from(u32::MAX);
    if wanted > most {
        return Err(Error::Invalid {
            argument: "iterTime",
            reason: format!("{time} ms are out of range"),
        });
    }
    Ok(u32::try_from(wanted.max(u128::from(LEAST_ITERATIONS))).unwrap_or(u32::MAX))
}

fn fill(out: &mut [u8]) -> Result<()> {
    random(out).map_err(|error: CryptError| failed(None, error))
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> Result<String> {
    let mut bytes = [0u8; 16];
    fill(&mut bytes)?;
    let number = u128::from_be_bytes(bytes) & !(0xf << 76 | 0x3 << 62) | 4 << 76 | 2 << 62;
    let hex = format!("{number:032x}");
    let mut out = String::with_capacity(36);
    for (at, digit) in hex.chars().enumerate() {
        if [8, 12, 16, 20].contains(&at) {
            out.push('-');
        }
        out.push(digit);
    }
    Ok(out)
}
