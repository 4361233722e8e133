//! Doubles for tests: one writes down what is asked of it, one fails when told to.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use qcow2_format::HostOffset;

use super::{Extent, Identity, Storage};

/// One call that reached a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the arguments")]
pub enum Operation {
    /// A read.
    Read { offset: HostOffset, length: usize },
    /// A write, with its bytes.
    Write { offset: HostOffset, bytes: Vec<u8> },
    /// A new length.
    SetLength { length: u64 },
    /// A sync.
    Sync,
    /// A hole.
    Punch { offset: HostOffset, length: u64 },
    /// A reservation.
    Allocate { offset: HostOffset, length: u64 },
}

/// Passes everything on and keeps the order of calls.
#[derive(Debug)]
pub struct RecordingStorage {
    inner: Arc<dyn Storage>,
    log: Mutex<Vec<Operation>>,
}

impl RecordingStorage {
    /// A recorder in front of `inner`.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            log: Mutex::default(),
        }
    }

    /// What was asked since the last time, in order.
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, operation: Operation) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }
}

/// Passes everything on until a given number of calls have been made; that call fails, the ones after it succeed again unless told
/// otherwise.
#[derive(Debug)]
pub struct FailingStorage {
    inner: Arc<dyn Storage>,
    calls: AtomicU64,
    fail_at: u64,
    forever: bool,
    /// `None`: it panics.
    kind: Option<io::ErrorKind>,
}

impl FailingStorage {
    /// Fails call number `fail_at` (the first is 0) with `kind`, and with `forever` every later one too.
    pub fn new(inner: Arc<dyn Storage>, fail_at: u64, forever: bool, kind: io::ErrorKind) -> Self {
        Self {
            inner,
            calls: AtomicU64::new(0),
            fail_at,
            forever,
            kind: Some(kind),
        }
    }

    /// Panics at call number `panic_at`, as a defect of ours would.
    pub fn panicking(inner: Arc<dyn Storage>, panic_at: u64) -> Self {
        Self {
            inner,
            calls: AtomicU64::new(0),
            fail_at: panic_at,
            forever: false,
            kind: None,
        }
    }

    /// How many calls there were: at most `fail_at` means that nothing has failed yet.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    #[allow(clippy::panic, reason = "that is its work")]
    fn refusal(&self) -> io::ErrorKind {
        self.kind.unwrap_or_else(|| panic!("injected at a call of the storage"))
    }

    fn step(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call == self.fail_at || (self.forever && call > self.fail_at) {
            return Err(self.refusal().into());
        }
        Ok(())
    }
}

macro_rules! double {
    ($type:ty, $self:ident, before: |$operation:ident| $before:expr) => {
        impl Storage for $type {
            fn length(&$self) -> io::Result<u64> {
                $self.inner.length()
            }

            fn read_at(&$self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
                let $operation = || Operation::Read { offset, length: buffer.len() };
                $before;
                $self.inner.read_at(offset, buffer)
            }

            fn write_at(&$self, offset: HostOffset, bytes: &[u8]) -> io::Result<()> {
                let $operation = || Operation::Write { offset, bytes: bytes.to_vec() };
                $before;
                $self.inner.write_at(offset, bytes)
            }

            fn set_length(&$self, length: u64) -> io::Result<()> {
                let $operation = || Operation::SetLength { length };
                $before;
                $self.inner.set_length(length)
            }

            fn sync(&$self) -> io::Result<()> {
                let $operation = || Operation::Sync;
                $before;
                $self.inner.sync()
            }

            fn extent(&$self, offset: HostOffset) -> io::Result<Extent> {
                $self.inner.extent(offset)
            }

            fn hole_end(&$self, offset: HostOffset) -> io::Result<Option<HostOffset>> {
                $self.inner.hole_end(offset)
            }

            fn punch(&$self, offset: HostOffset, length: u64) -> io::Result<bool> {
                let $operation = || Operation::Punch { offset, length };
                $before;
                $self.inner.punch(offset, length)
            }

            fn allocate(&$self, offset: HostOffset, length: u64) -> io::Result<bool> {
                let $operation = || Operation::Allocate { offset, length };
                $before;
                $self.inner.allocate(offset, length)
            }

            fn expect(&$self, offset: HostOffset, length: u64) {
                $self.inner.expect(offset, length);
            }

            fn allocated_bytes(&$self) -> io::Result<Option<u64>> {
                $self.inner.allocated_bytes()
            }

            fn identity(&$self) -> Option<Identity> {
                $self.inner.identity()
            }

            fn base(&$self) -> HostOffset {
                $self.inner.base()
            }

            fn file(&$self) -> Option<&File> {
                $self.inner.file()
            }

            fn path(&$self) -> Option<&Path> {
                $self.inner.path()
            }
        }
    };
}

double!(RecordingStorage, self, before: |operation| self.note(operation()));
double!(FailingStorage, self, before: |operation| {
    let _ = operation;
    self.step()?
});
