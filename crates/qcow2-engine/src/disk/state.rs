//! What a writable image knows, behind one lock that is never held across input or output.
//!
//! Whatever runs under the lock is a *step*: it either finishes, or says which piece of a table it misses and is run again once that is there. So a
//! step looks at all that it needs first and changes things last.

use crate::sync::MutexGuard;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, Weak};

use qcow2_format::entry::EntryRules;
use qcow2_format::{Geometry, HostOffset, RefcountOrder, Table};

use super::Image;
use super::guard::Guard;
use super::header::HeaderFields;
use super::reclaim::Quarantine;
use crate::chain::l1::{L1Entries, L1Table};
use crate::error::{Error, Result};
use crate::overlay::{Class, Overlay, SECTOR};

/// Pieces that tables are kept in.
pub(super) const PIECE: u64 = 4096;

/// Why a step did not finish.
#[derive(Debug)]
pub(super) enum Stop {
    /// It needs the table piece at this place.
    Load(u64),
    /// The cluster at this place is going to be a table: the file has to have space for it first.
    Reserve(u64),
    /// Somebody else has what it needs: again after the next change.
    Wait,
    /// It cannot be done.
    Fail(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fail(error)
    }
}

/// The outcome of a step.
pub(super) type Step<T> = std::result::Result<T, Stop>;

/// What is known, and what has changed.
#[derive(Debug)]
pub(super) struct State {
    pub(super) geometry: Geometry,
    pub(super) rules: EntryRules,
    pub(super) order: RefcountOrder,
    pub(super) overlay: Arc<Overlay>,
    pub(super) l1: Arc<L1Table>,
    /// The refcount table: offsets of blocks.
    pub(super) refcount_table: Vec<u64>,
    pub(super) header: HeaderFields,
    pub(super) guard: Guard,
    /// Tables that nothing on disk names yet: by place, and in which step they are written.
    pub(super) fresh: HashMap<u64, Class>,
    /// No cluster below is free.
    pub(super) hint: u64,
    /// Guest clusters that somebody is changing.
    pub(super) claims: HashSet<u64>,
    pub(super) quarantine: Quarantine,
    pub(super) snapshots: Vec<qcow2_format::Snapshot>,
    /// Place and bytes of their table.
    pub(super) snapshot_table: (u64, u64),
    /// Snapshots, by their ids, that somebody reads for as long as this lives.
    pub(super) views: Vec<(Vec<u8>, Weak<L1Table>)>,
    /// Places of the active L2 tables, and the L1 table that they were taken from.
    pub(super) l2_tables: Option<(L1Entries, HashSet<u64>)>,
    tables: Tables,
    loading: HashSet<u64>,
    /// Free clusters that the file has space for.
    pub(super) reserved: HashSet<u64>,
    /// A test wants the order of refcounts and pointers broken.
    refcounts_late: bool,
    /// What the readers know is patched with every change.
    pub(super) chain: Arc<crate::chain::Chain>,
}

/// Pieces of tables, as they are now. What was not used since the hand last passed goes first (a clock); what is dirty is in the overlay too.
#[derive(Debug)]
struct Tables {
    pieces: HashMap<u64, (Box<[u8]>, bool)>,
    clock: VecDeque<u64>,
    bytes: u64,
    budget: u64,
}

impl State {
    pub(super) fn new(parts: super::Parts) -> Self {
        let super::Parts {
            header,
            sector,
            overlay,
            l1,
            refcount_table,
            chain,
            snapshots,
            snapshot_table,
            table_bytes,
            refcounts_late,
        } = parts;
        let geometry = header.geometry;
        let mut guard = Guard::new(&header, &refcount_table, &snapshots);
        guard.add_bytes(geometry, HostOffset(snapshot_table.0), snapshot_table.1);
        Self {
            geometry,
            rules: header.entry_rules(),
            order: header.refcount_order,
            overlay,
            l1,
            guard,
            refcount_table,
            header: HeaderFields::new(&header, sector),
            fresh: HashMap::new(),
            hint: 1,
            claims: HashSet::new(),
            quarantine: Quarantine::default(),
            snapshots,
            snapshot_table,
            views: Vec::new(),
            l2_tables: None,
            tables: Tables {
                pieces: HashMap::new(),
                clock: VecDeque::new(),
                bytes: 0,
                // Enough for whatever one step needs, several times over.
                budget: table_bytes.max(64 * PIECE).max(geometry.cluster_size() * 8),
            },
            loading: HashSet::new(),
            reserved: HashSet::new(),
            refcounts_late,
            chain,
        }
    }

