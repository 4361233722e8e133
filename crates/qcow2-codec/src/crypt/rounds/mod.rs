//! The rounds of PBKDF2 on the compression functions themselves. A round hashes one digest twice, from states that hold the key: all that a hash does beside
//! compressing stays the same from round to round, and is done once.

#[cfg(target_arch = "x86_64")]
mod sha_ni;

use sha1::block_api::compress as compress160;
use sha2::block_api::{compress256, compress512};

use super::HashAlgorithm;

/// Rounds between two looks at whether to go on: some milliseconds.
pub(super) const STEP: u32 = 1 << 15;

/// Replaces `digest`, which is what the first round made, by the sum of it and of `count` more rounds, until `go_on` says no. `None` if this hash has no
/// compression function that is in reach. `key` is not longer than a block of the hash.
pub(super) fn rounds(
    hash: HashAlgorithm,
    key: &[u8],
    digest: &mut [u8],
    count: u32,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Option<bool> {
    Some(match hash {
        HashAlgorithm::Sha1 => rounds_160(SHA1, key, digest, count, go_on),
        HashAlgorithm::Sha224 => rounds_256(SHA224, key, digest, count, go_on),
        HashAlgorithm::Sha256 => sha256(key, digest, count, go_on),
        HashAlgorithm::Sha384 => rounds_512(SHA384, key, digest, count, go_on),
        HashAlgorithm::Sha512 => rounds_512(SHA512, key, digest, count, go_on),
        HashAlgorithm::Ripemd160 => return None,
    })
}

/// What LUKS uses unless told otherwise, with the processor's instructions where it has them.
fn sha256(key: &[u8], digest: &mut [u8], count: u32, go_on: &(dyn Fn() -> bool + Sync)) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sha")
        && std::arch::is_x86_feature_detected!("sse4.1")
        && std::arch::is_x86_feature_detected!("ssse3")
    {
        let states = [0x36, 0x5c].map(|pad| keyed_256(SHA256, key, pad));
        let mut words = [0u32; 8];
        for (word, bytes) in words.iter_mut().zip(digest.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        #[allow(unsafe_code, reason = "what is made for newer processors may be called only there")]
        // SAFETY: the processor has what the function needs.
        let whole = unsafe { sha_ni::rounds(states, &mut words, count, go_on) };
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_be_bytes();
        }
        return whole;
    }
    rounds_256(SHA256, key, digest, count, go_on)
}

macro_rules! rounds {
    ($name:ident, $keyed:ident, $word:ty, $words:literal, $block:literal, $compress:ident) => {
        /// The state that has seen the key.
        fn $keyed(initial: [$word; $words], key: &[u8], pad: u8) -> [$word; $words] {
            let mut block = [pad; $block];
            for (byte, key) in block.iter_mut().zip(key) {
                *byte ^= key;
            }
            let mut state = initial;
            $compress(&mut state, &[block]);
            state
        }

        fn $name(
            initial: [$word; $words],
            key: &[u8],
            digest: &mut [u8],
            count: u32,
            go_on: &(dyn Fn() -> bool + Sync),
        ) -> bool {
            let [inner, outer] = [0x36, 0x5c].map(|pad| $keyed(initial, key, pad));
            // The end of a message of a block and a digest: a one, zeros, its length in bits.
            let mut block = [0u8; $block];
            let bits = (($block + digest.len()) as u64) * 8;
            if let Some(end) = block.last_chunk_mut() {
                *end = bits.to_be_bytes();
            }
            for (to, from) in block.iter_mut().zip(digest.iter().chain(&[0x80])) {
                *to = *from;
            }
            const WIDTH: usize = size_of::<$word>();
            let length = digest.len();
            let put = |state: &[$word; $words], block: &mut [u8; $block]| {
                for (to, word) in block
                    .as_chunks_mut::<WIDTH>()
                    .0
                    .iter_mut()
                    .take(length / WIDTH)
                    .zip(state)
                {
                    *to = word.to_be_bytes();
                }
            };
            let mut sum = [0; $words];
            for (sum, bytes) in sum.iter_mut().zip(digest.as_chunks::<WIDTH>().0) {
                *sum = <$word>::from_be_bytes(*bytes);
            }
            let mut left = count;
            let mut whole = true;
            while left > 0 && whole {
                for _ in 0..left.min(STEP) {
                    let mut state = inner;
                    $compress(&mut state, &[block]);
                    put(&state, &mut block);
                    state = outer;
                    $compress(&mut state, &[block]);
                    put(&state, &mut block);
                    for (sum, word) in sum.iter_mut().zip(&state) {
                        *sum ^= word;
                    }
                }
                left = left.saturating_sub(STEP);
                whole = go_on();
            }
            for (to, word) in digest.as_chunks_mut::<WIDTH>().0.iter_mut().zip(&sum) {
                *to = word.to_be_bytes();
            }
            whole
        }
    };
}

rounds!(rounds_160, keyed_160, u32, 5, 64, compress160);
rounds!(rounds_256, keyed_256, u32, 8, 64, compress256);
rounds!(rounds_512, keyed_512, u64, 8, 128, compress512);

// What a hash begins with: FIPS 180-4, section 5.3.
const SHA1: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
const SHA224: [u32; 8] = [
    0xc105_9ed8,
    0x367c_d507,
    0x3070_dd17,
    0xf70e_5939,
    0xffc0_0b31,
    0x6858_1511,
    0x64f9_8fa7,
    0xbefa_4fa4,
];
const SHA256: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
const SHA384: [u64; 8] = [
    0xcbbb_9d5d_c105_9ed8,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa4,
];
const SHA512: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

#[cfg(test)]
mod tests {
    use super::{SHA256, rounds_256, sha256};

    #[test]
    fn whatever_the_processor_has_the_rounds_are_the_same() {
        // Miri is slow.
        let longest = if cfg!(miri) { 5 } else { 40_000 };
        for count in [0, 1, 2, longest] {
            let (mut here, mut anywhere) = ([0xa5; 32], [0xa5; 32]);
            assert!(sha256(b"key", &mut here, count, &|| true));
            assert!(rounds_256(SHA256, b"key", &mut anywhere, count, &|| true));
            assert_eq!(here, anywhere, "{count} rounds");
        }
        let mut out = [1; 32];
        assert!(!sha256(b"key", &mut out, 5, &|| false));
    }
}
