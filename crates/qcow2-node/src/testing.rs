//! For the tests of this boundary: panics at each of its stages. Refused unless the environment variable `QCOW2_TEST_PANICS` is set.

use napi::{Env, Result};
use qcow2_engine::Error;

use crate::call::accept;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;

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
