//! Streams whose bytes follow from the specifications alone, worked out by hand.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_codec::{CodecError, Compression, Decoder, Encoder};
use support::frames::{CHECKSUM, SINGLE_SEGMENT, frame, raw};

fn decode(compression: Compression, input: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let mut output = vec![0; len];
    let fast = Decoder::new()
        .decode(compression, input, &mut output)
        .map(|()| output.clone());
    let safe = Decoder::memory_safe()
        .decode(compression, input, &mut output)
        .map(|()| output);
    assert_eq!(fast, safe);
    fast
}

/// RFC 1951, 3.2.6: "hello" in the fixed code.
#[test]
fn a_fixed_deflate_block() {
    assert_eq!(
        decode(Compression::Deflate, &[0xCB, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00], 5).unwrap(),
        b"hello"
    );
}

/// RFC 1951, 3.2.4.
#[test]
fn a_stored_deflate_block() {
    assert_eq!(
        decode(Compression::Deflate, &support::blocks::stored(b"stored", true), 6).unwrap(),
        b"stored"
    );
}

/// RFC 8878, 3.1.1: raw blocks, run blocks, and the checksum: the low half of XXH64, whose value of nothing at all is
/// ef46db3751d8e999.
#[test]
fn zstd_blocks_and_checksum() {
    let mut input = frame(SINGLE_SEGMENT | CHECKSUM, &[0], &[raw(&[], true)]);
    input.extend([0x99, 0xE9, 0xD8, 0x51]);
    input.extend(frame(
        SINGLE_SEGMENT,
        &[8],
        &[raw(b"zstd", false), support::frames::run(b'!', 4, true)],
    ));
    assert_eq!(decode(Compression::Zstd, &input, 8).unwrap(), b"zstd!!!!");
    input[9] ^= 1;
    assert!(matches!(
        decode(Compression::Zstd, &input, 8),
        Err(CodecError::Corrupt { .. })
    ));
}

/// What QEMU writes for a 64 KiB cluster: one segment, content size in two bytes (descriptor 0x60), no checksum.
#[test]
fn our_zstd_frames_look_like_qemus() {
    for (size, head) in [
        (65_536_usize, vec![0x28, 0xB5, 0x2F, 0xFD, 0x60, 0x00, 0xFF]),
        (4096, vec![0x28, 0xB5, 0x2F, 0xFD, 0x60, 0x00, 0x0F]),
        (2 << 20, vec![0x28, 0xB5, 0x2F, 0xFD, 0xA0, 0x00, 0x00, 0x20, 0x00]),
    ] {
        let mut encoder = Encoder::new(Compression::Zstd, None).unwrap();
        let input = vec![0; size];
        assert_eq!(encoder.encode(&input, size).unwrap().unwrap()[..head.len()], head);
    }
}

/// The vector of `docs/lz4.md`: it decodes, and each of the changes listed there makes it an error.
#[test]
fn the_lz4_vector_of_the_documentation() {
    let cluster: Vec<u8> = b"qcow2 ".iter().copied().cycle().take(512).collect();
    let mut payload = vec![0, 0, 0, 0x11, 0x6F];
    payload.extend(b"qcow2 ");
    payload.extend([0x06, 0x00, 0xFF, 0xE3, 0x50]);
    payload.extend(b"w2 qc");
    assert_eq!(payload.len(), 21);
    payload.resize(512, 0);
    assert_eq!(decode(Compression::Lz4, &payload, 512).unwrap(), cluster);
    for (at, to) in [
        (3, 0x10),
        (3, 0x12),
        (2, 0xFF),
        (11, 0x00),
        (11, 0x07),
        (14, 0xE2),
        (14, 0xE4),
    ] {
        let mut changed = payload.clone();
        changed[at] = to;
        assert!(
            decode(Compression::Lz4, &changed, 512).is_err(),
            "byte {at} made {to:#x}"
        );
    }
    let ours = Encoder::new(Compression::Lz4, None)
        .unwrap()
        .encode(&cluster, 512)
        .unwrap()
        .unwrap()
        .to_vec();
    assert_eq!(decode(Compression::Lz4, &ours, 512).unwrap(), cluster);
}

/// An LZ4 match may not reach before the data, nor have distance 0; a block may not hold more or less than the cluster.
#[test]
fn broken_lz4_blocks() {
    let block = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let lz4 = Compression::Lz4;
    assert_eq!(decode(lz4, &block(b"\x40abcd"), 4).unwrap(), b"abcd");
    assert_eq!(
        decode(lz4, &block(b"\x40abcd"), 5),
        Err(CodecError::Short {
            compression: lz4,
            produced: 4,
            wanted: 5
        })
    );
    assert_eq!(
        decode(lz4, &block(b"\x40abcd"), 3),
        Err(CodecError::Long {
            compression: lz4,
            wanted: 3
        })
    );
    for bytes in [
        &b""[..],
        b"\x41abcd\x00\x00\x50abcde",
        b"\x41abcd\x05\x00\x50abcde",
        b"\x50abcd",
        b"\x41abcd\x01",
    ] {
        assert!(
            matches!(decode(lz4, &block(bytes), 14), Err(CodecError::Corrupt { .. })),
            "{bytes:?}"
        );
    }
}
