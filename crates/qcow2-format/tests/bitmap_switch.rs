//! Adding, changing and removing the bitmaps extension: after every patch, also a torn one, the header can be read, names the same backing file and
//! extensions, and its bitmaps are the old ones, the new ones, or stale.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

use qcow2_format::bitmap::{Bitmap, encode_directory, parse_directory};
use qcow2_format::bitmap_switch::{HeaderPatch, apply_patch, switch_bitmaps};
use qcow2_format::features::autoclear;
use qcow2_format::{
    BitmapsExtension, Extensions, FormatError, Geometry, Header, HostOffset, RefcountOrder, Version, header,
};

fn make(cluster_bits: u32, extensions: &Extensions) -> Vec<u8> {
    let mut header = Header {
        version: Version::V3,
        backing_name: None,
        geometry: Geometry::new(cluster_bits, false).unwrap(),
        recorded_size: 1 << 20,
        encryption: header::EncryptionMethod::None,
        l1_entries: 1 << 12,
        l1_offset: HostOffset(3 << cluster_bits),
        refcount_table_offset: HostOffset(1 << cluster_bits),
        refcount_table_clusters: 1,
        snapshot_count: 0,
        snapshots_offset: HostOffset(0),
        incompatible: 0,
        compatible: 0,
        autoclear: if extensions.bitmaps.is_some() {
            autoclear::BITMAPS
        } else {
            0
        },
        refcount_order: RefcountOrder::new(4).unwrap(),
        length: header::WRITTEN_LENGTH,
        compression: header::CompressionType::Deflate,
        unknown_fields: Vec::new(),
    };
    let mut extensions = extensions.clone();
    if cluster_bits > 12 {
        extensions.feature_names = Extensions::default_feature_names(&header);
    }
    let mut bytes = extensions.encode(&mut header).unwrap();
    bytes.resize(1 << cluster_bits, 0);
    bytes
}

fn read(cluster: &[u8]) -> (Option<BitmapsExtension>, Extensions) {
    let header = Header::parse(cluster).unwrap();
    let mut extensions = Extensions::parse(cluster, &header).unwrap();
    let bitmaps = extensions.bitmaps.take();
    let valid = header.autoclear & autoclear::BITMAPS != 0;
    assert!(!valid || bitmaps.is_some(), "the feature bit needs its extension");
    (bitmaps.filter(|_| valid), extensions)
}

/// Every state that writing the patches can leave: after each, and with some sectors of one that spans several.
fn states(cluster: &[u8], patches: &[HeaderPatch]) -> Vec<Vec<u8>> {
    let mut states = vec![cluster.to_vec()];
    let mut now = cluster.to_vec();
    for patch in patches {
        let mut after = now.clone();
        apply_patch(&mut after, patch);
        if patch.sector().is_none() {
            let sectors = now.len() / 512;
            for torn in 0..sectors {
                let (mut one, mut others) = (now.clone(), after.clone());
                let range = torn * 512..torn * 512 + 512;
                one[range.clone()].copy_from_slice(&after[range.clone()]);
                others[range.clone()].copy_from_slice(&now[range]);
                states.extend([one, others]);
            }
        }
        states.push(after.clone());
        now = after;
    }
    states
}

const OLD: BitmapsExtension = BitmapsExtension {
    count: 2,
    directory_size: 64,
    directory_offset: HostOffset(0x70_0000),
};
const NEW: BitmapsExtension = BitmapsExtension {
    count: 3,
    directory_size: 96,
    directory_offset: HostOffset(0x0101_8080_7e00),
};

fn judge(cluster: &[u8], old: Option<BitmapsExtension>, new: Option<BitmapsExtension>, what: &str) -> Vec<u8> {
    let (_, others) = read(cluster);
    let patches = switch_bitmaps(cluster, new).unwrap();
    let states = states(cluster, &patches);
    for state in &states {
        let (bitmaps, rest) = read(state);
        assert_eq!(rest, others, "{what}");
        assert!(
            bitmaps.is_none() || bitmaps == old || bitmaps == new,
            "{what}: {bitmaps:?}"
        );
    }
    let last = states.last().unwrap().clone();
    assert_eq!(read(&last).0, new, "{what}");
    last
}

