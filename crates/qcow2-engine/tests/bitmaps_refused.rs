//! Bitmaps that cannot be had, used or believed: each is one typed error, or is told as what it is, and the image stays as usable as it was.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use qcow2_engine::storage::testing::FailingStorage;
use qcow2_engine::{
    Disk, DiskOptions, Error, Finding, FindingCode, Layer, LayerOptions, Limits, MemoryStorage, NewBitmap,
    ResizeOptions, Storage,
};
use qcow2_format::{GuestOffset, HostOffset};
use support::dirty::{clean, dirty, disk, our_check, qemu_list, try_disk, writable};
use support::{Folder, qemu_img, qemu_io, run};

fn create(folder: &Folder, options: &str, size: &str) {
    qemu_img(folder, &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", size]);
}

fn new(name: &str) -> NewBitmap {
    NewBitmap {
        name: name.into(),
        granularity: Some(65536),
        enabled: true,
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>, code: &str) {
    assert_eq!(outcome.unwrap_err().code(), format!("ERR_QCOW2_{code}"));
}

#[test]
fn what_the_format_does_not_allow_is_refused_by_name() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", "8T");
    let disk = disk(&folder, "a.qcow2");
    disk.bitmap_add(new("there")).unwrap();
    refused(disk.bitmap_add(new("there")), "BITMAP_EXISTS");
    refused(disk.bitmap_add(new("")), "INVALID_ARGUMENT");
    refused(disk.bitmap_add(new(&"é".repeat(512))), "INVALID_ARGUMENT");
    refused(disk.bitmap_add(new("line\nbreak")), "INVALID_ARGUMENT");
    for granularity in [0, 256, 1000, 1 << 32] {
        let granularity = Some(granularity);
        refused(
            disk.bitmap_add(NewBitmap {
                granularity,
                ..new("x")
            }),
            "INVALID_ARGUMENT",
        );
    }
    // 2 GiB of bits.
    let granularity = Some(512);
    refused(
        disk.bitmap_add(NewBitmap {
            granularity,
            ..new("x")
        }),
        "LIMIT",
    );
    refused(disk.bitmap_remove("x"), "NO_BITMAP");
    refused(disk.bitmap_clear("x"), "NO_BITMAP");
    refused(disk.bitmap_enable("x", true), "NO_BITMAP");
    refused(disk.bitmap_merge("x", "there"), "NO_BITMAP");
    refused(disk.bitmap_merge("there", "x"), "NO_BITMAP");
    refused(disk.bitmap_mark("x", &[]), "NO_BITMAP");
    refused(disk.bitmap_dirty("x", GuestOffset(0), 1), "NO_BITMAP");
    disk.bitmap_add(new(&"é".repeat(511))).unwrap();
    disk.bitmap_merge("there", "there").unwrap();
    assert_eq!(dirty(&disk, "there"), []);
    disk.close().unwrap();
    refused(disk.bitmap_add(new("late")), "CLOSED");
    drop(disk);
    clean(&folder, "a.qcow2");
}

#[test]
fn version_2_and_raw_files_have_none() {
    let folder = Folder::new();
    create(&folder, "compat=0.10", "1M");
    let open = disk(&folder, "a.qcow2");
    refused(open.bitmap_add(new("x")), "BITMAP_UNSUPPORTED");
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    let raw: Arc<dyn Storage> = Arc::new(MemoryStorage::new(vec![0; 65536]));
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let raw = Disk::open(vec![Layer::open_raw(raw, &options).unwrap()], DiskOptions::default()).unwrap();
    assert_eq!(raw.bitmaps(), []);
    refused(raw.bitmap_add(new("x")), "RAW");
}

#[test]
fn a_disk_without_a_byte_has_none() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", "0");
    let open = disk(&folder, "a.qcow2");
    refused(open.bitmap_add(new("x")), "BITMAP_UNSUPPORTED");
    open.resize(1 << 20, ResizeOptions::default()).unwrap();
    open.bitmap_add(new("x")).unwrap();
    let shrink = ResizeOptions {
        shrink: true,
        ..ResizeOptions::default()
    };
    refused(open.resize(0, shrink), "BITMAP");
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
}

