//! Memory that the kernel copies to and from at full speed.

use std::ops::{Deref, DerefMut};

use crate::error::Result;
use crate::sink::out_of_memory;

/// What the begin is a multiple of: a cache line. The allocator puts large blocks 16 bytes behind a page, and a copy between such a block and
/// the page cache takes a third longer.
const LINE: usize = 64;

/// Bytes that begin at a cache line. Their memory, and what is in it, is kept when they become fewer.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Buffer {
    /// Makes it `length` bytes long. What is in it then is left over from before, or zeros.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if the system gives no more memory.
    pub fn resize(&mut self, length: usize) -> Result<()> {
        if self.begin.saturating_add(length) > self.memory.len() {
            let refused = || out_of_memory(length as u64);
            // Not kept while the new memory is asked for: nobody is promised the old bytes.
            self.memory = Vec::new();
            (self.begin, self.length) = (0, 0);
            let wanted = length.checked_add(LINE).ok_or_else(refused)?;
            let mut memory = Vec::new();
            memory.try_reserve_exact(wanted).map_err(|_| refused())?;
            memory.resize(wanted, 0);
            self.begin = memory.as_ptr().align_offset(LINE).min(LINE);
            self.memory = memory;
        }
        self.length = length;
        Ok(())
    }

    /// How long it can become without new memory, in bytes.
    pub fn capacity(&self) -> usize {
        self.memory.len().saturating_sub(self.begin)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let end = self.begin.saturating_add(self.length);
        self.memory.get(self.begin..end).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let end = self.begin.saturating_add(self.length);
        self.memory.get_mut(self.begin..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_length_it_was_given_and_begins_at_a_cache_line() {
        let mut buffer = Buffer::default();
        assert!(buffer.is_empty());
        for length in [1, 4096, 100, 1 << 20, 64, (1 << 20) + 7, 0] {
            buffer.resize(length).unwrap();
            assert_eq!(buffer.len(), length);
            assert!(length == 0 || buffer.as_ptr().align_offset(LINE) == 0);
            assert!(buffer.capacity() >= length);
            buffer.fill(7);
            assert!(buffer.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn memory_that_nobody_has_is_an_error_and_leaves_it_empty() {
        let mut buffer = Buffer::default();
        buffer.resize(100).unwrap();
        for length in [usize::MAX, isize::MAX as usize] {
            assert_eq!(buffer.resize(length).unwrap_err().code(), "ERR_QCOW2_LIMIT");
            assert!(buffer.is_empty());
        }
    }
}
