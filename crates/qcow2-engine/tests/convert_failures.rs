//! What conversions do when something goes wrong: the error is told, nothing is left behind, and what was there stays as it was.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use qcow2_engine::storage::testing::FailingStorage;
use qcow2_engine::{
    CancelToken, Chain, ChainOptions, ConvertOptions, CreateOptions, Error, Format, JobContext, Layer, LayerOptions,
    MemoryStorage, Place, Progress, Storage, Target, convert,
};
use support::{Folder, Random, assert_same, chain, qemu_img, read_all, storage};

fn over(path: PathBuf) -> Target {
    Target::Path {
        path,
        overwrite: true,
        durable: false,
    }
}

fn raw() -> ConvertOptions {
    ConvertOptions {
        create: CreateOptions {
            format: Format::Raw,
            ..CreateOptions::default()
        },
        ..ConvertOptions::default()
    }
}

/// A raw disk of noise with a hole in the middle.
fn noise(folder: &Folder, size: usize) -> Vec<u8> {
    let mut random = Random::new(size as u64);
    let mut bytes: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
    bytes[size / 3..size / 2].fill(0);
    std::fs::write(folder.path("in.raw"), &bytes).unwrap();
    bytes
}

fn names(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path("")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_write_that_fails_at_any_point_fails_the_job() {
    let folder = Folder::new();
    noise(&folder, 3 << 20);
    for (compress, threads) in [(false, 1), (true, 3)] {
        let options = ConvertOptions {
            compress,
            threads,
            ..ConvertOptions::default()
        };
        let mut runs_clean = None;
        for fail_at in 0..200 {
            let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new(Vec::new()));
            let failing: Arc<dyn Storage> =
                Arc::new(FailingStorage::new(memory, fail_at, false, ErrorKind::StorageFull));
            let outcome = convert(
                &[Arc::new(chain(&folder, "in.raw"))],
                &Target::Storage(failing),
                &options,
                &JobContext::quiet(),
            );
            match outcome {
                Err(Error::Io { source, .. }) => assert_eq!(source.kind(), ErrorKind::StorageFull),
                Err(error) => panic!("{error}"),
                Ok(_) => {
                    runs_clean = Some(fail_at);
                    break;
                }
            }
        }
        assert!(runs_clean.is_some_and(|calls| calls > 3), "{runs_clean:?}");
    }
}