#[test]
fn a_bitmap_does_not_outgrow_the_format() {
    let folder = Folder::new();
    create(&folder, "cluster_size=2M", "1T");
    let open = disk(&folder, "a.qcow2");
    open.bitmap_add(NewBitmap {
        granularity: Some(512),
        ..new("x")
    })
    .unwrap();
    refused(open.resize(4 << 40, ResizeOptions::default()), "LIMIT");
    open.resize(2 << 40, ResizeOptions::default()).unwrap();
    open.write(GuestOffset((2 << 40) - 512), &[1; 512]).unwrap();
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    let last = (2 << 40) - 512..2 << 40;
    assert_eq!(dirty(&disk(&folder, "a.qcow2"), "x"), std::slice::from_ref(&last));
}

#[test]
fn a_first_cluster_without_room_is_refused_and_unharmed() {
    let folder = Folder::new();
    let name = "b".repeat(330);
    std::fs::write(folder.path("base.raw"), vec![1; 1 << 20]).unwrap();
    std::fs::rename(folder.path("base.raw"), folder.path(&name[..200])).unwrap();
    let name = format!("{}{}", "./".repeat(76), &name[..200]);
    let args = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512",
        "-b",
        &name,
        "-F",
        "raw",
        "a.qcow2",
    ];
    qemu_img(&folder, &args);
    let open = || {
        let options = LayerOptions {
            writable: true,
            ..LayerOptions::default()
        };
        let top = Layer::open_qcow2(writable(&folder.path("a.qcow2")), &options).unwrap();
        let base = Layer::open_raw(support::storage(&folder.path(&name)), &LayerOptions::default()).unwrap();
        Disk::open(vec![top, base], DiskOptions::default()).unwrap()
    };
    let disk = open();
    refused(disk.bitmap_add(new("x")), "HEADER_FULL");
    assert_eq!(disk.bitmaps(), []);
    disk.write(GuestOffset(5), b"still usable").unwrap();
    disk.close().unwrap();
    drop(disk);
    clean(&folder, "a.qcow2");
    assert!(qemu_img(&folder, &["info", "a.qcow2"]).contains(&name));
}

#[test]
fn what_was_in_use_is_inconsistent_and_can_only_be_removed() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", "1M");
    qemu_img(&folder, &["bitmap", "--add", "a.qcow2", "lost"]);
    qemu_img(&folder, &["bitmap", "--add", "--disable", "a.qcow2", "kept"]);
    let crashed = disk(&folder, "a.qcow2");
    crashed.write(GuestOffset(0), &[1; 512]).unwrap();
    crashed.flush().unwrap();
    std::fs::copy(folder.path("a.qcow2"), folder.path("crashed.qcow2")).unwrap();
    let flags: Vec<_> = qemu_list(&folder, "crashed.qcow2")
        .into_iter()
        .map(|(.., flags)| flags)
        .collect();
    assert_eq!(flags, [vec!["in-use".to_owned(), "auto".to_owned()], vec![]]);
    let open = disk(&folder, "crashed.qcow2");
    let states: Vec<bool> = open.bitmaps().iter().map(|bitmap| bitmap.inconsistent).collect();
    assert_eq!(states, [true, false]);
    refused(open.bitmap_clear("lost"), "BITMAP_INCONSISTENT");
    refused(open.bitmap_enable("lost", false), "BITMAP_INCONSISTENT");
    refused(open.bitmap_merge("kept", "lost"), "BITMAP_INCONSISTENT");
    refused(open.bitmap_dirty("lost", GuestOffset(0), 9), "BITMAP_INCONSISTENT");
    refused(open.resize(2 << 20, ResizeOptions::default()), "BITMAP");
    assert_eq!(open.chain().virtual_size(), 1 << 20);
    open.write(GuestOffset(70_000), &[1; 512]).unwrap();
    open.bitmap_remove("lost").unwrap();
    open.resize(2 << 20, ResizeOptions::default()).unwrap();
    open.close().unwrap();
    drop(open);
    clean(&folder, "crashed.qcow2");
    assert_eq!(
        qemu_list(&folder, "crashed.qcow2"),
        [("kept".to_owned(), 65536, vec![])]
    );
}

