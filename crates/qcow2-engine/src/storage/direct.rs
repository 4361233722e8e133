//! Reading and writing a file past the page cache: in whole blocks, from memory at a block's border.

use std::cell::RefCell;
use std::io;
use std::sync::{PoisonError, RwLock};

use qcow2_format::HostOffset;

/// What every block device takes. Most take less; nobody asks for less often.
const BLOCK: usize = 4096;
/// Bytes that are copied through aligned memory at a time.
const PIECE: usize = 1 << 20;

/// What makes requests of any place and length fit for a file that takes whole blocks only.
#[derive(Debug)]
pub(super) struct Blocks {
    block: usize,
    /// The length is not ours to set: a device.
    fixed: bool,
    /// Whole blocks are written under the shared half, parts of blocks, which are read and written back, and lengths under the exclusive one.
    turns: RwLock<()>,
}

/// The file below, which takes whole blocks.
pub(super) trait Below {
    fn read_some(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn file_length(&self) -> io::Result<u64>;
    fn set_file_length(&self, length: u64) -> io::Result<()>;
}

thread_local! {
    static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends memory of `length` bytes that begins at a block's border.
fn with_memory<T>(length: usize, work: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    MEMORY.with_borrow_mut(|memory| {
        let wanted = length.saturating_add(BLOCK);
        if memory.len() < wanted {
            memory.resize(wanted, 0);
        }
        let begin = memory.as_ptr().align_offset(BLOCK);
        let end = begin.saturating_add(length);
        work(memory.get_mut(begin..end).ok_or(io::ErrorKind::OutOfMemory)?)
    })
}

impl Blocks {
    /// `fixed`: the length is not ours to set. A device may end within a block of 4096 bytes, so that its own blocks are found by trying.
    pub(super) fn new(file: &impl Below, fixed: bool) -> io::Result<Self> {
        let small = fixed && with_memory(512, |memory| file.read_some(memory, 0)).is_ok();
        Ok(Self {
            block: if small { 512 } else { BLOCK },
            fixed,
            turns: RwLock::new(()),
        })
    }

    /// Fills `buffer`; short only at the end of the file.
    pub(super) fn read(&self, file: &impl Below, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let Some(at) = offset.0.checked_add(filled as u64) else {
                break;
            };
            let (begin, skip) = self.floor(at);
            let span = (skip + rest.len()).next_multiple_of(self.block).min(PIECE);
            if i64::try_from(begin).is_err() {
                break;
            }
            let (count, whole) = with_memory(span, |memory| {
                let there = fill(file, memory, begin, self.block)?;
                let have = memory.get(skip..there).unwrap_or_default();
                let count = have.len().min(rest.len());
                if let (Some(to), Some(from)) = (rest.get_mut(..count), have.get(..count)) {
                    to.copy_from_slice(from);
                }
                Ok((count, there == span))
            })?;
            filled += count;
            if count == 0 || !whole {
                break;
            }
        }
        Ok(filled)
    }

    /// Writes all of `bytes`.
    pub(super) fn write(&self, file: &impl Below, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let at = offset.checked_add(written as u64).ok_or(io::ErrorKind::FileTooLarge)?.0;
            let (begin, skip) = self.floor(at);
            let whole = rest.len().min(PIECE) / self.block * self.block;
            if skip == 0 && whole > 0 {
                let _turn = self.turns.read().unwrap_or_else(PoisonError::into_inner);
                let part = rest.get(..whole).unwrap_or_default();
                with_memory(whole, |memory| {
                    memory.copy_from_slice(part);
                    put(file, memory, at)
                })?;
                written += whole;
                continue;
            }
            let count = rest.len().min(self.block - skip);
            let part = rest.get(..count).unwrap_or_default();
            self.part(file, begin, skip, part)?;
            written += count;
        }
        Ok(())
    }

    /// Writes a part of the block at `begin`. Nobody writes anything meanwhile, so what is read of the rest is what is written back.
    fn part(&self, file: &impl Below, begin: u64, skip: usize, bytes: &[u8]) -> io::Result<()> {
        let _turn = self.turns.write().unwrap_or_else(PoisonError::into_inner);
        let length = file.file_length()?;
        with_memory(self.block, |memory| {
            let there = fill(file, memory, begin, self.block)?;
            memory.get_mut(there..).unwrap_or_default().fill(0);
            let end = skip + bytes.len();
            memory
                .get_mut(skip..end)
                .ok_or(io::ErrorKind::InvalidInput)?
                .copy_from_slice(bytes);
            put(file, memory, begin)?;
            let end = length.max(begin.saturating_add(end as u64));
            // The rest of the last block is not part of the file.
            if !self.fixed && end < begin.saturating_add(self.block as u64) {
                file.set_file_length(end)?;
            }
            Ok(())
        })
    }

    /// Sets the length while nobody writes a part of a block.
    pub(super) fn set_length(&self, file: &impl Below, length: u64) -> io::Result<()> {
        let _turn = self.turns.write().unwrap_or_else(PoisonError::into_inner);
        file.set_file_length(length)
    }

    /// Changes a range by `work`, which writes nothing by itself, while nobody writes a part of a block.
    pub(super) fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.turns.write().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    /// The block's begin, and how far `offset` lies in it.
    fn floor(&self, offset: u64) -> (u64, usize) {
        let skip = offset % self.block as u64;
        (offset - skip, usize::try_from(skip).unwrap_or(0))
    }
}

/// Reads whole blocks until `memory` is full or the file ends.
fn fill(file: &impl Below, memory: &mut [u8], offset: u64, block: usize) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = memory.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_some(rest, offset.saturating_add(filled as u64)) {
            Ok(count) => {
                filled += count;
                // Less than whole blocks come only from the end.
                if count == 0 || !count.is_multiple_of(block) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes whole blocks.
fn put(file: &impl Below, memory: &[u8], offset: u64) -> io::Result<()> {
    let mut written = 0;
    while let Some(rest) = memory.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write_some(rest, offset.saturating_add(written as u64)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
