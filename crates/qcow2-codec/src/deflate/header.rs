//! How a dynamic block describes its codes (RFC 1951, 3.2.7): their lengths, run-length coded, in a code of their own.

use super::bits::Bits;
use super::huffman;
use super::symbols::{DISTANCES, LITERALS};

/// Symbols of the code lengths' code: 0 to 15 are lengths, 16 repeats the last one, 17 and 18 are runs of zeros.
const META: usize = 19;
const META_LIMIT: usize = 7;
/// The order in which the lengths of that code are written.
const ORDER: [usize; META] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Symbols that may be used; the fixed code knows more of both.
const USABLE_LITERALS: usize = 286;
const USABLE_DISTANCES: usize = 30;

pub(super) struct Header {
    literals: usize,
    distances: usize,
    /// How many of [`ORDER`] are written.
    ordered: usize,
    lengths: [u8; META],
    /// A symbol and its extra bits.
    items: Vec<(u8, u8)>,
}

impl Header {
    pub(super) fn new(literals: &[u8; LITERALS], distances: &[u8; DISTANCES]) -> Self {
        let used = |lengths: &[u8], least: usize| {
            let used = lengths.iter().rposition(|&length| length > 0);
            used.map_or(least, |last| least.max(last + 1))
        };
        let literal_count = used(literals.get(..USABLE_LITERALS).unwrap_or_default(), 257);
        let distance_count = used(distances.get(..USABLE_DISTANCES).unwrap_or_default(), 1);
        let all = literals.iter().take(literal_count);
        let items = items(all.chain(distances.iter().take(distance_count)).copied());
        let mut counts = [0; META];
        for &(symbol, _) in &items {
            if let Some(count) = counts.get_mut(usize::from(symbol)) {
                *count += 1;
            }
        }
        let mut lengths = [0; META];
        huffman::lengths(&counts, META_LIMIT, &mut lengths);
        let last = ORDER
            .iter()
            .rposition(|&symbol| lengths.get(symbol).is_some_and(|&length| length > 0));
        Self {
            literals: literal_count,
            distances: distance_count,
            ordered: last.map_or(4, |last| (last + 1).max(4)),
            lengths,
            items,
        }
    }

    /// Bits, without the three that begin every block.
    pub(super) fn bits(&self) -> usize {
        let item = |&(symbol, _): &(u8, u8)| {
            let length = self.lengths.get(usize::from(symbol)).copied().unwrap_or(0);
            usize::from(length) + extra_bits(symbol) as usize
        };
        14 + 3 * self.ordered + self.items.iter().map(item).sum::<usize>()
    }

    pub(super) fn write(&self, bits: &mut Bits<'_>) {
        let mut codes = [0; META];
        huffman::codes(&self.lengths, &mut codes);
        bits.put((self.literals - 257) as u64, 5);
        bits.put((self.distances - 1) as u64, 5);
        bits.put((self.ordered - 4) as u64, 4);
        for &symbol in ORDER.iter().take(self.ordered) {
            bits.put(self.lengths.get(symbol).copied().unwrap_or(0).into(), 3);
        }
        for &(symbol, extra) in &self.items {
            let at = usize::from(symbol);
            if let (Some(&code), Some(&length)) = (codes.get(at), self.lengths.get(at)) {
                bits.put(code.into(), length.into());
                bits.put(extra.into(), extra_bits(symbol));
            }
        }
    }
}

fn extra_bits(symbol: u8) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

/// Runs may go across from the literals' lengths into the distances'.
fn items(lengths: impl Iterator<Item = u8>) -> Vec<(u8, u8)> {
    let mut items = Vec::with_capacity(USABLE_LITERALS + USABLE_DISTANCES);
    let mut lengths = lengths.peekable();
    while let Some(length) = lengths.next() {
        let mut times = 1_u8;
        while times < 138 && lengths.next_if_eq(&length).is_some() {
            times += 1;
        }
        if length > 0 {
            items.push((length, 0));
            times -= 1;
        }
        while times > 0 {
            let (symbol, taken) = match (length, times) {
                (0, 11..) => (18, times),
                (0, 3..) => (17, times),
                // Seven are four and three, not six and one.
                (1.., 7) => (16, 4),
                (1.., 3..) => (16, times.min(6)),
                (_, _) => (length, 1),
            };
            let least = if symbol == 18 { 11 } else { 3 };
            items.push((symbol, if symbol > 15 { taken - least } else { 0 }));
            times -= taken;
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(items: &[(u8, u8)]) -> Vec<u8> {
        let mut out: Vec<u8> = Vec::new();
        for &(symbol, extra) in items {
            match symbol {
                16 => out.extend([*out.last().unwrap()].repeat(usize::from(extra) + 3)),
                17 => out.extend(vec![0; usize::from(extra) + 3]),
                18 => out.extend(vec![0; usize::from(extra) + 11]),
                length => out.push(length),
            }
        }
        out
    }

    #[test]
    fn runs_of_every_length_are_told_as_they_are() {
        for length in [0, 5] {
            for times in 1..300 {
                let mut lengths = vec![3];
                lengths.extend(vec![length; times]);
                lengths.push(9);
                let items = items(lengths.iter().copied());
                assert_eq!(told(&items), lengths, "{times} times {length}");
                assert!(
                    items
                        .iter()
                        .all(|&(symbol, extra)| u32::from(extra) < 1 << extra_bits(symbol))
                );
                assert!(
                    times < 8 || items.len() < times / 2 + 3,
                    "{times} times {length} in {}",
                    items.len()
                );
            }
        }
    }

    #[test]
    fn the_size_is_what_is_written() {
        let mut literals = [0; LITERALS];
        let mut distances = [0; DISTANCES];
        for used in [0, 1, 7, 100, 286] {
            literals[..used].fill(8);
            distances[..used.min(24)].fill(5);
            literals[256] = 3;
            let header = Header::new(&literals, &distances);
            let mut out = [0; 1000];
            let mut bits = Bits::new(&mut out, 0);
            header.write(&mut bits);
            assert_eq!(bits.written(), header.bits());
        }
    }
}
