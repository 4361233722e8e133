//! Runs to bytes.

use std::sync::Arc;

use qcow2_codec::{Compression, Decoder};
use qcow2_format::{CompressedDescriptor, CompressionType, GuestOffset, HostOffset, Table};

use super::Chain;
use super::decoded::Key;
use super::mapping::View;
use crate::error::{Error, Result};
use crate::run::{Run, RunKind};
use crate::storage::ReadRequest;

/// What one thread keeps between fetches: a decoder, its buffers, and the compressed cluster that was decoded last, since the next fetch may begin
/// inside it.
#[derive(Debug, Default)]
pub struct FetchContext {
    decoder: Decoder,
    packed: Vec<u8>,
    cluster: Vec<u8>,
    /// Layer and place of what `cluster` holds.
    holds: Option<Key>,
    /// Runs of a read.
    pub(super) runs: Vec<Run>,
}

/// Who fetches, and so where a decoded cluster is kept that is needed in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Whoever goes through a disk once, with a context of his own: there.
    Passing,
    /// Reads of the disk: in the chain, for all of them. `ahead`: what is likely to be read next is decoded meanwhile.
    Chain { ahead: bool },
}

impl FetchContext {
    /// A context of a thread's own. It may serve several chains one after the other only if [`FetchContext::forget`] is called between.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the cluster that was decoded last.
    pub fn forget(&mut self) {
        self.holds = None;
    }
}

/// A plain piece that waits for its batch.
struct Plain<'a> {
    view: &'a View,
    guest: GuestOffset,
    request: ReadRequest<'a>,
}

pub(super) fn fetch(
    chain: &Chain,
    runs: &[Run],
    start: GuestOffset,
    buffer: &mut [u8],
    context: &mut FetchContext,
    reader: Reader,
) -> Result<()> {
    let uncovered = || Error::Invalid {
        argument: "runs",
        reason: "they do not cover the range that is fetched".into(),
    };
    let mut plain: Vec<Plain<'_>> = Vec::new();
    let (mut at, mut rest) = (start, buffer);
    let first = runs.partition_point(|run| run.end() <= start);
    if let Some(run) = runs.get(first)
        && let RunKind::Data { host } = run.kind
        && let Some(skip) = start.0.checked_sub(run.start.0)
        && (rest.len() as u64) <= run.length.saturating_sub(skip)
    {
        // Most reads: one piece of one file needs no batch.
        return read_one(Plain {
            view: chain.view(run.depth).ok_or_else(uncovered)?,
            guest: start,
            request: ReadRequest {
                offset: host.checked_add(skip).ok_or_else(uncovered)?,
                buffer: rest,
                filled: 0,
            },
        });
    }
    for run in runs.get(first..).unwrap_or_default() {
        if rest.is_empty() {
            break;
        }
        let skip = at.0.checked_sub(run.start.0).ok_or_else(uncovered)?;
        let length = run.length.checked_sub(skip).ok_or_else(uncovered)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
        let (now, later) = rest.split_at_mut(length);
        match run.kind {
            RunKind::Zero { .. } | RunKind::Unallocated => now.fill(0),
            RunKind::Data { host } => plain.push(Plain {
                view: chain.view(run.depth).ok_or_else(uncovered)?,
                guest: at,
                request: ReadRequest {
                    offset: host.checked_add(skip).ok_or_else(uncovered)?,
                    buffer: now,
                    filled: 0,
                },
            }),
            RunKind::Compressed { descriptor, cluster } => {
                let view = chain.view(run.depth).ok_or_else(uncovered)?;
                let piece = CompressedPiece {
                    view,
                    descriptor,
                    cluster,
                    at,
                };
                match reader {
                    Reader::Passing => piece.fill(now, context)?,
                    Reader::Chain { ahead } => piece.fill_from_chain(chain, now, context, ahead)?,
                }
            }
        }
        at = GuestOffset(at.0 + length as u64);
        rest = later;
    }
    if !rest.is_empty() {
        return Err(uncovered());
    }
    read_plain(plain)
}

fn read_one(piece: Plain<'_>) -> Result<()> {
    let Plain {
        view,
        guest,
        mut request,
    } = piece;
    let data = view.layer.guest_data();
    request.filled = data
        .read(guest, request.offset, request.buffer)
        .map_err(Error::io("read", &**data.storage()))?;
    if request.filled < request.buffer.len() {
        fill_tail(view, &mut request)?;
    }
    Ok(())
}

/// Reads the plain pieces, one batch for each file.
fn read_plain(mut plain: Vec<Plain<'_>>) -> Result<()> {
    while let Some(view) = plain.first().map(|piece| piece.view) {
        let (batch, others): (Vec<_>, Vec<_>) = plain.into_iter().partition(|piece| piece.view.depth == view.depth);
        let (guests, mut requests): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|piece| (piece.guest, piece.request)).unzip();
        let data = view.layer.guest_data();
        data.read_batch(&guests, &mut requests)
            .map_err(Error::io("read", &**data.storage()))?;
        for request in &mut requests {
            if request.filled < request.buffer.len() {
                fill_tail(view, request)?;
            }
        }
        plain = others;
    }
    Ok(())
}