fn place(folder: &Folder) -> (u64, u64) {
    let layer = support::layer(&folder.path("a.qcow2"));
    let directory = layer.extensions().unwrap().bitmaps.unwrap().directory_offset.0;
    (directory, layer.bitmaps()[0].table_offset.0)
}

fn patch(folder: &Folder, offset: u64, bytes: &[u8]) {
    let options = std::fs::File::options()
        .write(true)
        .open(folder.path("a.qcow2"))
        .unwrap();
    options.write_all_at(bytes, offset).unwrap();
}

/// An image with a bitmap in which something is dirty.
fn recorded() -> Folder {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", "1M");
    qemu_img(&folder, &["bitmap", "--add", "-g", "512", "a.qcow2", "x"]);
    qemu_io(&folder, "a.qcow2", &["write 0 5k".into()]);
    folder
}

#[test]
fn a_damaged_directory_is_given_up_when_the_disk_is_written() {
    let folder = recorded();
    let (directory, _) = place(&folder);
    patch(&folder, directory + 16, &[9]);
    let open = disk(&folder, "a.qcow2");
    assert_eq!(open.bitmaps(), []);
    open.close().unwrap();
    drop(open);
    assert_ne!(autoclear(&folder) & 1, 0, "nothing was written");
    let open = disk(&folder, "a.qcow2");
    open.write(GuestOffset(0), &[2; 100]).unwrap();
    open.close().unwrap();
    drop(open);
    assert_eq!(autoclear(&folder) & 1, 0);
    // Its clusters are leaks now, and a new bitmap takes its place in the header.
    run(&folder, "qemu-img", &["check", "-q", "-r", "leaks", "a.qcow2"]);
    let open = disk(&folder, "a.qcow2");
    open.bitmap_add(new("fresh")).unwrap();
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    assert_eq!(
        qemu_list(&folder, "a.qcow2"),
        [("fresh".into(), 65536, vec!["auto".into()])]
    );
}

fn autoclear(folder: &Folder) -> u64 {
    support::layer(&folder.path("a.qcow2")).header().unwrap().autoclear
}

/// `check` said nothing of a directory whose table is longer or shorter than the disk's bits need, which nobody can open.
#[test]
fn a_table_of_another_length_than_the_bits_need_is_corrupt() {
    let folder = recorded();
    let (directory, table) = place(&folder);
    clean(&folder, "a.qcow2");
    for entries in [7_u32, 2] {
        patch(&folder, directory + 8, &entries.to_be_bytes());
        let theirs = Command::new("qemu-img")
            .arg("info")
            .arg(folder.path("a.qcow2"))
            .output()
            .unwrap();
        assert!(!theirs.status.success(), "qemu-img opens it");
        let report = our_check(writable(&folder.path("a.qcow2")));
        let wanted = |found: &&Finding| found.code == FindingCode::BitmapTable;
        let found = report.findings.iter().find(wanted).unwrap();
        assert_eq!((found.offset, found.value), (Some(table), Some(entries.into())));
        assert!(report.corruptions > 0);
    }
}

