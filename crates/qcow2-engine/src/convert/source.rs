//! What is converted: chains one behind the other, or a part of them, followed by zeros.

use std::sync::Arc;

use qcow2_format::GuestOffset;

use crate::chain::{Chain, FetchContext};
use crate::error::Result;
use crate::sink::internal;
use crate::status::Status;
use crate::storage::Identity;

/// Runs that are fetched at a time.
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

    /// Fills `buffer` with what is at `offset`.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8], context: &mut FetchContext) -> Result<()> {
        let there = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (mut buffer, zeros) = buffer.split_at_mut(there.min(buffer.len()));
        zeros.fill(0);
        let mut at = self.begin.saturating_add(offset);
        if self.parts.len() > 1 {
            context.forget();
        }
        while !buffer.is_empty() {
            let (chain, begin, end) = self.part(at)?;
            let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let (here, rest) = buffer.split_at_mut(length);
            fetch(chain, GuestOffset(at - begin), here, context)?;
            buffer = rest;
            at += length as u64;
            if !buffer.is_empty() {
                // What it keeps is of one chain.
                context.forget();
            }
        }
        Ok(())
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

/// Reads a range that lies inside the disk, on this thread alone.
fn fetch(chain: &Chain, start: GuestOffset, mut buffer: &mut [u8], context: &mut FetchContext) -> Result<()> {
    let _ticket = chain.ticket();
    let mut at = start;
    while !buffer.is_empty() {
        let runs = chain.resolve(at, buffer.len() as u64, RUNS)?;
        let length: u64 = runs.iter().map(|run| run.length).sum();
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 {
            return Err(internal("a source ends early"));
        }
        let (here, rest) = buffer.split_at_mut(length);
        chain.fetch(&runs, at, here, context)?;
        buffer = rest;
        at = GuestOffset(at.0 + length as u64);
    }
    Ok(())
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
