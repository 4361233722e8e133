//! Odd compressed clusters, judged by qemu-img and by us: the same bytes, or both refuse.
//!
//! Every case is put into an image of one cluster, which qemu-img converts to raw.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use qcow2_codec::{CodecError, Compression, Decoder, Encoder};
use support::frames::{CHECKSUM, SINGLE_SEGMENT, frame, raw, reserved, run, single, skippable, windowed};
use support::{Rng, blocks, text};

const CLUSTER: usize = 65_536;

/// An image of one 64 KiB cluster, compressed as `payload`.
fn image(compression: Compression, payload: &[u8]) -> Vec<u8> {
    const L1: u64 = 3 * 65_536;
    const L2: u64 = 4 * 65_536;
    const DATA: u64 = 5 * 65_536;
    let zstd = compression == Compression::Zstd;
    let mut file = vec![0; 5 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &65_536_u64.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &L1.to_be_bytes());
    put(48, &65_536_u64.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(72, &u64::from(u8::from(zstd) << 3).to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &112_u32.to_be_bytes());
    put(104, &[u8::from(zstd)]);
    put(65_536, &(2_u64 * 65_536).to_be_bytes());
    for cluster in 0..8 {
        put(2 * 65_536 + 2 * cluster, &1_u16.to_be_bytes());
    }
    put(3 * 65_536, &(1 << 63 | L2).to_be_bytes());
    let sectors = u64::try_from(payload.len().div_ceil(512) - 1).unwrap();
    assert!(sectors < 256, "the payload does not fit a descriptor");
    put(4 * 65_536, &(1 << 62 | sectors << 54 | DATA).to_be_bytes());
    file.extend_from_slice(payload);
    file.resize(8 * CLUSTER, 0);
    file
}

/// What qemu-img makes of it; `None` if it refuses.
fn qemu(folder: &Path, compression: Compression, payload: &[u8]) -> Option<Vec<u8>> {
    let (source, target) = (folder.join("case.qcow2"), folder.join("case.raw"));
    std::fs::write(&source, image(compression, payload)).unwrap();
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([&source, &target])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success().then(|| std::fs::read(&target).unwrap())
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-img")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !found {
        eprintln!("skipped: no qemu-img here");
    }
    found
}

/// What stands in the sectors after the payload, within the length the descriptor gives: not zeros.
fn padded(payload: &[u8]) -> Vec<u8> {
    to_sector(payload.to_vec(), &[0xC7])
}

/// The payload with `filler`, over and over, up to the end of its sector.
fn to_sector(mut payload: Vec<u8>, filler: &[u8]) -> Vec<u8> {
    let missing = payload.len().next_multiple_of(512) - payload.len();
    payload.extend(filler.iter().copied().cycle().take(missing));
    payload
}

/// A name, a payload, and the cluster it must become, or `None` if it must be refused.
type Case<'a> = (&'a str, Vec<u8>, Option<&'a [u8]>);

