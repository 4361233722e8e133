//! Writing what layers hold into the disk below them.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{CommitOptions, CommitReport, commit as write_down};

use crate::call::accept;
use crate::handles::Handle;
use crate::numbers::whole;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;

/// How to commit.
#[napi(object, object_to_js = false)]
pub struct CommitSpec {
    /// The top is emptied at the end.
    pub empty: bool,
    /// Most bytes that are copied in a second.
    pub rate_limit: Option<f64>,
}

/// What a commit did. Sizes in bytes.
#[napi(object, object_from_js = false)]
pub struct CommitFacts {
    /// Virtual size of the base now.
    pub virtual_size: BigInt,
    /// Guest bytes that were written to the base.
    pub data_bytes: BigInt,
    /// Guest bytes that the base was made to read as zeros.
    pub zero_bytes: BigInt,
    /// The base had to become larger.
    pub grown: bool,
    /// The top was emptied.
    pub emptied: bool,
}

/// Writes what the layers of `top` hold into `base`, the disk below them. The handles stay open; the disk of `base` is closed. Reports progress;
/// completes with what was done.
#[napi(catch_unwind)]
pub fn commit(env: Env, id: CallId, top: Handle, base: Handle, options: CommitSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let (top, base) = (call.disk(top)?.disk, call.disk(base)?.disk);
        let options = CommitOptions {
            rate_limit: options.rate_limit.map(|rate| whole("rateLimit", rate)).transpose()?,
            empty: options.empty,
        };
        call.run(Lane::Long, move |job| {
            let outcome = write_down(&top, &base, &options, job);
            // What the job held is let go before its end is told.
            drop((top, base));
            let report = outcome?;
            Outcome::value(move |_, _, values| values.add(CommitFacts::from(report)))
        })
    })
}

impl From<CommitReport> for CommitFacts {
    fn from(report: CommitReport) -> Self {
        Self {
            virtual_size: report.virtual_size.into(),
            data_bytes: report.data_bytes.into(),
            zero_bytes: report.zero_bytes.into(),
            grown: report.grown,
            emptied: report.emptied,
        }
    }
}
