//! Giving an overlay another backing file.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{RebaseOptions, RebaseReport, rebase as move_over};

use crate::call::accept;
use crate::handles::Handle;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;

/// How to rebase.
#[napi(object, object_to_js = false)]
pub struct RebaseSpec {
    /// Name of the new backing file as it is recorded; none: there is none.
    pub backing: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Only the name is changed.
    pub unchecked: bool,
    /// What is copied is compressed.
    pub compress: bool,
}

/// What a rebase did, in guest bytes.
#[napi(object, object_from_js = false)]
pub struct RebaseFacts {
    /// Bytes of the old backing file that were written to the top.
    pub data_bytes: BigInt,
    /// Bytes that the top was made to say zero for.
    pub zero_bytes: BigInt,
    /// Clusters that were compressed.
    pub compressed_clusters: BigInt,
}

/// Makes the top of `disk`, which is opened over its new backing file, read as over `old`, the chain below it so far, and name the new one. The handles
/// stay open. Reports progress; completes with what was done.
#[napi(catch_unwind)]
pub fn rebase(env: Env, id: CallId, disk: Handle, old: Option<Handle>, options: RebaseSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let disk = call.disk(disk)?.disk;
        let old = old.map(|old| call.chain(old)).transpose()?;
        let RebaseSpec {
            backing,
            backing_format,
            unchecked,
            compress,
        } = options;
        let options = RebaseOptions {
            backing: backing.map(|name| (name, backing_format)),
            unchecked,
            compress,
        };
        call.run(Lane::Long, move |job| {
            let outcome = move_over(&disk, old.as_deref(), &options, job);
            // What the job held is let go before its end is told.
            drop((disk, old));
            let report = outcome?;
            Outcome::value(move |_, _, values| values.add(RebaseFacts::from(report)))
        })
    })
}

impl From<RebaseReport> for RebaseFacts {
    fn from(report: RebaseReport) -> Self {
        Self {
            data_bytes: report.data_bytes.into(),
            zero_bytes: report.zero_bytes.into(),
            compressed_clusters: report.compressed_clusters.into(),
        }
    }
}
