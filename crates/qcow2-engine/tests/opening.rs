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
    Chain, ChainOptions, Error, FileStorage, Layer, LayerOptions, Limits, MemoryStorage, Result, WindowStorage,
};
use qcow2_format::GuestOffset;
use support::{Folder, assert_same, chain, layer, qemu_img, qemu_io, read_all, storage};

/// An image as bytes that are changed before they are opened.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    /// A version 3 image of 1 MiB with 64 KiB clusters: four clusters of `0x5a` at guest offset 0, made by qemu.
    fn new(options: &str) -> Self {
        let folder = Folder::new();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend(["a.qcow2", "1M"]);
        qemu_img(&folder, &args);
        qemu_io(&folder, "a.qcow2", &["write -P 0x5a 0 256k".into()]);
        Self(std::fs::read(folder.path("a.qcow2")).unwrap())
    }

    fn put32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    fn put64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_be_bytes());
        self
    }

    fn get64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    /// Where the first L1 entry stands.
    fn l1(&self) -> usize {
        self.get64(40) as usize
    }

    /// Where the first L2 entry stands.
    fn l2(&self) -> usize {
        (self.get64(self.l1()) & 0x00ff_ffff_ffff_fe00) as usize
    }

    fn open_with(&self, options: LayerOptions) -> Result<Layer> {
        Layer::open_qcow2(Arc::new(MemoryStorage::new(self.0.clone())), &options)
    }

    fn open(&self) -> Result<Layer> {
        self.open_with(LayerOptions::default())
    }

    fn chain(&self) -> Result<Chain> {
        Chain::new(vec![self.open()?], ChainOptions::default())
    }

    #[track_caller]
    fn refused(&self, code: &str) -> Error {
        let error = self.open().map(|_| ()).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"), "{error}");
        error
    }

    /// Opens, but does not read the cluster at `at`.
    #[track_caller]
    fn unreadable(&self, at: u64, code: &str) -> Error {
        let error = self.chain().unwrap().read(GuestOffset(at), &mut [0; 4096]).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"), "{error}");
        error
    }

    #[track_caller]
    fn noticed(&self, code: &str) -> Chain {
        let chain = self.chain().unwrap();
        let codes: Vec<_> = chain.layer(0).unwrap().notices().iter().map(|n| n.code).collect();
        assert!(codes.contains(&code), "{codes:?} has {code}");
        chain
    }
}

fn expected() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[..256 << 10].fill(0x5a);
    bytes
}

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
    image.clone().put32(32, 1).refused("ENCRYPTED");
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

