//! Where bytes of one file live.

mod caller;
mod direct;
mod expect;
mod file;
mod memory;
mod null;
mod system;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod window;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use qcow2_format::HostOffset;

pub use caller::CallerMemory;
pub use file::{AllowSpecial, CacheMode, FileStorage, OpenMode};
pub use memory::MemoryStorage;
pub use null::NullStorage;
pub use window::WindowStorage;

/// What tells two files apart, whatever they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device.
    pub device: u64,
    /// The inode (or file index) on it.
    pub inode: u64,
}

/// A stretch of a file that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whether it may hold anything but zeros.
    pub data: bool,
    /// Where it ends; at most the length of the file.
    pub end: HostOffset,
}

/// One read of a batch. `filled` is set to the bytes that were there: fewer than asked for only at the end of the file.
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// Where to read.
    pub offset: HostOffset,
    /// Where the bytes go.
    pub buffer: &'a mut [u8],
    /// How many there were.
    pub filled: usize,
}

/// One write of a batch.
#[derive(Debug)]
pub struct WriteRequest<'a> {
    /// Where to write.
    pub offset: HostOffset,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// Bytes of one file: positioned, shared between threads, without a cursor.
///
/// Contracts: a call has finished when it returns; `read_at` is short only at the end of the file; a write beyond the end grows the file,
/// and what lies between reads as zeros; nothing is durable before `sync` returns.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Length in bytes, now.
    fn length(&self) -> io::Result<u64>;

    /// Reads into `buffer`, returns how many bytes there were.
    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize>;

    /// Fills `memory` with what can be had without waiting; returns how many bytes that were. `None`, or fewer than there is room for, says
    /// nothing about the rest: a read that may wait finds out. A storage that cannot tell never answers.
    fn read_now(&self, offset: HostOffset, memory: &mut CallerMemory<'_>) -> Option<usize> {
        let _ = (offset, memory);
        None
    }

    /// Writes all of `bytes`.
    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()>;

    /// Reads a batch: a backend that can have several under way overrides this.
    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> io::Result<()> {
        for request in requests {
            request.filled = self.read_at(request.offset, request.buffer)?;
        }
        Ok(())
    }

    /// Writes a batch, in no particular order.
    fn write_batch(&self, requests: &[WriteRequest<'_>]) -> io::Result<()> {
        requests
            .iter()
            .try_for_each(|request| self.write_at(request.offset, request.bytes))
    }

    /// Sets the length; new bytes read as zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;

    /// The extent that `offset`, which is inside the file, lies in. A storage that cannot tell says: data up to the end.
    fn extent(&self, offset: HostOffset) -> io::Result<Extent> {
        let _ = offset;
        Ok(Extent {
            data: true,
            end: HostOffset(self.length()?),
        })
    }

    /// Where the hole ends that `offset`, which is inside the file, lies in; none if data are there, as far as is known. Cheaper than [`Storage::extent`]
    /// where the file is in many pieces: how far data reach is then looked for piece by piece.
    fn hole_end(&self, offset: HostOffset) -> io::Result<Option<HostOffset>> {
        let extent = self.extent(offset)?;
        Ok((!extent.data).then_some(extent.end))
    }

    /// Makes a range read as zeros and gives its space back. `false`: not possible here, nothing was changed.
    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        let _ = (offset, length);
        Ok(false)
    }

    /// Reserves space for a range, which keeps its bytes and reads as zeros where it is new. `false`: not possible here.
    fn allocate(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        let _ = (offset, length);
        Ok(false)
    }

    /// A range, so far a hole, is about to be written in full: a chance to make that faster. Neither what is read nor the length changes, and
    /// a failure is left for the write to tell.
    fn expect(&self, offset: HostOffset, length: u64) {
        let _ = (offset, length);
    }

    /// Bytes that the file takes on its device, if known.
    fn allocated_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// What tells this file apart, if it is one.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// Where byte 0 of this storage stands in the file that [`Storage::identity`] names.
    fn base(&self) -> HostOffset {
        HostOffset(0)
    }

    /// The open file behind it, if there is one: what locks are taken on.
    fn file(&self) -> Option<&File> {
        None
    }

    /// Every write is durable when it returns: whoever keeps metadata back writes it as soon.
    fn writes_through(&self) -> bool {
        false
    }

    /// The path it was opened by, for messages.
    fn path(&self) -> Option<&Path> {
        None
    }
}
