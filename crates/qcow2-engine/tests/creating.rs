//! New images, judged by qemu-img: `check` is clean, `info` says what it says of its own, the disk reads as zeros or as the backing file.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use qcow2_engine::{
    CREATE_REFUSALS, CreateOptions, Error, Format, JobContext, MemoryStorage, NewDataFile, Place, Preallocation,
    Progress, Storage, Target, create,
};
use qcow2_format::{CompressionType, Version};
use support::{Folder, qemu_img, qemu_map};

fn target(path: PathBuf) -> Target {
    Target::Path {
        path,
        overwrite: false,
        durable: false,
    }
}

/// Our options of a `qemu-img create -o` list.
fn options(folder: &Folder, list: &str) -> CreateOptions {
    let mut options = CreateOptions::default();
    for (key, value) in list.split(',').filter_map(|option| option.split_once('=')) {
        match key {
            "cluster_size" => options.cluster_size = value.parse().unwrap(),
            "compat" => options.version = if value == "0.10" { Version::V2 } else { Version::V3 },
            "refcount_bits" => options.refcount_bits = value.parse().unwrap(),
            "extended_l2" => options.extended_l2 = value == "on",
            "lazy_refcounts" => options.lazy_refcounts = value == "on",
            "compression_type" if value == "zstd" => options.compression_type = CompressionType::Zstd,
            "compression_type" => {}
            "preallocation" => {
                options.preallocation = match value {
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Falloc,
                    "full" => Preallocation::Full,
                    _ => Preallocation::Off,
                }
            }
            "backing_file" => options.backing_name = Some(value.into()),
            "backing_fmt" => options.backing_format = Some(value.into()),
            "data_file" => {
                options.data_file = Some(NewDataFile {
                    name: value.into(),
                    target: target(folder.path(value)),
                });
            }
            "data_file_raw" => options.data_file_raw = value == "on",
            _ => panic!("{key}"),
        }
    }
    options
}

/// What `qemu-img info` says of an image's own properties.
fn facts(folder: &Folder, name: &str) -> Vec<String> {
    let text = qemu_img(folder, &["info", name]);
    let own = text.lines().take_while(|line| !line.starts_with("Child node"));
    own.filter(|line| !line.starts_with("image:") && !line.starts_with("disk size:"))
        .map(str::to_owned)
        .collect()
}

/// The bytes behind the header's offsets: header from the version on without table places, and all extensions.
fn header(folder: &Folder, name: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(folder.path(name)).unwrap();
    bytes.truncate(512.min(bytes.len()));
    // L1 offset, refcount table offset and length: the layout is ours.
    bytes[40..60].fill(0);
    bytes
}

const GIB: u64 = 1 << 30;

