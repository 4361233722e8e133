//! The L2 tables of one L1 table, read and written in large pieces.

use qcow2_format::{ClusterMapping, GuestOffset, HostOffset, L1Entry, L2Entry, Table};

use super::counts::{Counts, Freed};
use crate::disk::Image;
use crate::disk::refcounts::Clusters;
use crate::disk::state::to_len;
use crate::error::{Error, Result};
use crate::storage::{ReadRequest, WriteRequest};

/// Bytes of tables that are looked at at a time.
const WINDOW: u64 = 4 << 20;
/// Bit 63 of an entry stands in its first byte.
const COPIED: u8 = 0x80;

/// The L2 tables that an L1 table names, in the file's order.
pub(super) struct Tree<'a> {
    image: &'a Image,
    /// Offsets of tables, and the L1 index of each.
    tables: Vec<(u64, u64)>,
}

/// Entries of a table whose host clusters lie next to each other.
struct Row {
    clusters: Clusters,
    /// Index of the first entry; none for a compressed cluster, which never has COPIED.
    first: Option<usize>,
}

impl<'a> Tree<'a> {
    /// # Errors
    /// [`Error::Entry`] for an entry that cannot be followed.
    pub(super) fn new(image: &'a Image, l1_offset: u64, l1: impl Iterator<Item = L1Entry>) -> Result<Self> {
        let size = image.geometry.cluster_size();
        let mut tables = Vec::new();
        for (index, entry) in (0u64..).zip(l1) {
            let Some(offset) = entry.l2_offset() else { continue };
            if !offset.is_aligned(size) {
                return Err(Error::Entry {
                    path: image.storage.path().map(Into::into),
                    table: Table::L1,
                    offset: HostOffset(l1_offset.saturating_add(index * 8)),
                    guest: GuestOffset(index.saturating_mul(image.geometry.l1_entry_span())),
                    fault: qcow2_format::EntryFault::Unaligned,
                });
            }
            tables.push((offset.0, index));
        }
        tables.sort_unstable();
        Ok(Self { image, tables })
    }

    /// Looks at every entry, so that nothing can go wrong for one later.
    pub(super) fn check(&self) -> Result<()> {
        self.walk(|tree, number, bytes| tree.rows(number, bytes, |_, _| Ok(())).map(|()| false))
    }

    /// One more reference to every table and every cluster.
    pub(super) fn raise(&self, counts: &mut Counts<'_>) -> Result<()> {
        self.walk(|tree, number, bytes| {
            counts.raise(tree.table_cluster(number))?;
            tree.rows(number, bytes, |_, row| counts.raise(row.clusters))?;
            Ok(false)
        })
    }

    /// One reference less to every table and every cluster.
    pub(super) fn lower(&self, counts: &mut Counts<'_>, freed: &mut Freed) -> Result<()> {
        self.walk(|tree, number, bytes| {
            tree.rows(number, bytes, |_, row| counts.lower(row.clusters, freed))?;
            counts.lower(tree.table_cluster(number), freed)?;
            if freed.is_large() {
                counts.give_back(freed);
            }
            Ok(false)
        })
    }

    /// Takes COPIED away from every entry.
    pub(super) fn clear_copied(&self) -> Result<()> {
        let entry = to_len(self.image.geometry.l2_entry_size());
        self.walk(|_, _, bytes| {
            let mut seen = 0;
            if entry == 8 {
                for word in bytes.as_chunks_mut::<8>().0 {
                    seen |= word[0];
                    word[0] &= !COPIED;
                }
            } else {
                for words in bytes.as_chunks_mut::<16>().0 {
                    seen |= words[0];
                    words[0] &= !COPIED;
                }
            }
            Ok(seen & COPIED != 0)
        })
    }

    /// Gives COPIED to the entries whose clusters have one reference, and takes it from the others.
    pub(super) fn mark_copied(&self, counts: &mut Counts<'_>) -> Result<()> {
        let entry = to_len(self.image.geometry.l2_entry_size());
        self.walk(|tree, number, bytes| {
            let mut changed = false;
            tree.rows(number, bytes, |bytes, row| {
                let Some(first) = row.first else { return Ok(()) };
                let mut places = bytes.chunks_exact_mut(entry).skip(first);
                counts.look(row.clusters, |_, count| {
                    if let Some(place) = places.next().and_then(|words| words.first_mut()) {
                        let marked = if count == 1 { *place | COPIED } else { *place & !COPIED };
                        changed |= marked != *place;
                        *place = marked;
                    }
                })
            })?;
            Ok(changed)
        })
    }

