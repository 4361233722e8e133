//! A disk that is there already, and is written over in place.

use std::sync::Arc;

use qcow2_format::GuestOffset;

use super::{Chunk, Sink, SinkReport};
use crate::disk::Disk;
use crate::error::Result;

/// See the module. What the disk has beyond what it is given stays as it is.
#[derive(Debug)]
pub(crate) struct DiskSink {
    disk: Arc<Disk>,
    /// The disk is known to read as zeros.
    zeroed: bool,
    report: SinkReport,
}

impl DiskSink {
    pub(crate) fn new(disk: Arc<Disk>, zeroed: bool) -> Self {
        let report = SinkReport::default();
        Self { disk, zeroed, report }
    }
}

impl Sink for DiskSink {
    fn place(&mut self, chunk: &Chunk) -> Result<()> {
        let length = usize::try_from(chunk.length).unwrap_or(usize::MAX);
        let mut end = 0;
        for piece in &chunk.pieces {
            let stop = piece.end.min(length);
            self.zeros(GuestOffset(chunk.start.0 + end as u64), (piece.start - end) as u64)?;
            let bytes = chunk.bytes.get(piece.start..stop).unwrap_or_default();
            self.disk
                .write(GuestOffset(chunk.start.0 + piece.start as u64), bytes)?;
            self.report.data_bytes += bytes.len() as u64;
            end = stop;
        }
        self.zeros(GuestOffset(chunk.start.0 + end as u64), (length - end) as u64)
    }

    fn zeros(&mut self, start: GuestOffset, length: u64) -> Result<()> {
        self.report.zero_bytes += length;
        if self.zeroed || length == 0 {
            return Ok(());
        }
        self.disk.write_zeroes(start, length, true)
    }

    fn leave(&mut self, start: GuestOffset, length: u64) -> Result<()> {
        self.zeros(start, length)
    }

    fn finish(&mut self) -> Result<SinkReport> {
        self.disk.flush()?;
        let top = self.disk.chain().layer(0).ok_or(crate::Error::Closed)?;
        let storage = top.storage();
        self.report.file_length = storage.length().map_err(crate::Error::io("stat", &**storage))?;
        Ok(self.report)
    }
}
