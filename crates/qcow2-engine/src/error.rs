//! What can go wrong, with the place where it did.

use std::io;
use std::path::PathBuf;

use qcow2_codec::CodecError;
use qcow2_format::{EntryFault, FormatError, GuestOffset, HostOffset, Table};

use crate::storage::Storage;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. Every variant has a stable [`Error::code`]; fields are data, the text is made from them.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The image, or one of its tables, is not valid.
    Format {
        /// The file.
        path: Option<PathBuf>,
        /// What is wrong.
        error: FormatError,
    },
    /// An L1 or L2 entry cannot be followed.
    Entry {
        /// The file.
        path: Option<PathBuf>,
        /// L1 or L2.
        table: Table,
        /// Where the entry stands.
        offset: HostOffset,
        /// The guest range's begin that it answers for.
        guest: GuestOffset,
        /// What is wrong.
        fault: EntryFault,
    },
    /// A table or data cluster lies, wholly or in part, past the end of the file.
    Truncated {
        /// The file.
        path: Option<PathBuf>,
        /// What lies there.
        table: Table,
        /// Where it begins.
        offset: HostOffset,
        /// Its length in bytes.
        length: u64,
        /// Length of the file in bytes.
        file_length: u64,
    },
    /// A compressed cluster does not decompress to one cluster.
    Decompress {
        /// The file.
        path: Option<PathBuf>,
        /// Where the compressed bytes begin.
        offset: HostOffset,
        /// The guest cluster.
        guest: GuestOffset,
        /// What the decoder says.
        error: CodecError,
    },
    /// A compressor could not be set up.
    Codec(CodecError),
    /// The system refused something.
    Io {
        /// The system call or step, such as `"open"`, `"read"`, `"rename"`.
        operation: &'static str,
        /// The file.
        path: Option<PathBuf>,
        /// What the system says.
        source: io::Error,
    },
    /// Guest data is encrypted, and its key was not given.
    Encrypted {
        /// The file.
        path: Option<PathBuf>,
        /// Format of the layer.
        format: &'static str,
        /// `"aes"` or `"luks"`.
        method: &'static str,
    },
    /// Another process holds a lock that forbids this use.
    Locked {
        /// The file.
        path: Option<PathBuf>,
        /// QEMU's name of the lock: `write` or `consistent read`…
        permission: &'static str,
        /// Somebody uses it, which this use does not share (`shared "write"` in QEMU's words); otherwise somebody forbids it.
        shared: bool,
        /// `this process`, if it is another use here; the system does not tell of others.
        holder: Option<String>,
    },
    /// A bound of the caller's options, or of this library, is reached.
    Limit {
        /// Which: the name of the option, such as `maxVirtualSize`.
        limit: &'static str,
        /// The bound.
        allowed: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// An argument, or a combination of arguments, that has no meaning.
    Invalid {
        /// Name of the argument.
        argument: &'static str,
        /// What is wrong, as a sentence without its end.
        reason: String,
    },
    /// The image is not in the state that the operation needs.
    State {
        /// The code's ending, such as `"NO_SNAPSHOT"`, `"DATA_FILE_REQUIRED"`, `"SAME_FILE"`.
        code: &'static str,
        /// The file.
        path: Option<PathBuf>,
        /// What is wrong, as a sentence without its end.
        reason: String,
    },
    /// The caller cancelled.
    Cancelled,
    /// The handle is closed.
    Closed,
    /// A defect of this library: a panic that was caught.
    Internal {
        /// What it said.
        message: String,
    },
}