#[test]
fn a_read_that_fails_at_any_point_leaves_the_older_target() {
    let folder = Folder::new();
    let bytes = noise(&folder, 3 << 20);
    qemu_img(&folder, &["convert", "-c", "-O", "qcow2", "in.raw", "in.qcow2"]).clear();
    std::fs::write(folder.path("out.qcow2"), b"precious").unwrap();
    let before = names(&folder);
    let options = ConvertOptions {
        threads: 3,
        ..ConvertOptions::default()
    };
    for fail_at in 0..300 {
        let failing: Arc<dyn Storage> = Arc::new(FailingStorage::new(
            storage(&folder.path("in.qcow2")),
            fail_at,
            true,
            ErrorKind::TimedOut,
        ));
        let layer = Layer::open_qcow2(failing, &LayerOptions::default());
        let source = layer.and_then(|layer| Chain::new(vec![layer], ChainOptions::default()));
        let outcome = source.and_then(|source| {
            let target = over(folder.path("out.qcow2"));
            convert(&[Arc::new(source)], &target, &options, &JobContext::quiet())
        });
        match outcome {
            Ok(_) => {
                assert!(fail_at > 5);
                assert_same(
                    &read_all(&chain(&folder, "out.qcow2")),
                    &bytes,
                    "the run without failure",
                );
                return;
            }
            Err(Error::Io { source, .. }) => assert_eq!(source.kind(), ErrorKind::TimedOut),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(std::fs::read(folder.path("out.qcow2")).unwrap(), b"precious");
        assert_eq!(names(&folder), before, "no debris");
    }
    panic!("it never ran clean");
}

#[test]
fn cancelling_at_any_point_leaves_nothing_and_the_older_target() {
    let folder = Folder::new();
    noise(&folder, 8 << 20);
    std::fs::write(folder.path("old.qcow2"), b"precious").unwrap();
    let before = names(&folder);
    let mut cancelled = 0;
    for step in 0..40u64 {
        let cancel = CancelToken::new();
        let token = cancel.clone();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(step * 700));
            token.cancel();
        });
        let job = JobContext {
            cancel,
            progress: Progress::silent(),
        };
        let options = ConvertOptions {
            compress: true,
            threads: 1 + step as usize % 4,
            ..ConvertOptions::default()
        };
        for (name, new) in [("old.qcow2", false), ("new.qcow2", true)] {
            let outcome = convert(
                &[Arc::new(chain(&folder, "in.raw"))],
                &over(folder.path(name)),
                &options,
                &job,
            );
            match outcome {
                Err(Error::Cancelled) => {
                    cancelled += 1;
                    assert!(new || std::fs::read(folder.path(name)).unwrap() == b"precious");
                    assert_eq!(names(&folder), before, "no debris");
                }
                other => {
                    other.unwrap();
                    if new {
                        std::fs::remove_file(folder.path(name)).unwrap();
                    } else {
                        std::fs::write(folder.path(name), b"precious").unwrap();
                    }
                }
            }
        }
        timer.join().unwrap();
    }
    assert!(cancelled > 5, "{cancelled}");
}

#[test]
fn a_full_disk_leaves_the_older_target() {
    let folder = Folder::new();
    let mount = folder.path("small");
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&mount)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("not allowed to mount: a full disk is not tested");
        return;
    }
    noise(&folder, 4 << 20);
    std::fs::write(mount.join("out"), b"precious").unwrap();
    let outcomes: Vec<_> = [ConvertOptions::default(), raw()]
        .iter()
        .map(|options| {
            let source = Arc::new(chain(&folder, "in.raw"));
            let error = convert(&[source], &over(mount.join("out")), options, &JobContext::quiet()).unwrap_err();
            let left = std::fs::read_dir(&mount).unwrap().count();
            (error, left, std::fs::read(mount.join("out")).unwrap())
        })
        .collect();
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    for (error, left, bytes) in outcomes {
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull),
            "{error}"
        );
        assert_eq!((left, &bytes[..]), (1, &b"precious"[..]));
    }
}

/// Runs in a child process, which its parent kills.
#[test]
fn child_that_converts_slowly() {
    let Some(folder) = std::env::var_os("QCOW2_TEST_CHILD_FOLDER").map(PathBuf::from) else {
        return;
    };
    let source = Layer::open_raw(storage(&folder.join("in.raw")), &LayerOptions::default()).unwrap();
    let source = Chain::new(vec![source], ChainOptions::default()).unwrap();
    let options = ConvertOptions {
        rate_limit: Some(4 << 20),
        ..ConvertOptions::default()
    };
    std::fs::write(folder.join("begun"), b"").unwrap();
    let target = over(folder.join("out.qcow2"));
    convert(&[Arc::new(source)], &target, &options, &JobContext::quiet()).unwrap();
}

#[test]
fn a_killed_conversion_leaves_the_older_target() {
    let folder = Folder::new();
    noise(&folder, 8 << 20);
    std::fs::write(folder.path("out.qcow2"), b"precious").unwrap();
    for delay in [0, 150, 400] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_converts_slowly", "--quiet"])
            .env("QCOW2_TEST_CHILD_FOLDER", folder.path(""))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !folder.path("begun").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "it was killed on its way");
        std::fs::remove_file(folder.path("begun")).unwrap();
        assert_eq!(std::fs::read(folder.path("out.qcow2")).unwrap(), b"precious");
        assert_eq!(names(&folder), ["in.raw", "out.qcow2"], "nothing but what was there");
    }
}

