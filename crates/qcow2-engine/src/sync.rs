//! Locks and atomics of everything that readers and writers of one disk share. With the feature `shuttle`, a model checker's, which decides at each of
//! them who goes on; it runs threads in turn on one, so whatever holds one of these locks may be stopped there.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};

/// Lets others go on for a moment.
pub(crate) fn pause() {
    #[cfg(not(feature = "shuttle"))]
    std::thread::sleep(std::time::Duration::from_micros(100));
    #[cfg(feature = "shuttle")]
    shuttle::thread::yield_now();
}
