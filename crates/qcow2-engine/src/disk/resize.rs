//! Growing and shrinking.
//!
//! What is new reads as zeros, whatever stood there: the tail of the last cluster, clusters that an interrupted shrinking left behind, and what a
//! longer backing file has. All of that is durable before the header tells the new size. Shrinking tells the size first: what lies behind the end is
//! nobody's from then on.

use qcow2_format::{ClusterMapping, GuestOffset, HostOffset, L1Entry, L2Entry, limits};

use super::refcounts::Clusters;
use super::state::{State, Step, to_len};
use super::zero::Zeroing;
use super::{Disk, Image, Top};
use crate::error::{Error, Result};
use crate::sink::Preallocation;

/// Clusters that are set aside at a time.
const ROW: u64 = 1024;
/// Zeros that are written at a time.
const ZEROS: u64 = 1 << 20;

/// How a disk is resized.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResizeOptions {
    /// It may become smaller, which drops what lies beyond.
    pub shrink: bool,
    /// What is set aside for the new part.
    pub preallocation: Preallocation,
}

impl Disk {
    /// Gives the disk another size in bytes, a multiple of 512 (a raw file: any). Waits for the requests accepted before and holds later ones. What is new reads as
    /// zeros. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::Limit`] for more than an L1 table of 32 MiB covers; [`Error::State`] with code `SHRINK` (smaller, without
    /// `shrink`), `RESIZE_SNAPSHOTS` (version 2 with snapshots) or `BITMAP`.
    pub fn resize(&self, size: u64, options: ResizeOptions) -> Result<()> {
        let _alone = self.alone()?;
        let old = self.chain.virtual_size();
        let invalid = |reason: &str| Error::Invalid {
            argument: "size",
            reason: reason.into(),
        };
        if matches!(self.top, Top::Image(_)) && !size.is_multiple_of(limits::SECTOR) {
            return Err(invalid("it is no multiple of 512"));
        }
        if size > limits::MAX_VIRTUAL_SIZE {
            return Err(invalid("it is larger than any disk can be"));
        }
        if size < old && !options.shrink {
            return Err(Error::State {
                code: "SHRINK",
                path: self.chain.layer(0).and_then(crate::Layer::path),
                reason: format!("the disk has {old} bytes: making it smaller drops data, which has to be asked for"),
            });
        }
        if size < old && options.preallocation != Preallocation::Off {
            return Err(Error::Invalid {
                argument: "preallocation",
                reason: "a disk that becomes smaller has no new part".into(),
            });
        }
        if size == old {
            return Ok(());
        }
        match &self.top {
            Top::Raw(raw) => {
                raw.resize(old, size, options.preallocation)?;
                if let Some(view) = self.chain.view(0) {
                    // The last sector of a raw file may be there only in part.
                    view.set_virtual_size(size.next_multiple_of(limits::SECTOR));
                }
                self.chain.forget();
                Ok(())
            }
            Top::Image(image) if size > old => image.grow(old, size, options.preallocation),
            Top::Image(image) => image.shrink(old, size),
        }
    }
}

impl Image {
    fn grow(&self, old: u64, new: u64, preallocation: Preallocation) -> Result<()> {
        self.refuse_resize()?;
        self.begin_writing()?;
        self.hold_bitmaps(new)?;
        self.grow_l1(new)?;
        let size = self.geometry.cluster_size();
        let prepared = self.clear_new(old, new).and_then(|()| {
            if preallocation == Preallocation::Off {
                return Ok(());
            }
            self.preallocate(old.div_ceil(size), new, preallocation)
        });
        let prepared = prepared.and_then(|()| match &self.data_file {
            Some(data) if data.length().map_err(Error::io("stat", &**data))? < new => {
                self.wrote(true);
                data.set_length(new).map_err(Error::io("truncate", &**data))
            }
            _ => Ok(()),
        });
        let raw = self.lock().raw_data_file();
        let prepared = prepared.and_then(|()| if raw { self.zero_raw(old, new - old) } else { Ok(()) });
        let prepared = prepared.and_then(|()| self.flush_with(false));
        let grown = prepared.and_then(|()| {
            self.bitmaps.resize(new);
            self.lock().header.newest.size = new;
            self.flush_with(false)
        });
        if let Err(error) = grown {
            // What was set aside is given back; the size stays the old one, and no later flush may write the new one.
            self.lock().header.newest.size = old;
            self.bitmaps.resize(old);
            let end = new.next_multiple_of(size);
            let _ = self.zero_clusters(old.next_multiple_of(size), end, end, Zeroing::Drop);
            return Err(error);
        }
        self.set_size(new);
        Ok(())
    }

