//! What each guest range is in its files, as `qemu-img map` tells it.

use qcow2_format::{GuestOffset, HostOffset};

use crate::cancel::CancelToken;
use crate::chain::Chain;
use crate::chain::mapping::{Answer, View};
use crate::chain::resolve::{Piece, Walk};
use crate::error::{Error, Result};
use crate::storage::{Extent, Storage};

/// The file that a status' offset counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFile {
    /// The layer.
    pub layer: u32,
    /// Its external data file, not the image.
    pub data_file: bool,
}

/// A guest range with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it begins.
    pub start: GuestOffset,
    /// Its length in bytes, never 0.
    pub length: u64,
    /// The layer that answers.
    pub depth: u32,
    /// Some layer has it: data, or zeros that it says itself.
    pub present: bool,
    /// Reads as zeros. Together with `data`: its cluster was reserved and never written.
    pub zero: bool,
    /// Has bytes of its own.
    pub data: bool,
    /// They are compressed.
    pub compressed: bool,
    /// Place of the first byte, where the bytes stand as they are or have a place kept for them.
    pub offset: Option<HostOffset>,
    /// The file of `offset`.
    pub file: Option<StatusFile>,
}

impl Status {
    /// Whether `next`, which begins where this ends, is more of the same.
    fn continues(&self, next: &Self) -> bool {
        let expected = Self {
            start: next.start,
            length: next.length,
            offset: self.offset.and_then(|offset| offset.checked_add(self.length)),
            ..*self
        };
        expected == *next
    }
}

impl Chain {
    /// The maximal ranges of one status in `length` bytes from `start`, as far as they lie inside the disk: at most `max`, in order, without gaps.
    ///
    /// Holes of raw files count as zeros, and so do holes under reserved clusters of an image whose metadata was preallocated. As with
    /// [`Chain::resolve`], the answer may end early where a table cannot be read.
    ///
    /// # Errors
    /// As [`Chain::resolve`].
    pub fn status(&self, start: GuestOffset, length: u64, max: usize) -> Result<Vec<Status>> {
        self.status_unless(start, length, max, &CancelToken::new())
    }

    /// As [`Chain::status`], until `cancel` says stop: one range may go through millions of tables, all of them alike.
    ///
    /// # Errors
    /// As [`Chain::status`], and [`Error::Cancelled`].
    pub fn status_unless(
        &self,
        start: GuestOffset,
        length: u64,
        max: usize,
        cancel: &CancelToken,
    ) -> Result<Vec<Status>> {
        let mut walk = StatusWalk {
            chain: self,
            walk: Walk::passing(self, start, length),
            rest: None,
            extent: None,
        };
        let mut found: Vec<Status> = Vec::new();
        loop {
            cancel.check()?;
            let next = match walk.next() {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(found),
                Err(error) if found.is_empty() => return Err(error),
                Err(_) => return Ok(found),
            };
            let full = found.len() >= max;
            match found.last_mut() {
                Some(last) if last.continues(&next) => last.length += next.length,
                Some(_) if full => return Ok(found),
                _ => found.push(next),
            }
        }
    }
}

/// Pieces of the map, cut where the files below change between data and hole.
struct StatusWalk<'a> {
    chain: &'a Chain,
    walk: Walk<'a>,
    /// What is left of a piece that was cut.
    rest: Option<Piece>,
    /// The last extent that was asked for: its layer, begin, and what it is.
    extent: Option<(u32, HostOffset, Extent)>,
}

