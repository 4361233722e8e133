//! Where guest clusters stand: a file, and the cipher that they are encrypted with there.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use qcow2_codec::crypt::{SECTOR, SectorCipher};
use qcow2_format::{GuestOffset, HostOffset};

use crate::storage::{CallerMemory, ReadRequest, Storage};

/// Bytes that are encrypted at a time, in memory of their own.
const PIECE: usize = 1 << 20;
/// Bytes that are decrypted at most for somebody who does not wait: some four microseconds with the processor's instructions.
const NOW: usize = 16 << 10;

/// Which offset tells a sector's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// Its place in the file: LUKS.
    Host,
    /// Its place on the disk: the legacy method.
    Guest,
}

/// Bytes from the begin of its sector.
fn into_sector(host: u64) -> usize {
    usize::try_from(host % SECTOR as u64).unwrap_or(0)
}

/// A cipher with its key, as guest clusters need it.
#[derive(Debug)]
pub(crate) struct GuestCipher {
    cipher: SectorCipher,
    count: Count,
    /// Whoever writes less than sectors, which are read and written again as a whole, holds it alone.
    edges: RwLock<()>,
}

impl GuestCipher {
    pub(crate) fn new(cipher: SectorCipher, count: Count) -> Self {
        Self {
            cipher,
            count,
            edges: RwLock::default(),
        }
    }

    fn sector(&self, guest: u64, host: u64) -> u64 {
        let at = match self.count {
            Count::Host => host,
            Count::Guest => guest,
        };
        at / SECTOR as u64
    }

    /// Encrypts whole sectors that go to `host`.
    pub(crate) fn encrypt(&self, guest: GuestOffset, host: HostOffset, bytes: &mut [u8]) -> io::Result<()> {
        let number = self.sector(guest.0, host.0);
        self.cipher.encrypt(number, bytes).map_err(io::Error::other)
    }

    fn decrypt(&self, guest: u64, host: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.cipher
            .decrypt(self.sector(guest, host), bytes)
            .map_err(io::Error::other)
    }
}

/// Where guest clusters of a layer stand.
#[derive(Clone, Debug)]
pub(crate) struct GuestData {
    storage: Arc<dyn Storage>,
    cipher: Option<Arc<GuestCipher>>,
}

impl GuestData {
    pub(crate) fn new(storage: Arc<dyn Storage>, cipher: Option<Arc<GuestCipher>>) -> Self {
        Self { storage, cipher }
    }

    /// The same in another file.
    pub(crate) fn moved_to(&self, storage: Arc<dyn Storage>) -> Self {
        Self::new(storage, self.cipher.clone())
    }

    /// The file as it is.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    /// Reads the guest's bytes at `guest`, which stand at `host`; short only at the end of the file.
    pub(crate) fn read(&self, guest: GuestOffset, host: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(cipher) = &self.cipher else {
            return self.storage.read_at(host, buffer);
        };
        let _shared = cipher.edges.read().unwrap_or_else(PoisonError::into_inner);
        self.decrypted(cipher, guest.0, host.0, buffer)
    }

    fn decrypted(&self, cipher: &GuestCipher, guest: u64, host: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let (skip, length) = (into_sector(host), buffer.len());
        if skip == 0 && length.is_multiple_of(SECTOR) {
            let count = self.storage.read_at(HostOffset(host), buffer)?;
            // Of a sector that is there in part nothing can be had.
            let count = count - count % SECTOR;
            cipher.decrypt(guest, host, buffer.get_mut(..count).unwrap_or_default())?;
            return Ok(count);
        }
        let mut whole = vec![0; skip.saturating_add(length).next_multiple_of(SECTOR)];
        let (guest, host) = (guest.saturating_sub(skip as u64), host.saturating_sub(skip as u64));
        let count = self.decrypted(cipher, guest, host, &mut whole)?;
        let there = count.saturating_sub(skip).min(length);
        for (to, from) in buffer.iter_mut().zip(whole.iter().skip(skip).take(there)) {
            *to = *from;
        }
        Ok(there)
    }

