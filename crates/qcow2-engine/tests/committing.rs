//! Commits of chains of many shapes, against a flat model of bytes for every layer; qemu-img reads and checks what comes out.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_engine::{CommitOptions, CommitReport, Disk, DiskOptions, Error, JobContext, Progress, commit};
use support::overlays::{Shape, assert_holds, make, open_failing, qemu_bytes, shape};
use support::{Folder, Model, Random, assert_same, qemu_img, qemu_map};

const M: u64 = 1 << 20;

/// The top first, the base last.
fn chains() -> Vec<Vec<Shape>> {
    let plain = "compat=1.1,cluster_size=64k";
    vec![
        vec![shape(plain, 2 * M), shape(plain, 2 * M)],
        vec![shape(plain, 2 * M + 512), shape("raw", M + 12 * 512)],
        vec![shape(plain, M), shape("raw", 2 * M)],
        vec![
            shape("compat=0.10,cluster_size=4k", 2 * M),
            shape("compat=0.10,cluster_size=64k", M + 512),
        ],
        vec![
            shape("compat=1.1,cluster_size=16k,extended_l2=on", 2 * M),
            shape(plain, M),
        ],
        vec![
            shape(plain, 2 * M),
            shape("compat=1.1,cluster_size=32k,extended_l2=on", 2 * M),
        ],
        vec![
            shape("compat=1.1,cluster_size=512", 2 * M),
            shape("compat=1.1,cluster_size=2M", 3 * M),
        ],
        vec![
            shape("compat=1.1,cluster_size=2M", 3 * M),
            shape("compat=1.1,cluster_size=512,refcount_bits=64", M),
        ],
        vec![shape("cluster_size=64k,data_file=d", 2 * M), shape(plain, 2 * M)],
        vec![shape(plain, 2 * M), shape("cluster_size=64k,data_file=d", M)],
        vec![
            shape("compat=1.1,lazy_refcounts=on,cluster_size=4k", 2 * M),
            shape("compat=1.1,lazy_refcounts=on", 2 * M),
        ],
        vec![
            shape("compat=1.1,refcount_bits=1,cluster_size=4k", 2 * M),
            shape("compat=1.1,refcount_bits=1", 2 * M),
        ],
        vec![
            shape(plain, 2 * M),
            shape("compat=1.1,cluster_size=4k", M),
            shape("raw", M + M / 2),
        ],
        vec![
            shape(plain, 3 * M),
            shape(plain, M),
            shape("compat=0.10,cluster_size=4k", 2 * M),
            shape("compat=1.1,cluster_size=4k", 3 * M),
        ],
    ]
}

struct Bed {
    folder: Folder,
    shapes: Vec<Shape>,
    names: Vec<String>,
    /// What each layer reads as, the top first.
    models: Vec<Model>,
}

impl Bed {
    fn new(shapes: &[Shape], seed: u64) -> Self {
        let folder = Folder::new();
        let mut random = Random::new(seed);
        let names: Vec<String> = (0..shapes.len()).map(|depth| format!("l{depth}.img")).collect();
        let mut models: Vec<Model> = Vec::new();
        for depth in (0..shapes.len()).rev() {
            let below = models
                .first()
                .map(|model| (names[depth + 1].as_str(), shapes[depth + 1], model));
            models.insert(0, make(&folder, &names[depth], shapes[depth], below, &mut random));
        }
        Self {
            folder,
            shapes: shapes.to_vec(),
            names,
            models,
        }
    }

    /// Opens the layers above `depth`, and those from it on, each with its first for writing.
    fn open(&self, depth: usize, fail: [u64; 2]) -> Result<[Disk; 2], Error> {
        let part = |range: std::ops::Range<usize>, fail_at: u64, without_backing: bool| {
            let layers = range.clone().map(|at| {
                let fail_at = if at == range.start { fail_at } else { u64::MAX };
                open_failing(
                    &self.folder,
                    &self.names[at],
                    self.shapes[at],
                    at == range.start,
                    fail_at,
                )
            });
            let options = DiskOptions {
                cache_bytes: 2 << 20,
                without_backing,
                ..DiskOptions::default()
            };
            Disk::open(layers.collect::<Result<_, _>>()?, options)
        };
        Ok([
            part(0..depth, fail[0], true)?,
            part(depth..self.names.len(), fail[1], false)?,
        ])
    }