    /// The L1 entries with COPIED as their tables' counts say: index and entry.
    pub(super) fn mark_l1(&self, counts: &mut Counts<'_>) -> Result<Vec<(u64, L1Entry)>> {
        let mut marked = Vec::with_capacity(self.tables.len());
        for (number, &(offset, index)) in self.tables.iter().enumerate() {
            let mut alone = false;
            counts.look(self.table_cluster(number), |_, count| alone = count == 1)?;
            marked.push((index, L1Entry::new(HostOffset(offset), alone)));
        }
        Ok(marked)
    }

    pub(super) fn image(&self) -> &'a Image {
        self.image
    }

    /// Gives `see` every entry of a table that is not empty: its guest offset, what it means, its bytes.
    pub(super) fn entries(
        &self,
        number: usize,
        bytes: &mut [u8],
        mut see: impl FnMut(GuestOffset, ClusterMapping, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let geometry = self.image.geometry;
        let length = to_len(geometry.l2_entry_size());
        for (index, place) in bytes.chunks_exact_mut(length).enumerate() {
            let (words, _) = place.as_chunks::<8>();
            let word = |at: usize| words.get(at).map_or(0, |word| u64::from_be_bytes(*word));
            let entry = L2Entry {
                word: word(0),
                subclusters: word(1),
            };
            if entry == L2Entry::default() {
                continue;
            }
            let (guest, mapping) = self.mapping(number, index, entry)?;
            see(guest, mapping, place)?;
        }
        Ok(())
    }

    pub(super) fn table_cluster(&self, number: usize) -> Clusters {
        let offset = self.tables.get(number).map_or(0, |table| table.0);
        Clusters {
            first: offset >> self.image.geometry.cluster_bits(),
            count: 1,
        }
    }

    /// Gives `see` the rows of host clusters that a table refers to, with the table.
    fn rows(&self, number: usize, bytes: &mut [u8], mut see: impl FnMut(&mut [u8], &Row) -> Result<()>) -> Result<()> {
        let geometry = self.image.geometry;
        let extended = geometry.extended_l2();
        let (entries, step) = (to_len(geometry.l2_entries()), geometry.cluster_size());
        let word = |bytes: &[u8], index: usize| {
            bytes
                .as_chunks::<8>()
                .0
                .get(index)
                .map_or(0, |word| u64::from_be_bytes(*word))
        };
        let entry = |bytes: &[u8], index: usize| L2Entry {
            word: word(bytes, if extended { index * 2 } else { index }),
            subclusters: if extended { word(bytes, index * 2 + 1) } else { 0 },
        };
        let mut index = 0;
        while index < entries {
            let first = entry(bytes, index);
            if first == L2Entry::default() {
                index += 1;
                continue;
            }
            let clusters = self.clusters(number, index, first)?;
            let Some(mut clusters) = clusters else {
                index += 1;
                continue;
            };
            let begin = index;
            index += 1;
            if first.is_compressed() {
                see(bytes, &Row { clusters, first: None })?;
                continue;
            }
            // What is like it but for its place, which is right behind, needs no look at what it means.
            let uncopied = |entry: L2Entry| entry.word & (u64::MAX >> 1);
            let mut expected = uncopied(first).wrapping_add(step);
            while index < entries {
                let next = entry(bytes, index);
                if uncopied(next) != expected || next.subclusters != first.subclusters || next.host_offset().0 == 0 {
                    break;
                }
                expected = expected.wrapping_add(step);
                clusters.count += 1;
                index += 1;
            }
            let first = Some(begin);
            see(bytes, &Row { clusters, first })?;
        }
        Ok(())
    }

    /// Where the guest sees the cluster of an entry, and what the entry means.
    fn mapping(&self, number: usize, index: usize, entry: L2Entry) -> Result<(GuestOffset, ClusterMapping)> {
        let geometry = self.image.geometry;
        let (table, l1_index) = self.tables.get(number).copied().unwrap_or_default();
        let guest = geometry.guest_offset(l1_index, index as u64);
        let guest = guest.unwrap_or(GuestOffset(u64::MAX));
        let mapping = entry.mapping(&self.image.rules, guest).map_err(|fault| Error::Entry {
            path: self.image.storage.path().map(Into::into),
            table: Table::L2,
            offset: HostOffset(table.saturating_add(index as u64 * geometry.l2_entry_size())),
            guest,
            fault,
        })?;
        Ok((guest, mapping))
    }

    /// The host clusters of an entry, if it has any.
    fn clusters(&self, number: usize, index: usize, entry: L2Entry) -> Result<Option<Clusters>> {
        let geometry = self.image.geometry;
        let (_, mapping) = self.mapping(number, index, entry)?;
        if self.image.rules.data_file {
            // Clusters of a data file have no refcounts.
            return Ok(None);
        }
        let host = match mapping {
            ClusterMapping::Compressed(descriptor) => {
                let first = geometry.cluster_index(descriptor.offset).0;
                let last = geometry
                    .cluster_index(HostOffset(descriptor.end().0.saturating_sub(1)))
                    .0;
                let count = last.saturating_sub(first) + 1;
                return Ok(Some(Clusters { first, count }));
            }
            ClusterMapping::Data(host) => Some(host),
            ClusterMapping::Zero(host) | ClusterMapping::Subclusters { host, .. } => host,
            ClusterMapping::Unallocated => None,
        };
        Ok(host.map(|host| Clusters {
            first: geometry.cluster_index(host).0,
            count: 1,
        }))
    }

    /// Gives `visit` every table by its number. Those that it says it has changed are written.
    pub(super) fn walk(&self, mut visit: impl FnMut(&Self, usize, &mut [u8]) -> Result<bool>) -> Result<()> {
        let size = self.image.geometry.cluster_size();
        let cluster = self.image.geometry.cluster_len();
        let most = to_len((WINDOW / size).max(1));
        let mut buffer = Vec::new();
        for (number, tables) in self.tables.chunks(most).enumerate() {
            let bytes = cluster.saturating_mul(tables.len());
            buffer
                .try_reserve_exact(bytes.saturating_sub(buffer.len()))
                .map_err(|_| Error::Limit {
                    limit: "maxMemory",
                    allowed: 0,
                    wanted: bytes as u64,
                })?;
            buffer.resize(bytes, 0);
            self.read(tables, &mut buffer)?;
            let mut writes: Vec<(u64, usize, usize)> = Vec::new();
            let window = tables.iter().zip(buffer.chunks_exact_mut(cluster)).enumerate();
            for (within, (&(offset, _), bytes)) in window {
                if !visit(self, number * most + within, bytes)? {
                    continue;
                }
                let begin = within * cluster;
                match writes.last_mut() {
                    Some((at, from, to)) if *to == begin && *at + (*to - *from) as u64 == offset => *to += cluster,
                    _ => writes.push((offset, begin, begin + cluster)),
                }
            }
            let batch: Vec<WriteRequest<'_>> = writes
                .iter()
                .map(|&(offset, from, to)| WriteRequest {
                    offset: HostOffset(offset),
                    bytes: buffer.get(from..to).unwrap_or_default(),
                })
                .collect();
            self.image.write_many(&batch)?;
        }
        Ok(())
    }

    /// Reads tables, those next to each other at once.
    fn read(&self, tables: &[(u64, u64)], buffer: &mut [u8]) -> Result<()> {
        let cluster = self.image.geometry.cluster_len();
        let storage = &*self.image.storage;
        let mut requests: Vec<ReadRequest<'_>> = Vec::new();
        let mut rest = buffer;
        let rows = tables.chunk_by(|a, b| a.0 + cluster as u64 == b.0);
        for row in rows {
            let (now, later) = rest.split_at_mut((row.len() * cluster).min(rest.len()));
            rest = later;
            requests.push(ReadRequest {
                offset: HostOffset(row.first().map_or(0, |table| table.0)),
                buffer: now,
                filled: 0,
            });
        }
        storage.read_batch(&mut requests).map_err(Error::io("read", storage))?;
        for request in requests {
            if request.filled == request.buffer.len() {
                continue;
            }
            let file_length = storage.length().map_err(Error::io("stat", storage))?;
            // The last cluster of a file may be there only in part.
            let end = request.offset.0.saturating_add(request.buffer.len() as u64);
            if end > file_length.next_multiple_of(cluster as u64) {
                return Err(Error::Truncated {
                    path: storage.path().map(Into::into),
                    table: Table::L2,
                    offset: request.offset,
                    length: request.buffer.len() as u64,
                    file_length,
                });
            }
            request.buffer.get_mut(request.filled..).unwrap_or_default().fill(0);
        }
        Ok(())
    }
}
