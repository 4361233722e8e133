//! The header as it is changed in a file that others may read after a power cut: sector by sector.
//!
//! A sector of 512 bytes is what a disk writes whole or not at all. Everything that switches an image from one state to another stands in the
//! first one, so that one write of it is the switch.

use crate::bytes::{be32, be64};
use crate::error::FormatError;
use crate::header::{MAGIC, V2_LENGTH, V3_LENGTH};
use crate::limits;
use crate::refcount::RefcountOrder;
use crate::units::HostOffset;

/// Bytes of a sector.
pub const SECTOR_LENGTH: usize = 512;

/// One sector to be written, at a multiple of 512.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectorWrite {
    /// Where it stands.
    pub offset: HostOffset,
    /// Its bytes: 512, fewer only where the new bytes end.
    pub bytes: Vec<u8>,
}

/// The sectors in which `new` differs from `old`, rising. Both begin at `base`, a multiple of 512; what `old` lacks differs.
pub fn changed_sectors<'a>(
    old: &'a [u8],
    new: &'a [u8],
    base: HostOffset,
) -> impl DoubleEndedIterator<Item = SectorWrite> + 'a {
    let sectors = new.chunks(SECTOR_LENGTH).enumerate();
    sectors.filter_map(move |(index, sector)| {
        let begin = index.wrapping_mul(SECTOR_LENGTH);
        let before = old.get(begin..begin.wrapping_add(sector.len()));
        (before != Some(sector)).then(|| SectorWrite {
            offset: HostOffset(base.0.wrapping_add(begin as u64)),
            bytes: sector.to_vec(),
        })
    })
}

/// The first sector of an image as it stands in the file. Setting a field leaves every other byte as it is: fields, extensions and trailing bytes
/// that are not known here too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstSector(Vec<u8>);

impl FirstSector {
    /// The sector in the first 512 bytes of `bytes`, which are fewer only if the file is.
    ///
    /// # Errors
    /// [`FormatError::NotQcow2`], [`FormatError::Version`] or [`FormatError::HeaderTruncated`].
    pub fn new(bytes: &[u8]) -> Result<Self, FormatError> {
        let sector = bytes.get(..SECTOR_LENGTH).unwrap_or(bytes);
        if sector.get(..4) != Some(&MAGIC[..]) {
            return Err(FormatError::NotQcow2 {});
        }
        let wanted = match be32(sector, 4) {
            Some(2) => V2_LENGTH,
            Some(3) | None => V3_LENGTH,
            Some(version) => return Err(FormatError::Version { version }),
        };
        let length = sector.len() as u64;
        if length < u64::from(wanted) {
            return Err(FormatError::HeaderTruncated {
                length,
                wanted: u64::from(wanted),
            });
        }
        Ok(Self(sector.to_vec()))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, to be written at offset 0.
    pub fn write(&self) -> SectorWrite {
        SectorWrite {
            offset: HostOffset(0),
            bytes: self.0.clone(),
        }
    }

    /// Whether there are feature bits: version 3.
    pub fn has_features(&self) -> bool {
        be32(&self.0, 4) == Some(3)
    }

    /// Incompatible feature bits; none in version 2.
    pub fn incompatible(&self) -> u64 {
        self.feature(72)
    }

    /// Compatible feature bits; none in version 2.
    pub fn compatible(&self) -> u64 {
        self.feature(80)
    }

    /// Autoclear feature bits; none in version 2.
    pub fn autoclear(&self) -> u64 {
        self.feature(88)
    }

    /// Sets the virtual size in bytes.
    pub fn set_size(&mut self, size: u64) {
        self.put(24, &size.to_be_bytes());
    }

    /// Sets place and entries of the active L1 table.
    pub fn set_l1(&mut self, entries: u32, offset: HostOffset) {
        self.put(36, &entries.to_be_bytes());
        self.put(40, &offset.0.to_be_bytes());
    }

    /// Sets place and length in clusters of the refcount table.
    pub fn set_refcount_table(&mut self, offset: HostOffset, clusters: u32) {
        self.put(48, &offset.0.to_be_bytes());
        self.put(56, &clusters.to_be_bytes());
    }

    /// Sets the width of refcounts. Version 2 has no such field, and nothing is changed.
    pub fn set_refcount_order(&mut self, order: RefcountOrder) {
        if self.has_features() {
            self.put(96, &order.get().to_be_bytes());
        }
    }

    /// Sets number of snapshots and place of their table.
    pub fn set_snapshots(&mut self, count: u32, offset: HostOffset) {
        self.put(60, &count.to_be_bytes());
        self.put(64, &offset.0.to_be_bytes());
    }

    /// Sets the incompatible feature bits. `None`: version 2 has none, nothing is changed.
    #[must_use = "version 2 has no feature bits"]
    pub fn set_incompatible(&mut self, bits: u64) -> Option<()> {
        self.set_feature(72, bits)
    }

    /// Sets the compatible feature bits, as [`FirstSector::set_incompatible`].
    #[must_use = "version 2 has no feature bits"]
    pub fn set_compatible(&mut self, bits: u64) -> Option<()> {
        self.set_feature(80, bits)
    }

    /// Sets the autoclear feature bits, as [`FirstSector::set_incompatible`].
    #[must_use = "version 2 has no feature bits"]
    pub fn set_autoclear(&mut self, bits: u64) -> Option<()> {
        self.set_feature(88, bits)
    }

    fn feature(&self, at: usize) -> u64 {
        be64(&self.0, at).filter(|_| self.has_features()).unwrap_or(0)
    }

    fn set_feature(&mut self, at: usize, bits: u64) -> Option<()> {
        self.has_features().then(|| self.put(at, &bits.to_be_bytes()))
    }

    fn put(&mut self, at: usize, field: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at.wrapping_add(field.len())) {
            place.copy_from_slice(field);
        }
    }
}

const _: () = assert!(SECTOR_LENGTH as u64 == limits::SECTOR);
