//! Conversions, judged by qemu-img: the bytes are the source's, `check` is clean, and the output does not depend on the number of threads.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use qcow2_engine::{
    Chain, ChainOptions, ConvertOptions, CreateOptions, Format, JobContext, NewDataFile, Preallocation, Target, convert,
};
use qcow2_format::{CompressionType, Version};
use support::{Folder, Random, assert_same, chain, chain_with, our_map, qemu_img, qemu_io, read_all};

fn target(path: PathBuf) -> Target {
    Target::Path {
        path,
        overwrite: true,
        durable: false,
    }
}

/// How many seeds; `QCOW2_TEST_SEEDS` asks for more.
fn seeds(default: u64) -> u64 {
    std::env::var("QCOW2_TEST_SEEDS").map_or(default, |n| n.parse().unwrap())
}

/// A disk with text, noise, short and long zero areas.
fn disk(random: &mut Random, size: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; size];
    let mut at = 0;
    while at < size {
        let length = (1 + random.below(9) as usize) * *random.pick(&[512, 4096, 30_000, 65536, 200_000]);
        let end = size.min(at + length);
        match random.below(5) {
            0 | 1 => {}
            2 => bytes[at..end].iter_mut().for_each(|byte| *byte = random.next() as u8),
            3 => bytes[at..end].fill(random.next() as u8),
            _ => (at..end)
                .for_each(|i| bytes[i] = b"the quick brown fox jumps over the lazy dog "[i % 44] ^ (i / 9000) as u8),
        }
        at = end;
    }
    bytes
}

/// Writes a disk as a raw file, zeros as holes where `holes`.
fn write_disk(path: PathBuf, bytes: &[u8], holes: bool) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, page) in bytes.chunks(4096).enumerate() {
        if !holes || page.iter().any(|&byte| byte != 0) {
            file.write_all_at(page, number as u64 * 4096).unwrap();
        }
    }
}

fn random_create(random: &mut Random) -> CreateOptions {
    let bits = 9 + random.below(13);
    let v2 = random.below(5) == 0;
    let mut create = CreateOptions {
        cluster_size: 1 << bits,
        version: if v2 { Version::V2 } else { Version::V3 },
        ..CreateOptions::default()
    };
    if !v2 {
        create.refcount_bits = *random.pick(&[1, 2, 4, 8, 16, 16, 32, 64]);
        create.extended_l2 = bits >= 14 && random.below(3) == 0;
        create.lazy_refcounts = random.below(4) == 0;
        if random.below(3) == 0 {
            create.compression_type = CompressionType::Zstd;
        }
    }
    create
}

fn random_convert(random: &mut Random) -> ConvertOptions {
    let mut options = ConvertOptions {
        create: random_create(random),
        compress: random.below(2) == 0,
        sparse_size: *random.pick(&[4096, 4096, 4096, 0, 512, 65536, 1 << 20]),
        threads: *random.pick(&[1, 2, 3, 8]),
        ..ConvertOptions::default()
    };
    if !options.compress && random.below(4) == 0 {
        options.create.preallocation =
            *random.pick(&[Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full]);
    }
    options
}

fn convert_one(source: Chain, folder: &Folder, name: &str, options: &ConvertOptions) -> qcow2_engine::ConvertReport {
    convert(
        &[Arc::new(source)],
        &target(folder.path(name)),
        options,
        &JobContext::quiet(),
    )
    .unwrap_or_else(|error| panic!("{error}: {options:?}"))
}

/// Bytes by qemu-img's eyes and by ours, and a clean check.
fn assert_is(folder: &Folder, name: &str, expected: &[u8], what: &str) {
    let check = qemu_img(folder, &["check", name]);
    assert!(check.contains("No errors were found"), "{what}: {check}");
    qemu_img(folder, &["convert", "-O", "raw", name, "qemu.raw"]).clear();
    assert_same(
        &std::fs::read(folder.path("qemu.raw")).unwrap(),
        expected,
        &format!("{what}: by qemu-img"),
    );
    assert_same(&read_all(&chain(folder, name)), expected, &format!("{what}: by us"));
}