#[test]
fn an_image_has_the_properties_that_qemu_gives_its_own() {
    let cases = [
        ("", GIB),
        ("", 0),
        ("", 512),
        ("", 1000),
        ("", 65536 * 8192 + 512),
        ("cluster_size=512", 10 << 20),
        ("cluster_size=4096", 77 << 20),
        ("cluster_size=8192", 77 << 20),
        ("cluster_size=2097152", 64 * GIB),
        ("compat=0.10", GIB),
        ("compat=0.10,cluster_size=512", 1 << 20),
        ("refcount_bits=1", GIB),
        ("refcount_bits=64", GIB),
        ("refcount_bits=2,cluster_size=512", 100 << 20),
        ("refcount_bits=64,cluster_size=512", 100 << 20),
        ("lazy_refcounts=on", GIB),
        ("extended_l2=on", GIB),
        ("extended_l2=on,cluster_size=16384", GIB),
        ("compression_type=zstd", GIB),
        ("preallocation=metadata", 100 << 20),
        ("preallocation=metadata", (100 << 20) + 512),
        ("preallocation=metadata,cluster_size=512", 5 << 20),
        ("preallocation=metadata,cluster_size=1024,refcount_bits=64", 5 << 20),
        ("preallocation=metadata,extended_l2=on", 20 << 20),
        ("preallocation=metadata,compat=0.10", 20 << 20),
        ("preallocation=falloc", 10 << 20),
        ("preallocation=full", 10 << 20),
        ("preallocation=full,extended_l2=on", 3 << 20),
        ("data_file=d.raw", 10 << 20),
        ("data_file=d.raw,extended_l2=on", 10 << 20),
        ("data_file=d.raw,preallocation=falloc", 1000 << 10),
        ("data_file=d.raw,preallocation=full", 1000 << 10),
        ("data_file=d.raw,data_file_raw=on", 1000 << 10),
    ];
    for (list, size) in cases {
        let (ours, theirs) = (Folder::new(), Folder::new());
        let report = create(
            &target(ours.path("i.qcow2")),
            &CreateOptions {
                size: Some(size),
                ..options(&ours, list)
            },
            &JobContext::quiet(),
        )
        .unwrap();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !list.is_empty() {
            args.extend(["-o", list]);
        }
        let text = size.to_string();
        args.extend(["i.qcow2", &text]);
        qemu_img(&theirs, &args);
        assert_eq!(facts(&ours, "i.qcow2"), facts(&theirs, "i.qcow2"), "{list}");
        assert_eq!(header(&ours, "i.qcow2"), header(&theirs, "i.qcow2"), "{list}");
        let check = qemu_img(&ours, &["check", "i.qcow2"]);
        assert!(check.contains("No errors were found"), "{list}: {check}");
        assert_eq!(report.virtual_size, size.next_multiple_of(512));
        let length = std::fs::metadata(ours.path("i.qcow2")).unwrap().len();
        assert_eq!(report.file_size, length, "{list}");
        // Never more than QEMU needs, but for a cluster's round-up.
        let limit = std::fs::metadata(theirs.path("i.qcow2")).unwrap().len() + options(&ours, list).cluster_size;
        assert!(length <= limit, "{list}: {length} > {limit}");
        let status = |folder: &Folder| -> Vec<_> {
            let entries = qemu_map(folder, "i.qcow2");
            // Where and how finely is our layout's matter; what is there must be the same.
            let mut seen: Vec<(u64, bool, bool)> = Vec::new();
            for entry in entries {
                let (present, zero) = (entry.3, entry.4 || list.contains("preallocation"));
                match seen.last_mut() {
                    Some(last) if (last.1, last.2) == (present, zero) => last.0 += entry.1,
                    _ => seen.push((entry.1, present, zero)),
                }
            }
            seen
        };
        if !(list.contains("data_file_raw")) {
            assert_eq!(status(&ours), status(&theirs), "{list}");
        }
        qemu_img(&ours, &["convert", "-O", "raw", "i.qcow2", "out.raw"]).clear();
        if size < 200 << 20 {
            assert!(std::fs::read(ours.path("out.raw")).unwrap().iter().all(|&b| b == 0));
        }
        if list.contains("data_file") {
            let of = |folder: &Folder| std::fs::metadata(folder.path("d.raw")).unwrap().len();
            assert!(of(&ours) == size && of(&theirs).next_multiple_of(65536) == size.next_multiple_of(65536));
        }
    }
}

#[test]
fn space_is_reserved_as_asked() {
    use std::os::unix::fs::MetadataExt;
    // Where free space is in pieces, ext4 lists more than four of them in a block of its own, which counts as the file's: a run beside many
    // others found 4 KiB more than the file's length.
    let own = |bytes: u64| bytes + 4096;
    for (format, preallocation, least, most) in [
        (Format::Qcow2, Preallocation::Off, 0, 64 << 10),
        (Format::Qcow2, Preallocation::Metadata, 0, 300 << 10),
        (Format::Qcow2, Preallocation::Falloc, 8 << 20, 9 << 20),
        (Format::Qcow2, Preallocation::Full, 8 << 20, 9 << 20),
        (Format::Raw, Preallocation::Off, 0, 0),
        (Format::Raw, Preallocation::Falloc, 8 << 20, own(8 << 20)),
        (Format::Raw, Preallocation::Full, 8 << 20, own(8 << 20)),
    ] {
        let folder = Folder::new();
        let options = CreateOptions {
            format,
            preallocation,
            size: Some(8 << 20),
            ..CreateOptions::default()
        };
        create(&target(folder.path("i")), &options, &JobContext::quiet()).unwrap();
        let metadata = std::fs::metadata(folder.path("i")).unwrap();
        let taken = metadata.blocks() * 512;
        assert!((least..=most).contains(&taken), "{format:?} {preallocation:?}: {taken}");
        if format == Format::Raw {
            assert_eq!(metadata.len(), 8 << 20);
        }
    }
}

#[test]
fn a_terabyte_of_metadata_is_laid_out_with_bounded_memory() {
    let folder = Folder::new();
    let options = CreateOptions {
        size: Some(1 << 40),
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    };
    create(&target(folder.path("i.qcow2")), &options, &JobContext::quiet()).unwrap();
    let check = qemu_img(&folder, &["check", "i.qcow2"]);
    assert!(
        check.contains("16777216/16777216 = 100.00% allocated, 0.00% fragmented"),
        "{check}"
    );
}

