//! The L2 table that is being filled, and the entries in it.

use qcow2_format::{GuestOffset, L1Entry, L2Entry};

use super::Qcow2Sink;
use crate::error::Result;
use crate::sink::refcounts::internal;

/// The L2 table that is being filled.
#[derive(Debug)]
pub(super) struct Table {
    l1_index: u64,
    bytes: Vec<u8>,
}

impl Qcow2Sink {
    /// Sets the entries of `count` clusters from `guest` on; `host` gives the first cluster's place, and the others follow it.
    pub(super) fn set_entries(&mut self, guest: GuestOffset, count: u64, entry: impl Fn(u64) -> L2Entry) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let mut done = 0;
        while done < count {
            let at = GuestOffset(guest.0 + done * cluster);
            let (index, in_table) = (self.geometry.l2_index(at), self.geometry.l2_entries());
            let here = (count - done).min(in_table - index);
            let width = if self.geometry.extended_l2() { 16 } else { 8 };
            let begin = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(width);
            let table = self.open_table(self.geometry.l1_index(at))?;
            let room = table.get_mut(begin..).unwrap_or_default();
            let here_len = usize::try_from(here).unwrap_or(usize::MAX);
            for (number, slot) in (done..).zip(room.chunks_exact_mut(width)).take(here_len) {
                let entry = entry(number);
                let (word, rest) = slot.split_at_mut(8);
                word.copy_from_slice(&entry.word.to_be_bytes());
                if !rest.is_empty() {
                    rest.copy_from_slice(&entry.subclusters.to_be_bytes());
                }
            }
            done += here;
        }
        Ok(())
    }

    pub(super) fn open_table(&mut self, l1_index: u64) -> Result<&mut [u8]> {
        if self.table.as_ref().is_none_or(|table| table.l1_index != l1_index) {
            self.close_table()?;
        }
        let length = self.geometry.cluster_len();
        let table = self.table.get_or_insert_with(|| Table {
            l1_index,
            bytes: vec![0; length],
        });
        Ok(&mut table.bytes)
    }

    pub(super) fn close_table(&mut self) -> Result<()> {
        let Some(table) = self.table.take() else { return Ok(()) };
        let place = self.allocator.exactly(1)?;
        self.allocator.out.write_table(place, &table.bytes)?;
        let entry = usize::try_from(table.l1_index).ok().and_then(|at| self.l1.get_mut(at));
        *entry.ok_or_else(|| internal("an L2 table lies behind the L1 table"))? = L1Entry::new(place, true);
        Ok(())
    }
}
