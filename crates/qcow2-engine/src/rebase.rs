//! *rebase*: an overlay gets another backing file, and reads as before.
//!
//! The disk is opened as it is to be, over the new backing file; the old one is a chain of its own. Where the top itself has nothing the two are
//! compared, and what the old one has different is written to the top, in whole clusters (subclusters, where there are some), so that nothing is ever
//! filled up with bytes of the new one. The header names the old backing file until all of that is durable: cut short anywhere, the image reads as
//! before, and what was copied need not be copied again.

use std::sync::{Mutex, PoisonError};

use qcow2_codec::Encoder;
use qcow2_format::GuestOffset;

use crate::buffer::Buffer;
use crate::chain::{Chain, FetchContext};
use crate::compare::pieces::{covered, is_zero, runs};
use crate::compare::side::Side;
use crate::compare::walk::same_place;
use crate::convert::codec;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::parallel;
use crate::pipeline::{self, Crowd};
use crate::progress::JobContext;

/// Bytes that are compared at a time, unless a cluster is larger.
const PIECE: u64 = 1 << 20;
/// Pieces under way or waiting for their turn, for each thread.
const AHEAD: usize = 4;

/// How to rebase.
#[derive(Clone, Debug, Default)]
pub struct RebaseOptions {
    /// Name and format of the new backing file as they are recorded; none: there is none.
    pub backing: Option<(String, Option<String>)>,
    /// Nothing is compared or copied: only the name is changed.
    pub unchecked: bool,
    /// Whole clusters are compressed, if they become smaller.
    pub compress: bool,
}

/// What a rebase did, in guest bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebaseReport {
    /// Bytes of the old backing file that were written to the top.
    pub data_bytes: u64,
    /// Bytes that the top was made to say zero for.
    pub zero_bytes: u64,
    /// Clusters that were compressed, which are among the data.
    pub compressed_clusters: u64,
}

/// Makes the top of `disk`, which is opened over its new backing file, read as it does over `old`, the disk below it so far, and then name the new one.
/// Nobody else uses them.
///
/// # Errors
/// Those of reading either side, of writing to the disk, and of [`Disk::set_backing`]; [`Error::Cancelled`]. The image reads over its old backing file
/// as before then, which its header still names.
pub fn rebase(disk: &Disk, old: Option<&Chain>, options: &RebaseOptions, job: &JobContext) -> Result<RebaseReport> {
    let total = disk.chain().virtual_size();
    job.progress.begin("rebase", total);
    let report = if options.unchecked {
        RebaseReport::default()
    } else {
        copy(disk, old, (options.compress, total), job)?
    };
    job.cancel.check()?;
    let (name, format) = match &options.backing {
        Some((name, format)) => (Some(name.as_str()), format.as_deref()),
        None => (None, None),
    };
    disk.set_backing(name, format)?;
    job.progress.finish();
    Ok(report)
}

/// What of a piece is to be written.
struct Changes {
    start: u64,
    length: u64,
    /// The old bytes of the piece.
    bytes: Buffer,
    /// Ranges in the piece, and whether they become zeros.
    ranges: Vec<(usize, usize, bool)>,
    /// Clusters of the piece in their compressed form, by where they begin.
    forms: Forms,
}