#[test]
fn a_backing_file_is_recorded_and_answers() {
    for list in [
        "",
        "compat=0.10",
        "extended_l2=on",
        "extended_l2=on,preallocation=metadata",
    ] {
        let folder = Folder::new();
        std::fs::write(folder.path("base.raw"), [7; 100_000]).unwrap();
        let options = CreateOptions {
            size: Some(300_000),
            backing_name: Some("base.raw".into()),
            backing_format: Some("raw".into()),
            ..options(&folder, list)
        };
        create(&target(folder.path("i.qcow2")), &options, &JobContext::quiet()).unwrap();
        let info = qemu_img(&folder, &["info", "i.qcow2"]);
        assert!(info.contains("backing file: base.raw") && info.contains("backing file format: raw"));
        assert!(qemu_img(&folder, &["check", "i.qcow2"]).contains("No errors"));
        qemu_img(&folder, &["convert", "-O", "raw", "i.qcow2", "out.raw"]).clear();
        let out = std::fs::read(folder.path("out.raw")).unwrap();
        assert!(
            out.len() == 300_032 && out[..100_000].iter().all(|&b| b == 7) && out[100_352..].iter().all(|&b| b == 0)
        );
    }
}

#[test]
fn create_refusals_are_named_as_qemu_words_them() {
    let cases = [
        ("cluster_size=1000", 1 << 20, "CLUSTER_SIZE"),
        ("cluster_size=256", 1 << 20, "CLUSTER_SIZE"),
        ("cluster_size=4194304", 1 << 20, "CLUSTER_SIZE"),
        ("extended_l2=on,cluster_size=8192", 1 << 20, "CLUSTER_SIZE_EXTENDED_L2"),
        ("extended_l2=on,compat=0.10", 1 << 20, "EXTENDED_L2_COMPAT"),
        ("lazy_refcounts=on,compat=0.10", 1 << 20, "LAZY_REFCOUNTS_COMPAT"),
        ("refcount_bits=8,compat=0.10", 1 << 20, "REFCOUNT_BITS_COMPAT"),
        ("refcount_bits=24", 1 << 20, "REFCOUNT_BITS"),
        ("data_file=d.raw,compat=0.10", 1 << 20, "DATA_FILE_COMPAT"),
        ("data_file_raw=on", 1 << 20, "DATA_FILE_RAW_ALONE"),
        ("compression_type=zstd,compat=0.10", 1 << 20, "COMPRESSION_TYPE_COMPAT"),
        ("cluster_size=512", 129 << 30, "IMAGE_TOO_BIG"),
        ("", 1 << 62, "IMAGE_TOO_BIG"),
        ("backing_fmt=raw", 1 << 20, "BACKING_FORMAT_ALONE"),
        (
            "backing_file=b.raw,backing_fmt=raw,preallocation=metadata",
            1 << 20,
            "BACKING_PREALLOCATION",
        ),
        (
            "backing_file=b.raw,backing_fmt=raw,data_file=d.raw,data_file_raw=on",
            1 << 20,
            "BACKING_DATA_FILE_RAW",
        ),
    ];
    for (list, size, code) in cases {
        let folder = Folder::new();
        std::fs::write(folder.path("b.raw"), [0; 512]).unwrap();
        let options = CreateOptions {
            size: Some(size),
            ..options(&folder, list)
        };
        let error = create(&target(folder.path("i.qcow2")), &options, &JobContext::quiet()).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"), "{list}: {error}");
        assert!(!folder.path("i.qcow2").exists() && !folder.path("d.raw").exists());
        let text = CREATE_REFUSALS.iter().find(|(known, _)| *known == code).unwrap().1;
        let mut qemu = Command::new("qemu-img");
        qemu.args(["create", "-q", "-f", "qcow2"])
            .arg("-o")
            .arg(if list.is_empty() { "compat=1.1" } else { list });
        qemu.arg(folder.path("i.qcow2")).arg(size.to_string());
        let said = String::from_utf8(qemu.output().unwrap().stderr).unwrap();
        assert!(said.contains(text), "{list}: qemu-img says {said}, not {text}");
    }
}