    fn shrink(&self, old: u64, new: u64) -> Result<()> {
        self.refuse_resize()?;
        self.begin_writing()?;
        self.hold_bitmaps(new)?;
        self.flush_with(false)?;
        self.bitmaps.resize(new);
        self.lock().header.newest.size = new;
        self.set_size(new);
        self.chain.forget();
        self.flush_with(false)?;
        let size = self.geometry.cluster_size();
        let (from, end) = (new.next_multiple_of(size), old.next_multiple_of(size));
        // Whoever makes the disk larger again, such as QEMU, may not look at what stands behind its end.
        if new < from && self.run(|state| state.has_bytes_at(new))? {
            let ticket = self.chain.ticket();
            self.write_zeros(new, from)?;
            drop(ticket);
        }
        self.zero_clusters(from, end, end, Zeroing::Drop)?;
        self.drop_tables(from, end)?;
        self.flush_with(false)?;
        if let Some(data) = &self.data_file
            && data.length().map_err(Error::io("stat", &**data))? > new
        {
            self.wrote(true);
            data.set_length(new).map_err(Error::io("truncate", &**data))?;
        }
        Ok(())
    }

    fn refuse_resize(&self) -> Result<()> {
        let state = self.lock();
        if self.rules().version2 && !state.snapshots.is_empty() {
            return Err(Error::State {
                code: "RESIZE_SNAPSHOTS",
                path: self.storage.path().map(Into::into),
                reason:
                    "an image of version 2 cannot change its size while it has snapshots: they do not record theirs"
                        .into(),
            });
        }
        Ok(())
    }

    fn set_size(&self, size: u64) {
        if let Some(view) = self.chain.view(0) {
            view.set_virtual_size(size);
        }
    }

    /// Makes the L1 table long enough for `size` bytes: a longer copy elsewhere, then one sector of the header names it.
    pub(super) fn grow_l1(&self, size: u64) -> Result<()> {
        let wanted = self.geometry.l1_entries(size);
        let (entries, old) = {
            let state = self.lock();
            (state.l1.entries(), state.header.newest.l1)
        };
        if wanted <= entries.len() {
            return Ok(());
        }
        if wanted.saturating_mul(8) > limits::MAX_L1_BYTES {
            return Err(Error::Limit {
                limit: "l1Table",
                allowed: limits::MAX_L1_BYTES,
                wanted: wanted.saturating_mul(8),
            });
        }
        // What is dirty of the old table goes to the file with it, so nothing of it is left.
        self.flush_with(false)?;
        let cluster = self.geometry.cluster_size();
        let count = (wanted * 8).div_ceil(cluster);
        let clusters = self.run(|state| state.allocate_row(count))?;
        let offset = clusters.first << self.geometry.cluster_bits();
        let mut bytes = vec![0; to_len(count * cluster)];
        for (place, entry) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(entries.iter()) {
            *place = entry.0.to_be_bytes();
        }
        if let Err(error) = self.write_file(HostOffset(offset), &bytes) {
            let _ = self.run(|state| state.release(clusters));
            return Err(error);
        }
        {
            let mut state = self.lock();
            let empty = std::iter::repeat(L1Entry::default());
            let longer = entries.iter().chain(empty).take(to_len(wanted));
            state.l1.replace(longer);
            state.switch_l1(offset, u32::try_from(wanted).unwrap_or(u32::MAX), old);
        }
        self.flush_with(false)
    }

    /// Makes the part from `old` to `new`, which is behind the end of the disk, read as zeros.
    fn clear_new(&self, old: u64, new: u64) -> Result<()> {
        let size = self.geometry.cluster_size();
        let first = old.next_multiple_of(size);
        if old < first && !self.run(|state| state.is_zero_behind(old))? {
            let ticket = self.chain.ticket();
            self.write_zeros(old, first)?;
            drop(ticket);
        }
        let end = new.next_multiple_of(size);
        if first < end {
            self.zero_clusters(first, end, end, Zeroing::Unmap)?;
        }
        Ok(())
    }

    /// Gives the clusters from number `first` up to the byte `limit` their places.
    fn preallocate(&self, first: u64, limit: u64, how: Preallocation) -> Result<()> {
        let end = limit.div_ceil(self.geometry.cluster_size());
        let mut at = first;
        while at < end {
            let row = self.run(|state| state.preallocate_row(at, end - at))?;
            if let Some(clusters) = row.hosts {
                self.reserve(at, clusters, limit, how)?;
            }
            at += row.clusters;
        }
        Ok(())
    }

    /// A data file is no longer than the disk.
    fn reserve(&self, first: u64, clusters: Clusters, limit: u64, how: Preallocation) -> Result<()> {
        let storage = self.data();
        let bits = self.geometry.cluster_bits();
        let (offset, mut length) = (clusters.first << bits, clusters.count << bits);
        if self.data_file.is_some() {
            length = length.min(limit.saturating_sub(offset));
        }
        self.wrote(self.data_file.is_some());
        // Nothing but bytes says zero in version 2, nor at offset 0 of a data file.
        let bytes_tell = self.rules().version2 || (self.data_file.is_some() && offset == 0);
        let full = how == Preallocation::Full
            || bytes_tell
            || (how == Preallocation::Falloc
                && !storage
                    .allocate(HostOffset(offset), length)
                    .map_err(Error::io("allocate", &**storage))?);
        if full {
            let zeros = vec![0; to_len(ZEROS.min(length))];
            let end = offset + length;
            let mut at = offset;
            while at < end {
                let bytes = zeros.get(..to_len((end - at).min(ZEROS))).unwrap_or_default();
                self.write_data(GuestOffset((first << bits) + (at - offset)), HostOffset(at), bytes)?;
                at += bytes.len() as u64;
            }
        }
        if storage.length().map_err(Error::io("stat", &**storage))? < offset + length {
            storage
                .set_length(offset + length)
                .map_err(Error::io("truncate", &**storage))?;
        }
        Ok(())
    }