#[test]
fn stale_bitmaps_are_none() {
    let folder = recorded();
    patch(&folder, 88, &[0; 8]);
    let open = disk(&folder, "a.qcow2");
    assert_eq!(open.bitmaps(), []);
    open.write(GuestOffset(0), &[2; 100]).unwrap();
    open.bitmap_add(new("x")).unwrap();
    open.close().unwrap();
    drop(open);
    run(&folder, "qemu-img", &["check", "-q", "-r", "leaks", "a.qcow2"]);
    clean(&folder, "a.qcow2");
    assert_eq!(
        qemu_list(&folder, "a.qcow2"),
        [("x".into(), 65536, vec!["auto".into()])]
    );
}

#[test]
fn a_bitmap_with_a_damaged_table_is_inconsistent_from_the_first_write_on() {
    let damages: [&[u8]; 4] = [
        &0x5_0001_u64.to_be_bytes(),
        &(1u64 << 60 | 0x5_0000).to_be_bytes(),
        &0x7fff_0000_u64.to_be_bytes(),
        &(2u64).to_be_bytes(),
    ];
    for damage in damages {
        let folder = recorded();
        let (_, table) = place(&folder);
        patch(&folder, table, damage);
        let open = disk(&folder, "a.qcow2");
        assert!(open.bitmaps()[0].inconsistent);
        refused(open.bitmap_dirty("x", GuestOffset(0), 1), "BITMAP_INCONSISTENT");
        open.write(GuestOffset(0), &[2; 100]).unwrap();
        open.close().unwrap();
        drop(open);
        let flags = &qemu_list(&folder, "a.qcow2")[0].2;
        assert_eq!(flags, &["in-use", "auto"]);
        let open = disk(&folder, "a.qcow2");
        open.bitmap_remove("x").unwrap();
        open.close().unwrap();
        drop(open);
        let report = our_check(support::storage(&folder.path("a.qcow2")));
        assert_eq!(report.corruptions, 0, "{:?}", report.findings);
    }
}

#[test]
fn a_table_that_lies_on_the_images_own_tables_is_not_written() {
    for what in ["l1", "refcount table", "refcount block", "header"] {
        let folder = recorded();
        let (directory, _) = place(&folder);
        let layer = support::layer(&folder.path("a.qcow2"));
        let header = layer.header().unwrap();
        let offset = match what {
            "l1" => header.l1_offset.0,
            "refcount table" => header.refcount_table_offset.0,
            "refcount block" => header.refcount_table_offset.0 + 65536,
            _ => 0,
        };
        drop(layer);
        patch(&folder, directory, &offset.to_be_bytes());
        let open = disk(&folder, "a.qcow2");
        assert_eq!(open.bitmaps(), [], "{what}");
        open.write(GuestOffset(0), &[2; 100_000]).unwrap();
        refused(open.bitmap_remove("x"), "NO_BITMAP");
        open.close().unwrap();
        drop(open);
        run(&folder, "qemu-img", &["check", "-q", "-r", "leaks", "a.qcow2"]);
        clean(&folder, "a.qcow2");
    }
}

#[test]
fn a_data_cluster_that_lies_on_the_images_own_tables_is_not_written_nor_given_back() {
    let folder = recorded();
    let (_, table) = place(&folder);
    let l1 = support::layer(&folder.path("a.qcow2")).header().unwrap().l1_offset.0;
    patch(&folder, table, &l1.to_be_bytes());
    let mut before = [0; 16];
    support::storage(&folder.path("a.qcow2"))
        .read_at(HostOffset(l1), &mut before)
        .unwrap();
    let open = disk(&folder, "a.qcow2");
    open.write(GuestOffset(900_000), &[2; 10]).unwrap();
    open.bitmap_mark("x", std::slice::from_ref(&(0..100))).unwrap();
    open.close().unwrap();
    drop(open);
    let open = disk(&folder, "a.qcow2");
    open.bitmap_remove("x").unwrap();
    open.write(GuestOffset(600_000), &[2; 100_000]).unwrap();
    open.close().unwrap();
    drop(open);
    let mut after = [0; 16];
    support::storage(&folder.path("a.qcow2"))
        .read_at(HostOffset(l1), &mut after)
        .unwrap();
    assert_eq!(before, after);
    let report = our_check(support::storage(&folder.path("a.qcow2")));
    assert_eq!(report.corruptions, 0, "{:?}", report.findings);
}