fn copy(disk: &Disk, old: Option<&Chain>, (compress, total): (bool, u64), job: &JobContext) -> Result<RebaseReport> {
    let new = &**disk.chain();
    let layers = new.layers().chain(old.into_iter().flat_map(Chain::layers));
    let largest = layers.filter_map(|layer| layer.cluster_size()).max().unwrap_or(0);
    let (unit, cluster) = (unit(new), new.cluster_size().unwrap_or(512));
    let mut walk = Walk {
        new: Side::new(new),
        old: old.map(Side::new),
        job,
        unit,
        piece: PIECE.max(largest),
        at: 0,
        total,
        open: None,
    };
    let threads = parallel::default_threads();
    let crowd = Crowd {
        threads,
        window: AHEAD.saturating_mul(threads),
    };
    let mut report = RebaseReport::default();
    let spare: Mutex<Vec<Buffer>> = Mutex::default();
    let spares = || spare.lock().unwrap_or_else(PoisonError::into_inner);
    pipeline::run(
        crowd,
        || walk.next(),
        || Comparer::new(new, compress),
        |comparer, (start, end)| {
            let bytes = spares().pop().unwrap_or_default();
            comparer.changes((new, old), start..end, unit, bytes)
        },
        |changes| {
            for &(begin, end, zero) in &changes.ranges {
                let (at, length) = (GuestOffset(changes.start + begin as u64), (end - begin) as u64);
                if zero {
                    disk.write_zeroes(at, length, true)?;
                    report.zero_bytes += length;
                } else {
                    disk.write(at, changes.bytes.get(begin..end).unwrap_or_default())?;
                    report.data_bytes += length;
                }
            }
            if !changes.forms.is_empty() {
                let forms: Vec<_> = changes.forms.iter().map(|(at, form)| (*at, form.as_slice())).collect();
                disk.write_compressed(&forms)?;
                let bytes = |at: &GuestOffset| cluster.min(total.saturating_sub(at.0));
                report.data_bytes += forms.iter().map(|(at, _)| bytes(at)).sum::<u64>();
                report.compressed_clusters += forms.len() as u64;
            }
            job.progress.advance(changes.length);
            spares().push(changes.bytes);
            Ok::<_, Error>(())
        },
    )?;
    Ok(report)
}

/// What the top allocates at a time, in bytes.
fn unit(chain: &Chain) -> u64 {
    let header = chain.layer(0).and_then(|layer| layer.header());
    header.map_or(512, |header| header.geometry.subcluster_size())
}

/// The ranges that have to be looked at, in whole units and cut into pieces.
struct Walk<'a> {
    new: Side<'a>,
    old: Option<Side<'a>>,
    job: &'a JobContext,
    unit: u64,
    piece: u64,
    at: u64,
    total: u64,
    /// What is left of a range that was cut.
    open: Option<(u64, u64)>,
}

impl Walk<'_> {
    fn next(&mut self) -> Result<Option<(u64, u64)>> {
        let range = match self.open.take() {
            Some(range) => Some(range),
            None => self.range()?,
        };
        let Some((start, end)) = range else { return Ok(None) };
        let border = (start / self.piece).saturating_add(1).saturating_mul(self.piece);
        // What goes on behind belongs to the same piece.
        let mut end = end;
        while end < border && end == self.at {
            match self.range()? {
                Some((next, stop)) if next == end => end = stop,
                other => {
                    self.open = other;
                    break;
                }
            }
        }
        if end > border {
            // Not both: what was found beyond lies behind the border.
            self.open = Some((border, end));
        }
        Ok(Some((start, end.min(border))))
    }

    /// The next range of whole units that the top does not have, and that may read differently over the new backing file.
    fn range(&mut self) -> Result<Option<(u64, u64)>> {
        while self.at < self.total {
            self.job.cancel.check()?;
            let at = self.at;
            let new = self.new.status(at)?;
            let mut end = new.end.min(self.total);
            let mut look = false;
            if !new.top {
                let known = match &mut self.old {
                    Some(old) => {
                        let old = old.status(at)?;
                        end = end.min(old.end);
                        (old.zero && new.zero) || same_place(&old, &new)
                    }
                    None => new.zero,
                };
                look = !known;
            }
            if look {
                let start = at - at % self.unit;
                let end = end.checked_next_multiple_of(self.unit).unwrap_or(end).min(self.total);
                self.at = end;
                return Ok(Some((start, end)));
            }
            self.at = end;
            self.job.progress.advance(end - at);
        }
        Ok(None)
    }
}

/// Reads both sides of a piece. One per thread.
struct Comparer {
    old: FetchContext,
    new: FetchContext,
    other: Buffer,
    encoder: Option<Encoder>,
    /// Cluster size of the top, and its virtual size.
    cluster: u64,
    total: u64,
}

impl Comparer {
    fn new(disk: &Chain, compress: bool) -> Result<Self> {
        let header = disk.layer(0).and_then(|layer| layer.header()).filter(|_| compress);
        let encoder = header.map(|header| Encoder::new(codec(header.compression), None));
        Ok(Self {
            old: FetchContext::default(),
            new: FetchContext::default(),
            other: Buffer::default(),
            encoder: encoder.transpose().map_err(Error::Codec)?,
            cluster: disk.cluster_size().unwrap_or(512),
            total: disk.virtual_size(),
        })
    }

