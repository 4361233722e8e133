//! Images as disks.
//!
//! A request is *resolved* to runs, the runs are *fetched* or placed, and what changed is published. This crate is synchronous: whoever
//! calls it brings the thread (the boundary crate brings a pool of its own). Nothing here knows JavaScript.
#![deny(unsafe_code)]

mod cancel;
mod error;
mod progress;
mod run;
pub mod storage;

pub use cancel::CancelToken;
pub use error::{Error, Result};
pub use progress::{JobContext, Progress, ProgressReport};
pub use run::{Run, RunKind};