#[test]
fn more_bits_than_memory_allows_are_refused() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", "64G");
    let disk = disk(&folder, "a.qcow2");
    disk.bitmap_add(NewBitmap {
        granularity: Some(4096),
        ..new("x")
    })
    .unwrap();
    // Two bits of every chunk, which takes all of it: 2 MiB.
    let ranges: Vec<_> = (0..4096u64).map(|at| at << 24..(at << 24) + 8192).collect();
    disk.bitmap_mark("x", &ranges).unwrap();
    disk.close().unwrap();
    drop(disk);
    let open = |max_memory| {
        let options = LayerOptions {
            writable: true,
            limits: Limits {
                max_memory,
                ..Limits::default()
            },
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(writable(&folder.path("a.qcow2")), &options).unwrap();
        Disk::open(vec![layer], DiskOptions::default())
    };
    refused(open(1 << 20), "LIMIT");
    assert_eq!(dirty(&open(4 << 20).unwrap(), "x"), ranges);
}

#[test]
fn unknown_extensions_and_what_is_behind_them_stay() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", "1M");
    let mut tail = vec![0x12, 0x34, 0x56, 0x78, 0, 0, 1, 4];
    tail.extend((0..260u32).map(|byte| byte as u8));
    tail.resize(tail.len().next_multiple_of(8), 0);
    patch(&folder, 504, &tail);
    patch(&folder, 40_000, b"trailing bytes");
    let unknown = || {
        let options = LayerOptions {
            force_share: true,
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(support::storage(&folder.path("a.qcow2")), &options).unwrap();
        layer.extensions().unwrap().unknown.clone()
    };
    let before = unknown();
    assert_eq!(before.len(), 1);
    let open = disk(&folder, "a.qcow2");
    for name in ["one", "two"] {
        open.bitmap_add(new(name)).unwrap();
        assert_eq!(unknown(), before);
    }
    open.bitmap_remove("one").unwrap();
    open.resize(8 << 20, ResizeOptions::default()).unwrap();
    open.close().unwrap();
    drop(open);
    assert_eq!(unknown(), before);
    clean(&folder, "a.qcow2");
    let open = disk(&folder, "a.qcow2");
    open.bitmap_remove("two").unwrap();
    open.close().unwrap();
    drop(open);
    assert_eq!((unknown(), qemu_list(&folder, "a.qcow2")), (before, vec![]));
    let mut trailing = [0; 14];
    support::storage(&folder.path("a.qcow2"))
        .read_at(HostOffset(40_000), &mut trailing)
        .unwrap();
    assert_eq!(&trailing, b"trailing bytes");
    clean(&folder, "a.qcow2");
}

#[test]
fn wherever_a_call_fails_bitmaps_are_right_or_inconsistent() {
    let folder = recorded();
    let image = std::fs::read(folder.path("a.qcow2")).unwrap();
    for forever in [false, true] {
        for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
            for fail_at in 0.. {
                let memory = Arc::new(MemoryStorage::new(image.clone()));
                let failing = Arc::new(FailingStorage::new(memory.clone(), fail_at, forever, kind));
                if let Ok(disk) = try_disk(failing.clone()) {
                    let _ = disk.bitmap_add(new("y"));
                    let _ = disk.write(GuestOffset(300_000), &[3; 70_000]);
                    let _ = disk.bitmap_mark("x", std::slice::from_ref(&(900_000..900_001)));
                    let _ = disk.resize((1 << 20) + 512, ResizeOptions::default());
                    let _ = disk.bitmap_remove("y");
                    let _ = disk.close();
                }
                let what = format!("{kind:?} at {fail_at}, forever: {forever}");
                let failed = failing.calls() > fail_at;
                drop(failing);
                let report = our_check(memory.clone());
                assert_eq!(
                    (report.corruptions, report.check_errors),
                    (0, 0),
                    "{what}: {:?}",
                    report.findings
                );
                let disk = try_disk(memory.clone()).unwrap();
                let mut bytes = vec![0; 1 << 20];
                disk.chain().read(GuestOffset(0), &mut bytes).unwrap();
                let x = &disk.bitmaps()[0];
                if !x.inconsistent && bytes[300_000] == 3 {
                    let covered = dirty(&disk, "x").iter().any(|range| range.contains(&300_000));
                    assert!(covered, "{what}");
                }
                if !x.inconsistent {
                    assert_eq!(dirty(&disk, "x")[0].start, 0, "{what}");
                }
                drop(disk);
                if !failed {
                    assert_eq!(report.leaks, 0);
                    assert!(fail_at > 30, "{fail_at}");
                    break;
                }
            }
        }
    }
}

