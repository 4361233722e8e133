//! Memory that reads and writes are done in, used again: new memory costs more to map and to clear than to fill.

use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow2_engine::{Buffer, Error};

/// What is kept at most, in bytes.
const KEPT: usize = 8 << 20;
/// Those between are the allocator's: it is as quick.
const SMALLEST: usize = 64 << 10;
/// Small ones are all of this length: they come in rows, and are made on one thread and given back on another, which allocators are slow at.
const SMALL: usize = 16 << 10;
/// So many of them are kept.
const SMALL_KEPT: usize = 64;

static BUFFERS: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());
static SMALL_ONES: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

/// `length` bytes, which hold whatever was read into them before.
///
/// # Errors
/// [`Error::Limit`]: there is no memory.
pub(crate) fn take(length: usize) -> Result<Buffer, Error> {
    let mut bytes = match length {
        0..=SMALL => small()?,
        SMALLEST.. => fitting(&mut lock(&BUFFERS), length).unwrap_or_default(),
        _ => Buffer::default(),
    };
    bytes.resize(length)?;
    Ok(bytes)
}

/// Keeps a buffer for the next request, if there is room.
pub(crate) fn give_back(bytes: Buffer) {
    if bytes.capacity() < SMALLEST {
        let mut kept = lock(&SMALL_ONES);
        if bytes.capacity() >= SMALL && kept.len() < SMALL_KEPT {
            kept.push(bytes);
        }
        return;
    }
    let mut kept = lock(&BUFFERS);
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

fn small() -> Result<Buffer, Error> {
    let kept = lock(&SMALL_ONES).pop();
    match kept {
        Some(bytes) => Ok(bytes),
        None => {
            let mut bytes = Buffer::default();
            bytes.resize(SMALL)?;
            Ok(bytes)
        }
    }
}

fn lock(buffers: &'static Mutex<Vec<Buffer>>) -> MutexGuard<'static, Vec<Buffer>> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
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
        let total: usize = lock(&BUFFERS).iter().map(Buffer::capacity).sum();
        assert!(total <= KEPT, "{total}");
        assert!(matches!(take(usize::MAX), Err(Error::Limit { .. })));
        let place = small.as_ptr();
        give_back(small);
        let again = take(16 << 10).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, 16 << 10));
        let many: Vec<_> = (0..SMALL_KEPT * 2).map(|_| take(1).unwrap()).collect();
        many.into_iter().for_each(give_back);
        assert_eq!(lock(&SMALL_ONES).len(), SMALL_KEPT);
    }
}
