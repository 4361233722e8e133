//! Amending: the image is of the old kind or of the new one, and its disk and snapshots are what they were.

use std::sync::Arc;

use qcow2_engine::{AmendOptions, DiskOptions, JobContext, Layer, MemoryStorage, Storage};
use qcow2_format::Version;
use qcow2_sim::made::{Made, chain, checked, contents, make, same, words};
use qcow2_sim::open;
use qcow2_sim::operation::{Ended, Files, Operation, Swept};
use qcow2_sim::plan::Focus;
use qcow2_sim::qemu;

fn data(files: &Files) -> Option<&Arc<dyn Storage>> {
    files.get(1)
}

fn amend(made: &Made, files: &Files, options: &AmendOptions) -> Result<(), String> {
    let disk = open::disk(&files[0], data(files), &made.begin, &DiskOptions::default()).map_err(words)?;
    disk.amend(options, &JobContext::quiet()).map_err(words)
}

/// Version, width of refcounts, lazy.
fn kind(image: &Arc<dyn Storage>) -> Result<(Version, u32, bool), String> {
    let layer = Layer::open_qcow2(image.clone(), &open::layer_options(false)).map_err(words)?;
    let header = layer.header().ok_or("no header")?;
    Ok((header.version, header.refcount_order.bits(), header.compatible & 1 != 0))
}

fn guest(made: &Made, files: &Files) -> Result<(), String> {
    same(
        "the disk",
        &contents(&chain(&files[0], data(files), &made.begin)?)?,
        &made.disk,
    )?;
    for (id, wanted) in &made.snapshots {
        let view = open::snapshot(&files[0], data(files), &made.begin, id).map_err(words)?;
        same(&format!("snapshot {id}"), &contents(&view)?, wanted)?;
    }
    Ok(())
}

/// Whether something of it was done.
fn prove(what: &str, made: &Made, options: &AmendOptions, seed: u64, total: &mut Swept) -> bool {
    let whole: Vec<Arc<dyn Storage>> = std::iter::once(&made.image)
        .chain(&made.data)
        .map(|bytes| -> Arc<dyn Storage> { Arc::new(MemoryStorage::new(bytes.clone())) })
        .collect();
    let old = kind(&whole[0]).unwrap();
    if let Err(refusal) = amend(made, &whole, options) {
        // What is refused changes nothing that anybody sees.
        println!("{what}: {refusal}");
        guest(made, &whole).unwrap();
        assert_eq!(kind(&whole[0]).unwrap(), old);
        return false;
    }
    let new = kind(&whole[0]).unwrap();
    let files = qcow2_sim::judge::Files {
        image: whole[0].clone(),
        data: whole.get(1).cloned(),
    };
    qemu::check(&files, &made.begin).unwrap_or_else(|text| panic!("{what}: {text}"));
    let run = |files: &Files| amend(made, files, options);
    let judge = |files: &Files, ended: Ended| {
        open::recover(&files[0], data(files), &made.begin).map_err(words)?;
        let there = kind(&files[0])?;
        if ended == Ended::Done && there != new {
            return Err(format!("it is {there:?}, not {new:?}"));
        }
        let report = checked(&files[0])?;
        if report.corruptions + report.check_errors != 0 {
            return Err(format!("check: {:?}", report.findings.first()));
        }
        guest(made, files)?;
        run(files)?;
        if kind(&files[0])? != new {
            return Err("it is not done again".to_owned());
        }
        let report = checked(&files[0])?;
        if report.corruptions + report.check_errors != 0 {
            return Err(format!("check when done again: {:?}", report.findings.first()));
        }
        guest(made, files)
    };
    let operation = Operation {
        image: &made.image,
        other: made.data.as_deref(),
        run: &run,
        judge: &judge,
    };
    super::prove(what, &operation, seed, total);
    true
}

#[test]
fn refcounts_are_of_the_old_width_or_the_new_one() {
    let shapes = [
        "plain 4k",
        "plain 512",
        "512, 64-bit",
        "4k, 2-bit",
        "4k, 1-bit",
        "lazy 4k",
        "extended",
        "data file 4k",
        "compressed 4k",
    ];
    let mut total = Swept::default();
    let mut done = 0;
    for (seed, shape) in (0..).zip(shapes) {
        let made = make(shape, Focus::Snapshots, seed).unwrap();
        for bits in [1, 4, 64] {
            let options = AmendOptions {
                refcount_bits: Some(bits),
                ..AmendOptions::default()
            };
            done += u32::from(prove(
                &format!("{shape} to {bits} bits"),
                &made,
                &options,
                seed,
                &mut total,
            ));
        }
    }
    assert!(done > 12, "{done}");
    super::enough("refcount bits", total, 2000);
}

#[test]
fn the_version_is_the_old_one_or_the_new_one() {
    let shapes = [
        ("plain 4k", Version::V2),
        ("plain 512", Version::V2),
        ("lazy 512", Version::V2),
        ("preallocated 4k", Version::V2),
        ("qcow2 backing", Version::V2),
        ("longer raw backing", Version::V2),
        ("compressed 64k", Version::V2),
        ("version 2", Version::V3),
        ("version 2, 512", Version::V3),
        ("version 2 with backing", Version::V3),
    ];
    let mut total = Swept::default();
    let mut done = 0;
    for (seed, (shape, version)) in (0..).zip(shapes) {
        for (round, focus) in [Focus::Sequential, Focus::Reuse, Focus::Snapshots]
            .into_iter()
            .enumerate()
        {
            let made = make(shape, focus, seed + 50 * round as u64).unwrap();
            let options = AmendOptions {
                version: Some(version),
                lazy_refcounts: (version == Version::V3).then_some(true),
                refcount_bits: (version == Version::V3).then_some(32),
                ..AmendOptions::default()
            };
            done += u32::from(prove(
                &format!("{shape} {focus:?} to {version:?}"),
                &made,
                &options,
                seed,
                &mut total,
            ));
        }
    }
    assert!(done > 10, "{done}");
    super::enough("version", total, 2000);
}
