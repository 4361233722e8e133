//! Rebases of overlays of many shapes, against a flat model of bytes; qemu-img reads and checks what comes out.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use qcow2_engine::{Chain, ChainOptions, Disk, DiskOptions, Error, JobContext, RebaseOptions, RebaseReport, rebase};
use support::overlays::{Shape, assert_holds, make, open, open_failing, shape};
use support::{Folder, Model, Random, qemu_img, qemu_io, qemu_map};

const M: u64 = 1 << 20;
const PLAIN: &str = "compat=1.1,cluster_size=64k";

struct Case {
    top: Shape,
    /// The old and the new backing file, each over the one behind it.
    old: Vec<Shape>,
    new: Vec<Shape>,
}

fn cases() -> Vec<Case> {
    let case = |top: &'static str, old: &[(&'static str, u64)], new: &[(&'static str, u64)]| {
        let shapes = |of: &[(&'static str, u64)]| of.iter().map(|&(options, size)| shape(options, size)).collect();
        Case {
            top: shape(top, 2 * M),
            old: shapes(old),
            new: shapes(new),
        }
    };
    let raw = "raw";
    vec![
        case(PLAIN, &[(PLAIN, 2 * M)], &[(PLAIN, 2 * M)]),
        case(PLAIN, &[(PLAIN, M)], &[(raw, 3 * M)]),
        case(PLAIN, &[(raw, 3 * M)], &[(PLAIN, M + 512)]),
        case(PLAIN, &[(PLAIN, 2 * M)], &[]),
        case(
            "compat=1.1,cluster_size=4k",
            &[("compat=1.1,cluster_size=512", 2 * M)],
            &[(raw, M + 7 * 512)],
        ),
        case(
            "compat=0.10,cluster_size=4k",
            &[(PLAIN, M)],
            &[("compat=0.10,cluster_size=64k", 2 * M)],
        ),
        case("compat=0.10,cluster_size=64k", &[(PLAIN, M), (raw, 2 * M)], &[]),
        case(
            "compat=1.1,cluster_size=16k,extended_l2=on",
            &[("compat=1.1,cluster_size=4k", 2 * M)],
            &[(PLAIN, M), (raw, M / 2)],
        ),
        case("compat=1.1,cluster_size=64k,extended_l2=on", &[], &[(PLAIN, 2 * M)]),
        case(
            "compat=1.1,cluster_size=256k",
            &[("compat=1.1,cluster_size=512", 2 * M)],
            &[("compat=1.1,cluster_size=1k", M)],
        ),
        case(
            "compat=1.1,cluster_size=512",
            &[(raw, 2 * M)],
            &[("compat=1.1,cluster_size=2M", 2 * M)],
        ),
        case("cluster_size=64k,data_file=d", &[(PLAIN, 2 * M)], &[(PLAIN, M)]),
        case("compat=1.1,cluster_size=4k,refcount_bits=1", &[(PLAIN, 2 * M)], &[]),
        case(
            "compat=1.1,cluster_size=4k,lazy_refcounts=on",
            &[(PLAIN, 2 * M)],
            &[("cluster_size=64k,data_file=d", M)],
        ),
    ]
}

struct Bed {
    folder: Folder,
    case: Case,
    top: Model,
}

impl Bed {
    fn new(case: Case, seed: u64) -> Self {
        let folder = Folder::new();
        let mut random = Random::new(seed);
        let mut chain = |prefix: &str, shapes: &[Shape]| {
            let mut below: Option<(String, Shape, Model)> = None;
            for (depth, shape) in shapes.iter().enumerate().rev() {
                let name = format!("{prefix}{depth}.img");
                let over = below
                    .as_ref()
                    .map(|(name, shape, model)| (name.as_str(), *shape, model));
                let model = make(&folder, &name, *shape, over, &mut random);
                below = Some((name, *shape, model));
            }
            below
        };
        let old = chain("old", &case.old);
        let _new = chain("new", &case.new);
        let over = old.as_ref().map(|(name, shape, model)| (name.as_str(), *shape, model));
        let top = make(&folder, "top.img", case.top, over, &mut random);
        Self { folder, case, top }
    }

    fn rebase(&self) -> Result<RebaseReport, Error> {
        self.rebase_failing(u64::MAX, false, &JobContext::quiet())
    }

    fn rebase_failing(&self, fail_at: u64, unchecked: bool, job: &JobContext) -> Result<RebaseReport, Error> {
        let options = RebaseOptions {
            unchecked,
            ..RebaseOptions::default()
        };
        self.rebase_with(fail_at, options, job)
    }

    fn rebase_with(&self, fail_at: u64, options: RebaseOptions, job: &JobContext) -> Result<RebaseReport, Error> {
        let layers = |prefix: &str, shapes: &[Shape]| -> Vec<_> {
            let shapes = shapes.iter().enumerate();
            shapes
                .map(|(depth, shape)| open(&self.folder, &format!("{prefix}{depth}.img"), *shape, false))
                .collect()
        };
        let mut written = vec![open_failing(&self.folder, "top.img", self.case.top, true, fail_at)?];
        written.extend(layers("new", &self.case.new));
        let disk_options = DiskOptions {
            cache_bytes: 2 << 20,
            without_backing: true,
            ..DiskOptions::default()
        };
        let disk = Disk::open(written, disk_options)?;
        let old = layers("old", &self.case.old);
        let old = (!old.is_empty()).then(|| Chain::new(old, ChainOptions::default()).unwrap());
        let backing = self
            .case
            .new
            .first()
            .map(|shape| ("new0.img".into(), Some(shape.format().into())));
        let report = rebase(&disk, old.as_ref(), &RebaseOptions { backing, ..options }, job)?;
        disk.close()?;
        Ok(report)
    }

    #[track_caller]
    fn assert_reads_the_same(&self, what: &str) {
        assert_holds(&self.folder, "top.img", self.case.top, &self.top, what);
    }

    fn backing(&self) -> Option<String> {
        let text = qemu_img(&self.folder, &["info", "-U", "top.img"]);
        text.lines()
            .find_map(|line| line.strip_prefix("backing file: "))
            .map(|rest| rest.split(' ').next().unwrap().into())
    }
}

#[test]
fn an_overlay_reads_the_same_over_its_new_backing_file() {
    for (number, case) in cases().into_iter().enumerate() {
        let bed = Bed::new(case, 400 + number as u64);
        let what = format!("{:?} from {:?} to {:?}", bed.case.top, bed.case.old, bed.case.new);
        let report = bed.rebase().unwrap();
        assert!(report.data_bytes + report.zero_bytes > 0, "{what}");
        assert_eq!(bed.backing().is_some(), !bed.case.new.is_empty(), "{what}");
        bed.assert_reads_the_same(&what);
        // Nothing but the new one is needed.
        for depth in 0..bed.case.old.len() {
            std::fs::remove_file(bed.folder.path(&format!("old{depth}.img"))).unwrap();
        }
        bed.assert_reads_the_same(&what);
        // Once more finds nothing to do.
        let again = Bed {
            case: Case {
                old: bed.case.new.clone(),
                new: bed.case.new.clone(),
                top: bed.case.top,
            },
            ..bed
        };
        for depth in 0..again.case.old.len() {
            let (from, to) = (format!("new{depth}.img"), format!("old{depth}.img"));
            std::fs::copy(again.folder.path(&from), again.folder.path(&to)).unwrap();
        }
        assert_eq!(again.rebase().unwrap(), RebaseReport::default(), "{what}");
        again.assert_reads_the_same(&what);
    }
}

#[test]
fn what_both_backing_files_have_is_not_copied() {
    let bed = Bed::new(
        Case {
            top: shape(PLAIN, 2 * M),
            old: vec![shape(PLAIN, 2 * M), shape(PLAIN, 2 * M)],
            new: vec![],
        },
        4,
    );
    // The new one is the lower of the two old ones, by another name and by the same.
    std::fs::copy(bed.folder.path("old1.img"), bed.folder.path("new0.img")).unwrap();
    let differing = qemu_map(&bed.folder, "old0.img")
        .iter()
        .filter(|entry| entry.2 == 0)
        .map(|entry| entry.1)
        .sum::<u64>();
    let bed = Bed {
        case: Case {
            new: vec![shape(PLAIN, 2 * M)],
            ..bed.case
        },
        ..bed
    };
    let report = bed.rebase().unwrap();
    assert!(
        report.data_bytes + report.zero_bytes <= differing,
        "{report:?}, {differing}"
    );
    bed.assert_reads_the_same("shorter by one");
}

#[test]
fn compressed_copies_read_the_same_in_images_of_every_shape() {
    for (number, case) in cases().into_iter().enumerate() {
        if case.top.options.contains("data_file") {
            continue;
        }
        let bed = Bed::new(case, 600 + number as u64);
        let what = format!("{:?} from {:?} to {:?}", bed.case.top, bed.case.old, bed.case.new);
        let options = RebaseOptions {
            compress: true,
            ..RebaseOptions::default()
        };
        let report = bed.rebase_with(u64::MAX, options, &JobContext::quiet()).unwrap();
        assert!(report.data_bytes + report.zero_bytes > 0, "{what}");
        assert!(
            report.compressed_clusters > 0 || report.data_bytes == 0 || bed.case.top.options.contains("=512"),
            "{what}: {report:?}"
        );
        bed.assert_reads_the_same(&what);
        support::qemu_io(
            &bed.folder,
            "top.img",
            &["write -P 3 3k 200k".into(), "write -z 1M 100k".into()],
        );
        qemu_img(&bed.folder, &["check", "-q", "top.img"]);
    }
}

#[test]
fn a_compressed_rebase_that_fails_anywhere_is_begun_again() {
    for number in [0, 4] {
        let mut fail_at = 0;
        loop {
            let bed = Bed::new(cases().swap_remove(number), 700 + number as u64);
            let what = format!("case {number}, call {fail_at}");
            let options = || RebaseOptions {
                compress: true,
                ..RebaseOptions::default()
            };
            let done = bed.rebase_with(fail_at, options(), &JobContext::quiet()).is_ok();
            support::assert_same(
                &support::overlays::qemu_bytes(&bed.folder, "top.img", "qcow2"),
                &bed.top.0,
                &what,
            );
            qemu_img(&bed.folder, &["check", "-q", "-r", "all", "top.img"]);
            bed.rebase_with(u64::MAX, options(), &JobContext::quiet()).unwrap();
            bed.assert_reads_the_same(&what);
            if done {
                break;
            }
            fail_at += 1 + fail_at / 3;
        }
    }
}

#[test]
fn only_the_name_changes_where_nothing_is_checked() {
    let bed = Bed::new(cases().swap_remove(0), 9);
    let before = qemu_map(&bed.folder, "top.img")
        .iter()
        .filter(|entry| entry.2 == 0 && entry.3)
        .count();
    let report = bed.rebase_failing(u64::MAX, true, &JobContext::quiet()).unwrap();
    assert_eq!(report, RebaseReport::default());
    assert_eq!(bed.backing().as_deref(), Some("new0.img"));
    let after = qemu_map(&bed.folder, "top.img")
        .iter()
        .filter(|entry| entry.2 == 0 && entry.3)
        .count();
    assert_eq!(before, after);
}

#[test]
fn a_rebase_that_fails_anywhere_leaves_the_image_reading_the_same_and_is_begun_again() {
    for number in [0, 1, 5, 7] {
        let mut fail_at = 0;
        loop {
            let bed = Bed::new(cases().swap_remove(number), 500 + number as u64);
            let what = format!("case {number}, call {fail_at}");
            let done = bed.rebase_failing(fail_at, false, &JobContext::quiet()).is_ok();
            support::assert_same(
                &support::overlays::qemu_bytes(&bed.folder, "top.img", "qcow2"),
                &bed.top.0,
                &what,
            );
            qemu_img(&bed.folder, &["check", "-q", "-r", "all", "top.img"]);
            bed.rebase().unwrap();
            bed.assert_reads_the_same(&what);
            if done {
                break;
            }
            fail_at += 1 + fail_at / 3;
        }
    }
}

#[test]
fn a_cancelled_rebase_keeps_the_old_backing_file() {
    let bed = Bed::new(cases().swap_remove(0), 11);
    let job = JobContext::quiet();
    job.cancel.cancel();
    let error = bed.rebase_failing(u64::MAX, false, &job).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(bed.backing().as_deref(), Some("old0.img"));
    bed.assert_reads_the_same("cancelled");
}

/// What qemu-img writes into a cluster that the rebase left to the new backing file lies over that one's bytes.
#[test]
fn a_rebased_image_is_an_overlay_like_any_other() {
    let bed = Bed::new(cases().swap_remove(7), 12);
    bed.rebase().unwrap();
    qemu_io(
        &bed.folder,
        "top.img",
        &["write -P 200 100k 3k".into(), "write -P 201 1500k 1k".into()],
    );
    let mut model = bed.top.clone();
    model.0[100 << 10..103 << 10].fill(200);
    model.0[1500 << 10..1501 << 10].fill(201);
    assert_holds(&bed.folder, "top.img", bed.case.top, &model, "written");
}
