//! What was loaded from a file and is kept in memory: a byte budget, each value loaded once, whoever asks.

use crate::sync::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, OnceLock, PoisonError, TryLockError};

use qcow2_format::HostOffset;

use crate::error::Result;

/// Pieces of L2 tables, by layer and place in the layer's file.
pub(crate) type TableCache = Cache<(u32, HostOffset), Piece>;
/// The bytes of a piece, as they stand in the file.
pub(crate) type Piece = Arc<[u8]>;

/// A value that counts against a budget. A clone is the same value once more, not a copy.
pub(crate) trait Cached: Clone {
    /// The bytes that it takes.
    fn bytes(&self) -> u64;
}

impl Cached for Piece {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// Values by key. What was not used since the hand last passed is dropped first (a clock).
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    budget: u64,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    slots: HashMap<K, Entry<V>>,
    clock: VecDeque<K>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry<V> {
    slot: Arc<Slot<V>>,
    used: bool,
}

/// A value that is there or being loaded.
#[derive(Debug)]
struct Slot<V> {
    value: OnceLock<V>,
    loading: Mutex<()>,
}

impl<K: Copy + Eq + Hash, V: Cached> Cache<K, V> {
    /// A cache that keeps at most `budget` bytes, apart from what is in use.
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            budget,
            state: Mutex::new(State {
                slots: HashMap::new(),
                clock: VecDeque::new(),
                bytes: 0,
            }),
        }
    }

    /// The value at `key`, from memory or by `load`. Of several who ask at once, one loads and the others wait. A failed load leaves nothing.
    pub(crate) fn get_or_load(&self, key: K, load: impl FnOnce() -> Result<V>) -> Result<V> {
        let slot = self.slot(key);
        if let Some(value) = slot.value.get() {
            return Ok(value.clone());
        }
        let _loading = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = slot.value.get() {
            return Ok(value.clone());
        }
        self.load(key, &slot, load)
    }

    /// Loads the value at `key` unless it is there or somebody else is at it.
    pub(crate) fn load_ahead(&self, key: K, load: impl FnOnce() -> Result<V>) -> Result<()> {
        let slot = self.slot(key);
        let _loading = match slot.loading.try_lock() {
            Ok(loading) => loading,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if slot.value.get().is_some() {
            return Ok(());
        }
        self.load(key, &slot, load).map(drop)
    }

    /// Forgets everything. What is being loaded now serves those who wait for it, and is not kept.
    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.slots.clear();
        state.clock.clear();
        state.bytes = 0;
    }

    /// Changes the value at `key`, if it is there. If it is being loaded, what that finds serves those who wait for it and is not kept: it may be
    /// older than the change.
    pub(crate) fn change(&self, key: K, change: impl FnOnce(&mut V)) {
        let mut state = self.state();
        let State { slots, clock, .. } = &mut *state;
        let Some(entry) = slots.get_mut(&key) else { return };
        if entry.slot.value.get().is_none() {
            slots.remove(&key);
            clock.retain(|other| *other != key);
            return;
        }
        match Arc::get_mut(&mut entry.slot).and_then(|slot| slot.value.get_mut()) {
            Some(value) => change(value),
            None => {
                // Somebody is at the slot just now: he keeps what he has.
                let Some(mut value) = entry.slot.value.get().cloned() else {
                    return;
                };
                change(&mut value);
                let slot = Slot {
                    value: OnceLock::from(value),
                    loading: Mutex::default(),
                };
                entry.slot = Arc::new(slot);
            }
        }
    }

    /// Forgets the value at `key`. If it is being loaded, what that finds serves those who wait for it and is not kept.
    pub(crate) fn remove(&self, key: K) {
        let mut state = self.state();
        if let Some(entry) = state.slots.remove(&key) {
            let freed = entry.slot.value.get().map_or(0, Cached::bytes);
            state.bytes = state.bytes.saturating_sub(freed);
            state.clock.retain(|other| *other != key);
        }
    }

    /// Whether the value at `key` is there, or being loaded.
    pub(crate) fn is_known(&self, key: K) -> bool {
        self.state().slots.contains_key(&key)
    }

    /// The value at `key` if it is there and nobody has the lock.
    pub(crate) fn try_get(&self, key: K) -> Option<V> {
        let mut state = self.state.try_lock().ok()?;
        let entry = state.slots.get_mut(&key)?;
        entry.used = true;
        entry.slot.value.get().cloned()
    }

    fn load(&self, key: K, slot: &Arc<Slot<V>>, load: impl FnOnce() -> Result<V>) -> Result<V> {
        // Also where a panic passes: a slot that nobody fills would stay for ever.
        let given_up = GiveUp { cache: self, key, slot };
        let value = load()?;
        std::mem::forget(given_up);
        self.keep(key, slot, &value);
        Ok(value)
    }

    fn slot(&self, key: K) -> Arc<Slot<V>> {
        let mut state = self.state();
        let State { slots, clock, .. } = &mut *state;
        let entry = slots.entry(key).or_insert_with(|| {
            clock.push_back(key);
            Entry {
                slot: Arc::new(Slot {
                    value: OnceLock::new(),
                    loading: Mutex::default(),
                }),
                used: false,
            }
        });
        entry.used = true;
        entry.slot.clone()
    }

    /// The value is there: counts it and makes room. Both under the one lock, so that nobody takes away what is not counted yet. A slot that a
    /// failed load gave up meanwhile serves those who wait at it and is not counted: nothing would ever take it off again.
    fn keep(&self, key: K, slot: &Arc<Slot<V>>, value: &V) {
        let mut state = self.state();
        let _ = slot.value.set(value.clone());
        if state
            .slots
            .get(&key)
            .is_none_or(|entry| !Arc::ptr_eq(&entry.slot, slot))
        {
            return;
        }
        state.bytes += value.bytes();
        // Twice around at most: the first pass takes the marks away.
        for _ in 0..state.clock.len().saturating_mul(2) {
            if state.bytes <= self.budget {
                break;
            }
            let Some(key) = state.clock.pop_front() else { break };
            let keep = match state.slots.get_mut(&key) {
                None => continue,
                Some(entry) => std::mem::take(&mut entry.used) || entry.slot.value.get().is_none(),
            };
            if keep {
                state.clock.push_back(key);
            } else if let Some(entry) = state.slots.remove(&key) {
                let freed = entry.slot.value.get().map_or(0, Cached::bytes);
                state.bytes = state.bytes.saturating_sub(freed);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a slot away when it is dropped: its load has failed.
struct GiveUp<'a, K: Copy + Eq + Hash, V: Cached> {
    cache: &'a Cache<K, V>,
    key: K,
    slot: &'a Arc<Slot<V>>,
}

impl<K: Copy + Eq + Hash, V: Cached> Drop for GiveUp<'_, K, V> {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        if state
            .slots
            .get(&self.key)
            .is_some_and(|entry| Arc::ptr_eq(&entry.slot, self.slot))
        {
            state.slots.remove(&self.key);
            state.clock.retain(|other| *other != self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::Error;

    fn key(n: u64) -> (u32, HostOffset) {
        (0, HostOffset(n * 512))
    }

    #[test]
    fn a_piece_is_loaded_once_however_many_ask() {
        let (cache, loads) = (TableCache::new(1 << 20), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let piece = cache.get_or_load(key(7), || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(vec![7; 512].into())
                    });
                    assert_eq!(&piece.unwrap()[..], [7; 512]);
                });
            }
        });
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_budget_holds_and_what_is_used_stays() {
        let cache = TableCache::new(10 * 512);
        let mut reloads = 0;
        for n in 1..1000 {
            cache.get_or_load(key(n), || Ok(vec![0; 512].into())).unwrap();
            cache
                .get_or_load(key(0), || {
                    reloads += 1;
                    Ok(vec![0; 512].into())
                })
                .unwrap();
            let state = cache.state();
            assert!(state.bytes <= 10 * 512 && state.slots.len() <= 10 && state.clock.len() == state.slots.len());
        }
        assert_eq!(reloads, 1);
    }

    /// Of two who ask for one piece the first fails, which takes the slot away, and the second loads it all the same: its bytes stayed on the
    /// account for ever, until the budget was used up by nothing.
    #[test]
    fn a_piece_that_is_loaded_after_a_failed_one_is_not_counted_twice() {
        let cache = TableCache::new(10 * 512);
        for n in 0..100 {
            let (begun, failing) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let failed = cache.get_or_load(key(n), || {
                        begun.send(()).unwrap();
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        Err(Error::Closed)
                    });
                    assert!(failed.is_err());
                });
                failing.recv().unwrap();
                assert!(cache.get_or_load(key(n), || Ok(vec![0; 512].into())).is_ok());
            });
            let state = cache.state();
            let there = state
                .slots
                .values()
                .filter(|entry| entry.slot.value.get().is_some())
                .count();
            assert_eq!(
                (state.bytes, state.clock.len()),
                (there as u64 * 512, state.slots.len())
            );
        }
    }

    #[test]
    fn a_failed_load_is_tried_again() {
        let cache = TableCache::new(1 << 20);
        assert!(cache.get_or_load(key(1), || Err(Error::Closed)).is_err());
        assert_eq!(&cache.get_or_load(key(1), || Ok(vec![1].into())).unwrap()[..], [1]);
        assert_eq!(cache.state().clock.len(), 1);
    }

    /// A load that panicked left its slot behind, which nothing ever filled or took away.
    #[test]
    fn a_load_that_panics_leaves_nothing() {
        let cache = TableCache::new(1 << 20);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = cache.get_or_load(key(1), || panic!("broken"));
        }));
        assert!(outcome.is_err() && cache.state().slots.is_empty());
        assert_eq!(&cache.get_or_load(key(1), || Ok(vec![1].into())).unwrap()[..], [1]);
    }

    #[test]
    fn nobody_loads_ahead_what_somebody_else_is_at() {
        let cache = TableCache::new(1 << 20);
        let piece = cache.get_or_load(key(1), || {
            assert!(cache.try_get(key(1)).is_none());
            cache.load_ahead(key(1), || panic!("loaded twice at once")).unwrap();
            Ok(vec![1].into())
        });
        assert_eq!(&piece.unwrap()[..], [1]);
        cache.load_ahead(key(1), || panic!("loaded again")).unwrap();
        assert!(cache.load_ahead(key(2), || Err(Error::Closed)).is_err() && !cache.is_known(key(2)));
        cache.load_ahead(key(2), || Ok(vec![2].into())).unwrap();
        assert_eq!(&cache.try_get(key(2)).unwrap()[..], [2]);
    }

    #[test]
    fn what_is_loaded_while_everything_is_forgotten_is_not_kept() {
        let cache = TableCache::new(1 << 20);
        cache.get_or_load(key(1), || Ok(vec![1].into())).unwrap();
        let piece = cache.get_or_load(key(2), || {
            cache.clear();
            Ok(vec![2].into())
        });
        assert_eq!(&piece.unwrap()[..], [2]);
        assert!(!cache.is_known(key(1)) && !cache.is_known(key(2)));
        let state = cache.state();
        assert_eq!((state.bytes, state.clock.len()), (0, 0));
    }
}
