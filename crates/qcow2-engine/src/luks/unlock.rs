//! From a password to the master key.

use std::sync::Arc;

use qcow2_codec::crypt::{ConstantTimeEq, SECTOR, SectorCipher, merge, pbkdf2};
use qcow2_format::HostOffset;
use qcow2_format::luks::{self, KeySlot};

use super::{LuksVolume, Secret, failed};
use crate::error::{Error, Result};
use crate::progress::JobContext;
use crate::storage::Storage;

/// The master key of a volume, and the slot that gave it away.
///
/// Every active slot is asked, whatever the first says: a wrong password and damaged material look alike and take as long as each other.
///
/// # Errors
/// [`Error::State`] with code `WRONG_KEY`; [`Error::Limit`] if the slots ask for more than `max_iterations` in all; [`Error::Cancelled`], [`Error::Io`].
pub(crate) fn unlock(
    storage: &Arc<dyn Storage>,
    volume: &LuksVolume,
    secret: &Secret,
    max_iterations: u64,
    job: &JobContext,
) -> Result<(Secret, usize)> {
    let wanted = volume.iterations();
    if wanted > max_iterations {
        return Err(Error::Limit {
            limit: "maxKeyIterations",
            allowed: max_iterations,
            wanted,
        });
    }
    let slots = volume.header.slots.iter().enumerate().filter(|(_, slot)| slot.active);
    for (number, slot) in slots {
        if let Some(key) = open_slot(storage, volume, slot, secret, job)? {
            return Ok((key, number));
        }
    }
    Err(Error::State {
        code: "WRONG_KEY",
        path: storage.path().map(Into::into),
        reason: "the secret opens none of the key slots: it is not that of the image, or the LUKS header is damaged"
            .into(),
    })
}

/// The master key, if this slot holds it under that password.
pub(super) fn open_slot(
    storage: &Arc<dyn Storage>,
    volume: &LuksVolume,
    slot: &KeySlot,
    secret: &Secret,
    job: &JobContext,
) -> Result<Option<Secret>> {
    let length = volume.header.key_bytes as usize;
    let cipher = slot_cipher(volume, slot, secret, job)?;
    // At most 64 bytes times 4000 stripes, in whole sectors.
    let material = luks::material_bytes(volume.header.key_bytes);
    let bytes = usize::try_from(material).unwrap_or(0);
    let mut stripes = Secret::zeros(bytes.next_multiple_of(SECTOR));
    let place = volume
        .offset
        .0
        .saturating_add(u64::from(slot.material).saturating_mul(luks::SECTOR));
    let target = stripes.bytes_mut().get_mut(..bytes).unwrap_or_default();
    storage
        .read_at(HostOffset(place), target)
        .map_err(Error::io("read", &**storage))?;
    let wrong = |error| failed(storage.path().map(Into::into), error);
    cipher.decrypt(0, stripes.bytes_mut()).map_err(wrong)?;
    let mut key = Secret::zeros(length);
    merge(
        volume.hash,
        stripes.bytes().get(..bytes).unwrap_or_default(),
        key.bytes_mut(),
    );
    let mut digest = [0; 20];
    let header = &volume.header;
    pbkdf2(
        volume.hash,
        key.bytes(),
        &header.digest_salt,
        header.digest_iterations,
        &mut digest,
        &|| !job.cancel.is_cancelled(),
    )
    .map_err(wrong)?;
    Ok(bool::from(digest.ct_eq(&header.digest)).then_some(key))
}

/// The cipher of a slot's material: its key comes from the password.
pub(super) fn slot_cipher(
    volume: &LuksVolume,
    slot: &KeySlot,
    secret: &Secret,
    job: &JobContext,
) -> Result<SectorCipher> {
    let mut key = Secret::zeros(volume.header.key_bytes as usize);
    pbkdf2(
        volume.hash,
        secret.bytes(),
        &slot.salt,
        slot.iterations,
        key.bytes_mut(),
        &|| !job.cancel.is_cancelled(),
    )
    .and_then(|()| SectorCipher::new(&volume.spec, key.bytes()))
    .map_err(|error| failed(None, error))
}
