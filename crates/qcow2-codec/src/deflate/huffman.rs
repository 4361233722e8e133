//! Prefix codes: the lengths that fit a histogram best, and the codes that follow from lengths (RFC 1951, 3.2.2).
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "indices are symbols of alphabets of at most 288, ranks among them, or depths cut at 15"
)]

use super::symbols::LITERALS;

/// The longest code deflate can describe.
const LONGEST: usize = 15;

/// Writes the code lengths for `counts` into `lengths`, none above `limit`.
///
/// Two symbols have a code even if fewer occur: decoders disagree about trees with fewer than two leaves.
pub(super) fn lengths(counts: &[u32], limit: usize, lengths: &mut [u8]) {
    lengths.fill(0);
    // Sorted by count, then by symbol: nothing is left to chance.
    let mut keys = [0_u32; LITERALS];
    let mut used = 0;
    for (symbol, &count) in counts.iter().enumerate() {
        keys[used] = count << 9 | symbol as u32;
        used += usize::from(count > 0);
    }
    if used < 2 {
        let only = if used == 0 { 0 } else { keys[0] as usize & 0x1FF };
        lengths[only] = 1;
        lengths[usize::from(only == 0)] = 1;
        return;
    }
    let keys = &mut keys[..used];
    keys.sort_unstable();
    let at_depth = cut(depths(keys), limit);
    // The longest codes go to the rarest symbols.
    let mut rarest = keys.iter();
    for (length, &count) in at_depth.iter().enumerate().rev() {
        for key in rarest.by_ref().take(count as usize) {
            lengths[*key as usize & 0x1FF] = length as u8;
        }
    }
}

/// How many leaves Huffman's tree has at each depth, all beyond [`LONGEST`] counted there. `keys` are sorted.
///
/// Leaves and joined nodes are two queues, both in order: the two lightest nodes are always at a head.
fn depths(keys: &[u32]) -> [u32; LONGEST + 1] {
    let leaves = keys.len();
    let nodes = 2 * leaves - 1;
    let mut weight = [0_u32; 2 * LITERALS];
    let mut parent = [0_u16; 2 * LITERALS];
    for (weight, key) in weight.iter_mut().zip(keys) {
        *weight = key >> 9;
    }
    let (mut leaf, mut joined) = (0, leaves);
    for node in leaves..nodes {
        let mut sum = 0;
        for _ in 0..2 {
            let lightest = if leaf < leaves && (joined >= node || weight[leaf] <= weight[joined]) {
                leaf += 1;
                leaf - 1
            } else {
                joined += 1;
                joined - 1
            };
            sum += weight[lightest];
            parent[lightest] = node as u16;
        }
        weight[node] = sum;
    }
    // From the root, which is last, down: a parent's depth is known before its children's.
    let mut depth = [0_u8; 2 * LITERALS];
    let mut at_depth = [0; LONGEST + 1];
    for node in (0..nodes - 1).rev() {
        depth[node] = (depth[usize::from(parent[node])] + 1).min(200);
        if node < leaves {
            at_depth[usize::from(depth[node]).min(LONGEST)] += 1;
        }
    }
    at_depth
}

/// Moves leaves that are too deep up to `limit`, and others down until the code exists (Kraft's sum is 1).
fn cut(mut at_depth: [u32; LONGEST + 1], limit: usize) -> [u32; LONGEST + 1] {
    for depth in limit + 1..=LONGEST {
        at_depth[limit] += at_depth[depth];
        at_depth[depth] = 0;
    }
    let sum =
        |at_depth: &[u32; LONGEST + 1]| -> u32 { (1..=limit).map(|depth| at_depth[depth] << (limit - depth)).sum() };
    let whole = 1_u32 << limit;
    for _ in whole..sum(&at_depth).max(whole) {
        // One leaf becomes a node with itself and a leaf from the bottom below it: the sum falls by one.
        let depth = (1..limit).rev().find(|&depth| at_depth[depth] > 0).unwrap_or(1);
        at_depth[depth] -= 1;
        at_depth[depth + 1] += 2;
        at_depth[limit] -= 1;
    }
    at_depth
}

/// The codes of `lengths`, as deflate writes them: first bit lowest. Symbols without a length get 0.
pub(super) fn codes(lengths: &[u8], codes: &mut [u16]) {
    let mut next = [0_u16; LONGEST + 1];
    for &length in lengths {
        next[usize::from(length) & LONGEST] += 1;
    }
    next[0] = 0;
    let mut code = 0_u16;
    for count in &mut next {
        (code, *count) = ((code + *count) << 1, code);
    }
    for (code, &length) in codes.iter_mut().zip(lengths) {
        let length = usize::from(length) & LONGEST;
        *code = if length == 0 {
            0
        } else {
            next[length].reverse_bits() >> (16 - length)
        };
        next[length] = next[length].wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(counts: &[u32], limit: usize) -> Vec<u8> {
        let mut out = vec![9; counts.len()];
        lengths(counts, limit, &mut out);
        out
    }

    /// In units of 2^-15.
    fn kraft(lengths: &[u8]) -> u32 {
        lengths
            .iter()
            .filter(|&&length| length > 0)
            .map(|&length| 1 << (15 - length))
            .sum()
    }

    #[test]
    fn the_code_of_a_known_histogram_is_huffmans() {
        // 2^-1, 2^-2, 2^-3, 2^-3: the entropy itself.
        assert_eq!(made(&[4, 2, 1, 1], 15), [1, 2, 3, 3]);
        assert_eq!(made(&[1, 1, 2, 4], 15), [3, 3, 2, 1]);
        assert_eq!(made(&[5, 0, 5, 5, 5], 15), [2, 0, 2, 2, 2]);
    }

    #[test]
    fn two_symbols_have_a_code_whatever_occurs() {
        assert_eq!(made(&[0, 0, 0], 15), [1, 1, 0]);
        assert_eq!(made(&[7, 0, 0], 15), [1, 1, 0]);
        assert_eq!(made(&[0, 0, 7], 15), [1, 0, 1]);
    }

    #[test]
    fn codes_are_complete_and_within_the_limit_where_huffmans_tree_is_too_deep() {
        // Fibonacci numbers make the deepest tree there is.
        let mut counts = vec![1_u32, 1];
        while counts.len() < 30 {
            counts.push(counts[counts.len() - 1] + counts[counts.len() - 2]);
        }
        counts.truncate(22);
        for limit in [5, 7, 9, 14, 15] {
            let lengths = made(&counts, limit);
            assert_eq!(kraft(&lengths), 1 << 15, "{limit}");
            assert!(lengths.iter().all(|&length| usize::from(length) <= limit));
            assert!(lengths.is_sorted_by(|a, b| a >= b), "the rarer has the longer code");
        }
        assert_eq!(made(&[1; 288], 14).iter().max(), Some(&9));
    }

    #[test]
    fn codes_are_those_of_the_rfcs_example() {
        // RFC 1951, 3.2.2: 010 011 100 101 110 00 1110 1111, here with the first bit lowest.
        let mut out = [0; 8];
        codes(&[3, 3, 3, 3, 3, 2, 4, 4], &mut out);
        assert_eq!(out, [0b010, 0b110, 0b001, 0b101, 0b011, 0b00, 0b0111, 0b1111]);
    }
}
