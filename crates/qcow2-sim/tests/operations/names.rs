//! Naming another backing file: the image names the old one or the new one, and is otherwise what it was.

use std::sync::Arc;

use qcow2_engine::{DiskOptions, Storage};
use qcow2_sim::made::{chain, checked, contents, make, same, words};
use qcow2_sim::open;
use qcow2_sim::operation::{Ended, Files, Operation, Swept};
use qcow2_sim::plan::Focus;

const SHAPES: [&str; 6] = [
    "shorter raw backing",
    "longer qcow2 backing, 64k",
    "version 2 with backing",
    "extended with backing",
    "data file with backing",
    "qcow2 backing",
];

fn backing(image: &Arc<dyn Storage>) -> Result<Option<(String, Option<String>)>, String> {
    let layer = qcow2_engine::Layer::open_qcow2(image.clone(), &open::layer_options(false)).map_err(words)?;
    let extensions = layer.extensions().ok_or("no extensions")?;
    Ok(extensions
        .backing_name
        .clone()
        .map(|name| (name, extensions.backing_format.clone())))
}

#[test]
fn the_old_name_or_the_new_one_is_there() {
    let mut total = Swept::default();
    let long = "l".repeat(700);
    for (seed, shape) in (0..).zip(SHAPES) {
        let made = make(shape, Focus::Bitmaps, seed).unwrap();
        for (name, format) in [
            ("another.raw", Some("raw")),
            (long.as_str(), Some("qcow2")),
            ("b", None),
            ("", None),
        ] {
            if made.begin.backing.is_none() && !name.is_empty() {
                continue;
            }
            let data = |files: &Files| files.get(1).cloned();
            let old = {
                let image: Arc<dyn Storage> = Arc::new(qcow2_engine::MemoryStorage::new(made.image.clone()));
                backing(&image).unwrap()
            };
            let new = (!name.is_empty()).then(|| (name.to_owned(), format.map(str::to_owned)));
            let run = |files: &Files| {
                let disk =
                    open::disk(&files[0], data(files).as_ref(), &made.begin, &DiskOptions::default()).map_err(words)?;
                disk.set_backing(Some(name), format).map_err(words)?;
                disk.close().map_err(words)
            };
            let judge = |files: &Files, ended: Ended| {
                let there = backing(&files[0])?;
                if there != new && (there != old || ended == Ended::Done) {
                    return Err(format!("it names {there:?}, from {old:?} to {new:?}"));
                }
                open::recover(&files[0], data(files).as_ref(), &made.begin).map_err(words)?;
                let report = checked(&files[0])?;
                if report.corruptions + report.check_errors != 0 {
                    return Err(format!("check: {:?}", report.findings.first()));
                }
                same(
                    "the disk",
                    &contents(&chain(&files[0], data(files).as_ref(), &made.begin)?)?,
                    &made.disk,
                )?;
                run(files)?;
                if backing(&files[0])? != new {
                    return Err("it is not done again".to_owned());
                }
                Ok(())
            };
            let operation = Operation {
                image: &made.image,
                other: made.data.as_deref(),
                run: &run,
                judge: &judge,
            };
            super::prove(&format!("{shape} to '{name:.9}'"), &operation, seed, &mut total);
        }
    }
    super::enough("names", total, 500);
}
