//! Headers that qemu-img writes are read, and written again to the same bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use qcow2_format::{CompressionType, Extensions, Header, HostOffset, bitmap, parse_snapshot_table};

/// A folder that is gone with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("qcow2-format-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn qemu_img(folder: &Path, words: &[&str]) {
    let status = Command::new("qemu-img")
        .current_dir(folder)
        .args(words)
        .output()
        .expect("these tests need qemu-img 10");
    assert!(
        status.status.success(),
        "qemu-img {words:?}: {}",
        String::from_utf8_lossy(&status.stderr)
    );
}

fn first_cluster(path: &Path) -> (Vec<u8>, Header, Extensions) {
    let file = std::fs::read(path).unwrap();
    let size = usize::try_from(Header::cluster_size(&file).unwrap()).unwrap();
    let cluster = file[..size.min(file.len())].to_vec();
    let header = Header::parse(&cluster).unwrap();
    let extensions = Extensions::parse(&cluster, &header).unwrap();
    (cluster, header, extensions)
}

#[test]
fn headers_round_trip_to_the_same_bytes() {
    let folder = Folder::new("round-trip");
    qemu_img(&folder.0, &["create", "-q", "-f", "raw", "base.raw", "64M"]);
    let backing = ["-b", "base.raw", "-F", "raw"];
    let cases: [(&str, &[&str]); 12] = [
        ("plain", &[]),
        ("v2", &["-o", "compat=0.10"]),
        ("c512", &["-o", "cluster_size=512"]),
        ("c4k", &["-o", "cluster_size=4096"]),
        ("c2m", &["-o", "cluster_size=2M"]),
        ("zstd", &["-o", "compression_type=zstd"]),
        ("extended", &["-o", "extended_l2=on,refcount_bits=1"]),
        ("lazy", &["-o", "lazy_refcounts=on,refcount_bits=64"]),
        ("data", &["-o", "data_file=d.raw,data_file_raw=on"]),
        ("backed", &backing),
        ("backed2", &["-o", "compat=0.10", "-b", "base.raw", "-F", "raw"]),
        ("backed512", &["-o", "cluster_size=512", "-b", "base.raw", "-F", "raw"]),
    ];
    for (name, options) in cases {
        let words = [&["create", "-q", "-f", "qcow2"], options, &[name, "64M"]].concat();
        qemu_img(&folder.0, &words);
        let (cluster, mut header, extensions) = first_cluster(&folder.0.join(name));
        let before = header.clone();
        let written = extensions.encode(&mut header).unwrap();
        assert_eq!(header, before, "{name}");
        assert_eq!(written, cluster[..written.len()], "{name}");
        assert!(
            cluster[written.len()..].iter().all(|&byte| byte == 0),
            "{name}: something was left out"
        );
        let default_names = extensions.feature_names == Extensions::default_feature_names(&header);
        assert!(default_names, "{name}: {:?}", extensions.feature_names);
        assert_eq!(
            extensions.backing_name.as_deref(),
            name.starts_with("backed").then_some("base.raw")
        );
        assert_eq!(
            extensions.backing_format.as_deref(),
            name.starts_with("backed").then_some("raw")
        );
        assert_eq!(extensions.data_file.as_deref(), (name == "data").then_some("d.raw"));
        assert_eq!(header.compression == CompressionType::Zstd, name == "zstd");
        assert_eq!(header.virtual_size(), 64 << 20);
    }
}

#[test]
fn snapshots_and_bitmaps_are_listed() {
    let folder = Folder::new("tables");
    let path = folder.0.join("i");
    qemu_img(&folder.0, &["create", "-q", "-f", "qcow2", "i", "10M"]);
    for name in ["first", "zweite – ü"] {
        qemu_img(&folder.0, &["snapshot", "-c", name, "i"]);
    }
    for (name, granularity) in [("b0", "65536"), ("another", "512")] {
        qemu_img(&folder.0, &["bitmap", "--add", "-g", granularity, "i", name]);
    }
    let (_, header, extensions) = first_cluster(&path);
    let file = std::fs::read(&path).unwrap();
    let from = |offset: HostOffset| &file[usize::try_from(offset.0).unwrap()..];
    let (snapshots, length) = parse_snapshot_table(
        from(header.snapshots_offset),
        header.snapshots_offset,
        header.snapshot_count,
        true,
    )
    .unwrap();
    let names: Vec<_> = snapshots
        .iter()
        .map(|s| String::from_utf8(s.name.clone()).unwrap())
        .collect();
    assert_eq!(names, ["first", "zweite – ü"]);
    assert_eq!(snapshots[1].id, b"2");
    assert_eq!(snapshots[0].disk_size, Some(10 << 20));
    assert!(length > 2 * (40 + 24));
    let place = extensions.bitmaps.unwrap();
    let directory = &from(place.directory_offset)[..usize::try_from(place.directory_size).unwrap()];
    let bitmaps = bitmap::parse_directory(directory, place.directory_offset, place.count, header.geometry).unwrap();
    let mut facts: Vec<_> = bitmaps
        .iter()
        .map(|b| (b.name.as_str(), b.granularity(), b.auto(), b.in_use()))
        .collect();
    facts.sort_unstable();
    assert_eq!(facts, [("another", 512, true, false), ("b0", 65536, true, false)]);
}