#[test]
fn a_target_that_a_source_needs_is_refused() {
    let folder = Folder::new();
    noise(&folder, 1 << 20);
    qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-b", "in.raw", "-F", "raw", "top.qcow2"],
    )
    .clear();
    std::fs::hard_link(folder.path("in.raw"), folder.path("hard")).unwrap();
    std::os::unix::fs::symlink("top.qcow2", folder.path("soft")).unwrap();
    let before = std::fs::read(folder.path("in.raw")).unwrap();
    for name in ["top.qcow2", "in.raw", "hard", "soft"] {
        for overwrite in [true, false] {
            let target = Target::Path {
                path: folder.path(name),
                overwrite,
                durable: false,
            };
            let source = Arc::new(chain(&folder, "top.qcow2"));
            let error = convert(&[source], &target, &ConvertOptions::default(), &JobContext::quiet()).unwrap_err();
            assert_eq!(error.code(), "ERR_QCOW2_SAME_FILE", "{name}");
        }
        let place = Place::Path(folder.path(name));
        let source = Arc::new(chain(&folder, "top.qcow2"));
        let target = Target::InPlace { place, durable: false };
        let error = convert(&[source], &target, &raw(), &JobContext::quiet()).unwrap_err();
        assert_eq!(error.code(), "ERR_QCOW2_SAME_FILE", "{name}");
    }
    assert_same(&std::fs::read(folder.path("in.raw")).unwrap(), &before, "the source");
}

#[test]
fn options_without_meaning_are_refused_before_anything_is_made() {
    let folder = Folder::new();
    noise(&folder, 1 << 20);
    let source = Arc::new(chain(&folder, "in.raw"));
    let base = ConvertOptions::default;
    let cases = [
        (ConvertOptions { threads: 0, ..base() }, "INVALID_ARGUMENT"),
        (ConvertOptions { threads: 65, ..base() }, "INVALID_ARGUMENT"),
        (
            ConvertOptions {
                sparse_size: 1000,
                ..base()
            },
            "INVALID_ARGUMENT",
        ),
        (
            ConvertOptions {
                sparse_size: 32 << 20,
                ..base()
            },
            "INVALID_ARGUMENT",
        ),
        (
            ConvertOptions {
                level: Some(3),
                ..base()
            },
            "INVALID_ARGUMENT",
        ),
        (
            ConvertOptions {
                target_is_zero: true,
                ..base()
            },
            "INVALID_ARGUMENT",
        ),
        (
            ConvertOptions {
                compress: true,
                level: Some(40),
                ..base()
            },
            "CODEC",
        ),
        (
            ConvertOptions {
                compress: true,
                ..raw()
            },
            "COMPRESSION_UNSUPPORTED",
        ),
        (
            ConvertOptions {
                max_output: Some(500_000),
                ..base()
            },
            "LIMIT",
        ),
        (
            ConvertOptions {
                max_output: Some(500_000),
                ..raw()
            },
            "LIMIT",
        ),
        (
            ConvertOptions {
                create: CreateOptions {
                    size: Some(1000),
                    ..CreateOptions::default()
                },
                ..base()
            },
            "TARGET_TOO_SMALL",
        ),
    ];
    for (options, code) in cases {
        let target = over(folder.path("out"));
        let error = convert(std::slice::from_ref(&source), &target, &options, &JobContext::quiet()).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"), "{error}");
        assert_eq!(names(&folder), ["in.raw"]);
    }
}

