//! One layer's answer for a guest range: the L1 and L2 walk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use qcow2_format::{ClusterMapping, CompressedDescriptor, GuestOffset, HostOffset, L2Entry, Table};

use super::l1::{L1Entries, L1Table};
use crate::cache::{Piece, TableCache};
use crate::error::{Error, Result};
use crate::layer::{Image, Layer};
use crate::overlay::Overlay;

/// Table pieces are at most this long: with large clusters a whole table would be megabytes for one lookup.
pub(super) const PIECE: u64 = 64 << 10;
/// Every bit of an L2 word but COPIED, which does not matter to a reader.
const NOT_COPIED: u64 = !(1 << 63);
/// Entries that are compared at a time.
const GROUP: usize = 16;
/// The first host offset that is too large.
const OFFSET_END: u64 = 1 << 56;

/// What one layer says, without asking the layers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing here. `host`: a place is kept for it all the same (extended L2).
    Unallocated { host: Option<HostOffset> },
    /// Zeros. `host`: a place is kept for it.
    Zero { host: Option<HostOffset> },
    /// The bytes stand at `host`.
    Data { host: HostOffset },
    /// Part of a compressed cluster.
    Compressed {
        descriptor: CompressedDescriptor,
        cluster: GuestOffset,
    },
}

/// A layer as a chain sees it: the active disk, or one of its snapshots.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) layer: Arc<Layer>,
    /// Its depth in the chain.
    pub(crate) depth: u32,
    pub(crate) l1: Arc<L1Table>,
    size: AtomicU64,
    pub(crate) preallocated: OnceLock<bool>,
    /// What is newer than the file, if somebody writes to this layer.
    pub(crate) overlay: Option<Arc<Overlay>>,
}

/// The table piece that the last lookup in a view used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor {
    last: Option<(HostOffset, Piece)>,
    /// The L1 table, as it was when the walk came to the view.
    l1: Option<L1Entries>,
    /// Whoever looks passes by: pieces behind the first go through one buffer and are not kept. The first is, for a walk that goes on where
    /// another one ended.
    passing: bool,
}

impl Cursor {
    /// A cursor of a walk through more tables than anybody will want again.
    pub(crate) fn passing() -> Self {
        Self {
            passing: true,
            ..Self::default()
        }
    }
}

impl View {
    /// `layer` at `depth`, seen through `l1`.
    pub(crate) fn new(
        layer: Arc<Layer>,
        depth: u32,
        l1: Arc<L1Table>,
        virtual_size: u64,
        overlay: Option<Arc<Overlay>>,
    ) -> Self {
        Self {
            layer,
            depth,
            l1,
            size: AtomicU64::new(virtual_size),
            preallocated: OnceLock::new(),
            overlay,
        }
    }

