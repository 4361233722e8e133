//! Bitmaps against qemu and against plain arrays of granules: what is recorded, what is stored, and what each other's programs make of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_engine::{Disk, NewBitmap, NewSnapshot, ResizeOptions, SnapshotChoice};
use qcow2_format::GuestOffset;
use support::dirty::{Granules, clean, dirty, disk, qemu_dirty, qemu_list};
use support::{Folder, Random, qemu_img, qemu_io};

fn create(folder: &Folder, options: &str, size: u64) {
    let size = size.to_string();
    let options = options.replace("DATA", folder.path("data.raw").to_str().unwrap());
    if options.contains("backing_fmt") {
        std::fs::write(folder.path("base.raw"), vec![0xbb; 3 << 20]).unwrap();
    }
    let args = ["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size];
    qemu_img(folder, &args);
}

fn new(name: &str, granularity: u64, enabled: bool) -> NewBitmap {
    NewBitmap {
        name: name.into(),
        granularity: Some(granularity),
        enabled,
    }
}

#[test]
fn what_qemu_recorded_is_read() {
    for cluster_size in [512, 4096, 65536, 2 << 20] {
        let folder = Folder::new();
        let size = (40 << 20) + 512 * 5;
        create(&folder, &format!("cluster_size={cluster_size}"), size);
        let mut models = Vec::new();
        for (name, granularity) in [("fine", 512u64), ("middle", 65536), ("coarse", 2 << 20)] {
            let granularity_text = granularity.to_string();
            qemu_img(&folder, &["bitmap", "--add", "-g", &granularity_text, "a.qcow2", name]);
            models.push(Granules::new(name, granularity, true, size));
        }
        qemu_img(&folder, &["bitmap", "--add", "--disable", "a.qcow2", "off"]);
        models.push(Granules::new("off", cluster_size.clamp(4096, 65536), false, size));
        let mut random = Random::new(cluster_size);
        let mut commands = Vec::new();
        for kind in ["write", "write -z", "discard"] {
            for _ in 0..4 {
                let begin = random.below(size / 512) * 512;
                let length = ((1 + random.below(3000)) * 512).min(size - begin);
                commands.push(format!("{kind} {begin} {length}"));
                models[..3]
                    .iter_mut()
                    .for_each(|model| model.mark(begin..begin + length));
            }
        }
        commands.push(format!("write {} 512", size - 512));
        models[..3].iter_mut().for_each(|model| model.mark(size - 512..size));
        qemu_io(&folder, "a.qcow2", &commands);
        let disk = disk(&folder, "a.qcow2");
        for (model, info) in models.iter().zip(disk.bitmaps()) {
            let expected = (&model.name, model.granularity, model.enabled, false, model.bytes());
            let found = (
                &info.name,
                info.granularity,
                info.enabled,
                info.inconsistent,
                info.dirty_bytes,
            );
            assert_eq!(found, expected);
            assert_eq!(
                dirty(&disk, &model.name),
                model.ranges(),
                "{cluster_size} {}",
                model.name
            );
        }
        disk.close().unwrap();
    }
}

#[test]
fn qemu_reads_what_was_recorded() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", 20 << 20);
    qemu_img(&folder, &["bitmap", "--add", "-g", "512", "a.qcow2", "fine"]);
    qemu_img(&folder, &["bitmap", "--add", "--disable", "a.qcow2", "off"]);
    let open = disk(&folder, "a.qcow2");
    open.write(GuestOffset(100), &[1; 1000]).unwrap();
    open.write_zeroes(GuestOffset(5 << 20), 65536, true).unwrap();
    open.discard(GuestOffset(7 << 20), 1 << 20).unwrap();
    open.bitmap_add(new("later", 4096, true)).unwrap();
    open.write(GuestOffset(9 << 20), &[1; 70_000]).unwrap();
    let expected = [
        0..1536,
        5 << 20..(5 << 20) + 65536,
        7 << 20..8 << 20,
        9 << 20..(9 << 20) + 70_144,
    ];
    assert_eq!(dirty(&open, "fine"), expected);
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "fine"), expected);
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "off"), []);
    let later = 9 << 20..(9 << 20) + 73_728;
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "later"), std::slice::from_ref(&later));
    let flags = |flags: &[&str]| flags.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>();
    let listed = qemu_list(&folder, "a.qcow2");
    assert_eq!(
        listed,
        [
            ("fine".to_owned(), 512, flags(&["auto"])),
            ("off".to_owned(), 65536, flags(&[])),
            ("later".to_owned(), 4096, flags(&["auto"])),
        ]
    );
}

