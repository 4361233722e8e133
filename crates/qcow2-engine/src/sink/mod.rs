//! Where new images are laid out.
//!
//! Nobody reads a file that is being made, so nothing in it is copied on write or published in barriers. A sink is given the guest's
//! content in rising order, appends what has to stand in the file, and writes the pointers last. What it writes depends on the content
//! alone: not on time, threads, or the sizes of the pieces it is given… as long as their borders are the same.

mod allocate;
mod append;
mod disk;
mod qcow2;
mod raw;
mod refcounts;

use std::ops::Range;

use qcow2_format::GuestOffset;

use crate::buffer::Buffer;
use crate::error::Result;

pub(crate) use disk::DiskSink;
pub(crate) use qcow2::{Encryption, ImageLayout, Qcow2Sink, encode_header};
pub(crate) use raw::RawSink;
pub(crate) use refcounts::{internal, out_of_memory};

/// What of a new file's space is reserved when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Every guest cluster has its place in the file; the places are holes.
    Metadata,
    /// As `Metadata`, and the system reserves the space.
    Falloc,
    /// As `Metadata`, and the space is written with zeros.
    Full,
}

/// What becomes of one cluster of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Nothing: it reads as the target's backing file, or as zeros without one.
    Leave,
    /// Reads as zeros.
    Zero,
    /// Its bytes are stored.
    Data,
    /// Its compressed form is stored: a range of [`Chunk::packed`].
    Compressed(Range<usize>),
    /// Extended L2: bit `i` of `data` stores subcluster `i`, bit `i` of `zero` makes it read as zeros, neither leaves it.
    Subclusters {
        /// Subclusters with bytes.
        data: u32,
        /// Subclusters that read as zeros although there is a backing file.
        zero: u32,
    },
}

/// A part of the guest's content, ready to be placed. It begins at a cluster of the target.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Where it begins.
    pub(crate) start: GuestOffset,
    /// Bytes of guest content: whole clusters, but at the end of the disk.
    pub(crate) length: u64,
    /// The content, followed by zeros up to a whole cluster.
    pub(crate) bytes: Buffer,
    /// The parts of `bytes` that have to be written where the file is known to read as zeros: everything else is zeros.
    pub(crate) pieces: Vec<Range<usize>>,
    /// For qcow2: one for each cluster.
    pub(crate) clusters: Vec<Cluster>,
    /// The compressed clusters, one behind the other.
    pub(crate) packed: Vec<u8>,
}

/// What a sink made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SinkReport {
    /// Length of the file in bytes.
    pub(crate) file_length: u64,
    /// Guest bytes that were stored.
    pub(crate) data_bytes: u64,
    /// Guest bytes that became zeros or holes.
    pub(crate) zero_bytes: u64,
    /// Clusters that were stored compressed.
    pub(crate) compressed_clusters: u64,
}

/// A new image, or raw file, being laid out. Ranges come in rising order and cover the disk.
pub(crate) trait Sink: Send {
    /// Stores a chunk.
    fn place(&mut self, chunk: &Chunk) -> Result<()>;

    /// A range of whole clusters (but at the end of the disk) that reads as zeros.
    fn zeros(&mut self, start: GuestOffset, length: u64) -> Result<()>;

    /// A range of whole clusters (but at the end of the disk) that reads as the target's backing file.
    fn leave(&mut self, start: GuestOffset, length: u64) -> Result<()>;

    /// Writes what names everything, and the header last.
    fn finish(&mut self) -> Result<SinkReport>;
}
