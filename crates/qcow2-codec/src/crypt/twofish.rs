//! Twofish ("Twofish: A 128-Bit Block Cipher", Schneier and others, 1998), with tables that are made for the key: what there is as a crate makes them anew
//! for each block, and does 3 MB/s. As every Twofish in software it looks into tables at places that depend on key and data.

use cipher::consts::{U1, U16, U32};
use cipher::inout::InOut;
use cipher::{
    Block, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InvalidLength, Key, KeyInit, KeySizeUser,
    ParBlocksSizeUser,
};
use zeroize::Zeroize;

/// Section 4.3.2: the polynomial of MDS.
const MDS_POLYNOMIAL: u8 = 0x69;
/// Section 4.3.1: that of RS.
const RS_POLYNOMIAL: u8 = 0x4d;
/// MDS by columns.
const MDS: [[u8; 4]; 4] = [
    [0x01, 0x5b, 0xef, 0xef],
    [0xef, 0xef, 0x5b, 0x01],
    [0x5b, 0xef, 0x01, 0xef],
    [0x5b, 0x01, 0xef, 0x5b],
];
const RS: [[u8; 8]; 4] = [
    [0x01, 0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e],
    [0xa4, 0x56, 0x82, 0xf3, 0x1e, 0xc6, 0x68, 0xe5],
    [0x02, 0xa1, 0xfc, 0xc1, 0x47, 0xae, 0x3d, 0x19],
    [0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e, 0x03],
];
/// Section 4.3.5: the permutations of four bits that make q0 and q1.
const NIBBLES: [[u64; 4]; 2] = [
    [
        0x817d_6f32_0b59_eca4,
        0xecb8_1235_f4a6_709d,
        0xba5e_6d90_c8f3_2471,
        0xd7f4_126e_9b30_85ca,
    ],
    [
        0x28bd_f76e_3194_0ac5,
        0x1e2b_4c37_6da5_f908,
        0x4c75_169a_0ed8_2b3f,
        0xb951_c3de_647f_208a,
    ],
];
const Q: [[u8; 256]; 2] = [permutation(NIBBLES[0]), permutation(NIBBLES[1])];
/// Figure 2: which of the permutations each byte of a word goes through, the last first; between them it meets the words of a key.
const STAGES: [[usize; 4]; 5] = [[1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1]];

const ROUNDS: usize = 16;

/// The cipher with its key.
pub(super) struct Twofish {
    /// The function g, by bytes of its word.
    g: [[u32; 256]; 4],
    before: [u32; 4],
    after: [u32; 4],
    rounds: [[u32; 2]; ROUNDS],
}

impl Twofish {
    fn g(&self, word: u32) -> u32 {
        let bytes = word.to_le_bytes();
        self.g
            .iter()
            .zip(bytes)
            .fold(0, |sum, (table, byte)| sum ^ at(table, byte))
    }

    /// What a round adds to two words, from the two others.
    #[inline(always)]
    fn f(&self, a: u32, b: u32, [first, second]: [u32; 2]) -> [u32; 2] {
        let (t0, t1) = (self.g(a), self.g(b.rotate_left(8)));
        let sum = t0.wrapping_add(t1);
        [sum.wrapping_add(first), sum.wrapping_add(t1).wrapping_add(second)]
    }
}

impl KeySizeUser for Twofish {
    type KeySize = U32;
}

impl KeyInit for Twofish {
    fn new(key: &Key<Self>) -> Self {
        Self::keyed(key)
    }

    fn new_from_slice(key: &[u8]) -> Result<Self, InvalidLength> {
        match key.len() {
            16 | 24 | 32 => Ok(Self::keyed(key)),
            _ => Err(InvalidLength),
        }
    }
}

impl Twofish {
    /// Section 4.3.
    fn keyed(key: &[u8]) -> Self {
        let words = key.as_chunks::<4>().0;
        let even: Vec<[u8; 4]> = words.iter().step_by(2).copied().collect();
        let odd: Vec<[u8; 4]> = words.iter().skip(1).step_by(2).copied().collect();
        // The words of g: of the last bytes of the key first.
        let code = |bytes: &[u8; 8]| {
            RS.map(|row| {
                row.iter()
                    .zip(bytes)
                    .fold(0, |sum, (a, b)| sum ^ times(*a, *b, RS_POLYNOMIAL))
            })
        };
        let mut inner: Vec<[u8; 4]> = key.as_chunks::<8>().0.iter().rev().map(code).collect();
        let mut expanded = [0u32; 8 + 2 * ROUNDS];
        for (number, pair) in (0u8..).step_by(2).zip(expanded.as_chunks_mut::<2>().0) {
            let a = h([number; 4], &even);
            let b = h([number.wrapping_add(1); 4], &odd).rotate_left(8);
            let sum = a.wrapping_add(b);
            *pair = [sum, sum.wrapping_add(b).rotate_left(9)];
        }
        let mut made = Self {
            g: [[0; 256]; 4],
            before: [0; 4],
            after: [0; 4],
            rounds: [[0; 2]; ROUNDS],
        };
        for (column, table) in made.g.iter_mut().enumerate() {
            for (byte, place) in (0..=255).zip(table) {
                *place = h_byte(column, byte, &inner);
            }
        }
        let (whitening, rounds) = expanded.split_at(8);
        for (to, from) in made.before.iter_mut().chain(&mut made.after).zip(whitening) {
            *to = *from;
        }
        for (to, from) in made.rounds.iter_mut().zip(rounds.as_chunks::<2>().0) {
            *to = *from;
        }
        expanded.zeroize();
        for mut words in [even, odd, std::mem::take(&mut inner)] {
            words.zeroize();
        }
        made
    }
}

