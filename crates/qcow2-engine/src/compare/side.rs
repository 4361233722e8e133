//! One side of a comparison: what is known of it without reading.

use std::collections::VecDeque;

use qcow2_format::{GuestOffset, HostOffset};

use crate::chain::Chain;
use crate::error::Result;
use crate::status::Status;
use crate::storage::Storage;

/// Statuses that are asked for at a time.
const BATCH: usize = 1024;
/// QEMU looks at L2 tables in slices of at most this many bytes, and a status of its never passes one.
const SLICE: u64 = 64 << 10;
/// Nor does one of a qcow2 image ever pass this many bytes.
const LONGEST: u64 = (1 << 31) - 512;

/// What is known of one side from some offset on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// Up to where it is known.
    pub(crate) end: u64,
    /// Reads as zeros.
    pub(crate) zero: bool,
    /// The top layer itself has it.
    pub(crate) top: bool,
    /// Where the bytes stand, if they stand as they are.
    pub(crate) place: Option<(&'a dyn Storage, HostOffset)>,
    flags: Flags,
}

/// What a strict comparison compares: the flags of QEMU's block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    has_offset: bool,
    /// QEMU's piece ends where the disk does.
    ends_disk: bool,
}

impl Known<'_> {
    pub(super) fn flags(&self) -> Flags {
        self.flags
    }
}

/// One side: its statuses, fetched in batches.
pub(crate) struct Side<'a> {
    chain: &'a Chain,
    statuses: VecDeque<Status>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(chain: &'a Chain) -> Self {
        Self {
            chain,
            statuses: VecDeque::new(),
        }
    }

    /// What is known from `at` on. Behind the end of the disk: zeros. The offsets that are asked for rise.
    pub(crate) fn status(&mut self, at: u64) -> Result<Known<'a>> {
        let virtual_size = self.chain.virtual_size();
        while self.statuses.front().is_some_and(|status| end_of(status) <= at) {
            self.statuses.pop_front();
        }
        if self.statuses.is_empty() && at < virtual_size {
            self.statuses = self.chain.status(GuestOffset(at), virtual_size - at, BATCH)?.into();
        }
        let Some(status) = self.statuses.front() else {
            return Ok(BEHIND_THE_END);
        };
        Ok(Known {
            end: end_of(status),
            zero: status.zero,
            top: status.depth == 0 && status.present,
            place: self.place(status, at),
            flags: Flags {
                present: status.present,
                zero: status.zero,
                data: status.data,
                compressed: status.compressed,
                has_offset: status.offset.is_some(),
                ends_disk: false,
            },
        })
    }

    /// As [`Side::status`], cut where QEMU's answer would end.
    pub(super) fn qemu_status(&mut self, at: u64) -> Result<Known<'a>> {
        let mut known = self.status(at)?;
        if let Some(status) = self.statuses.front() {
            known.end = known.end.min(self.qemu_end(status, at));
            known.flags.ends_disk = known.end == self.chain.virtual_size();
        }
        Ok(known)
    }

    fn place(&self, status: &Status, at: u64) -> Option<(&'a dyn Storage, HostOffset)> {
        let offset = status.offset?.checked_add(at.checked_sub(status.start.0)?)?;
        let file = status.file?;
        let layer = self.chain.layer(file.layer)?;
        let storage = if file.data_file {
            layer.data_file()?
        } else {
            layer.storage()
        };
        Some((&**storage, offset))
    }

    /// Each qcow2 layer that was asked ends QEMU's answer at the end of a slice of its tables.
    fn qemu_end(&self, status: &Status, at: u64) -> u64 {
        let asked = usize::try_from(status.depth).map_or(usize::MAX, |depth| depth.saturating_add(1));
        let headers = self.chain.layers().take(asked).filter_map(|layer| layer.header());
        headers.fold(u64::MAX, |end, header| {
            let geometry = header.geometry;
            let cluster = geometry.cluster_size();
            // Compressed clusters come one by one.
            let entries = if status.compressed {
                1
            } else {
                cluster.min(SLICE) / geometry.l2_entry_size()
            };
            let span = entries.saturating_mul(cluster);
            let slice_end = (at / span).saturating_add(1).saturating_mul(span);
            end.min(slice_end).min(at.saturating_add(LONGEST))
        })
    }
}

fn end_of(status: &Status) -> u64 {
    status.start.0.saturating_add(status.length)
}

const BEHIND_THE_END: Known<'_> = Known {
    end: u64::MAX,
    zero: true,
    top: false,
    place: None,
    flags: Flags {
        present: false,
        zero: true,
        data: false,
        compressed: false,
        has_offset: false,
        ends_disk: false,
    },
};
