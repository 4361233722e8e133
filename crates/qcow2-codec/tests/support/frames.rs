//! zstd frames put together by hand, from RFC 8878: what no encoder writes.

/// Frame descriptor bits.
pub const SINGLE_SEGMENT: u8 = 0x20;
pub const CHECKSUM: u8 = 0x04;

/// A frame of raw blocks with an 8-byte content size and no window of its own.
pub fn single(claimed: u64, blocks: &[Vec<u8>]) -> Vec<u8> {
    frame(SINGLE_SEGMENT | 0xC0, &claimed.to_le_bytes(), blocks)
}

/// A frame that does not say its size, with a window of 2^`log` bytes.
pub fn windowed(log: u8, blocks: &[Vec<u8>]) -> Vec<u8> {
    frame(0, &[(log - 10) << 3], blocks)
}

pub fn frame(descriptor: u8, fields: &[u8], blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![0x28, 0xB5, 0x2F, 0xFD, descriptor];
    out.extend_from_slice(fields);
    out.extend(blocks.concat());
    out
}

pub fn skippable(len: usize) -> Vec<u8> {
    let mut out = vec![0x53, 0x2A, 0x4D, 0x18];
    out.extend_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
    out.extend(std::iter::repeat_n(0x77, len));
    out
}

/// A block whose bytes are stored as they are.
pub fn raw(bytes: &[u8], last: bool) -> Vec<u8> {
    let mut out = header(bytes.len(), 0, last);
    out.extend_from_slice(bytes);
    out
}

/// A block of one byte, repeated.
pub fn run(byte: u8, times: usize, last: bool) -> Vec<u8> {
    let mut out = header(times, 1, last);
    out.push(byte);
    out
}

/// Block type 3, which does not exist.
pub fn reserved(last: bool) -> Vec<u8> {
    header(0, 3, last)
}

fn header(size: usize, kind: usize, last: bool) -> Vec<u8> {
    let value = u32::try_from(size << 3 | kind << 1 | usize::from(last)).unwrap();
    value.to_le_bytes()[..3].to_vec()
}
