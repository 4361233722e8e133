//! Raw deflate (RFC 1951). Any window is read, 4 KiB is what is written.
#![forbid(unsafe_code)]

mod bits;
mod block;
mod decode;
mod encode;
mod header;
mod huffman;
mod parse;
mod split;
mod symbols;
mod window;

pub(crate) use decode::Inflate;
pub(crate) use encode::{Deflate, LEVELS};
