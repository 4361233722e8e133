//! What is written is read again, and by qemu-img too; changing the first cluster leaves everything else as it is, at every power cut.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

use std::process::Command;

use qcow2_format::bitmap;
use qcow2_format::{
    Extensions, FirstSector, Geometry, Header, HostOffset, RefcountOrder, Snapshot, Version, changed_sectors,
    encode_snapshot_table, header, parse_snapshot_table,
};

fn snapshot(id: &str, name: &[u8]) -> Snapshot {
    Snapshot {
        entry_offset: HostOffset(0),
        l1_offset: HostOffset(0x5_0000),
        l1_entries: 3,
        id: id.into(),
        name: name.into(),
        date_sec: 1_700_000_000,
        date_nsec: 999_999_999,
        vm_clock_nsec: u64::MAX - 5,
        vm_state_size: 0,
        disk_size: Some(10 << 20),
        icount: None,
        unknown_extra: Vec::new(),
    }
}

fn placed(bytes: &[u8], mut snapshots: Vec<Snapshot>, version3: bool, base: u64) -> Vec<Snapshot> {
    let count = snapshots.len() as u32;
    let (read, length) = parse_snapshot_table(bytes, HostOffset(base), count, version3).unwrap();
    assert_eq!(length, bytes.len() as u64);
    for (snapshot, read) in snapshots.iter_mut().zip(&read) {
        snapshot.entry_offset = read.entry_offset;
    }
    assert_eq!(read, snapshots);
    read
}

#[test]
fn snapshot_tables_are_read_as_they_were_written() {
    let plain = snapshot("1", b"first");
    let all = vec![
        plain.clone(),
        Snapshot {
            vm_state_size: 1 << 40,
            icount: Some(77),
            unknown_extra: vec![1, 2, 3, 4, 5],
            ..snapshot("10", &[0xff; 300])
        },
        Snapshot {
            vm_state_size: 12345,
            l1_entries: 0,
            ..snapshot("", b"")
        },
    ];
    for version3 in [false, true] {
        let bytes = encode_snapshot_table(&all, version3).unwrap();
        let read = placed(&bytes, all.clone(), version3, 0x8_0000);
        assert_eq!(read[0].entry_offset, HostOffset(0x8_0000));
        // A machine state that the 32-bit field cannot hold is not there for those who know only that field.
        let second = (read[1].entry_offset.0 - 0x8_0000) as usize;
        assert_eq!(bytes[second + 32..second + 36], [0; 4]);
        let third = (read[2].entry_offset.0 - 0x8_0000) as usize;
        assert_eq!(bytes[third + 32..third + 36], 12345u32.to_be_bytes());
        assert_eq!(bytes[36..40], 24u32.to_be_bytes());
    }
    let bare = Snapshot {
        disk_size: None,
        ..plain
    };
    let bytes = encode_snapshot_table(std::slice::from_ref(&bare), false).unwrap();
    placed(&bytes, vec![bare.clone()], false, 0);
    assert_eq!(
        encode_snapshot_table(&[bare], true).unwrap_err().code(),
        "ERR_QCOW2_SNAPSHOT_INCOMPLETE"
    );
}

#[test]
fn what_no_reader_takes_is_not_written() {
    let long = snapshot("1", &[b'x'; 65536]);
    assert_eq!(
        encode_snapshot_table(&[long], true).unwrap_err().code(),
        "ERR_QCOW2_SNAPSHOT_NAME"
    );
    let extra = Snapshot {
        unknown_extra: vec![0; 1001],
        ..snapshot("1", b"a")
    };
    assert_eq!(
        encode_snapshot_table(&[extra], true).unwrap_err().code(),
        "ERR_QCOW2_SNAPSHOT_EXTRA_DATA"
    );
    let large = vec![snapshot("1", &[b'x'; 65535]); 1024];
    assert_eq!(
        encode_snapshot_table(&large, true).unwrap_err().code(),
        "ERR_QCOW2_SNAPSHOT_TABLE_TOO_LARGE"
    );
}