/// Runs every case through qemu-img and both our decoders, and compares with the verdict it comes with.
fn judge(compression: Compression, cases: &[Case<'_>]) {
    let folder = std::env::temp_dir().join(format!("qcow2-codec-{compression}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let qemu_here = has_qemu();
    let mut wrong = Vec::new();
    for (name, payload, expected) in cases {
        let payload = padded(payload);
        if qemu_here && qemu(&folder, compression, &payload).as_deref() != *expected {
            wrong.push(format!("qemu-img: {name}"));
        }
        for mut decoder in [Decoder::new(), Decoder::memory_safe()] {
            let mut output = vec![0; CLUSTER];
            let result = decoder.decode(compression, &payload, &mut output);
            if result.clone().ok().map(|()| output.as_slice()) != *expected {
                wrong.push(format!("ours: {name}: {result:?}"));
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Compressible, and longer than a cluster.
fn data() -> Vec<u8> {
    text(&mut Rng(20), CLUSTER + 3000)
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    Encoder::new(Compression::Deflate, None)
        .unwrap()
        .encode(bytes, 2 * CLUSTER)
        .unwrap()
        .unwrap()
        .to_vec()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    Encoder::new(Compression::Zstd, None)
        .unwrap()
        .encode(bytes, 2 * CLUSTER)
        .unwrap()
        .unwrap()
        .to_vec()
}

/// One part deflated, flushed to a byte border but not ended.
fn unended(bytes: &[u8]) -> Vec<u8> {
    let mut state = flate2::Compress::new_with_window_bits(flate2::Compression::new(6), false, 12);
    let mut out = Vec::with_capacity(2 * CLUSTER);
    state
        .compress_vec(bytes, &mut out, flate2::FlushCompress::Sync)
        .unwrap();
    out
}

#[test]
fn deflate_clusters() {
    let data = data();
    let whole = &data[..CLUSTER];
    let yes = Some(whole);
    let with = |mut stream: Vec<u8>, tail: &[u8]| {
        stream.extend_from_slice(tail);
        stream
    };
    judge(
        Compression::Deflate,
        &[
            ("an ordinary stream", deflate(whole), yes),
            ("bytes after the end", with(deflate(whole), &[0xFF; 700]), yes),
            ("a stream that goes on by 1 byte", deflate(&data[..=CLUSTER]), yes),
            ("a stream that goes on by 3000 bytes", deflate(&data), yes),
            (
                "no end mark, empty blocks to the end of the sector",
                to_sector(unended(whole), &[0, 0, 0, 0xFF, 0xFF]),
                yes,
            ),
            (
                "no end mark, zeros to the end of the sector",
                to_sector(unended(whole), &[0]),
                None,
            ),
            ("no end mark, garbage to the end of the sector", unended(whole), None),
            (
                "no end mark, the next block half begun",
                to_sector(unended(whole), &deflate(&data)),
                yes,
            ),
            ("full, then a block of no type", with(unended(whole), &[0x07]), None),
            (
                "full, then a broken stored block",
                with(unended(whole), &[0, 1, 0, 1, 0]),
                None,
            ),
            ("one byte short", deflate(&whole[1..]), None),
            ("half a cluster", deflate(&whole[..CLUSTER / 2]), None),
            ("cut in the middle", deflate(whole)[..9000].to_vec(), None),
            ("an empty stream", deflate(&[]), None),
            (
                "stored blocks in a stream",
                blocks::stream(&whole[..60_000], true),
                None,
            ),
            (
                "a window of 32 KiB",
                miniz_oxide::deflate::compress_to_vec(whole, 6),
                yes,
            ),
            (
                "a zlib wrapper",
                miniz_oxide::deflate::compress_to_vec_zlib(whole, 6),
                None,
            ),
            (
                "a gzip wrapper",
                with(vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3], &deflate(whole)),
                None,
            ),
            ("zeros", vec![0; 4096], None),
            ("ones", vec![0xFF; 4096], None),
        ],
    );
}

#[test]
fn zstd_clusters() {
    let data = data();
    let whole = &data[..CLUSTER];
    let yes = Some(whole);
    let (front, back) = whole.split_at(20_000);
    let join = |parts: &[Vec<u8>]| parts.concat();
    let size = u64::try_from(CLUSTER).unwrap();
    let zeros = vec![0; CLUSTER];
    let fill = Some(zeros.as_slice());
    judge(
        Compression::Zstd,
        &[
            ("an ordinary frame", zstd(whole), yes),
            ("garbage after the frame", join(&[zstd(whole), vec![0xFF; 700]]), yes),
            ("a frame that goes on", zstd(&data), None),
            ("a short frame", zstd(&whole[1..]), None),
            ("a frame cut off", zstd(whole)[..9000].to_vec(), None),
            ("two frames", join(&[zstd(front), zstd(back)]), yes),
            (
                "two frames, the second too long",
                join(&[zstd(front), zstd(&data[20_000..])]),
                None,
            ),
            ("a frame too many", join(&[zstd(whole), zstd(back)]), yes),
            ("a skippable frame first", join(&[skippable(9), zstd(whole)]), yes),
            (
                "a skippable frame between",
                join(&[zstd(front), skippable(0), zstd(back)]),
                yes,
            ),
            ("a skippable frame cut off", skippable(70_000)[..600].to_vec(), None),
            (
                "500 empty frames first",
                join(&[single(0, &[raw(&[], true)]).repeat(500), zstd(whole)]),
                yes,
            ),
            ("a run of zeros", single(size, &[run(0, CLUSTER, true)]), fill),
            (
                "a run without a content size",
                windowed(17, &[run(0, CLUSTER, true)]),
                fill,
            ),
            (
                "a run and an empty last block",
                windowed(17, &[run(0, CLUSTER, false), raw(&[], true)]),
                fill,
            ),
            ("no last block", windowed(17, &[run(0, CLUSTER, false)]), None),
            (
                "a run one byte too long",
                windowed(17, &[run(0, CLUSTER + 1, true)]),
                None,
            ),
            (
                "a run one byte too short",
                windowed(17, &[run(0, CLUSTER - 1, true)]),
                None,
            ),
            ("a block of no type", windowed(17, &[reserved(true)]), None),
            (
                "a size that is not kept",
                single(size, &[run(0, CLUSTER - 1, true)]),
                None,
            ),
            ("a size of 2^60", single(1 << 60, &[run(0, CLUSTER, true)]), None),
            ("a window of 2^27", windowed(27, &[run(0, CLUSTER, true)]), fill),
            ("a window of 2^28", windowed(28, &[run(0, CLUSTER, true)]), None),
            ("a window of 2^41", windowed(41, &[run(0, CLUSTER, true)]), None),
            (
                "a dictionary",
                frame(SINGLE_SEGMENT | 0x81, &[7, 0, 0, 1, 0], &[run(0, CLUSTER, true)]),
                None,
            ),
            (
                "the reserved header bit",
                frame(SINGLE_SEGMENT | 0x88, &[0, 0, 1, 0], &[run(0, CLUSTER, true)]),
                None,
            ),
            (
                "a wrong checksum",
                frame(CHECKSUM, &[7 << 3], &[run(0, CLUSTER, true), vec![1, 2, 3, 4]]),
                None,
            ),
            (
                "no checksum where one is promised",
                frame(CHECKSUM, &[7 << 3], &[run(0, CLUSTER, true)]),
                None,
            ),
            ("no zstd at all", deflate(whole), None),
            ("zeros", vec![0; 4096], None),
        ],
    );
}

#[test]
fn the_reason_is_told() {
    let decode = |compression, payload: &[u8]| Decoder::new().decode(compression, payload, &mut vec![0; CLUSTER]).err();
    let short = |compression, produced| {
        Some(CodecError::Short {
            compression,
            produced,
            wanted: CLUSTER,
        })
    };
    let long = |compression| {
        Some(CodecError::Long {
            compression,
            wanted: CLUSTER,
        })
    };
    let data = data();
    let (zstd_, deflate_) = (Compression::Zstd, Compression::Deflate);
    assert_eq!(
        decode(deflate_, &deflate(&data[1..CLUSTER])),
        short(deflate_, CLUSTER - 1)
    );
    assert_eq!(decode(zstd_, &zstd(&data[1..CLUSTER])), short(zstd_, CLUSTER - 1));
    assert_eq!(
        decode(zstd_, &padded(&zstd(&data[1..CLUSTER]))),
        short(zstd_, CLUSTER - 1)
    );
    assert_eq!(decode(zstd_, &[]), short(zstd_, 0));
    assert_eq!(decode(zstd_, &zstd(&data)), long(zstd_));
    assert_eq!(
        decode(zstd_, &windowed(28, &[])),
        Some(CodecError::Window { log: 28, max: 27 })
    );
    assert_eq!(
        decode(zstd_, &frame(SINGLE_SEGMENT | 1, &[7, 0], &[])),
        Some(CodecError::Dictionary { id: 7 })
    );
    assert_eq!(
        decode(zstd_, &single(0, &[raw(&[], true)]).repeat(5000)),
        Some(CodecError::TooManyFrames { max: 4096 })
    );
    assert_eq!(
        decode(zstd_, &skippable(0).repeat(5000)),
        Some(CodecError::TooManyFrames { max: 4096 })
    );
    assert!(matches!(
        decode(deflate_, &[0xFF; 512]),
        Some(CodecError::Corrupt { .. })
    ));
    assert!(matches!(decode(zstd_, &[0xFF; 512]), Some(CodecError::Corrupt { .. })));
}
