//! Images as disks.
//!
//! A request is *resolved* to runs, the runs are *fetched* or placed, and what changed is published. This crate is synchronous: whoever
//! calls it brings the thread (the boundary crate brings a pool of its own). Nothing here knows JavaScript.
#![deny(unsafe_code)]

mod buffer;
mod cache;
mod cancel;
mod chain;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod crew;
mod digest;
mod disk;
mod error;
mod layer;
mod lock;
mod luks;
mod measure;
mod notice;
mod overlay;
mod panics;
mod parallel;
mod pipeline;
mod progress;
mod rebase;
mod repair;
mod run;
mod sink;
mod status;
pub mod storage;
mod survey;
mod sync;
mod target;
mod ticket;

pub use buffer::Buffer;
pub use cancel::CancelToken;
pub use chain::{
    Chain, ChainOptions, DEFAULT_CACHE_BYTES, DecodedPiece, EncryptedPiece, FetchContext, NowAnswer, NowPiece,
};
pub use check::{CheckOptions, CheckReport, Finding, FindingCode, Severity, check};
pub use commit::{CommitOptions, CommitReport, commit};
pub use compare::{CompareOptions, Comparison, Difference, compare};
pub use convert::{ConvertOptions, ConvertReport, LostRange, MAX_SPARSE_SIZE, MAX_THREADS, convert};
pub use create::{CREATE_REFUSALS, CreateOptions, CreateReport, NewDataFile, NewEncryption, create};
pub use digest::{
    Digest, DigestManifest, DigestOptions, DigestShape, Expectation, LeafRun, Leaves, MAX_BLOCK, MIN_BLOCK,
    Verification, VerifyOptions, digest, verify,
};
#[cfg(any(test, feature = "testing"))]
pub use disk::weaken::Weaken;
pub use disk::{
    AmendOptions, BitmapInfo, Disk, DiskOptions, NewBitmap, NewSnapshot, ResizeOptions, SnapshotChoice, StoredBitmap,
};
pub use error::{Error, Result};
pub use layer::{Format, Layer, LayerOptions, Limits};
pub use lock::{ImageLock, LockMode, Locking};
pub use luks::{KeySlotChange, LuksOptions, LuksVolume, NewKeySlot, Secret};
pub use measure::{MeasureSource, MeasureTarget, Measurement, measure};
pub use notice::Notice;
pub use panics::guard;
pub use progress::{JobContext, Progress, ProgressReport};
pub use qcow2_codec::crypt;
pub use qcow2_codec::{DigestAlgorithm, Hash};
pub use rebase::{RebaseOptions, RebaseReport, rebase};
pub use repair::{RepairMode, RepairOptions, RepairReport, repair};
pub use run::{Run, RunKind};
pub use sink::Preallocation;
pub use status::{Status, StatusFile};
pub use storage::{FileStorage, MemoryStorage, Storage, WindowStorage};
pub use survey::Survey;
pub use target::{Place, Target};
pub use ticket::{Ticket, Tickets};
