//! Growing and shrinking.

use super::Disk;
use crate::error::Result;
use crate::sink::Preallocation;

/// How a disk is resized.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResizeOptions {
    /// It may become smaller, which drops what lies beyond.
    pub shrink: bool,
    /// What is set aside for the new part.
    pub preallocation: Preallocation,
}

impl Disk {
    /// Gives the disk another size in bytes, a multiple of 512. Waits for the requests accepted before and holds later ones. What is new reads as
    /// zeros. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid), [`Error::State`](crate::Error::State) with code `SHRINK`, `RESIZE_SNAPSHOTS` (version 2) or
    /// `BITMAP`.
    pub fn resize(&self, size: u64, options: ResizeOptions) -> Result<()> {
        let _ = (size, options);
        Err(later())
    }
}

fn later() -> crate::Error {
    crate::Error::State {
        code: "NOT_YET",
        path: None,
        reason: "not there yet".into(),
    }
}
