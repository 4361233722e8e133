//! Prints how fast one thread encrypts, decrypts and derives keys. That decrypting gives back what was encrypted is asserted before anything is timed.
//!
//! `cargo run --release -p qcow2-codec --example crypt_speed [-- CIPHER]`
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "an example may stop at the first surprise, and prints for people"
)]

use std::time::Instant;

use qcow2_codec::crypt::{CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvGenerator, SectorCipher, pbkdf2};

/// The best of so many runs is printed: short ones, of which some are not interrupted.
const ROUNDS: usize = 100;
/// Bytes of one run of a fast cipher.
const RUN: usize = 8 << 20;

/// The shortest of some runs, in seconds.
fn best(rounds: usize, mut run: impl FnMut()) -> f64 {
    (0..rounds).fold(f64::INFINITY, |least, _| {
        let begin = Instant::now();
        run();
        least.min(begin.elapsed().as_secs_f64())
    })
}

fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    println!("{:<26}{:>10}{:>16}{:>16}", "", "a call", "encrypt GB/s", "decrypt GB/s");
    for algorithm in CipherAlgorithm::ALL {
        for mode in [CipherMode::Xts, CipherMode::Cbc, CipherMode::Ecb] {
            let spec = CipherSpec {
                algorithm,
                mode,
                iv: IvGenerator::Plain64,
            };
            let name = format!("{} {}", algorithm.name(), mode.name());
            if spec.check().is_ok() && name.contains(&only) {
                sectors(&spec, &name);
            }
        }
    }
    for hash in HashAlgorithm::ALL {
        let name = format!("pbkdf2 {}", hash.name());
        if !name.contains(&only) {
            continue;
        }
        let count = 200_000;
        let mut out = vec![0; hash.digest_len()];
        // Below the number from which threads share the work: there is one block.
        let seconds = best(3, || {
            pbkdf2(hash, b"password", &[7; 32], count, &mut out, &|| true).unwrap()
        });
        println!(
            "{name:<26}{:>26.2} million iterations/s",
            f64::from(count) / seconds / 1e6
        );
    }
}

fn sectors(spec: &CipherSpec, name: &str) {
    let key: Vec<u8> = (1..).take(spec.key_len()).collect();
    let cipher = SectorCipher::new(spec, &key).unwrap();
    let slow = !name.starts_with("aes");
    let sizes: &[usize] = if slow { &[65536] } else { &[512, 4096, 65536, 2 << 20] };
    for &size in sizes {
        let plain: Vec<u8> = (0..=250).cycle().take(size).collect();
        let mut bytes = plain.clone();
        cipher.encrypt(3, &mut bytes).unwrap();
        assert!(bytes != plain, "{name} encrypts");
        cipher.decrypt(3, &mut bytes).unwrap();
        assert!(bytes == plain, "{name} decrypts");
        let (run, rounds) = if slow { (RUN / 32, 5) } else { (RUN, ROUNDS) };
        let calls = run / size;
        let rate = |seconds: f64| run as f64 / seconds / 1e9;
        let encrypt = rate(best(rounds, || {
            (0..calls).for_each(|_| cipher.encrypt(3, &mut bytes).unwrap())
        }));
        let decrypt = rate(best(rounds, || {
            (0..calls).for_each(|_| cipher.decrypt(3, &mut bytes).unwrap())
        }));
        println!("{name:<26}{size:>10}{encrypt:>16.3}{decrypt:>16.3}");
    }
}
