//! A chunk's bytes, and what each of its clusters becomes.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use qcow2_codec::{Encoder, is_zero};
use qcow2_format::{GuestOffset, Version};

use super::salvage::Losses;
use super::source::Source;
use super::{ConvertOptions, codec};
use crate::buffer::Buffer;
use crate::chain::FetchContext;
use crate::error::{Error, Result};
use crate::layer::Format;
use crate::sink::{Chunk, Cluster, internal};

/// Holes are looked for at multiples of this.
const HOLE: usize = 4096;
/// What was read in one go is still in the processor's own cache when zeros are looked for in it.
const STEP: u64 = 256 << 10;
/// Where something cannot be read: first these pieces are tried, then sectors.
const FIRST_PIECE: usize = 64 << 10;
const SECTOR: usize = 512;

/// What workers share.
pub(super) struct Transform<'a> {
    source: Source,
    backing: Option<Source>,
    options: &'a ConvertOptions,
    /// Cluster size of the target in bytes; none for raw.
    cluster: Option<usize>,
    says_zero: bool,
    /// Bytes that are looked at as soon as they were read. Not part of a cluster of the source.
    step: usize,
    /// Clusters are stored by subclusters.
    subclusters: bool,
    spare: std::sync::Arc<Spare>,
    losses: Option<std::sync::Arc<Losses>>,
}

/// Buffers to be used again.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Chunk>>);

impl Spare {
    /// Takes a chunk that is not needed any more.
    pub(super) fn give(&self, chunk: Chunk) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
    }

    fn take(&self) -> Chunk {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_default()
    }
}

impl<'a> Transform<'a> {
    pub(super) fn new(
        source: Source,
        backing: Option<Source>,
        options: &'a ConvertOptions,
        losses: Option<std::sync::Arc<Losses>>,
    ) -> Result<Self> {
        let create = &options.create;
        let qcow2 = create.format == Format::Qcow2;
        let step = source.largest_cluster().max(STEP);
        let transform = Self {
            step: usize::try_from(step).unwrap_or(usize::MAX),
            source,
            backing,
            options,
            cluster: if qcow2 {
                usize::try_from(create.cluster_size).ok()
            } else {
                None
            },
            says_zero: create.version == Version::V3,
            subclusters: qcow2 && create.extended_l2 && !options.compress && !create.data_file_raw,
            spare: std::sync::Arc::default(),
            losses,
        };
        // A level that does not exist is refused before there is a target.
        transform.encoder()?;
        Ok(transform)
    }

    /// Where used chunks go.
    pub(super) fn spare(&self) -> std::sync::Arc<Spare> {
        self.spare.clone()
    }

    fn encoder(&self) -> Result<Option<Encoder>> {
        if !self.options.compress {
            return Ok(None);
        }
        let kind = codec(self.options.create.compression_type);
        Encoder::new(kind, self.options.level).map(Some).map_err(Error::Codec)
    }

    /// What one thread works with.
    pub(super) fn worker(&'a self) -> Result<Worker<'a>> {
        Ok(Worker {
            transform: self,
            encoder: self.encoder()?,
            context: FetchContext::default(),
            context_below: FetchContext::default(),
            below: Buffer::default(),
        })
    }
}

/// One thread's part of a [`Transform`].
pub(super) struct Worker<'a> {
    transform: &'a Transform<'a>,
    encoder: Option<Encoder>,
    context: FetchContext,
    context_below: FetchContext,
    /// What the target's backing file has.
    below: Buffer,
}

