//! A LUKS header that was read and checked: all that can be known without a key.

use std::sync::Arc;

use qcow2_codec::crypt::{CipherSpec, CryptError, HashAlgorithm};
use qcow2_format::luks::{self, LuksHeader};
use qcow2_format::{FormatError, HostOffset};

use super::failed;
use crate::error::{Error, Result};
use crate::storage::Storage;

/// A LUKS1 volume.
#[derive(Clone, Debug)]
pub struct LuksVolume {
    /// Its header.
    pub header: LuksHeader,
    /// Where that begins in its file.
    pub offset: HostOffset,
    /// The cipher that it names.
    pub spec: CipherSpec,
    /// The hash that it names.
    pub hash: HashAlgorithm,
}

impl LuksVolume {
    /// Reads the header at `offset`. With its key slots it may take `room` bytes; what of them is behind the end of the file is missed here.
    ///
    /// # Errors
    /// [`Error::Format`]; [`Error::State`] with code `CIPHER_UNSUPPORTED`, which names the cipher, mode or hash; [`Error::Io`].
    pub fn read(storage: &Arc<dyn Storage>, offset: HostOffset, room: u64) -> Result<Self> {
        let path = || storage.path().map(Into::into);
        let mut bytes = [0; luks::LENGTH];
        let count = storage
            .read_at(offset, &mut bytes)
            .map_err(Error::io("read", &**storage))?;
        let fault = |error| Error::Format { path: path(), error };
        let bytes = bytes.get(..count).unwrap_or_default();
        let header = LuksHeader::parse(bytes, offset.0, room).map_err(fault)?;
        // Before anything is as large as the header says.
        let spec = CipherSpec::parse(&header.cipher, &header.mode, header.key_bytes as usize);
        let spec = spec.map_err(|error| failed(path(), error))?;
        let hash = HashAlgorithm::named(&header.hash).ok_or_else(|| CryptError::Unsupported {
            what: "hash",
            name: header.hash.clone(),
        });
        let hash = hash.map_err(|error| failed(path(), error))?;
        let length = storage.length().map_err(Error::io("stat", &**storage))?;
        let material = luks::material_bytes(header.key_bytes);
        for (slot, place) in (0u8..).zip(&header.slots).filter(|(_, slot)| slot.active) {
            let begin = offset
                .0
                .saturating_add(u64::from(place.material).saturating_mul(luks::SECTOR));
            if begin.saturating_add(material) > length {
                return Err(fault(FormatError::LuksSlot {
                    offset: begin,
                    slot,
                    reason: "its material passes the end of the file",
                }));
            }
        }
        Ok(Self {
            header,
            offset,
            spec,
            hash,
        })
    }

    /// Iterations that finding out about one password takes at most.
    pub fn iterations(&self) -> u64 {
        let digest = u64::from(self.header.digest_iterations);
        let active = self.header.slots.iter().filter(|slot| slot.active);
        active.fold(0, |sum: u64, slot| {
            sum.saturating_add(u64::from(slot.iterations)).saturating_add(digest)
        })
    }
}
