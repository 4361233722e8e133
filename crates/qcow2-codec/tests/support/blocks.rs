//! Deflate streams put together by hand, from RFC 1951.

/// A stored block. Blocks of this kind begin and end on byte borders, so they can be put one after another.
pub fn stored(bytes: &[u8], last: bool) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    let mut out = vec![u8::from(last)];
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    out.extend_from_slice(bytes);
    out
}

/// Stored blocks for all of `bytes`; the last one says so if `ended`.
pub fn stream(bytes: &[u8], ended: bool) -> Vec<u8> {
    let chunks: Vec<&[u8]> = bytes.chunks(65_535).collect();
    let last = chunks.len() - 1;
    chunks
        .iter()
        .enumerate()
        .flat_map(|(index, chunk)| stored(chunk, ended && index == last))
        .collect()
}
