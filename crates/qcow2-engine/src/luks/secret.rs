//! What a password is while it is here.

use std::fmt;

use qcow2_codec::crypt::Zeroizing;

/// The bytes of a password or key. Wiped when dropped; nothing prints them.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// So many zeros, to be filled.
    pub(crate) fn zeros(length: usize) -> Self {
        Self::new(vec![0; length])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