    pub(super) fn cluster_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    pub(super) fn piece_size(&self) -> u64 {
        self.geometry.cluster_size().min(PIECE)
    }

    /// The piece that the byte at `offset` of a table is in.
    pub(super) fn piece(&mut self, offset: u64) -> Step<&[u8]> {
        let at = offset & !(self.piece_size() - 1);
        match self.tables.pieces.get_mut(&at) {
            Some((bytes, used)) => {
                *used = true;
                Ok(bytes)
            }
            None => Err(Stop::Load(at)),
        }
    }

    /// Makes sure that all of a range of a table is here.
    pub(super) fn touch(&mut self, offset: u64, length: u64) -> Step<()> {
        let size = self.piece_size();
        for at in (offset & !(size - 1)..offset.saturating_add(length)).step_by(to_len(size)) {
            self.piece(at)?;
        }
        Ok(())
    }

    /// `N` bytes of a table; they do not cross a piece.
    pub(super) fn bytes<const N: usize>(&mut self, offset: u64) -> Step<[u8; N]> {
        let within = to_len(offset & (self.piece_size() - 1));
        let piece = self.piece(offset)?;
        let bytes = piece.get(within..within + N).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| internal("a table is asked for bytes across a piece"))
    }

    /// Changes bytes of the table in the cluster at `table`; they do not cross a piece, which is here.
    pub(super) fn put(&mut self, table: u64, offset: u64, bytes: &[u8]) -> Step<()> {
        self.change(table, offset, |place| {
            if let Some(place) = place.get_mut(..bytes.len()) {
                place.copy_from_slice(bytes);
            }
            bytes.len()
        })
    }

    /// Changes a table from `offset` on; `change` is given the rest of the piece and says how many bytes of it it may have changed.
    pub(super) fn change(&mut self, table: u64, offset: u64, change: impl FnOnce(&mut [u8]) -> usize) -> Step<()> {
        let class = self.fresh.get(&table).copied();
        let size = self.piece_size();
        let at = offset & !(size - 1);
        let within = to_len(offset - at);
        let Some((piece, used)) = self.tables.pieces.get_mut(&at) else {
            return Err(Stop::Load(at));
        };
        *used = true;
        let length = change(piece.get_mut(within..).unwrap_or_default());
        let class = class.unwrap_or(self.rest_class(table));
        let (piece, _) = self.tables.pieces.get(&at).ok_or(Stop::Load(at))?;
        let last = within.saturating_add(length.max(1)) - 1;
        for sector in within / 512..=last / 512 {
            let bytes = piece.get(sector * 512..).and_then(|rest| rest.first_chunk());
            let bytes = bytes.ok_or_else(|| internal("a table's piece is no whole sectors"))?;
            self.overlay.put(at + sector as u64 * SECTOR, class, bytes);
        }
        if !self.guard.is_refcount_block(table) {
            let changed = piece.get(within..within + length).unwrap_or_default();
            self.chain.patch_table(HostOffset(offset), changed);
        }
        Ok(())
    }

    /// The class of a table that the disk knows: refcounts are prepared, pointers are published.
    fn rest_class(&self, table: u64) -> Class {
        if self.is_refcount_block(table) && !self.refcounts_late {
            Class::Prepare
        } else {
            Class::Publish
        }
    }

    /// Makes sure that the file has space for a table at `offset`, a free cluster: on a full disk a table that has no place would keep everything
    /// from being flushed that was written before it.
    pub(super) fn reserve_table(&mut self, offset: u64) -> Step<()> {
        if self.reserved.contains(&offset) {
            return Ok(());
        }
        Err(Stop::Reserve(offset))
    }

    /// A new table at `offset`, a whole cluster that nothing names yet, with `contents`.
    pub(super) fn new_table(&mut self, offset: u64, class: Class, contents: &[u8]) {
        self.fresh.insert(offset, class);
        self.reserved.remove(&offset);
        let size = to_len(self.piece_size());
        for (index, piece) in contents.chunks(size).enumerate() {
            let at = offset + (index * size) as u64;
            for (sector, bytes) in piece.as_chunks::<512>().0.iter().enumerate() {
                self.overlay.put(at + sector as u64 * SECTOR, class, bytes);
            }
            self.loading.remove(&at);
            self.chain.patch_table(HostOffset(at), piece);
            self.tables.insert(at, piece.into());
        }
    }

    /// Nobody needs the metadata in a range any more: it is not written, and not kept.
    pub(super) fn drop_tables(&mut self, offset: u64, length: u64) {
        self.overlay.forget(offset, length);
        let (cluster, piece) = (to_len(self.cluster_size()), to_len(self.piece_size()));
        for at in (offset..offset.saturating_add(length)).step_by(cluster) {
            self.fresh.remove(&at);
        }
        for at in (offset..offset.saturating_add(length)).step_by(piece) {
            self.tables.remove(at);
            self.loading.remove(&at);
            self.chain.drop_table(HostOffset(at));
        }
    }

    /// Forgets every table that is kept; what is dirty stays in the overlay.
    pub(super) fn forget_tables(&mut self) {
        self.tables.pieces.clear();
        self.tables.clock.clear();
        self.tables.bytes = 0;
        self.loading.clear();
    }
}