    /// Gives back the L2 tables of which all clusters lie behind the end.
    fn drop_tables(&self, from: u64, end: u64) -> Result<()> {
        let span = self.geometry.l1_entry_span();
        for index in from.div_ceil(span)..end.div_ceil(span) {
            self.run(|state| {
                if let Some(table) = state.l2_table(index)? {
                    state.set_l1(index, L1Entry::default());
                    let first = state.cluster_of(HostOffset(table));
                    state.unlink(Clusters { first, count: 1 }, false);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Clusters that have their place now.
struct Row {
    clusters: u64,
    /// The new places.
    hosts: Option<Clusters>,
}

impl State {
    /// Another L1 table is in force; the old one is given back.
    pub(super) fn switch_l1(&mut self, offset: u64, entries: u32, old: (u64, u32)) {
        let bytes = u64::from(old.1) * 8;
        self.overlay.forget(old.0, bytes.next_multiple_of(self.cluster_size()));
        self.header.newest.l1 = (offset, entries);
        self.guard
            .add_bytes(self.geometry, HostOffset(offset), u64::from(entries) * 8);
        if bytes > 0 {
            let first = self.cluster_of(HostOffset(old.0));
            let count = bytes.div_ceil(self.cluster_size());
            self.guard.remove(first, count);
            self.unlink(Clusters { first, count }, false);
        }
    }

    /// Whether the rest of the cluster behind `at`, which is the end of the disk, reads as zeros if the disk goes on.
    fn is_zero_behind(&mut self, at: u64) -> Step<bool> {
        let guest = GuestOffset(at);
        let backed = self.chain.layer(1).is_some_and(|below| at < below.virtual_size());
        let Some(table) = self.l2_table(self.geometry.l1_index(guest))? else {
            return Ok(!backed);
        };
        let cluster = at >> self.geometry.cluster_bits();
        let (_, mapping) = self.mapping(table, self.geometry.l2_index(guest), cluster)?;
        Ok(match mapping {
            ClusterMapping::Unallocated => !backed,
            ClusterMapping::Zero(_) => true,
            _ => false,
        })
    }

    /// Whether the cluster that `at` is in has bytes of its own.
    fn has_bytes_at(&mut self, at: u64) -> Step<bool> {
        let guest = GuestOffset(at);
        let Some(table) = self.l2_table(self.geometry.l1_index(guest))? else {
            return Ok(false);
        };
        let cluster = at >> self.geometry.cluster_bits();
        let (_, mapping) = self.mapping(table, self.geometry.l2_index(guest), cluster)?;
        Ok(!matches!(
            mapping,
            ClusterMapping::Unallocated | ClusterMapping::Zero(_)
        ))
    }

    /// Gives up to `count` clusters from `first` on, which read as zeros, a place: they read as zeros still.
    fn preallocate_row(&mut self, first: u64, count: u64) -> Step<Row> {
        let guest = GuestOffset(self.offset_of(first));
        let index = self.geometry.l2_index(guest);
        let table = self.own_l2(self.geometry.l1_index(guest))?;
        let most = count.min(self.geometry.l2_entries() - index).min(ROW);
        self.touch(self.entry_place(table, index), most * self.geometry.l2_entry_size())?;
        let mut without = 0;
        let mut with = 0;
        while without < most && with == 0 {
            let (_, mapping) = self.mapping(table, index + without, first + without)?;
            match mapping {
                ClusterMapping::Unallocated | ClusterMapping::Zero(None) => without += 1,
                // It has its place, with bytes that hide those of a backing file.
                _ => with += 1,
            }
        }
        if without == 0 {
            return Ok(Row {
                clusters: with,
                hosts: None,
            });
        }
        let clusters = if self.rules.data_file {
            let clusters = Clusters { first, count: without };
            self.relink(clusters)?;
            clusters
        } else {
            self.allocate(without)?
        };
        for number in 0..clusters.count {
            let host = HostOffset(self.offset_of(clusters.first + number));
            let entry = if self.rules.version2 || (self.rules.data_file && host.0 == 0) {
                L2Entry::data(host, true, self.geometry)
            } else {
                L2Entry::zero(Some(host), true, self.geometry)
            };
            self.set_entry(table, index + number, entry)?;
        }
        Ok(Row {
            clusters: clusters.count,
            hosts: Some(clusters),
        })
    }
}
