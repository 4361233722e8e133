//! The buffer an encoder writes into: it grows to the largest cluster seen and stays.

use crate::{CodecError, Compression};

#[derive(Default)]
pub(crate) struct Scratch {
    bytes: Vec<u8>,
}

impl Scratch {
    /// At least `len` bytes to write into; what they hold is unspecified.
    pub(crate) fn room(&mut self, len: usize, compression: Compression) -> Result<&mut [u8], CodecError> {
        if let Some(missing) = len.checked_sub(self.bytes.len()) {
            self.bytes
                .try_reserve_exact(missing)
                .map_err(|_| CodecError::OutOfMemory { compression })?;
            self.bytes.resize(len, 0);
        }
        Ok(&mut self.bytes)
    }

    /// The first `len` bytes if they are fewer than `limit`.
    pub(crate) fn below(&self, len: usize, limit: usize) -> Option<&[u8]> {
        if len < limit { self.bytes.get(..len) } else { None }
    }
}
