//! What a reader should know although it is no error.

/// Something found on opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Stable: `DIRTY`, `REPAIRED`, `CORRUPT`, `UNKNOWN_AUTOCLEAR`, `REFCOUNT_TABLE`, `BITMAPS`, `BITMAPS_STALE`, `MAY_BE_TORN`, `LOCKING`, and with
    /// [`LayerOptions::for_check`](crate::LayerOptions) also `SNAPSHOT_TABLE` and `L1_TRUNCATED`.
    pub code: &'static str,
    /// In words, a sentence without its end.
    pub message: String,
}

impl Notice {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}
