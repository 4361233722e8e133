//! The header (qcow2 specification, "Header").
//!
//! ```text
//!   0 magic   4 version   8 backing name offset   16 backing name length   20 cluster_bits   24 size   32 crypt_method
//!  36 l1_size   40 l1_offset   48 refcount table offset   56 refcount table clusters   60 nb_snapshots   64 snapshots_offset
//!  72 incompatible   80 compatible   88 autoclear   96 refcount_order   100 header_length          (version 3)
//! 104 compression type   105 padding   112 fields that are not known here                         (by header_length)
//! ```

use crate::bytes::{be32, be64};
use crate::entry::EntryRules;
use crate::error::FormatError;
use crate::features::{autoclear, incompatible};
use crate::geometry::Geometry;
use crate::limits;
use crate::refcount::RefcountOrder;
use crate::units::HostOffset;

/// `QFI\xfb`.
pub const MAGIC: [u8; 4] = [0x51, 0x46, 0x49, 0xfb];
/// Length of a version 2 header in bytes.
pub const V2_LENGTH: u32 = 72;
/// Shortest version 3 header in bytes.
pub const V3_LENGTH: u32 = 104;
/// The header length that is written: up to the compression type and its padding.
pub const WRITTEN_LENGTH: u32 = 112;

/// Version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `compat=0.10`: no feature bits, no zero clusters, 16-bit refcounts.
    V2,
    /// `compat=1.1`.
    V3,
}

/// How clusters of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Type 0: raw deflate ("zlib").
    Deflate,
    /// Type 1.
    Zstd,
    /// Type 0x4c: this library's extension, see `docs/lz4.md`.
    Lz4,
}

impl CompressionType {
    /// The byte in the header.
    pub const fn wire(self) -> u8 {
        match self {
            Self::Deflate => 0,
            Self::Zstd => 1,
            Self::Lz4 => 0x4c,
        }
    }

    const fn from_wire(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(Self::Deflate),
            1 => Some(Self::Zstd),
            0x4c => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionMethod {
    /// Method 0.
    None,
    /// Method 1, the legacy AES-CBC.
    Aes,
    /// Method 2.
    Luks,
}

impl EncryptionMethod {
    /// The number in the header.
    pub const fn wire(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Aes => 1,
            Self::Luks => 2,
        }
    }
}

/// The checked fields of a header. Offsets are aligned and inside the number range; whether they lie inside the *file* is for the caller
/// to see, who knows its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version.
    pub version: Version,
    /// Where the backing file name stands and its length in bytes, if there is one.
    pub backing_name: Option<(HostOffset, u32)>,
    /// Cluster size and what follows from it.
    pub geometry: Geometry,
    /// Virtual size in bytes as it stands in the file.
    pub recorded_size: u64,
    /// Encryption of guest data.
    pub encryption: EncryptionMethod,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Where it lies.
    pub l1_offset: HostOffset,
    /// Where the refcount table lies.
    pub refcount_table_offset: HostOffset,
    /// Its length in clusters.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table lies.
    pub snapshots_offset: HostOffset,
    /// Incompatible feature bits, all known.
    pub incompatible: u64,
    /// Compatible feature bits.
    pub compatible: u64,
    /// Autoclear feature bits.
    pub autoclear: u64,
    /// Width of a refcount.
    pub refcount_order: RefcountOrder,
    /// Length of the header in bytes; extensions follow it.
    pub length: u32,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Bytes of the header behind the fields that are known here, kept as they are.
    pub unknown_fields: Vec<u8>,
}

impl Header {
    /// The cluster size in bytes that a file beginning with `prefix` claims: how much to read before [`Header::parse`].
    ///
    /// # Errors
    /// As `parse`, for magic, version and cluster size.
    pub fn cluster_size(prefix: &[u8]) -> Result<u64, FormatError> {
        if prefix.get(..4) != Some(&MAGIC[..]) {
            return Err(FormatError::NotQcow2 {});
        }
        let truncated = || FormatError::HeaderTruncated {
            length: prefix.len() as u64,
            wanted: u64::from(V2_LENGTH),
        };
        match be32(prefix, 4).ok_or_else(truncated)? {
            1 => return Err(FormatError::Qcow1 {}),
            2 | 3 => {}
            version => return Err(FormatError::Version { version }),
        }
        let bits = be32(prefix, 20).ok_or_else(truncated)?;
        let geometry = Geometry::new(bits, false).ok_or(FormatError::ClusterBits { bits })?;
        Ok(geometry.cluster_size())
    }

