//! What was asked of the files of an image, in order, with the marks of whoever drives the disk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk writes as a whole.
pub const SECTOR: usize = 512;

/// Which file: the image, or its data file.
pub const IMAGE: u8 = 0;
/// See [`IMAGE`].
pub const DATA: u8 = 1;

/// A change of a file.
#[derive(Clone, Debug)]
pub enum Change {
    /// Whole sectors from `first` on, with what surrounds the bytes that were written; the file is then at least `end` bytes long.
    Write {
        /// Number of the first sector.
        first: u64,
        /// What they hold.
        bytes: Arc<[u8]>,
        /// Where the bytes that were asked for end in the file.
        end: u64,
    },
    /// A range reads as zeros.
    Punch {
        /// Where it begins.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// The file has this length.
    SetLength(u64),
    /// The file has at least this length: space is set aside, and nothing is ever cut off by that, however late it comes.
    Grow(u64),
}

/// One entry of a log.
#[derive(Clone, Debug)]
pub enum Event {
    /// A change begins.
    Begin {
        /// Its number.
        id: u32,
        /// Of which file.
        file: u8,
        /// What it is.
        change: Change,
    },
    /// The call that asked for a change has returned.
    End(u32),
    /// A sync of a file begins.
    SyncBegin {
        /// Its number.
        id: u32,
        /// Of which file.
        file: u8,
    },
    /// A sync has returned. `false`: with an error, and what it should have covered is lost for later ones, too.
    SyncEnd(u32, bool),
    /// An operation of the workload is called.
    OpBegin(u32),
    /// It has returned.
    OpEnd(u32, Outcome),
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With success.
    Done,
    /// It was refused and has changed nothing.
    Refused,
    /// With an error; it may have happened or not.
    Failed,
}

/// A log, shared by the files of an image.
#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    ids: u32,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a change begins; returns its number.
    pub fn begin(&self, file: u8, change: Change) -> u32 {
        let mut state = self.lock();
        let id = state.ids;
        state.ids += 1;
        state.events.push(Event::Begin { id, file, change });
        id
    }

    /// Notes that a sync begins; returns its number.
    pub fn sync_begin(&self, file: u8) -> u32 {
        let mut state = self.lock();
        let id = state.ids;
        state.ids += 1;
        state.events.push(Event::SyncBegin { id, file });
        id
    }

    /// Notes anything else.
    pub fn mark(&self, event: Event) {
        self.lock().events.push(event);
    }

    /// Everything so far.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }
}