#[test]
fn raw_to_qcow2_keeps_every_byte_whatever_the_options() {
    for seed in 0..seeds(60) {
        let mut random = Random::new(seed);
        let folder = Folder::new();
        let options = random_convert(&mut random);
        let limit = (options.create.cluster_size * 40).clamp(300_000, 6_000_000);
        let some = 1 + random.below(limit / 512);
        let sectors = *random.pick(&[0, 1, 3, some, some, some, some]);
        let bytes = disk(&mut random, sectors as usize * 512);
        write_disk(folder.path("in.raw"), &bytes, random.below(3) > 0);
        let report = convert_one(chain(&folder, "in.raw"), &folder, "out.qcow2", &options);
        let what = format!("seed {seed} {options:?}");
        assert_is(&folder, "out.qcow2", &bytes, &what);
        assert_eq!(report.virtual_size, bytes.len() as u64);
        assert_eq!(report.data_bytes + report.zero_bytes, bytes.len() as u64, "{what}");
        assert_eq!(
            report.file_size,
            std::fs::metadata(folder.path("out.qcow2")).unwrap().len()
        );
        // And back.
        let back = ConvertOptions {
            create: CreateOptions {
                format: Format::Raw,
                ..CreateOptions::default()
            },
            threads: 2,
            sparse_size: options.sparse_size,
            ..ConvertOptions::default()
        };
        convert_one(chain(&folder, "out.qcow2"), &folder, "back.raw", &back);
        assert_same(&std::fs::read(folder.path("back.raw")).unwrap(), &bytes, &what);
    }
}

#[test]
fn the_output_does_not_depend_on_the_number_of_threads_or_the_run() {
    for seed in 0..seeds(12) {
        let mut random = Random::new(1000 + seed);
        let folder = Folder::new();
        let mut options = random_convert(&mut random);
        let bytes = disk(&mut random, 9_000_000 / 512 * 512);
        write_disk(folder.path("in.raw"), &bytes, random.below(3) > 0);
        let mut first: Option<Vec<u8>> = None;
        for threads in [1, 2, 3, 8, 8] {
            options.threads = threads;
            convert_one(chain(&folder, "in.raw"), &folder, "out.qcow2", &options);
            let made = std::fs::read(folder.path("out.qcow2")).unwrap();
            match &first {
                None => first = Some(made),
                Some(first) => assert_same(&made, first, &format!("{threads} threads, seed {seed}")),
            }
        }
    }
}

#[test]
fn an_output_is_never_longer_than_qemus() {
    use std::os::unix::fs::MetadataExt;
    for (list, compress) in [
        ("cluster_size=65536", false),
        ("cluster_size=65536", true),
        ("cluster_size=4096", false),
        ("cluster_size=4096", true),
        ("cluster_size=2097152", false),
        ("cluster_size=65536,extended_l2=on", false),
        ("cluster_size=65536,compression_type=zstd", true),
    ] {
        let folder = Folder::new();
        let mut random = Random::new(77);
        std::fs::write(folder.path("in.raw"), disk(&mut random, 20 << 20)).unwrap();
        let create = CreateOptions {
            cluster_size: list[13..].split(',').next().unwrap().parse().unwrap(),
            extended_l2: list.contains("extended"),
            compression_type: if list.contains("zstd") {
                CompressionType::Zstd
            } else {
                CompressionType::Deflate
            },
            ..CreateOptions::default()
        };
        let options = ConvertOptions {
            create,
            compress,
            threads: 2,
            ..ConvertOptions::default()
        };
        convert_one(chain(&folder, "in.raw"), &folder, "ours.qcow2", &options);
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", list];
        args.extend(compress.then_some("-c"));
        args.extend(["in.raw", "theirs.qcow2"]);
        qemu_img(&folder, &args).clear();
        let length = |name: &str| std::fs::metadata(folder.path(name)).unwrap();
        let (ours, theirs) = (length("ours.qcow2"), length("theirs.qcow2"));
        let slack = 1 + 2 * options.create.cluster_size;
        assert!(
            ours.len() <= theirs.len() + slack && ours.blocks() <= theirs.blocks() + 16,
            "{list} {compress}: {} {} against {} {}",
            ours.len(),
            ours.blocks(),
            theirs.len(),
            theirs.blocks()
        );
    }
}

