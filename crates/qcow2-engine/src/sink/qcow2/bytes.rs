//! The bytes of guest clusters on their way into the file: joined, encrypted, without those that read as zeros anyway.

use std::ops::Range;

use qcow2_format::{GuestOffset, HostOffset, L2Entry};

use super::Qcow2Sink;
use crate::error::Result;
use crate::sink::Chunk;
use crate::sink::append::failed;
use crate::sink::refcounts::internal;

/// Host ranges that wait to be written as one: neighbours in the chunk and in the file.
pub(super) struct Pending {
    host: u64,
    bytes: Range<usize>,
}

impl Qcow2Sink {
    pub(super) fn write_zeros(&mut self, guest: GuestOffset, host: HostOffset, length: u64) -> Result<()> {
        if self.cipher.is_some() {
            return self.write_sealed_zeros(guest, host, length);
        }
        match &mut self.data {
            Some(data) => {
                let end = (host.0 + length).min(self.layout.header.recorded_size);
                data.write_zeros(host, end.saturating_sub(host.0))
            }
            None => self.allocator.out.write_zeros(host, length),
        }
    }

    fn write_sealed_zeros(&mut self, guest: GuestOffset, host: HostOffset, length: u64) -> Result<()> {
        let length = match self.data {
            Some(_) => (host.0 + length)
                .min(self.layout.header.recorded_size)
                .saturating_sub(host.0),
            None => length,
        };
        let cluster = self.geometry.cluster_size();
        let mut done = 0;
        while done < length {
            let piece = cluster.min(length - done);
            let mut sealed = std::mem::take(&mut self.sealed);
            sealed.clear();
            sealed.resize(usize::try_from(piece).unwrap_or(0), 0);
            let outcome = self.write_sealed(GuestOffset(guest.0 + done), HostOffset(host.0 + done), &mut sealed);
            self.sealed = sealed;
            outcome?;
            done += piece;
        }
        Ok(())
    }

    /// Encrypts `bytes`, whole sectors, and writes them to where guest clusters stand.
    fn write_sealed(&mut self, guest: GuestOffset, host: HostOffset, bytes: &mut [u8]) -> Result<()> {
        let out = match &mut self.data {
            Some(data) => data,
            None => &mut self.allocator.out,
        };
        if let Some(cipher) = &self.cipher {
            let outcome = cipher.encrypt(guest, host, bytes);
            outcome.map_err(|source| failed("encrypt", &**out.storage(), source))?;
        }
        out.write(host, bytes)
    }

    pub(super) fn store(
        &mut self,
        chunk: &Chunk,
        number: u64,
        pending: &mut Option<Pending>,
        data: u32,
        entry: impl Fn(HostOffset) -> L2Entry,
    ) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let guest = GuestOffset(chunk.start.0 + number * cluster);
        self.open_table(self.geometry.l1_index(guest))?;
        let (host, _) = self.hosts(guest, 1)?;
        self.set_entries(guest, 1, |_| entry(host))?;
        let begin = usize::try_from(number * cluster).map_err(|_| internal("a chunk is too long"))?;
        let unit = self.geometry.cluster_len() / 32;
        // Stretches of stored subclusters; without subclusters all bits are set and this is one stretch.
        let mut bits = data;
        while bits != 0 {
            let first = bits.trailing_zeros();
            let length = (bits >> first).trailing_ones();
            bits &= !(u32::MAX >> (32 - length) << first);
            let from = first as usize * unit;
            let part = Pending {
                host: host.0 + from as u64,
                bytes: begin + from..begin + from + length as usize * unit,
            };
            self.queue(chunk, pending, part)?;
        }
        Ok(())
    }

    fn queue(&mut self, chunk: &Chunk, pending: &mut Option<Pending>, part: Pending) -> Result<()> {
        if let Some(before) = pending
            && before.bytes.end == part.bytes.start
            && before.host + before.bytes.len() as u64 == part.host
        {
            before.bytes.end = part.bytes.end;
            return Ok(());
        }
        let before = pending.replace(part);
        self.write_pending(chunk, before)
    }

    pub(super) fn write_pending(&mut self, chunk: &Chunk, pending: Option<Pending>) -> Result<()> {
        let Some(Pending { host, bytes }) = pending else {
            return Ok(());
        };
        if self.writes_zeros() {
            return self.write_part(chunk, host, &bytes, bytes.clone());
        }
        let first = chunk.pieces.partition_point(|piece| piece.end <= bytes.start);
        for piece in chunk.pieces.get(first..).unwrap_or_default() {
            if piece.start >= bytes.end {
                break;
            }
            self.write_part(
                chunk,
                host,
                &bytes,
                piece.start.max(bytes.start)..piece.end.min(bytes.end),
            )?;
        }
        Ok(())
    }

    /// Writes `part` of the chunk; `whole`, which it is a part of, stands at `host`.
    fn write_part(&mut self, chunk: &Chunk, host: u64, whole: &Range<usize>, part: Range<usize>) -> Result<()> {
        let offset = HostOffset(host + (part.start - whole.start) as u64);
        if self.cipher.is_some() {
            let end = match self.data {
                Some(_) => usize::try_from(chunk.length).unwrap_or(usize::MAX).min(part.end),
                None => part.end,
            };
            let guest = GuestOffset(chunk.start.0 + part.start as u64);
            let mut sealed = std::mem::take(&mut self.sealed);
            sealed.clear();
            sealed.extend_from_slice(chunk.bytes.get(part.start..end).unwrap_or_default());
            let outcome = self.write_sealed(guest, offset, &mut sealed);
            self.sealed = sealed;
            return outcome;
        }
        match &mut self.data {
            Some(data) => {
                // The data file ends with the disk, not with its last cluster.
                let end = usize::try_from(chunk.length).unwrap_or(usize::MAX).min(part.end);
                data.write(offset, chunk.bytes.get(part.start..end).unwrap_or_default())
            }
            None => {
                let bytes = chunk.bytes.get(part).ok_or_else(|| internal("a chunk is too short"))?;
                self.allocator.out.write(offset, bytes)
            }
        }
    }
}