#[test]
fn what_is_there_stays_unless_overwriting_is_asked_for() {
    let folder = Folder::new();
    let path = folder.path("i.qcow2");
    std::fs::write(&path, b"precious").unwrap();
    let options = CreateOptions {
        size: Some(1 << 20),
        ..CreateOptions::default()
    };
    let error = create(&target(path.clone()), &options, &JobContext::quiet()).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_EXISTS");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let overwrite = Target::Path {
        path: path.clone(),
        overwrite: true,
        durable: true,
    };
    create(&overwrite, &options, &JobContext::quiet()).unwrap();
    assert!(qemu_img(&folder, &["check", "i.qcow2"]).contains("No errors"));
    assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 1, "no debris");
}

#[test]
fn mode_and_owner_of_what_is_replaced_are_kept_and_links_are_followed() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    let folder = Folder::new();
    let (path, link) = (folder.path("real.qcow2"), folder.path("link.qcow2"));
    std::fs::write(&path, b"old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let root = chown(&path, Some(1234), Some(4321)).is_ok();
    symlink("real.qcow2", &link).unwrap();
    let overwrite = Target::Path {
        path: link.clone(),
        overwrite: true,
        durable: false,
    };
    let options = CreateOptions {
        size: Some(1 << 20),
        ..CreateOptions::default()
    };
    create(&overwrite, &options, &JobContext::quiet()).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.len() > 512 && metadata.mode() & 0o7777 == 0o640);
    assert!(!root || (metadata.uid(), metadata.gid()) == (1234, 4321));
    // A link to nothing yet: its target is made.
    symlink("later.qcow2", folder.path("dangling")).unwrap();
    create(&target(folder.path("dangling")), &options, &JobContext::quiet()).unwrap();
    assert!(folder.path("later.qcow2").is_file());
}

#[test]
fn folders_and_special_files_are_no_targets() {
    let folder = Folder::new();
    let fifo = folder.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let options = CreateOptions {
        size: Some(1 << 20),
        ..CreateOptions::default()
    };
    for path in [folder.path(""), fifo, PathBuf::from("/dev/zero")] {
        let overwrite = Target::Path {
            path: path.clone(),
            overwrite: true,
            durable: false,
        };
        let error = create(&overwrite, &options, &JobContext::quiet()).unwrap_err();
        assert_eq!(error.code(), "ERR_QCOW2_NOT_REGULAR", "{}", path.display());
    }
    let missing = create(&target(folder.path("no/such/i.qcow2")), &options, &JobContext::quiet()).unwrap_err();
    assert!(matches!(&missing, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
}

#[test]
fn an_image_that_qemu_has_open_is_not_replaced() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "i.qcow2", "1M"]).clear();
    let mut qemu = Command::new("qemu-io")
        .arg(folder.path("i.qcow2"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its prompt says that it is open.
    let mut prompt = [0; 5];
    std::io::Read::read_exact(qemu.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let overwrite = Target::Path {
        path: folder.path("i.qcow2"),
        overwrite: true,
        durable: false,
    };
    let options = CreateOptions {
        size: Some(1 << 20),
        ..CreateOptions::default()
    };
    let error = create(&overwrite, &options, &JobContext::quiet()).unwrap_err();
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    assert_eq!(error.code(), "ERR_QCOW2_LOCKED");
    create(&overwrite, &options, &JobContext::quiet()).unwrap();
}

#[test]
fn memory_becomes_an_image_and_existing_images_are_not_written_in_place() {
    let folder = Folder::new();
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new(vec![0xee; 1 << 20]));
    let options = CreateOptions {
        size: Some(5 << 20),
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    };
    create(&Target::Storage(memory.clone()), &options, &JobContext::quiet()).unwrap();
    let mut bytes = vec![0; usize::try_from(memory.length().unwrap()).unwrap()];
    memory.read_at(qcow2_format::HostOffset(0), &mut bytes).unwrap();
    std::fs::write(folder.path("i.qcow2"), bytes).unwrap();
    assert!(qemu_img(&folder, &["check", "i.qcow2"]).contains("80/80 = 100.00% allocated"));
    let in_place = Target::InPlace {
        place: Place::Path(folder.path("i.qcow2")),
        durable: false,
    };
    let error = create(&in_place, &options, &JobContext::quiet()).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_INVALID_ARGUMENT");
}

#[test]
fn a_cancelled_creation_leaves_nothing() {
    let folder = Folder::new();
    let token = qcow2_engine::CancelToken::new();
    let canceller = token.clone();
    let job = JobContext {
        cancel: token,
        progress: Progress::new(move |report| {
            if report.done > 0 {
                canceller.cancel();
            }
        }),
    };
    let options = CreateOptions {
        size: Some(1 << 42),
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    };
    let error = create(&target(folder.path("i.qcow2")), &options, &job).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 0);
}