    /// Reads and checks the header at the beginning of `cluster`, which holds the first cluster as far as the file goes.
    ///
    /// # Errors
    /// The first [`FormatError`] that QEMU or the specification would refuse the image for. Unknown incompatible features are the
    /// caller's to name from the feature name table: see [`Header::unknown_features`].
    pub fn parse(cluster: &[u8]) -> Result<Self, FormatError> {
        Self::cluster_size(cluster)?;
        let length_in_file = cluster.len() as u64;
        let version = match be32(cluster, 4) {
            Some(2) => Version::V2,
            _ => Version::V3,
        };
        let minimum = if version == Version::V2 { V2_LENGTH } else { V3_LENGTH };
        let truncated = || FormatError::HeaderTruncated {
            length: length_in_file,
            wanted: u64::from(minimum),
        };
        let f32 = |at| be32(cluster, at).ok_or_else(truncated);
        let f64 = |at| be64(cluster, at).ok_or_else(truncated);

        let (incompatible, compatible, autoclear, order, length) = match version {
            Version::V2 => (0, 0, 0, 4, V2_LENGTH),
            Version::V3 => (f64(72)?, f64(80)?, f64(88)?, f32(96)?, f32(100)?),
        };
        let bits = f32(20)?;
        let plain = Geometry::new(bits, false).ok_or(FormatError::ClusterBits { bits })?;
        check_length(version, length, plain, length_in_file)?;
        let extended = incompatible & incompatible::EXTENDED_L2 != 0;
        let geometry = Geometry::new(bits, extended).ok_or(FormatError::ExtendedL2ClusterBits { bits })?;
        let known_length = usize::try_from(length.min(WRITTEN_LENGTH)).unwrap_or(0);
        let whole_length = usize::try_from(length).unwrap_or(0);

        let header = Self {
            version,
            backing_name: backing_name(f64(8)?, f32(16)?, length, geometry)?,
            geometry,
            recorded_size: f64(24)?,
            encryption: match f32(32)? {
                0 => EncryptionMethod::None,
                1 => EncryptionMethod::Aes,
                2 => EncryptionMethod::Luks,
                method => return Err(FormatError::EncryptionMethod { method }),
            },
            l1_entries: f32(36)?,
            l1_offset: HostOffset(f64(40)?),
            refcount_table_offset: HostOffset(f64(48)?),
            refcount_table_clusters: f32(56)?,
            snapshot_count: f32(60)?,
            snapshots_offset: HostOffset(f64(64)?),
            incompatible,
            compatible,
            autoclear,
            refcount_order: RefcountOrder::new(order).ok_or(FormatError::RefcountOrder { order })?,
            length,
            compression: compression(cluster, length, incompatible)?,
            unknown_fields: cluster.get(known_length..whole_length).unwrap_or_default().to_vec(),
        };
        header.check_tables()?;
        header.check_data_file()?;
        Ok(header)
    }

    /// Virtual size in bytes as QEMU uses it: the recorded one rounded down to whole sectors.
    pub const fn virtual_size(&self) -> u64 {
        self.recorded_size & !511
    }

    /// The incompatible features that are not known here. Any: the image must be refused, with
    /// [`FormatError::Features`].
    pub const fn unknown_features(&self) -> u64 {
        self.incompatible & !incompatible::KNOWN
    }

