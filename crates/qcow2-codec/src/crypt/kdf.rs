//! PBKDF2 (RFC 8018, section 5.2) that can be stopped.

use hmac::digest::OutputSizeUser;
use hmac::digest::typenum::Unsigned;
use hmac::{Hmac, KeyInit, Mac};
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::{Zeroize, Zeroizing};

use super::rounds::{STEP, rounds};
use super::stack::{DEEP, wiped};
use super::{CryptError, HashAlgorithm};

/// From here on the blocks of the output are worth a thread each.
const THREADS_FROM: u32 = 1 << 13;

/// Fills `out` with the key that `iterations` rounds make of a password, until `go_on` says no. The blocks of a key that is longer than a digest do not
/// depend on each other: they are derived at once, each on a thread of its own.
///
/// # Errors
/// [`CryptError::Stopped`] some milliseconds after `go_on` says no; `out` is wiped then.
pub fn pbkdf2(
    hash: HashAlgorithm,
    password: &[u8],
    salt: &[u8],
    iterations: u32,
    out: &mut [u8],
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<(), CryptError> {
    let mut short = Zeroizing::new([0; 64]);
    let job = Job {
        hash,
        key: short_key(hash, password, &mut short),
        password,
        salt,
        iterations,
        go_on,
    };
    let done = wiped::<DEEP, _>(|| match hash {
        HashAlgorithm::Sha1 => job.run::<Hmac<Sha1>>(out),
        HashAlgorithm::Sha224 => job.run::<Hmac<Sha224>>(out),
        HashAlgorithm::Sha256 => job.run::<Hmac<Sha256>>(out),
        HashAlgorithm::Sha384 => job.run::<Hmac<Sha384>>(out),
        HashAlgorithm::Sha512 => job.run::<Hmac<Sha512>>(out),
        HashAlgorithm::Ripemd160 => job.run::<Hmac<Ripemd160>>(out),
    });
    if done {
        return Ok(());
    }
    out.zeroize();
    Err(CryptError::Stopped)
}

fn short_key<'a>(hash: HashAlgorithm, password: &'a [u8], short: &'a mut [u8; 64]) -> &'a [u8] {
    if password.len() <= hash.block_len() {
        return password;
    }
    wiped::<DEEP, _>(|| hash.digest(&[password], short));
    short.get(..hash.digest_len()).unwrap_or_default()
}

struct Job<'a> {
    hash: HashAlgorithm,
    /// The password as HMAC takes it: where it is longer than a block of the hash, its digest.
    key: &'a [u8],
    password: &'a [u8],
    salt: &'a [u8],
    iterations: u32,
    go_on: &'a (dyn Fn() -> bool + Sync),
}

impl Job<'_> {
    fn run<M: Mac + KeyInit + OutputSizeUser + Clone + Sync>(&self, out: &mut [u8]) -> bool {
        // A key of any length is one for HMAC.
        let Ok(mac) = <M as KeyInit>::new_from_slice(self.password) else {
            return false;
        };
        let mut blocks = (1u32..).zip(out.chunks_mut(M::OutputSize::USIZE));
        if self.iterations < THREADS_FROM {
            return blocks.all(|(number, block)| self.block(&mac, number, block));
        }
        std::thread::scope(|scope| {
            let first = blocks.next();
            let others: Vec<_> = blocks
                .map(|(number, block)| {
                    let mac = &mac;
                    scope.spawn(move || wiped::<DEEP, _>(|| self.block(mac, number, block)))
                })
                .collect();
            let mut whole = first.is_none_or(|(number, block)| self.block(&mac, number, block));
            for other in others {
                whole &= other.join().unwrap_or(false);
            }
            whole
        })
    }

    fn block<M: Mac + Clone>(&self, mac: &M, number: u32, out: &mut [u8]) -> bool {
        let mut round = mac
            .clone()
            .chain_update(self.salt)
            .chain_update(number.to_be_bytes())
            .finalize()
            .into_bytes();
        let more = self.iterations.saturating_sub(1);
        let done = rounds(self.hash, self.key, &mut round, more, self.go_on);
        let mut sum = round.clone();
        let mut left = if done.is_some() { 0 } else { more };
        let mut whole = done.unwrap_or(true);
        while left > 0 && whole {
            for _ in 0..left.min(STEP) {
                round = mac.clone().chain_update(&round).finalize().into_bytes();
                for (sum, byte) in sum.iter_mut().zip(&round) {
                    *sum ^= byte;
                }
            }
            left = left.saturating_sub(STEP);
            whole = (self.go_on)();
        }
        for (to, from) in out.iter_mut().zip(&sum) {
            *to = *from;
        }
        round.as_mut_slice().zeroize();
        sum.as_mut_slice().zeroize();
        whole
    }
}
