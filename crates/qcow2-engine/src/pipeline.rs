//! Work in any order, results in order: items are prepared by several threads and placed one after the other.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::panics::guard;

/// What the threads share.
struct Shared<Item, Step, Scan, Place, E> {
    scan: Mutex<(Scan, u64)>,
    place: Mutex<Place>,
    queue: Mutex<Queue<Step, E>>,
    /// The queue has changed.
    changed: Condvar,
    window: u64,
    item: std::marker::PhantomData<fn() -> Item>,
}

struct Queue<Step, E> {
    /// Items handed out, or about to be.
    promised: u64,
    /// Items placed.
    placed: u64,
    /// No more items.
    ended: bool,
    /// Some thread is placing.
    placing: bool,
    ready: BTreeMap<u64, Step>,
    /// The failure of the first item that failed.
    failure: Option<(u64, E)>,
}

/// How many do the work, and how far they run ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// Threads, the caller's included.
    pub(crate) threads: usize,
    /// Items under way or waiting for their turn, at most.
    pub(crate) window: usize,
}

/// Takes items from `scan`, hands each to `prepare` on one of some threads (this one included) with what `worker` made for it, and
/// the results to `place`, in the order of the items and never two at a time. Every item before one that failed is prepared to its end.
///
/// # Errors
/// That of the first item, in order, whose preparation or placing failed.
pub(crate) fn run<Item, Step: Send, Worker, E: From<Error> + Send>(
    crowd: Crowd,
    scan: impl FnMut() -> Result<Option<Item>, E> + Send,
    worker: impl Fn() -> Result<Worker, E> + Sync,
    prepare: impl Fn(&mut Worker, Item) -> Result<Step, E> + Sync,
    place: impl FnMut(Step) -> Result<(), E> + Send,
) -> Result<(), E> {
    let window = crowd.window.max(1);
    // More threads than items under way would only wait.
    let threads = crowd.threads.min(window);
    let shared = Shared {
        scan: Mutex::new((scan, 0)),
        place: Mutex::new(place),
        queue: Mutex::new(Queue {
            promised: 0,
            placed: 0,
            ended: false,
            placing: false,
            ready: BTreeMap::new(),
            failure: None,
        }),
        changed: Condvar::new(),
        window: window as u64,
        item: std::marker::PhantomData,
    };
    let work = || {
        let made = guarded(&worker);
        match made {
            Ok(mut own) => while shared.one(&mut own, &prepare) {},
            Err(error) => shared.fail(u64::MAX, error),
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // A thread that the system refuses is work for the others.
            let _ = std::thread::Builder::new()
                .name("qcow2-convert".into())
                .spawn_scoped(scope, work);
        }
        work();
    });
    match lock(&shared.queue).failure.take() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

impl<Item, Step, Scan, Place, E: From<Error>> Shared<Item, Step, Scan, Place, E>
where
    Scan: FnMut() -> Result<Option<Item>, E>,
    Place: FnMut(Step) -> Result<(), E>,
{
    /// Takes one item as far as it goes. `false`: there is nothing more to do.
    fn one<Worker>(&self, own: &mut Worker, prepare: &impl Fn(&mut Worker, Item) -> Result<Step, E>) -> bool {
        let Some((index, item)) = self.take() else { return false };
        match guarded(|| prepare(own, item)) {
            Ok(step) => self.deposit(index, step),
            Err(error) => self.fail(index, error),
        }
        true
    }

    /// The next item, once the window has room for it.
    fn take(&self) -> Option<(u64, Item)> {
        {
            let mut queue = lock(&self.queue);
            while queue.failure.is_none() && !queue.ended && queue.promised.saturating_sub(queue.placed) >= self.window
            {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.ended || queue.failure.is_some() {
                return None;
            }
            queue.promised += 1;
        }
        let mut scan = lock(&self.scan);
        let (next, index) = &mut *scan;
        let this = *index;
        match guarded(next) {
            Ok(Some(item)) => {
                *index += 1;
                Some((this, item))
            }
            Ok(None) => {
                lock(&self.queue).ended = true;
                self.changed.notify_all();
                None
            }
            Err(error) => {
                self.fail(this, error);
                None
            }
        }
    }

    /// Queues a result, and places what is next for as long as it is there, unless another thread is at it.
    fn deposit(&self, index: u64, step: Step) {
        let mut queue = lock(&self.queue);
        queue.ready.insert(index, step);
        if queue.placing {
            return;
        }
        queue.placing = true;
        while queue.failure.is_none() {
            let next = queue.placed;
            let Some(step) = queue.ready.remove(&next) else { break };
            drop(queue);
            let outcome = guarded(|| lock(&self.place)(step));
            queue = lock(&self.queue);
            queue.placed += 1;
            self.changed.notify_all();
            if let Err(error) = outcome {
                note(&mut queue, next, error);
            }
        }
        queue.placing = false;
    }

    fn fail(&self, index: u64, error: E) {
        note(&mut lock(&self.queue), index, error);
        self.changed.notify_all();
    }
}

/// Runs `work`; a panic in it is an error like others.
fn guarded<T, E: From<Error>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    guard(|| Ok(work())).unwrap_or_else(|error| Err(error.into()))
}

