//! Damaged and forged input: no panic, nothing written beyond the output, and either a full cluster or a typed error.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_codec::{CodecError, Compression, Decoder, Encoder};
use support::{Rng, samples};

const CLUSTER: usize = 16_384;
const MUTATIONS: usize = 10_000;
const GUARD: usize = 64;

/// A decoder's verdict, after making sure that it stayed within the output.
fn decode(decoder: &mut Decoder, compression: Compression, input: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut guarded = vec![0x5A; CLUSTER + 2 * GUARD];
    let result = decoder.decode(compression, input, &mut guarded[GUARD..GUARD + CLUSTER]);
    assert!(
        guarded[..GUARD]
            .iter()
            .chain(&guarded[GUARD + CLUSTER..])
            .all(|&byte| byte == 0x5A)
    );
    result.map(|()| guarded[GUARD..GUARD + CLUSTER].to_vec())
}

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(bytes.len());
        match rng.below(6) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at] = rng.byte(),
            3 => bytes.insert(at, rng.byte()),
            4 if bytes.len() > 1 => drop(bytes.remove(at)),
            _ => {
                let end = (at + 1 + rng.below(40)).min(bytes.len());
                for byte in &mut bytes[at..end] {
                    *byte = rng.byte();
                }
            }
        }
    }
}

/// Mutates, decodes with both decoders, and returns how many inputs the memory-safe one took, and how many the fast one
/// took alone.
fn attack(compression: Compression, seeds: &[Vec<u8>]) -> [usize; 2] {
    let mut rng = Rng(30);
    let (mut fast, mut safe) = (Decoder::new(), Decoder::memory_safe());
    let (mut taken, mut fast_alone) = (0, 0);
    for round in 0..MUTATIONS {
        let mut input = seeds[round % seeds.len()].clone();
        mutate(&mut rng, &mut input);
        match (
            decode(&mut fast, compression, &input),
            decode(&mut safe, compression, &input),
        ) {
            (Ok(fast), Ok(safe)) => {
                assert!(fast == safe, "{compression} {round}: other bytes");
                taken += 1;
            }
            (Ok(_), Err(_)) => fast_alone += 1,
            (Err(error), Ok(_)) => panic!("{compression} {round}: {error}"),
            (Err(_), Err(_)) => {}
        }
    }
    // The decoders themselves have not suffered.
    let good = &seeds[0];
    assert!(decode(&mut fast, compression, good) == decode(&mut Decoder::new(), compression, good));
    assert!(decode(&mut fast, compression, good).is_ok());
    [taken, fast_alone]
}

fn seeds(compression: Compression) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(compression, None).unwrap();
    samples(CLUSTER, 31)
        .iter()
        .filter_map(|(_, input)| encoder.encode(input, CLUSTER).unwrap().map(<[u8]>::to_vec))
        .collect()
}

#[test]
fn mutated_deflate_is_decoded_or_refused() {
    let [taken, fast_alone] = attack(Compression::Deflate, &seeds(Compression::Deflate));
    assert!((100..MUTATIONS).contains(&taken), "{taken} of {MUTATIONS} taken");
    // Streams with one of the two length symbols that must not occur: libdeflate reads them as length 258.
    assert!(
        fast_alone < MUTATIONS / 1000,
        "{fast_alone} taken by the fast one alone"
    );
}

#[test]
fn mutated_zstd_is_decoded_or_refused() {
    let [taken, fast_alone] = attack(Compression::Zstd, &seeds(Compression::Zstd));
    assert!((100..MUTATIONS).contains(&taken), "{taken} of {MUTATIONS} taken");
    assert_eq!(fast_alone, 0);
}

