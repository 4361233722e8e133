//! What a sector of the disk can hold: each that is ever written is told from all others.

use crate::log::SECTOR;
use crate::random::mix;

/// Sectors full of zeros.
pub const ZERO: u32 = 0;

/// Everything that sectors can hold, by number.
#[derive(Clone, Debug)]
pub struct Contents {
    bytes: Vec<u8>,
    ops: Vec<u32>,
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            bytes: vec![0; SECTOR],
            ops: vec![0],
        }
    }
}

impl Contents {
    /// Adds a sector full of one tag, written by operation `op`.
    pub fn tagged(&mut self, tag: u64, op: u32) -> u32 {
        let tag = mix(tag) | 1;
        for _ in 0..SECTOR / 8 {
            self.bytes.extend_from_slice(&tag.to_le_bytes());
        }
        self.ops.push(op);
        self.ops.len() as u32 - 1
    }

    /// Adds a sector that holds `bytes`, written by operation `op`.
    pub fn add(&mut self, bytes: &[u8], op: u32) -> u32 {
        self.bytes.extend_from_slice(&bytes[..SECTOR]);
        self.ops.push(op);
        self.ops.len() as u32 - 1
    }

    /// The bytes of a sector.
    pub fn get(&self, content: u32) -> &[u8] {
        &self.bytes[content as usize * SECTOR..][..SECTOR]
    }

    /// The operation that wrote it; 0: it was there before.
    pub fn op(&self, content: u32) -> u32 {
        self.ops[content as usize]
    }

    /// Which of all these bytes are, for messages.
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        (0..self.ops.len() as u32).find(|content| self.get(*content) == bytes)
    }
}
