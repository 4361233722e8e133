//! Where one block ends and the next begins: neighbouring chunks are joined while that saves more than a header costs.
//!
//! What a block costs is taken to be its entropy, in units of 2^-16 bits. All is whole numbers, so that every machine
//! draws the same borders.

use std::sync::LazyLock;

use super::parse::Chunk;
use super::symbols::Histogram;

/// What a block costs beyond its symbols, in bits: its codes' description, and codes that are not quite the entropy.
const HEADER: u64 = 700;

pub(super) const BIT: u32 = 16;

/// Counts that the table answers: those of a chunk, and nearly all of any block.
const EXACT: usize = 4096;

/// `count · log2(count)` in units of 2^-16 bits: less than 2^32 up to here.
static WEIGHTS: LazyLock<[u32; EXACT]> = LazyLock::new(|| {
    let mut weights = [0; EXACT];
    for (count, weight) in (0_u32..).zip(&mut weights) {
        *weight = count * logarithm_of(count);
    }
    weights
});

/// By squaring: each time the mantissa passes 2, the next bit of the logarithm is 1.
fn logarithm_of(number: u32) -> u32 {
    let whole = number.max(1).ilog2();
    let mut mantissa = u64::from(number.max(1)) << (31 - whole);
    let mut logarithm = whole;
    for _ in 0..BIT {
        mantissa = (mantissa * mantissa) >> 31;
        logarithm <<= 1;
        if mantissa >> 32 == 1 {
            logarithm |= 1;
            mantissa >>= 1;
        }
    }
    logarithm
}

/// `count · log2(count)`.
#[inline(always)]
fn weight(weights: &[u32; EXACT], count: u32) -> u64 {
    match weights.get(count as usize) {
        Some(&weight) => u64::from(weight),
        None => u64::from(count) * u64::from(logarithm_of(count)),
    }
}

/// The entropy of symbols that occur this often, no more than 2^20 of them.
#[inline(always)]
fn entropy_of(counts: impl Iterator<Item = u32>) -> u64 {
    let weights = &*WEIGHTS;
    let (mut total, mut sum) = (0_u32, 0_u64);
    for count in counts {
        total = total.wrapping_add(count);
        sum = sum.wrapping_add(weight(weights, count));
    }
    weight(weights, total).saturating_sub(sum)
}

/// The entropy of bytes that occur this often.
pub(super) fn entropy_of_bytes(counts: &[u32; 256]) -> u64 {
    entropy_of(counts.iter().copied())
}

/// The entropy of all symbols.
fn entropy(histogram: &Histogram) -> u64 {
    entropy_of(histogram.literals.iter().copied()) + entropy_of(histogram.distances.iter().copied())
}

/// The entropy of two neighbours' symbols in one block.
fn together(left: &Histogram, right: &Histogram) -> u64 {
    let sums = |(left, right): (&u32, &u32)| left.wrapping_add(*right);
    entropy_of(left.literals.iter().zip(&right.literals).map(sums))
        + entropy_of(left.distances.iter().zip(&right.distances).map(sums))
}

/// The fewest bits that the chunks can take as they were parsed, whatever the codes: each its entropy, or its bytes.
pub(super) fn least_bits(chunks: &[Chunk]) -> u64 {
    let least = |chunk: &Chunk| {
        let coded = (entropy(&chunk.histogram) >> BIT).saturating_sub(2) + chunk.histogram.extra_bits();
        coded.min(8 * chunk.bytes.len() as u64)
    };
    chunks.iter().map(least).sum()
}

/// Joins neighbours, those that save most first, until joining saves nothing.
pub(super) fn join(chunks: &mut Vec<Chunk>) {
    let mut alone: Vec<u64> = chunks.iter().map(|chunk| entropy(&chunk.histogram)).collect();
    let mut joined: Vec<u64> = chunks
        .iter()
        .zip(chunks.iter().skip(1))
        .map(|(a, b)| together(&a.histogram, &b.histogram))
        .collect();
    loop {
        let gains = joined.iter().zip(alone.iter().zip(alone.iter().skip(1)));
        let gains = gains.map(|(&both, (&left, &right))| (left + right + (HEADER << BIT)).saturating_sub(both));
        // The first of equals: `max_by_key` alone would take the last.
        let Some((gain, std::cmp::Reverse(at))) = gains.zip((0..).map(std::cmp::Reverse)).max() else {
            return;
        };
        if gain == 0 {
            return;
        }
        let right = chunks.remove(at + 1);
        alone.remove(at + 1);
        let both = joined.remove(at);
        if let (Some(left), Some(cost)) = (chunks.get_mut(at), alone.get_mut(at)) {
            left.symbols.end = right.symbols.end;
            left.bytes.end = right.bytes.end;
            left.histogram.add(&right.histogram);
            *cost = both;
        }
        for border in at.saturating_sub(1)..=at {
            if let (Some(cost), Some([left, right])) = (joined.get_mut(border), chunks.get(border..border + 2)) {
                *cost = together(&left.histogram, &right.histogram);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(at: usize, symbols: &[(usize, u32)]) -> Chunk {
        let mut histogram = Histogram::EMPTY;
        for &(symbol, count) in symbols {
            histogram.literals[symbol] = count;
        }
        Chunk {
            symbols: at..at + 10,
            bytes: at * 100..at * 100 + 1000,
            histogram,
        }
    }

    #[test]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    fn logarithms_are_those_of_the_library() {
        assert_eq!(logarithm_of(0), 0);
        for number in 1..5000 {
            let known = (f64::from(number).log2() * 65536.0) as u32;
            assert!(logarithm_of(number).abs_diff(known) <= 1, "{number}");
        }
        let exact = 70_000.0 * 70_000_f64.log2();
        let ours = weight(&WEIGHTS, 70_000) as f64 / 65536.0;
        assert!((exact - ours).abs() < 2.0, "{exact} {ours}");
    }

    #[test]
    fn a_fair_coin_costs_a_bit() {
        let coin = chunk(0, &[(0, 500), (255, 500)]);
        assert_eq!(entropy(&coin.histogram), 1000 << BIT);
        assert_eq!(entropy(&Histogram::EMPTY), 0);
    }

    #[test]
    fn like_is_joined_with_like() {
        let (low, high): (Vec<_>, Vec<_>) = (
            (0..16).map(|s| (s, 200)).collect(),
            (100..116).map(|s| (s, 200)).collect(),
        );
        let mut chunks = vec![
            chunk(0, &low),
            chunk(10, &low),
            chunk(20, &high),
            chunk(30, &high),
            chunk(40, &high),
        ];
        join(&mut chunks);
        let borders: Vec<_> = chunks
            .iter()
            .map(|chunk| (chunk.symbols.clone(), chunk.bytes.start))
            .collect();
        assert_eq!(borders, [(0..20, 0), (20..50, 2000)]);
        assert_eq!(chunks[1].histogram.literals[100], 600);
    }

    #[test]
    fn a_header_is_not_paid_for_little() {
        let mut chunks = vec![chunk(0, &[(1, 20), (2, 3)]), chunk(10, &[(3, 20), (4, 3)])];
        join(&mut chunks);
        assert_eq!(chunks.len(), 1);
        join(&mut Vec::new());
    }

    #[test]
    fn no_code_is_shorter_than_the_least() {
        let random = chunk(0, &(0..256).map(|symbol| (symbol, 40)).collect::<Vec<_>>());
        assert_eq!(least_bits(&[random]), 8000, "stored");
        assert_eq!(least_bits(&[chunk(0, &[(0, 500), (255, 500)])]), 998);
    }
}
