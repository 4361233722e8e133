//! Splitting one piece of work over a few threads.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};
use crate::panics::guard;

/// Threads that a request may use if nobody says: as many as the machine has, up to 8.
pub(crate) fn default_threads() -> usize {
    // Asked once: the answer costs ten system calls, which is more than a small read does.
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(8)))
}

/// Does `work` on every item, on up to `threads` threads that the caller's thread is one of. `state` makes what each thread keeps for itself.
///
/// # Errors
/// That of the first item, in the order of `items`, whose work failed; a panic in it is [`Error::Internal`]. Items behind it may not have been
/// begun.
pub(crate) fn for_each<T: Send, S>(
    threads: usize,
    items: Vec<T>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<()> + Sync,
) -> Result<()> {
    let threads = threads.clamp(1, items.len().max(1));
    let queue = Mutex::new(items.into_iter().enumerate());
    let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let fail = |index, error| {
        let mut first = lock(&failure);
        if first.as_ref().is_none_or(|(other, _)| index < *other) {
            *first = Some((index, error));
        }
    };
    let worker = || {
        // Guarded here: a guard around the caller sees neither what panicked on another thread nor where.
        let mut own = match guard(|| Ok(state())) {
            Ok(own) => own,
            Err(error) => return fail(usize::MAX, error),
        };
        loop {
            let failed = lock(&failure).is_some();
            let Some((index, item)) = (if failed { None } else { lock(&queue).next() }) else {
                return;
            };
            if let Err(error) = guard(|| work(&mut own, item)) {
                fail(index, error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // A thread that the system refuses is work for the others.
            let _ = std::thread::Builder::new()
                .name("qcow2-piece".into())
                .spawn_scoped(scope, worker);
        }
        worker();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for threads in [0, 1, 3, 50] {
            let sum = AtomicU64::new(0);
            let items: Vec<u64> = (1..=100).collect();
            for_each(
                threads,
                items,
                || (),
                |(), n| {
                    sum.fetch_add(n, Ordering::Relaxed);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(sum.into_inner(), 5050);
        }
    }

    /// A panic in a thread of a parallel read ended the whole read as "a scoped thread panicked", and the text of what had really happened went
    /// to the caller's stderr.
    #[test]
    fn a_panic_on_any_thread_is_an_error_that_says_what_and_where() {
        for threads in [1, 4] {
            let barrier = std::sync::Barrier::new(threads);
            let items = (0..threads).collect();
            let outcome = for_each(
                threads,
                items,
                || (),
                |(), n| {
                    barrier.wait();
                    assert!(n + 1 < threads, "broken {n}");
                    Ok(())
                },
            );
            let text = outcome.unwrap_err().to_string();
            assert!(
                text.contains(&format!("broken {}", threads - 1)) && text.contains("parallel.rs:"),
                "{text}"
            );
        }
        let made = for_each(2, vec![1, 2], || panic!("no state"), |(), _| Ok(()));
        assert_eq!(made.unwrap_err().code(), "ERR_QCOW2_INTERNAL");
    }

    #[test]
    fn the_first_failure_stops_the_rest() {
        let error = for_each(
            1,
            vec![1u64, 2, 3, 4],
            || (),
            |(), n| {
                assert!(n < 3);
                if n == 2 { Err(Error::Cancelled) } else { Ok(()) }
            },
        );
        assert!(matches!(error, Err(Error::Cancelled)));
    }
}
