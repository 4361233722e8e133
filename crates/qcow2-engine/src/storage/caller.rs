//! Memory of somebody else, and reading into it what needs no waiting.
//!
//! What a caller lends may be read and written by others at any time (a SharedArrayBuffer), so it is never a Rust reference: the kernel and
//! `memcpy` get a pointer and a length. A racing writer can make the bytes torn, which is its own doing, and nothing else.
#![allow(
    unsafe_code,
    reason = "pointers of a caller, and a system call that the safe wrappers lack; every block says why it is sound"
)]

use std::fs::File;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use qcow2_format::HostOffset;

/// A stretch of a caller's memory that is to be written, for `'a` at most.
#[derive(Debug)]
pub struct CallerMemory<'a> {
    pointer: NonNull<u8>,
    length: usize,
    lent: PhantomData<&'a ()>,
}

// SAFETY: by the contract of `new` the memory may be written from any thread.
unsafe impl Send for CallerMemory<'_> {}

impl CallerMemory<'_> {
    /// The `length` bytes from `pointer` on.
    ///
    /// # Safety
    /// For all of `'a` they may be written, from any thread. Nothing is asked of who else looks at them.
    pub unsafe fn new(pointer: NonNull<u8>, length: usize) -> Self {
        Self {
            pointer,
            length,
            lent: PhantomData,
        }
    }

    /// A Rust buffer, as if somebody had lent it.
    pub fn of(bytes: &mut [u8]) -> CallerMemory<'_> {
        CallerMemory {
            // Of a slice it is never null.
            pointer: NonNull::from(&mut *bytes).cast(),
            length: bytes.len(),
            lent: PhantomData,
        }
    }

    /// How many bytes there are.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The part from byte `from` on, at most `length` bytes: shorter, or empty, where the memory ends.
    pub fn part(&mut self, from: usize, length: usize) -> CallerMemory<'_> {
        let from = from.min(self.length);
        CallerMemory {
            // SAFETY: `from` is at most the length, so the pointer stays inside of what was lent or stands right behind it.
            pointer: unsafe { self.pointer.add(from) },
            length: length.min(self.length - from),
            lent: PhantomData,
        }
    }

    /// Its first `at` bytes, or all if it has fewer, and the rest.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let at = at.min(self.length);
        let rest = Self {
            // SAFETY: `at` is at most the length, so the pointer stays inside of what was lent or stands right behind it.
            pointer: unsafe { self.pointer.add(at) },
            length: self.length - at,
            lent: PhantomData,
        };
        (Self { length: at, ..self }, rest)
    }

    /// Copies as many of `bytes` as there is room for; returns how many.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.length);
        // SAFETY: `new` promises that `length` bytes may be written. No Rust value lies there, so `bytes` cannot overlap with it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer.as_ptr(), count) };
        count
    }

    /// Makes it all zeros; returns how many bytes that are.
    pub fn clear(&mut self) -> usize {
        // SAFETY: `new` promises that `length` bytes may be written.
        unsafe { ptr::write_bytes(self.pointer.as_ptr(), 0, self.length) };
        self.length
    }
}

/// What the page cache answers for one file, without waiting. Linux has a flag for that; elsewhere, and on file systems without it, it never
/// answers.
#[derive(Debug, Default)]
pub(super) struct PageCache {
    /// The file's system said so: it is not asked again.
    never: AtomicBool,
}

impl PageCache {
    /// Fills `memory` with the bytes from `offset` on that are cached; returns how many those were, 0 at the end of the file.
    #[cfg(target_os = "linux")]
    pub(super) fn read(&self, file: &File, offset: HostOffset, memory: &mut CallerMemory<'_>) -> Option<usize> {
        use std::os::fd::AsRawFd;

        use nix::errno::Errno;
        use nix::libc;

        if self.never.load(Ordering::Relaxed) {
            return None;
        }
        let offset = libc::off_t::try_from(offset.0).ok()?;
        let piece = libc::iovec {
            iov_base: memory.pointer.as_ptr().cast(),
            iov_len: memory.length,
        };
        // SAFETY: the descriptor is open as long as `file` is borrowed, `piece` names `length` bytes that may be written, and the kernel
        // keeps neither once the call has returned.
        let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, offset, libc::RWF_NOWAIT) };
        if let Ok(count) = usize::try_from(count) {
            return Some(count.min(memory.length));
        }
        if matches!(Errno::last(), Errno::EOPNOTSUPP | Errno::ENOSYS) {
            self.never.store(true, Ordering::Relaxed);
        }
        None
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn read(&self, _: &File, _: HostOffset, _: &mut CallerMemory<'_>) -> Option<usize> {
        self.never.store(true, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lend(bytes: &mut [u8]) -> CallerMemory<'_> {
        // SAFETY: the slice is borrowed for as long as the memory is lent.
        unsafe { CallerMemory::new(NonNull::from(&mut *bytes).cast(), bytes.len()) }
    }

    #[test]
    fn parts_stay_inside_of_what_was_lent() {
        let mut bytes = [9; 8];
        let mut memory = lend(&mut bytes);
        assert_eq!(memory.part(2, 3).fill(&[1, 2, 3, 4]), 3);
        assert_eq!(memory.part(6, usize::MAX).clear(), 2);
        assert_eq!(memory.part(8, 1).fill(&[1]), 0);
        assert_eq!(memory.part(usize::MAX, usize::MAX).clear(), 0);
        assert_eq!(memory.part(3, 4).part(1, 9).length(), 3);
        for at in [0, 3, 8, usize::MAX] {
            let (front, back) = memory.part(0, usize::MAX).split_at(at);
            assert_eq!((front.length(), back.length()), (at.min(8), 8 - at.min(8)));
        }
        memory.part(0, usize::MAX).split_at(7).1.fill(&[5, 6]);
        assert_eq!(bytes, [9, 9, 1, 2, 3, 9, 0, 5]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_page_cache_answers_with_the_files_bytes_up_to_its_end() {
        use std::io::Write;

        let path = std::env::temp_dir().join(format!("qcow2-cached-{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let wanted: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&wanted).unwrap();
        let cache = PageCache::default();
        let mut bytes = vec![0; 4096];
        let count = cache.read(&file, HostOffset(9000), &mut lend(&mut bytes));
        if cache.never.load(Ordering::Relaxed) {
            // Such a file system, an overlay for one: there is nothing to compare.
            assert_eq!(count, None);
            return;
        }
        assert_eq!((count, &bytes[..1000]), (Some(1000), &wanted[9000..]));
        assert_eq!(cache.read(&file, HostOffset(10_000), &mut lend(&mut bytes)), Some(0));
        assert_eq!(cache.read(&file, HostOffset(u64::MAX), &mut lend(&mut bytes)), None);
        assert!(
            !cache.never.load(Ordering::Relaxed),
            "one bad offset says nothing about the file"
        );
    }
}
