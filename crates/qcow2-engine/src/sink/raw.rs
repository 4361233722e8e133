//! A raw file: every byte at its place, zeros as holes.

use std::sync::Arc;

use qcow2_format::{GuestOffset, HostOffset};

use super::append::{Appender, failed};
use super::qcow2::allocate;
use super::{Chunk, Preallocation, Sink, SinkReport};
use crate::error::Result;
use crate::storage::Storage;

/// See the module.
#[derive(Debug)]
pub(crate) struct RawSink {
    out: Appender,
    size: u64,
    preallocation: Preallocation,
    /// The file reads as zeros wherever nothing was written.
    fresh: bool,
    /// The length is the sink's to set.
    resizes: bool,
    report: SinkReport,
}

impl RawSink {
    /// Begins a file of `size` bytes. `fresh`: it is empty, or known to read as zeros. `resizes`: its length is to become `size`.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        size: u64,
        preallocation: Preallocation,
        (fresh, resizes): (bool, bool),
        max_bytes: Option<u64>,
    ) -> Result<Self> {
        if resizes {
            storage.set_length(size).map_err(|e| failed("truncate", &*storage, e))?;
        }
        Ok(Self {
            out: Appender::new(storage, fresh, max_bytes),
            size,
            preallocation,
            fresh,
            resizes,
            report: SinkReport::default(),
        })
    }

    fn write(&mut self, chunk: &Chunk, from: usize, to: usize) -> Result<()> {
        let to = usize::try_from(chunk.length).unwrap_or(usize::MAX).min(to);
        let bytes = chunk.bytes.get(from..to).unwrap_or_default();
        self.report.data_bytes += bytes.len() as u64;
        self.out.write(HostOffset(chunk.start.0 + from as u64), bytes)
    }
}

impl Sink for RawSink {
    fn place(&mut self, chunk: &Chunk) -> Result<()> {
        if self.preallocation == Preallocation::Full {
            return self.write(chunk, 0, chunk.bytes.len());
        }
        let mut end = 0;
        for piece in &chunk.pieces {
            self.zeros(GuestOffset(chunk.start.0 + end as u64), (piece.start - end) as u64)?;
            self.write(chunk, piece.start, piece.end)?;
            end = piece.end;
        }
        let rest = chunk.length.saturating_sub(end as u64);
        self.zeros(GuestOffset(chunk.start.0 + end as u64), rest)
    }

    fn zeros(&mut self, start: GuestOffset, length: u64) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.report.zero_bytes += length;
        if self.fresh && self.preallocation != Preallocation::Full {
            return Ok(());
        }
        if !self.fresh {
            self.out.flush()?;
            let storage = self.out.storage();
            let punched = storage.punch(HostOffset(start.0), length);
            if punched.map_err(|e| failed("fallocate", &**storage, e))? {
                return Ok(());
            }
        }
        self.out.write_zeros(HostOffset(start.0), length)
    }

    fn leave(&mut self, start: GuestOffset, length: u64) -> Result<()> {
        self.zeros(start, length)
    }

    fn finish(&mut self) -> Result<SinkReport> {
        self.out.flush()?;
        if self.preallocation >= Preallocation::Falloc {
            allocate(self.out.storage(), self.size, self.preallocation)?;
        }
        let storage = self.out.storage();
        self.report.file_length = if self.resizes {
            self.size
        } else {
            storage.length().map_err(|e| failed("stat", &**storage, e))?
        };
        Ok(self.report)
    }
}
