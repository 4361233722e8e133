//! What of a source cannot be read, where everything else is wanted all the same.

use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// Places that are remembered; more are counted.
const MOST: usize = 10_000;

/// A range of the source that was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// Where it begins in the source, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Where its bytes are is not known; otherwise they could not be read.
    pub mapping: bool,
    /// The system's error number; 0 if it was not the system.
    pub errno: i32,
    /// Why.
    pub reason: String,
}

/// What was lost so far, by all workers.
#[derive(Debug, Default)]
pub(super) struct Losses(Mutex<(Vec<LostRange>, u64)>);

impl Losses {
    pub(super) fn note(&self, offset: u64, length: u64, mapping: bool, error: &Error) {
        let mut losses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if losses.0.len() >= MOST {
            losses.1 += 1;
            return;
        }
        let errno = match error {
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(0),
            _ => 0,
        };
        losses.0.push(LostRange {
            offset,
            length,
            mapping,
            errno,
            reason: error.to_string(),
        });
    }

    /// What was lost, by rising offset, and how many ranges are not listed.
    pub(super) fn take(&self) -> (Vec<LostRange>, u64) {
        let mut losses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut ranges, more) = std::mem::take(&mut *losses);
        ranges.sort_by_key(|range| (range.offset, !range.mapping));
        (ranges, more)
    }
}
