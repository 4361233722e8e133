//! The locks, with qemu's programs on the other side, in both orders.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use qcow2_engine::storage::OpenMode;
use qcow2_engine::{Error, FileStorage, ImageLock, Layer, LayerOptions, LockMode, Locking};
use support::{Folder, qemu_img, storage};

/// A qemu-io that has the image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(folder: &Folder, flags: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", "qcow2"])
            .args(flags)
            .arg(folder.path("a.qcow2"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("these tests need qemu-io: {error}"));
        // Its answer shows that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("MiB"), "qemu-io is ready: {line}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder() -> Folder {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    folder
}

fn open(folder: &Folder, options: LayerOptions) -> Result<Layer, Error> {
    Layer::open_qcow2(storage(&folder.path("a.qcow2")), &options)
}

/// Whether qemu-io can open the image now, and what it says if not.
fn qemu_opens(folder: &Folder, flags: &[&str]) -> Result<(), String> {
    let output = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .args(flags)
        .args(["-c", "length"])
        .arg(folder.path("a.qcow2"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

#[test]
fn an_image_that_qemu_writes_is_refused_unless_sharing_is_forced() {
    let folder = folder();
    let holder = Holder::new(&folder, &[]);
    let error = open(&folder, LayerOptions::default()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Locked {
                permission: "write",
                shared: true,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.code(), "ERR_QCOW2_LOCKED");

    let forced = LayerOptions {
        force_share: true,
        ..LayerOptions::default()
    };
    let layer = open(&folder, forced).unwrap();
    assert!(layer.notices().iter().any(|notice| notice.code == "MAY_BE_TORN"));
    let off = LayerOptions {
        locking: Locking::Off,
        ..LayerOptions::default()
    };
    assert!(open(&folder, off).is_ok());

    drop(holder);
    let layer = open(&folder, LayerOptions::default()).unwrap();
    assert!(layer.notices().is_empty());
}

#[test]
fn an_image_that_qemu_reads_can_be_read_too() {
    let folder = folder();
    for flags in [&["-r"][..], &["-r", "-U"]] {
        let _holder = Holder::new(&folder, flags);
        assert!(open(&folder, LayerOptions::default()).is_ok(), "{flags:?}");
    }
}

#[test]
fn while_an_image_is_read_here_qemu_reads_but_does_not_write() {
    let folder = folder();
    let layer = open(&folder, LayerOptions::default()).unwrap();
    assert_eq!(qemu_opens(&folder, &["-r"]), Ok(()));
    assert_eq!(qemu_opens(&folder, &["-r", "-U"]), Ok(()));
    let text = qemu_opens(&folder, &[]).unwrap_err();
    assert!(text.contains("Failed to get \"write\" lock"), "{text}");
    drop(layer);
    assert_eq!(qemu_opens(&folder, &[]), Ok(()));
}

#[test]
fn reading_with_forced_sharing_keeps_nobody_from_writing() {
    let folder = folder();
    let forced = LayerOptions {
        force_share: true,
        ..LayerOptions::default()
    };
    let _layer = open(&folder, forced).unwrap();
    assert_eq!(qemu_opens(&folder, &[]), Ok(()));
}

#[test]
fn a_writer_here_keeps_everybody_else_out_and_is_kept_out_by_readers() {
    let folder = folder();
    let mode = OpenMode {
        writable: true,
        ..OpenMode::default()
    };
    let file = || std::sync::Arc::new(FileStorage::open(&folder.path("a.qcow2"), mode).unwrap());
    let (lock, notice) = ImageLock::acquire(file(), LockMode::Write, Locking::On).unwrap();
    assert_eq!(notice, None);
    let text = qemu_opens(&folder, &["-r"]).unwrap_err();
    assert!(text.contains("Failed to get shared \"write\" lock"), "{text}");
    assert_eq!(qemu_opens(&folder, &["-r", "-U"]), Ok(()));
    assert!(qemu_opens(&folder, &[]).is_err());
    // A second file description of the same process is somebody else, too.
    assert!(ImageLock::acquire(file(), LockMode::Write, Locking::On).is_err());
    assert!(open(&folder, LayerOptions::default()).is_err());
    drop(lock);

    let _holder = Holder::new(&folder, &["-r"]);
    let error = ImageLock::acquire(file(), LockMode::Write, Locking::On).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Locked {
                permission: "write",
                shared: false,
                ..
            }
        ),
        "{error}"
    );
    // The failed attempt holds nothing.
    assert!(open(&folder, LayerOptions::default()).is_ok());
}

#[test]
fn the_data_file_is_locked_like_the_image() {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "a.qcow2", "1M"],
    );
    let mut layer = open(&folder, LayerOptions::default()).unwrap();
    layer.set_data_file(storage(&folder.path("d.raw"))).unwrap();
    let mode = OpenMode {
        writable: true,
        ..OpenMode::default()
    };
    let data = std::sync::Arc::new(FileStorage::open(&folder.path("d.raw"), mode).unwrap());
    assert!(ImageLock::acquire(data.clone(), LockMode::Write, Locking::On).is_err());
    drop(layer);
    assert!(ImageLock::acquire(data, LockMode::Write, Locking::On).is_ok());
}
