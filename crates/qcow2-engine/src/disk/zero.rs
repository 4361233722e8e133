//! Zeroes and discards: entries change, hardly any bytes are written.

use qcow2_format::{ClusterMapping, GuestOffset, HostOffset, L2Entry};

use super::Image;
use super::refcounts::Clusters;
use super::state::{State, Step, Stop, to_len};
use crate::error::{Error, Result};
use crate::run::RunKind;

/// Clusters that are zeroed at a time.
const ROW: u64 = 1024;
/// Zeros that are written at a time.
const ZEROS: u64 = 1 << 20;

/// What becomes of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroing {
    /// They read as zeros and keep their place.
    Keep,
    /// They read as zeros and their place is given back.
    Unmap,
    /// Nothing is known of them any more: they lie behind the end of the disk.
    Drop,
}

/// What one step did: so many clusters are done, and of these a row in a raw data file is to be filled with zeros first.
struct Zeroed {
    clusters: u64,
    /// Bytes of the raw data file that have to become zeros: begin and length.
    raw: Option<(u64, u64)>,
}

impl Image {
    /// Makes `length` bytes from `offset` on, inside the disk, read as zeros. The caller holds a ticket.
    pub(super) fn zero(&self, offset: GuestOffset, length: u64, how: Zeroing) -> Result<()> {
        let size = self.geometry.cluster_size();
        let end = offset.0 + length;
        // The last cluster of a disk may be there only in part.
        let whole_end = if end == self.chain.virtual_size() {
            end.next_multiple_of(size)
        } else {
            end / size * size
        };
        let first = offset.0.next_multiple_of(size);
        if first >= whole_end {
            return self.zero_part(offset.0, end, how);
        }
        self.zero_part(offset.0, first, how)?;
        self.zero_clusters(first, whole_end, end, how)?;
        self.zero_part(whole_end.min(end), end, how)
    }

