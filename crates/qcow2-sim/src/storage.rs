//! A file that writes down what is asked of it, and fails when told to.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use qcow2_engine::Storage;
use qcow2_format::HostOffset;

use crate::faults::{Answer, Call, Faults};
use crate::log::{Change, Event, Log, SECTOR};

/// Called between the begin of a call and its end, when others may go on; whether it is a read.
pub type Pause = Arc<dyn Fn(bool) + Send + Sync>;

/// One file of an image.
pub struct SimStorage {
    file: u8,
    bytes: RwLock<Vec<u8>>,
    log: Arc<Log>,
    faults: Arc<Faults>,
    pause: Option<Pause>,
}

impl std::fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimStorage").field("file", &self.file).finish()
    }
}

impl SimStorage {
    /// A file that begins with `bytes`, durably.
    pub fn new(file: u8, bytes: Vec<u8>, log: Arc<Log>, faults: Arc<Faults>, pause: Option<Pause>) -> Self {
        Self {
            file,
            bytes: RwLock::new(bytes),
            log,
            faults,
            pause,
        }
    }

    /// What it holds now.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn rest(&self, read: bool) {
        if let Some(pause) = &self.pause {
            pause(read);
        }
    }

    fn change(&self, change: Change, apply: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.write();
        apply(&mut bytes);
        let id = self.log.begin(self.file, change);
        drop(bytes);
        self.rest(false);
        self.log.mark(Event::End(id));
    }

    fn put(&self, at: usize, new: &[u8]) {
        let mut bytes = self.write();
        let end = at + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(new);
        // A page of the cache goes to the disk as a whole, with what others have written to its sectors before.
        let first = at / SECTOR;
        let mut sectors = bytes[first * SECTOR..(end.next_multiple_of(SECTOR)).min(bytes.len())].to_vec();
        sectors.resize(sectors.len().next_multiple_of(SECTOR), 0);
        let id = self.log.begin(
            self.file,
            Change::Write {
                first: first as u64,
                bytes: sectors.into(),
                end: end as u64,
            },
        );
        drop(bytes);
        self.rest(false);
        self.log.mark(Event::End(id));
    }
}

fn failed() -> io::Error {
    // EIO
    io::Error::from_raw_os_error(5)
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

fn place(offset: HostOffset) -> io::Result<usize> {
    // Nothing here is that large: such an offset is a mistake, which must not take all memory.
    usize::try_from(offset.0)
        .ok()
        .filter(|at| *at < 1 << 28)
        .ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

impl Storage for SimStorage {
    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        if self.faults.ask(Call::Read) != Answer::Pass {
            return Err(failed());
        }
        self.rest(true);
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let rest = bytes.get(offset.0 as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
        let at = place(offset)?;
        match self.faults.ask(Call::Write) {
            Answer::Fail => return Err(failed()),
            Answer::Part => {
                // Whole sectors of the file: what is inside of one is written or not.
                let part = ((at + bytes.len() / 2) / SECTOR * SECTOR).saturating_sub(at);
                self.put(at, &bytes[..part]);
                return Err(failed());
            }
            Answer::FailToGrow => {
                let there = self.length()?;
                if (at + bytes.len()) as u64 > there {
                    self.faults.note();
                    return Err(full());
                }
            }
            Answer::Pass => {}
        }
        self.put(at, bytes);
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let new = place(HostOffset(length))?;
        match self.faults.ask(Call::Write) {
            Answer::Fail | Answer::Part => return Err(failed()),
            Answer::FailToGrow if length > self.length()? => {
                self.faults.note();
                return Err(full());
            }
            _ => {}
        }
        self.change(Change::SetLength(length), |bytes| bytes.resize(new, 0));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let answer = self.faults.ask(Call::Sync);
        let id = self.log.sync_begin(self.file);
        self.rest(false);
        let passed = !matches!(answer, Answer::Fail | Answer::Part);
        self.log.mark(Event::SyncEnd(id, passed));
        if passed { Ok(()) } else { Err(failed()) }
    }

    fn punch(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        match self.faults.ask(Call::Write) {
            Answer::Fail | Answer::Part => return Err(failed()),
            _ => {}
        }
        let change = Change::Punch {
            offset: offset.0,
            length,
        };
        self.change(change, |bytes| {
            let begin = (offset.0 as usize).min(bytes.len());
            let end = (offset.0.saturating_add(length) as usize).min(bytes.len());
            bytes[begin..end].fill(0);
        });
        Ok(true)
    }

    fn allocate(&self, offset: HostOffset, length: u64) -> io::Result<bool> {
        let end = offset.0.saturating_add(length);
        let new = place(HostOffset(end))?;
        match self.faults.ask(Call::Write) {
            Answer::Fail | Answer::Part => return Err(failed()),
            Answer::FailToGrow if end > self.length()? => {
                self.faults.note();
                return Err(full());
            }
            _ => {}
        }
        self.change(Change::Grow(end), |bytes| bytes.resize(bytes.len().max(new), 0));
        Ok(true)
    }
}
