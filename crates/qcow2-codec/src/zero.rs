//! The all-zero test. It runs over every byte that a conversion reads, so it has to keep up with memory.

/// Bytes looked at between two chances to stop: large enough to become wide vector code, small enough to leave soon.
const CHUNK: usize = 1024;

/// Whether every byte is zero. True of no bytes at all.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most clusters of data show it at one of their ends, without a walk through the middle.
    if edge(bytes.first_chunk()) || edge(bytes.last_chunk()) {
        return false;
    }
    zero_chunks(bytes) == bytes.len()
}

/// How many bytes at the start are zero.
pub fn zero_prefix(bytes: &[u8]) -> usize {
    let start = zero_chunks(bytes);
    let rest = bytes.get(start..).unwrap_or_default();
    start + rest.iter().position(|&byte| byte != 0).unwrap_or(rest.len())
}

/// Where the first byte stands that is not zero.
pub fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    let at = zero_prefix(bytes);
    (at < bytes.len()).then_some(at)
}

fn edge(word: Option<&[u8; 8]>) -> bool {
    word.is_some_and(|word| u64::from_ne_bytes(*word) != 0)
}

/// Bytes before the first chunk that is not zero; all of them if there is none.
fn zero_chunks(bytes: &[u8]) -> usize {
    let (chunks, rest) = bytes.as_chunks::<CHUNK>();
    for (index, chunk) in chunks.iter().enumerate() {
        let (words, _) = chunk.as_chunks::<8>();
        if words.iter().fold(0, |seen, word| seen | u64::from_ne_bytes(*word)) != 0 {
            return index * CHUNK;
        }
    }
    let tail = bytes.len() - rest.len();
    if rest.iter().all(|&byte| byte == 0) {
        bytes.len()
    } else {
        tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_found_where_it_is() {
        for len in [1, 7, 8, 9, 512, 1023, 1024, 1025, 4096, 4096 + 511] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            assert_eq!(zero_prefix(&bytes), len);
            assert_eq!(first_nonzero(&bytes), None);
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "{len} {at}");
                assert_eq!(zero_prefix(&bytes), at);
                assert_eq!(first_nonzero(&bytes), Some(at));
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn the_first_of_several_bytes_counts() {
        let mut bytes = vec![0; 8192];
        bytes[3000] = 1;
        bytes[2999] = 0x80;
        bytes[8191] = 1;
        assert_eq!(first_nonzero(&bytes), Some(2999));
    }

    #[test]
    fn no_bytes_are_zero() {
        assert!(is_zero(&[]));
        assert_eq!(first_nonzero(&[]), None);
    }

    #[test]
    fn unaligned_slices_are_tested_whole() {
        let mut bytes = vec![0; 5000];
        bytes[0] = 1;
        bytes[4999] = 1;
        assert!(is_zero(&bytes[1..4999]));
        assert!(!is_zero(&bytes[1..]));
        assert!(!is_zero(&bytes[..4999]));
    }
}
