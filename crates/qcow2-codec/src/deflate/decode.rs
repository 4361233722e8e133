//! Inflating. Two libraries, one verdict: libdeflate is fast and strict, zlib-rs is QEMU's zlib in memory-safe Rust.
//!
//! QEMU calls zlib once and accepts whatever fills the cluster: a stream that ends there, goes on, or breaks off.
//! libdeflate accepts only the first kind, so what it refuses is decoded again by zlib-rs, whose word is final. Nobody
//! but a forger writes the other kinds, so the second try costs nothing in practice.
//!
//! One thing libdeflate takes that zlib refuses: the length symbols 286 and 287 in a fixed block, which RFC 1951 says do
//! not occur. It reads them as length 258. No writer makes them, and damage that turns a symbol into another is not
//! noticed by any inflate, so this is no reason to give up its speed.

use zlib_rs::{InflateError, InflateFlush, Status};

use crate::{CodecError, Compression};

/// The largest window deflate has: streams of every writer are read, whatever window it kept.
const WINDOW_BITS: u8 = 15;

#[derive(Default)]
pub(crate) struct Inflate {
    fast: Option<libdeflater::Decompressor>,
    safe: Option<zlib_rs::Inflate>,
    safe_only: bool,
}

impl Inflate {
    pub(crate) fn memory_safe() -> Self {
        Self {
            safe_only: true,
            ..Self::default()
        }
    }

    pub(crate) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
        if !self.safe_only {
            let fast = self.fast.get_or_insert_with(libdeflater::Decompressor::new);
            if let Ok(produced) = fast.deflate_decompress(input, output) {
                return filled(produced, output.len());
            }
        }
        self.decode_safe(input, output)
    }

    fn decode_safe(&mut self, input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
        let inflate = self
            .safe
            .get_or_insert_with(|| zlib_rs::Inflate::new(false, WINDOW_BITS));
        inflate.reset(false);
        match inflate.decompress(input, output, InflateFlush::Finish) {
            Ok(Status::StreamEnd | Status::BufError | Status::Ok) => {
                let produced = usize::try_from(inflate.total_out()).unwrap_or(usize::MAX);
                filled(produced, output.len())
            }
            Err(InflateError::MemError) => Err(CodecError::OutOfMemory {
                compression: Compression::Deflate,
            }),
            Err(_) => Err(CodecError::Corrupt {
                compression: Compression::Deflate,
                reason: reason(inflate),
            }),
        }
    }
}

/// Which rule the stream broke. The library forgets it when it broke in the middle of a match, and then says something
/// about its own state.
fn reason(inflate: &zlib_rs::Inflate) -> &'static str {
    match inflate.error_message() {
        None | Some("repeated call with bad state") => "invalid code or distance",
        Some(message) => message,
    }
}

fn filled(produced: usize, wanted: usize) -> Result<(), CodecError> {
    if produced == wanted {
        Ok(())
    } else {
        Err(CodecError::Short {
            compression: Compression::Deflate,
            produced,
            wanted,
        })
    }
}