/// The file ended inside `request`: the last cluster of an image, and the last sector of a raw file, may be there in part and go on as zeros. What
/// begins past the end is missing. What is encrypted does not go on as anything.
fn fill_tail(view: &View, request: &mut ReadRequest<'_>) -> Result<()> {
    let data = view.layer.guest_data();
    let storage = &**data.storage();
    let unit = match view.layer.cluster_size() {
        Some(cluster) if !data.is_encrypted() => cluster,
        _ => 512,
    };
    let begin = request.offset.0;
    let file_length = if request.filled > 0 {
        begin.saturating_add(request.filled as u64)
    } else {
        storage.length().map_err(Error::io("stat", storage))?.min(begin)
    };
    // The end of the unit that the file ends in.
    let covered = file_length.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
    let end = begin.saturating_add(request.buffer.len() as u64);
    if end > covered {
        let offset = HostOffset(covered.max(begin & !(unit - 1)));
        return Err(Error::Truncated {
            path: storage.path().map(Into::into),
            table: Table::Data,
            offset,
            length: end - offset.0,
            file_length,
        });
    }
    if let Some(tail) = request.buffer.get_mut(request.filled..) {
        tail.fill(0);
    }
    Ok(())
}

/// A part of a compressed cluster, from guest offset `at` on.
struct CompressedPiece<'a> {
    view: &'a View,
    descriptor: CompressedDescriptor,
    cluster: GuestOffset,
    at: GuestOffset,
}

impl CompressedPiece<'_> {
    /// Fills `target`, keeping the cluster in `context`.
    fn fill(&self, target: &mut [u8], context: &mut FetchContext) -> Result<()> {
        let key = (self.view.depth, self.descriptor);
        if context.holds != Some(key) {
            if target.len() == cluster_len(self.view) {
                return self.decode_into(target, context);
            }
            context.holds = None;
            let mut cluster = std::mem::take(&mut context.cluster);
            cluster.resize(cluster_len(self.view), 0);
            let outcome = self.decode_into(&mut cluster, context);
            context.cluster = cluster;
            outcome?;
            context.holds = Some(key);
        }
        self.copy(&context.cluster, target)
    }

    /// Fills `target`, keeping the cluster in the chain. One that is wanted as a whole goes straight to where it is wanted, unless it is there or
    /// being decoded.
    fn fill_from_chain(&self, chain: &Chain, target: &mut [u8], context: &mut FetchContext, ahead: bool) -> Result<()> {
        let key = (self.view.depth, self.descriptor);
        if ahead {
            chain.read_ahead(self.view, self.cluster);
        }
        if target.len() == cluster_len(self.view) && !chain.decoded.cache.is_known(key) {
            return self.decode_into(target, context);
        }
        let load = || decode(self.view, self.descriptor, self.cluster, context).map(Arc::new);
        let cluster = chain.decoded.cache.get_or_load(key, load)?;
        self.copy(&cluster, target)
    }

    fn copy(&self, cluster: &[u8], target: &mut [u8]) -> Result<()> {
        let within = usize::try_from(self.at.0 - self.cluster.0).unwrap_or(usize::MAX);
        let end = within.checked_add(target.len());
        let bytes = end.and_then(|end| cluster.get(within..end));
        let bytes = bytes.ok_or_else(|| Error::Internal {
            message: "a compressed run passes its cluster".into(),
        })?;
        target.copy_from_slice(bytes);
        Ok(())
    }

    /// Decodes all of the cluster into `target`, which is as long.
    fn decode_into(&self, target: &mut [u8], context: &mut FetchContext) -> Result<()> {
        let Some(header) = self.view.layer.header() else {
            return Ok(());
        };
        read_packed(self.view, self.descriptor, &mut context.packed)?;
        let FetchContext { decoder, packed, .. } = context;
        decoder
            .decode(compression(header.compression), packed, target)
            .map_err(|error| Error::Decompress {
                path: self.view.layer.path(),
                offset: self.descriptor.offset,
                guest: self.cluster,
                error,
            })
    }
}

/// The bytes of a compressed cluster, in memory of their own.
pub(super) fn decode(
    view: &View,
    descriptor: CompressedDescriptor,
    cluster: GuestOffset,
    context: &mut FetchContext,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; cluster_len(view)];
    let piece = CompressedPiece {
        view,
        descriptor,
        cluster,
        at: cluster,
    };
    piece.decode_into(&mut bytes, context)?;
    Ok(bytes)
}

fn cluster_len(view: &View) -> usize {
    view.layer.header().map_or(0, |header| header.geometry.cluster_len())
}

/// Reads what a descriptor names. Its length is known only in sectors: the file may end inside the last one, but not before.
fn read_packed(view: &View, descriptor: CompressedDescriptor, packed: &mut Vec<u8>) -> Result<()> {
    let storage = &**view.layer.storage();
    let length = descriptor.length();
    // At most twice the cluster size, by the width of the field.
    packed.resize(usize::try_from(length).unwrap_or(0), 0);
    let filled = storage
        .read_at(descriptor.offset, packed)
        .map_err(Error::io("read", storage))?;
    let last_sector = length.saturating_sub(512);
    if filled == 0 || (filled as u64) <= last_sector {
        return Err(Error::Truncated {
            path: view.layer.path(),
            table: Table::Data,
            offset: descriptor.offset,
            length,
            file_length: storage.length().map_err(Error::io("stat", storage))?,
        });
    }
    // What the file does not have is not made up: a cut stream could go on in zeros and decode to something.
    packed.truncate(filled);
    Ok(())
}

fn compression(kind: CompressionType) -> Compression {
    match kind {
        CompressionType::Deflate => Compression::Deflate,
        CompressionType::Zstd => Compression::Zstd,
        CompressionType::Lz4 => Compression::Lz4,
    }
}
