//! The payload of a LUKS container, as a file of its own: what is read is decrypted, what is written encrypted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use qcow2_format::{GuestOffset, HostOffset};

use super::{GuestCipher, GuestData};
use crate::error::Result;
use crate::storage::{CallerMemory, Identity, Storage, WindowStorage};

/// See the module. It is whole sectors long. A hole reads as what zeros decrypt to: nothing here is known to be zeros without being read.
#[derive(Debug)]
pub(crate) struct SealedStorage {
    data: GuestData,
}

impl SealedStorage {
    /// The payload that begins at byte `payload` of `inner`.
    pub(crate) fn new(inner: Arc<dyn Storage>, payload: u64, cipher: Arc<GuestCipher>) -> Result<Self> {
        let window = Arc::new(WindowStorage::new(inner, payload, None)?);
        Ok(Self {
            data: GuestData::new(window, Some(cipher)),
        })
    }

    fn window(&self) -> &dyn Storage {
        &**self.data.storage()
    }
}

impl Storage for SealedStorage {
    fn length(&self) -> io::Result<u64> {
        Ok(self.window().length()? & !511)
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        self.data.read(GuestOffset(offset.0), offset, buffer)
    }

    fn read_now(&self, offset: HostOffset, memory: &mut CallerMemory<'_>) -> Option<usize> {
        self.data.read_now(GuestOffset(offset.0), offset, memory)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        self.data.write(GuestOffset(offset.0), offset, bytes)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.window().set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.window().sync()
    }

    fn allocate(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        self.window().allocate(offset, length)
    }

    fn expect(&self, offset: HostOffset, length: u64) {
        self.window().expect(offset, length);
    }

    fn allocated_bytes(&self) -> io::Result<Option<u64>> {
        self.window().allocated_bytes()
    }

    fn identity(&self) -> Option<Identity> {
        self.window().identity()
    }

    fn base(&self) -> HostOffset {
        self.window().base()
    }

    fn writes_through(&self) -> bool {
        self.window().writes_through()
    }

    fn path(&self) -> Option<&Path> {
        self.window().path()
    }
}
