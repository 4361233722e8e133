//! A qcow2 image, laid out from front to back:
//!
//! ```text
//! header | L1 | LUKS header | guest clusters and L2 tables in guest order, refcount blocks between | last refcount blocks | refcount table
//! ```

use std::ops::Range;
use std::sync::Arc;

use qcow2_format::{CryptoExtension, Extensions, Geometry, GuestOffset, Header, HostOffset, L1Entry, L2Entry, Version};

mod bytes;
mod tables;

use bytes::Pending;
use tables::Table;

use super::allocate::Allocator;
use super::append::{Appender, failed};
use super::refcounts::{internal, out_of_memory};
use super::{Chunk, Cluster, Preallocation, Sink, SinkReport};
use crate::error::{Error, Result};
use crate::layer::GuestCipher;
use crate::storage::Storage;

/// What the image to be laid out is.
#[derive(Clone, Debug)]
pub(crate) struct ImageLayout {
    /// The header; places and lengths of tables are filled in.
    pub(crate) header: Header,
    /// What follows it.
    pub(crate) extensions: Extensions,
    pub(crate) preallocation: Preallocation,
    /// There is a backing file: zeros have to be said.
    pub(crate) backing: bool,
    /// Guest clusters live in a file of their own that must be a valid raw image.
    pub(crate) data_file_raw: bool,
}

/// What guest clusters are encrypted with, and the LUKS header that says so.
#[derive(Debug)]
pub(crate) struct Encryption {
    /// Header and key material; none for the old method.
    pub(crate) header: Vec<u8>,
    /// Bytes that are kept for it.
    pub(crate) length: u64,
    pub(crate) cipher: Arc<GuestCipher>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Qcow2Sink {
    layout: ImageLayout,
    cipher: Option<Arc<GuestCipher>>,
    /// Bytes on their way into the cipher.
    sealed: Vec<u8>,
    geometry: Geometry,
    allocator: Allocator,
    /// The external data file.
    data: Option<Appender>,
    /// The image's file reads as zeros wherever nothing was written, and its length is ours to set.
    fresh: bool,
    /// The same of the file that holds guest clusters.
    data_fresh: bool,
    l1: Vec<L1Entry>,
    table: Option<Table>,
    report: SinkReport,
}

impl Qcow2Sink {
    /// Begins an image in `storage`, with an external data file in `data`; each with whether it is empty.
    pub(crate) fn new(
        layout: ImageLayout,
        (storage, fresh): (Arc<dyn Storage>, bool),
        data: Option<(Arc<dyn Storage>, bool)>,
        encryption: Option<Encryption>,
        max_length: Option<u64>,
    ) -> Result<Self> {
        let mut layout = layout;
        let geometry = layout.header.geometry;
        let entries = usize::try_from(geometry.l1_entries(layout.header.recorded_size)).unwrap_or(usize::MAX);
        let mut l1 = Vec::new();
        l1.try_reserve_exact(entries)
            .map_err(|_| out_of_memory(8 * entries as u64))?;
        l1.resize(entries, L1Entry::default());
        let out = Appender::new(storage, fresh, None);
        let mut allocator = Allocator::new(out, geometry, layout.header.refcount_order, max_length);
        // The header's cluster and the L1 table behind it.
        allocator.exactly(1 + geometry.clusters(8 * entries as u64))?;
        if let Some(made) = encryption.as_ref().filter(|made| made.length > 0) {
            let clusters = geometry.clusters(made.length);
            // The refcount block between two tables may not lie inside this one.
            let offset = allocator.exactly(clusters)?;
            allocator.out.write(offset, &made.header)?;
            if !fresh {
                let written = made.header.len() as u64;
                let rest = clusters * geometry.cluster_size() - written;
                allocator.out.write_zeros(HostOffset(offset.0 + written), rest)?;
            }
            layout.extensions.encryption = Some(CryptoExtension {
                offset,
                length: made.length,
            });
        }
        Ok(Self {
            layout,
            cipher: encryption.map(|made| made.cipher),
            sealed: Vec::new(),
            geometry,
            allocator,
            fresh,
            data_fresh: data.as_ref().map_or(fresh, |(_, fresh)| *fresh),
            data: data.map(|(storage, fresh)| Appender::new(storage, fresh, max_length)),
            l1,
            table: None,
            report: SinkReport::default(),
        })
    }

    /// Whether guest clusters without content get a place too.
    fn preallocates(&self) -> bool {
        self.layout.preallocation >= Preallocation::Metadata
    }

