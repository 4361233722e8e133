//! Why bytes are not an image.

use std::fmt;

/// The structure that an error or finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Table {
    /// The header in cluster 0.
    Header,
    /// The header extensions behind it.
    HeaderExtensions,
    /// An L1 table.
    L1,
    /// An L2 table.
    L2,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of one bitmap.
    BitmapTable,
    /// The LUKS header area.
    EncryptionHeader,
    /// Guest data.
    Data,
}

impl Table {
    /// The stable name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::HeaderExtensions => "header-extensions",
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::RefcountTable => "refcount-table",
            Self::RefcountBlock => "refcount-block",
            Self::SnapshotTable => "snapshot-table",
            Self::BitmapDirectory => "bitmap-directory",
            Self::BitmapTable => "bitmap-table",
            Self::EncryptionHeader => "encryption-header",
            Self::Data => "data",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! format_errors {
    ($( $(#[$doc:meta])* $variant:ident { $($field:ident: $type:ty),* } $code:literal, $table:ident, $offset:expr, $text:literal; )*) => {
        /// A fault that makes an image, or one of its tables, unreadable. Field values are as they stand in the file.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        #[allow(missing_docs, reason = "the fields are the values that the variant's text names")]
        pub enum FormatError { $( $(#[$doc])* $variant { $($field: $type),* }, )* }

        impl FormatError {
            /// The stable code, `ERR_QCOW2_…`.
            pub const fn code(&self) -> &'static str {
                match self { $( Self::$variant { .. } => concat!("ERR_QCOW2_", $code), )* }
            }

            /// The structure at fault.
            pub const fn table(&self) -> Table {
                match self { $( Self::$variant { .. } => Table::$table, )* }
            }

            /// Where in the file the faulty field stands.
            #[allow(unused_variables, reason = "not every offset is computed from the fields")]
            pub const fn offset(&self) -> Option<u64> {
                match self { $( Self::$variant { $($field),* } => $offset, )* }
            }

            /// The fields by name, for whoever words the error anew.
            pub fn details(&self) -> Vec<(&'static str, String)> {
                match self { $( Self::$variant { $($field),* } => vec![ $( (stringify!($field), $field.to_string()) ),* ], )* }
            }
        }

        impl fmt::Display for FormatError {
            #[allow(unused_variables, reason = "not every text names every field")]
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $( Self::$variant { $($field),* } => write!(f, $text), )* }
            }
        }
    };
}

format_errors! {
    /// The magic is not there.
    NotQcow2 {} "NOT_QCOW2", Header, Some(0), "not a qcow2 image: it does not begin with the bytes 51 46 49 fb";
    /// Version 1: the format before this one.
    Qcow1 {} "VERSION", Header, Some(4), "this is a qcow1 image (version 1 of the format): only versions 2 and 3 are supported";
    /// A version that does not exist.
    Version { version: u32 } "VERSION", Header, Some(4), "qcow2 version {version} is not supported: only versions 2 and 3 are";
    /// The file ends inside the header.
    HeaderTruncated { length: u64, wanted: u64 } "HEADER_TRUNCATED", Header, Some(*length), "the file ends after {length} bytes, inside the header of {wanted} bytes";
    /// `header_length` is too small, too large or no multiple of 8.
    HeaderLength { length: u32 } "HEADER_LENGTH", Header, Some(100), "header length {length} is not valid: it must be a multiple of 8 from 104 to the cluster size";
    /// `header_length` passes the end of the cluster.
    HeaderExceedsCluster { length: u32 } "HEADER_EXCEEDS_CLUSTER", Header, Some(100), "header length {length} passes the end of the first cluster";
    /// `cluster_bits` out of range.
    ClusterBits { bits: u32 } "CLUSTER_SIZE", Header, Some(20), "cluster size 2^{bits} is not supported: it must be 2^9 to 2^21 bytes";
    /// Extended L2 with clusters that are too small.
    ExtendedL2ClusterBits { bits: u32 } "CLUSTER_SIZE_EXTENDED_L2", Header, Some(20), "cluster size 2^{bits} is too small for extended L2 entries: they need at least 2^14 bytes";
    /// `refcount_order` above 6.
    RefcountOrder { order: u32 } "REFCOUNT_WIDTH", Header, Some(96), "refcount order {order} is not valid: refcounts are at most 64 bits wide (order 6)";
    /// Unknown incompatible features.
    Features { mask: u64, names: String, unnamed: u64 } "UNKNOWN_FEATURE", Header, Some(72), "the image needs features that are not known here: bits {mask:#x}{names}";
    /// The compression type does not exist.
    CompressionType { kind: u8 } "COMPRESSION_TYPE", Header, Some(104), "compression type {kind} is not known";
    /// Compression type other than deflate without the feature bit.
    CompressionBitMissing { kind: u8 } "COMPRESSION_BIT", Header, Some(72), "compression type {kind} without incompatible feature bit 3";
    /// The feature bit with compression type deflate.
    CompressionBitSet {} "COMPRESSION_BIT_SET", Header, Some(72), "incompatible feature bit 3 is set although the compression type is deflate";
    /// `crypt_method` does not exist.
    EncryptionMethod { method: u32 } "ENCRYPTION_METHOD", Header, Some(32), "encryption method {method} is not known";
    /// LUKS without its header extension.
    EncryptionHeaderMissing { method: u32 } "ENCRYPTION_HEADER_MISSING", HeaderExtensions, Some(32), "encryption method {method} needs the encryption header extension, which is missing";
    /// The header extension without LUKS.
    EncryptionHeaderUnexpected {} "ENCRYPTION_HEADER_UNEXPECTED", HeaderExtensions, Some(32), "the image has an encryption header extension but is not encrypted with LUKS";
    /// The encryption header extension is damaged.
    EncryptionHeader { offset: u64, length: u64 } "ENCRYPTION_HEADER", HeaderExtensions, Some(*offset), "the encryption header at {offset:#x} with {length} bytes is not valid";
    /// A LUKS header of another version.
    LuksVersion { offset: u64, version: u16 } "LUKS_VERSION", EncryptionHeader, Some(*offset), "the LUKS header has version {version}: only LUKS1 can be read";
    /// The LUKS header is damaged.
    LuksHeader { offset: u64, reason: &'static str } "LUKS_HEADER", EncryptionHeader, Some(*offset), "the LUKS header is not valid: {reason}";
    /// A key slot of the LUKS header is damaged.
    LuksSlot { offset: u64, slot: u8, reason: &'static str } "LUKS_KEY_SLOT", EncryptionHeader, Some(*offset), "key slot {slot} of the LUKS header is not valid: {reason}";
    /// The virtual size passes what the format can hold.
    VirtualSize { size: u64 } "VIRTUAL_SIZE", Header, Some(24), "virtual size {size} is too large";
    /// The L1 table cannot cover the virtual size.
    L1TooSmall { entries: u32, needed: u64 } "L1_TOO_SMALL", Header, Some(36), "the L1 table has {entries} entries, but the virtual size needs {needed}";
    /// The L1 table passes its limit.
    L1TooLarge { entries: u32 } "L1_TOO_LARGE", Header, Some(36), "an L1 table of {entries} entries is larger than 32 MiB";
    /// The virtual size needs an L1 table beyond the limit.
    ImageTooBig { size: u64, needed: u64 } "IMAGE_TOO_BIG", Header, Some(24), "virtual size {size} needs an L1 table of {needed} entries, which is larger than 32 MiB: use larger clusters";
    /// The L1 table lies where it cannot.
    L1Offset { offset: u64 } "L1_OFFSET", Header, Some(40), "the L1 table offset {offset:#x} is not valid";
    /// The L1 table passes the end of the file.
    L1Truncated { offset: u64, end: u64, length: u64 } "L1_TRUNCATED", L1, Some(*offset), "the L1 table ends at {end:#x}, but the file is only {length} bytes long: it is truncated";
    /// The refcount table passes its limit.
    RefcountTableTooLarge { clusters: u32 } "REFCOUNT_TABLE_TOO_LARGE", Header, Some(56), "a refcount table of {clusters} clusters is larger than 8 MiB";
    /// The refcount table lies where it cannot.
    RefcountTableOffset { offset: u64 } "REFCOUNT_TABLE_OFFSET", Header, Some(48), "the refcount table offset {offset:#x} is not valid";
    /// More snapshots than the format allows.
    SnapshotCount { count: u32 } "SNAPSHOT_COUNT", Header, Some(60), "{count} snapshots are more than the 65536 that are allowed";
    /// The snapshot table lies where it cannot.
    SnapshotTableOffset { offset: u64 } "SNAPSHOT_TABLE_OFFSET", Header, Some(64), "the snapshot table offset {offset:#x} is not valid";
    /// The snapshot table passes its limit or the end of the file.
    SnapshotTableTooLarge { offset: u64, index: u32, overhanging: u32 } "SNAPSHOT_TABLE_TOO_LARGE", SnapshotTable, Some(*offset), "the snapshot table passes its limit of 64 MiB at entry {index}";
    /// The file ends inside the snapshot table.
    SnapshotTableTruncated { offset: u64, index: u32 } "SNAPSHOT_TABLE_TRUNCATED", SnapshotTable, Some(*offset), "the file ends inside snapshot table entry {index}";
    /// A snapshot carries more extra data than allowed.
    SnapshotExtra { offset: u64, index: u32, length: u32 } "SNAPSHOT_EXTRA_DATA", SnapshotTable, Some(*offset), "snapshot table entry {index} has {length} bytes of extra data: at most 1024 are allowed";
    /// An id or name of a snapshot is too long to be written.
    SnapshotName { offset: u64, index: u32, length: u64 } "SNAPSHOT_NAME", SnapshotTable, Some(*offset), "the id or name of snapshot table entry {index} is {length} bytes long: at most 65535 are possible";
    /// A version 3 snapshot without the extra data that version 3 needs.
    SnapshotIncomplete { offset: u64, index: u32, length: u32 } "SNAPSHOT_INCOMPLETE", SnapshotTable, Some(*offset), "snapshot table entry {index} has {length} bytes of extra data: version 3 needs at least 16";
    /// The L1 table of one snapshot lies where it cannot, or cannot cover the disk: only this snapshot is unreadable.
    SnapshotL1 { offset: u64, l1_offset: u64, entries: u32, reason: &'static str } "SNAPSHOT_L1", SnapshotTable, Some(*offset), "the snapshot cannot be read: its L1 table at {l1_offset:#x} with {entries} entries {reason}";
    /// A snapshot's recorded disk size passes what the format can hold.
    SnapshotSize { offset: u64, size: u64 } "SNAPSHOT_SIZE", SnapshotTable, Some(*offset), "the snapshot cannot be read: its disk size {size} is too large";
    /// An extension passes the room that it has.
    ExtensionTooLarge { offset: u64, kind: u32, length: u32 } "EXTENSION_TOO_LARGE", HeaderExtensions, Some(*offset), "header extension {kind:#010x} of {length} bytes passes the end of the header area";
    /// An extension that may be there once is there twice.
    ExtensionDuplicate { offset: u64, kind: u32 } "EXTENSION_DUPLICATE", HeaderExtensions, Some(*offset), "header extension {kind:#010x} stands there twice";
    /// The backing format name is too long.
    BackingFormatTooLong { offset: u64, length: u32 } "BACKING_FORMAT_TOO_LONG", HeaderExtensions, Some(*offset), "a backing format name of {length} bytes is too long: it has at most 15";
    /// The backing format name is not plain text.
    BackingFormatName { offset: u64 } "BACKING_FORMAT_NAME", HeaderExtensions, Some(*offset), "the backing format name is not printable text";
    /// The bitmaps extension is damaged.
    BitmapsExtension { offset: u64, reason: &'static str } "BITMAPS_EXTENSION", HeaderExtensions, Some(*offset), "the bitmaps extension is not valid: {reason}";
    /// A bitmap directory entry is damaged.
    BitmapDirectory { offset: u64, index: u32, reason: &'static str } "BITMAP_DIRECTORY", BitmapDirectory, Some(*offset), "bitmap directory entry {index} is not valid: {reason}";
    /// The backing file name lies where it cannot.
    BackingNameOffset { offset: u64 } "BACKING_NAME_OFFSET", Header, Some(8), "the backing file name at {offset:#x} does not lie in the first cluster behind the header";
    /// The backing file name is too long.
    BackingNameTooLong { length: u32 } "BACKING_NAME_TOO_LONG", Header, Some(16), "a backing file name of {length} bytes is too long: it has at most 1023 and ends in the first cluster";
    /// The backing file name is not a plain file name.
    BackingName { offset: u64 } "BACKING_NAME", Header, Some(*offset), "the backing file name is not valid UTF-8 text without control characters";
    /// The data file's name is not a plain file name.
    DataFileName { offset: u64 } "DATA_FILE_NAME", HeaderExtensions, Some(*offset), "the data file name is not valid UTF-8 text without control characters";
    /// A data file is named, but the feature bit is not set.
    DataFileUnexpected { offset: u64 } "DATA_FILE_UNEXPECTED", HeaderExtensions, Some(*offset), "the image names an external data file but incompatible feature bit 2 is not set";
    /// The raw-data bit without an external data file.
    RawDataWithoutDataFile {} "DATA_FILE_RAW", Header, Some(88), "data-file-raw requires a data file: autoclear bit 1 is set without incompatible bit 2";
    /// An external data file together with what cannot live in one.
    DataFileSnapshots { count: u32 } "DATA_FILE_SNAPSHOTS", Header, Some(60), "an image with an external data file cannot have internal snapshots, this one has {count}";
    /// What is to be written does not fit the first cluster.
    HeaderFull { needed: u64, cluster_size: u64 } "HEADER_FULL", Header, Some(0), "header, extensions and backing file name need {needed} bytes: they must fit the first cluster of {cluster_size} bytes";
}

impl std::error::Error for FormatError {}