    /// Fills `memory` with what can be had without waiting; returns how many bytes that were. Only a little at a time: whoever asks has no time.
    pub(crate) fn read_now(
        &self,
        guest: GuestOffset,
        host: HostOffset,
        memory: &mut CallerMemory<'_>,
    ) -> Option<usize> {
        let Some(cipher) = &self.cipher else {
            return self.storage.read_now(host, memory);
        };
        let skip = into_sector(host.0);
        let length = skip.checked_add(memory.length())?.checked_next_multiple_of(SECTOR)?;
        if length > NOW {
            return None;
        }
        let _shared = cipher.edges.try_read().ok()?;
        let mut bytes = vec![0; length];
        let (guest, host) = (guest.0.checked_sub(skip as u64)?, host.0.checked_sub(skip as u64)?);
        let count = self
            .storage
            .read_now(HostOffset(host), &mut CallerMemory::of(&mut bytes))?;
        let bytes = bytes.get_mut(..count - count % SECTOR)?;
        cipher.decrypt(guest, host, bytes).ok()?;
        Some(memory.fill(bytes.get(skip..).unwrap_or_default()))
    }

    /// Reads a batch; each request comes with the guest offset of its first byte.
    pub(crate) fn read_batch(&self, guests: &[GuestOffset], requests: &mut [ReadRequest<'_>]) -> io::Result<()> {
        if self.cipher.is_none() {
            return self.storage.read_batch(requests);
        }
        for (guest, request) in guests.iter().zip(requests) {
            request.filled = self.read(*guest, request.offset, request.buffer)?;
        }
        Ok(())
    }

    /// Writes the guest's bytes at `guest` to `host`. What is encrypted and not whole sectors is read first.
    pub(crate) fn write(&self, guest: GuestOffset, host: HostOffset, bytes: &[u8]) -> io::Result<()> {
        let Some(cipher) = &self.cipher else {
            return self.storage.write_at(host, bytes);
        };
        if host.0.is_multiple_of(SECTOR as u64) && bytes.len().is_multiple_of(SECTOR) {
            let _shared = cipher.edges.read().unwrap_or_else(PoisonError::into_inner);
            return self.encrypted(cipher, guest.0, host.0, bytes);
        }
        let _alone = cipher.edges.write().unwrap_or_else(PoisonError::into_inner);
        let skip = into_sector(host.0);
        let (guest, host) = (guest.0.saturating_sub(skip as u64), host.0.saturating_sub(skip as u64));
        let mut whole = vec![0; skip.saturating_add(bytes.len()).next_multiple_of(SECTOR)];
        let last = whole.len().saturating_sub(SECTOR);
        let begins_inside = (skip > 0).then_some(0);
        let ends_inside = (skip.saturating_add(bytes.len()) < whole.len()).then_some(last);
        for at in begins_inside.into_iter().chain(ends_inside) {
            let place = whole.get_mut(at..at.saturating_add(SECTOR)).unwrap_or_default();
            let count = self.decrypted(
                cipher,
                guest.saturating_add(at as u64),
                host.saturating_add(at as u64),
                place,
            )?;
            if count < place.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        for (to, from) in whole.iter_mut().skip(skip).zip(bytes) {
            *to = *from;
        }
        self.encrypted(cipher, guest, host, &whole)
    }

    fn encrypted(&self, cipher: &GuestCipher, guest: u64, host: u64, bytes: &[u8]) -> io::Result<()> {
        let mut scratch = Vec::with_capacity(bytes.len().min(PIECE));
        for (number, piece) in (0u64..).zip(bytes.chunks(PIECE)) {
            let at = number * PIECE as u64;
            scratch.clear();
            scratch.extend_from_slice(piece);
            let place = HostOffset(host.saturating_add(at));
            cipher.encrypt(GuestOffset(guest.saturating_add(at)), place, &mut scratch)?;
            self.storage.write_at(place, &scratch)?;
        }
        Ok(())
    }
}