    fn commit(&self, depth: usize, empty: bool) -> Result<CommitReport, Error> {
        self.commit_failing(depth, empty, [u64::MAX; 2], &JobContext::quiet())
    }

    fn commit_failing(
        &self,
        depth: usize,
        empty: bool,
        fail: [u64; 2],
        job: &JobContext,
    ) -> Result<CommitReport, Error> {
        let [top, base] = self.open(depth, fail)?;
        let options = CommitOptions {
            empty,
            ..CommitOptions::default()
        };
        let report = commit(&top, &base, &options, job)?;
        base.close()?;
        top.close()?;
        Ok(report)
    }

    /// What the base has to read as after a commit to `depth`.
    fn committed(&self, depth: usize) -> Model {
        let mut bytes = self.models[0].0.clone();
        let old = &self.models[depth].0;
        if old.len() > bytes.len() {
            bytes.extend_from_slice(&old[bytes.len()..]);
        }
        Model(bytes)
    }

    #[track_caller]
    fn assert_layer(&self, depth: usize, model: &Model, what: &str) {
        assert_holds(&self.folder, &self.names[depth], self.shapes[depth], model, what);
    }
}

#[test]
fn the_base_gets_what_the_top_holds_and_the_emptied_top_reads_the_same() {
    for (number, shapes) in chains().iter().enumerate() {
        let bed = Bed::new(shapes, 100 + number as u64);
        let what = format!("{shapes:?}");
        let report = bed.commit(1, true).unwrap();
        assert!(report.emptied && report.data_bytes > 0, "{what}");
        assert_eq!(report.grown, shapes[1].size < shapes[0].size, "{what}");
        bed.assert_layer(1, &bed.committed(1), &what);
        bed.assert_layer(0, &bed.models[0], &what);
        let held = qemu_map(&bed.folder, &bed.names[0]);
        assert!(
            held.iter().all(|entry| entry.2 > 0 || !entry.3),
            "{what}: the top holds something"
        );
        // It is an overlay like any other.
        qemu_img(
            &bed.folder,
            &[
                "bench",
                "-w",
                "-c",
                "16",
                "-S",
                "65536",
                "--pattern",
                "9",
                &bed.names[0],
            ],
        );
        qemu_img(&bed.folder, &["check", "-q", &bed.names[0]]);
    }
}

#[test]
fn over_several_layers_nothing_but_the_base_changes() {
    for (number, shapes) in chains().iter().enumerate() {
        let bed = Bed::new(shapes, 200 + number as u64);
        let what = format!("{shapes:?}");
        let depth = shapes.len() - 1;
        let before: Vec<Vec<u8>> = bed.names[..depth]
            .iter()
            .map(|name| std::fs::read(bed.folder.path(name)).unwrap())
            .collect();
        let report = bed.commit(depth, false).unwrap();
        assert!(!report.emptied);
        bed.assert_layer(depth, &bed.committed(depth), &what);
        bed.assert_layer(0, &bed.models[0], &what);
        for (name, before) in bed.names.iter().zip(&before) {
            assert!(
                std::fs::read(bed.folder.path(name)).unwrap() == *before,
                "{what}: {name} was written"
            );
        }
    }
}

#[test]
fn a_top_with_layers_between_it_and_the_base_is_not_emptied() {
    let bed = Bed::new(&chains()[12], 1);
    let error = bed.commit(2, true).unwrap_err();
    assert!(matches!(error, Error::Invalid { argument: "drop", .. }), "{error}");
    bed.assert_layer(0, &bed.models[0], "refused");
}

