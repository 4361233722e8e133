//! Inputs for the tests of this folder, each a function of its seed.
#![allow(dead_code, unreachable_pub)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

pub mod blocks;
pub mod frames;
pub mod inflate;
pub mod lz4;
pub mod pieces;

/// splitmix64: small, seeded, good enough to be no pattern for a compressor.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

/// One input of every kind, named, each `size` bytes long.
pub fn samples(size: usize, seed: u64) -> Vec<(String, Vec<u8>)> {
    let mut rng = Rng(seed);
    let mut samples = vec![
        ("zeros".to_owned(), vec![0; size]),
        ("constant".to_owned(), vec![0xA5; size]),
        ("random".to_owned(), rng.bytes(size)),
        ("text".to_owned(), text(&mut rng, size)),
        ("sparse".to_owned(), sparse(&mut rng, size)),
        ("mixed".to_owned(), mixed(&mut rng, size)),
    ];
    // Around the reach of a 12-bit window, of a 15-bit one, and of LZ4's 16 bits.
    for period in [1, 2, 3, 7, 258, 3834, 4095, 4096, 4097, 5000, 32_768, 65_535, 65_536] {
        let unit = rng.bytes(period);
        samples.push((
            format!("period {period}"),
            unit.into_iter().cycle().take(size).collect(),
        ));
    }
    samples
}

pub fn text(rng: &mut Rng, size: usize) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..700)
        .map(|_| {
            let len = 2 + rng.below(9);
            (0..len)
                .map(|_| b'a' + (rng.below(26).min(rng.below(26))) as u8)
                .collect()
        })
        .collect();
    let mut out = Vec::with_capacity(size + 16);
    while out.len() < size {
        let pick = rng.below(words.len()).min(rng.below(words.len()));
        out.extend_from_slice(&words[pick]);
        out.push(if rng.below(11) == 0 { b'\n' } else { b' ' });
    }
    out.truncate(size);
    out
}

fn sparse(rng: &mut Rng, size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    for _ in 0..size / 100 {
        let at = rng.below(size);
        out[at] = rng.byte();
    }
    out
}

/// Runs, repetitions at any distance, text and noise, in pieces.
pub fn mixed(rng: &mut Rng, size: usize) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(size);
    while out.len() < size {
        let len = 1 + rng.below(400).min(size - out.len() - 1);
        match rng.below(4) {
            0 => out.extend(std::iter::repeat_n(rng.byte(), len)),
            1 => out.extend(rng.bytes(len)),
            2 => out.extend(text(rng, len)),
            _ if out.is_empty() => {}
            _ => {
                let distance = 1 + rng.below(out.len());
                for _ in 0..len {
                    out.push(out[out.len() - distance]);
                }
            }
        }
    }
    out.truncate(size);
    out
}
