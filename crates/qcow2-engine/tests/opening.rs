//! Files that cannot be what they claim: what opening says to each, and what reading says where opening had no reason to refuse.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::storage::{AllowSpecial, OpenMode};
use qcow2_engine::{
    Chain, ChainOptions, Error, FileStorage, Layer, LayerOptions, Limits, MemoryStorage, WindowStorage,
};
use qcow2_format::GuestOffset;
use support::bytes::{Bytes, expected};
use support::{Folder, assert_same, chain, layer, qemu_img, qemu_io, read_all, storage};

#[test]
fn header_faults_are_refused_by_name() {
    let image = Bytes::new("");
    assert_same(&read_all(&image.chain().unwrap()), &expected(), "the image itself");
    image.clone().put32(0, 0).refused("NOT_QCOW2");
    Bytes(Vec::new()).refused("NOT_QCOW2");
    Bytes(image.0[..60].to_vec()).refused("HEADER_TRUNCATED");
    Bytes(image.0[..103].to_vec()).refused("HEADER_TRUNCATED");
    for version in [0, 1, 4, u32::MAX] {
        image.clone().put32(4, version).refused("VERSION");
    }
    for bits in [0, 8, 22, 31, 32, 63, u32::MAX] {
        image.clone().put32(20, bits).refused("CLUSTER_SIZE");
    }
    for length in [0, 96, 105, 0x7fff_ffff, u32::MAX] {
        let error = image.clone().put32(100, length).open().unwrap_err();
        assert!(error.code().starts_with("ERR_QCOW2_HEADER"), "{error}");
    }
    image.clone().put32(96, 7).refused("REFCOUNT_WIDTH");
    image.clone().put64(72, 1 << 40).refused("UNKNOWN_FEATURE");
    image.clone().put32(32, 3).refused("ENCRYPTION_METHOD");
    image.clone().put32(32, 2).refused("ENCRYPTION_HEADER_MISSING");
    image.clone().put64(24, 1 << 63).refused("VIRTUAL_SIZE");
    image.clone().put32(36, 0).refused("L1_TOO_SMALL");
    for entries in [0x8000_0000, u32::MAX] {
        image.clone().put32(36, entries).refused("L1_TOO_LARGE");
    }
    for offset in [0, 0x3_0001, u64::MAX, 0x7fff_ffff_ffff_0000] {
        image
            .clone()
            .put64(40, offset)
            .refused(if offset > 1 << 60 && offset != u64::MAX {
                "L1_TRUNCATED"
            } else {
                "L1_OFFSET"
            });
    }
    let error = image.clone().put64(40, 1 << 40).refused("L1_TRUNCATED");
    assert_eq!(error.offset(), Some(1 << 40));
    image.clone().put32(56, u32::MAX).refused("REFCOUNT_TABLE_TOO_LARGE");
    image.clone().put64(48, 0x1_0001).refused("REFCOUNT_TABLE_OFFSET");
    image.clone().put32(60, 65537).refused("SNAPSHOT_COUNT");
    image.clone().put32(60, 1).refused("SNAPSHOT_TABLE_OFFSET");
    image
        .clone()
        .put32(60, 1)
        .put64(64, 1 << 50)
        .refused("SNAPSHOT_TABLE_TRUNCATED");
}

#[test]
fn what_only_writing_would_mind_is_a_notice() {
    let image = Bytes::new("");
    let damaged = [
        (image.clone().put64(72, 1), "DIRTY"),
        (image.clone().put64(72, 2), "CORRUPT"),
        (image.clone().put64(88, 1 << 33), "UNKNOWN_AUTOCLEAR"),
        (image.clone().put32(56, 0), "REFCOUNT_TABLE"),
        (image.clone().put64(48, 0), "REFCOUNT_TABLE"),
        (image.clone().put64(48, 1 << 40), "REFCOUNT_TABLE"),
    ];
    for (image, code) in damaged {
        assert_same(&read_all(&image.noticed(code)), &expected(), code);
    }
}

