//! A reader of LZ4 blocks written from the description of the format alone.

/// Panics on bytes that are no block.
pub fn decode(block: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut rest = block.iter().copied();
    while let Some(token) = rest.next() {
        for _ in 0..length(token >> 4, &mut rest) {
            out.push(rest.next().unwrap());
        }
        // The last sequence is literals alone.
        let Some(low) = rest.next() else { return out };
        let distance = usize::from(u16::from_le_bytes([low, rest.next().unwrap()]));
        for _ in 0..length(token & 15, &mut rest) + 4 {
            out.push(out[out.len() - distance]);
        }
    }
    panic!("the block ends without its last literals");
}

fn length(nibble: u8, rest: &mut impl Iterator<Item = u8>) -> usize {
    let mut total = usize::from(nibble);
    if nibble == 15 {
        loop {
            let more = rest.next().unwrap();
            total += usize::from(more);
            if more != 255 {
                break;
            }
        }
    }
    total
}