#[test]
fn the_default_granularity_is_qemus() {
    for cluster_size in [512, 4096, 16384, 65536, 2 << 20] {
        let folder = Folder::new();
        create(&folder, &format!("cluster_size={cluster_size}"), 1 << 20);
        qemu_img(&folder, &["bitmap", "--add", "a.qcow2", "theirs"]);
        let disk = disk(&folder, "a.qcow2");
        let granularity = None;
        let name = "ours".into();
        disk.bitmap_add(NewBitmap {
            name,
            granularity,
            enabled: true,
        })
        .unwrap();
        let granularities: Vec<u64> = disk.bitmaps().iter().map(|bitmap| bitmap.granularity).collect();
        assert_eq!(granularities[0], granularities[1]);
        disk.close().unwrap();
    }
}

const SIZE: u64 = (6 << 20) + 7 * 512;

/// One random operation, done to the disk and to the models.
fn step(disk: &Disk, random: &mut Random, models: &mut Vec<Granules>, size: &mut u64) {
    let unit = *random.pick(&[1, 512, 4096, 65536]);
    let begin = random.below(*size) / unit * unit;
    let most = *random.pick(&[600, 9000, 700_000]);
    let length = (1 + random.below(most)).min(*size - begin);
    let at = GuestOffset(begin);
    let which = random.below(models.len() as u64) as usize;
    let name = models.get(which).map(|model| model.name.clone()).unwrap_or_default();
    let follow = |models: &mut Vec<Granules>| {
        let following = models.iter_mut().filter(|model| model.enabled);
        following.for_each(|model| model.mark(begin..begin + length));
    };
    match random.below(20) {
        0..=5 => {
            disk.write(at, &vec![random.next() as u8; length as usize]).unwrap();
            follow(models);
        }
        6 => {
            disk.write_zeroes(at, length, random.below(2) == 0).unwrap();
            follow(models);
        }
        7 => {
            disk.discard(at, length).unwrap();
            follow(models);
        }
        8 => disk.flush().unwrap(),
        9 | 10 if models.len() < 7 => {
            let granularity = *random.pick(&[512, 1024, 4096, 65536, 1 << 20, 1 << 31]);
            let model = Granules::new(
                &format!("bitmap {}", random.below(1000)),
                granularity,
                random.below(3) > 0,
                *size,
            );
            if models.iter().any(|other| other.name == model.name) {
                return;
            }
            disk.bitmap_add(new(&model.name, granularity, model.enabled)).unwrap();
            models.push(model);
        }
        _ if models.is_empty() => {}
        11 => {
            disk.bitmap_remove(&name).unwrap();
            models.remove(which);
        }
        12 => {
            disk.bitmap_clear(&name).unwrap();
            models[which].dirty.fill(false);
        }
        13 => {
            models[which].enabled = !models[which].enabled;
            disk.bitmap_enable(&name, models[which].enabled).unwrap();
        }
        14 => {
            let source = random.below(models.len() as u64) as usize;
            disk.bitmap_merge(&name, &models[source].name).unwrap();
            for range in models[source].clone().ranges() {
                models[which].mark(range);
            }
        }
        15 => {
            let ranges = [begin..begin + length, *size - 1..*size + 5, 700..700, 5..5];
            disk.bitmap_mark(&name, &ranges).unwrap();
            ranges.into_iter().for_each(|range| models[which].mark(range));
        }
        16 => {
            *size = if random.below(2) == 0 {
                SIZE
            } else {
                random.below(SIZE / 512) * 512 + 512
            };
            let shrink = ResizeOptions {
                shrink: true,
                ..ResizeOptions::default()
            };
            disk.resize(*size, shrink).unwrap();
            models.iter_mut().for_each(|model| model.resize(*size));
        }
        _ => {}
    }
}