    /// Whether an incompatible feature bit is set.
    pub const fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible != 0
    }

    /// What this header says about the meaning of L2 entries.
    pub fn entry_rules(&self) -> EntryRules {
        EntryRules {
            geometry: self.geometry,
            version2: self.version == Version::V2,
            data_file: self.has(incompatible::DATA_FILE),
        }
    }

    /// Length of the refcount table in bytes.
    pub fn refcount_table_bytes(&self) -> u64 {
        u64::from(self.refcount_table_clusters).saturating_mul(self.geometry.cluster_size())
    }

    fn check_tables(&self) -> Result<(), FormatError> {
        let (cluster, size) = (self.geometry.cluster_size(), self.recorded_size);
        if size > limits::MAX_VIRTUAL_SIZE {
            return Err(FormatError::VirtualSize { size });
        }
        if self.refcount_table_bytes() > limits::MAX_REFCOUNT_TABLE_BYTES {
            return Err(FormatError::RefcountTableTooLarge {
                clusters: self.refcount_table_clusters,
            });
        }
        if !placed(self.refcount_table_offset, self.refcount_table_bytes(), cluster) {
            return Err(FormatError::RefcountTableOffset {
                offset: self.refcount_table_offset.0,
            });
        }
        if self.snapshot_count > limits::MAX_SNAPSHOTS {
            return Err(FormatError::SnapshotCount {
                count: self.snapshot_count,
            });
        }
        if !placed(
            self.snapshots_offset,
            u64::from(self.snapshot_count).saturating_mul(40),
            cluster,
        ) || (self.snapshot_count > 0 && self.snapshots_offset.0 == 0)
        {
            return Err(FormatError::SnapshotTableOffset {
                offset: self.snapshots_offset.0,
            });
        }
        let l1_bytes = u64::from(self.l1_entries).saturating_mul(8);
        if l1_bytes > limits::MAX_L1_BYTES {
            return Err(FormatError::L1TooLarge {
                entries: self.l1_entries,
            });
        }
        if !placed(self.l1_offset, l1_bytes, cluster) || (self.l1_entries > 0 && self.l1_offset.0 == 0) {
            return Err(FormatError::L1Offset {
                offset: self.l1_offset.0,
            });
        }
        let needed = self.geometry.l1_entries(self.virtual_size());
        if needed.saturating_mul(8) > limits::MAX_L1_BYTES {
            return Err(FormatError::ImageTooBig { size, needed });
        }
        if u64::from(self.l1_entries) < needed {
            return Err(FormatError::L1TooSmall {
                entries: self.l1_entries,
                needed,
            });
        }
        Ok(())
    }

    fn check_data_file(&self) -> Result<(), FormatError> {
        let data_file = self.has(incompatible::DATA_FILE);
        if self.autoclear & autoclear::RAW_DATA_FILE != 0 && !data_file {
            return Err(FormatError::RawDataWithoutDataFile {});
        }
        if data_file && self.snapshot_count > 0 {
            return Err(FormatError::DataFileSnapshots {
                count: self.snapshot_count,
            });
        }
        Ok(())
    }

    /// The fixed fields as bytes, `length` of them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(WRITTEN_LENGTH as usize);
        let (name_offset, name_length) = self.backing_name.unwrap_or_default();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&if self.version == Version::V2 { 2u32 } else { 3 }.to_be_bytes());
        out.extend_from_slice(&name_offset.0.to_be_bytes());
        out.extend_from_slice(&name_length.to_be_bytes());
        out.extend_from_slice(&self.geometry.cluster_bits().to_be_bytes());
        out.extend_from_slice(&self.recorded_size.to_be_bytes());
        out.extend_from_slice(&self.encryption.wire().to_be_bytes());
        out.extend_from_slice(&self.l1_entries.to_be_bytes());
        out.extend_from_slice(&self.l1_offset.0.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_offset.0.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_clusters.to_be_bytes());
        out.extend_from_slice(&self.snapshot_count.to_be_bytes());
        out.extend_from_slice(&self.snapshots_offset.0.to_be_bytes());
        if self.version == Version::V3 {
            out.extend_from_slice(&self.incompatible.to_be_bytes());
            out.extend_from_slice(&self.compatible.to_be_bytes());
            out.extend_from_slice(&self.autoclear.to_be_bytes());
            out.extend_from_slice(&self.refcount_order.get().to_be_bytes());
            out.extend_from_slice(&self.length.to_be_bytes());
            if self.length > V3_LENGTH {
                out.extend_from_slice(&[self.compression.wire(), 0, 0, 0, 0, 0, 0, 0]);
            }
            out.extend_from_slice(&self.unknown_fields);
        }
        out
    }
}

fn check_length(version: Version, length: u32, geometry: Geometry, in_file: u64) -> Result<(), FormatError> {
    if version == Version::V2 {
        return Ok(());
    }
    if length < V3_LENGTH || !length.is_multiple_of(8) {
        return Err(FormatError::HeaderLength { length });
    }
    if u64::from(length) > geometry.cluster_size() {
        return Err(FormatError::HeaderExceedsCluster { length });
    }
    if u64::from(length) > in_file {
        return Err(FormatError::HeaderTruncated {
            length: in_file,
            wanted: u64::from(length),
        });
    }
    Ok(())
}

fn backing_name(
    offset: u64,
    length: u32,
    header_length: u32,
    geometry: Geometry,
) -> Result<Option<(HostOffset, u32)>, FormatError> {
    if offset == 0 {
        return Ok(None);
    }
    let cluster = geometry.cluster_size();
    if offset < u64::from(header_length) || offset > cluster {
        return Err(FormatError::BackingNameOffset { offset });
    }
    if length > limits::MAX_BACKING_NAME || offset.saturating_add(u64::from(length)) > cluster {
        return Err(FormatError::BackingNameTooLong { length });
    }
    Ok((length > 0).then_some((HostOffset(offset), length)))
}

fn compression(cluster: &[u8], length: u32, incompatible: u64) -> Result<CompressionType, FormatError> {
    let kind = if length > V3_LENGTH {
        cluster.get(104).copied().unwrap_or(0)
    } else {
        0
    };
    let compression = CompressionType::from_wire(kind).ok_or(FormatError::CompressionType { kind })?;
    match (compression, incompatible & incompatible::COMPRESSION != 0) {
        (CompressionType::Deflate, true) => Err(FormatError::CompressionBitSet {}),
        (CompressionType::Zstd | CompressionType::Lz4, false) => Err(FormatError::CompressionBitMissing { kind }),
        (compression, _) => Ok(compression),
    }
}

/// Whether a table of `bytes` bytes may lie at `offset`: aligned, and inside what a file can be long.
fn placed(offset: HostOffset, bytes: u64, cluster: u64) -> bool {
    offset.is_aligned(cluster) && offset.0.checked_add(bytes).is_some_and(|end| end <= i64::MAX as u64)
}
