//! The same with AVX-512: four tweaks to a vector, two vectors at a time.
#![allow(unsafe_code, reason = "vectors are loaded and stored through pointers")]

use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_maskz_xor_epi64, _mm512_shuffle_epi32, _mm512_slli_epi64, _mm512_srli_epi64,
    _mm512_storeu_si512, _mm512_xor_si512,
};

use super::{BLOCKS, Tweaks, double};
use crate::crypt::SECTOR;

/// Tweaks of a vector.
const LANES: usize = 4;

/// [`super::begin`].
#[target_feature(enable = "avx512f")]
pub(super) fn begin(number: u128, tweaks: &mut Tweaks, sector: &mut [u8; SECTOR]) {
    let mut tweak = number;
    let mut first = [0; 2 * LANES];
    for place in &mut first {
        *place = tweak;
        tweak = double(tweak);
    }
    let [mut even, mut odd] = vectors(&first);
    const { assert!(BLOCKS.is_multiple_of(2 * LANES)) }
    let pairs = tweaks.as_chunks_mut::<{ 2 * LANES }>().0.iter_mut();
    for (kept, bytes) in pairs.zip(sector.as_chunks_mut::<{ 32 * LANES }>().0) {
        let [low, high] = vectors(bytes);
        store(kept, [even, odd]);
        store(bytes, [_mm512_xor_si512(low, even), _mm512_xor_si512(high, odd)]);
        (even, odd) = (eight_further(even), eight_further(odd));
    }
}

/// Each tweak times x^8, in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1. The byte that leaves a low half enters the high one; that which leaves a high half
/// enters the low one four times.
#[target_feature(enable = "avx512f")]
fn eight_further(tweaks: __m512i) -> __m512i {
    const SWAP_HALVES: i32 = 0b01_00_11_10;
    const LOW_HALVES: u8 = 0b0101_0101;
    let carry = _mm512_shuffle_epi32::<SWAP_HALVES>(_mm512_srli_epi64::<56>(tweaks));
    let moved = _mm512_xor_si512(_mm512_slli_epi64::<8>(tweaks), carry);
    let twice = _mm512_xor_si512(_mm512_slli_epi64::<1>(carry), _mm512_slli_epi64::<2>(carry));
    _mm512_xor_si512(
        moved,
        _mm512_maskz_xor_epi64(LOW_HALVES, twice, _mm512_slli_epi64::<7>(carry)),
    )
}

#[target_feature(enable = "avx512f")]
fn vectors<T: Copy, const COUNT: usize>(from: &[T; COUNT]) -> [__m512i; 2] {
    const { assert!(size_of::<[T; COUNT]>() == 128) }
    let pointer = from.as_ptr().cast::<__m512i>();
    // SAFETY: `from` is as long as two vectors, whatever its alignment.
    unsafe { [_mm512_loadu_si512(pointer), _mm512_loadu_si512(pointer.add(1))] }
}

#[target_feature(enable = "avx512f")]
fn store<T: Copy, const COUNT: usize>(to: &mut [T; COUNT], [low, high]: [__m512i; 2]) {
    const { assert!(size_of::<[T; COUNT]>() == 128) }
    let pointer = to.as_mut_ptr().cast::<__m512i>();
    // SAFETY: `to` is as long as two vectors, whatever its alignment, and of integers, which may have any bits.
    unsafe {
        _mm512_storeu_si512(pointer, low);
        _mm512_storeu_si512(pointer.add(1), high);
    }
}