#[test]
fn bitmaps_that_are_damaged_or_stale_do_not_keep_the_disk_from_opening() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    qemu_io(&folder, "a.qcow2", &["write -P 0x5a 0 256k".into()]);
    qemu_img(&folder, &["bitmap", "--add", "a.qcow2", "one"]);
    let image = Bytes(std::fs::read(folder.path("a.qcow2")).unwrap());
    let layer = image.open().unwrap();
    assert_eq!(layer.bitmaps().len(), 1);
    assert_eq!(layer.bitmaps()[0].name, "one");

    assert!(
        image
            .clone()
            .put64(88, 0)
            .noticed("BITMAPS_STALE")
            .layer(0)
            .unwrap()
            .bitmaps()
            .is_empty()
    );
    let directory = layer.extensions().unwrap().bitmaps.unwrap().directory_offset.0 as usize;
    let chain = image.clone().put32(directory + 12, 0xff00).noticed("BITMAPS");
    assert_same(&read_all(&chain), &expected(), "damaged directory");
    assert!(chain.layer(0).unwrap().bitmap_fault().is_some());
}

#[test]
fn entries_that_cannot_be_followed_are_errors_for_their_range_only() {
    let image = Bytes::new("");
    let (l1, l2) = (image.l1(), image.l2());
    let (first, copied) = (image.get64(l2), 1 << 63);
    let cases = [
        (l1, copied | (l2 as u64 + 512), "CORRUPT"),
        (l1, copied | 1 << 40, "TRUNCATED"),
        (l2, copied | 0x5_0200, "CORRUPT"),
        (l2, 0x5_0201, "CORRUPT"),
        (l2, first | 1 << 56, "CORRUPT"),
        (l2, copied, "CORRUPT"),
        (l2, 3 << 62 | 0x5_0000, "CORRUPT"),
        (l2, copied | 1 << 40, "TRUNCATED"),
        (l2, 1 << 62 | 1 << 40, "TRUNCATED"),
    ];
    for (place, value, code) in cases {
        let damaged = image.clone().put64(place, value);
        let error = damaged.unreadable(0, code);
        assert!(error.offset().is_some() && error.table().is_some(), "{error}");
        if place == l2 {
            let mut bytes = vec![0; 192 << 10];
            damaged
                .chain()
                .unwrap()
                .read(GuestOffset(64 << 10), &mut bytes)
                .unwrap();
            assert_same(&bytes, &vec![0x5a; 192 << 10], "the clusters beside it");
            // The runs end in front of the fault, which comes when it is the first.
            let chain = image.clone().put64(place + 8, value).chain().unwrap();
            let runs = chain.resolve(GuestOffset(0), 1 << 20, 100);
            if code == "CORRUPT" {
                assert_eq!(runs.unwrap().last().unwrap().end().0, 64 << 10);
                assert!(chain.resolve(GuestOffset(64 << 10), 1, 100).is_err());
            }
        }
    }
    // Reserved bits and pointers to the wrong structure are read as qemu reads them.
    let reserved = image
        .clone()
        .put64(l2, first | 0x1fe)
        .put64(l1, image.get64(l1) | 0x1ff);
    assert_same(&read_all(&reserved.chain().unwrap()), &expected(), "reserved bits");
    assert!(
        image
            .clone()
            .put64(l1, copied)
            .chain()
            .unwrap()
            .read(GuestOffset(0), &mut [0; 512])
            .is_ok()
    );
}

#[test]
fn version_2_has_no_zero_flag_and_subclusters_have_one_state() {
    let v2 = Bytes::new("compat=0.10");
    let l2 = v2.l2();
    v2.put64(l2, 1).unreadable(0, "CORRUPT");
    let extended = Bytes::new("extended_l2=on");
    let l2 = extended.l2();
    extended.clone().put64(l2 + 8, 1 << 32 | 1).unreadable(0, "CORRUPT");
    extended.put64(l2, 0).unreadable(0, "CORRUPT");
}