impl Tables {
    fn insert(&mut self, at: u64, bytes: Box<[u8]>) {
        let length = bytes.len() as u64;
        if self.pieces.insert(at, (bytes, true)).is_none() {
            self.clock.push_back(at);
            self.bytes += length;
        }
    }

    fn remove(&mut self, at: u64) {
        if let Some((bytes, _)) = self.pieces.remove(&at) {
            self.bytes = self.bytes.saturating_sub(bytes.len() as u64);
        }
    }

    fn shrink(&mut self) {
        // Twice around at most: the first pass takes the marks away.
        for _ in 0..self.clock.len().saturating_mul(2) {
            if self.bytes <= self.budget {
                break;
            }
            let Some(at) = self.clock.pop_front() else { break };
            let used = self.pieces.get_mut(&at).map(|(_, used)| std::mem::take(used));
            match used {
                None => {}
                Some(true) => self.clock.push_back(at),
                Some(false) => self.remove(at),
            }
        }
        if self.clock.len() > self.pieces.len().saturating_mul(2) + 64 {
            self.clock.retain(|at| self.pieces.contains_key(at));
        }
    }
}

impl Image {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a step to its end.
    ///
    /// # Errors
    /// What stops it, and what forbids loading what it needs.
    pub(super) fn run<T>(&self, mut step: impl FnMut(&mut State) -> Step<T>) -> Result<T> {
        let mut state = self.lock();
        loop {
            state = match step(&mut state) {
                Ok(value) => return Ok(value),
                Err(Stop::Fail(error)) => return Err(error),
                Err(Stop::Wait) => self.wait(state),
                Err(Stop::Reserve(at)) => {
                    drop(state);
                    let size = self.geometry.cluster_size();
                    // Nobody's bytes change by that, whoever takes the cluster meanwhile.
                    self.storage
                        .allocate(HostOffset(at), size)
                        .map_err(Error::io("allocate", &*self.storage))?;
                    self.wrote(false);
                    let mut state = self.lock();
                    // A few at a time: what is not used at once is asked for again.
                    if state.reserved.len() >= 64 {
                        state.reserved.clear();
                    }
                    state.reserved.insert(at);
                    state
                }
                Err(Stop::Load(at)) if state.loading.contains(&at) => self.wait(state),
                Err(Stop::Load(at)) => {
                    state.loading.insert(at);
                    drop(state);
                    let mut loading = Loading {
                        image: self,
                        at: Some(at),
                    };
                    let loaded = self.load(at)?;
                    let mut state = self.lock();
                    loading.at = None;
                    // Otherwise it became a new table, or nobody's, meanwhile.
                    if state.loading.remove(&at) {
                        state.tables.shrink();
                        state.tables.insert(at, loaded);
                    }
                    self.changed.notify_all();
                    state
                }
            };
        }
    }

    /// Waits until something has changed that others may wait for.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, at: u64) -> Result<Box<[u8]>> {
        let size = self.geometry.cluster_size().min(PIECE);
        let mut piece = vec![0; to_len(size)].into_boxed_slice();
        let storage = &*self.storage;
        let filled = self.overlay.read(storage, HostOffset(at), &mut piece);
        let filled = filled.map_err(Error::io("read", storage))?;
        // The last cluster of a file may be there only in part.
        let length = storage.length().map_err(Error::io("stat", storage))?;
        if filled == 0 && at >= length.next_multiple_of(self.geometry.cluster_size()) {
            return Err(Error::Truncated {
                path: storage.path().map(Into::into),
                table: Table::L2,
                offset: HostOffset(at),
                length: size,
                file_length: length,
            });
        }
        Ok(piece)
    }
}

/// Takes a load back that did not come to its end, so that others try it.
struct Loading<'a> {
    image: &'a Image,
    at: Option<u64>,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.image.lock().loading.remove(&at);
            self.image.changed.notify_all();
        }
    }
}

/// A length as the processor counts. What does not fit is no length of anything in memory.
pub(super) fn to_len(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

pub(super) fn internal(message: &str) -> Stop {
    Stop::Fail(Error::Internal {
        message: message.into(),
    })
}
