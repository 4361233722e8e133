//! Compressed cluster descriptors (qcow2 specification, "Cluster mapping").

use crate::geometry::Geometry;
use crate::units::HostOffset;

/// Where the bytes of a compressed cluster stand.
///
/// On disk: with `x = 62 - (cluster_bits - 8)`, bits `0..x` are the byte offset, bits `x..62` the number of *additional* sectors that the
/// data touches after the one it begins in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CompressedDescriptor {
    /// Byte offset in the file, of any alignment.
    pub offset: HostOffset,
    /// Sectors of 512 bytes after the one that `offset` lies in.
    pub additional_sectors: u32,
}

impl CompressedDescriptor {
    /// The descriptor of `length` bytes at `offset`, or `None` if that does not fit the entry.
    pub fn new(offset: HostOffset, length: u64, geometry: Geometry) -> Option<Self> {
        let last = offset.0.checked_add(length.checked_sub(1)?)?;
        let additional_sectors = u32::try_from((last >> 9).checked_sub(offset.0 >> 9)?).ok()?;
        let fits = offset.0 < 1u64.wrapping_shl(Self::offset_bits(geometry).min(56))
            && additional_sectors < 1u32.wrapping_shl(geometry.cluster_bits().wrapping_sub(8));
        fits.then_some(Self {
            offset,
            additional_sectors,
        })
    }

    const fn offset_bits(geometry: Geometry) -> u32 {
        70u32.wrapping_sub(geometry.cluster_bits())
    }

    pub(crate) fn decode(word: u64, geometry: Geometry) -> Option<Self> {
        let bits = Self::offset_bits(geometry);
        let descriptor = word & ((1u64 << 62).wrapping_sub(1));
        let offset = descriptor & 1u64.wrapping_shl(bits).wrapping_sub(1);
        let additional_sectors = u32::try_from(descriptor.wrapping_shr(bits)).ok()?;
        (offset < 1 << 56).then_some(Self {
            offset: HostOffset(offset),
            additional_sectors,
        })
    }

    pub(crate) const fn encode(self, geometry: Geometry) -> u64 {
        self.offset.0 | (self.additional_sectors as u64).wrapping_shl(Self::offset_bits(geometry))
    }

    /// Bytes that may belong to the data: up to the end of its last sector. At most twice the cluster size.
    pub const fn length(self) -> u64 {
        ((self.additional_sectors as u64).wrapping_add(1) << 9).wrapping_sub(self.offset.0 & 511)
    }

    /// The first byte behind the last sector.
    pub const fn end(self) -> HostOffset {
        HostOffset(self.offset.0.wrapping_add(self.length()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{ClusterMapping, EntryRules, L2Entry};
    use crate::units::GuestOffset;

    fn rules(bits: u32) -> EntryRules {
        EntryRules {
            geometry: Geometry::new(bits, false).unwrap(),
            version2: false,
            data_file: false,
        }
    }

    #[test]
    fn a_compressed_descriptor_round_trips_at_every_cluster_size() {
        for bits in 9..=21 {
            let r = rules(bits);
            for (offset, length) in [
                (0x5_0000, 1),
                (0x5_01ff, 2),
                (0x1234_5678, (1u64 << bits) - 1),
                (512 * 7, 512),
            ] {
                let d = CompressedDescriptor::new(HostOffset(offset), length, r.geometry).unwrap();
                assert!(d.length() >= length && d.length() < length + 1023);
                assert_eq!(d.end().0 % 512, 0);
                let entry = L2Entry::compressed(d, r.geometry);
                assert_eq!(entry.mapping(&r, GuestOffset(0)), Ok(ClusterMapping::Compressed(d)));
            }
        }
    }

    #[test]
    fn the_known_descriptor_of_a_64_kib_image_is_read() {
        // Written by hand from the layout: x = 54, one additional sector, offset 0x50200.
        let word = (1 << 62) | (1 << 54) | 0x5_0200;
        let d = match (L2Entry { word, subclusters: 0 }).mapping(&rules(16), GuestOffset(0)) {
            Ok(ClusterMapping::Compressed(d)) => d,
            other => panic!("{other:?}"),
        };
        assert_eq!((d.offset.0, d.additional_sectors, d.length()), (0x5_0200, 1, 1024));
    }
}
