//! One guard around every entry, job, completion and thread of ours: a defect becomes a typed error, never the end of the caller's process.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::error::Error;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `work`; a panic in it becomes [`Error::Internal`] that says where it was.
///
/// It guards the calling thread: work that is handed to another thread needs a guard there.
///
/// # Errors
/// Those of `work`, and [`Error::Internal`].
pub fn guard<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    install_quiet_hook();
    let outer = GUARDED.replace(true);
    // What a panic leaves half-done is behind engine locks, which recover from poison, or belongs to `work` alone and is dropped.
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.unwrap_or_else(|payload| Err(internal(payload)))
}

fn internal(payload: Box<dyn Any + Send>) -> Error {
    let what = payload
        .downcast_ref::<&'static str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    // Dropping a payload runs foreign code, which may panic again outside of every guard.
    std::mem::forget(payload);
    let message = match PLACE.take() {
        Some(place) => format!("{what} ({place})"),
        None => what,
    };
    Error::Internal { message }
}

/// A caught panic is reported through its promise; printing it as well would only alarm. Others keep the hook that was there.
fn install_quiet_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if GUARDED.get() {
                PLACE.set(info.location().map(ToString::to_string));
            } else {
                previous(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_internal_error_that_names_its_place() {
        let error = guard::<()>(|| panic!("broken {}", 7)).unwrap_err();
        assert_eq!(error.code(), "ERR_QCOW2_INTERNAL");
        let text = error.to_string();
        assert!(text.contains("broken 7") && text.contains("panics.rs:"), "{text}");
    }

    #[test]
    fn errors_and_values_pass_through() {
        assert_eq!(guard(|| Ok(5)).unwrap(), 5);
        assert_eq!(
            guard::<()>(|| Err(Error::Closed)).unwrap_err().code(),
            "ERR_QCOW2_CLOSED"
        );
    }
}