impl Error {
    /// For `map_err`: the system refused `operation` on `storage`.
    pub fn io(operation: &'static str, storage: &dyn Storage) -> impl FnOnce(io::Error) -> Self {
        let path = storage.path().map(std::path::Path::to_owned);
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    /// The stable code, `ERR_QCOW2_…`. Documented in `docs/errors.md`.
    pub fn code(&self) -> String {
        let name = match self {
            Self::Format { error, .. } => return error.code().to_owned(),
            Self::Entry { .. } => "CORRUPT",
            Self::Truncated { .. } => "TRUNCATED",
            Self::Decompress { .. } => "DECOMPRESS",
            Self::Codec(_) => "CODEC",
            Self::Io { .. } => "IO",
            Self::Encrypted { .. } => "ENCRYPTED",
            Self::Locked { .. } => "LOCKED",
            Self::Limit { .. } => "LIMIT",
            Self::Invalid { .. } => "INVALID_ARGUMENT",
            Self::State { code, .. } => code,
            Self::Cancelled => "CANCELLED",
            Self::Closed => "CLOSED",
            Self::Internal { .. } => "INTERNAL",
        };
        format!("ERR_QCOW2_{name}")
    }

    /// The same error once more, for whoever finds again what was found before. A system's error keeps its number.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Format { path, error } => Self::Format {
                path: path.clone(),
                error: error.clone(),
            },
            Self::State { code, path, reason } => Self::State {
                code,
                path: path.clone(),
                reason: reason.clone(),
            },
            Self::Io {
                operation,
                path,
                source,
            } => Self::Io {
                operation,
                path: path.clone(),
                source: source
                    .raw_os_error()
                    .map_or_else(|| source.kind().into(), io::Error::from_raw_os_error),
            },
            other => Self::Internal {
                message: other.to_string(),
            },
        }
    }

    /// Where in the file the fault stands.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Format { error, .. } => error.offset(),
            Self::Entry { offset, .. } | Self::Truncated { offset, .. } | Self::Decompress { offset, .. } => {
                Some(offset.0)
            }
            _ => None,
        }
    }

    /// The structure at fault.
    pub fn table(&self) -> Option<Table> {
        match self {
            Self::Format { error, .. } => Some(error.table()),
            Self::Entry { table, .. } | Self::Truncated { table, .. } => Some(*table),
            Self::Decompress { .. } => Some(Table::Data),
            _ => None,
        }
    }

    /// The file at fault.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Self::Format { path, .. }
            | Self::Entry { path, .. }
            | Self::Truncated { path, .. }
            | Self::Decompress { path, .. }
            | Self::Io { path, .. }
            | Self::Encrypted { path, .. }
            | Self::Locked { path, .. }
            | Self::State { path, .. } => path.as_deref(),
            _ => None,
        }
    }

    /// The system call and its error number, if the system refused something.
    pub fn system(&self) -> Option<(&'static str, &io::Error)> {
        match self {
            Self::Io { operation, source, .. } => Some((operation, source)),
            _ => None,
        }
    }

    /// Further fields by name, for whoever words the error anew (the command line does).
    pub fn details(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Format { error, .. } => error.details(),
            Self::Entry { guest, fault, .. } => vec![("guest", guest.0.to_string()), ("fault", format!("{fault:?}"))],
            Self::Truncated {
                length, file_length, ..
            } => {
                vec![("length", length.to_string()), ("fileLength", file_length.to_string())]
            }
            Self::Decompress { guest, .. } => vec![("guest", guest.0.to_string())],
            Self::Encrypted { format, method, .. } => {
                vec![("format", (*format).to_owned()), ("method", (*method).to_owned())]
            }
            Self::Locked {
                permission,
                shared,
                holder,
                ..
            } => {
                let byte = crate::lock::byte_of(permission, *shared);
                let byte = byte.map(|byte| ("byte", byte.to_string()));
                let mut details = vec![("permission", (*permission).to_owned()), ("shared", shared.to_string())];
                details.extend(byte);
                details.extend(holder.clone().map(|holder| ("holder", holder)));
                details
            }
            Self::Limit { limit, allowed, wanted } => vec![
                ("limit", (*limit).to_owned()),
                ("allowed", allowed.to_string()),
                ("wanted", wanted.to_string()),
            ],
            Self::Invalid { argument, .. } => vec![("argument", (*argument).to_owned())],
            _ => Vec::new(),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(path) = self.path() {
            write!(f, "{}: ", path.display())?;
        }
        match self {
            Self::Format { error, .. } => write!(f, "{error}"),
            Self::Entry {
                table,
                offset,
                guest,
                fault,
                ..
            } => {
                write!(
                    f,
                    "the {table} entry at {offset} for guest offset {guest} cannot be followed: {fault}"
                )
            }
            Self::Truncated {
                table,
                offset,
                length,
                file_length,
                ..
            } => write!(
                f,
                "the image is truncated: {table} at {offset} of {length} bytes passes the end of the file at {file_length:#x}"
            ),
            Self::Decompress {
                offset, guest, error, ..
            } => {
                write!(
                    f,
                    "the compressed cluster at {offset} for guest offset {guest} cannot be decompressed: {error}"
                )
            }
            Self::Codec(error) => write!(f, "{error}"),
            Self::Io { operation, source, .. } => write!(f, "{operation}: {source}"),
            Self::Encrypted { method, .. } => {
                write!(f, "the image is encrypted ({method}): its secret is needed")
            }
            Self::Locked {
                permission,
                shared,
                holder,
                ..
            } => {
                let shared = if *shared { "shared " } else { "" };
                write!(f, "failed to get {shared}\"{permission}\" lock: ")?;
                match holder {
                    Some(holder) => write!(f, "{holder} uses the image"),
                    None => write!(f, "is another process using the image?"),
                }
            }
            Self::Limit { limit, allowed, wanted } => {
                write!(f, "{limit} is {allowed}, but {wanted} would be needed")
            }
            Self::Invalid { argument, reason } => write!(f, "{argument}: {reason}"),
            Self::State { reason, .. } => write!(f, "{reason}"),
            Self::Cancelled => write!(f, "the operation was cancelled"),
            Self::Closed => write!(f, "the image is closed"),
            Self::Internal { message } => write!(f, "internal error, please report it: {message}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Format { error, .. } => Some(error),
            Self::Decompress { error, .. } | Self::Codec(error) => Some(error),
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
