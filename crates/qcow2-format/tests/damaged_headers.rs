//! Each damaged field is refused by its own name, and no prefix of a header makes a reader stumble.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use qcow2_format::{Extensions, FormatError, Geometry, Header, HostOffset, RefcountOrder, Version, header};

fn valid() -> (Header, Extensions) {
    let header = Header {
        version: Version::V3,
        backing_name: None,
        geometry: Geometry::new(16, false).unwrap(),
        recorded_size: 1 << 30,
        encryption: header::EncryptionMethod::None,
        l1_entries: 2,
        l1_offset: HostOffset(0x3_0000),
        refcount_table_offset: HostOffset(0x1_0000),
        refcount_table_clusters: 1,
        snapshot_count: 0,
        snapshots_offset: HostOffset(0),
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: RefcountOrder::new(4).unwrap(),
        length: header::WRITTEN_LENGTH,
        compression: header::CompressionType::Deflate,
        unknown_fields: Vec::new(),
    };
    let extensions = Extensions {
        backing_name: Some("base.raw".into()),
        backing_format: Some("raw".into()),
        feature_names: Extensions::default_feature_names(&header),
        ..Extensions::default()
    };
    (header, extensions)
}

fn cluster() -> Vec<u8> {
    let (mut header, extensions) = valid();
    let mut bytes = extensions.encode(&mut header).unwrap();
    bytes.resize(65536, 0);
    bytes
}

fn read(cluster: &[u8]) -> Result<(Header, Extensions), FormatError> {
    let header = Header::parse(cluster)?;
    let extensions = Extensions::parse(cluster, &header)?;
    Ok((header, extensions))
}

#[test]
fn what_was_written_is_read() {
    let (mut header, extensions) = valid();
    extensions.encode(&mut header).unwrap();
    assert_eq!(read(&cluster()).unwrap(), (header, extensions));
}

#[test]
fn each_damaged_field_has_its_own_code_and_offset() {
    let cases: [(usize, &[u8], &str, Option<u64>); 31] = [
        (0, b"QFI\xfa", "NOT_QCOW2", Some(0)),
        (4, &1u32.to_be_bytes(), "VERSION", Some(4)),
        (4, &4u32.to_be_bytes(), "VERSION", Some(4)),
        (8, &96u64.to_be_bytes(), "BACKING_NAME_OFFSET", Some(8)),
        (8, &65537u64.to_be_bytes(), "BACKING_NAME_OFFSET", Some(8)),
        (8, &u64::MAX.to_be_bytes(), "BACKING_NAME_OFFSET", Some(8)),
        (16, &1024u32.to_be_bytes(), "BACKING_NAME_TOO_LONG", Some(16)),
        (20, &8u32.to_be_bytes(), "CLUSTER_SIZE", Some(20)),
        (20, &22u32.to_be_bytes(), "CLUSTER_SIZE", Some(20)),
        (20, &u32::MAX.to_be_bytes(), "CLUSTER_SIZE", Some(20)),
        (24, &u64::MAX.to_be_bytes(), "VIRTUAL_SIZE", Some(24)),
        (24, &(1u64 << 62).to_be_bytes(), "IMAGE_TOO_BIG", Some(24)),
        (32, &3u32.to_be_bytes(), "ENCRYPTION_METHOD", Some(32)),
        (32, &2u32.to_be_bytes(), "ENCRYPTION_HEADER_MISSING", Some(32)),
        (36, &1u32.to_be_bytes(), "L1_TOO_SMALL", Some(36)),
        (36, &(1u32 << 31).to_be_bytes(), "L1_TOO_LARGE", Some(36)),
        (40, &0x3_0200u64.to_be_bytes(), "L1_OFFSET", Some(40)),
        (40, &0u64.to_be_bytes(), "L1_OFFSET", Some(40)),
        (40, &0x8000_0000_0000_0000u64.to_be_bytes(), "L1_OFFSET", Some(40)),
        (48, &0x1_0001u64.to_be_bytes(), "REFCOUNT_TABLE_OFFSET", Some(48)),
        (56, &0x0002_0001u32.to_be_bytes(), "REFCOUNT_TABLE_TOO_LARGE", Some(56)),
        (60, &65537u32.to_be_bytes(), "SNAPSHOT_COUNT", Some(60)),
        (60, &1u32.to_be_bytes(), "SNAPSHOT_TABLE_OFFSET", Some(64)),
        (64, &1u64.to_be_bytes(), "SNAPSHOT_TABLE_OFFSET", Some(64)),
        (72, &(1u64 << 63).to_be_bytes(), "UNKNOWN_FEATURE", Some(72)),
        (72, &8u64.to_be_bytes(), "COMPRESSION_BIT_SET", Some(72)),
        (88, &2u64.to_be_bytes(), "DATA_FILE_RAW", Some(88)),
        (96, &7u32.to_be_bytes(), "REFCOUNT_WIDTH", Some(96)),
        (100, &96u32.to_be_bytes(), "HEADER_LENGTH", Some(100)),
        (104, &[1], "COMPRESSION_BIT", Some(72)),
        (104, &[9], "COMPRESSION_TYPE", Some(104)),
    ];
    for (at, bytes, code, offset) in cases {
        let mut cluster = cluster();
        cluster[at..at + bytes.len()].copy_from_slice(bytes);
        let error = read(&cluster).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"), "{at} {bytes:x?}: {error}");
        assert_eq!(error.offset(), offset, "{at}: {error}");
    }
}

