//! Runs to bytes.

use qcow2_codec::{Compression, Decoder};
use qcow2_format::{CompressedDescriptor, CompressionType, GuestOffset, HostOffset, Table};

use super::Chain;
use super::mapping::View;
use crate::error::{Error, Result};
use crate::run::{Run, RunKind};
use crate::storage::{ReadRequest, Storage};

/// What one thread keeps between fetches: a decoder, its buffers, and the compressed cluster that was decoded last, since small reads come back
/// to it.
#[derive(Debug, Default)]
pub struct FetchContext {
    decoder: Decoder,
    packed: Vec<u8>,
    cluster: Vec<u8>,
    /// Layer and place of what `cluster` holds.
    holds: Option<(u32, CompressedDescriptor)>,
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
    request: ReadRequest<'a>,
}

pub(super) fn fetch(
    chain: &Chain,
    runs: &[Run],
    start: GuestOffset,
    buffer: &mut [u8],
    context: &mut FetchContext,
) -> Result<()> {
    let uncovered = || Error::Invalid {
        argument: "runs",
        reason: "they do not cover the range that is fetched".into(),
    };
    let mut plain: Vec<Plain<'_>> = Vec::new();
    let (mut at, mut rest) = (start, buffer);
    let first = runs.partition_point(|run| run.end() <= start);
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
                request: ReadRequest {
                    offset: host.checked_add(skip).ok_or_else(uncovered)?,
                    buffer: now,
                    filled: 0,
                },
            }),
            RunKind::Compressed { descriptor, cluster } => {
                let view = chain.view(run.depth).ok_or_else(uncovered)?;
                compressed(view, descriptor, cluster, at, now, context)?;
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

/// Reads the plain pieces, one batch for each file.
fn read_plain(mut plain: Vec<Plain<'_>>) -> Result<()> {
    while let Some(view) = plain.first().map(|piece| piece.view) {
        let (batch, others): (Vec<_>, Vec<_>) = plain.into_iter().partition(|piece| piece.view.depth == view.depth);
        let mut requests: Vec<ReadRequest<'_>> = batch.into_iter().map(|piece| piece.request).collect();
        let storage = &**view.layer.data_storage();
        storage.read_batch(&mut requests).map_err(Error::io("read", storage))?;
        for request in &mut requests {
            if request.filled < request.buffer.len() {
                fill_tail(view, storage, request)?;
            }
        }
        plain = others;
    }
    Ok(())
}

/// The file ended inside `request`: the last cluster of an image, and the last sector of a raw file, may be there in part and go on as zeros. What
/// begins past the end is missing.
fn fill_tail(view: &View, storage: &dyn Storage, request: &mut ReadRequest<'_>) -> Result<()> {
    let unit = view.layer.cluster_size().unwrap_or(512);
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

/// Fills `target` with the bytes of a compressed cluster from guest offset `at` on.
fn compressed(
    view: &View,
    descriptor: CompressedDescriptor,
    cluster: GuestOffset,
    at: GuestOffset,
    target: &mut [u8],
    context: &mut FetchContext,
) -> Result<()> {
    let Some(header) = view.layer.header() else {
        return Ok(());
    };
    let (compression, cluster_len) = (compression(header.compression), header.geometry.cluster_len());
    let key = (view.depth, descriptor);
    if context.holds != Some(key) {
        read_packed(view, descriptor, &mut context.packed)?;
        let failed = |error| Error::Decompress {
            path: view.layer.path(),
            offset: descriptor.offset,
            guest: cluster,
            error,
        };
        let FetchContext { decoder, packed, .. } = context;
        if target.len() == cluster_len {
            return decoder.decode(compression, packed, target).map_err(failed);
        }
        context.holds = None;
        context.cluster.resize(cluster_len, 0);
        decoder
            .decode(compression, packed, &mut context.cluster)
            .map_err(failed)?;
        context.holds = Some(key);
    }
    let within = usize::try_from(at.0 - cluster.0).unwrap_or(usize::MAX);
    let bytes = within
        .checked_add(target.len())
        .and_then(|end| context.cluster.get(within..end));
    match bytes {
        Some(bytes) => target.copy_from_slice(bytes),
        None => {
            return Err(Error::Internal {
                message: "a compressed run passes its cluster".into(),
            });
        }
    }
    Ok(())
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
