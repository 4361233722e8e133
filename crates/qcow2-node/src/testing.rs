//! For the tests of this boundary: panics at each of its stages. Refused unless the environment variable `QCOW2_TEST_PANICS` is set.

use std::sync::atomic::{AtomicU8, Ordering};

use napi::{Env, Result};
use qcow2_engine::Error;

use crate::call::accept;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;

/// Where a call of whatever entry can be made to panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Before the call has a guard of its own.
    Entry = 1,
    /// While it is accepted.
    Call,
    /// On a thread, before its work; it counts as done in the middle of it.
    Work,
    /// In the middle of its work.
    Progress,
    /// When its result is handed over.
    Completion,
}

/// The stage that panics when it is next come to; 0 for none.
static ARMED: AtomicU8 = AtomicU8::new(0);

/// Panics if this stage is to.
pub(crate) fn trap(stage: Stage) {
    trap_unless(stage, false);
}

/// The same, if `passes` does not hold.
#[allow(clippy::panic, reason = "that is its work")]
pub(crate) fn trap_unless(stage: Stage, passes: bool) {
    // Outside of tests this is all.
    if ARMED.load(Ordering::Relaxed) != stage as u8 || passes {
        return;
    }
    if ARMED
        .compare_exchange(stage as u8, 0, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
    {
        panic!("injected at {stage:?}");
    }
}

/// Makes the next call that comes to a stage panic there: `entry`, `call`, `work`, `progress` or `completion`; with anything else, none.
/// Returns whether one that was armed before is still to come.
#[napi(catch_unwind)]
pub fn arm_panic(stage: String) -> Result<bool> {
    if std::env::var_os("QCOW2_TEST_PANICS").is_none() {
        return Err(napi::Error::from_reason("only for tests: QCOW2_TEST_PANICS is not set"));
    }
    let stage = match stage.as_str() {
        "entry" => Stage::Entry as u8,
        "call" => Stage::Call as u8,
        "work" => Stage::Work as u8,
        "progress" => Stage::Progress as u8,
        "completion" => Stage::Completion as u8,
        _ => 0,
    };
    Ok(ARMED.swap(stage, Ordering::SeqCst) != 0)
}

/// Panics at a stage: `call`, `pool`, `job` or `completion`; `argument` does so outside of the call's own guard.
#[napi(catch_unwind)]
#[allow(clippy::panic, reason = "that is its work")]
pub fn inject_panic(env: Env, id: CallId, stage: String) -> Result<()> {
    let allowed = std::env::var_os("QCOW2_TEST_PANICS").is_some();
    if allowed && stage == "argument" {
        panic!("injected at argument");
    }
    accept(&env, id, |call| {
        if !allowed {
            return Err(Error::Invalid {
                argument: "stage",
                reason: "only for tests: QCOW2_TEST_PANICS is not set".to_owned(),
            });
        }
        match stage.as_str() {
            "call" => panic!("injected at call"),
            "pool" => call.run(Lane::Short, |_| panic!("injected at pool")),
            "job" => call.run(Lane::Long, |_| panic!("injected at job")),
            _ => call.run(Lane::Short, |_| {
                Outcome::value(|_, _, _| panic!("injected at completion"))
            }),
        }
    })
}
