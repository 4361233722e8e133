//! Commit and rebase: whatever of them reached the disk, the chain reads as before, and beginning again ends with what was asked for.

use std::sync::Arc;

use qcow2_engine::{
    Chain, ChainOptions, CommitOptions, Disk, DiskOptions, JobContext, Layer, MemoryStorage, RebaseOptions, Severity,
    Storage, commit, rebase,
};
use qcow2_sim::made::{checked, contents, make, same, stack, words};
use qcow2_sim::open::layer_options;
use qcow2_sim::operation::{Ended, Files, Operation, Swept};
use qcow2_sim::plan::Focus;

const SHAPES: [&str; 6] = [
    "shorter raw backing",
    "longer raw backing",
    "qcow2 backing",
    "longer qcow2 backing, 64k",
    "version 2 with backing",
    "extended with backing",
];

fn layer(storage: &Arc<dyn Storage>, is_image: bool, writable: bool) -> Result<Layer, String> {
    let options = layer_options(writable);
    let opened = if is_image {
        Layer::open_qcow2(storage.clone(), &options)
    } else {
        Layer::open_raw(storage.clone(), &options)
    };
    opened.map_err(words)
}

fn disk(layers: Vec<Layer>, without_backing: bool) -> Result<Disk, String> {
    let options = DiskOptions {
        cache_bytes: 1 << 20,
        without_backing,
        ..DiskOptions::default()
    };
    Disk::open(layers, options).map_err(words)
}

fn clean(storage: &Arc<dyn Storage>) -> Result<(), String> {
    // Whoever opens it next repairs what was not closed.
    drop(layer(storage, true, true)?);
    let report = checked(storage)?;
    match report
        .findings
        .iter()
        .find(|finding| finding.severity != Severity::Leak)
    {
        Some(bad) => Err(format!("check: {bad:?}")),
        None => Ok(()),
    }
}

#[test]
fn a_commit_that_was_cut_off_is_begun_again() {
    let mut total = Swept::default();
    for (seed, shape) in (0..).zip(SHAPES) {
        for round in 0..2 {
            let made = make(shape, Focus::Sequential, seed + 70 * round).unwrap();
            let (base, is_image) = made.begin.backing.clone().unwrap();
            let base = base.to_vec();
            let run = |files: &Files| {
                let lower = disk(vec![layer(&files[1], is_image, true)?], false)?;
                let upper = disk(vec![layer(&files[0], true, true)?], true)?;
                let options = CommitOptions {
                    empty: true,
                    ..CommitOptions::default()
                };
                commit(&upper, &lower, &options, &JobContext::quiet()).map_err(words)?;
                upper.close().map_err(words)
            };
            let whole = |files: &Files, when: &str| {
                let layers = vec![layer(&files[0], true, false)?, layer(&files[1], is_image, false)?];
                same(when, &contents(&stack(layers)?)?, &made.disk)
            };
            let judge = |files: &Files, ended: Ended| {
                whole(files, "after the crash")?;
                if ended == Ended::Amid {
                    run(files)?;
                }
                whole(files, "after the commit")?;
                clean(&files[0])?;
                if is_image {
                    clean(&files[1])?;
                }
                let below = contents(&stack(vec![layer(&files[1], is_image, false)?])?)?;
                let wanted = made.disk.len().min(below.len());
                same("the base", &below[..wanted], &made.disk)
            };
            let operation = Operation {
                image: &made.image,
                other: Some(&base),
                run: &run,
                judge: &judge,
            };
            super::prove(&format!("commit, {shape} {round}"), &operation, seed, &mut total);
        }
    }
    super::enough("commit", total, 2000);
}

#[test]
fn a_rebase_that_was_cut_off_is_begun_again() {
    let mut total = Swept::default();
    for (seed, shape) in (0..).zip(SHAPES) {
        for round in 0..2 {
            let made = make(shape, Focus::Sequential, seed + 90 * round).unwrap();
            let (old, is_image) = made.begin.backing.clone().unwrap();
            let old: Arc<dyn Storage> = old;
            // Some of the old one, some of its own, shorter or longer.
            let mut bytes = contents(&stack(vec![layer(&old, is_image, false).unwrap()]).unwrap()).unwrap();
            for (number, sector) in bytes.chunks_mut(512).enumerate() {
                if number / 40 % 3 == 1 {
                    sector.fill(number as u8);
                }
            }
            bytes.resize(bytes.len() / 2 * (1 + round as usize * 2) / 512 * 512, 7);
            let new: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes));
            let names_new = |files: &Files| -> Result<bool, String> {
                let top = layer(&files[0], true, false)?;
                let name = top.extensions().and_then(|extensions| extensions.backing_name.clone());
                match name.as_deref() {
                    Some("new") => Ok(true),
                    Some("base") => Ok(false),
                    other => Err(format!("it names {other:?}")),
                }
            };
            let run = |files: &Files| {
                let below = Chain::new(vec![layer(&old, is_image, false)?], ChainOptions::default()).map_err(words)?;
                let top = disk(vec![layer(&files[0], true, true)?, layer(&new, false, false)?], false)?;
                let options = RebaseOptions {
                    backing: Some(("new".to_owned(), Some("raw".to_owned()))),
                    ..RebaseOptions::default()
                };
                rebase(&top, Some(&below), &options, &JobContext::quiet()).map_err(words)?;
                top.close().map_err(words)
            };
            let whole = |files: &Files, when: &str| {
                let below = if names_new(files)? {
                    layer(&new, false, false)?
                } else {
                    layer(&old, is_image, false)?
                };
                same(
                    when,
                    &contents(&stack(vec![layer(&files[0], true, false)?, below])?)?,
                    &made.disk,
                )
            };
            let judge = |files: &Files, ended: Ended| {
                whole(files, "after the crash")?;
                let done = names_new(files)?;
                if ended == Ended::Done && !done {
                    return Err("it names the old backing file".to_owned());
                }
                if !done {
                    run(files)?;
                }
                clean(&files[0])?;
                whole(files, "over the new backing file")?;
                if names_new(files)? {
                    Ok(())
                } else {
                    Err("it is not done again".to_owned())
                }
            };
            let operation = Operation {
                image: &made.image,
                other: None,
                run: &run,
                judge: &judge,
            };
            super::prove(&format!("rebase, {shape} {round}"), &operation, seed, &mut total);
        }
    }
    super::enough("rebase", total, 1500);
}
