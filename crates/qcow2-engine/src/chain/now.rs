//! A read that memory can answer: without waiting, without input or output, and without allocating.

use std::sync::Arc;

use qcow2_format::{GuestOffset, HostOffset};

use super::Chain;
use crate::layer::GuestData;
use crate::run::{Run, RunKind};
use crate::storage::{CallerMemory, Storage};
use crate::ticket::Ticket;

/// Pieces that an answer has at most.
const PIECES: usize = 8;

/// Where the bytes of a range are, and the ticket that keeps them there for as long as this lives.
#[derive(Debug)]
pub struct NowAnswer<'a> {
    pieces: [Option<NowPiece<'a>>; PIECES],
    length: usize,
    _ticket: Ticket<'a>,
}

impl<'a> NowAnswer<'a> {
    /// Bytes of all pieces together: what was asked for, less only at the end of the disk.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The pieces, in order and without gaps.
    pub fn pieces(&self) -> impl Iterator<Item = &NowPiece<'a>> {
        self.pieces.iter().map_while(Option::as_ref)
    }
}

/// A part of the range with one answer.
#[derive(Debug)]
pub enum NowPiece<'a> {
    /// The bytes stand in a file. Where that has fewer, [`Chain::read`] decides: they are zeros, or the file is truncated.
    Data {
        /// The file.
        storage: &'a Arc<dyn Storage>,
        /// Place of the first byte.
        host: HostOffset,
        /// In bytes, never 0.
        length: usize,
    },
    /// The same, encrypted.
    Encrypted(EncryptedPiece<'a>),
    /// Zeros.
    Zero {
        /// In bytes, never 0.
        length: usize,
    },
    /// Part of a compressed cluster that was decoded before.
    Decoded(DecodedPiece),
}

/// Bytes that stand in a file encrypted.
#[derive(Debug)]
pub struct EncryptedPiece<'a> {
    data: &'a GuestData,
    guest: GuestOffset,
    host: HostOffset,
    length: usize,
}

impl EncryptedPiece<'_> {
    /// Fills `memory` with the bytes from byte `from` of the piece on; returns how many could be had without waiting.
    pub(super) fn read_now(&self, from: usize, memory: &mut CallerMemory<'_>) -> Option<usize> {
        let guest = self.guest.checked_add(from as u64)?;
        self.data.read_now(guest, self.host.checked_add(from as u64)?, memory)
    }
}

/// Bytes of a decoded cluster, kept alive by this.
#[derive(Clone, Debug)]
pub struct DecodedPiece {
    cluster: Arc<Vec<u8>>,
    from: usize,
    length: usize,
}

impl DecodedPiece {
    /// The bytes, never none.
    pub fn bytes(&self) -> &[u8] {
        let end = self.from.saturating_add(self.length);
        self.cluster.get(self.from..end).unwrap_or_default()
    }
}

impl NowPiece<'_> {
    /// In bytes, never 0.
    pub fn length(&self) -> usize {
        match self {
            Self::Data { length, .. } | Self::Zero { length } => *length,
            Self::Encrypted(piece) => piece.length,
            Self::Decoded(piece) => piece.bytes().len(),
        }
    }
}

impl Chain {
    /// Where the `length` bytes from `start` are, as far as they lie inside the disk, if memory knows.
    ///
    /// None: somebody has the lock, the index does not know all of the range, or it is in more than a few pieces or in compressed clusters that are
    /// not at hand. [`Chain::read`] answers then, and the same question has an answer afterwards more often than not.
    pub fn now(&self, start: GuestOffset, length: usize) -> Option<NowAnswer<'_>> {
        let there = self.virtual_size().saturating_sub(start.0);
        let length = usize::try_from(there).unwrap_or(usize::MAX).min(length);
        let mut answer = NowAnswer {
            pieces: [const { None }; PIECES],
            length,
            _ticket: self.ticket(),
        };
        let end = GuestOffset(start.0.checked_add(length as u64)?);
        let mut places = answer.pieces.iter_mut();
        let mut compressed = [None; 2];
        let mut state = self.index.try_lock()?;
        let known = state.known(start, end, |run| {
            if let RunKind::Compressed { cluster, .. } = run.kind {
                compressed.rotate_left(1);
                compressed[1] = Some((run.depth, cluster));
            }
            let piece = self.piece_now(&run);
            match (piece, places.next()) {
                (Some(piece), Some(place)) => {
                    *place = Some(piece);
                    true
                }
                _ => false,
            }
        });
        if known != end && length != 0 {
            return None;
        }
        drop(state);
        for &(depth, cluster) in compressed.iter().flatten() {
            if let Some(view) = self.view(depth) {
                self.read_ahead(view, cluster);
            }
        }
        Some(answer)
    }

    fn piece_now(&self, run: &Run) -> Option<NowPiece<'_>> {
        let length = usize::try_from(run.length).ok()?;
        match run.kind {
            RunKind::Data { host } => {
                let data = self.data.get(usize::try_from(run.depth).ok()?)?;
                Some(if data.is_encrypted() {
                    NowPiece::Encrypted(EncryptedPiece {
                        data,
                        guest: run.start,
                        host,
                        length,
                    })
                } else {
                    NowPiece::Data {
                        storage: data.storage(),
                        host,
                        length,
                    }
                })
            }
            RunKind::Zero { .. } | RunKind::Unallocated => Some(NowPiece::Zero { length }),
            RunKind::Compressed { descriptor, cluster } => {
                let view = self.view(run.depth)?;
                let bytes = self.decoded.cache.try_get((view.depth, descriptor))?;
                Some(NowPiece::Decoded(DecodedPiece {
                    cluster: bytes,
                    from: usize::try_from(run.start.0.checked_sub(cluster.0)?).ok()?,
                    length,
                }))
            }
        }
    }
}
