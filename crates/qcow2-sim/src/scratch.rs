//! The files of a state that is judged. What was changed is put back cheaply: most of a state is like the one before.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow2_engine::Storage;
use qcow2_format::HostOffset;

const PAGE: usize = 4096;

/// A file that can be put back to what it was.
#[derive(Default)]
pub struct Scratch(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    touched: Vec<bool>,
    list: Vec<usize>,
    writes: u64,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

impl Inner {
    fn touch(&mut self, begin: usize, end: usize) {
        if end <= begin {
            return;
        }
        let last = (end - 1) / PAGE;
        if self.touched.len() <= last {
            self.touched.resize(last + 1, false);
        }
        for page in begin / PAGE..=last {
            if !self.touched[page] {
                self.touched[page] = true;
                self.list.push(page);
            }
        }
    }

    fn resize(&mut self, length: usize) {
        let old = self.bytes.len();
        self.touch(old.min(length), old.max(length));
        self.bytes.resize(length, 0);
    }
}

impl Scratch {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts everything back that differs from `base`; `fully`: the base is another one.
    pub fn reset(&self, base: &[u8], fully: bool) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if fully {
            inner.bytes.clear();
            inner.bytes.extend_from_slice(base);
            inner.touched.fill(false);
            inner.list.clear();
        } else {
            inner.bytes.resize(base.len(), 0);
            for page in inner.list.drain(..) {
                inner.touched[page] = false;
                let (begin, end) = ((page * PAGE).min(base.len()), (page * PAGE + PAGE).min(base.len()));
                inner.bytes[begin..end].copy_from_slice(&base[begin..end]);
            }
        }
        inner.writes = 0;
    }

    /// Changes the bytes; returns what `change` returns. `range` is all that it touches; the file is made at least that long.
    pub fn change<T>(&self, begin: usize, end: usize, change: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut inner = self.lock();
        if inner.bytes.len() < end {
            inner.resize(end);
        }
        inner.touch(begin, end);
        change(&mut inner.bytes[begin..end])
    }

    /// Sets the length.
    pub fn truncate(&self, length: usize) {
        self.lock().resize(length);
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of everything.
    pub fn to_vec(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Changes that storage calls have made since the last reset.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }
}

impl Storage for Scratch {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let inner = self.lock();
        let rest = inner.bytes.get(offset.0 as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        if offset.0 > 1 << 28 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let at = offset.0 as usize;
        self.change(at, at + bytes.len(), |target| target.copy_from_slice(bytes));
        self.lock().writes += 1;
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if length > 1 << 28 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut inner = self.lock();
        inner.resize(length as usize);
        inner.writes += 1;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        let there = self.len();
        let (begin, end) = (offset.0 as usize, offset.0.saturating_add(length) as usize);
        if begin < there {
            self.change(begin, end.min(there), |target| target.fill(0));
        }
        self.lock().writes += 1;
        Ok(true)
    }
}