    /// Zeroes less than a cluster; the range may cross from one into the next.
    fn zero_part(&self, from: u64, end: u64, how: Zeroing) -> Result<()> {
        if !self.geometry.extended_l2() {
            return self.zero_bytes(from, end);
        }
        let (size, unit) = (self.geometry.cluster_size(), self.geometry.subcluster_size());
        let mut at = from;
        while at < end {
            let stop = (at / size + 1).saturating_mul(size).min(end);
            let (first, last) = (at.next_multiple_of(unit).min(stop), (stop / unit * unit).max(at));
            if first >= last || !self.zero_subclusters(first, last, how)? {
                self.zero_bytes(at, stop)?;
            } else {
                self.zero_bytes(at, first)?;
                self.zero_bytes(last, stop)?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Gives back the whole clusters of a range. Where that would bring bytes of a backing file to light, nothing is done.
    pub(super) fn discard(&self, offset: GuestOffset, length: u64) -> Result<()> {
        let size = self.geometry.cluster_size();
        let end = offset.0 + length;
        let end = if end == self.chain.virtual_size() {
            end.next_multiple_of(size)
        } else {
            end / size * size
        };
        let first = offset.0.next_multiple_of(size);
        if first >= end || (self.rules().version2 && self.chain.layers().len() > 1) {
            return Ok(());
        }
        self.zero_clusters(first, end, end, Zeroing::Unmap)
    }

    /// Zeroes the clusters from `from` to `end`, of which the disk has the bytes before `limit`.
    pub(super) fn zero_clusters(&self, from: u64, end: u64, limit: u64, how: Zeroing) -> Result<()> {
        let below = self.chain.layer(1).map_or(0, crate::Layer::virtual_size);
        if self.rules().version2 && from < below.min(end) && how != Zeroing::Drop {
            // No entry of version 2 says zero: what hides a backing file is zeros.
            let hidden = below.next_multiple_of(self.geometry.cluster_size()).min(end);
            self.write_zeros(from, hidden.min(limit))?;
            return self.zero_clusters(hidden, end, limit, how);
        }
        let bits = self.geometry.cluster_bits();
        let (mut at, end) = (from >> bits, end >> bits);
        while at < end {
            let done = self.run(|state| state.zero_row(at, end - at, how))?;
            if let Some((begin, length)) = done.raw {
                self.zero_raw(begin, length)?;
            }
            at += done.clusters;
        }
        Ok(())
    }

    /// Zeros for less than a cluster.
    fn zero_bytes(&self, from: u64, end: u64) -> Result<()> {
        let mut at = from;
        while at < end {
            let runs = self.chain.resolve(GuestOffset(at), end - at, 64)?;
            if runs.is_empty() {
                break;
            }
            for run in runs {
                if matches!(run.kind, RunKind::Data { .. } | RunKind::Compressed { .. }) {
                    self.write_zeros(at, at + run.length)?;
                }
                at += run.length;
            }
        }
        Ok(())
    }

    pub(super) fn write_zeros(&self, from: u64, end: u64) -> Result<()> {
        let zeros = vec![0; to_len(ZEROS.min(end.saturating_sub(from)))];
        let mut at = from;
        while at < end {
            let length = (end - at).min(zeros.len() as u64);
            self.write(GuestOffset(at), zeros.get(..to_len(length)).unwrap_or_default())?;
            at += length;
        }
        Ok(())
    }

    /// A raw data file has to hold the zeros itself.
    pub(super) fn zero_raw(&self, begin: u64, length: u64) -> Result<()> {
        let storage = self.data();
        let there = storage.length().map_err(Error::io("stat", &**storage))?;
        let end = (begin + length).min(there);
        let length = end.saturating_sub(begin);
        let punched = storage
            .punch(HostOffset(begin), length)
            .map_err(Error::io("punch", &**storage))?;
        self.wrote(true);
        let zeros = vec![0; to_len(ZEROS.min(length))];
        let mut at = if punched { end } else { begin };
        while at < end {
            let bytes = zeros.get(..to_len((end - at).min(ZEROS))).unwrap_or_default();
            // In a raw data file a place on the disk is the place in the file.
            self.write_data(GuestOffset(at), HostOffset(at), bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

impl State {
    /// Zeroes up to `count` clusters from `first` on: as many as one L2 table answers for, at least one.
    fn zero_row(&mut self, first: u64, count: u64, how: Zeroing) -> Step<Zeroed> {
        let guest = GuestOffset(self.offset_of(first));
        let index = self.geometry.l2_index(guest);
        let row = count.min(self.geometry.l2_entries() - index);
        let l1_index = self.geometry.l1_index(guest);
        let backed = self.chain.layer(1).is_some_and(|below| guest.0 < below.virtual_size());
        let none = |clusters| Zeroed { clusters, raw: None };
        let Some(table) = self.l2_table(l1_index)? else {
            if !backed || how == Zeroing::Drop {
                return Ok(none(row));
            }
            self.own_l2(l1_index)?;
            return self.zero_row_of_table(first, row.min(ROW), l1_index, how);
        };
        // Others wait for the lock meanwhile.
        let row = row.min(ROW);
        // A table that says nothing new needs no copy.
        self.touch(self.entry_place(table, index), row * self.geometry.l2_entry_size())?;
        let mut nothing = 0;
        while nothing < row && self.zeroed(table, index + nothing, first + nothing, how)?.is_none() {
            nothing += 1;
        }
        if nothing > 0 {
            return Ok(none(nothing));
        }
        self.zero_row_of_table(first, row, l1_index, how)
    }

    fn zero_row_of_table(&mut self, first: u64, row: u64, l1_index: u64, how: Zeroing) -> Step<Zeroed> {
        if self.claims.contains(&first) {
            return Err(Stop::Wait);
        }
        let table = self.own_l2(l1_index)?;
        let index = self.geometry.l2_index(GuestOffset(self.offset_of(first)));
        self.touch(self.entry_place(table, index), row * self.geometry.l2_entry_size())?;
        let mut changes = Vec::new();
        let mut raw: Option<(u64, u64)> = None;
        let mut done = 0;
        while done < row && !self.claims.contains(&(first + done)) {
            match self.zeroed(table, index + done, first + done, how)? {
                Some(Change::Raw(begin)) => match &mut raw {
                    Some((from, length)) if *from + *length == begin => *length += self.cluster_size(),
                    Some(_) => break,
                    None => raw = Some((begin, self.cluster_size())),
                },
                Some(change) => changes.push((done, change)),
                None => {}
            }
            done += 1;
        }
        for (number, change) in changes {
            let Change::Entry { entry, old, kept } = change else {
                continue;
            };
            self.set_entry(table, index + number, entry)?;
            match old {
                Some(Old::Image(clusters, punch)) => self.unlink(clusters, punch),
                Some(Old::DataFile(clusters)) => self.unlink_data(clusters),
                None => {}
            }
            let guest = GuestOffset(self.offset_of(first + number));
            self.chain.zero_written(guest, self.cluster_size(), kept);
        }
        Ok(Zeroed { clusters: done, raw })
    }

    /// What has to change so that a cluster reads as zeros; none if it does already.
    fn zeroed(&mut self, table: u64, index: u64, cluster: u64, how: Zeroing) -> Step<Option<Change>> {
        let (entry, mapping) = self.mapping(table, index, cluster)?;
        let guest = self.offset_of(cluster);
        let backed = self.chain.layer(1).is_some_and(|below| guest < below.virtual_size());
        let host = match mapping {
            ClusterMapping::Unallocated if !backed || how == Zeroing::Drop => return Ok(None),
            ClusterMapping::Zero(None) | ClusterMapping::Unallocated | ClusterMapping::Compressed(_) => None,
            ClusterMapping::Data(host) | ClusterMapping::Zero(Some(host)) => Some(host),
            ClusterMapping::Subclusters { host, .. } => host,
        };
        match mapping {
            ClusterMapping::Zero(None) if how != Zeroing::Drop => return Ok(None),
            ClusterMapping::Zero(Some(_)) if how == Zeroing::Keep => return Ok(None),
            _ => {}
        }
        let raw = self.rules.data_file && self.raw_data_file() && how != Zeroing::Drop;
        if raw && matches!(mapping, ClusterMapping::Data(_)) {
            return Ok(Some(Change::Raw(guest)));
        }
        let own = match host {
            Some(host) => self.is_own(entry, host)?,
            None => false,
        };
        if let (Zeroing::Keep, true, Some(host), false) = (how, own, host, self.rules.version2) {
            // A zero cluster at offset 0 of a data file has no place: there is no way to write that down.
            let kept = Some(host).filter(|host| host.0 != 0);
            return Ok(Some(Change::Entry {
                entry: L2Entry::zero(kept, kept.is_some(), self.geometry),
                old: None,
                kept,
            }));
        }
        let old = match (mapping, host) {
            (ClusterMapping::Compressed(descriptor), _) => {
                let first = self.cluster_of(descriptor.offset);
                let last = self.cluster_of(HostOffset(descriptor.end().0.saturating_sub(1)));
                let count = last.saturating_sub(first) + 1;
                Some(Old::Image(Clusters { first, count }, true))
            }
            (_, Some(host)) => {
                let clusters = Clusters {
                    first: self.cluster_of(host),
                    count: 1,
                };
                Some(if self.rules.data_file {
                    Old::DataFile(clusters)
                } else {
                    Old::Image(clusters, true)
                })
            }
            _ => None,
        };
        // Version 2 has no zero flag, and nothing below: unallocated says the same.
        let entry = if self.rules.version2 || how == Zeroing::Drop {
            L2Entry::default()
        } else {
            L2Entry::zero(None, false, self.geometry)
        };
        Ok(Some(Change::Entry { entry, old, kept: None }))
    }

    pub(super) fn raw_data_file(&self) -> bool {
        self.header.newest.autoclear & qcow2_format::features::autoclear::RAW_DATA_FILE != 0
    }
}

/// What becomes of one cluster.
enum Change {
    Entry {
        entry: L2Entry,
        old: Option<Old>,
        kept: Option<HostOffset>,
    },
    /// The raw data file holds its bytes, from this place on.
    Raw(u64),
}

/// What loses its name.
enum Old {
    Image(Clusters, bool),
    DataFile(Clusters),
}
