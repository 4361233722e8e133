//! Adding, changing and removing the bitmaps extension of an image that is in use.
//!
//! The header's first cluster is several sectors, and the disk writes one at a time. So a change is a sequence of patches, each durable before the
//! next: whichever was the last, the header is the old one, the new one, or says that its bitmaps are stale. Nothing else is moved but the backing
//! file's name, where it is in the way.

use crate::bytes::be64;
use crate::error::FormatError;
use crate::extension::{self, BitmapsExtension};
use crate::features::autoclear;
use crate::header::Header;
use crate::limits::SECTOR;
use crate::units::HostOffset;

/// Where the autoclear features stand.
const AUTOCLEAR: u64 = 88;
/// Where the place of the backing file's name stands.
const BACKING_NAME: u64 = 8;
/// Type and length before an extension's data.
const HEAD: u64 = 8;
/// The extension's data.
const DATA: u64 = 24;

/// Bytes of the first cluster that change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderPatch {
    /// Where they begin.
    pub offset: HostOffset,
    /// What they become.
    pub bytes: Vec<u8>,
}

impl HeaderPatch {
    fn new(offset: u64, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            offset: HostOffset(offset),
            bytes: bytes.into(),
        }
    }

    /// The sector that it changes; none if it changes several, which only a patch to bytes that nothing refers to does.
    pub fn sector(&self) -> Option<u64> {
        let first = self.offset.0 & !SECTOR.wrapping_sub(1);
        (self.end() <= first.saturating_add(SECTOR)).then_some(first)
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.offset.0.saturating_add(self.bytes.len() as u64)
    }
}

/// The patches that make `cluster`, the first one of an image of version 3, name the directory `new`, or none. Patches that follow each other in one
/// sector may be written as one.
///
/// # Errors
/// What forbids reading the header, and [`FormatError::HeaderFull`] if there is no room for the extension.
pub fn switch_bitmaps(cluster: &[u8], new: Option<BitmapsExtension>) -> Result<Vec<HeaderPatch>, FormatError> {
    let header = Header::parse(cluster)?;
    let place = Place::find(cluster, &header);
    let valid = header.autoclear & autoclear::BITMAPS != 0;
    let mark = |on: bool| {
        let others = header.autoclear & !autoclear::BITMAPS;
        let bits = if on { others | autoclear::BITMAPS } else { others };
        HeaderPatch::new(AUTOCLEAR, bits.to_be_bytes())
    };
    let mut patches = Vec::new();
    match (new, place.bitmaps) {
        (None, at) => {
            if valid {
                patches.push(mark(false));
            }
            patches.extend(at.and_then(|at| place.removal(cluster, at)));
        }
        (Some(new), Some(at)) => {
            let patch = HeaderPatch::new(at.saturating_add(HEAD), extension::bitmaps_data(new));
            let atomic = patch.sector().is_some();
            if valid && !atomic {
                patches.push(mark(false));
            }
            patches.push(patch);
            if !(valid && atomic) {
                patches.push(mark(true));
            }
        }
        (Some(new), None) => {
            place.insert(cluster, &header, new, &mut patches)?;
            patches.push(mark(true));
        }
    }
    Ok(patches)
}

/// What of the extension area matters here.
#[derive(Default)]
struct Place {
    /// Where the bitmaps extension begins, and what follows it.
    bitmaps: Option<u64>,
    next: u64,
    /// Where the end marker stands.
    end: Option<u64>,
}

impl Place {
    fn find(cluster: &[u8], header: &Header) -> Self {
        let mut place = Self::default();
        for (at, kind, next) in extension::heads(cluster, header) {
            match kind {
                extension::END => place.end = Some(at),
                extension::BITMAPS => (place.bitmaps, place.next) = (Some(at), next),
                _ => {}
            }
        }
        place
    }

    /// Takes the extension out, if one sector can do that. Otherwise it stays, as one that is stale.
    fn removal(&self, cluster: &[u8], at: u64) -> Option<HeaderPatch> {
        let end = self.end?;
        let tail_end = usize::try_from(end.saturating_add(HEAD)).ok()?;
        let tail = cluster.get(usize::try_from(self.next).ok()?..tail_end)?;
        let patch = HeaderPatch::new(at, tail);
        patch.sector().is_some().then_some(patch)
    }

    fn insert(
        &self,
        cluster: &[u8],
        header: &Header,
        new: BitmapsExtension,
        patches: &mut Vec<HeaderPatch>,
    ) -> Result<(), FormatError> {
        let cluster_size = header.geometry.cluster_size();
        let full = |needed| FormatError::HeaderFull { needed, cluster_size };
        // Without an end marker the area is full to its last byte.
        let at = self.end.ok_or(full(cluster_size.saturating_add(HEAD)))?;
        let area_end = at.saturating_add(HEAD + DATA + HEAD);
        if area_end > cluster_size {
            return Err(full(area_end));
        }
        if let Some((name, length)) = header.backing_name.filter(|(name, _)| name.0 < area_end) {
            let old_end = name.0.saturating_add(u64::from(length));
            let range = usize::try_from(name.0).ok().zip(usize::try_from(old_end).ok());
            let bytes = range.and_then(|(from, to)| cluster.get(from..to)).unwrap_or_default();
            // Beside the old one, so that there is one at any time; or all of it in one sector.
            let beside = area_end.max(old_end).saturating_add(7) & !7;
            let close_end = area_end.saturating_add(u64::from(length));
            let to = match () {
                () if beside.saturating_add(u64::from(length)) <= cluster_size => beside,
                () if close_end <= SECTOR.min(cluster_size) => area_end,
                () => return Err(full(close_end.max(cluster_size.saturating_add(1)))),
            };
            patches.push(HeaderPatch::new(to, bytes));
            patches.push(HeaderPatch::new(BACKING_NAME, to.to_be_bytes()));
        }
        // Behind the end marker nobody looks; then the marker becomes the extension's head.
        let mut tail = extension::bitmaps_data(new);
        tail.resize(tail.len().saturating_add(8), 0);
        patches.push(HeaderPatch::new(at.saturating_add(HEAD), tail));
        patches.push(HeaderPatch::new(at, extension::bitmaps_head()));
        Ok(())
    }
}

/// Changes `cluster` as a patch says.
pub fn apply_patch(cluster: &mut [u8], patch: &HeaderPatch) {
    let range = usize::try_from(patch.offset.0)
        .ok()
        .zip(usize::try_from(patch.end()).ok());
    if let Some(place) = range.and_then(|(from, to)| cluster.get_mut(from..to)) {
        place.copy_from_slice(&patch.bytes);
    }
}

/// The autoclear features that the first sector of an image of version 3 says.
pub fn autoclear_of(sector: &[u8]) -> Option<u64> {
    be64(sector, 88)
}
