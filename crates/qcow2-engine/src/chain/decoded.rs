//! Decoded clusters that small reads come back to, and those that they are likely to want next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use qcow2_format::{CompressedDescriptor, GuestOffset};

use super::Chain;
use super::ahead::{self, Job};
use super::mapping::View;
use super::streams::Streams;
use crate::cache::{Cache, Cached};
use crate::run::RunKind;

/// The bytes of a decoded cluster.
pub(super) type Cluster = Arc<Vec<u8>>;
/// Which cluster: the layer, and what its entry says.
pub(super) type Key = (u32, CompressedDescriptor);

/// Clusters that are decoded ahead of a reader at most.
const AHEAD: u64 = 16;

impl Cached for Cluster {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// See the module. Shared with the threads that decode ahead.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) cache: Cache<Key, Cluster>,
    budget: u64,
    /// Position of the cluster that was read last, to see at once that it is read again.
    last: AtomicU64,
    streams: Mutex<Streams>,
    /// Threads that decode for this chain now.
    running: Mutex<usize>,
    idle: Condvar,
}

impl Decoded {
    /// Keeps at most `budget` bytes, but in any case the one cluster that was decoded last, however large it is.
    pub(super) fn new(budget: u64, views: &[Arc<View>]) -> Self {
        let largest = views.iter().filter_map(|view| view.layer.cluster_size()).max();
        let budget = budget.max(largest.unwrap_or(0));
        Self {
            cache: Cache::new(budget),
            budget,
            last: AtomicU64::new(u64::MAX),
            streams: Mutex::default(),
            running: Mutex::new(0),
            idle: Condvar::new(),
        }
    }

    pub(super) fn begin(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    pub(super) fn end(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = running.saturating_sub(1);
        if *running == 0 {
            self.idle.notify_all();
        }
    }

    pub(super) fn wait_until_idle(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while *running > 0 {
            running = self.idle.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Chain {
    /// A part of the compressed cluster of `view` at `cluster` is read: has those decoded that are likely to be read next. Never waits.
    pub(super) fn read_ahead(&self, view: &View, cluster: GuestOffset) {
        if self.decoded.last.swap(cluster.0, Ordering::Relaxed) == cluster.0 {
            return;
        }
        let (Some(size), Ok(mut streams)) = (view.layer.cluster_size(), self.decoded.streams.try_lock()) else {
            return;
        };
        // What is decoded ahead must not push itself out before it is read.
        let most = (self.decoded.budget / 4 / size).min(AHEAD);
        let most = u32::try_from(most).unwrap_or(0);
        streams.notice(cluster.0, size, most, |next| self.decode_ahead(GuestOffset(next)));
    }

    /// Whether the cluster at `at` is decoded, or will be, or need not be.
    fn decode_ahead(&self, at: GuestOffset) -> bool {
        let end = GuestOffset(at.0.saturating_add(1).min(self.virtual_size()));
        let mut found = None;
        if let Some(mut state) = self.index.try_lock() {
            state.known(at, end, |run| {
                found = Some(run);
                false
            });
        }
        match found.map(|run| {
            (
                run.kind,
                self.views.get(usize::try_from(run.depth).unwrap_or(usize::MAX)),
            )
        }) {
            Some((RunKind::Compressed { descriptor, cluster }, Some(view))) => {
                let key = (view.depth, descriptor);
                self.decoded.cache.try_get(key).is_some()
                    || ahead::submit(Job {
                        decoded: Arc::clone(&self.decoded),
                        view: Arc::clone(view),
                        descriptor,
                        cluster,
                    })
            }
            Some(_) => true,
            // Behind the end, or nobody has looked yet.
            None => false,
        }
    }
}

impl Drop for Chain {
    /// Files are closed and locks given back when this returns: nobody may be reading any more.
    fn drop(&mut self) {
        ahead::leave(&self.decoded);
    }
}
