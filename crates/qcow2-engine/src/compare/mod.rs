//! *compare*: do two disks read the same?
//!
//! The walk over the statuses of both sides leaves out what needs no look: ranges that both know to be zeros, and ranges that both have at the
//! same place of the same file. What is left is cut into pieces, which several threads read and compare. The first difference by offset wins,
//! whoever finds one first.

pub(crate) mod pieces;
pub(crate) mod side;
pub(crate) mod walk;

use qcow2_format::GuestOffset;

use crate::chain::Chain;
use crate::error::Result;
use crate::progress::JobContext;
use walk::Walk;

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
    let walk = Walk::new((a, b), options.strict, total, context);
    let difference = pieces::compare((a, b), walk, context)?;
    if difference.is_none() {
        context.progress.finish();
    }
    Ok(Comparison {
        difference,
        sizes_differ,
    })
}
