use std::fmt;

/// Why a cipher or key could not be made or used. Never holds anything of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CryptError {
    /// A cipher, mode, generator or hash that is not known here.
    Unsupported {
        /// Which kind of thing.
        what: &'static str,
        /// Its name, as it was given: it may come from a file.
        name: String,
    },
    /// A key that is too long or too short.
    KeyLength {
        /// Bytes it has.
        length: usize,
        /// Bytes it should have.
        wanted: usize,
    },
    /// Bytes that are not whole sectors.
    NotSectors {
        /// How many bytes.
        length: usize,
    },
    /// Whoever asked wants no more of it.
    Stopped,
    /// The system has no random bytes.
    Random,
}

impl fmt::Display for CryptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Through Debug: a name may come from a file, and reach a terminal.
            Self::Unsupported { what, name } => write!(f, "the {what} {name:?} is not supported"),
            Self::KeyLength { length, wanted } => write!(f, "the key has {length} bytes, not {wanted}"),
            Self::NotSectors { length } => write!(f, "{length} bytes are not whole sectors"),
            Self::Stopped => f.write_str("stopped"),
            Self::Random => f.write_str("the system has no random bytes"),
        }
    }
}

impl std::error::Error for CryptError {}
