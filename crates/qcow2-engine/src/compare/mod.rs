//! *compare*: do two disks read the same?
//!
//! One thread walks the statuses of both sides and leaves out what needs no look: ranges that both know to be zeros, and ranges that both
//! have at the same place of the same file. What is left is cut into pieces, which several threads read and compare. The first difference by
//! offset wins, whoever finds one first.

mod pieces;
mod side;

use qcow2_format::GuestOffset;

use crate::chain::Chain;
use crate::error::Result;
use crate::progress::JobContext;
use pieces::{Found, Pieces};
use side::{Known, Side};

/// How to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompareOptions {
    /// Sizes must be equal too, and so must what qemu-img calls block status: whether a range is allocated, reads as zeros, is compressed,
    /// has a place in a file, and, as qemu-img happens to see it, ends the disk in one piece.
    pub strict: bool,
}

/// The first difference that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Bytes differ in the sector that begins here.
    Content(GuestOffset),
    /// Strict: the virtual sizes differ.
    Size,
    /// Strict: the two sides have a different status here.
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

/// Compares two disks. What both sides know to be zeros, or have at the same place, is not read.
///
/// # Errors
/// Those of resolving and fetching either side, unless there is a difference before them; [`crate::Error::Cancelled`].
pub fn compare(a: &Chain, b: &Chain, options: CompareOptions, context: &JobContext) -> Result<Comparison> {
    let sizes_differ = a.virtual_size() != b.virtual_size();
    if options.strict && sizes_differ {
        return Ok(Comparison {
            difference: Some(Difference::Size),
            sizes_differ,
        });
    }
    let total = a.virtual_size().max(b.virtual_size());
    context.progress.begin("compare", total);
    let mut walk = Walk {
        sides: (Side::new(a), Side::new(b)),
        pieces: Pieces::new(a, b, context),
        strict: options.strict,
        context,
    };
    let difference = match walk.run(total) {
        Ok(None) => walk.pieces.finish()?,
        // What was queued lies before it.
        Ok(Some(at)) => walk.pieces.finish()?.or(Some(Found::Allocation(at))),
        Err(error) => match walk.pieces.finish()? {
            Some(found) => Some(found),
            None => return Err(error),
        },
    };
    if difference.is_none() {
        context.progress.finish();
    }
    Ok(Comparison {
        difference: difference.map(|found| match found {
            Found::Content(at) => Difference::Content(at),
            Found::Allocation(at) => Difference::Allocation(at),
        }),
        sizes_differ,
    })
}

struct Walk<'a> {
    sides: (Side<'a>, Side<'a>),
    pieces: Pieces<'a>,
    strict: bool,
    context: &'a JobContext,
}

impl Walk<'_> {
    /// Queues all pieces. Ends early at a strict difference, whose offset it returns, or once the pieces have found one.
    fn run(&mut self, total: u64) -> Result<Option<GuestOffset>> {
        let mut at = 0;
        while at < total && !self.pieces.found() {
            self.context.cancel.check()?;
            let (a, b) = if self.strict {
                (self.sides.0.qemu_status(at)?, self.sides.1.qemu_status(at)?)
            } else {
                (self.sides.0.status(at)?, self.sides.1.status(at)?)
            };
            let end = a.end.min(b.end).min(total);
            if self.strict && a.flags() != b.flags() {
                return Ok(Some(GuestOffset(at)));
            }
            if (a.zero && b.zero) || same_place(&a, &b) {
                self.context.progress.advance(end - at);
            } else {
                self.pieces.add(at, end);
            }
            at = end;
        }
        Ok(None)
    }
}

/// Whether both sides have the range as the same bytes of the same file.
fn same_place(a: &Known<'_>, b: &Known<'_>) -> bool {
    match (a.place, b.place) {
        (Some((storage, offset)), Some((other, at))) => offset == at && crate::layer::same_place(storage, other),
        _ => false,
    }
}
