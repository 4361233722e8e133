//! Pieces to hashes, by several threads, handed over in order.

use qcow2_codec::{Hash, Hasher, is_zero};
use qcow2_format::GuestOffset;

use super::shape::{self, DigestShape, ZeroHashes};
use super::walk::{Item, Walk};
use crate::buffer::Buffer;
use crate::chain::{Chain, FetchContext};
use crate::compare::pieces::{covered, is_zero as is_zero_run, runs};
use crate::error::{Error, Result};
use crate::parallel;
use crate::pipeline::{self, Crowd};
use crate::progress::JobContext;
use crate::run::Run;

/// Pieces under way, for each thread: they hold no memory but their hashes while they wait.
const AHEAD: usize = 16;
/// Zeros of this length are not read; fewer come with what stands around them.
const WORTHWHILE: u64 = 64 << 10;
/// Bytes that are read at a time: they are still in the processor's cache when they are hashed.
const STEP: u64 = 256 << 10;

/// Blocks that are known by now, in rising order.
pub(super) enum Known {
    /// So many that are zeros.
    Zeros(u64),
    /// The hash of each.
    Hashes(Vec<Hash>),
}

/// Hashes the blocks from `first` to before `end`, and hands them to `take` in order.
///
/// # Errors
/// Those of resolving and fetching; of `take`; [`Error::Cancelled`].
pub(super) fn hash(
    chain: &Chain,
    zeros: &ZeroHashes,
    shape: DigestShape,
    (first, end): (u64, u64),
    job: &JobContext,
    take: impl FnMut(Known) -> Result<()> + Send,
) -> Result<()> {
    let mut walk = Walk::new(chain, shape, first, end, job);
    let reader = Reader {
        chain,
        zeros,
        shape,
        job,
    };
    let threads = parallel::default_threads();
    let crowd = Crowd {
        threads,
        window: AHEAD.saturating_mul(threads),
    };
    pipeline::run(
        crowd,
        || walk.next(),
        || Ok(Scratch::new(shape)),
        |scratch, item| match item {
            Item::Zeros(from, to) => {
                job.progress.advance(shape.offset(to) - shape.offset(from));
                Ok(Known::Zeros(to - from))
            }
            Item::Look(from, to) => reader.hashes(from, to, scratch).map(Known::Hashes),
        },
        take,
    )
}

struct Reader<'a> {
    chain: &'a Chain,
    zeros: &'a ZeroHashes,
    shape: DigestShape,
    job: &'a JobContext,
}

/// What a thread keeps from piece to piece.
struct Scratch {
    context: FetchContext,
    buffer: Buffer,
    hasher: Hasher,
}

impl Scratch {
    fn new(shape: DigestShape) -> Self {
        Self {
            context: FetchContext::new(),
            buffer: Buffer::default(),
            hasher: Hasher::new(shape.algorithm),
        }
    }
}

impl Reader<'_> {
    /// The hashes of the blocks from `from` to before `to`.
    fn hashes(&self, from: u64, to: u64, scratch: &mut Scratch) -> Result<Vec<Hash>> {
        let (mut at, end) = (self.shape.offset(from), self.shape.offset(to));
        let Scratch {
            context,
            buffer,
            hasher,
        } = scratch;
        let mut cutter = Cutter::new(self.shape, self.zeros, hasher, from, to);
        while at < end {
            self.job.cancel.check()?;
            let (_ticket, runs) = (self.chain.ticket(), runs(self.chain, at, end)?);
            let reached = covered(&runs).min(end);
            let before = at;
            while at < reached {
                let run = runs.get(runs.partition_point(|run| run.end().0 <= at));
                if let Some(run) = run.filter(|run| is_hole(run)) {
                    let stop = run.end().0.min(reached);
                    cutter.zeros(stop - at);
                    at = stop;
                    continue;
                }
                let hole = runs.iter().find(|run| run.start.0 > at && is_hole(run));
                let stop = hole.map_or(reached, |run| run.start.0);
                let length = stop.min(reached).min(at.saturating_add(STEP)) - at;
                buffer.resize(usize::try_from(length).map_err(|_| too_long())?)?;
                self.chain.fetch(&runs, GuestOffset(at), buffer, context)?;
                cutter.bytes(buffer);
                at += length;
            }
            if at == before {
                return Err(too_long());
            }
            self.job.progress.advance(at - before);
        }
        Ok(cutter.finish())
    }
}

/// Cuts bytes into blocks and hashes them.
struct Cutter<'a> {
    shape: DigestShape,
    known: &'a ZeroHashes,
    hasher: &'a mut Hasher,
    block: u64,
    end: u64,
    /// Bytes that the block lacks.
    left: u64,
    /// Bytes of the block that are there, all of them zeros. They need not be hashed if nothing else comes.
    held: u64,
    /// Something else has come.
    begun: bool,
    hashes: Vec<Hash>,
}

impl<'a> Cutter<'a> {
    fn new(shape: DigestShape, known: &'a ZeroHashes, hasher: &'a mut Hasher, block: u64, end: u64) -> Self {
        // What an earlier piece left when it failed.
        *hasher = Hasher::new(shape.algorithm);
        let left = shape.offset(block + 1) - shape.offset(block);
        Self {
            shape,
            known,
            hasher,
            block,
            end,
            left,
            held: 0,
            begun: false,
            hashes: Vec::new(),
        }
    }

    fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
            if !self.begun && is_zero(now) {
                self.held += now.len() as u64;
            } else {
                if !self.begun {
                    shape::zeros(self.hasher, self.held);
                    self.begun = true;
                }
                self.hasher.update(now);
            }
            self.advance(now.len() as u64);
            bytes = rest;
        }
    }

    fn zeros(&mut self, mut length: u64) {
        while length > 0 {
            let count = length.min(self.left);
            if self.begun {
                shape::zeros(self.hasher, count);
            } else {
                self.held += count;
            }
            self.advance(count);
            length -= count;
        }
    }

    fn advance(&mut self, count: u64) {
        self.left -= count;
        if self.left == 0 {
            self.close();
        }
    }

    fn close(&mut self) {
        let hash = if self.begun {
            self.shape.leaf(self.hasher)
        } else {
            *self.known.leaf(self.block)
        };
        self.hashes.push(hash);
        self.block += 1;
        (self.held, self.begun) = (0, false);
        self.left = self.shape.offset(self.block + 1) - self.shape.offset(self.block);
    }

    fn finish(mut self) -> Vec<Hash> {
        // The only block of a disk without a byte.
        if self.block < self.end {
            self.close();
        }
        self.hashes
    }
}

fn is_hole(run: &Run) -> bool {
    run.length >= WORTHWHILE && is_zero_run(run)
}

fn too_long() -> Error {
    Error::Internal {
        message: "a piece of a digest has no end".into(),
    }
}