fn note<Step, E>(queue: &mut Queue<Step, E>, index: u64, error: E) {
    if queue.failure.as_ref().is_none_or(|(first, _)| index < *first) {
        queue.failure = Some((index, error));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(threads: usize) -> Crowd {
        Crowd {
            threads,
            window: 3 * threads,
        }
    }

    fn count_to(n: u64) -> impl FnMut() -> Result<Option<u64>> {
        let mut next = 0;
        move || {
            next += 1;
            Ok((next <= n).then_some(next))
        }
    }

    #[test]
    fn results_arrive_in_order_whatever_the_threads() {
        for threads in [1, 2, 3, 8, 64] {
            let mut placed = Vec::new();
            run(
                crowd(threads),
                count_to(500),
                || Ok(()),
                |(), n| {
                    std::thread::sleep(std::time::Duration::from_micros(n * 7919 % 97));
                    Ok(n)
                },
                |n| {
                    placed.push(n);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(placed, (1..=500).collect::<Vec<_>>(), "{threads} threads");
        }
    }

    /// Each item holds a buffer: a first one that takes long must not let the others fill the memory.
    #[test]
    fn no_more_items_are_under_way_than_the_window_holds() {
        use std::sync::atomic::{AtomicU64, Ordering};
        for (threads, window) in [(1, 1), (2, 6), (8, 8), (64, 5), (3, 0)] {
            let (taken, placed) = (AtomicU64::new(0), AtomicU64::new(0));
            let most = AtomicU64::new(0);
            run(
                Crowd { threads, window },
                count_to(300),
                || Ok(()),
                |(), n| {
                    let under_way = taken.fetch_add(1, Ordering::SeqCst) + 1 - placed.load(Ordering::SeqCst);
                    most.fetch_max(under_way, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_micros(if n % 40 == 1 { 3000 } else { 20 }));
                    Ok(n)
                },
                |_| {
                    placed.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Error>(())
                },
            )
            .unwrap();
            let most = most.into_inner();
            assert_eq!(placed.into_inner(), 300);
            assert!(most <= (window as u64).max(1), "{threads} threads: {most} of {window}");
        }
    }

    #[test]
    fn the_first_failure_in_order_is_the_one_told() {
        for threads in [1, 2, 8] {
            let outcome = run(
                crowd(threads),
                count_to(100),
                || Ok(()),
                |(), n| {
                    if n % 10 == 0 {
                        std::thread::sleep(std::time::Duration::from_millis(if n == 10 { 20 } else { 0 }));
                        return Err(Error::Internal { message: n.to_string() });
                    }
                    Ok(n)
                },
                |_| Ok(()),
            );
            assert!(matches!(outcome, Err(Error::Internal { message }) if message == "10"));
        }
    }

    #[test]
    fn a_panic_becomes_an_error_and_nobody_waits_for_ever() {
        let outcome = run(
            crowd(4),
            count_to(100),
            || Ok(()),
            |(), n| {
                assert!(n != 50, "fifty");
                Ok(n)
            },
            |_| Ok(()),
        );
        assert!(matches!(outcome, Err(Error::Internal { message }) if message.contains("fifty")));
    }
}
