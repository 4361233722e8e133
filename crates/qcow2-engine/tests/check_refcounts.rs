//! Every refcount that differs from the references is found, wherever it stands and whatever it is.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::{CheckOptions, FindingCode, JobContext, Layer, LayerOptions, MemoryStorage, check};
use support::{Folder, qemu_img, qemu_io};

const CLUSTER: usize = 512;
/// Refcounts of 16 bits in a block.
const PER_BLOCK: usize = CLUSTER / 2;

fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// Where the refcount of a cluster stands.
fn place(bytes: &[u8], cluster: usize) -> usize {
    word(bytes, word(bytes, 48) + cluster / PER_BLOCK * 8) + cluster % PER_BLOCK * 2
}

fn refcount(bytes: &[u8], cluster: usize) -> u16 {
    let at = place(bytes, cluster);
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Mostly clusters with one reference; some with two and three, or with four and seven, for which counts are kept in another form.
fn image(many: bool) -> Vec<u8> {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.qcow2", "1M"],
    );
    let write = |range: &str| qemu_io(&folder, "a.qcow2", &[format!("write -P 1 {range}")]);
    let snapshots = |names: &[&str]| {
        for name in names {
            qemu_img(&folder, &["snapshot", "-c", name, "a.qcow2"]);
        }
    };
    if many {
        write("0 32k");
        snapshots(&["a", "b", "c"]);
        write("64k 16k");
        snapshots(&["d"]);
    }
    write("96k 16k");
    snapshots(&["e"]);
    write("120k 8k");
    snapshots(&["f"]);
    write("192k 700k");
    std::fs::read(folder.path("a.qcow2")).unwrap()
}

#[test]
fn every_wrong_refcount_is_found_where_clusters_have_up_to_three_references() {
    every_wrong_refcount_is_found(&image(false), &[1, 2, 3]);
}

#[test]
fn every_wrong_refcount_is_found_where_clusters_have_more() {
    every_wrong_refcount_is_found(&image(true), &[1, 2, 3, 4, 7]);
}

fn every_wrong_refcount_is_found(sound: &[u8], all: &[u16]) {
    let clusters = sound.len() / CLUSTER;
    let counts: Vec<u16> = (0..clusters).map(|cluster| refcount(sound, cluster)).collect();
    let mut seen: Vec<u16> = counts.iter().copied().filter(|count| *count > 0).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, all);
    assert!(clusters > 3 * PER_BLOCK);
    let found = |bytes: &[u8]| {
        let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
        let layer = Layer::open_qcow2(storage, &LayerOptions::default()).unwrap();
        check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap()
    };
    assert_eq!(found(sound).findings, []);
    // A few of each count, in all blocks, and some neighbours.
    let chosen = (0..clusters).filter(|cluster| cluster % 41 < 2 || (counts[*cluster] > 2 && cluster % 3 == 0));
    for cluster in chosen {
        for wrong in [0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 256, 0xffff] {
            if wrong == counts[cluster] {
                continue;
            }
            let mut bytes = sound.to_vec();
            let at = place(&bytes, cluster);
            bytes[at..at + 2].copy_from_slice(&u16::to_be_bytes(wrong));
            let report = found(&bytes);
            let of: Vec<_> = report
                .findings
                .iter()
                .filter(|finding| matches!(finding.code, FindingCode::Leak | FindingCode::RefcountTooLow))
                .map(|finding| (finding.code, finding.cluster, finding.refcount, finding.references))
                .collect();
            let references = u64::from(counts[cluster]);
            let code = if u64::from(wrong) > references {
                FindingCode::Leak
            } else {
                FindingCode::RefcountTooLow
            };
            let expected = (code, Some(cluster as u64), Some(u64::from(wrong)), Some(references));
            assert_eq!(of, [expected], "cluster {cluster}, refcount {wrong}");
            assert_eq!(report.image_end_offset, sound.len() as u64);
        }
    }
}
