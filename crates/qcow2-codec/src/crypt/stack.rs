//! What work with keys leaves on the stack, overwritten. Values that are moved or spilled stay behind where nothing wipes them when it is dropped, and the
//! stacks of a pool's threads live as long as the process.

use std::hint::black_box;

/// For making keys: schedules of ciphers and states of hashes are some KiB (those of Twofish nine), and moved about. Frames without optimisation are larger.
pub(super) const DEEP: usize = 64 << 10;
/// For using them: what does not fit in registers.
pub(super) const SHALLOW: usize = 20 << 10;

/// Does `work`, then overwrites the `BYTES` of stack that it used first. What it answers should hold keys on the heap alone.
#[inline]
pub(super) fn wiped<const BYTES: usize, R>(work: impl FnOnce() -> R) -> R {
    let answer = below(work);
    wipe::<BYTES>();
    answer
}

/// Its frame begins where that of [`wipe`] does.
#[inline(never)]
fn below<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[inline(never)]
fn wipe<const BYTES: usize>() {
    // Nobody knows what `black_box` does with them: the zeros have to be there.
    black_box(&mut [0u8; BYTES]);
}