/// Bytes that compress to about two thirds.
fn support_noise(length: usize) -> Vec<u8> {
    let mut random = support::Random::new(5);
    (0..length).map(|_| (random.next() % 40) as u8).collect()
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
        let error = open(LayerOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Encrypted { method, .. } if method == format));
        let metadata = LayerOptions {
            metadata_only: true,
            ..LayerOptions::default()
        };
        let layer = open(metadata).unwrap();
        assert_eq!(layer.virtual_size(), 1 << 20);
        assert_eq!(
            Chain::new(vec![layer], ChainOptions::default()).unwrap_err().code(),
            "ERR_QCOW2_ENCRYPTED"
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

/// A file that is mostly hole, as long as it likes to be.
#[derive(Debug)]
struct Sparse {
    bytes: MemoryStorage,
    reads: std::sync::atomic::AtomicU64,
}

impl qcow2_engine::Storage for Sparse {
    fn length(&self) -> std::io::Result<u64> {
        Ok(1 << 62)
    }

    fn read_at(&self, offset: qcow2_format::HostOffset, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        buffer.fill(0);
        self.bytes.read_at(offset, buffer).map(|_| buffer.len())
    }

    fn allocated_bytes(&self) -> std::io::Result<Option<u64>> {
        self.bytes.length().map(Some)
    }

    fn write_at(&self, _: qcow2_format::HostOffset, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn set_length(&self, _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A map asks whether clusters were reserved before they were written, by counting refcounts. A sparse file of exabytes whose refcount table of
/// 8 MiB names one block a million times kept it reading that block for an hour.
#[test]
fn a_refcount_table_that_names_one_block_for_ever_is_not_followed() {
    let mut image = Bytes::new("");
    let table = image.0.len().next_multiple_of(65536);
    image.0.resize(table + (8 << 20) + 65536, 0);
    let block = ((table + (8 << 20)) as u64).to_be_bytes();
    image.0[table..table + (8 << 20)].as_chunks_mut::<8>().0.fill(block);
    let image = image.put64(48, table as u64).put32(56, 128);
    let storage = Arc::new(Sparse {
        bytes: MemoryStorage::new(image.0),
        reads: 0.into(),
    });
    let layer = Layer::open_qcow2(storage.clone(), &LayerOptions::default()).unwrap();
    let chain = Chain::new(vec![layer], ChainOptions::default()).unwrap();
    let map = chain.status(GuestOffset(0), 1 << 20, 100).unwrap();
    assert_eq!((map[0].length, map[0].data, map[0].zero), (256 << 10, true, false));
    let reads = storage.reads.load(std::sync::atomic::Ordering::Relaxed);
    assert!(reads < 1000, "{reads} reads");
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

/// The length of a LUKS header is believed as far as the file goes: in a sparse file of exabytes the check counted its clusters for ever, in
/// gigabytes of memory, and did not stop when told to.
#[test]
fn a_check_of_a_sparse_file_stops_at_its_memory_limit_and_when_told_to() {
    let folder = Folder::new();
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=512";
    let secret = ["--object", "secret,id=s,data=abc"];
    let args = [
        ["create", "-q"],
        secret,
        ["-f", "qcow2"],
        ["-o", options],
        ["a.qcow2", "1M"],
    ]
    .concat();
    qemu_img(&folder, &args);
    let image = Bytes(std::fs::read(folder.path("a.qcow2")).unwrap());
    // The first extension: its kind, its length, its place, and how long what is there is.
    let image = image.put64(128, 1 << 61);
    let check = |limit: u64, cancelled: bool| {
        let options = LayerOptions {
            for_check: true,
            limits: Limits {
                max_memory: limit,
                ..Limits::default()
            },
            ..LayerOptions::default()
        };
        let storage = Arc::new(Sparse {
            bytes: MemoryStorage::new(image.0.clone()),
            reads: 0.into(),
        });
        let layer = Layer::open_qcow2(storage, &options).unwrap();
        let context = qcow2_engine::JobContext::quiet();
        std::thread::scope(|scope| {
            let cancel = context.cancel.clone();
            if cancelled {
                scope.spawn(move || {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    cancel.cancel();
                });
            }
            let options = qcow2_engine::CheckOptions { max_findings: 10 };
            qcow2_engine::check(&layer, &options, &context).map(|_| ()).unwrap_err()
        })
    };
    assert_eq!(check(1 << 20, false).code(), "ERR_QCOW2_LIMIT");
    assert_eq!(check(u64::MAX, true).code(), "ERR_QCOW2_CANCELLED");
}

/// Four million L1 entries that name one L2 table are one range of zeros: its end is found after minutes, and until then nothing could stop it.
#[test]
fn a_map_over_millions_of_tables_can_be_cancelled() {
    let mut image = Bytes::new("cluster_size=2M").0;
    let table = image.len().next_multiple_of(2 << 20);
    image.resize(table + (34 << 20), 0);
    image[table..table + (2 << 20)]
        .as_chunks_mut::<8>()
        .0
        .fill(1u64.to_be_bytes());
    let l1 = table + (2 << 20);
    let entry = (table as u64).to_be_bytes();
    image[l1..].as_chunks_mut::<8>().0.fill(entry);
    let image = Bytes(image).put64(24, 1 << 61).put32(36, 1 << 22).put64(40, l1 as u64);
    let chain = image.chain().unwrap();
    let cancel = qcow2_engine::CancelToken::new();
    std::thread::scope(|scope| {
        let map = scope.spawn(|| chain.status_unless(GuestOffset(0), u64::MAX, 1, &cancel));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!map.is_finished(), "it would take long");
        cancel.cancel();
        assert_eq!(map.join().unwrap().unwrap_err().code(), "ERR_QCOW2_CANCELLED");
    });
    // A short question has a short answer all the same.
    let some = chain.status(GuestOffset(1 << 60), 1 << 20, 1).unwrap();
    assert_eq!((some.len(), some[0].length, some[0].zero), (1, 1 << 20, true));
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