#[test]
fn a_damaged_snapshot_does_not_break_the_disk_or_its_neighbours() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    qemu_io(&folder, "a.qcow2", &["write -P 0x5a 0 256k".into()]);
    for name in ["good", "bad"] {
        qemu_img(&folder, &["snapshot", "-c", name, "a.qcow2"]);
    }
    let image = Bytes(std::fs::read(folder.path("a.qcow2")).unwrap());
    let entry = image.open().unwrap().snapshots()[1].entry_offset.0 as usize;
    let cases = [
        image.clone().put64(entry, 0x1_0001),
        image.clone().put64(entry, 1 << 40),
        image.clone().put64(entry, 0),
        image.clone().put32(entry + 8, 0x1000_0000),
        image.clone().put32(entry + 8, 0),
        image.clone().put64(entry + 48, u64::MAX),
    ];
    let view = |image: &Bytes, name: &str| {
        let options = ChainOptions {
            snapshot: Some(name.into()),
            ..ChainOptions::default()
        };
        Chain::new(vec![image.open().unwrap()], options)
    };
    for damaged in cases {
        assert_same(&read_all(&damaged.chain().unwrap()), &expected(), "the disk");
        assert_same(
            &read_all(&view(&damaged, "good").unwrap()),
            &expected(),
            "the good snapshot",
        );
        let error = view(&damaged, "bad").unwrap_err();
        assert!(error.code().starts_with("ERR_QCOW2_SNAPSHOT_"), "{error}");
        assert_eq!(error.offset(), Some(entry as u64), "{error}");
    }
    assert_eq!(view(&image, "none").unwrap_err().code(), "ERR_QCOW2_NO_SNAPSHOT");
}

#[test]
fn an_image_that_backs_itself_is_found_at_once_by_whatever_name() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    qemu_img(&folder, &["rebase", "-u", "-b", "a.qcow2", "-F", "qcow2", "a.qcow2"]);
    std::os::unix::fs::symlink(folder.path("a.qcow2"), folder.path("link")).unwrap();
    std::fs::hard_link(folder.path("a.qcow2"), folder.path("hard")).unwrap();
    for name in ["a.qcow2", "link", "hard"] {
        let layers = vec![layer(&folder.path("a.qcow2")), layer(&folder.path(name))];
        let error = Chain::new(layers, ChainOptions::default()).unwrap_err();
        assert_eq!(error.code(), "ERR_QCOW2_BACKING_LOOP", "{name}");
    }
    let error = Chain::new(vec![layer(&folder.path("a.qcow2"))], ChainOptions::default()).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_BACKING_REQUIRED");
}

#[test]
fn a_data_file_must_be_given_and_be_another_file() {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "a.qcow2", "1M"],
    );
    qemu_io(&folder, "a.qcow2", &["write -P 3 128k 64k".into()]);
    let open = || layer(&folder.path("a.qcow2"));
    assert!(open().needs_data_file());
    let error = Chain::new(vec![open()], ChainOptions::default()).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_DATA_FILE_REQUIRED");
    let error = open().set_data_file(storage(&folder.path("a.qcow2"))).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_SAME_FILE");
    let mut expected = vec![0; 1 << 20];
    expected[128 << 10..192 << 10].fill(3);
    assert_same(&read_all(&chain(&folder, "a.qcow2")), &expected, "with its data file");

    // An entry that is not at its guest offset, and a compressed one.
    let image = Bytes(std::fs::read(folder.path("a.qcow2")).unwrap());
    let l2 = image.l2();
    for value in [1 << 63 | 0x5_0000, 1 << 62 | 0x5_0000] {
        let mut damaged = image.clone().put64(l2, value).open().unwrap();
        damaged.set_data_file(storage(&folder.path("d.raw"))).unwrap();
        let chain = Chain::new(vec![damaged], ChainOptions::default()).unwrap();
        assert_eq!(
            chain.read(GuestOffset(0), &mut [0; 512]).unwrap_err().code(),
            "ERR_QCOW2_CORRUPT"
        );
    }
    let error = Bytes::new("")
        .open()
        .unwrap()
        .set_data_file(storage(&folder.path("d.raw")))
        .unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_NO_DATA_FILE");
}