#[test]
fn chains_snapshots_and_overlays_are_flattened() {
    for seed in 0..seeds(10) {
        let mut random = Random::new(2000 + seed);
        let folder = Folder::new();
        let base = disk(&mut random, 2_000_000 / 512 * 512);
        write_disk(folder.path("base.raw"), &base, random.below(3) > 0);
        let cluster = format!("cluster_size={}", 1u64 << (9 + random.below(10)));
        qemu_img(
            &folder,
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                &cluster,
                "-b",
                "base.raw",
                "-F",
                "raw",
                "top.qcow2",
                "3M",
            ],
        )
        .clear();
        qemu_io(
            &folder,
            "top.qcow2",
            &["write -P 3 70000 9000".into(), "write -z 200k 300k".into()],
        );
        qemu_img(&folder, &["snapshot", "-c", "then", "top.qcow2"]).clear();
        qemu_io(
            &folder,
            "top.qcow2",
            &["write -P 4 71000 500000".into(), "write -P 5 2900k 100k".into()],
        );
        let options = random_convert(&mut random);
        let now = read_all(&chain(&folder, "top.qcow2"));
        convert_one(chain(&folder, "top.qcow2"), &folder, "now.qcow2", &options);
        assert_is(&folder, "now.qcow2", &now, &format!("seed {seed} {options:?}"));
        let at = || {
            let snapshot = Some("then".to_owned());
            chain_with(
                &folder,
                "top.qcow2",
                ChainOptions {
                    snapshot,
                    ..ChainOptions::default()
                },
            )
        };
        convert_one(at(), &folder, "then.qcow2", &options);
        qemu_img(
            &folder,
            &[
                "convert",
                "-l",
                "snapshot.name=then",
                "-O",
                "raw",
                "top.qcow2",
                "then.raw",
            ],
        )
        .clear();
        assert_is(
            &folder,
            "then.qcow2",
            &std::fs::read(folder.path("then.raw")).unwrap(),
            "snapshot",
        );
    }
}

#[test]
fn only_what_differs_from_the_targets_backing_file_is_stored() {
    for seed in 0..seeds(24) {
        let mut random = Random::new(3000 + seed);
        let folder = Folder::new();
        let base = disk(&mut random, 1_500_000 / 512 * 512);
        write_disk(folder.path("base.raw"), &base, random.below(3) > 0);
        let size = *random.pick(&[1_000_000 / 512 * 512, 1_500_000 / 512 * 512, 2_000_000 / 512 * 512]);
        let mut bytes = base.clone();
        bytes.resize(size, 0);
        let changed = 64 << 10;
        let at = random.below((size - changed) as u64) as usize;
        let fill = if random.below(2) == 0 { 0 } else { 0x5a };
        bytes[at..at + changed].fill(fill);
        write_disk(folder.path("in.raw"), &bytes, random.below(3) > 0);
        let mut options = random_convert(&mut random);
        if !options.create.extended_l2 {
            options.create.preallocation = Preallocation::Off;
        }
        options.create.backing_name = Some("base.raw".into());
        options.create.backing_format = Some("raw".into());
        options.backing = Some(Arc::new(chain(&folder, "base.raw")));
        let report = convert_one(chain(&folder, "in.raw"), &folder, "out.qcow2", &options);
        let what = format!("seed {seed} {options:?}");
        assert_is(&folder, "out.qcow2", &bytes, &what);
        let most = changed as u64 + 2 * options.create.cluster_size;
        assert!(report.data_bytes <= most, "{what}: {report:?}");
    }
}

#[test]
fn a_shared_backing_file_is_not_read_again() {
    let folder = Folder::new();
    let mut random = Random::new(5);
    std::fs::write(folder.path("base.raw"), disk(&mut random, 4 << 20)).unwrap();
    qemu_img(
        &folder,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.raw",
            "-F",
            "raw",
            "top.qcow2",
        ],
    )
    .clear();
    qemu_io(&folder, "top.qcow2", &["write -P 9 1M 64k".into()]);
    let options = ConvertOptions {
        create: CreateOptions {
            backing_name: Some("base.raw".into()),
            backing_format: Some("raw".into()),
            ..CreateOptions::default()
        },
        backing: Some(Arc::new(chain(&folder, "base.raw"))),
        ..ConvertOptions::default()
    };
    let report = convert_one(chain(&folder, "top.qcow2"), &folder, "out.qcow2", &options);
    assert_eq!((report.data_bytes, report.zero_bytes), (65536, 0));
    assert_is(&folder, "out.qcow2", &read_all(&chain(&folder, "top.qcow2")), "shared");
}

#[test]
fn several_sources_follow_each_other_and_a_range_is_cut_out() {
    let folder = Folder::new();
    let mut random = Random::new(6);
    let parts: Vec<Vec<u8>> = [1000 * 512, 512, 777 * 512]
        .iter()
        .map(|&size| disk(&mut random, size))
        .collect();
    let mut sources = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let name = format!("{number}.raw");
        std::fs::write(folder.path(&name), part).unwrap();
        sources.push(Arc::new(chain(&folder, &name)));
    }
    let whole = parts.concat();
    for (range, compress) in [
        (None, false),
        (None, true),
        (Some((1000, 300_000)), false),
        (Some((512_100, 1_000_000)), true),
    ] {
        let options = ConvertOptions {
            range,
            compress,
            threads: 3,
            ..ConvertOptions::default()
        };
        convert(
            &sources,
            &target(folder.path("out.qcow2")),
            &options,
            &JobContext::quiet(),
        )
        .unwrap();
        let (from, length) = range.map_or((0, whole.len()), |(from, length)| (from as usize, length as usize));
        let mut expected = whole[from..whole.len().min(from + length)].to_vec();
        expected.resize(expected.len().next_multiple_of(512), 0);
        assert_is(&folder, "out.qcow2", &expected, &format!("{range:?}"));
    }
}

