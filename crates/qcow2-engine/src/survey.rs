//! What a walk through all mappings of a disk tells without reading any of its data.

use qcow2_format::{GuestOffset, HostOffset};

use crate::cancel::CancelToken;
use crate::chain::Chain;
use crate::chain::mapping::{Answer, View};
use crate::chain::resolve::Walk;
use crate::error::{Error, Result};

/// Between two looks at whether to stop.
const BATCH: u64 = 1024;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Some cluster is compressed.
    pub compressed: bool,
    /// The first guest offset whose data lies behind the end of its file, with its place there.
    pub missing: Option<(GuestOffset, HostOffset)>,
    /// All of the disk was looked at: it took no more pieces than were allowed.
    pub complete: bool,
}

impl Chain {
    /// Walks through the mappings of the whole disk, for `most` pieces at most. A table may be named as often as a forger likes: what the walk takes has
    /// nothing to do with the length of the file.
    ///
    /// # Errors
    /// As [`Chain::resolve`], and [`Error::Cancelled`].
    pub fn survey(&self, most: u64, cancel: &CancelToken) -> Result<Survey> {
        let mut walk = Walk::passing(self, GuestOffset(0), self.virtual_size());
        let mut found = Survey::default();
        let mut ends: Vec<Option<u64>> = vec![None; self.layers().count()];
        for count in 0..=most {
            if count % BATCH == 0 {
                cancel.check()?;
            }
            let Some(piece) = walk.next()? else {
                return Ok(Survey {
                    complete: true,
                    ..found
                });
            };
            let Some(view) = self.view(piece.depth) else {
                return Ok(found);
            };
            let (place, length) = match piece.answer {
                Answer::Data { host } => (host, piece.length),
                Answer::Compressed { descriptor, .. } => {
                    found.compressed = true;
                    // Its length is known in sectors: the file may end inside the last one.
                    (descriptor.offset, descriptor.length().saturating_sub(511))
                }
                Answer::Zero { .. } | Answer::Unallocated { .. } => continue,
            };
            if found.missing.is_none() && view.layer.cluster_size().is_some() {
                let compressed = matches!(piece.answer, Answer::Compressed { .. });
                let end = end_of(&mut ends, view, compressed)?;
                if place.0.saturating_add(length) > end {
                    // Of clusters in a row, those at the begin may be there; of a compressed one, it does not matter which part is.
                    let there = if compressed { 0 } else { end.saturating_sub(place.0) };
                    let begin = |at: u64| at.saturating_add(there);
                    found.missing = Some((GuestOffset(begin(piece.start.0)), HostOffset(begin(place.0))));
                }
            }
        }
        Ok(found)
    }
}

/// Where the file of a layer's data ends: with the cluster that it ends in, but for compressed data.
fn end_of(known: &mut [Option<u64>], view: &View, compressed: bool) -> Result<u64> {
    let storage = &**view.layer.guest_data().storage();
    let slot = usize::try_from(view.depth).ok().and_then(|depth| known.get_mut(depth));
    let length = match slot.as_ref().and_then(|slot| **slot) {
        Some(length) => length,
        None => storage.length().map_err(Error::io("stat", storage))?,
    };
    if let Some(slot) = slot {
        *slot = Some(length);
    }
    let whole = !compressed && !view.layer.guest_data().is_encrypted();
    let cluster = view.layer.cluster_size().filter(|_| whole).unwrap_or(1);
    Ok(length.checked_next_multiple_of(cluster).unwrap_or(u64::MAX))
}
