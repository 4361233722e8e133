//! Images that qemu-img and qemu-io made, read back: bytes against a flat model and against `qemu-img convert`, the map against `qemu-img map`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_engine::{Chain, ChainOptions, FetchContext, RunKind};
use qcow2_format::GuestOffset;
use support::{
    Filling, Folder, Model, Random, assert_same, chain, chain_with, our_map, qemu_img, qemu_io, qemu_map,
    random_commands, read_all,
};

/// How many seeds; `QCOW2_TEST_SEEDS` asks for more.
fn seeds(default: u64) -> u64 {
    std::env::var("QCOW2_TEST_SEEDS").map_or(default, |n| n.parse().unwrap())
}

/// Options of a random image: what `qemu-img create -o` gets, and what may be written into it.
fn random_options(random: &mut Random) -> (String, Filling) {
    let bits = 9 + random.below(9);
    let mut filling = Filling {
        cluster: 1 << bits,
        // qemu-io itself fails at mixing compressed and plain writes in clusters of 512 bytes.
        compressed: bits > 9 && random.below(2) == 0,
        zeroes: true,
    };
    let mut options = format!("cluster_size={}", filling.cluster);
    match random.below(4) {
        0 => {
            options += ",compat=0.10";
            filling.zeroes = false;
        }
        1 if bits >= 14 => options += ",extended_l2=on",
        2 => options += &format!(",refcount_bits={}", random.pick(&[8, 32, 64])),
        _ => {}
    }
    if filling.zeroes && random.below(3) == 0 {
        options += ",compression_type=zstd";
    }
    (options, filling)
}

