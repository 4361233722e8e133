//! A file that lives in memory.

use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use qcow2_format::HostOffset;

use super::{CallerMemory, Storage};

/// Growable bytes, shared between threads.
#[derive(Default)]
pub struct MemoryStorage(RwLock<Vec<u8>>);

impl MemoryStorage {
    /// A storage that begins with `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }

    /// A copy of everything.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read().clone()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStorage")
            .field("length", &self.read().len())
            .finish()
    }
}

impl Storage for MemoryStorage {
    fn length(&self) -> io::Result<u64> {
        Ok(self.read().len() as u64)
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.read();
        let rest = usize::try_from(offset.0)
            .ok()
            .and_then(|at| bytes.get(at..))
            .unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(target), Some(source)) = (buffer.get_mut(..count), rest.get(..count)) {
            target.copy_from_slice(source);
        }
        Ok(count)
    }

    fn read_now(&self, offset: HostOffset, memory: &mut CallerMemory<'_>) -> Option<usize> {
        let bytes = self.0.try_read().ok()?;
        let rest = bytes.get(usize::try_from(offset.0).ok()?..)?;
        Some(memory.fill(rest))
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.write();
        let begin = usize::try_from(offset.0).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let end = begin.checked_add(bytes.len()).ok_or(io::ErrorKind::OutOfMemory)?;
        grow(&mut all, end)?;
        if let Some(target) = all.get_mut(begin..end) {
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut all = self.write();
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        grow(&mut all, length)?;
        all.truncate(length);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        let mut all = self.write();
        let end = usize::try_from(offset.0.saturating_add(length)).unwrap_or(usize::MAX);
        let range = usize::try_from(offset.0).unwrap_or(usize::MAX)..end.min(all.len());
        if let Some(target) = all.get_mut(range) {
            target.fill(0);
        }
        Ok(true)
    }

    fn allocated_bytes(&self) -> io::Result<Option<u64>> {
        self.length().map(Some)
    }
}

/// Makes `bytes` at least `length` long. What cannot be had is an error, not the end of the process.
fn grow(bytes: &mut Vec<u8>, length: usize) -> io::Result<()> {
    let more = length.saturating_sub(bytes.len());
    if more > 0 {
        bytes.try_reserve(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(length, 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_beyond_the_end_leaves_zeros_between() {
        let memory = MemoryStorage::new(vec![1, 2]);
        memory.write_at(HostOffset(4), &[3]).unwrap();
        assert_eq!(memory.to_vec(), [1, 2, 0, 0, 3]);
        let mut buffer = [9; 8];
        assert_eq!(memory.read_at(HostOffset(3), &mut buffer).unwrap(), 2);
        assert_eq!(&buffer[..3], [0, 3, 9]);
    }

    #[test]
    fn more_than_there_is_memory_is_an_error() {
        let memory = MemoryStorage::default();
        assert_eq!(
            memory.set_length(u64::MAX).unwrap_err().kind(),
            io::ErrorKind::OutOfMemory
        );
        assert_eq!(
            memory.set_length(1 << 62).unwrap_err().kind(),
            io::ErrorKind::OutOfMemory
        );
    }
}