#[test]
fn snapshots_of_an_emptied_image_keep_what_they_have() {
    for options in [
        "compat=1.1,cluster_size=4k",
        "compat=0.10,cluster_size=64k",
        "compat=1.1,cluster_size=16k,extended_l2=on",
    ] {
        let bed = Bed::new(&[shape(options, 2 * M), shape("raw", 2 * M)], 7);
        qemu_img(&bed.folder, &["snapshot", "-c", "one", "l0.img"]);
        let one = qemu_bytes(&bed.folder, "l0.img", "qcow2");
        support::qemu_io(&bed.folder, "l0.img", &["write -P 77 300k 200k".into()]);
        let now = qemu_bytes(&bed.folder, "l0.img", "qcow2");
        bed.commit(1, true).unwrap();
        assert_same(&qemu_bytes(&bed.folder, "l0.img", "qcow2"), &now, options);
        qemu_img(&bed.folder, &["check", "-q", "l0.img"]);
        // What the snapshot leaves to the base is what the base has now.
        qemu_img(&bed.folder, &["convert", "-l", "one", "-O", "raw", "l0.img", "one.raw"]);
        let seen = std::fs::read(bed.folder.path("one.raw")).unwrap();
        let held = qemu_img(&bed.folder, &["snapshot", "-a", "one", "l0.img"]);
        assert!(held.is_empty());
        for (start, length, depth, ..) in qemu_map(&bed.folder, "l0.img") {
            let range = start as usize..(start + length) as usize;
            let expected = if depth == 0 { &one } else { &now };
            assert_same(&seen[range.clone()], &expected[range], options);
        }
        qemu_img(&bed.folder, &["check", "-q", "l0.img"]);
    }
}

#[test]
fn a_commit_that_fails_anywhere_leaves_the_chain_reading_the_same_and_is_begun_again() {
    for (number, shapes) in chains()
        .iter()
        .enumerate()
        .filter(|(number, _)| [1, 3, 4, 9].contains(number))
    {
        for which in 0..2 {
            let mut fail_at = 0;
            loop {
                let bed = Bed::new(shapes, 300 + number as u64);
                let mut fail = [u64::MAX; 2];
                fail[which] = fail_at;
                let done = bed.commit_failing(1, true, fail, &JobContext::quiet()).is_ok();
                let what = format!("{shapes:?}, call {fail_at} of layer {which}");
                assert_same(&qemu_bytes(&bed.folder, "l0.img", "qcow2"), &bed.models[0].0, &what);
                qemu_img_repair(&bed, 0);
                qemu_img_repair(&bed, 1);
                bed.commit(1, true).unwrap();
                bed.assert_layer(0, &bed.models[0], &what);
                bed.assert_layer(1, &bed.committed(1), &what);
                if done {
                    break;
                }
                fail_at += 1 + fail_at / 3;
            }
        }
    }
}

/// A failed sync or pointer may leave leaks, and version 3 marked as not closed: nothing worse.
fn qemu_img_repair(bed: &Bed, depth: usize) {
    if bed.shapes[depth].format() == "qcow2" {
        let name = &bed.names[depth];
        let output = std::process::Command::new("qemu-img")
            .args(["check", "-q", "-r", "all", name])
            .current_dir(bed.folder.path("."))
            .output();
        assert!(output.unwrap().status.success(), "{name}");
    }
}

#[test]
fn a_cancelled_commit_leaves_everything_readable() {
    let bed = Bed::new(&chains()[0], 5);
    let job = JobContext::quiet();
    job.cancel.cancel();
    let error = bed.commit_failing(1, true, [u64::MAX; 2], &job).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    bed.assert_layer(0, &bed.models[0], "cancelled");
    bed.commit(1, true).unwrap();
    bed.assert_layer(1, &bed.committed(1), "again");
}

#[test]
fn progress_is_in_bytes_and_ends_at_the_size_of_the_top() {
    let bed = Bed::new(&chains()[0], 6);
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let reports = std::sync::Arc::clone(&seen);
    let job = JobContext {
        progress: Progress::new(move |report| reports.lock().unwrap().push((report.phase, report.done, report.total))),
        ..JobContext::quiet()
    };
    bed.commit_failing(1, true, [u64::MAX; 2], &job).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.first(), Some(&("commit", 0, 2 * M)));
    assert_eq!(seen.last(), Some(&("commit", 2 * M, 2 * M)));
    assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1));
}