fn compare(disk: &Disk, models: &[Granules], what: &str) {
    let infos = disk.bitmaps();
    assert_eq!(infos.len(), models.len(), "{what}");
    for (info, model) in infos.iter().zip(models) {
        let expected = (&model.name, model.granularity, model.enabled, false, model.bytes());
        let found = (
            &info.name,
            info.granularity,
            info.enabled,
            info.inconsistent,
            info.dirty_bytes,
        );
        assert_eq!(found, expected, "{what}");
        assert_eq!(dirty(disk, &info.name), model.ranges(), "{what}: {}", info.name);
    }
}

fn exercise(options: &str, seed: u64, rounds: usize) {
    let folder = Folder::new();
    let mut random = Random::new(seed);
    let (mut size, mut models) = (SIZE, Vec::new());
    create(&folder, options, SIZE);
    for round in 0..rounds {
        let what = format!("{options}, seed {seed}, round {round}");
        let open = disk(&folder, "a.qcow2");
        compare(&open, &models, &what);
        for _ in 0..random.below(40) {
            step(&open, &mut random, &mut models, &mut size);
        }
        compare(&open, &models, &what);
        open.close().unwrap();
        drop(open);
        clean(&folder, "a.qcow2");
        let listed = qemu_list(&folder, "a.qcow2");
        let expected: Vec<_> = models
            .iter()
            .map(|model| {
                let flags = model.enabled.then(|| "auto".to_owned());
                (model.name.clone(), model.granularity, Vec::from_iter(flags))
            })
            .collect();
        assert_eq!(listed, expected, "{what}");
        if round % 4 == 3 {
            for model in &models {
                assert_eq!(qemu_dirty(&folder, "a.qcow2", &model.name), model.ranges(), "{what}");
            }
            // qemu records too.
            let begin = random.below(size / 512) * 512;
            let length = (512 * 9).min(size - begin);
            qemu_io(&folder, "a.qcow2", &[format!("write -P 7 {begin} {length}")]);
            for model in models.iter_mut().filter(|model| model.enabled) {
                model.mark(begin..begin + length);
            }
        }
    }
}

#[test]
fn random_changes_are_what_plain_arrays_say_with_64_kib_clusters() {
    exercise("cluster_size=64k", 1, 24);
    exercise("cluster_size=64k,lazy_refcounts=on", 2, 12);
}

#[test]
fn random_changes_are_what_plain_arrays_say_with_small_clusters() {
    exercise("cluster_size=512", 3, 24);
    exercise("cluster_size=4k,refcount_bits=1", 4, 12);
}

#[test]
fn random_changes_are_what_plain_arrays_say_with_large_clusters() {
    exercise("cluster_size=2M", 5, 12);
    exercise("cluster_size=16k,extended_l2=on", 6, 12);
}

#[test]
fn random_changes_are_what_plain_arrays_say_beside_other_files() {
    exercise("cluster_size=4k,data_file=DATA", 7, 12);
    exercise("cluster_size=64k,backing_file=base.raw,backing_fmt=raw", 8, 12);
    exercise("cluster_size=512,backing_file=base.raw,backing_fmt=raw", 9, 12);
}

