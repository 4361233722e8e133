//! What has to be read: the statuses of both sides, walked together and cut into pieces.

use super::Difference;
use super::pieces::Stop;
use super::side::{Known, Side};
use crate::chain::Chain;
use crate::error::Result;
use crate::progress::JobContext;
use qcow2_format::GuestOffset;

/// Bytes of a piece, unless a cluster is larger: small enough that what was read of both sides is still in the processor's own cache when it is
/// compared.
const PIECE: u64 = 256 << 10;

/// The walk on its way.
pub(super) struct Walk<'a> {
    sides: (Side<'a>, Side<'a>),
    strict: bool,
    context: &'a JobContext,
    piece: u64,
    at: u64,
    total: u64,
    /// What is left of a range that was cut.
    rest: Option<(u64, u64)>,
    /// A piece that may go on.
    open: Option<(u64, u64)>,
    /// What ends the walk once `open` is handed out.
    stop: Option<Stop>,
}

impl<'a> Walk<'a> {
    pub(super) fn new((a, b): (&'a Chain, &'a Chain), strict: bool, total: u64, context: &'a JobContext) -> Self {
        let clusters = a.layers().chain(b.layers()).filter_map(|layer| layer.cluster_size());
        Self {
            sides: (Side::new(a), Side::new(b)),
            strict,
            context,
            // No cluster is decompressed for two pieces.
            piece: clusters.fold(PIECE, u64::max),
            at: 0,
            total,
            rest: None,
            open: None,
            stop: None,
        }
    }

    /// The next piece, begin and end: neighbours are joined up to a multiple of the piece size.
    ///
    /// # Errors
    /// Of reading statuses; a strict difference.
    pub(super) fn next(&mut self) -> Result<Option<(u64, u64)>, Stop> {
        loop {
            if self.open.is_some_and(|(_, end)| end.is_multiple_of(self.piece)) {
                return Ok(self.open.take());
            }
            if self.rest.is_none() && self.stop.is_none() {
                match self.range() {
                    Ok(range) => self.rest = range,
                    Err(stop) => self.stop = Some(stop),
                }
            }
            let Some((start, end)) = self.rest else {
                // What was found before a fault comes before it.
                return match self.open.take() {
                    None => self.stop.take().map_or(Ok(None), Err),
                    open => Ok(open),
                };
            };
            let begin = match self.open {
                Some((_, last)) if last != start => return Ok(self.open.take()),
                Some((begin, _)) => begin,
                None => start,
            };
            let border = (start / self.piece).saturating_add(1).saturating_mul(self.piece);
            let cut = border.min(end);
            self.open = Some((begin, cut));
            self.rest = (cut < end).then_some((cut, end));
        }
    }

    /// The next range that at least one side has bytes for.
    fn range(&mut self) -> Result<Option<(u64, u64)>, Stop> {
        while self.at < self.total {
            self.context.cancel.check()?;
            let at = self.at;
            let (a, b) = if self.strict {
                (self.sides.0.qemu_status(at)?, self.sides.1.qemu_status(at)?)
            } else {
                (self.sides.0.status(at)?, self.sides.1.status(at)?)
            };
            let end = a.end.min(b.end).min(self.total);
            if self.strict && a.flags() != b.flags() {
                return Err(Stop::Differs(Difference::Allocation(GuestOffset(at))));
            }
            self.at = end;
            if (a.zero && b.zero) || same_place(&a, &b) {
                self.context.progress.advance(end - at);
            } else {
                return Ok(Some((at, end)));
            }
        }
        Ok(None)
    }
}

/// Whether both sides have the range as the same bytes of the same file.
pub(crate) fn same_place(a: &Known<'_>, b: &Known<'_>) -> bool {
    match (a.place, b.place) {
        (Some((storage, offset)), Some((other, at))) => offset == at && crate::layer::same_place(storage, other),
        _ => false,
    }
}