/// The function h: of a word, and of as many words of a key as it is long.
fn h(bytes: [u8; 4], key: &[[u8; 4]]) -> u32 {
    bytes
        .into_iter()
        .enumerate()
        .fold(0, |sum, (column, byte)| sum ^ h_byte(column, byte, key))
}

/// What one byte of the word adds to it.
fn h_byte(column: usize, byte: u8, key: &[[u8; 4]]) -> u32 {
    let q = |stage: &[usize; 4], byte: u8| {
        let which = stage.get(column).and_then(|which| Q.get(*which));
        which.map_or(0, |table| at(table, byte))
    };
    let [last, between @ ..] = &STAGES;
    let mixed = between.iter().zip(key).rev().fold(byte, |byte, (stage, word)| {
        q(stage, byte) ^ word.get(column).copied().unwrap_or_default()
    });
    let column = MDS.get(column).copied().unwrap_or_default();
    u32::from_le_bytes(column.map(|factor| times(factor, q(last, mixed), MDS_POLYNOMIAL)))
}

#[inline(always)]
fn at<T: Copy + Default>(table: &[T; 256], byte: u8) -> T {
    table.get(usize::from(byte)).copied().unwrap_or_default()
}

/// The product in GF(2^8), modulo x^8 and `polynomial`.
fn times(a: u8, b: u8, polynomial: u8) -> u8 {
    (0..8).rev().fold(0, |product, bit| {
        let carry = if product & 0x80 == 0 { 0 } else { polynomial };
        let addend = if b >> bit & 1 == 0 { 0 } else { a };
        product << 1 ^ carry ^ addend
    })
}

#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "done by the compiler, which takes no index that is out of range"
)]
const fn permutation(nibbles: [u64; 4]) -> [u8; 256] {
    const fn pick(table: u64, nibble: u8) -> u8 {
        (table >> (60 - 4 * nibble) & 15) as u8
    }
    const fn mix(a: u8, b: u8) -> (u8, u8) {
        (a ^ b, a ^ (b >> 1 | b << 3 & 8) ^ a << 3 & 8)
    }
    let mut out = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (a, b) = mix(byte as u8 >> 4, byte as u8 & 15);
        let (a, b) = mix(pick(nibbles[0], a), pick(nibbles[1], b));
        out[byte] = pick(nibbles[3], b) << 4 | pick(nibbles[2], a);
        byte += 1;
    }
    out
}

fn words(block: &Block<Twofish>, whitening: [u32; 4]) -> [u32; 4] {
    let mut words = whitening;
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
        *word ^= u32::from_le_bytes(*bytes);
    }
    words
}

fn put(block: &mut Block<Twofish>, words: [u32; 4], whitening: [u32; 4]) {
    for ((bytes, word), key) in block.as_chunks_mut::<4>().0.iter_mut().zip(words).zip(whitening) {
        *bytes = (word ^ key).to_le_bytes();
    }
}

impl BlockSizeUser for Twofish {
    type BlockSize = U16;
}

impl ParBlocksSizeUser for Twofish {
    type ParBlocksSize = U1;
}

impl BlockCipherEncrypt for Twofish {
    fn encrypt_with_backend(&self, closure: impl BlockCipherEncClosure<BlockSize = U16>) {
        closure.call(self);
    }
}

impl BlockCipherEncBackend for Twofish {
    #[inline]
    fn encrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let [mut a, mut b, mut c, mut d] = words(block.get_in(), self.before);
        for key in self.rounds {
            let [e, f] = self.f(a, b, key);
            (a, b, c, d) = ((c ^ e).rotate_right(1), d.rotate_left(1) ^ f, a, b);
        }
        put(block.get_out(), [c, d, a, b], self.after);
    }
}

impl BlockCipherDecrypt for Twofish {
    fn decrypt_with_backend(&self, closure: impl BlockCipherDecClosure<BlockSize = U16>) {
        closure.call(self);
    }
}

impl BlockCipherDecBackend for Twofish {
    #[inline]
    fn decrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let [mut c, mut d, mut a, mut b] = words(block.get_in(), self.after);
        for key in self.rounds.iter().rev() {
            let [e, f] = self.f(c, d, *key);
            (a, b, c, d) = (c, d, a.rotate_left(1) ^ e, (b ^ f).rotate_right(1));
        }
        put(block.get_out(), [a, b, c, d], self.before);
    }
}

impl Drop for Twofish {
    fn drop(&mut self) {
        self.g.zeroize();
        self.before.zeroize();
        self.after.zeroize();
        self.rounds.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

    use super::Twofish;

    #[test]
    fn it_is_what_the_slow_one_is() {
        let mut byte = 1u8;
        let mut next = || {
            byte = byte.wrapping_mul(137).wrapping_add(41);
            byte
        };
        for round in 0..300 {
            let key: Vec<u8> = (0..[16, 24, 32][round % 3]).map(|_| next()).collect();
            let block: [u8; 16] = std::array::from_fn(|_| next());
            let mut ours: Block<Twofish> = block.into();
            let mut theirs = ours;
            let (fast, slow) = (
                Twofish::new_from_slice(&key).unwrap(),
                ::twofish::Twofish::new_from_slice(&key).unwrap(),
            );
            fast.encrypt_block(&mut ours);
            slow.encrypt_block(&mut theirs);
            assert_eq!(ours, theirs, "{key:?}");
            fast.decrypt_block(&mut ours);
            assert_eq!(ours.as_slice(), block);
        }
    }
}
