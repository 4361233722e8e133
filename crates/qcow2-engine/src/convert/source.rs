//! What is converted: chains one behind the other, or a part of them, followed by zeros.

use std::sync::Arc;

use qcow2_format::GuestOffset;

use crate::chain::{Chain, FetchContext};
use crate::error::Result;
use crate::run::Run;
use crate::sink::internal;
use crate::status::Status;
use crate::storage::Identity;
use crate::ticket::Ticket;

/// Runs that are asked for at a time.
const RUNS: usize = 1024;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Each chain and where it ends.
    parts: Vec<(Arc<Chain>, u64)>,
    /// Where the converted range begins in them.
    begin: u64,
    size: u64,
}

/// What the mapping knows of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Length in bytes.
    pub(super) length: u64,
    /// Reads as zeros.
    pub(super) zero: bool,
    /// The file and the offset in it where the bytes stand as they are.
    pub(super) place: Option<(Identity, u64)>,
}

impl Source {
    pub(super) fn new(chains: &[Arc<Chain>], range: Option<(u64, u64)>) -> Result<Self> {
        let mut parts = Vec::with_capacity(chains.len());
        let mut end = 0u64;
        for chain in chains {
            let too_long = || super::invalid("sources", "they are too long together");
            end = end.checked_add(chain.virtual_size()).ok_or_else(too_long)?;
            parts.push((Arc::clone(chain), end));
        }
        let (begin, length) = range.unwrap_or((0, u64::MAX));
        let begin = begin.min(end);
        Ok(Self {
            parts,
            begin,
            size: length.min(end - begin),
        })
    }

    /// Bytes before the zeros.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the largest cluster of all layers; 1 if there are only raw ones.
    pub(super) fn largest_cluster(&self) -> u64 {
        let layers = self.parts.iter().flat_map(|(chain, _)| chain.layers());
        layers.filter_map(|layer| layer.cluster_size()).fold(1, u64::max)
    }

    /// Where `length` bytes from `offset` on stand, to be fetched in as many steps as one likes.
    pub(super) fn resolve(&self, offset: u64, length: u64) -> Result<Resolved<'_>> {
        let mut parts = Vec::new();
        let there = length.min(self.size.saturating_sub(offset));
        let mut done = 0;
        while done < there {
            let at = self.begin.saturating_add(offset).saturating_add(done);
            let (chain, begin, end) = self.part(at)?;
            let length = (end - at).min(there - done);
            let start = GuestOffset(at - begin);
            let ticket = chain.ticket();
            parts.push(Part {
                offset: offset + done,
                end: offset + done + length,
                chain,
                start,
                runs: runs(chain, start, length)?,
                _ticket: ticket,
            });
            done += length;
        }
        Ok(Resolved {
            parts,
            alone: self.parts.len() == 1,
        })
    }

    /// Some of the stretches from `offset` on, in order.
    pub(super) fn stretches(&self, offset: u64, most: usize) -> Result<Vec<Stretch>> {
        if offset >= self.size {
            return Ok(vec![Stretch {
                length: u64::MAX - offset,
                zero: true,
                place: None,
            }]);
        }
        let at = self.begin.saturating_add(offset);
        let (chain, begin, end) = self.part(at)?;
        let length = (end - at).min(self.size - offset);
        let statuses = chain.status(GuestOffset(at - begin), length, most)?;
        let stretch = |status: &Status| Stretch {
            length: status.length,
            zero: status.zero,
            place: place(chain, status),
        };
        Ok(statuses.iter().map(stretch).collect())
    }

    /// The chain that has `at`, where it begins and ends.
    fn part(&self, at: u64) -> Result<(&Chain, u64, u64)> {
        let number = self.parts.partition_point(|(_, end)| *end <= at);
        let before = number.checked_sub(1).and_then(|before| self.parts.get(before));
        let begin = before.map_or(0, |(_, end)| *end);
        let (chain, end) = self
            .parts
            .get(number)
            .ok_or_else(|| internal("a source is too short"))?;
        Ok((chain, begin, *end))
    }
}

/// A range of a source whose mapping is known.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    parts: Vec<Part<'a>>,
    /// The source is one chain.
    alone: bool,
}

/// What of it one chain has.
#[derive(Debug)]
struct Part<'a> {
    /// Begin and end in the source.
    offset: u64,
    end: u64,
    chain: &'a Chain,
    /// The begin in the chain.
    start: GuestOffset,
    runs: Vec<Run>,
    _ticket: Ticket<'a>,
}

impl Resolved<'_> {
    /// Fills `buffer` with what is at `offset`, on this thread alone. What no chain has is zeros.
    pub(super) fn fetch(&self, offset: u64, buffer: &mut [u8], context: &mut FetchContext) -> Result<()> {
        let (mut at, mut rest) = (offset, buffer);
        for part in &self.parts {
            if rest.is_empty() || at < part.offset || at >= part.end {
                continue;
            }
            let length = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(rest.len());
            let (here, later) = rest.split_at_mut(length);
            if !self.alone {
                // What it keeps is of one chain.
                context.forget();
            }
            let start = GuestOffset(part.start.0 + (at - part.offset));
            part.chain.fetch(&part.runs, start, here, context)?;
            at += length as u64;
            rest = later;
        }
        rest.fill(0);
        Ok(())
    }
}

/// The runs of a range that lies inside the disk.
fn runs(chain: &Chain, start: GuestOffset, length: u64) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let end = start.0.saturating_add(length);
    loop {
        let at = runs.last().map_or(start, Run::end);
        if at.0 >= end {
            return Ok(runs);
        }
        let more = chain.resolve(at, end - at.0, RUNS)?;
        if more.is_empty() {
            return Err(internal("a source ends early"));
        }
        runs.extend(more);
    }
}

/// Where the bytes of a range stand as they are.
fn place(chain: &Chain, status: &Status) -> Option<(Identity, u64)> {
    let file = status
        .file
        .filter(|_| status.data && !status.zero && !status.compressed)?;
    let layer = chain.layer(file.layer)?;
    let storage = if file.data_file {
        layer.data_file()?
    } else {
        layer.storage()
    };
    let offset = storage.base().checked_add(status.offset?.0)?;
    Some((storage.identity()?, offset.0))
}