#[test]
fn mutated_zstd_with_a_checksum_is_the_cluster_or_refused() {
    let input = samples(CLUSTER, 32).remove(3).1;
    let mut context = zstd_safe::CCtx::create();
    context
        .set_parameter(zstd_safe::CParameter::ChecksumFlag(true))
        .unwrap();
    let mut frame = vec![0; 2 * CLUSTER];
    let len = context.compress2(frame.as_mut_slice(), &input).unwrap();
    frame.truncate(len);
    let (mut rng, mut decoder, mut refused) = (Rng(33), Decoder::new(), 0);
    for _ in 0..MUTATIONS {
        let mut bytes = frame.clone();
        mutate(&mut rng, &mut bytes);
        match decode(&mut decoder, Compression::Zstd, &bytes) {
            Ok(output) => assert!(output == input, "damaged data passed its checksum"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > MUTATIONS / 2);
}

#[test]
fn mutated_lz4_is_decoded_or_refused() {
    let [taken, fast_alone] = attack(Compression::Lz4, &seeds(Compression::Lz4));
    assert!((100..MUTATIONS).contains(&taken), "{taken} of {MUTATIONS} taken");
    assert_eq!(fast_alone, 0);
}

#[test]
fn noise_is_decoded_or_refused() {
    let mut rng = Rng(34);
    for compression in [Compression::Deflate, Compression::Zstd, Compression::Lz4] {
        let (mut fast, mut safe) = (Decoder::new(), Decoder::memory_safe());
        for _ in 0..MUTATIONS {
            let len = rng.below(600);
            let mut input = rng.bytes(len);
            if compression == Compression::Zstd {
                input.splice(0..0, [0x28, 0xB5, 0x2F, 0xFD]);
            }
            let fast = decode(&mut fast, compression, &input);
            assert_eq!(fast.is_ok(), decode(&mut safe, compression, &input).is_ok());
        }
    }
}

#[test]
fn every_cut_of_a_cluster_is_an_error() {
    for compression in [Compression::Deflate, Compression::Zstd, Compression::Lz4] {
        let input = samples(CLUSTER, 35).remove(3).1;
        let whole = Encoder::new(compression, None)
            .unwrap()
            .encode(&input, CLUSTER)
            .unwrap()
            .unwrap()
            .to_vec();
        let mut decoder = Decoder::new();
        // The last bytes of a deflate stream are its end mark, and QEMU does without.
        let needed = whole.len() - if compression == Compression::Deflate { 4 } else { 0 };
        for len in 0..needed {
            assert!(
                decode(&mut decoder, compression, &whole[..len]).is_err(),
                "{compression} {len} of {}",
                whole.len()
            );
        }
        assert!(decode(&mut decoder, compression, &whole).is_ok());
    }
}

/// A few KiB that would become 256 MiB: what comes out is one cluster, or nothing, and at once.
#[test]
fn bombs_are_bounded_by_the_output() {
    let zeros = vec![0; 256 << 20];
    let mut output = vec![1; CLUSTER];
    let bomb = miniz_oxide::deflate::compress_to_vec(&zeros, 1);
    for mut decoder in [Decoder::new(), Decoder::memory_safe()] {
        decoder.decode(Compression::Deflate, &bomb, &mut output).unwrap();
        assert!(output.iter().all(|&byte| byte == 0));
    }
    for compression in [Compression::Zstd, Compression::Lz4] {
        let bomb = Encoder::new(compression, None)
            .unwrap()
            .encode(&zeros, zeros.len())
            .unwrap()
            .unwrap()
            .to_vec();
        assert!(bomb.len() < zeros.len() / 200);
        assert_eq!(
            Decoder::new().decode(compression, &bomb, &mut output),
            Err(CodecError::Long {
                compression,
                wanted: CLUSTER
            })
        );
    }
}

#[test]
fn an_lz4_length_beyond_the_input_is_an_error() {
    let mut decoder = Decoder::new();
    for length in [1_u32, 5, 512, 65_536, u32::MAX] {
        assert!(matches!(
            decode(&mut decoder, Compression::Lz4, &length.to_be_bytes()),
            Err(CodecError::Corrupt {
                compression: Compression::Lz4,
                ..
            })
        ));
    }
}