#[test]
fn an_external_data_file_gets_the_guests_bytes() {
    for (raw, extended_l2, preallocation) in [
        (false, false, Preallocation::Off),
        (false, true, Preallocation::Off),
        (true, false, Preallocation::Off),
        (true, true, Preallocation::Metadata),
        (false, false, Preallocation::Full),
    ] {
        let folder = Folder::new();
        let mut random = Random::new(8);
        let bytes = disk(&mut random, 3_333_333 / 512 * 512);
        write_disk(folder.path("in.raw"), &bytes, random.below(3) > 0);
        let options = ConvertOptions {
            create: CreateOptions {
                data_file: Some(NewDataFile {
                    name: "d.raw".into(),
                    target: target(folder.path("d.raw")),
                }),
                data_file_raw: raw,
                extended_l2,
                preallocation,
                ..CreateOptions::default()
            },
            ..ConvertOptions::default()
        };
        convert_one(chain(&folder, "in.raw"), &folder, "out.qcow2", &options);
        assert_is(&folder, "out.qcow2", &bytes, &format!("{raw} {extended_l2}"));
        // Its holes are zeros, so it is the raw disk in any case.
        assert_same(&std::fs::read(folder.path("d.raw")).unwrap(), &bytes, "data file");
    }
}

#[test]
fn compressed_images_of_every_type_and_width_read_back() {
    for refcount_bits in [1, 2, 4, 16] {
        for (compression_type, level) in [
            (CompressionType::Deflate, Some(1)),
            (CompressionType::Deflate, Some(9)),
            (CompressionType::Zstd, Some(19)),
            (CompressionType::Lz4, None),
        ] {
            let folder = Folder::new();
            let mut random = Random::new(9);
            let bytes = disk(&mut random, 2 << 20);
            write_disk(folder.path("in.raw"), &bytes, random.below(3) > 0);
            let options = ConvertOptions {
                create: CreateOptions {
                    compression_type,
                    refcount_bits,
                    ..CreateOptions::default()
                },
                compress: true,
                level,
                threads: 2,
                ..ConvertOptions::default()
            };
            let report = convert_one(chain(&folder, "in.raw"), &folder, "out.qcow2", &options);
            assert!(report.compressed_clusters > 0);
            if compression_type == CompressionType::Lz4 {
                assert_same(&read_all(&chain(&folder, "out.qcow2")), &bytes, "lz4");
            } else {
                assert_is(&folder, "out.qcow2", &bytes, &format!("{compression_type:?}"));
            }
        }
    }
}

#[test]
fn a_sparse_disk_of_petabytes_takes_no_time() {
    let folder = Folder::new();
    qemu_img(
        &folder,
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "in.qcow2", "1E"],
    )
    .clear();
    qemu_io(
        &folder,
        "in.qcow2",
        &["write -P 1 1000P 64k".into(), "write -P 2 0 1M".into()],
    );
    let options = ConvertOptions {
        create: CreateOptions {
            cluster_size: 2 << 20,
            ..CreateOptions::default()
        },
        threads: 2,
        ..ConvertOptions::default()
    };
    let began = std::time::Instant::now();
    let report = convert_one(chain(&folder, "in.qcow2"), &folder, "out.qcow2", &options);
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert_eq!((report.virtual_size, report.data_bytes), (1 << 60, 4 << 20));
    // qemu-img's own map takes minutes for such a disk.
    let mut places: Vec<(u64, u64)> = Vec::new();
    for entry in our_map(&chain(&folder, "out.qcow2"), 100)
        .iter()
        .filter(|entry| entry.5)
    {
        match places.last_mut() {
            Some(last) if last.0 + last.1 == entry.0 => last.1 += entry.1,
            _ => places.push((entry.0, entry.1)),
        }
    }
    assert_eq!(places, [(0, 2 << 20), (1000 << 50, 2 << 20)]);
    qemu_io(
        &folder,
        "out.qcow2",
        &[
            "read -P 1 1000P 64k".into(),
            "read -P 2 0 1M".into(),
            "read -P 0 1M 1M".into(),
        ],
    );
}