#[test]
fn no_flipped_bit_of_what_describes_bitmaps_makes_a_writer_stumble() {
    let folder = recorded();
    qemu_img(&folder, &["bitmap", "--add", "--disable", "a.qcow2", "second"]);
    let (directory, table) = place(&folder);
    let image = std::fs::read(folder.path("a.qcow2")).unwrap();
    // The autoclear features, the extension, the directory with both entries, a table.
    let places = (88..96)
        .chain(504..544)
        .chain(directory..directory + 64)
        .chain(table..table + 8);
    let (mut opened, mut stored) = (0, 0);
    for (at, bit) in places.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut bytes = image.clone();
        bytes[at as usize] ^= 1 << bit;
        let memory = Arc::new(MemoryStorage::new(bytes));
        let Ok(disk) = try_disk(memory.clone()) else { continue };
        drop(disk);
        let before = our_check(memory.clone()).corruptions;
        let disk = try_disk(memory.clone()).unwrap();
        opened += 1;
        disk.write(GuestOffset(100_000), &[7; 5000]).unwrap();
        for name in ["x", "second"] {
            let _ = disk.bitmap_mark(name, std::slice::from_ref(&(0..1 << 19)));
            let _ = disk.bitmap_merge("x", name);
        }
        let _ = disk.resize(2 << 20, ResizeOptions::default());
        let _ = disk.bitmap_remove("x");
        let _ = disk.bitmap_add(new("third"));
        stored += u32::from(disk.close().is_ok());
        drop(disk);
        let after = our_check(memory.clone());
        let worse = after.corruptions > before;
        assert!(!worse, "byte {at:#x}, bit {bit}: {before}, then {:#?}", after.findings);
        let disk = try_disk(memory).unwrap();
        let mut bytes = [0; 5000];
        disk.chain().read(GuestOffset(100_000), &mut bytes).unwrap();
        assert!(bytes == [7; 5000], "byte {at:#x}, bit {bit}");
    }
    assert!(
        opened > 800 && stored > 700,
        "{opened} could be opened, {stored} closed"
    );
}

#[test]
fn many_threads_write_and_every_write_is_recorded() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", "64M");
    let open = disk(&folder, "a.qcow2");
    open.bitmap_add(NewBitmap {
        granularity: Some(512),
        ..new("fine")
    })
    .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let open = &open;
            scope.spawn(move || {
                for number in 0..200 {
                    let at = (number * 8 + thread) * 2048;
                    open.write(GuestOffset(at), &[1; 512]).unwrap();
                    if number % 50 == 7 {
                        open.bitmap_add(new(&format!("{thread} {number}"))).unwrap();
                    }
                }
            });
        }
    });
    let expected: Vec<_> = (0..1600u64).map(|at| at * 2048..at * 2048 + 512).collect();
    assert_eq!(dirty(&open, "fine"), expected);
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    assert_eq!(dirty(&disk(&folder, "a.qcow2"), "fine"), expected);
}
