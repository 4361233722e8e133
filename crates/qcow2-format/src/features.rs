//! Feature bits of the header (qcow2 specification, "Header").

/// Incompatible features: a reader that does not know a set bit must refuse the image.
pub mod incompatible {
    /// Refcounts may be wrong until repaired (lazy refcounts).
    pub const DIRTY: u64 = 1;
    /// The metadata was found damaged; do not write.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest clusters live in an external data file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type is not deflate.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries are 128 bits wide and know subclusters.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// Every bit that this library knows.
    pub const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Compatible features: unknown bits may be ignored.
pub mod compatible {
    /// Refcount updates may be postponed; see [`super::incompatible::DIRTY`].
    pub const LAZY_REFCOUNTS: u64 = 1;
}

/// Autoclear features: a writer that does not know a set bit clears it before its first write.
pub mod autoclear {
    /// The bitmaps extension is consistent.
    pub const BITMAPS: u64 = 1;
    /// The external data file alone is a valid raw image.
    pub const RAW_DATA_FILE: u64 = 1 << 1;
    /// Every bit that this library knows.
    pub const KNOWN: u64 = BITMAPS | RAW_DATA_FILE;
}

/// The names that a new image's feature name table carries: kind, bit, name, in QEMU's order.
pub const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];
