//! Pieces of L2 tables in memory: one byte budget for a chain, each piece loaded once, whoever asks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use qcow2_format::HostOffset;

use crate::error::Result;

/// Which piece: the layer, and where it stands in the layer's file.
pub(crate) type Key = (u32, HostOffset);
/// The bytes of a piece, as they stand in the file.
pub(crate) type Piece = Arc<[u8]>;

/// Pieces by key. What was not used since the hand last passed is dropped first (a clock).
#[derive(Debug)]
pub(crate) struct TableCache {
    budget: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Entry>,
    clock: VecDeque<Key>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    slot: Arc<Slot>,
    used: bool,
}

/// A piece that is there or being loaded.
#[derive(Debug, Default)]
struct Slot {
    piece: OnceLock<Piece>,
    loading: Mutex<()>,
}

impl TableCache {
    /// A cache that keeps at most `budget` bytes, apart from what is in use.
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            budget,
            state: Mutex::default(),
        }
    }

    /// The piece at `key`, from memory or by `load`. Of several who ask at once, one loads and the others wait. A failed load leaves nothing.
    pub(crate) fn piece(&self, key: Key, load: impl FnOnce() -> Result<Vec<u8>>) -> Result<Piece> {
        let slot = self.slot(key);
        if let Some(piece) = slot.piece.get() {
            return Ok(piece.clone());
        }
        let _loading = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = slot.piece.get() {
            return Ok(piece.clone());
        }
        match load() {
            Ok(bytes) => {
                let piece: Piece = bytes.into();
                self.keep(key, &slot, &piece);
                Ok(piece)
            }
            Err(error) => {
                self.forget(key, &slot);
                Err(error)
            }
        }
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut state = self.state();
        let State { slots, clock, .. } = &mut *state;
        let entry = slots.entry(key).or_insert_with(|| {
            clock.push_back(key);
            Entry {
                slot: Arc::default(),
                used: false,
            }
        });
        entry.used = true;
        entry.slot.clone()
    }

    /// The piece is there: counts it and makes room. Both under the one lock, so that nobody takes away what is not counted yet. A slot that a
    /// failed load gave up meanwhile serves those who wait at it and is not counted: nothing would ever take it off again.
    fn keep(&self, key: Key, slot: &Arc<Slot>, piece: &Piece) {
        let mut state = self.state();
        let _ = slot.piece.set(piece.clone());
        if state
            .slots
            .get(&key)
            .is_none_or(|entry| !Arc::ptr_eq(&entry.slot, slot))
        {
            return;
        }
        state.bytes += piece.len() as u64;
        // Twice around at most: the first pass takes the marks away.
        for _ in 0..state.clock.len().saturating_mul(2) {
            if state.bytes <= self.budget {
                break;
            }
            let Some(key) = state.clock.pop_front() else { break };
            let keep = match state.slots.get_mut(&key) {
                None => continue,
                Some(entry) => std::mem::take(&mut entry.used) || entry.slot.piece.get().is_none(),
            };
            if keep {
                state.clock.push_back(key);
            } else if let Some(entry) = state.slots.remove(&key) {
                let freed = entry.slot.piece.get().map_or(0, |piece| piece.len() as u64);
                state.bytes = state.bytes.saturating_sub(freed);
            }
        }
    }

    fn forget(&self, key: Key, slot: &Arc<Slot>) {
        let mut state = self.state();
        if state
            .slots
            .get(&key)
            .is_some_and(|entry| Arc::ptr_eq(&entry.slot, slot))
        {
            state.slots.remove(&key);
            state.clock.retain(|other| *other != key);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::Error;

    fn key(n: u64) -> Key {
        (0, HostOffset(n * 512))
    }

    #[test]
    fn a_piece_is_loaded_once_however_many_ask() {
        let (cache, loads) = (TableCache::new(1 << 20), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let piece = cache.piece(key(7), || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(vec![7; 512])
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
            cache.piece(key(n), || Ok(vec![0; 512])).unwrap();
            cache
                .piece(key(0), || {
                    reloads += 1;
                    Ok(vec![0; 512])
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
                    let failed = cache.piece(key(n), || {
                        begun.send(()).unwrap();
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        Err(Error::Closed)
                    });
                    assert!(failed.is_err());
                });
                failing.recv().unwrap();
                assert!(cache.piece(key(n), || Ok(vec![0; 512])).is_ok());
            });
            let state = cache.state();
            let there = state
                .slots
                .values()
                .filter(|entry| entry.slot.piece.get().is_some())
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
        assert!(cache.piece(key(1), || Err(Error::Closed)).is_err());
        assert_eq!(&cache.piece(key(1), || Ok(vec![1])).unwrap()[..], [1]);
        assert_eq!(cache.state().clock.len(), 1);
    }
}
