//! Errors cross as data; JavaScript makes `Qcow2Error`s of them.

use std::collections::HashMap;

use napi::bindgen_prelude::BigInt;
use qcow2_engine::Error;

/// An error, field by field.
#[napi(object, object_from_js = false)]
pub struct ErrorData {
    /// The stable code, `ERR_QCOW2_…`.
    pub code: String,
    /// What happened, for people.
    pub message: String,
    /// Where in the file the fault stands, in bytes.
    pub offset: Option<BigInt>,
    /// The structure at fault.
    pub table: Option<String>,
    /// The file at fault.
    pub path: Option<String>,
    /// The system's error number, positive.
    pub errno: Option<i32>,
    /// The system call or step that failed.
    pub syscall: Option<String>,
    /// Further facts, by name.
    pub details: HashMap<String, String>,
}

impl From<&Error> for ErrorData {
    fn from(error: &Error) -> Self {
        let (errno, syscall) = match error {
            Error::Io { operation, source, .. } => (source.raw_os_error(), Some((*operation).to_owned())),
            _ => (None, None),
        };
        Self {
            code: error.code(),
            message: error.to_string(),
            offset: error.offset().map(BigInt::from),
            table: error.table().map(|table| table.to_string()),
            path: error.path().map(|path| path.to_string_lossy().into_owned()),
            errno,
            syscall,
            details: error
                .details()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }
}

/// For the few calls that answer at once: the code is JavaScript's `code`.
pub(crate) fn thrown(error: &Error) -> napi::Error<String> {
    napi::Error::new(error.code(), error.to_string())
}
