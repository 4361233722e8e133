//! What a reader accepts at most. The numbers are QEMU's; nothing larger is ever allocated for.

/// Smallest `cluster_bits`: clusters of 512 bytes.
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest `cluster_bits`: clusters of 2 MiB.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Smallest `cluster_bits` with extended L2 entries: a subcluster is at least 512 bytes.
pub const MIN_CLUSTER_BITS_EXTENDED: u32 = 14;
/// Largest L1 table in bytes, active or of a snapshot.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table in bytes.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Largest snapshot table in bytes.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// Most extra data of one snapshot in bytes.
pub const MAX_SNAPSHOT_EXTRA: u32 = 1024;
/// Longest backing file name in bytes.
pub const MAX_BACKING_NAME: u32 = 1023;
/// The length at which a backing format name is too long.
pub const MAX_BACKING_FORMAT: usize = 16;
/// Most persistent bitmaps.
pub const MAX_BITMAPS: u32 = 65535;
/// Largest bitmap directory in bytes.
pub const MAX_BITMAP_DIRECTORY_BYTES: u64 = 64 << 20;
/// Longest bitmap name in bytes.
pub const MAX_BITMAP_NAME: u16 = 1023;
/// Most entries of one bitmap table.
pub const MAX_BITMAP_TABLE_ENTRIES: u32 = 0x800_0000;
/// Largest data of one bitmap in bytes.
pub const MAX_BITMAP_BYTES: u64 = 512 << 20;
/// `granularity_bits` of a bitmap, smallest and largest.
pub const BITMAP_GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// Largest virtual size in bytes.
pub const MAX_VIRTUAL_SIZE: u64 = (1 << 63) - 512;
/// The sector: unit of sizes, of compressed lengths, and of what the disk writes atomically.
pub const SECTOR: u64 = 512;
