//! Power cuts in memory (`docs/crash-safety.md`).
//!
//! A random workload ([`plan`]) runs against a disk whose files write down what is asked of them ([`storage`], [`log`]). The log is then cut at every
//! place ([`cut`]): what was synced is there, of the rest any part, as disks do it. Each state is opened, checked, read, written on and compared
//! ([`judge`]) with what the promises of the operations that had returned allow ([`model`]).
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a tool for tests, on images of some megabytes: a panic is a finding"
)]

pub mod again;
pub mod calibrate;
pub mod campaign;
pub mod contents;
pub mod cut;
pub mod driver;
pub mod faults;
pub mod judge;
pub mod log;
pub mod made;
pub mod model;
pub mod open;
pub mod operation;
pub mod plan;
pub mod qemu;
pub mod random;
pub mod scratch;
pub mod shape;
pub mod shrink;
pub mod storage;
pub mod sweep;