/// Everything that must hold for a chain: whole read, random reads, runs, and qemu's map.
fn assert_reads_as(chain: &Chain, model: &[u8], random: &mut Random, what: &str) {
    assert_same(&read_all(chain), model, what);
    for _ in 0..30 {
        let at = random.below(model.len() as u64 + 600);
        let mut buffer = vec![0x55; random.below(20_000) as usize];
        let count = chain.read(GuestOffset(at), &mut buffer).unwrap();
        let expected = model.get(at as usize..).unwrap_or_default();
        let expected = &expected[..expected.len().min(buffer.len())];
        assert_same(&buffer[..count], expected, &format!("{what}: {count} bytes at {at}"));
    }
    let runs = chain.resolve(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
    let mut at = 0;
    for run in &runs {
        assert_eq!(run.start.0, at, "{what}: runs have no gaps");
        at += run.length;
    }
    assert_eq!(at, chain.virtual_size(), "{what}: runs cover the disk");
    for pair in runs.windows(2) {
        if let (RunKind::Data { host: a }, RunKind::Data { host: b }) = (pair[0].kind, pair[1].kind) {
            assert!(
                pair[0].depth != pair[1].depth || a.0 + pair[0].length != b.0,
                "{what}: runs are maximal"
            );
        }
    }
    // In portions from any place: the same runs, cut.
    let from = random.below(model.len() as u64);
    let mut bytes = vec![0x33; model.len() - from as usize];
    let (mut at, mut context) = (from, FetchContext::new());
    while at < chain.virtual_size() {
        let some = chain.resolve(GuestOffset(at), 70_000, 3).unwrap();
        let end = some.last().unwrap().end().0;
        let slice = &mut bytes[(at - from) as usize..(end - from) as usize];
        chain.fetch(&some, GuestOffset(at), slice, &mut context).unwrap();
        at = end;
    }
    assert_same(
        &bytes,
        &model[from as usize..],
        &format!("{what}: in portions from {from}"),
    );
}

#[test]
fn random_chains_read_as_the_flat_model_and_map_as_qemu_img_says() {
    for seed in 0..seeds(40) {
        let folder = Folder::new();
        let mut random = Random::new(seed);
        let mut model = Model(Vec::new());
        let mut below: Option<String> = None;
        for depth in 0..1 + random.below(4) {
            let size = 512 * (1 + random.below(3000));
            model = model.overlay(size as usize);
            let raw = below.is_none() && random.below(3) == 0;
            let name = format!("{depth}.{}", if raw { "raw" } else { "qcow2" });
            let size = size.to_string();
            let (options, filling) = if raw {
                let filling = Filling {
                    cluster: 4096,
                    compressed: false,
                    zeroes: true,
                };
                qemu_img(&folder, &["create", "-q", "-f", "raw", &name, &size]);
                (String::new(), filling)
            } else {
                let (options, filling) = random_options(&mut random);
                let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
                if let Some(below) = &below {
                    let format = if below.ends_with("raw") { "raw" } else { "qcow2" };
                    args.extend(["-b", below.as_str(), "-F", format]);
                }
                args.extend([name.as_str(), size.as_str()]);
                qemu_img(&folder, &args);
                (options, filling)
            };
            let commands = random_commands(&mut random, &mut model, filling, 12);
            qemu_io(&folder, &name, &commands);

            let what = format!("seed {seed}, layer {depth} ({options})");
            let chain = chain(&folder, &name);
            assert_reads_as(&chain, &model.0, &mut random, &what);
            let expected = qemu_map(&folder, &name);
            let portion = 1 + random.below(5) as usize;
            assert_eq!(our_map(&chain, usize::MAX), expected, "{what}: map");
            if portion > 1 {
                // Entries that end at a portion's end may be cut; as flat facts they are the same.
                let covered: u64 = our_map(&chain, portion).iter().map(|entry| entry.1).sum();
                assert_eq!(covered, chain.virtual_size());
            }
            below = Some(name);
        }
        let name = below.unwrap();
        let format = if name.ends_with("raw") { "raw" } else { "qcow2" };
        qemu_img(&folder, &["convert", "-f", format, "-O", "raw", &name, "flat"]);
        assert_same(
            &std::fs::read(folder.path("flat")).unwrap(),
            &model.0,
            "qemu-img and the model",
        );
    }
}

#[test]
fn preallocated_images_map_as_qemu_img_says() {
    let folder = Folder::new();
    for (index, options) in [
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "preallocation=metadata,cluster_size=4096",
        "preallocation=metadata,extended_l2=on",
        "preallocation=metadata,refcount_bits=1",
        "preallocation=metadata,data_file=data.raw",
        "data_file=data2.raw,data_file_raw=on",
        "data_file=data3.raw",
        "data_file=data4.raw,extended_l2=on",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("{index}.qcow2");
        qemu_img(&folder, &["create", "-q", "-f", "qcow2", "-o", options, &name, "20M"]);
        let mut random = Random::new(index as u64);
        let mut model = Model(vec![0; 20 << 20]);
        for round in 0..3 {
            let what = format!("{options}, round {round}");
            assert_eq!(
                our_map(&chain(&folder, &name), usize::MAX),
                qemu_map(&folder, &name),
                "{what}"
            );
            assert_reads_as(&chain(&folder, &name), &model.0, &mut random, &what);
            let filling = Filling {
                cluster: 65536,
                compressed: false,
                zeroes: true,
            };
            let commands = random_commands(&mut random, &mut model, filling, 6);
            qemu_io(&folder, &name, &commands);
        }
    }
}

#[test]
fn raw_files_of_odd_length_and_with_holes_map_as_qemu_img_says() {
    let folder = Folder::new();
    for (index, length) in [0u64, 1, 511, 512, 1000, 4097, 100_001, 1 << 20]
        .into_iter()
        .enumerate()
    {
        let name = format!("{index}.raw");
        let file = std::fs::File::create(folder.path(&name)).unwrap();
        file.set_len(length).unwrap();
        if length > 60_000 {
            use std::os::unix::fs::FileExt;
            file.write_at(b"some bytes", 50_000).unwrap();
        }
        let chain = chain(&folder, &name);
        assert_eq!(chain.virtual_size(), length.next_multiple_of(512));
        let text = qemu_img(&folder, &["map", "--output=json", "-f", "raw", &name]);
        let expected = if text.contains("start") {
            qemu_map(&folder, &name)
        } else {
            Vec::new()
        };
        if length > 0 {
            assert_eq!(our_map(&chain, usize::MAX), expected, "{length}");
        }
        let mut flat = std::fs::read(folder.path(&name)).unwrap();
        flat.resize(length.next_multiple_of(512) as usize, 0);
        assert_same(&read_all(&chain), &flat, &name);

        let over = format!("{index}.qcow2");
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-b", &name, "-F", "raw", &over, "2M"],
        );
        flat.resize(2 << 20, 0);
        let chain = support::chain(&folder, &over);
        assert_same(&read_all(&chain), &flat, &over);
        assert_eq!(our_map(&chain, usize::MAX), qemu_map(&folder, &over), "over {length}");
    }
}

