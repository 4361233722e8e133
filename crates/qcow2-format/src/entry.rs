//! L1 and L2 entries (qcow2 specification, "Cluster mapping"): the one place that masks and shifts them.

use std::fmt;

use crate::compressed::CompressedDescriptor;
use crate::geometry::Geometry;
use crate::units::{GuestOffset, HostOffset};

/// Bits 9–55: a host offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount of what is named is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 62: the descriptor is a compressed one.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor: the cluster reads as zeros.
const ZERO: u64 = 1;
/// Reserved bits of an L1 entry.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Reserved bits of a standard L2 entry.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// The reserved bits above the offset: set, they would make it larger than any that is allowed.
const ABOVE_OFFSET: u64 = 0x3f00_0000_0000_0000;

/// An entry of an L1 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// The entry that names the L2 table at `offset`.
    pub const fn new(offset: HostOffset, copied: bool) -> Self {
        Self((offset.0 & OFFSET_MASK) | if copied { COPIED } else { 0 })
    }

    /// Where the L2 table lies; `None` if the whole range is unallocated.
    pub const fn l2_offset(self) -> Option<HostOffset> {
        match self.0 & OFFSET_MASK {
            0 => None,
            offset => Some(HostOffset(offset)),
        }
    }

    /// Whether the COPIED flag is set.
    pub const fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The reserved bits that are set.
    pub const fn reserved(self) -> u64 {
        self.0 & L1_RESERVED
    }
}

/// An entry of an L2 table: 64 bits, and 64 more of subcluster state with extended L2 entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry {
    /// The first word.
    pub word: u64,
    /// The second word: bits 0–31 allocated, bits 32–63 zero. Always 0 without extended L2.
    pub subclusters: u64,
}

/// What an image's header says about the meaning of its L2 entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRules {
    /// Sizes, and whether entries are extended.
    pub geometry: Geometry,
    /// Version 2 has no zero flag.
    pub version2: bool,
    /// Guest clusters live in an external data file, at their guest offset.
    pub data_file: bool,
}

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterMapping {
    /// Nothing here: the backing file answers.
    Unallocated,
    /// Reads as zeros. The host cluster is kept for later writes, if there is one.
    Zero(Option<HostOffset>),
    /// The bytes stand at this host offset.
    Data(HostOffset),
    /// The bytes stand compressed.
    Compressed(CompressedDescriptor),
    /// Extended L2: each of the 32 subclusters has a state of its own.
    Subclusters {
        /// The host cluster, if one is allocated.
        host: Option<HostOffset>,
        /// Bit `i`: subcluster `i` has its bytes in the host cluster.
        allocated: u32,
        /// Bit `i`: subcluster `i` reads as zeros.
        zero: u32,
    },
}

/// Why an L2 entry cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryFault {
    /// The host offset is no multiple of the cluster size.
    Unaligned,
    /// The host offset of a preallocated zero cluster is no multiple of the cluster size.
    UnalignedZero,
    /// Bits above the largest host offset are set.
    OffsetTooLarge,
    /// COPIED together with COMPRESSED.
    CopiedCompressed,
    /// The zero flag in a version 2 image.
    ZeroFlagInVersion2,
    /// A subcluster is both allocated and zero.
    SubclusterBothStates,
    /// A subcluster is allocated, but the cluster has no host offset.
    SubclusterWithoutHost,
    /// A compressed cluster with subcluster bits.
    CompressedSubclusters,
    /// A compressed cluster in an image with an external data file.
    CompressedInDataFile,
    /// A cluster in an external data file that is not at its guest offset.
    DataFileOffset,
    /// Offset 0 with COPIED outside an external data file.
    CopiedWithoutOffset,
}