#[test]
fn a_bitmap_of_8_tib_takes_no_more_than_what_is_mixed() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", 8 << 40);
    let open = disk(&folder, "a.qcow2");
    open.bitmap_add(new("all", 65536, true)).unwrap();
    open.bitmap_add(new("some", 65536, true)).unwrap();
    open.bitmap_mark("all", &[0..1 << 42, (1 << 42) + 65536..8 << 40])
        .unwrap();
    open.write(GuestOffset((7 << 40) + 12345), &[1; 100]).unwrap();
    let all = [0..1 << 42, (1 << 42) + 65536..8 << 40];
    let some = [7 << 40..(7 << 40) + 65536];
    let judge = |open: &Disk| {
        assert_eq!((dirty(open, "all"), dirty(open, "some")), (all.to_vec(), some.to_vec()));
        let bytes: Vec<u64> = open.bitmaps().iter().map(|info| info.dirty_bytes).collect();
        assert_eq!(bytes, [(8 << 40) - 65536, 65536]);
    };
    judge(&open);
    open.close().unwrap();
    drop(open);
    judge(&disk(&folder, "a.qcow2"));
    clean(&folder, "a.qcow2");
    assert!(std::fs::metadata(folder.path("a.qcow2")).unwrap().len() < 2 << 20);
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "all"), all);
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "some"), some);
    let open = disk(&folder, "a.qcow2");
    open.bitmap_merge("some", "all").unwrap();
    open.bitmap_clear("all").unwrap();
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "all"), []);
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "some"), all);
}

#[test]
fn going_back_to_a_snapshot_changes_everything() {
    let folder = Folder::new();
    create(&folder, "cluster_size=64k", 4 << 20);
    let open = disk(&folder, "a.qcow2");
    open.write(GuestOffset(0), &[1; 100]).unwrap();
    let name = "before".into();
    open.snapshot_create(NewSnapshot {
        name,
        ..NewSnapshot::default()
    })
    .unwrap();
    open.resize(6 << 20, ResizeOptions::default()).unwrap();
    open.bitmap_add(new("follows", 4096, true)).unwrap();
    open.bitmap_add(new("off", 4096, false)).unwrap();
    open.write(GuestOffset(5 << 20), &[1; 100]).unwrap();
    assert_eq!(dirty(&open, "follows"), [5 << 20..(5 << 20) + 4096]);
    open.snapshot_apply(&SnapshotChoice::Name("before".into())).unwrap();
    let judge = |open: &Disk| {
        assert_eq!(dirty(open, "follows"), [0..4 << 20]);
        assert_eq!(dirty(open, "off"), []);
    };
    judge(&open);
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    judge(&disk(&folder, "a.qcow2"));
    assert_eq!(qemu_dirty(&folder, "a.qcow2", "follows"), [0..4 << 20]);
}

#[test]
fn many_bitmaps_with_long_names_are_kept_in_order() {
    let folder = Folder::new();
    create(&folder, "cluster_size=512", 1 << 20);
    let open = disk(&folder, "a.qcow2");
    let names: Vec<String> = (0..40)
        .map(|number| format!("{number:02}").repeat(1 + number * 12))
        .collect();
    for name in &names {
        open.bitmap_add(new(name, 65536, name.len() % 4 == 0)).unwrap();
    }
    open.write(GuestOffset(70_000), &[5; 9]).unwrap();
    for name in names.iter().step_by(3) {
        open.bitmap_remove(name).unwrap();
    }
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    let left: Vec<&String> = names
        .iter()
        .enumerate()
        .filter(|(at, _)| at % 3 != 0)
        .map(|(_, name)| name)
        .collect();
    let listed = qemu_list(&folder, "a.qcow2");
    assert_eq!(listed.iter().map(|(name, ..)| name).collect::<Vec<_>>(), left);
    let open = disk(&folder, "a.qcow2");
    for info in open.bitmaps() {
        assert_eq!(info.dirty_bytes, if info.enabled { 65536 } else { 0 });
        open.bitmap_remove(&info.name).unwrap();
    }
    open.close().unwrap();
    drop(open);
    clean(&folder, "a.qcow2");
    assert_eq!(qemu_list(&folder, "a.qcow2"), []);
}