impl StatusWalk<'_> {
    fn next(&mut self) -> Result<Option<Status>> {
        let Some(piece) = self
            .rest
            .take()
            .map_or_else(|| self.walk.next(), |rest| Ok(Some(rest)))?
        else {
            return Ok(None);
        };
        let Some(view) = self.chain.view(piece.depth) else {
            return Ok(None);
        };
        let (flags, offset) = match piece.answer {
            Answer::Data { host } if view.has_holes()? => {
                return self.cut(piece, view, host).map(Some);
            }
            Answer::Data { host } => (DATA, Some(host)),
            Answer::Zero { host } => (ZERO, host),
            Answer::Compressed { .. } => (COMPRESSED, None),
            Answer::Unallocated { host } => (ABSENT, host),
        };
        Ok(Some(status(&piece, view, flags, offset)))
    }

    /// The part of a data piece up to where its file changes between data and hole.
    fn cut(&mut self, piece: Piece, view: &View, host: HostOffset) -> Result<Status> {
        let extent = self.extent(view, host)?;
        let length = extent.end.0.saturating_sub(host.0).clamp(1, piece.length);
        if length < piece.length {
            self.rest = Some(Piece {
                start: GuestOffset(piece.start.0 + length),
                length: piece.length - length,
                answer: Answer::Data {
                    host: HostOffset(host.0 + length),
                },
                ..piece
            });
        }
        let flags = match (extent.data, view.layer.image().is_some()) {
            (true, _) => DATA,
            (false, true) => RESERVED,
            (false, false) => ZERO,
        };
        Ok(status(&Piece { length, ..piece }, view, flags, Some(host)))
    }

    fn extent(&mut self, view: &View, at: HostOffset) -> Result<Extent> {
        if let Some((depth, begin, extent)) = self.extent
            && depth == view.depth
            && begin <= at
            && at < extent.end
        {
            return Ok(extent);
        }
        let storage = &**view.layer.guest_data().storage();
        let extent = match view.layer.cluster_size() {
            None => extent_or_end(storage, at)?,
            Some(cluster) => extent_or_missing(storage, at, cluster)?,
        };
        self.extent = Some((view.depth, at, extent));
        Ok(extent)
    }
}

/// The extent at `at`; behind the end of the file everything is a hole.
fn extent_or_end(storage: &dyn Storage, at: HostOffset) -> Result<Extent> {
    let length = storage.length().map_err(Error::io("stat", storage))?;
    if at.0 >= length {
        return Ok(Extent {
            data: false,
            end: HostOffset(u64::MAX),
        });
    }
    let extent = storage.extent(at).map_err(Error::io("lseek", storage))?;
    // A hole at the end of the file goes on behind it.
    let open = !extent.data && extent.end.0 >= length;
    Ok(Extent {
        end: if open { HostOffset(u64::MAX) } else { extent.end },
        ..extent
    })
}

/// The extent at `at` of a file that an image's clusters lie in: holes go on to the end of the cluster that the file ends in. What a table names behind
/// that is missing, not zeros: it is told as data, and whoever reads it hears so.
fn extent_or_missing(storage: &dyn Storage, at: HostOffset, cluster: u64) -> Result<Extent> {
    let length = storage.length().map_err(Error::io("stat", storage))?;
    let covered = length.checked_next_multiple_of(cluster).unwrap_or(u64::MAX);
    if at.0 >= covered {
        return Ok(Extent {
            data: true,
            end: HostOffset(u64::MAX),
        });
    }
    let extent = extent_or_end(storage, at)?;
    let end = HostOffset(extent.end.0.min(covered));
    Ok(Extent { end, ..extent })
}

#[derive(Clone, Copy)]
struct Flags {
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
}

const ABSENT: Flags = Flags {
    present: false,
    zero: true,
    data: false,
    compressed: false,
};
const ZERO: Flags = Flags {
    present: true,
    ..ABSENT
};
const RESERVED: Flags = Flags { data: true, ..ZERO };
const DATA: Flags = Flags {
    zero: false,
    ..RESERVED
};
const COMPRESSED: Flags = Flags {
    compressed: true,
    ..DATA
};

fn status(piece: &Piece, view: &View, flags: Flags, offset: Option<HostOffset>) -> Status {
    let Flags {
        present,
        zero,
        data,
        compressed,
    } = flags;
    // Bytes that are encrypted do not stand there as they are.
    let offset = offset.filter(|_| !(data && view.layer.encryption().is_some()));
    Status {
        start: piece.start,
        length: piece.length,
        depth: piece.depth,
        present,
        zero,
        data,
        compressed,
        offset,
        file: offset.map(|_| StatusFile {
            layer: piece.depth,
            data_file: view.layer.data_file().is_some(),
        }),
    }
}