#[test]
fn an_encrypted_image_shows_its_facts_but_never_its_bytes() {
    let folder = Folder::new();
    for format in ["aes", "luks"] {
        let options = format!("encrypt.format={format},encrypt.key-secret=s");
        let name = format!("{format}.qcow2");
        let secret = "secret,id=s,data=abc";
        qemu_img(
            &folder,
            &[
                "create", "-q", "-f", "qcow2", "--object", secret, "-o", &options, &name, "1M",
            ],
        );
        let open = |options| Layer::open_qcow2(storage(&folder.path(&name)), &options);
        let locked = vec![open(LayerOptions::default()).unwrap()];
        let error = Chain::new(locked, ChainOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Encrypted { method, .. } if method == format));
        let metadata = LayerOptions {
            metadata_only: true,
            ..LayerOptions::default()
        };
        let layer = open(metadata).unwrap();
        assert_eq!(layer.virtual_size(), 1 << 20);
        assert_eq!(
            Chain::new(vec![layer], ChainOptions::default()).unwrap_err().code(),
            "ERR_QCOW2_METADATA_ONLY"
        );
        let check = LayerOptions {
            for_check: true,
            ..LayerOptions::default()
        };
        let layer = open(check).unwrap();
        assert_eq!(
            Chain::new(vec![layer], ChainOptions::default()).unwrap_err().code(),
            "ERR_QCOW2_ENCRYPTED"
        );
    }
}

#[test]
fn limits_of_the_caller_are_kept() {
    let image = Bytes::new("");
    let limits = |limits| LayerOptions {
        limits,
        ..LayerOptions::default()
    };
    let small = Limits {
        max_virtual_size: Some((1 << 20) - 1),
        ..Limits::default()
    };
    let error = image.open_with(limits(small)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                limit: "maxVirtualSize",
                wanted: 0x10_0000,
                ..
            }
        ),
        "{error}"
    );
    let raw = Layer::open_raw(Arc::new(MemoryStorage::new(vec![0; 2 << 20])), &limits(small));
    assert!(raw.is_err());
    let tight = Limits {
        max_memory: 7,
        ..Limits::default()
    };
    let error = image.open_with(limits(tight)).unwrap_err();
    assert!(matches!(error, Error::Limit { limit: "maxMemory", .. }), "{error}");
}