    /// Takes out of `ranges` the whole clusters of the piece at `start` that have data, if they become smaller by that.
    fn compress(&mut self, start: u64, bytes: &[u8], ranges: &mut Vec<(usize, usize, bool)>) -> Result<Forms> {
        let Some(encoder) = &mut self.encoder else {
            return Ok(Vec::new());
        };
        let length = usize::try_from(self.cluster).unwrap_or(usize::MAX);
        let mut forms: Forms = Vec::new();
        let mut padded = Vec::new();
        let mut begin = usize::try_from(start.next_multiple_of(self.cluster) - start).unwrap_or(usize::MAX);
        while begin < bytes.len() {
            let end = begin.saturating_add(length).min(bytes.len());
            let at = start + begin as u64;
            let whole = end - begin == length || at + (end - begin) as u64 == self.total;
            let inside = |&(from, to, zero): &(usize, usize, bool)| !zero && from < end && to > begin;
            if whole && ranges.iter().any(inside) {
                padded.clear();
                padded.extend_from_slice(bytes.get(begin..end).unwrap_or_default());
                padded.resize(length, 0);
                if let Some(form) = encoder.encode(&padded, length).map_err(Error::Codec)? {
                    forms.push((GuestOffset(at), form.to_vec()));
                    *ranges = ranges.iter().flat_map(|range| without(*range, begin, end)).collect();
                }
            }
            begin = end;
        }
        Ok(forms)
    }

    fn changes(
        &mut self,
        (new, old): (&Chain, Option<&Chain>),
        range: std::ops::Range<u64>,
        unit: u64,
        mut bytes: Buffer,
    ) -> Result<Changes> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let unit = usize::try_from(unit).unwrap_or(usize::MAX).max(1);
        bytes.resize(length)?;
        self.other.resize(length)?;
        match old {
            Some(old) => fetch(old, range.start, &mut bytes, &mut self.old)?,
            None => bytes.fill(0),
        }
        fetch(new, range.start, &mut self.other, &mut self.new)?;
        let mut ranges: Vec<(usize, usize, bool)> = Vec::new();
        if *bytes != *self.other {
            let mut begin = 0;
            for (old, new) in bytes.chunks(unit).zip(self.other.chunks(unit)) {
                let end = begin + old.len();
                if old != new {
                    let zero = qcow2_codec::first_nonzero(old).is_none();
                    match ranges.last_mut() {
                        Some((_, last, same)) if *last == begin && *same == zero => *last = end,
                        _ => ranges.push((begin, end, zero)),
                    }
                }
                begin = end;
            }
        }
        let forms = self.compress(range.start, &bytes, &mut ranges)?;
        Ok(Changes {
            start: range.start,
            length: range.end - range.start,
            bytes,
            ranges,
            forms,
        })
    }
}

type Forms = Vec<(GuestOffset, Vec<u8>)>;

/// The parts of a range outside of `begin..end`.
fn without(
    (from, to, zero): (usize, usize, bool),
    begin: usize,
    end: usize,
) -> impl Iterator<Item = (usize, usize, bool)> {
    let parts = [(from, to.min(begin), zero), (from.max(end), to, zero)];
    parts.into_iter().filter(|(from, to, _)| from < to)
}

/// Reads from a disk on which zeros go on behind the end.
fn fetch(chain: &Chain, start: u64, buffer: &mut [u8], context: &mut FetchContext) -> Result<()> {
    let end = start.saturating_add(buffer.len() as u64);
    let (mut at, mut rest) = (start, buffer);
    let _ticket = chain.ticket();
    while !rest.is_empty() {
        let runs = runs(chain, at, end)?;
        let length = usize::try_from(covered(&runs).min(end).saturating_sub(at)).unwrap_or(usize::MAX);
        let (now, later) = rest.split_at_mut(length.min(rest.len()));
        if now.is_empty() {
            return Err(Error::Internal {
                message: format!("nothing is resolved at {at:#x}, inside the disk"),
            });
        }
        if runs.iter().all(is_zero) {
            now.fill(0);
        } else {
            chain.fetch(&runs, GuestOffset(at), now, context)?;
        }
        at += now.len() as u64;
        rest = later;
    }
    Ok(())
}