fn shapes() -> Vec<(String, u32, Extensions)> {
    let mut shapes = Vec::new();
    for bits in [9, 10, 12, 16] {
        for name in [0, 1, 30, 200, 300, 420, 1000] {
            for format in [None, Some("raw")] {
                for unknown in [None, Some(3), Some(40), Some(377)] {
                    let extensions = Extensions {
                        backing_name: (name > 0).then(|| "n".repeat(name)),
                        backing_format: format.map(str::to_owned).filter(|_| name > 0),
                        unknown: unknown
                            .map(|length| (0x1234_5678, vec![7; length]))
                            .into_iter()
                            .collect(),
                        ..Extensions::default()
                    };
                    let needed = 112 + name + unknown.map_or(0, |length| length + 15) + 64;
                    if needed <= 1 << bits {
                        shapes.push((format!("{bits} {name} {format:?} {unknown:?}"), bits, extensions));
                    }
                }
            }
        }
    }
    shapes
}

#[test]
fn every_state_on_the_way_can_be_read() {
    let (mut changed, mut full) = (0, 0);
    for (what, bits, extensions) in shapes() {
        let bare = make(bits, &extensions);
        match switch_bitmaps(&bare, Some(NEW)) {
            Ok(_) => {
                let added = judge(&bare, None, Some(NEW), &what);
                let again = judge(&added, Some(NEW), Some(OLD), &what);
                let none = judge(&again, Some(OLD), None, &what);
                judge(&none, None, Some(NEW), &what);
                changed += 1;
            }
            Err(FormatError::HeaderFull { needed, cluster_size }) => {
                assert!(needed > cluster_size, "{what}");
                full += 1;
            }
            Err(other) => assert_eq!(other.to_string(), "", "{what}"),
        }
        let extensions = Extensions {
            bitmaps: Some(OLD),
            ..extensions
        };
        if extensions.backing_name.as_ref().map_or(0, String::len) + 200 < 1 << bits {
            let there = make(bits.max(10), &extensions);
            let changed = judge(&there, Some(OLD), Some(NEW), &what);
            judge(&changed, Some(NEW), None, &what);
        }
    }
    assert!(changed > 80 && full < 20, "{changed} changed, {full} had no room");
}

#[test]
fn the_last_extension_is_taken_out_and_its_room_used_again() {
    let bare = make(16, &Extensions::default());
    let added = judge(&bare, None, Some(NEW), "added");
    let removed = judge(&added, Some(NEW), None, "removed");
    let (header, extensions) = (Header::parse(&removed).unwrap(), read(&removed).1);
    assert_eq!(Extensions::parse(&removed, &header).unwrap(), extensions);
    assert_eq!(Extensions::parse(&removed, &header).unwrap().bitmaps, None);
    assert_eq!(judge(&removed, None, Some(NEW), "again"), added);
}

#[test]
fn where_the_extension_is_in_one_sector_a_change_is_one_patch() {
    let there = make(
        16,
        &Extensions {
            bitmaps: Some(OLD),
            ..Extensions::default()
        },
    );
    let patches = switch_bitmaps(&there, Some(NEW)).unwrap();
    assert_eq!(patches.len(), 1);
    assert!(patches[0].sector().is_some());
}

#[test]
fn a_directory_reads_as_it_was_written() {
    let geometry = Geometry::new(16, false).unwrap();
    let bitmaps: Vec<Bitmap> = (1..40u32)
        .map(|number| Bitmap {
            table_offset: HostOffset(u64::from(number) << 20),
            table_entries: number,
            flags: number % 4,
            granularity_bits: 9 + (number % 23) as u8,
            name: "é".repeat(number as usize),
        })
        .collect();
    let bytes = encode_directory(&bitmaps);
    let length: u64 = bitmaps.iter().map(Bitmap::entry_bytes).sum();
    assert_eq!(length, bytes.len() as u64);
    assert_eq!(
        parse_directory(&bytes, HostOffset(0x10000), 39, geometry).unwrap(),
        bitmaps
    );
}
