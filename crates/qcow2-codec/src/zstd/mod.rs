//! zstd (RFC 8878), by the C library.

mod decode;
mod encode;
mod frame;

pub(crate) use decode::Decoder;
pub(crate) use encode::{Encoder, LEVELS};