#[test]
fn snapshots_are_found_by_id_then_by_name_and_read_as_they_were() {
    let folder = Folder::new();
    for options in [
        "cluster_size=65536",
        "cluster_size=512,refcount_bits=8",
        "extended_l2=on,cluster_size=16384",
        "compat=0.10",
    ] {
        let mut random = Random::new(7);
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", options, "s.qcow2", "3M"],
        );
        let mut model = Model(vec![0; 3 << 20]);
        let mut kept = Vec::new();
        // The second snapshot is called like the first one's id.
        for name in ["first", "1", "third"] {
            let filling = Filling {
                cluster: 65536,
                compressed: false,
                zeroes: true,
            };
            let commands = random_commands(&mut random, &mut model, filling, 8);
            qemu_io(&folder, "s.qcow2", &commands);
            qemu_img(&folder, &["snapshot", "-c", name, "s.qcow2"]);
            kept.push(model.clone());
        }
        qemu_io(&folder, "s.qcow2", &["write -P 9 0 3M".to_owned()]);
        for (name, expected) in [("first", 0), ("1", 0), ("2", 1), ("third", 2), ("3", 2)] {
            let options = ChainOptions {
                snapshot: Some(name.into()),
                ..ChainOptions::default()
            };
            let chain = chain_with(&folder, "s.qcow2", options);
            let Model(bytes) = &kept[expected];
            assert_reads_as(&chain, bytes, &mut random, name);
        }
        std::fs::remove_file(folder.path("s.qcow2")).unwrap();
    }
}

#[test]
fn a_snapshot_has_the_size_that_it_was_taken_with_and_the_same_backing_file() {
    let folder = Folder::new();
    std::fs::write(folder.path("base.raw"), vec![3; 1 << 20]).unwrap();
    qemu_img(
        &folder,
        &[
            "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "s.qcow2", "1M",
        ],
    );
    qemu_io(&folder, "s.qcow2", &["write -P 1 64k 64k".to_owned()]);
    qemu_img(&folder, &["snapshot", "-c", "small", "s.qcow2"]);
    qemu_img(&folder, &["resize", "-q", "s.qcow2", "5M"]);
    let options = ChainOptions {
        snapshot: Some("small".into()),
        ..ChainOptions::default()
    };
    let mut expected = vec![3; 1 << 20];
    expected[64 << 10..128 << 10].fill(1);
    assert_same(
        &read_all(&chain_with(&folder, "s.qcow2", options)),
        &expected,
        "snapshot",
    );
    assert_eq!(chain(&folder, "s.qcow2").virtual_size(), 5 << 20);
}

#[test]
fn machine_state_behind_the_disk_is_never_shown() {
    let folder = Folder::new();
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "v.qcow2", "1M"]);
    // What a machine's state does: guest data behind the disk's end.
    qemu_io(&folder, "v.qcow2", &["write -b -P 7 0 64k".to_owned()]);
    let chain = chain(&folder, "v.qcow2");
    assert_same(&read_all(&chain), &vec![0; 1 << 20], "disk");
    assert_eq!(chain.read(GuestOffset(1 << 20), &mut [0; 16]).unwrap(), 0);
    assert_eq!(chain.read(GuestOffset(512 << 20), &mut [0; 16]).unwrap(), 0);
}