    /// Whether every byte of a stored cluster must be written, zeros included.
    fn writes_zeros(&self) -> bool {
        !self.data_fresh || self.layout.preallocation == Preallocation::Full || self.bytes_tell()
    }

    /// Whether a hole in a stored cluster would read as something else than zeros.
    fn bytes_tell(&self) -> bool {
        self.cipher.is_some()
    }

    /// Whether reserved clusters need no bytes: their entries say zero, and the space was not asked to be written.
    fn leaves_bytes(&self) -> bool {
        self.bytes_tell() && self.says_zero() && self.data.is_none() && self.preallocation() != Preallocation::Full
    }

    fn preallocation(&self) -> Preallocation {
        self.layout.preallocation
    }

    /// Whether a cluster can be stored and read as zeros whatever its bytes are.
    fn says_zero(&self) -> bool {
        self.layout.header.version == Version::V3
    }

    fn virtual_size(&self) -> u64 {
        self.layout.header.recorded_size
    }

    /// Places for up to `wanted` guest clusters from `guest` on.
    fn hosts(&mut self, guest: GuestOffset, wanted: u64) -> Result<(HostOffset, u64)> {
        if self.data.is_some() {
            Ok((HostOffset(guest.0), wanted))
        } else {
            self.allocator.some(wanted)
        }
    }

    /// Gives `count` clusters that have no bytes of their own a place each, with `entry` naming it.
    fn reserve(&mut self, guest: GuestOffset, count: u64, entry: impl Fn(HostOffset) -> L2Entry) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let mut done = 0;
        while done < count {
            let at = GuestOffset(guest.0 + done * cluster);
            let until_table_ends = self.geometry.l2_entries() - self.geometry.l2_index(at);
            // The table of the clusters before goes into the file before these do.
            self.open_table(self.geometry.l1_index(at))?;
            let (host, length) = self.hosts(at, (count - done).min(until_table_ends))?;
            self.set_entries(at, length, |number| entry(HostOffset(host.0 + number * cluster)))?;
            // Behind an entry that says zero the bytes do not matter.
            if self.writes_zeros() && !self.leaves_bytes() {
                self.write_zeros(at, host, length * cluster)?;
            }
            done += length;
        }
        Ok(())
    }

    /// The entry of a cluster that has a place, and reads as zeros.
    fn reserved_zero(&self) -> impl Fn(HostOffset) -> L2Entry + use<> {
        let (geometry, backing, raw) = (self.geometry, self.layout.backing, self.layout.data_file_raw);
        let says = self.bytes_tell() && self.says_zero();
        move |host| {
            if says && !geometry.extended_l2() && host.0 != 0 {
                L2Entry::zero(Some(host), true, geometry)
            } else if !geometry.extended_l2() || raw {
                // The place reads as zeros by itself.
                L2Entry::data(host, true, geometry)
            } else if backing {
                L2Entry::zero(Some(host), true, geometry)
            } else {
                L2Entry::subclusters(Some(host), true, 0, 0)
            }
        }
    }

    fn compressed(
        &mut self,
        chunk: &Chunk,
        number: u64,
        packed: &Range<usize>,
        pending: &mut Option<Pending>,
    ) -> Result<()> {
        let guest = GuestOffset(chunk.start.0 + number * self.geometry.cluster_size());
        self.open_table(self.geometry.l1_index(guest))?;
        let bytes = chunk.packed.get(packed.clone());
        let bytes = bytes.ok_or_else(|| internal("a chunk lacks compressed bytes"))?;
        match self.allocator.append_compressed(bytes)? {
            Some(descriptor) => {
                let geometry = self.geometry;
                self.report.compressed_clusters += 1;
                self.set_entries(guest, 1, |_| L2Entry::compressed(descriptor, geometry))
            }
            None => self.store(chunk, number, pending, u32::MAX, plain(self.geometry)),
        }
    }

    fn finish_header(&mut self, table: HostOffset, table_clusters: u32) -> Result<()> {
        let Self { layout, geometry, .. } = self;
        let header = &mut layout.header;
        header.l1_entries = u32::try_from(self.l1.len()).unwrap_or(u32::MAX);
        header.l1_offset = HostOffset(if self.l1.is_empty() { 0 } else { geometry.cluster_size() });
        header.refcount_table_offset = table;
        header.refcount_table_clusters = table_clusters;
        let mut bytes = encode_header(&layout.extensions, header)?;
        if !self.fresh {
            bytes.resize(geometry.cluster_len(), 0);
        }
        self.allocator.out.write(HostOffset(0), &bytes)?;
        self.allocator.out.flush()
    }
}

