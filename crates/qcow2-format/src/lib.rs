//! The bytes of the qcow2 format as typed structures.
//!
//! Everything here turns bytes into values and values into bytes. Nothing opens a file, keeps a cache, or allocates by a number that an
//! image claims. Offsets are newtypes ([`HostOffset`], [`GuestOffset`]); masks and shifts live behind the types of [`entry`].
//!
//! The layout of an image, as the modules follow it:
//!
//! ```text
//! cluster 0        header (header.rs) | extensions (extension.rs) | backing file name
//! anywhere         refcount table ─► refcount blocks (refcount.rs)
//!                  L1 table ─► L2 tables (entry.rs) ─► guest clusters, plain or compressed
//!                  snapshot table (snapshot.rs) ─► L1 tables of the snapshots
//!                  bitmap directory (bitmap.rs) ─► bitmap tables ─► bitmap data
//! ```
#![forbid(unsafe_code)]
#![deny(clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod bitmap;
pub mod bitmap_switch;
mod bytes;
mod compressed;
pub mod entry;
mod error;
pub mod extension;
pub mod features;
pub mod foreign;
mod geometry;
pub mod header;
pub mod header_switch;
pub mod limits;
pub mod luks;
pub mod refcount;
pub mod sector;
pub mod snapshot;
mod units;

pub use compressed::CompressedDescriptor;
pub use entry::{ClusterMapping, EntryFault, L1Entry, L2Entry};
pub use error::{FormatError, Table};
pub use extension::{BitmapsExtension, CryptoExtension, Extensions, FeatureName};
pub use geometry::Geometry;
pub use header::{CompressionType, EncryptionMethod, Header, Version};
pub use refcount::{RefcountOrder, RefcountTableEntry};
pub use sector::{FirstSector, SectorWrite, changed_sectors};
pub use snapshot::{SalvagedSnapshots, Snapshot, encode_snapshot_table, parse_snapshot_table, salvage_snapshot_table};
pub use units::{ClusterIndex, GuestOffset, HostOffset};