#[test]
fn two_hundred_layers_read_as_one_disk_and_one_more_is_refused() {
    let folder = Folder::new();
    let mut model = Model(vec![0; 1 << 20]);
    qemu_img(&folder, &["create", "-q", "-f", "qcow2", "0.qcow2", "1M"]);
    let first = std::fs::read(folder.path("0.qcow2")).unwrap();
    for depth in 0..201u64 {
        let name = format!("{depth}.qcow2");
        if depth > 0 {
            let below = format!("{}.qcow2", depth - 1);
            std::fs::write(folder.path(&name), &first).unwrap();
            qemu_img(
                &folder,
                &["rebase", "-u", "-b", &below, "-F", "qcow2", "-f", "qcow2", &name],
            );
        }
        if depth == 199 {
            let chain = chain(&folder, &name);
            assert_eq!(chain.layers().len(), 200);
            assert_same(&read_all(&chain), &model.0, "200 layers");
        }
        if depth % 20 == 0 && depth < 200 {
            let at = depth * 4096;
            // Written through the image alone: qemu would open the whole chain.
            qemu_img(&folder, &["rebase", "-u", "-b", "", "-f", "qcow2", &name]);
            qemu_io(&folder, &name, &[format!("write -P {} {at} 64k", depth + 1)]);
            if depth > 0 {
                let below = format!("{}.qcow2", depth - 1);
                qemu_img(
                    &folder,
                    &["rebase", "-u", "-b", &below, "-F", "qcow2", "-f", "qcow2", &name],
                );
            }
            // Whole clusters are written: what they hold besides is what was read without the chain, zeros.
            let (first, last) = (at as usize / 65536 * 65536, at as usize + 2 * 65536);
            let last = last / 65536 * 65536;
            let end = last.min(model.0.len());
            model.0[first..end].fill(0);
            model.0[at as usize..at as usize + 65536].fill(depth as u8 + 1);
        }
    }
    let layers = (0..201)
        .rev()
        .map(|depth| support::layer(&folder.path(&format!("{depth}.qcow2"))));
    let error = Chain::new(layers.collect(), ChainOptions::default()).unwrap_err();
    assert_eq!(error.code(), "ERR_QCOW2_LIMIT");
}

#[test]
fn compressed_images_of_every_cluster_size_read_back() {
    let folder = Folder::new();
    let mut random = Random::new(11);
    let mut model = vec![0; 5 << 20];
    for (index, byte) in model.iter_mut().enumerate() {
        // Text-like, noise and zeros in turn, changing at places that no cluster size divides.
        *byte = match index / 300_007 % 3 {
            0 => b'a' + (random.below(4) as u8),
            1 => random.next() as u8,
            _ => 0,
        };
    }
    std::fs::write(folder.path("flat.raw"), &model).unwrap();
    for bits in 9..=21 {
        for kind in ["zlib", "zstd"] {
            let options = format!("cluster_size={},compression_type={kind}", 1 << bits);
            qemu_img(
                &folder,
                &[
                    "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, "flat.raw", "c.qcow2",
                ],
            );
            assert_reads_as(&chain(&folder, "c.qcow2"), &model, &mut random, &options);
            assert_eq!(
                our_map(&chain(&folder, "c.qcow2"), usize::MAX),
                qemu_map(&folder, "c.qcow2"),
                "{options}"
            );
        }
    }
}

#[test]
fn compressed_backing_clusters_shine_through_smaller_holes() {
    let folder = Folder::new();
    let mut random = Random::new(12);
    let mut model = Model((0..1u32 << 20).map(|i| (i / 1000) as u8).collect());
    std::fs::write(folder.path("flat.raw"), &model.0).unwrap();
    qemu_img(
        &folder,
        &[
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=2M",
            "flat.raw",
            "base.qcow2",
        ],
    );
    let overlay = ["-o", "cluster_size=4k", "-b", "base.qcow2", "-F", "qcow2", "o.qcow2"];
    qemu_img(&folder, &[&["create", "-q", "-f", "qcow2"][..], &overlay].concat());
    let filling = Filling {
        cluster: 4096,
        compressed: true,
        zeroes: true,
    };
    let commands = random_commands(&mut random, &mut model, filling, 40);
    qemu_io(&folder, "o.qcow2", &commands);
    assert_reads_as(&chain(&folder, "o.qcow2"), &model.0, &mut random, "overlay");
    assert_eq!(
        our_map(&chain(&folder, "o.qcow2"), usize::MAX),
        qemu_map(&folder, "o.qcow2")
    );
}