#[test]
fn only_regular_files_and_permitted_devices_are_opened() {
    let folder = Folder::new();
    nix::unistd::mkfifo(&folder.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let devices = OpenMode {
        special: AllowSpecial::BlockDevices,
        ..OpenMode::default()
    };
    for path in [
        folder.path("fifo"),
        "/dev/zero".into(),
        "/dev/null".into(),
        folder.path("."),
    ] {
        for mode in [OpenMode::default(), devices] {
            let error = FileStorage::open(&path, mode).unwrap_err();
            assert_eq!(error.code(), "ERR_QCOW2_NOT_REGULAR", "{}", path.display());
        }
    }
    let error = FileStorage::open(&folder.path("none"), devices).unwrap_err();
    assert_eq!(error.system().unwrap().1.raw_os_error(), Some(2));
}

#[test]
fn an_image_inside_a_larger_file_reads_as_alone() {
    let folder = Folder::new();
    let image = Bytes::new("cluster_size=4096");
    let mut container = vec![0xcc; 12345];
    container.extend(&image.0);
    let end = container.len() as u64;
    container.extend([0xdd; 5000]);
    std::fs::write(folder.path("container"), container).unwrap();
    for size in [None, Some(end - 12345)] {
        let window = WindowStorage::new(storage(&folder.path("container")), 12345, size).unwrap();
        let layer = Layer::open_qcow2(Arc::new(window), &LayerOptions::default()).unwrap();
        let chain = Chain::new(vec![layer], ChainOptions::default()).unwrap();
        assert_same(&read_all(&chain), &expected(), "in a window");
    }
    // The window, not the file, is where the image ends.
    let window = WindowStorage::new(storage(&folder.path("container")), 12345, Some(end - 12345 - 4096)).unwrap();
    let layer = Layer::open_qcow2(Arc::new(window), &LayerOptions::default()).unwrap();
    let chain = Chain::new(vec![layer], ChainOptions::default()).unwrap();
    assert_eq!(
        chain.read(GuestOffset(0), &mut vec![0; 1 << 20]).unwrap_err().code(),
        "ERR_QCOW2_TRUNCATED"
    );
}

#[test]
fn sizes_and_headers_that_are_odd_but_valid_open() {
    let image = Bytes::new("");
    assert_eq!(image.clone().put64(24, 1000).open().unwrap().virtual_size(), 512);
    let empty = image.clone().put64(24, 0).chain().unwrap();
    assert_eq!(
        (empty.virtual_size(), empty.read(GuestOffset(0), &mut [0; 4]).unwrap()),
        (0, 0)
    );
    let mut longer = image.clone();
    longer.0.extend([0xab; 777]);
    assert_same(
        &read_all(&longer.chain().unwrap()),
        &expected(),
        "bytes behind the image",
    );
    assert_same(
        &read_all(&image.clone().put64(80, u64::MAX).chain().unwrap()),
        &expected(),
        "compatible bits",
    );
}

#[test]
fn version_1_is_another_format_and_named_so_even_where_nobody_says_which() {
    let image = Bytes::new("").put32(4, 1);
    assert_eq!(qcow2_engine::Format::probe(&image.0), qcow2_engine::Format::Qcow2);
    let error = image.refused("VERSION");
    assert!(error.to_string().contains("qcow1"), "{error}");
    assert_eq!(
        qcow2_engine::Format::probe(&Bytes::new("").put32(4, 0).0),
        qcow2_engine::Format::Raw
    );
}

#[test]
fn tables_that_are_shared_or_lie_in_other_tables_are_read_as_they_stand() {
    let image = Bytes::new("");
    let (l1, l2) = (image.l1(), image.l2());
    // Two L1 entries of one L2 table: the second 512 MiB are the first again.
    let shared = image
        .clone()
        .put64(24, 1 << 30)
        .put32(36, 2)
        .put64(l1 + 8, image.get64(l1));
    let chain = shared.chain().unwrap();
    let mut bytes = vec![0; 1 << 20];
    chain.read(GuestOffset(512 << 20), &mut bytes).unwrap();
    assert_same(&bytes, &expected(), "the second of two entries of one table");
    // An L1 entry that names the refcount table, the L1 itself or a refcount block: entries like any others, never a panic.
    for place in [image.get64(48), l1 as u64, 0x2_0000] {
        let chain = image.clone().put64(l1, 1 << 63 | place).chain().unwrap();
        for cluster in 0..16 {
            let _ = chain.read(GuestOffset(cluster << 16), &mut vec![0; 65536]);
        }
        assert!(chain.status(GuestOffset(1 << 19), 1 << 19, 1000).is_ok());
    }
    // A data cluster in the L2 table: its bytes.
    let chain = image.clone().put64(l2, 1 << 63 | l2 as u64).chain().unwrap();
    let mut bytes = vec![0; 65536];
    chain.read(GuestOffset(0), &mut bytes).unwrap();
    assert_eq!(bytes[..8], (1u64 << 63 | l2 as u64).to_be_bytes());
}

/// What begins like an image and is one, and ends like a disk with a partition table and a file system, is one thing or the other by the
/// caller's word alone.
#[test]
fn a_file_of_two_formats_is_what_the_caller_says() {
    let mut image = Bytes::new("");
    image.0[510..512].copy_from_slice(&[0x55, 0xaa]);
    image.0.resize(image.0.len().next_multiple_of(512), 0);
    assert_same(&read_all(&image.chain().unwrap()), &expected(), "as qcow2");
    let storage = Arc::new(MemoryStorage::new(image.0.clone()));
    let raw = Layer::open_raw(storage, &LayerOptions::default()).unwrap();
    let raw = Chain::new(vec![raw], ChainOptions::default()).unwrap();
    assert_same(&read_all(&raw), &image.0, "as raw");
}