    /// Size of the disk in bytes, as this layer has it.
    pub(crate) fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_virtual_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Whether the image's clusters were reserved before they were written. Looked up once, unless that fails.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn is_preallocated(&self) -> Result<bool> {
        if let Some(&known) = self.preallocated.get() {
            return Ok(known);
        }
        // Zeros of the file are not the guest's zeros where it is encrypted.
        let encrypted = self.layer.guest_data().is_encrypted();
        let found = !encrypted && super::preallocated::detect(&self.layer)?;
        Ok(*self.preallocated.get_or_init(|| found))
    }

    /// Whether a hole in the file under data is zeros of the disk, and worth looking for.
    pub(crate) fn has_holes(&self) -> Result<bool> {
        if self.layer.image().is_none() {
            return Ok(!self.layer.guest_data().is_encrypted());
        }
        self.is_preallocated()
    }

    /// The answer for `at`, and how many bytes from there on have it: at least 1, at most `limit`, not beyond a table piece.
    ///
    /// `at` lies inside the view, `limit` is not 0.
    pub(crate) fn answer(
        &self,
        at: GuestOffset,
        limit: u64,
        cache: &TableCache,
        cursor: &mut Cursor,
    ) -> Result<(Answer, u64)> {
        let limit = limit.min(self.virtual_size().saturating_sub(at.0)).max(1);
        let Some(image) = self.layer.image() else {
            return Ok((Answer::Data { host: HostOffset(at.0) }, limit));
        };
        let geometry = image.header.geometry;
        let l1_index = geometry.l1_index(at);
        let l1 = cursor.l1.get_or_insert_with(|| self.l1.entries());
        let Some(l2_offset) = l1.get(l1_index).l2_offset() else {
            let span = empty_span(l1, image, at, l1_index, limit);
            return Ok((Answer::Unallocated { host: None }, span));
        };
        let (cluster_size, entry_size) = (geometry.cluster_size(), geometry.l2_entry_size());
        if !l2_offset.is_aligned(cluster_size) {
            return Err(self.entry_fault(
                Table::L1,
                self.l1_place(image, l1_index),
                at,
                qcow2_format::EntryFault::Unaligned,
            ));
        }
        let piece_size = cluster_size.min(PIECE);
        let in_table = geometry.l2_index(at) * entry_size;
        let piece_offset = HostOffset(l2_offset.0 + (in_table & !(piece_size - 1)));
        let piece = self.piece(image, l2_offset, piece_offset, cache, cursor)?;
        let scan = Scan {
            view: self,
            image,
            entries: &piece,
            piece_offset,
        };
        let first = usize::try_from((in_table & (piece_size - 1)) / entry_size).unwrap_or(usize::MAX);
        scan.answer(at, limit, first)
    }

    /// The guest range, a power of two, whose entries stand in one table piece. None: there are no tables.
    pub(crate) fn piece_span(&self) -> Option<u64> {
        let geometry = self.layer.image()?.header.geometry;
        let entries = geometry.cluster_size().min(PIECE) / geometry.l2_entry_size();
        Some(entries.saturating_mul(geometry.cluster_size()))
    }

    fn piece(
        &self,
        image: &Image,
        l2_offset: HostOffset,
        piece_offset: HostOffset,
        cache: &TableCache,
        cursor: &mut Cursor,
    ) -> Result<Piece> {
        if let Some((offset, piece)) = &cursor.last
            && *offset == piece_offset
        {
            return Ok(piece.clone());
        }
        let key = (self.depth, piece_offset);
        let before = cursor.last.take().filter(|_| cursor.passing);
        let kept = before.as_ref().and_then(|_| cache.try_get(key));
        let piece = match (kept, before) {
            (Some(kept), _) => kept,
            (None, Some((_, before))) => self.load(image, l2_offset, piece_offset, before)?,
            (None, None) => cache.get_or_load(key, || self.load(image, l2_offset, piece_offset, Piece::default()))?,
        };
        cursor.last = Some((piece_offset, piece.clone()));
        Ok(piece)
    }

    /// Reads a piece, in the place of `before` if nobody else has that. A table that passes the end of the file is an error as a whole, whichever
    /// piece of it is wanted.
    fn load(&self, image: &Image, l2_offset: HostOffset, piece_offset: HostOffset, before: Piece) -> Result<Piece> {
        let cluster_size = image.header.geometry.cluster_size();
        let storage = &**self.layer.storage();
        let length = || storage.length().map_err(Error::io("stat", storage));
        let truncated = |file_length| Error::Truncated {
            path: self.layer.path(),
            table: Table::L2,
            offset: l2_offset,
            length: cluster_size,
            file_length,
        };
        let wanted = usize::try_from(cluster_size.min(PIECE)).unwrap_or(0);
        // Of a table that is one piece, the read tells.
        if cluster_size > PIECE {
            let length = match &self.overlay {
                Some(overlay) => overlay.length(storage).map_err(Error::io("stat", storage))?,
                None => length()?,
            };
            if l2_offset.checked_add(cluster_size).is_none_or(|end| end.0 > length) {
                return Err(truncated(length));
            }
        }
        let mut piece = before;
        if piece.len() != wanted || Arc::get_mut(&mut piece).is_none() {
            piece = std::iter::repeat_n(0, wanted).collect();
        }
        let bytes = Arc::get_mut(&mut piece).unwrap_or_default();
        let filled = match &self.overlay {
            Some(overlay) => overlay.read(storage, piece_offset, bytes),
            None => storage.read_at(piece_offset, bytes),
        };
        let filled = filled.map_err(Error::io("read", storage))?;
        if filled < wanted {
            return Err(truncated(length()?.min(piece_offset.0.saturating_add(filled as u64))));
        }
        Ok(piece)
    }

    fn l1_place(&self, image: &Image, index: u64) -> HostOffset {
        HostOffset(image.header.l1_offset.0.saturating_add(index.saturating_mul(8)))
    }

    fn entry_fault(
        &self,
        table: Table,
        offset: HostOffset,
        guest: GuestOffset,
        fault: qcow2_format::EntryFault,
    ) -> Error {
        Error::Entry {
            path: self.layer.path(),
            table,
            offset,
            guest,
            fault,
        }
    }
}

/// How far from `at` the L1 entries are empty: a hole of any size is one step.
fn empty_span(l1: &L1Entries, image: &Image, at: GuestOffset, index: u64, limit: u64) -> u64 {
    let span = image.header.geometry.l1_entry_span();
    let wanted = limit / span + 2;
    let behind = l1.len().saturating_sub(index).min(wanted);
    let empty = l1.empty(index, behind).max(1);
    if empty >= behind {
        // Beyond the table there is nothing either; the limit ends inside what was looked at, or at the view's end.
        return limit;
    }
    let end = index.saturating_add(empty).saturating_mul(span);
    end.saturating_sub(at.0).clamp(1, limit)
}

/// The walk along the entries of one table piece.
struct Scan<'a> {
    view: &'a View,
    image: &'a Image,
    entries: &'a [u8],
    piece_offset: HostOffset,
}

