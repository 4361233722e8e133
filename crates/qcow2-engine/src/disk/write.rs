//! Writing bytes: place them, write them with what must be copied around them, link them.

use qcow2_format::{GuestOffset, HostOffset};

use super::Image;
use super::place::{Claims, Placed, Target};
use super::refcounts::Clusters;
use super::state::to_len;
use crate::error::{Error, Result};

impl Image {
    /// Writes `bytes` at `offset`, inside the disk. The caller holds a ticket.
    pub(super) fn write(&self, offset: GuestOffset, bytes: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset.0, bytes);
        while !rest.is_empty() {
            let placed = self.run(|state| state.place(at, rest.len() as u64))?;
            let length = match placed {
                Placed::InPlace { host, length } => {
                    let bytes = rest.get(..to_len(length)).unwrap_or(rest);
                    self.write_data(GuestOffset(at), HostOffset(host), bytes)?;
                    length
                }
                Placed::Linked(targets) => self.write_linked(at, rest, &targets)?,
            };
            rest = rest.get(to_len(length)..).unwrap_or_default();
            at += length;
        }
        Ok(())
    }

    /// Writes the begin of `bytes` to the clusters that were claimed for it, and links them. Returns how many bytes that were.
    fn write_linked(&self, at: u64, bytes: &[u8], targets: &[Target]) -> Result<u64> {
        let _claims = Claims::of(self, targets);
        let outcome = self.copy_and_write(at, bytes, targets);
        let outcome = outcome.and_then(|length| self.run(|state| state.link(targets)).map(|()| length));
        if outcome.is_err()
            && let Some(first) = targets.first().filter(|first| first.allocated)
        {
            let clusters = Clusters {
                first: first.host >> self.geometry.cluster_bits(),
                count: targets.len() as u64,
            };
            // What was written before the space ran out is space that the tables need. Before the clusters are anybody's again.
            let _ = self
                .storage
                .punch(HostOffset(first.host), clusters.count << self.geometry.cluster_bits());
            // If that fails too they leak, which a check repairs.
            let _ = self.run(|state| state.release(clusters));
        }
        outcome
    }

    /// Head, bytes and tail go out as one write.
    fn copy_and_write(&self, at: u64, bytes: &[u8], targets: &[Target]) -> Result<u64> {
        let (Some(first), Some(last)) = (targets.first(), targets.last()) else {
            return Err(Error::Internal {
                message: "a write was placed nowhere".into(),
            });
        };
        let size = self.geometry.cluster_size();
        let begin = first.cluster * size + first.begin;
        let mut end = last.cluster * size + last.end;
        let length = (end - at).min(bytes.len() as u64);
        if self.data_file.is_some() {
            // Whoever takes a data file for the disk finds it as long as that.
            end = end.min(self.chain.virtual_size().max(at + length));
        }
        let bytes = bytes.get(..to_len(length)).unwrap_or(bytes);
        let host = HostOffset(first.host + first.begin);
        if begin == at && end == at + length {
            self.write_data(GuestOffset(begin), host, bytes)?;
            return Ok(length);
        }
        let mut whole = crate::Buffer::default();
        whole.resize(to_len(end - begin))?;
        let (head, rest) = whole.split_at_mut(to_len(at - begin));
        let (middle, tail) = rest.split_at_mut(bytes.len());
        self.read_old(begin, head)?;
        middle.copy_from_slice(bytes);
        self.read_old(at + length, tail)?;
        self.write_data(GuestOffset(begin), host, &whole)?;
        Ok(length)
    }

    /// What the disk holds at `at`: zeros behind its end.
    fn read_old(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let count = self.chain.read(GuestOffset(at), buffer)?;
        if let Some(rest) = buffer.get_mut(count..) {
            rest.fill(0);
        }
        Ok(())
    }

    /// Writes guest bytes to the place in the file that they stand in.
    pub(super) fn write_data(&self, guest: GuestOffset, host: HostOffset, bytes: &[u8]) -> Result<()> {
        let outcome = self.guest.write(guest, host, bytes);
        let outcome = outcome.map_err(Error::io("write", &**self.data()));
        // Also a failed one may have written something.
        self.wrote(self.data_file.is_some());
        outcome
    }
}
