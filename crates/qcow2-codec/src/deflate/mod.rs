//! Raw deflate (RFC 1951). Any window is read, 4 KiB is what is written.

mod decode;
mod encode;

pub(crate) use decode::Inflate;
pub(crate) use encode::{Deflate, LEVELS};