/// The first cluster's used part.
pub(crate) fn encode_header(extensions: &Extensions, header: &mut Header) -> Result<Vec<u8>> {
    extensions
        .encode(header)
        .map_err(|error| Error::Format { path: None, error })
}

fn plain(geometry: Geometry) -> impl Fn(HostOffset) -> L2Entry {
    move |host| L2Entry::data(host, true, geometry)
}

impl Sink for Qcow2Sink {
    fn place(&mut self, chunk: &Chunk) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let mut pending = None;
        for (number, state) in (0..).zip(&chunk.clusters) {
            let guest = GuestOffset(chunk.start.0 + number * cluster);
            let length = cluster.min(self.virtual_size().saturating_sub(guest.0));
            match state {
                Cluster::Leave => self.leave(guest, length)?,
                Cluster::Zero => self.zeros(guest, length)?,
                Cluster::Data => {
                    self.store(chunk, number, &mut pending, u32::MAX, plain(self.geometry))?;
                    self.report.data_bytes += length;
                }
                Cluster::Compressed(packed) => {
                    self.compressed(chunk, number, packed, &mut pending)?;
                    self.report.data_bytes += length;
                }
                &Cluster::Subclusters { data: 0, zero } if !self.preallocates() => {
                    self.set_entries(guest, 1, |_| L2Entry::subclusters(None, false, 0, zero))?;
                    self.report.zero_bytes += length;
                }
                &Cluster::Subclusters { data, zero } => {
                    self.store(chunk, number, &mut pending, data, |host| {
                        L2Entry::subclusters(Some(host), true, data, zero)
                    })?;
                    self.report.data_bytes += length;
                }
            }
        }
        self.write_pending(chunk, pending)
    }

    fn zeros(&mut self, start: GuestOffset, length: u64) -> Result<()> {
        self.report.zero_bytes += length;
        let count = self.geometry.clusters(length);
        if self.preallocates() {
            return self.reserve(start, count, self.reserved_zero());
        }
        if self.layout.backing {
            let geometry = self.geometry;
            return self.set_entries(start, count, |_| L2Entry::zero(None, false, geometry));
        }
        Ok(())
    }

    fn leave(&mut self, start: GuestOffset, length: u64) -> Result<()> {
        if self.preallocates() {
            let count = self.geometry.clusters(length);
            return self.reserve(start, count, |host| L2Entry::subclusters(Some(host), true, 0, 0));
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<SinkReport> {
        self.close_table()?;
        let (table, table_clusters, end) = self.allocator.finish()?;
        let clusters = self.geometry.clusters(8 * self.l1.len() as u64);
        let mut l1: Vec<u8> = self.l1.iter().flat_map(|entry| entry.0.to_be_bytes()).collect();
        if !self.fresh {
            let whole = clusters * self.geometry.cluster_size();
            l1.resize(usize::try_from(whole).unwrap_or(l1.len()), 0);
        }
        self.allocator
            .out
            .write_table(HostOffset(self.geometry.cluster_size()), &l1)?;
        self.allocator.out.flush()?;
        let storage = Arc::clone(self.allocator.out.storage());
        if self.fresh {
            storage.set_length(end).map_err(|e| failed("truncate", &*storage, e))?;
        }
        if let Some(data) = &mut self.data {
            data.flush()?;
            let storage = data.storage();
            if self.data_fresh {
                let size = self.layout.header.recorded_size;
                storage
                    .set_length(size)
                    .map_err(|e| failed("truncate", &**storage, e))?;
            }
        }
        if self.layout.preallocation >= Preallocation::Falloc {
            let (storage, length) = match &self.data {
                Some(data) => (data.storage(), self.layout.header.recorded_size),
                None => (&storage, end),
            };
            allocate(storage, length, self.layout.preallocation)?;
        }
        self.finish_header(table, table_clusters)?;
        self.report.file_length = end;
        Ok(self.report)
    }
}

/// Reserves space for the whole file.
pub(crate) fn allocate(storage: &Arc<dyn Storage>, length: u64, preallocation: Preallocation) -> Result<()> {
    let done = length == 0
        || storage
            .allocate(HostOffset(0), length)
            .map_err(|e| failed("fallocate", &**storage, e))?;
    // A file that was written in full has its space without being asked.
    if done || preallocation == Preallocation::Full {
        return Ok(());
    }
    Err(Error::State {
        code: "PREALLOCATION_UNSUPPORTED",
        path: storage.path().map(Into::into),
        reason: "space cannot be reserved here: use preallocation full, metadata or off".to_owned(),
    })
}