#[test]
fn what_is_written_in_place_keeps_its_length_and_its_rest() {
    let folder = Folder::new();
    let bytes = noise(&folder, 1 << 20);
    let old = vec![0xee; 3 << 20];
    let mut expected = old.clone();
    expected[..1 << 20].copy_from_slice(&bytes);
    std::fs::write(folder.path("out.raw"), &old).unwrap();
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new(old.clone()));
    for place in [Place::Path(folder.path("out.raw")), Place::Storage(memory.clone())] {
        let target = Target::InPlace { place, durable: true };
        convert(
            &[Arc::new(chain(&folder, "in.raw"))],
            &target,
            &raw(),
            &JobContext::quiet(),
        )
        .unwrap();
    }
    assert_same(&std::fs::read(folder.path("out.raw")).unwrap(), &expected, "file");
    let mut read = vec![0; 3 << 20];
    memory.read_at(qcow2_format::HostOffset(0), &mut read).unwrap();
    assert_same(&read, &expected, "memory");
    std::fs::write(folder.path("short.raw"), [1; 4096]).unwrap();
    let target = Target::InPlace {
        place: Place::Path(folder.path("short.raw")),
        durable: false,
    };
    let error = convert(
        &[Arc::new(chain(&folder, "in.raw"))],
        &target,
        &raw(),
        &JobContext::quiet(),
    )
    .unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_TARGET_TOO_SMALL");
    assert_eq!(std::fs::read(folder.path("short.raw")).unwrap(), [1; 4096]);
}

/// A loop device over a file of old bytes, if the machine allows one.
struct Device(String);

impl Device {
    fn over(path: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(path)
            .output()
            .ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(name.trim().to_owned()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_with_old_bytes_becomes_a_sound_image() {
    let folder = Folder::new();
    let bytes = noise(&folder, 2 << 20);
    std::fs::write(folder.path("disk"), vec![0xee; 8 << 20]).unwrap();
    let Some(device) = Device::over(&folder.path("disk")) else {
        eprintln!("no loop device here: block devices are not tested");
        return;
    };
    for extended_l2 in [false, true] {
        for compress in [false, true] {
            let options = ConvertOptions {
                create: CreateOptions {
                    extended_l2,
                    cluster_size: 16384,
                    ..CreateOptions::default()
                },
                compress,
                ..ConvertOptions::default()
            };
            let target = over(PathBuf::from(&device.0));
            convert(
                &[Arc::new(chain(&folder, "in.raw"))],
                &target,
                &options,
                &JobContext::quiet(),
            )
            .unwrap();
            let check = qemu_img(&folder, &["check", "-f", "qcow2", &device.0]);
            assert!(check.contains("No errors"), "{check}");
            qemu_img(&folder, &["convert", "-f", "qcow2", "-O", "raw", &device.0, "out.raw"]).clear();
            assert_same(&std::fs::read(folder.path("out.raw")).unwrap(), &bytes, "device");
        }
    }
}

#[test]
fn progress_moves_over_holes_and_ends_at_the_whole() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "in.qcow2", "1T"]).clear();
    let reports = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = reports.clone();
    let job = JobContext {
        cancel: CancelToken::new(),
        progress: Progress::new(move |report| seen.lock().unwrap().push(report)),
    };
    let source = Arc::new(chain(&folder, "in.qcow2"));
    convert(
        &[source],
        &over(folder.path("out.qcow2")),
        &ConvertOptions::default(),
        &job,
    )
    .unwrap();
    let reports = reports.lock().unwrap();
    let last = reports.last().unwrap();
    assert_eq!((last.phase, last.done, last.total), ("convert", 1 << 40, 1 << 40));
}

#[test]
fn a_rate_limit_is_kept() {
    let folder = Folder::new();
    noise(&folder, 2 << 20);
    let options = ConvertOptions {
        rate_limit: Some(4 << 20),
        ..ConvertOptions::default()
    };
    let began = std::time::Instant::now();
    let source = Arc::new(chain(&folder, "in.raw"));
    convert(
        &[source],
        &over(folder.path("out.qcow2")),
        &options,
        &JobContext::quiet(),
    )
    .unwrap();
    assert!(began.elapsed() > Duration::from_millis(400), "{:?}", began.elapsed());
}