#[test]
fn damaged_extensions_are_refused_where_they_stand() {
    // The first extension, the backing format, begins at 112: kind, length, "raw".
    let cases: [(usize, &[u8], &str); 5] = [
        (116, &16u32.to_be_bytes(), "BACKING_FORMAT_TOO_LONG"),
        (116, &u32::MAX.to_be_bytes(), "EXTENSION_TOO_LARGE"),
        (120, b"r\0w", "BACKING_FORMAT_NAME"),
        (112, &0x2385_2875u32.to_be_bytes(), "BITMAPS_EXTENSION"),
        (112, &0x4441_5441u32.to_be_bytes(), "DATA_FILE_UNEXPECTED"),
    ];
    for (at, bytes, code) in cases {
        let mut cluster = cluster();
        cluster[at..at + bytes.len()].copy_from_slice(bytes);
        let error = read(&cluster).unwrap_err();
        assert_eq!(
            (error.code(), error.offset()),
            (format!("ERR_QCOW2_{code}").as_str(), Some(112)),
            "{error}"
        );
    }
}

#[test]
fn an_unknown_feature_is_named_by_the_image_without_its_control_characters() {
    let (mut header, mut extensions) = valid();
    header.incompatible = 1 << 40 | 1 << 41;
    extensions.feature_names.push(qcow2_format::FeatureName {
        kind: 0,
        bit: 40,
        name: "time\x1b[2J travel".into(),
    });
    let mut bytes = extensions.encode(&mut header).unwrap();
    bytes.resize(65536, 0);
    match read(&bytes).unwrap_err() {
        FormatError::Features { mask, names, unnamed } => {
            assert_eq!((mask, unnamed), (3 << 40, 1 << 41));
            assert_eq!(names, ", time\u{fffd}[2J travel");
        }
        other => panic!("{other}"),
    }
}

/// With a second fault in the header, an unknown feature lost the name that the image has for it; and forty thousand names for one bit made a
/// message of megabytes.
#[test]
fn an_unknown_feature_keeps_its_first_name_beside_other_faults() {
    let (mut header, mut extensions) = valid();
    header.incompatible = 1 << 40;
    for name in ["time travel", "something else"] {
        extensions.feature_names.push(qcow2_format::FeatureName {
            kind: 0,
            bit: 40,
            name: name.into(),
        });
    }
    let mut bytes = extensions.encode(&mut header).unwrap();
    bytes.resize(65536, 0);
    let named = FormatError::Features {
        mask: 1 << 40,
        names: ", time travel".into(),
        unnamed: 0,
    };
    assert_eq!(read(&bytes).unwrap_err(), named);
    bytes[96..100].copy_from_slice(&9u32.to_be_bytes());
    assert_eq!(Extensions::unknown_features(&bytes), Some(named));
    // Whatever the header's length or an extension claims.
    for at in [100, 116] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].fill(0xff);
        assert!(matches!(
            Extensions::unknown_features(&bytes),
            Some(FormatError::Features { unnamed, .. }) if unnamed == 1 << 40
        ));
    }
    assert_eq!(Extensions::unknown_features(&cluster()), None);
}

/// Sixty thousand bitmaps were compared by name each with each: a directory of two megabytes took seconds to open.
#[test]
fn a_directory_full_of_bitmaps_is_read_at_once_and_a_name_stands_there_once() {
    let entry = |name: u32| {
        let mut bytes = vec![0; 32];
        bytes[5] = 1;
        bytes[11] = 1;
        bytes[16..18].copy_from_slice(&[1, 16]);
        bytes[19] = 8;
        bytes[24..].copy_from_slice(format!("{name:08}").as_bytes());
        bytes
    };
    let geometry = qcow2_format::Geometry::new(16, false).unwrap();
    let parse = |bytes: &[u8]| {
        let count = u32::try_from(bytes.len() / 32).unwrap();
        qcow2_format::bitmap::parse_directory(bytes, qcow2_format::HostOffset(0), count, geometry)
    };
    let mut directory: Vec<u8> = (0..65534).flat_map(entry).collect();
    let begin = std::time::Instant::now();
    assert_eq!(parse(&directory).unwrap().len(), 65534);
    assert!(begin.elapsed().as_secs() < 2);
    directory.extend(entry(17));
    assert_eq!(parse(&directory).unwrap_err().code(), "ERR_QCOW2_BITMAP_DIRECTORY");
}

#[test]
fn every_prefix_and_every_flipped_bit_of_a_header_is_answered() {
    let whole = cluster();
    for length in 0..640 {
        // A file may end anywhere behind the backing file name.
        let answer = read(&whole[..length]);
        assert!(answer.is_err() || length >= 500, "{length} bytes were enough");
    }
    let used = 640 * 8;
    for bit in 0..used {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok((header, _)) = read(&flipped) {
            assert!(
                header.geometry.l1_entries(header.virtual_size()) <= u64::from(header.l1_entries),
                "bit {bit}"
            );
        }
    }
}
