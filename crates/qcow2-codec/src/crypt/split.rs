//! The anti-forensic split of LUKS: a key spread over stripes, of which each one lost loses it.

use zeroize::Zeroizing;

use super::stack::{DEEP, wiped};
use super::{CryptError, HashAlgorithm, random};

/// Spreads `key` over `out`, which is a whole number of keys long.
///
/// # Errors
/// [`CryptError::Random`].
pub fn split(hash: HashAlgorithm, key: &[u8], out: &mut [u8]) -> Result<(), CryptError> {
    let length = key.len().max(1);
    let last = out.len().saturating_sub(length);
    let (stripes, last) = out.split_at_mut(last);
    random(stripes)?;
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    wiped::<DEEP, _>(|| {
        for stripe in stripes.chunks_exact(length) {
            mix(hash, &mut sum, stripe);
        }
    });
    for ((to, key), sum) in last.iter_mut().zip(key).zip(sum.iter()) {
        *to = key ^ sum;
    }
    Ok(())
}

/// The key that [`split`] spread over `stripes`; as long as `key`.
pub fn merge(hash: HashAlgorithm, stripes: &[u8], key: &mut [u8]) {
    let length = key.len().max(1);
    let (stripes, last) = stripes.split_at(stripes.len().saturating_sub(length));
    key.fill(0);
    wiped::<DEEP, _>(|| {
        for stripe in stripes.chunks_exact(length) {
            mix(hash, key, stripe);
        }
    });
    for (key, last) in key.iter_mut().zip(last) {
        *key ^= last;
    }
}

/// Adds a stripe and diffuses the sum.
fn mix(hash: HashAlgorithm, sum: &mut [u8], stripe: &[u8]) {
    for (sum, byte) in sum.iter_mut().zip(stripe) {
        *sum ^= byte;
    }
    let mut before = Zeroizing::new([0u8; 64]);
    for (number, part) in (0u32..).zip(sum.chunks_mut(hash.digest_len())) {
        let Some(before) = before.get_mut(..part.len()) else {
            return;
        };
        before.copy_from_slice(part);
        hash.digest(&[&number.to_be_bytes(), before], part);
    }
}
