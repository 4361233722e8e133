//! Opening for writing, with qemu's programs or other handles of this process on the other side, in both orders; and images that a writer left.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qcow2_engine::storage::OpenMode;
use qcow2_engine::{
    Disk, DiskOptions, Error, FileStorage, Format, Layer, LayerOptions, Locking, MemoryStorage, Storage,
};
use qcow2_format::GuestOffset;
use support::{Folder, qemu_img, run};

/// A program of qemu's that has the image open until it is dropped.
struct Holder(Child);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    IoWriting,
    IoReading,
    IoSharing,
    NbdWriting,
    NbdReading,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::IoWriting,
        Self::IoReading,
        Self::IoSharing,
        Self::NbdWriting,
        Self::NbdReading,
    ];

    fn writes(self) -> bool {
        matches!(self, Self::IoWriting | Self::NbdWriting)
    }
}

impl Holder {
    /// Starts it; what it says if it cannot have the image.
    fn start(folder: &Folder, kind: Kind, format: &str, name: &str) -> Result<Self, String> {
        let path = folder.path(name);
        let socket = folder.path(&format!("nbd-{}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let mut command = match kind {
            Kind::NbdWriting | Kind::NbdReading => {
                let mut command = Command::new("qemu-nbd");
                command.args(["-t", "-f", format, "-k"]).arg(&socket);
                command
            }
            _ => {
                let mut command = Command::new("qemu-io");
                command.args(["-f", format]);
                command
            }
        };
        match kind {
            Kind::IoReading | Kind::NbdReading => command.arg("-r"),
            Kind::IoSharing => command.args(["-r", "-U"]),
            _ => &mut command,
        };
        let mut child = command
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("these tests need qemu-io and qemu-nbd: {error}"));
        if matches!(kind, Kind::NbdWriting | Kind::NbdReading) {
            let begun = Instant::now();
            // It greets whoever comes only when it has the image.
            let greets = || UnixStream::connect(&socket).is_ok_and(|mut stream| stream.read_exact(&mut [0; 8]).is_ok());
            while !greets() {
                if child.try_wait().unwrap().is_some() || begun.elapsed() > Duration::from_secs(20) {
                    return Err(said(&mut child));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            return Ok(Self(child));
        }
        // Its answer shows that the image is open.
        let _ = child.stdin.as_mut().unwrap().write_all(b"length\n");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line.contains("MiB") {
            return Ok(Self(child));
        }
        Err(said(&mut child))
    }
}

fn said(child: &mut Child) -> String {
    let _ = child.kill();
    let _ = child.wait();
    let mut text = String::new();
    let _ = child.stderr.as_mut().unwrap().read_to_string(&mut text);
    text
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn file(folder: &Folder, name: &str) -> Arc<dyn Storage> {
    let mode = OpenMode {
        writable: true,
        ..OpenMode::default()
    };
    Arc::new(FileStorage::open(&folder.path(name), mode).unwrap())
}

fn options(writable: bool, locking: Locking) -> LayerOptions {
    LayerOptions {
        writable,
        locking,
        ..LayerOptions::default()
    }
}

fn open(storage: Arc<dyn Storage>, format: Format, options: &LayerOptions) -> Result<Layer, Error> {
    match format {
        Format::Qcow2 => Layer::open_qcow2(storage, options),
        Format::Raw | Format::Luks => Layer::open_raw(storage, options),
    }
}

fn images(folder: &Folder) -> [(Format, &'static str, &'static str); 2] {
    qemu_img(folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    std::fs::write(folder.path("b.raw"), vec![0; 1 << 20]).unwrap();
    [(Format::Qcow2, "qcow2", "a.qcow2"), (Format::Raw, "raw", "b.raw")]
}

fn facts(error: &Error) -> (String, String, String) {
    let detail = |name| {
        let details = error.details();
        let found = details.into_iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value).unwrap_or_default()
    };
    (detail("permission"), detail("byte"), detail("holder"))
}

#[test]
fn who_holds_an_image_keeps_a_writer_out() {
    let folder = Folder::new();
    for (format, words, name) in images(&folder) {
        for kind in Kind::ALL {
            let holder = Holder::start(&folder, kind, words, name).unwrap();
            let outcome = open(file(&folder, name), format, &options(true, Locking::Auto));
            if kind == Kind::IoSharing {
                assert!(outcome.is_ok(), "{kind:?} {name}");
                continue;
            }
            let Err(error) = outcome else {
                assert!(kind == Kind::IoReading && format == Format::Raw, "{kind:?} {name}");
                continue;
            };
            assert_eq!(error.code(), "ERR_QCOW2_LOCKED", "{kind:?} {name}");
            let (permission, byte, held_by) = facts(&error);
            // With a raw file qemu-nbd is at odds with us only about its size.
            let wanted = match permission.as_str() {
                "write" => ["101", "201"],
                "resize" if format == Format::Raw => ["103", "203"],
                other => panic!("{kind:?} {name}: {other}"),
            };
            assert!(wanted.contains(&byte.as_str()), "{kind:?} {name}: {byte}");
            assert!(held_by.is_empty(), "{kind:?} {name}: {held_by}");
            drop(holder);
            // It is gone, and the failed attempt left nothing.
            assert!(open(file(&folder, name), format, &options(true, Locking::Auto)).is_ok());
        }
    }
}

#[test]
fn while_an_image_is_written_here_qemu_only_shares_it() {
    let folder = Folder::new();
    for (format, words, name) in images(&folder) {
        let layer = open(file(&folder, name), format, &options(true, Locking::On)).unwrap();
        for kind in Kind::ALL {
            match Holder::start(&folder, kind, words, name) {
                // qemu-io lets everybody do everything with a raw file that it reads.
                Ok(_) => assert!(
                    kind == Kind::IoSharing || (kind == Kind::IoReading && format == Format::Raw),
                    "{kind:?} {name}"
                ),
                Err(text) => {
                    let wanted = match kind {
                        Kind::NbdReading if format == Format::Raw => "Failed to get shared \"resize\" lock",
                        _ if kind.writes() => "Failed to get \"write\" lock",
                        _ => "Failed to get shared \"write\" lock",
                    };
                    assert!(text.contains(wanted), "{kind:?} {name}: {text}");
                }
            }
        }
        drop(layer);
        for kind in Kind::ALL {
            assert!(Holder::start(&folder, kind, words, name).is_ok(), "{kind:?} {name}");
        }
    }
}

#[test]
fn the_data_file_of_a_writer_is_a_writers() {
    let folder = Folder::new();
    let create = ["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "a.qcow2", "1M"];
    qemu_img(&folder, &create);
    let mut layer = Layer::open_qcow2(file(&folder, "a.qcow2"), &options(true, Locking::On)).unwrap();
    let holder = Holder::start(&folder, Kind::NbdWriting, "raw", "d.raw").unwrap();
    assert_eq!(
        layer.set_data_file(file(&folder, "d.raw")).unwrap_err().code(),
        "ERR_QCOW2_LOCKED"
    );
    drop(holder);
    layer.set_data_file(file(&folder, "d.raw")).unwrap();
    assert!(Holder::start(&folder, Kind::IoWriting, "raw", "d.raw").is_err());
    drop(layer);
    assert!(Holder::start(&folder, Kind::IoWriting, "raw", "d.raw").is_ok());
}

#[test]
fn two_handles_of_this_process_exclude_each_other_with_and_without_locks() {
    let folder = Folder::new();
    for (format, _, name) in images(&folder) {
        for locking in [Locking::On, Locking::Auto, Locking::Off] {
            for (first, second) in [(true, true), (true, false), (false, true), (false, false)] {
                let one = open(file(&folder, name), format, &options(first, locking)).unwrap();
                let two = open(file(&folder, name), format, &options(second, locking));
                let what = format!("{name} {locking:?} {first} {second}");
                match two {
                    Ok(two) => {
                        assert!(!first && !second, "{what}");
                        drop(two);
                    }
                    Err(error) => {
                        assert_eq!(error.code(), "ERR_QCOW2_LOCKED", "{what}");
                        let (permission, byte, holder) = facts(&error);
                        let wanted = if first && !second { "101" } else { "201" };
                        assert_eq!((permission.as_str(), byte.as_str()), ("write", wanted), "{what}");
                        assert_eq!(holder, "this process", "{what}");
                    }
                }
                drop(one);
                assert!(
                    open(file(&folder, name), format, &options(true, locking)).is_ok(),
                    "{what}"
                );
            }
        }
    }
    // By another name it is the same file.
    std::os::unix::fs::symlink(folder.path("a.qcow2"), folder.path("link")).unwrap();
    std::fs::hard_link(folder.path("a.qcow2"), folder.path("hard")).unwrap();
    let _one = Layer::open_qcow2(file(&folder, "a.qcow2"), &options(true, Locking::Off)).unwrap();
    for name in ["link", "hard"] {
        assert!(Layer::open_qcow2(file(&folder, name), &options(true, Locking::Off)).is_err());
    }
}

#[test]
fn a_file_in_memory_has_one_writer_too() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(vec![0; 1 << 20]));
    let writer = Layer::open_raw(storage.clone(), &options(true, Locking::Auto)).unwrap();
    for writable in [true, false] {
        let error = Layer::open_raw(storage.clone(), &options(writable, Locking::Auto)).unwrap_err();
        assert_eq!(error.code(), "ERR_QCOW2_LOCKED");
    }
    drop(writer);
    assert!(Layer::open_raw(storage, &options(true, Locking::Auto)).is_ok());
}

#[test]
fn writing_and_sharing_with_other_writers_exclude_each_other() {
    let options = LayerOptions {
        force_share: true,
        ..options(true, Locking::Auto)
    };
    let storage = Arc::new(MemoryStorage::new(vec![0; 1 << 20]));
    assert_eq!(
        Layer::open_raw(storage, &options).unwrap_err().code(),
        "ERR_QCOW2_INVALID_ARGUMENT"
    );
}

/// An image that qemu-io wrote with lazy refcounts until it was killed.
fn killed(folder: &Folder) {
    let options = "lazy_refcounts=on,cluster_size=4k";
    qemu_img(folder, &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "1M"]);
    let mut child = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(folder.path("a.qcow2"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    // One command at a time: it does not look for a second one that it has read with the first.
    let stdin = child.stdin.as_mut().unwrap();
    for (command, answer) in [
        ("write -P 7 0 300k", Some("ops")),
        ("write -P 8 500k 10k", Some("ops")),
        ("flush", None),
        ("length", Some("1 MiB")),
    ] {
        stdin.write_all(format!("{command}\n").as_bytes()).unwrap();
        match answer {
            Some(answer) => assert!(lines.any(|line| line.contains(answer)), "{command}"),
            None => std::thread::sleep(Duration::from_millis(400)),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_image_that_a_killed_writer_left_is_repaired_when_it_is_opened_for_writing() {
    let folder = Folder::new();
    killed(&folder);
    let dirty = || std::fs::read(folder.path("a.qcow2")).unwrap()[79] & 1 != 0;
    assert!(dirty());
    // Reading leaves it as it is.
    let layer = Layer::open_qcow2(file(&folder, "a.qcow2"), &options(false, Locking::Auto)).unwrap();
    assert!(layer.notices().iter().any(|notice| notice.code == "DIRTY"));
    drop(layer);
    assert!(dirty());

    let layer = Layer::open_qcow2(file(&folder, "a.qcow2"), &options(true, Locking::Auto)).unwrap();
    assert!(layer.notices().iter().any(|notice| notice.code == "REPAIRED"));
    assert!(!dirty());
    let disk = Disk::open(vec![layer], DiskOptions::default()).unwrap();
    let mut bytes = vec![0; 510 << 10];
    disk.chain().read(GuestOffset(0), &mut bytes).unwrap();
    assert!(bytes[..300 << 10].iter().all(|byte| *byte == 7));
    assert!(bytes[500 << 10..].iter().all(|byte| *byte == 8));
    disk.write(GuestOffset(600 << 10), &[9; 4096]).unwrap();
    disk.close().unwrap();
    drop(disk);
    run(&folder, "qemu-img", &["check", "-q", "a.qcow2"]);
}

#[test]
fn an_image_marked_corrupt_is_read_and_not_written() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    let mut bytes = std::fs::read(folder.path("a.qcow2")).unwrap();
    bytes[79] |= 3;
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes.clone()));
    let error = Layer::open_qcow2(storage.clone(), &options(true, Locking::Auto)).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_CORRUPT_IMAGE");
    assert!(Layer::open_qcow2(storage, &options(false, Locking::Auto)).is_ok());
}

#[test]
fn a_dirty_image_whose_tables_cannot_be_followed_is_not_written_and_stays_marked() {
    let folder = Folder::new();
    killed(&folder);
    let mut bytes = std::fs::read(folder.path("a.qcow2")).unwrap();
    let word = |bytes: &[u8], at: usize| {
        usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00).unwrap()
    };
    let l2 = word(&bytes, word(&bytes, 40));
    // A cluster far beyond the end: what is there when the file grows belongs to it.
    bytes[l2 + 8..l2 + 16].copy_from_slice(&(1u64 << 63 | 1 << 30).to_be_bytes());
    let memory = Arc::new(MemoryStorage::new(bytes.clone()));
    let error = Layer::open_qcow2(memory.clone(), &options(true, Locking::Auto)).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_DIRTY", "{error}");
    let after = memory.to_vec();
    assert_eq!(after[79] & 1, 1);
    assert_eq!(after.len(), bytes.len(), "nothing new was placed");
    assert!(Layer::open_qcow2(memory, &options(true, Locking::Auto)).is_err());
}
