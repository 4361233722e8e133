//! *compare*: do two disks read the same?

use qcow2_format::GuestOffset;

use crate::chain::Chain;
use crate::error::Result;
use crate::progress::JobContext;
use crate::status::Status;

/// Bytes that are read of each side at a time.
const CHUNK: u64 = 2 << 20;
/// Statuses that are asked for at a time.
const BATCH: usize = 1024;
/// Differences are told by the sector.
const SECTOR: usize = 512;

/// How to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompareOptions {
    /// Sizes and allocation must be equal too.
    pub strict: bool,
}

/// The first difference that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Bytes differ in the sector that begins here.
    Content(GuestOffset),
    /// Strict: the virtual sizes differ.
    Size,
    /// Strict: one side is allocated here and the other is not.
    Allocation(GuestOffset),
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The first difference; `None`: the disks are identical.
    pub difference: Option<Difference>,
    /// The virtual sizes differ. Unless strict, that is no difference if what the larger has beyond the smaller reads as zeros.
    pub sizes_differ: bool,
}

/// Compares two disks. What both sides know to be zeros is not read.
///
/// # Errors
/// Those of resolving and fetching either side, [`crate::Error::Cancelled`].
pub fn compare(a: &Chain, b: &Chain, options: CompareOptions, context: &JobContext) -> Result<Comparison> {
    let sizes_differ = a.virtual_size() != b.virtual_size();
    let found = |difference| {
        Ok(Comparison {
            difference,
            sizes_differ,
        })
    };
    if options.strict && sizes_differ {
        return found(Some(Difference::Size));
    }
    let common = a.virtual_size().min(b.virtual_size());
    context
        .progress
        .begin("compare", a.virtual_size().max(b.virtual_size()));
    let mut sides = (Side::new(a), Side::new(b));
    let mut at = 0;
    while at < common {
        context.cancel.check()?;
        let (of_a, of_b) = (sides.0.status(at)?, sides.1.status(at)?);
        let end = of_a.end.min(of_b.end).min(common);
        if options.strict && of_a.allocation() != of_b.allocation() {
            return found(Some(Difference::Allocation(GuestOffset(at))));
        }
        let end = if (of_a.zero && of_b.zero) || (!of_a.present && !of_b.present) {
            end
        } else {
            end.min(at + CHUNK)
        };
        if let Some(difference) = differing(&mut sides, (of_a, of_b), at, end)? {
            return found(Some(Difference::Content(difference)));
        }
        context.progress.advance(end - at);
        at = end;
    }
    let longer = if a.virtual_size() > common {
        &mut sides.0
    } else {
        &mut sides.1
    };
    let difference = longer.rest_is_zero(common, context)?;
    context.progress.finish();
    found(difference.map(Difference::Content))
}

/// The first sector of `at..end` that differs.
fn differing(
    sides: &mut (Side<'_>, Side<'_>),
    known: (Known, Known),
    at: u64,
    end: u64,
) -> Result<Option<GuestOffset>> {
    let (a, b) = known;
    if (a.zero && b.zero) || (!a.present && !b.present) {
        return Ok(None);
    }
    let length = end - at;
    let sector = match (a.zero, b.zero) {
        (true, _) => first_nonzero(sides.1.read(at, length)?),
        (_, true) => first_nonzero(sides.0.read(at, length)?),
        _ => first_difference(sides.0.read(at, length)?, sides.1.read(at, length)?),
    };
    Ok(sector.map(|sector| GuestOffset(at + (sector * SECTOR) as u64)))
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    if qcow2_codec::is_zero(bytes) {
        return None;
    }
    bytes.chunks(SECTOR).position(|sector| !qcow2_codec::is_zero(sector))
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.chunks(SECTOR).zip(b.chunks(SECTOR)).position(|(a, b)| a != b)
}

/// What is known of one side from some offset on.
#[derive(Clone, Copy, Debug)]
struct Known {
    end: u64,
    present: bool,
    zero: bool,
    data: bool,
}

impl Known {
    const fn allocation(self) -> (bool, bool, bool) {
        (self.present, self.zero, self.data)
    }
}

/// One side: its statuses fetched in batches, and a buffer that is used again.
struct Side<'a> {
    chain: &'a Chain,
    statuses: std::collections::VecDeque<Status>,
    buffer: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(chain: &'a Chain) -> Self {
        Self {
            chain,
            statuses: std::collections::VecDeque::new(),
            buffer: Vec::new(),
        }
    }

    fn status(&mut self, at: u64) -> Result<Known> {
        while self
            .statuses
            .front()
            .is_some_and(|status| status.start.0.saturating_add(status.length) <= at)
        {
            self.statuses.pop_front();
        }
        if self.statuses.is_empty() {
            let length = self.chain.virtual_size() - at;
            self.statuses = self.chain.status(GuestOffset(at), length, BATCH)?.into();
        }
        let unknown = Known {
            end: self.chain.virtual_size(),
            present: true,
            zero: false,
            data: true,
        };
        Ok(self.statuses.front().map_or(unknown, |status| Known {
            end: status.start.0.saturating_add(status.length),
            present: status.present,
            zero: status.zero,
            data: status.data,
        }))
    }

    fn read(&mut self, at: u64, length: u64) -> Result<&[u8]> {
        self.buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
        let read = self.chain.read(GuestOffset(at), &mut self.buffer)?;
        Ok(self.buffer.get(..read).unwrap_or_default())
    }

    fn rest_is_zero(&mut self, from: u64, context: &JobContext) -> Result<Option<GuestOffset>> {
        let mut at = from;
        while at < self.chain.virtual_size() {
            context.cancel.check()?;
            let known = self.status(at)?;
            let skip = known.zero || !known.present;
            let end = if skip { known.end } else { known.end.min(at + CHUNK) };
            if !skip && let Some(sector) = first_nonzero(self.read(at, end - at)?) {
                return Ok(Some(GuestOffset(at + (sector * SECTOR) as u64)));
            }
            context.progress.advance(end - at);
            at = end;
        }
        Ok(None)
    }
}
