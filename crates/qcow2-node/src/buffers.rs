//! Memory that reads are done in, used again: new memory costs more to map and to clear than to fill.

use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow2_engine::{Buffer, Error};

/// What is kept at most, in bytes.
const KEPT: usize = 8 << 20;
/// Smaller ones are the allocator's: it is as quick.
const SMALLEST: usize = 64 << 10;

static BUFFERS: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

/// `length` bytes, which hold whatever was read into them before.
///
/// # Errors
/// [`Error::Limit`]: there is no memory.
pub(crate) fn take(length: usize) -> Result<Buffer, Error> {
    let mut bytes = if length < SMALLEST {
        Buffer::default()
    } else {
        fitting(&mut lock(), length).unwrap_or_default()
    };
    bytes.resize(length)?;
    Ok(bytes)
}

/// Keeps a buffer for the next read, if there is room.
pub(crate) fn give_back(bytes: Buffer) {
    if bytes.capacity() < SMALLEST {
        return;
    }
    let mut kept = lock();
    let total: usize = kept.iter().map(Buffer::capacity).sum();
    if total.saturating_add(bytes.capacity()) <= KEPT {
        kept.push(bytes);
    }
}

/// The smallest that is long enough, but not one that would hold much more than is asked for.
fn fitting(kept: &mut Vec<Buffer>, length: usize) -> Option<Buffer> {
    let fits = |bytes: &Buffer| (length..=length.saturating_mul(4)).contains(&bytes.capacity());
    let best = kept.iter().enumerate().filter(|(_, bytes)| fits(bytes));
    let (index, _) = best.min_by_key(|(_, bytes)| bytes.capacity())?;
    Some(kept.swap_remove(index))
}

fn lock() -> MutexGuard<'static, Vec<Buffer>> {
    BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test: what is kept is the process's, and tests would meet each other there.
    #[test]
    fn a_buffer_is_used_again_where_it_fits_and_what_is_kept_has_a_limit() {
        let mut first = take(1 << 20).unwrap();
        first.fill(7);
        let place = first.as_ptr();
        first.resize(1 << 19).unwrap();
        give_back(first);
        let small = take(1 << 10).unwrap();
        assert_ne!(small.as_ptr(), place, "a small read took a large buffer");
        let again = take(1 << 20).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, 1 << 20));
        give_back(again);
        for length in [1 << 22, 1 << 22, 1 << 22] {
            let mut large = Buffer::default();
            large.resize(length).unwrap();
            give_back(large);
        }
        let total: usize = lock().iter().map(Buffer::capacity).sum();
        assert!(total <= KEPT, "{total}");
        assert!(matches!(take(usize::MAX), Err(Error::Limit { .. })));
    }
}
