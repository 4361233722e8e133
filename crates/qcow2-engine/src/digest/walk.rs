//! A disk cut into pieces of work: stretches of blocks that are known to be zeros, and blocks that have to be read.

use super::shape::DigestShape;
use crate::chain::Chain;
use crate::compare::side::Side;
use crate::error::Result;
use crate::progress::JobContext;

/// Bytes of a piece, unless a block or a cluster is larger.
const PIECE: u64 = 1 << 20;
/// Zeros are a piece of their own from this length on: fewer are read with what stands around them.
const WORTHWHILE: u64 = 64 << 10;

/// Blocks, by number: the first, and the one behind the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// They are zeros.
    Zeros(u64, u64),
    /// They have to be read.
    Look(u64, u64),
}

/// The walk on its way.
pub(super) struct Walk<'a> {
    shape: DigestShape,
    side: Side<'a>,
    job: &'a JobContext,
    /// Pieces end at multiples of so many blocks.
    piece: u64,
    /// The first block that is not in any item, nor in the two fields below.
    block: u64,
    /// Behind the last block that is wanted.
    end: u64,
    /// Up to where the mapping was asked, in bytes.
    at: u64,
    look: Option<(u64, u64)>,
    zeros: Option<(u64, u64)>,
}

impl<'a> Walk<'a> {
    /// Over the blocks from `first` to before `end`.
    pub(super) fn new(chain: &'a Chain, shape: DigestShape, first: u64, end: u64, job: &'a JobContext) -> Self {
        let clusters = chain.layers().filter_map(|layer| layer.cluster_size());
        // No cluster is decompressed for two pieces.
        let piece = clusters.fold(PIECE, u64::max);
        Self {
            shape,
            side: Side::new(chain),
            job,
            piece: (piece / shape.block_size).max(1),
            block: first,
            end,
            at: shape.offset(first),
            look: None,
            zeros: None,
        }
    }

    /// The next piece, in rising order.
    ///
    /// # Errors
    /// Of asking for the mapping.
    pub(super) fn next(&mut self) -> Result<Option<Item>> {
        loop {
            self.job.cancel.check()?;
            if let Some((from, to)) = self.look {
                let cut = self.border(from).min(to);
                self.look = (cut < to).then_some((cut, to));
                return Ok(Some(Item::Look(from, cut)));
            }
            if let Some((from, to)) = self.zeros.take() {
                return Ok(Some(Item::Zeros(from, to)));
            }
            if self.block >= self.end {
                return Ok(None);
            }
            self.ask()?;
        }
    }

    /// Takes the next stretch of the mapping. What is not worth a piece of its own waits for more.
    fn ask(&mut self) -> Result<()> {
        let stop = self.shape.offset(self.end);
        if self.at >= stop {
            self.look = Some((self.block, self.end));
            self.block = self.end;
            return Ok(());
        }
        let known = self.side.status(self.at)?;
        let (start, mut reached) = (self.at, known.end.min(stop));
        while known.zero && reached < stop {
            self.job.cancel.check()?;
            let more = self.side.status(reached)?;
            if !more.zero {
                break;
            }
            reached = more.end.min(stop);
        }
        self.at = reached;
        let whole = if reached == stop {
            self.end
        } else {
            reached / self.shape.block_size
        };
        if known.zero {
            let first = start.div_ceil(self.shape.block_size).max(self.block);
            let length = self.shape.offset(whole).saturating_sub(self.shape.offset(first));
            if first < whole && (length >= WORTHWHILE || whole == self.end) {
                self.look = (self.block < first).then_some((self.block, first));
                self.zeros = Some((first, whole));
                self.block = whole;
                return Ok(());
            }
        }
        let ripe = if whole == self.end {
            whole
        } else {
            whole - whole % self.piece
        };
        if ripe > self.block {
            self.look = Some((self.block, ripe));
            self.block = ripe;
        }
        Ok(())
    }

    fn border(&self, block: u64) -> u64 {
        (block / self.piece).saturating_add(1).saturating_mul(self.piece)
    }
}