impl EntryFault {
    /// What is wrong, in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unaligned => "the host offset is not aligned to the cluster size",
            Self::UnalignedZero => "the host offset of a preallocated zero cluster is not aligned to the cluster size",
            Self::OffsetTooLarge => "the host offset is 2^56 or larger",
            Self::CopiedCompressed => "the COPIED flag is set for a compressed cluster",
            Self::ZeroFlagInVersion2 => "the zero flag is set in a version 2 image",
            Self::SubclusterBothStates => "a subcluster is marked both allocated and zero",
            Self::SubclusterWithoutHost => "a subcluster is marked allocated in a cluster without host offset",
            Self::CompressedSubclusters => "a compressed cluster has subcluster bits",
            Self::CompressedInDataFile => "a compressed cluster in an image with an external data file",
            Self::DataFileOffset => "a cluster of the external data file is not at its guest offset",
            Self::CopiedWithoutOffset => "the COPIED flag is set for a cluster without host offset",
        }
    }
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl L2Entry {
    /// The entry of a plain cluster at `host`; with extended L2, all its subclusters are allocated.
    pub const fn data(host: HostOffset, copied: bool, geometry: Geometry) -> Self {
        let word = (host.0 & OFFSET_MASK) | if copied { COPIED } else { 0 };
        Self {
            word,
            subclusters: if geometry.extended_l2() { 0xffff_ffff } else { 0 },
        }
    }

    /// The entry of a cluster that reads as zeros, keeping `host` if there is one.
    pub const fn zero(host: Option<HostOffset>, copied: bool, geometry: Geometry) -> Self {
        let offset = match host {
            Some(host) => (host.0 & OFFSET_MASK) | if copied { COPIED } else { 0 },
            None => 0,
        };
        if geometry.extended_l2() {
            Self {
                word: offset,
                subclusters: 0xffff_ffff_0000_0000,
            }
        } else {
            Self {
                word: offset | ZERO,
                subclusters: 0,
            }
        }
    }

    /// The entry of a cluster with subclusters in different states. `host` keeps its place even with no subcluster allocated.
    pub const fn subclusters(host: Option<HostOffset>, copied: bool, allocated: u32, zero: u32) -> Self {
        let word = match host {
            Some(host) => (host.0 & OFFSET_MASK) | if copied { COPIED } else { 0 },
            None => 0,
        };
        Self {
            word,
            subclusters: (allocated as u64) | ((zero as u64) << 32),
        }
    }

    /// The entry of a compressed cluster.
    pub const fn compressed(descriptor: CompressedDescriptor, geometry: Geometry) -> Self {
        Self {
            word: COMPRESSED | descriptor.encode(geometry),
            subclusters: 0,
        }
    }

    /// Whether the COPIED flag is set.
    pub const fn copied(self) -> bool {
        self.word & COPIED != 0
    }

    /// Whether the COMPRESSED flag is set.
    pub const fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// The reserved bits that are set in a standard descriptor. Bit 0 is reserved with extended L2 entries.
    pub const fn reserved(self, geometry: Geometry) -> u64 {
        if self.is_compressed() {
            0
        } else if geometry.extended_l2() {
            self.word & (L2_RESERVED | ZERO)
        } else {
            self.word & L2_RESERVED
        }
    }

    /// The host offset bits of a standard descriptor, unchecked.
    pub const fn host_offset(self) -> HostOffset {
        HostOffset(self.word & OFFSET_MASK)
    }

    /// What the entry says of the cluster at `guest`.
    ///
    /// # Errors
    /// The first [`EntryFault`] that forbids following it. Reserved bits below the offset do not: see [`L2Entry::reserved`].
    pub fn mapping(self, rules: &EntryRules, guest: GuestOffset) -> Result<ClusterMapping, EntryFault> {
        let geometry = rules.geometry;
        if self.is_compressed() {
            return self.compressed_mapping(rules).map(ClusterMapping::Compressed);
        }
        if self.word & ABOVE_OFFSET != 0 {
            return Err(EntryFault::OffsetTooLarge);
        }
        let zero_flag = !geometry.extended_l2() && self.word & ZERO != 0;
        if zero_flag && rules.version2 {
            return Err(EntryFault::ZeroFlagInVersion2);
        }
        let host = self.host(rules, guest, zero_flag)?;
        if geometry.extended_l2() {
            return self.subcluster_mapping(host);
        }
        Ok(match (zero_flag, host) {
            (true, host) => ClusterMapping::Zero(host),
            (false, Some(host)) => ClusterMapping::Data(host),
            (false, None) => ClusterMapping::Unallocated,
        })
    }

    fn compressed_mapping(self, rules: &EntryRules) -> Result<CompressedDescriptor, EntryFault> {
        if self.copied() {
            return Err(EntryFault::CopiedCompressed);
        }
        if rules.data_file {
            return Err(EntryFault::CompressedInDataFile);
        }
        if self.subclusters != 0 {
            return Err(EntryFault::CompressedSubclusters);
        }
        CompressedDescriptor::decode(self.word, rules.geometry).ok_or(EntryFault::OffsetTooLarge)
    }

    fn host(self, rules: &EntryRules, guest: GuestOffset, zero_flag: bool) -> Result<Option<HostOffset>, EntryFault> {
        let host = self.host_offset();
        if !host.is_aligned(rules.geometry.cluster_size()) {
            return Err(if zero_flag {
                EntryFault::UnalignedZero
            } else {
                EntryFault::Unaligned
            });
        }
        if host.0 == 0 && zero_flag && rules.data_file {
            // As QEMU has it: a zero cluster at offset 0 is never preallocated, not even in an external data file.
            return Ok(None);
        }
        if host.0 == 0 && !(rules.data_file && self.copied()) {
            // Offset 0 holds the header: only an external data file can have a guest cluster there.
            return if self.copied() {
                Err(EntryFault::CopiedWithoutOffset)
            } else {
                Ok(None)
            };
        }
        if rules.data_file && host.0 != guest.0 {
            return Err(EntryFault::DataFileOffset);
        }
        Ok(Some(host))
    }

    fn subcluster_mapping(self, host: Option<HostOffset>) -> Result<ClusterMapping, EntryFault> {
        let [a0, a1, a2, a3, z0, z1, z2, z3] = self.subclusters.to_le_bytes();
        let (allocated, zero) = (
            u32::from_le_bytes([a0, a1, a2, a3]),
            u32::from_le_bytes([z0, z1, z2, z3]),
        );
        if allocated & zero != 0 {
            return Err(EntryFault::SubclusterBothStates);
        }
        if host.is_none() && allocated != 0 {
            return Err(EntryFault::SubclusterWithoutHost);
        }
        Ok(match (host, allocated, zero) {
            (Some(host), u32::MAX, 0) => ClusterMapping::Data(host),
            (host, 0, u32::MAX) => ClusterMapping::Zero(host),
            (None, 0, 0) => ClusterMapping::Unallocated,
            (host, allocated, zero) => ClusterMapping::Subclusters { host, allocated, zero },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(bits: u32, extended: bool) -> EntryRules {
        EntryRules {
            geometry: Geometry::new(bits, extended).unwrap(),
            version2: false,
            data_file: false,
        }
    }

    #[test]
    fn each_fault_is_named() {
        let (g16, x16) = (rules(16, false), rules(16, true));
        let v2 = EntryRules { version2: true, ..g16 };
        let data_file = EntryRules { data_file: true, ..g16 };
        let cases = [
            (g16, 0x8000, 0, EntryFault::Unaligned),
            (g16, 0x8001, 0, EntryFault::UnalignedZero),
            (g16, 1 << 56 | 0x1_0000, 0, EntryFault::OffsetTooLarge),
            (g16, 3 << 62 | 0x1_0000, 0, EntryFault::CopiedCompressed),
            (g16, 1 << 63, 0, EntryFault::CopiedWithoutOffset),
            (v2, 1, 0, EntryFault::ZeroFlagInVersion2),
            (x16, 1 << 63 | 0x1_0000, 1 << 32 | 1, EntryFault::SubclusterBothStates),
            (x16, 0, 1, EntryFault::SubclusterWithoutHost),
            (x16, 1 << 62 | 0x1_0000, 1, EntryFault::CompressedSubclusters),
            (data_file, 1 << 62 | 0x1_0000, 0, EntryFault::CompressedInDataFile),
            (data_file, 1 << 63 | 0x1_0000, 0, EntryFault::DataFileOffset),
        ];
        for (rules, word, subclusters, fault) in cases {
            assert_eq!(
                (L2Entry { word, subclusters }).mapping(&rules, GuestOffset(0)),
                Err(fault),
                "{word:#x}"
            );
        }
    }

    #[test]
    fn states_are_told_apart() {
        let (g, x) = (rules(16, false), rules(16, true));
        let at =
            |r: &EntryRules, word, subclusters| (L2Entry { word, subclusters }).mapping(r, GuestOffset(0)).unwrap();
        assert_eq!(at(&g, 0, 0), ClusterMapping::Unallocated);
        assert_eq!(at(&g, 1, 0), ClusterMapping::Zero(None));
        assert_eq!(at(&g, 0x1_0001, 0), ClusterMapping::Zero(Some(HostOffset(0x1_0000))));
        assert_eq!(
            at(&g, 1 << 63 | 0x1_0000, 0),
            ClusterMapping::Data(HostOffset(0x1_0000))
        );
        assert_eq!(
            at(&x, 0x1_0000, 0xffff_ffff),
            ClusterMapping::Data(HostOffset(0x1_0000))
        );
        assert_eq!(at(&x, 0, 0xffff_ffff << 32), ClusterMapping::Zero(None));
        assert_eq!(
            at(&x, 0x1_0000, 2 << 32 | 1),
            ClusterMapping::Subclusters {
                host: Some(HostOffset(0x1_0000)),
                allocated: 1,
                zero: 2
            }
        );
        let data_file = EntryRules { data_file: true, ..g };
        assert_eq!(at(&data_file, 1 << 63, 0), ClusterMapping::Data(HostOffset(0)));
        assert_eq!(at(&data_file, 0, 0), ClusterMapping::Unallocated);
    }
}
