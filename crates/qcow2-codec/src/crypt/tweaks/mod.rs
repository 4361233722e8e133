//! The tweaks of XTS (IEEE 1619, 5.2), and mixing them in.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::SECTOR;

/// Blocks of a sector.
const BLOCKS: usize = SECTOR / 16;

/// All tweaks of a sector.
pub(super) type Tweaks = [u128; BLOCKS];

/// Makes the tweaks of a sector from its encrypted number, and mixes them in.
#[inline]
pub(super) fn begin(number: [u8; 16], tweaks: &mut Tweaks, sector: &mut [u8; SECTOR]) {
    let number = u128::from_le_bytes(number);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code, reason = "what is made for newer processors may be called only there")]
        // SAFETY: the processor has what the function needs.
        return unsafe { avx512::begin(number, tweaks, sector) };
    }
    begin_anywhere(number, tweaks, sector);
}

#[inline]
fn begin_anywhere(number: u128, tweaks: &mut Tweaks, sector: &mut [u8; SECTOR]) {
    let mut tweak = number;
    for place in &mut *tweaks {
        *place = tweak;
        tweak = double(tweak);
    }
    finish(tweaks, sector);
}

/// Mixes in the tweaks that [`begin`] made.
#[inline]
pub(super) fn finish(tweaks: &Tweaks, sector: &mut [u8; SECTOR]) {
    for (block, tweak) in sector.as_chunks_mut::<16>().0.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

/// Each tweak is the one before times x, in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1.
#[inline(always)]
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ (0u128.wrapping_sub(tweak >> 127) & 0x87)
}

#[cfg(test)]
mod tests {
    use super::{BLOCKS, SECTOR, begin, begin_anywhere, finish};

    #[test]
    fn whatever_the_processor_has_the_tweaks_are_the_same() {
        for number in [1, 1 << 127, u128::MAX, 0x87, 0x0123_4567_89ab_cdef_0011_2233_4455_6677] {
            let (mut here, mut anywhere) = ([0; BLOCKS], [0; BLOCKS]);
            let (mut sector, mut same) = ([0x5a; SECTOR], [0x5a; SECTOR]);
            begin(u128::to_le_bytes(number), &mut here, &mut sector);
            begin_anywhere(number, &mut anywhere, &mut same);
            assert_eq!((here, sector), (anywhere, same));
            finish(&here, &mut sector);
            assert_eq!(sector, [0x5a; SECTOR]);
        }
    }
}
