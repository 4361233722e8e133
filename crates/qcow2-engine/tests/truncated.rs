//! Images that end too early: an error or the right bytes, never zeros for what is missing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_engine::{CancelToken, DigestAlgorithm, DigestOptions, Error, JobContext, digest};
use qcow2_format::GuestOffset;
use support::bytes::{Bytes, expected};
use support::{Folder, assert_same, chain, qemu_img, qemu_io, read_all};

#[test]
fn an_image_cut_at_any_byte_is_an_error_or_the_right_bytes() {
    let image = Bytes::new("cluster_size=512");
    let whole = expected();
    let mut errors = 0;
    let mut bytes = vec![0; 1 << 20];
    for length in (0..4096).chain((4096..image.0.len()).step_by(509)) {
        let cut = Bytes(image.0[..length].to_vec());
        match cut.chain().and_then(|chain| chain.read(GuestOffset(0), &mut bytes)) {
            Ok(count) => {
                // Only the last cluster of the file may end as zeros.
                let other: Vec<_> = (0..count).filter(|&at| bytes[at] != whole[at]).collect();
                let zeros = other.iter().all(|&at| bytes[at] == 0);
                assert!(count == 1 << 20 && zeros && other.len() < 512, "cut at {length}");
            }
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 4000);
    assert_same(&read_all(&image.chain().unwrap()), &whole, "whole");
}

#[test]
fn the_last_cluster_may_be_there_in_part_and_goes_on_as_zeros() {
    let image = Bytes::new("");
    let last = image.get64(image.l2() + 24) & 0x00ff_ffff_ffff_fe00;
    assert_eq!(
        image.0.len() as u64,
        last + (64 << 10),
        "the fourth cluster is the last of the file"
    );
    let cut = Bytes(image.0[..last as usize + 1000].to_vec());
    let mut whole = expected();
    whole[(192 << 10) + 1000..256 << 10].fill(0);
    assert_same(&read_all(&cut.chain().unwrap()), &whole, "part of the last cluster");
    let error = Bytes(image.0[..last as usize].to_vec()).unreadable(192 << 10, "TRUNCATED");
    assert_eq!(error.offset(), Some(last));
    // Asked for from its middle, it is missing all the same.
    Bytes(image.0[..last as usize].to_vec()).unreadable((192 << 10) + 5000, "TRUNCATED");
    // Asked for behind what is there of it, it is zeros.
    let mut bytes = [1; 512];
    cut.chain()
        .unwrap()
        .read(GuestOffset((192 << 10) + 4096), &mut bytes)
        .unwrap();
    assert_eq!(bytes, [0; 512]);
}

#[test]
fn a_compressed_cluster_may_end_in_its_last_sector_but_not_before() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    std::fs::write(folder.path("noise"), support_noise(65536)).unwrap();
    qemu_io(
        &folder,
        "a.qcow2",
        &[format!("write -c -s {} 0 64k", folder.path("noise").display())],
    );
    let image = Bytes(std::fs::read(folder.path("a.qcow2")).unwrap());
    let entry = image.get64(image.l2());
    assert_ne!(entry & 1 << 62, 0, "the cluster is compressed");
    let (offset, sectors) = (entry & ((1 << 54) - 1), (entry >> 54 & 0xff) as usize + 1);
    let mut whole = vec![0; 1 << 20];
    whole[..65536].copy_from_slice(&support_noise(65536));
    let last_sector = offset as usize / 512 * 512 + (sectors - 1) * 512;
    // As long as it needs: qemu writes no more of the last sector.
    assert_same(&read_all(&image.chain().unwrap()), &whole, "as qemu wrote it");
    let mut longer = image.clone();
    longer.0.resize(last_sector + 4096, 0xff);
    assert_same(&read_all(&longer.chain().unwrap()), &whole, "garbage behind it");
    Bytes(image.0[..last_sector].to_vec()).unreadable(0, "TRUNCATED");
    Bytes(image.0[..offset as usize].to_vec()).unreadable(0, "TRUNCATED");
    // Its bytes changed: an error with the guest's offset, never other bytes without one.
    let mut broken = image.clone();
    broken.0[offset as usize..offset as usize + 64].fill(0xff);
    let error = broken.unreadable(8192, "DECOMPRESS");
    assert!(matches!(
        error,
        Error::Decompress {
            guest: GuestOffset(0),
            ..
        }
    ));
}

/// A sparse image whose clusters were reserved was looked through for holes: what its tables named behind the end of the file was taken for one, and was
/// copied as zeros.
#[test]
fn what_is_missing_of_a_reserved_image_is_no_hole() {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "preallocation=metadata",
            "a.qcow2",
            "64M",
        ],
    );
    qemu_io(
        &folder,
        "a.qcow2",
        &["write -P 7 0 4M".to_owned(), "write -P 7 40M 4M".to_owned()],
    );
    let whole = chain(&folder, "a.qcow2");
    let survey = whole.survey(u64::MAX, &CancelToken::new()).unwrap();
    assert_eq!(
        (survey.complete, survey.missing, survey.compressed),
        (true, None, false)
    );
    assert!(!whole.survey(0, &CancelToken::new()).unwrap().complete);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.path("a.qcow2"))
        .unwrap();
    file.set_len(30 << 20).unwrap();
    let cut = chain(&folder, "a.qcow2");
    let place = cut.survey(u64::MAX, &CancelToken::new()).unwrap().missing.unwrap();
    assert!(place.0.0 < 40 << 20 && place.1.0 >= 30 << 20, "{place:?}");
    let runs = cut.status(GuestOffset(0), 64 << 20, 1000).unwrap();
    let end: u64 = 64 << 20;
    for run in runs.iter().filter(|run| run.start < place.0) {
        assert!(run.start.0 + run.length <= place.0.0 || !run.zero, "{run:?}");
    }
    let told: Vec<_> = runs.iter().filter(|run| run.start >= place.0).collect();
    assert!(told.iter().all(|run| run.data && !run.zero), "{told:?}");
    assert_eq!(told.iter().map(|run| run.length).sum::<u64>(), end - place.0.0);
    let options = DigestOptions {
        algorithm: DigestAlgorithm::Blake3,
        block_size: 1 << 16,
        leaves: None,
    };
    let error = digest(&cut, options, &JobContext::quiet()).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_TRUNCATED");
}

/// Bytes that compress to about two thirds.
fn support_noise(length: usize) -> Vec<u8> {
    let mut random = support::Random::new(5);
    (0..length).map(|_| (random.next() % 40) as u8).collect()
}
