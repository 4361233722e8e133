//! Comparing two disks.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{CompareOptions, Comparison, Difference, compare as judge};

use crate::call::accept;
use crate::handles::Handle;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;

/// How to compare.
#[napi(object, object_to_js = false)]
pub struct CompareSpec {
    /// Sizes and allocation must be equal too.
    pub strict: bool,
}

/// The answer of a comparison.
#[napi(object, object_from_js = false)]
pub struct CompareFacts {
    /// There is no difference that matters.
    pub identical: bool,
    /// Guest offset of the first difference in bytes.
    pub offset: Option<BigInt>,
    /// What differs.
    #[napi(ts_type = "'content' | 'size' | 'allocation'")]
    pub reason: Option<String>,
    /// The virtual sizes differ.
    pub sizes_differ: bool,
}

/// Compares two disks, whose handles stay open. Reports progress; completes with the answer.
#[napi(catch_unwind)]
pub fn compare(env: Env, id: CallId, a: Handle, b: Handle, options: CompareSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let (a, b) = (call.chain(a)?, call.chain(b)?);
        let options = CompareOptions { strict: options.strict };
        call.run(Lane::Long, move |job| {
            let answer = judge(&a, &b, options, job)?;
            let common = a.virtual_size().min(b.virtual_size());
            // What the job held is let go before its end is told.
            drop((a, b));
            Outcome::value(move |_, _, values| values.add(facts(answer, common)))
        })
    })
}

/// `common`: bytes that both disks have. A difference behind them is one of size: there the longer one is not zeros.
fn facts(answer: Comparison, common: u64) -> CompareFacts {
    let (reason, offset) = match answer.difference {
        None => (None, None),
        Some(Difference::Content(offset)) if offset.0 >= common => (Some("size"), Some(offset)),
        Some(Difference::Content(offset)) => (Some("content"), Some(offset)),
        Some(Difference::Size) => (Some("size"), None),
        Some(Difference::Allocation(offset)) => (Some("allocation"), Some(offset)),
    };
    CompareFacts {
        identical: reason.is_none(),
        offset: offset.map(|offset| offset.0.into()),
        reason: reason.map(str::to_owned),
        sizes_differ: answer.sizes_differ,
    }
}