impl Scan<'_> {
    fn answer(&self, at: GuestOffset, limit: u64, first: usize) -> Result<(Answer, u64)> {
        let geometry = self.image.header.geometry;
        let cluster = geometry.cluster_start(at);
        let within = at.0 - cluster.0;
        let entry = self.entry(first);
        let mapping = entry.mapping(&self.image.rules, cluster).map_err(|fault| {
            let place = self
                .piece_offset
                .0
                .saturating_add(first as u64 * geometry.l2_entry_size());
            self.view.entry_fault(Table::L2, HostOffset(place), cluster, fault)
        })?;
        let cluster_size = geometry.cluster_size();
        let in_cluster = cluster_size - within;
        let place = |host: HostOffset| HostOffset(host.0 + within);
        let (answer, step) = match mapping {
            ClusterMapping::Compressed(descriptor) => {
                return Ok((Answer::Compressed { descriptor, cluster }, in_cluster.min(limit)));
            }
            ClusterMapping::Subclusters { host, allocated, zero } => {
                let (answer, length) = self.subcluster(within, host, allocated, zero);
                return Ok((answer, length.min(limit)));
            }
            ClusterMapping::Unallocated => (Answer::Unallocated { host: None }, 0),
            ClusterMapping::Zero(None) => (Answer::Zero { host: None }, 0),
            ClusterMapping::Zero(Some(host)) => (
                Answer::Zero {
                    host: Some(place(host)),
                },
                cluster_size,
            ),
            ClusterMapping::Data(host) => (Answer::Data { host: place(host) }, cluster_size),
        };
        if in_cluster >= limit {
            return Ok((answer, limit));
        }
        let wanted = (limit - in_cluster).div_ceil(cluster_size);
        let more = self.alike(first, entry, step, usize::try_from(wanted).unwrap_or(usize::MAX));
        Ok((answer, (in_cluster + more * cluster_size).min(limit)))
    }

    fn entry(&self, index: usize) -> L2Entry {
        let word = |index: usize| self.words().get(index).map_or(0, |word| u64::from_be_bytes(*word));
        if self.image.rules.geometry.extended_l2() {
            L2Entry {
                word: word(index * 2),
                subclusters: word(index * 2 + 1),
            }
        } else {
            L2Entry {
                word: word(index),
                subclusters: 0,
            }
        }
    }

    fn words(&self) -> &[[u8; 8]] {
        self.entries.as_chunks::<8>().0
    }

    /// How many entries after `first`, at most `wanted`, are like it, each `step` bytes further on. Equal words need no look at what they mean:
    /// whatever made `entry` valid makes them valid, and in a data file each further one is as far on as its guest offset.
    fn alike(&self, first: usize, entry: L2Entry, step: u64, wanted: usize) -> u64 {
        // COPIED without a host offset is a fault, so only entries with one may differ in it.
        let mask = if step == 0 { u64::MAX } else { NOT_COPIED };
        // Nor may the offsets run over the largest one.
        let room = (OFFSET_END - entry.host_offset().0.min(OFFSET_END))
            .checked_div(step)
            .map_or(u64::MAX, |n| n.saturating_sub(1));
        let wanted = wanted.min(usize::try_from(room).unwrap_or(usize::MAX));
        let next = |index: usize| (entry.word & mask).wrapping_add(step.wrapping_mul(index as u64 + 1));
        let differs = |word: &[u8; 8], index: usize| (u64::from_be_bytes(*word) & mask) ^ next(index);
        if self.image.rules.geometry.extended_l2() {
            let rest = self.words().get((first + 1) * 2..).unwrap_or_default();
            let (pairs, _) = rest.as_chunks::<2>();
            let same = |(index, [word, bits]): &(usize, &[[u8; 8]; 2])| {
                differs(word, *index) == 0 && u64::from_be_bytes(*bits) == entry.subclusters
            };
            return pairs.iter().take(wanted).enumerate().take_while(same).count() as u64;
        }
        let rest = self.words().get(first + 1..).unwrap_or_default();
        let rest = rest.get(..wanted).unwrap_or(rest);
        // Long rows first, many entries to a question; then one by one up to the one that is different.
        let (groups, _) = rest.as_chunks::<GROUP>();
        let same = |(number, group): &(usize, &[[u8; 8]; GROUP])| {
            let mut expected = next(*number * GROUP);
            let mut differs = 0;
            for word in *group {
                differs |= (u64::from_be_bytes(*word) & mask) ^ expected;
                expected = expected.wrapping_add(step);
            }
            differs == 0
        };
        let alike = groups.iter().enumerate().take_while(same).count() * GROUP;
        let rest = rest.iter().enumerate().skip(alike);
        alike as u64 + rest.take_while(|(index, word)| differs(word, *index) == 0).count() as u64
    }

    /// The answer of the subcluster at `within`, and the bytes from there to the end of the last subcluster in a row that has it too.
    fn subcluster(&self, within: u64, host: Option<HostOffset>, allocated: u32, zero: u32) -> (Answer, u64) {
        let size = self.image.header.geometry.subcluster_size();
        let index = within / size;
        let state = |index: u64| (allocated >> index & 1, zero >> index & 1);
        let here = state(index);
        let end = (index + 1..32).find(|&other| state(other) != here).unwrap_or(32);
        let host = host.map(|host| HostOffset(host.0 + within));
        let answer = match (here, host) {
            ((1, _), Some(host)) => Answer::Data { host },
            ((_, 1), host) => Answer::Zero { host },
            (_, host) => Answer::Unallocated { host },
        };
        (answer, end * size - within)
    }
}
