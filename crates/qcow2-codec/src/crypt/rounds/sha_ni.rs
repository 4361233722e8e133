//! Rounds of PBKDF2 with the SHA-256 instructions of x86. A round's digest is the next message as it stands in the registers: nothing goes through memory or
//! has its bytes turned around.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_set_epi32,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi32, _mm_xor_si128,
};

use super::STEP;

/// As [`super::rounds`], from the two states that hold the key.
#[target_feature(enable = "sha,sse4.1,ssse3")]
pub(super) fn rounds(
    states: [[u32; 8]; 2],
    digest: &mut [u32; 8],
    count: u32,
    go_on: &(dyn Fn() -> bool + Sync),
) -> bool {
    let [inner, outer] = states.map(|state| registers(vectors(&state)));
    // The end of a message of 96 bytes.
    let end = [words([0x8000_0000, 0, 0, 0]), words([0, 0, 0, 96 * 8])];
    let mut message = vectors(digest);
    let mut sum = message;
    let mut left = count;
    let mut whole = true;
    while left > 0 && whole {
        for _ in 0..left.min(STEP) {
            message = vectors_of(compress(inner, message, end));
            message = vectors_of(compress(outer, message, end));
            sum = [_mm_xor_si128(sum[0], message[0]), _mm_xor_si128(sum[1], message[1])];
        }
        left = left.saturating_sub(STEP);
        whole = go_on();
    }
    for (pair, vector) in digest.as_chunks_mut::<4>().0.iter_mut().zip(sum) {
        *pair = lanes(vector);
    }
    whole
}

/// One block: 64 rounds, four at a time.
#[inline]
#[target_feature(enable = "sha,sse4.1,ssse3")]
fn compress(state: [__m128i; 2], message: [__m128i; 2], end: [__m128i; 2]) -> [__m128i; 2] {
    let [mut abef, mut cdgh] = state;
    let [mut a, mut b] = message;
    let [mut c, mut d] = end;
    for (number, constants) in K.iter().enumerate() {
        let round = _mm_add_epi32(a, words(*constants));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, round);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32::<0x0e>(round));
        // The words of four rounds later but twelve: those of the last four have none behind them.
        if number < 12 {
            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8::<4>(d, c));
            (a, b, c, d) = (b, c, d, _mm_sha256msg2_epu32(sum, d));
        } else {
            (a, b, c) = (b, c, d);
        }
    }
    let [first, second] = state;
    [_mm_add_epi32(abef, first), _mm_add_epi32(cdgh, second)]
}

/// The words of a state in order, as the registers that the instructions want.
#[inline]
#[target_feature(enable = "sse4.1,ssse3")]
fn registers([dcba, hgfe]: [__m128i; 2]) -> [__m128i; 2] {
    let cdab = _mm_shuffle_epi32::<0xb1>(dcba);
    let efgh = _mm_shuffle_epi32::<0x1b>(hgfe);
    [_mm_alignr_epi8::<8>(cdab, efgh), _mm_blend_epi16::<0xf0>(efgh, cdab)]
}

/// And back.
#[inline]
#[target_feature(enable = "sse4.1,ssse3")]
fn vectors_of([abef, cdgh]: [__m128i; 2]) -> [__m128i; 2] {
    let feba = _mm_shuffle_epi32::<0x1b>(abef);
    let dchg = _mm_shuffle_epi32::<0xb1>(cdgh);
    [_mm_blend_epi16::<0xf0>(feba, dchg), _mm_alignr_epi8::<8>(dchg, feba)]
}

#[target_feature(enable = "sse4.1")]
fn vectors([a, b, c, d, e, f, g, h]: &[u32; 8]) -> [__m128i; 2] {
    [words([*a, *b, *c, *d]), words([*e, *f, *g, *h])]
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn words([a, b, c, d]: [u32; 4]) -> __m128i {
    _mm_set_epi32(d.cast_signed(), c.cast_signed(), b.cast_signed(), a.cast_signed())
}

#[target_feature(enable = "sse4.1")]
#[allow(clippy::cast_possible_truncation, reason = "each half is wanted")]
fn lanes(vector: __m128i) -> [u32; 4] {
    let low = _mm_cvtsi128_si64(vector).cast_unsigned();
    let high = _mm_extract_epi64::<1>(vector).cast_unsigned();
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}

/// FIPS 180-4, section 4.2.2.
const K: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];