impl Worker<'_> {
    /// Reads `length` bytes from `start` on and decides what becomes of them.
    pub(super) fn prepare(&mut self, start: GuestOffset, length: u64) -> Result<Chunk> {
        let transform = self.transform;
        let mut chunk = transform.spare.take();
        chunk.start = start;
        chunk.length = length;
        chunk.clusters.clear();
        chunk.packed.clear();
        let unit = transform.cluster.unwrap_or(1);
        let wanted = usize::try_from(length).map_err(|_| internal("a chunk is too long"))?;
        chunk.bytes.resize(wanted.next_multiple_of(unit))?;
        let (content, padding) = chunk.bytes.split_at_mut(wanted);
        padding.fill(0);
        let mut pieces = Pieces::new(transform.sparse(), &mut chunk.pieces);
        // Where something may be lost, each step is looked up by itself.
        let resolved = match transform.losses {
            None => Some(transform.source.resolve(start.0, length)?),
            Some(_) => None,
        };
        let mut filled = 0;
        while filled < wanted {
            let end = filled.saturating_add(transform.step).min(wanted);
            let part = content.get_mut(filled..end).unwrap_or_default();
            let at = start.0 + filled as u64;
            match &resolved {
                Some(resolved) => resolved.fetch(at, part, &mut self.context)?,
                None => transform.salvage(at, part, &mut self.context, FIRST_PIECE)?,
            }
            filled = end;
            pieces.look(content.get(..filled).unwrap_or_default(), filled == wanted);
        }
        if let Some(cluster) = transform.cluster {
            if let Some(backing) = &transform.backing {
                self.below.resize(chunk.bytes.len())?;
                let resolved = backing.resolve(start.0, self.below.len() as u64)?;
                resolved.fetch(start.0, &mut self.below, &mut self.context_below)?;
                // What lies behind the disk's end is of no matter.
                let (_, padding) = self.below.split_at_mut(wanted);
                padding.fill(0);
            }
            self.decide(&mut chunk, cluster)?;
        }
        Ok(chunk)
    }

    fn decide(&mut self, chunk: &mut Chunk, cluster: usize) -> Result<()> {
        let Chunk {
            bytes,
            pieces,
            clusters,
            packed,
            ..
        } = chunk;
        let mut below = self
            .transform
            .backing
            .as_ref()
            .map(|_| self.below.chunks_exact(cluster));
        for (number, content) in bytes.chunks_exact(cluster).enumerate() {
            let at = number * cluster;
            let below = below.as_mut().and_then(Iterator::next);
            let state = if self.transform.subclusters {
                self.transform.by_subclusters(content, below, pieces, at)
            } else {
                self.transform.whole(content, below, pieces, at)
            };
            let state = match (&state, &mut self.encoder) {
                (Cluster::Data, Some(encoder)) => compress(encoder, content, packed)?.unwrap_or(state),
                _ => state,
            };
            clusters.push(state);
        }
        Ok(())
    }
}

impl Transform<'_> {
    /// Reads what can be read, in smaller and smaller pieces; of what cannot, zeros.
    fn salvage(&self, at: u64, buffer: &mut [u8], context: &mut FetchContext, piece: usize) -> Result<()> {
        let whole = self.source.resolve(at, buffer.len() as u64);
        let Err(error) = whole.and_then(|resolved| resolved.fetch(at, buffer, context)) else {
            return Ok(());
        };
        if matches!(error, Error::Cancelled | Error::Closed) {
            return Err(error);
        }
        context.forget();
        if buffer.len() <= SECTOR {
            buffer.fill(0);
            if let Some(losses) = &self.losses {
                losses.note(at, buffer.len() as u64, false, &error);
            }
            return Ok(());
        }
        let mut at = at;
        for part in buffer.chunks_mut(piece) {
            let length = part.len() as u64;
            self.salvage(at, part, context, SECTOR)?;
            at += length;
        }
        Ok(())
    }

    fn sparse(&self) -> usize {
        usize::try_from(self.options.sparse_size).unwrap_or(0)
    }

    fn whole(&self, content: &[u8], below: Option<&[u8]>, pieces: &[Range<usize>], at: usize) -> Cluster {
        match below {
            Some(below) if below == content => Cluster::Leave,
            Some(_) if self.says_zero && self.sparse() > 0 && is_zero(content) => Cluster::Zero,
            None if !touched(pieces, at..at + content.len()) => Cluster::Zero,
            _ => Cluster::Data,
        }
    }

    fn by_subclusters(&self, content: &[u8], below: Option<&[u8]>, pieces: &[Range<usize>], at: usize) -> Cluster {
        let unit = (content.len() / 32).max(1);
        let (mut data, mut zero) = (0u32, 0u32);
        let mut below_units = below.map(|below| below.chunks_exact(unit));
        for (number, part) in content.chunks_exact(unit).enumerate() {
            let begin = at + number * unit;
            let below = below_units.as_mut().and_then(Iterator::next);
            match self.whole(part, below, pieces, begin) {
                Cluster::Leave => {}
                Cluster::Zero => {
                    // Without a backing file what is not there reads as zeros by itself.
                    if below.is_some() {
                        zero |= 1 << number;
                    }
                }
                _ => data |= 1 << number,
            }
        }
        match (data, zero) {
            (0, 0) if below.is_some() => Cluster::Leave,
            (0, 0) | (0, u32::MAX) => Cluster::Zero,
            (u32::MAX, _) => Cluster::Data,
            (data, zero) => Cluster::Subclusters { data, zero },
        }
    }
}

