//! A raw file as the top: the disk is the file.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use qcow2_format::HostOffset;

use super::state::to_len;
use crate::error::{Error, Result};
use crate::sink::Preallocation;
use crate::storage::Storage;

/// Zeros that are written at a time.
const ZEROS: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct RawDisk {
    pub(super) storage: Arc<dyn Storage>,
    wrote: AtomicBool,
    syncing: Mutex<()>,
}

impl RawDisk {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            wrote: AtomicBool::new(false),
            syncing: Mutex::default(),
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let outcome = self.storage.write_at(HostOffset(offset), bytes);
        self.wrote.store(true, Ordering::SeqCst);
        outcome.map_err(Error::io("write", &*self.storage))
    }

    /// `unmap`: as a hole, if that can be had.
    pub(super) fn zero(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        self.wrote.store(true, Ordering::SeqCst);
        if unmap
            && self
                .storage
                .punch(HostOffset(offset), length)
                .map_err(Error::io("punch", &*self.storage))?
        {
            return Ok(());
        }
        let zeros = vec![0; to_len(ZEROS.min(length))];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let bytes = zeros.get(..to_len((end - at).min(ZEROS))).unwrap_or_default();
            self.write(at, bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    pub(super) fn resize(&self, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
        self.wrote.store(true, Ordering::SeqCst);
        self.storage
            .set_length(size)
            .map_err(Error::io("truncate", &*self.storage))?;
        let length = size.saturating_sub(old);
        let reserved = match preallocation {
            Preallocation::Off | Preallocation::Metadata => Ok(true),
            Preallocation::Falloc => self.storage.allocate(HostOffset(old), length),
            Preallocation::Full => Ok(false),
        };
        let reserved = reserved.map_err(Error::io("allocate", &*self.storage));
        let filled = reserved.and_then(|reserved| {
            if reserved {
                Ok(())
            } else {
                self.zero(old, length, false)
            }
        });
        if let Err(error) = filled {
            let _ = self.storage.set_length(old);
            return Err(error);
        }
        self.flush()
    }

    /// The error of a failed sync is the disk's last: see the caller.
    pub(super) fn flush(&self) -> Result<()> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.wrote.swap(false, Ordering::SeqCst) {
            self.storage.sync().map_err(Error::io("fsync", &*self.storage))?;
        }
        Ok(())
    }
}