/// qemu-img's own tables, read and written again to the same bytes.
#[test]
fn tables_of_qemu_round_trip_to_the_same_bytes() {
    for version in ["0.10", "1.1"] {
        let name = format!("qcow2-format-writing-{version}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let image = path.to_str().unwrap();
        let qemu = |words: &[&str]| {
            let status = Command::new("qemu-img").args(words).arg(image).status();
            assert!(status.expect("these tests need qemu-img 10").success(), "{words:?}");
        };
        let compat = format!("compat={version}");
        let create = ["create", "-q", "-f", "qcow2", "-o", &compat];
        assert!(
            Command::new("qemu-img")
                .args(create)
                .args([image, "10M"])
                .status()
                .unwrap()
                .success()
        );
        for name in ["first", "zweite – ü", ""] {
            qemu(&["snapshot", "-c", name]);
        }
        let version3 = version == "1.1";
        if version3 {
            for (name, granularity) in [("b0", "65536"), ("another", "512")] {
                let words = ["bitmap", "--add", "-g", granularity];
                let status = Command::new("qemu-img").args(words).args([image, name]).status();
                assert!(status.unwrap().success());
            }
        }
        let mut file = std::fs::read(&path).unwrap();
        // qemu-img does not pad the last entry.
        file.resize(file.len().next_multiple_of(8), 0);
        std::fs::remove_file(&path).unwrap();
        let header = Header::parse(&file[..65536]).unwrap();
        let at = header.snapshots_offset;
        let (snapshots, length) =
            parse_snapshot_table(&file[at.0 as usize..], at, header.snapshot_count, version3).unwrap();
        let written = encode_snapshot_table(&snapshots, version3).unwrap();
        assert_eq!(written, file[at.0 as usize..(at.0 + length) as usize], "{version}");
        if version3 {
            let place = Extensions::parse(&file[..65536], &header).unwrap().bitmaps.unwrap();
            let at = place.directory_offset.0 as usize;
            let directory = &file[at..at + place.directory_size as usize];
            let bitmaps =
                bitmap::parse_directory(directory, place.directory_offset, place.count, header.geometry).unwrap();
            assert_eq!(bitmap::encode_directory(&bitmaps), directory);
        }
    }
}

/// A header with `backing` and unknown extensions before and behind a bitmaps extension, if there is one.
fn first_cluster(bits: u32, backing: &str, before: &[usize], bitmaps: bool, behind: &[usize]) -> Vec<u8> {
    let mut header = Header {
        version: Version::V3,
        backing_name: None,
        geometry: Geometry::new(bits, false).unwrap(),
        recorded_size: 1 << 20,
        encryption: header::EncryptionMethod::None,
        l1_entries: 32,
        l1_offset: HostOffset(3 << bits),
        refcount_table_offset: HostOffset(1 << bits),
        refcount_table_clusters: 1,
        snapshot_count: 0,
        snapshots_offset: HostOffset(0),
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: RefcountOrder::new(4).unwrap(),
        length: 120,
        compression: header::CompressionType::Deflate,
        unknown_fields: vec![1, 2, 3, 4, 5, 6, 7, 8],
    };
    let mut bytes = header.encode();
    let mut put = |kind: u32, data: &[u8]| {
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    for (index, length) in before.iter().enumerate() {
        put(0x1111_0000 + index as u32, &vec![0xb0; *length]);
    }
    if bitmaps {
        let data = [1u64 << 32, 0x99, 0x99_0000].map(u64::to_be_bytes).concat();
        put(0x2385_2875, &data);
    }
    for (index, length) in behind.iter().enumerate() {
        put(0x2222_0000 + index as u32, &vec![0xbe; *length]);
    }
    put(0, &[]);
    if !backing.is_empty() {
        header.backing_name = Some((HostOffset(bytes.len() as u64), backing.len() as u32));
        let fixed = header.encode();
        bytes[..fixed.len()].copy_from_slice(&fixed);
        bytes.extend_from_slice(backing.as_bytes());
    }
    bytes
}

fn read(cluster: &[u8]) -> (Header, Extensions) {
    let header = Header::parse(cluster).unwrap();
    let extensions = Extensions::parse(cluster, &header).unwrap();
    (header, extensions)
}

#[test]
fn setting_a_field_of_the_first_sector_changes_that_field_only() {
    let cluster = {
        let mut cluster = first_cluster(16, "base.raw", &[100, 500], true, &[7]);
        cluster.resize(65536, 0xee);
        cluster
    };
    let (before, _) = read(&cluster);
    let mut sector = FirstSector::new(&cluster).unwrap();
    sector.set_l1(40, HostOffset(0x30_0000));
    sector.set_refcount_table(HostOffset(0x40_0000), 2);
    sector.set_snapshots(5, HostOffset(0x50_0000));
    sector.set_size(2 << 20);
    sector.set_incompatible(sector.incompatible() | 1).unwrap();
    sector.set_compatible(1).unwrap();
    sector.set_autoclear(1).unwrap();
    let mut changed = cluster.clone();
    changed[..512].copy_from_slice(sector.bytes());
    let wanted = Header {
        l1_entries: 40,
        l1_offset: HostOffset(0x30_0000),
        refcount_table_offset: HostOffset(0x40_0000),
        refcount_table_clusters: 2,
        snapshot_count: 5,
        snapshots_offset: HostOffset(0x50_0000),
        recorded_size: 2 << 20,
        incompatible: 1,
        compatible: 1,
        autoclear: 1,
        ..before
    };
    assert_eq!(read(&changed).0, wanted);
    let writes: Vec<_> = changed_sectors(&cluster, &changed, HostOffset(0)).collect();
    assert_eq!(writes, [sector.write()]);
    assert_eq!(
        (sector.incompatible(), sector.compatible(), sector.autoclear()),
        (1, 1, 1)
    );
}

#[test]
fn version_2_has_no_feature_bits_to_set() {
    let mut cluster = first_cluster(16, "", &[], false, &[]);
    cluster[7] = 2;
    let mut sector = FirstSector::new(&cluster).unwrap();
    assert_eq!(sector.set_incompatible(1), None);
    assert_eq!(sector.set_compatible(1), None);
    assert_eq!(sector.set_autoclear(1), None);
    assert_eq!(
        (sector.incompatible(), sector.bytes()),
        (0, &cluster[..cluster.len().min(512)])
    );
    sector.set_size(512);
    assert_eq!(sector.bytes()[24..32], 512u64.to_be_bytes());
    for (bytes, code) in [(&b"raw"[..], "NOT_QCOW2"), (&cluster[..80], "HEADER_TRUNCATED")] {
        let mut bytes = bytes.to_vec();
        if bytes.len() > 8 {
            bytes[7] = 3;
        }
        let error = FirstSector::new(&bytes).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"));
    }
}

#[test]
fn the_sectors_that_differ_are_listed() {
    let old = vec![0u8; 2000];
    let mut new = old.clone();
    new.extend([0; 100]);
    new[511] = 1;
    new[1024] = 2;
    let writes: Vec<_> = changed_sectors(&old, &new, HostOffset(0x1000)).collect();
    let places: Vec<_> = writes.iter().map(|write| (write.offset.0, write.bytes.len())).collect();
    assert_eq!(places, [(0x1000, 512), (0x1400, 512), (0x1600, 512), (0x1800, 52)]);
    assert_eq!(changed_sectors(&new, &new, HostOffset(0)).count(), 0);
}