/// The compressed form, if it is smaller.
fn compress(encoder: &mut Encoder, content: &[u8], packed: &mut Vec<u8>) -> Result<Option<Cluster>> {
    let Some(smaller) = encoder.encode(content, content.len()).map_err(Error::Codec)? else {
        return Ok(None);
    };
    let begin = packed.len();
    packed.extend_from_slice(smaller);
    Ok(Some(Cluster::Compressed(begin..packed.len())))
}

/// Finds the parts of a chunk between zero areas of at least `sparse` bytes (or of all of it), while the chunk is being read. With 0: all of it.
struct Pieces<'a> {
    sparse: usize,
    found: &'a mut Vec<Range<usize>>,
    at: usize,
}

impl<'a> Pieces<'a> {
    fn new(sparse: usize, found: &'a mut Vec<Range<usize>>) -> Self {
        found.clear();
        Self { sparse, found, at: 0 }
    }

    /// Looks on in `bytes`, the chunk as far as it is read; `whole`: that is all of it.
    fn look(&mut self, bytes: &[u8], whole: bool) {
        let unit = HOLE.min(self.sparse);
        if unit == 0 {
            if whole && !bytes.is_empty() {
                self.found.push(0..bytes.len());
            }
            return;
        }
        for part in bytes.get(self.at..).unwrap_or_default().chunks(unit) {
            if part.len() < unit && !whole {
                return;
            }
            let (at, end) = (self.at, self.at + part.len());
            if !is_zero(part) {
                match self.found.last_mut() {
                    Some(last) if at - last.end < self.sparse => last.end = end,
                    None if at < self.sparse => self.found.push(0..end),
                    _ => self.found.push(at..end),
                }
            }
            self.at = end;
        }
        if whole
            && let Some(last) = self.found.last_mut()
            && self.at - last.end < unit
        {
            last.end = self.at;
        }
    }
}

/// Whether a piece has bytes in `range`.
fn touched(pieces: &[Range<usize>], range: Range<usize>) -> bool {
    let first = pieces.partition_point(|piece| piece.end <= range.start);
    pieces.get(first).is_some_and(|piece| piece.start < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8], sparse: usize) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        Pieces::new(sparse, &mut out).look(bytes, true);
        // It does not matter how the chunk arrives.
        for step in [512, 5000, 16384] {
            let mut again = Vec::new();
            let mut pieces = Pieces::new(sparse, &mut again);
            for end in (step..bytes.len()).step_by(step) {
                pieces.look(&bytes[..end], false);
            }
            pieces.look(bytes, true);
            assert_eq!(again, out, "in steps of {step}");
        }
        out
    }

    #[test]
    fn zero_areas_that_are_long_enough_split_the_data() {
        let mut bytes = vec![0u8; 64 << 10];
        bytes[20_000] = 1;
        bytes[40_000] = 1;
        assert_eq!(found(&bytes, 4096), [16384..20480, 36864..40960]);
        assert_eq!(found(&bytes, 16384), [16384..20480, 36864..40960]);
        assert_eq!(found(&bytes, 20480), vec![0..40960], "shorter areas are data");
        assert_eq!(found(&bytes, 0), vec![0..65536]);
        assert_eq!(found(&bytes, 1536), [19968..21504, 39936..41472]);
        assert_eq!(
            found(&bytes[..20_481], 4096),
            vec![16384..20481],
            "a short end is no hole"
        );
        assert_eq!(found(&[0; 8192], 4096), []);
        assert_eq!(found(&[0; 8192], 65536), [], "all zeros are zeros whatever the length");
    }
}
