//! Resizing: the disk has its old size or the new one, and holds what it held.

use std::sync::Arc;

use qcow2_engine::{DiskOptions, ResizeOptions, Severity, Storage};
use qcow2_sim::made::{checked, contents, make, same, words};
use qcow2_sim::open;
use qcow2_sim::operation::{Ended, Files, Operation, Swept};
use qcow2_sim::plan::Focus;

const SHAPES: [&str; 9] = [
    "plain 4k",
    "plain 512",
    "512, long L1",
    "lazy 4k",
    "version 2 with backing",
    "extended with backing",
    "data file 4k",
    "longer raw backing",
    "compressed 512",
];

fn data(files: &Files) -> Option<&Arc<dyn Storage>> {
    files.get(1)
}

#[test]
fn a_disk_has_its_old_size_or_the_new_one() {
    let mut total = Swept::default();
    for (seed, shape) in (0..).zip(SHAPES) {
        let made = make(shape, Focus::Sequential, seed).unwrap();
        let old = made.disk.len() as u64;
        for new in [old / 2 / 512 * 512, old + 512, old * 3] {
            if made.begin.image[7] == 2 && !made.snapshots.is_empty() {
                continue;
            }
            let grown = |size: u64| {
                let mut wanted = made.disk.clone();
                wanted.resize(size as usize, 0);
                wanted
            };
            let run = |files: &Files| {
                let disk = open::disk(&files[0], data(files), &made.begin, &DiskOptions::default()).map_err(words)?;
                let options = ResizeOptions {
                    shrink: true,
                    ..ResizeOptions::default()
                };
                disk.resize(new, options).map_err(words)?;
                disk.close().map_err(words)
            };
            let judge = |files: &Files, ended: Ended| {
                open::recover(&files[0], data(files), &made.begin).map_err(words)?;
                let report = checked(&files[0])?;
                if let Some(bad) = report
                    .findings
                    .iter()
                    .find(|finding| finding.severity != Severity::Leak)
                {
                    return Err(format!("check: {bad:?}"));
                }
                let disk = open::disk(&files[0], data(files), &made.begin, &DiskOptions::default()).map_err(words)?;
                let size = disk.chain().virtual_size();
                if size != new && (size != old || ended == Ended::Done) {
                    return Err(format!("the size is {size}, from {old} to {new}"));
                }
                let there = contents(disk.chain())?;
                let mut wanted = grown(size);
                if new < old && size == old {
                    // What lies beyond the new end may be gone already.
                    let gone = |(index, byte): (usize, &u8)| index as u64 >= new && *byte == 0;
                    for (index, byte) in there.iter().enumerate().filter(|pair| gone(*pair)) {
                        wanted[index] = *byte;
                    }
                }
                same("the disk", &there, &wanted)?;
                disk.close().map_err(words)
            };
            let operation = Operation {
                image: &made.image,
                other: made.data.as_deref(),
                run: &run,
                judge: &judge,
            };
            super::prove(&format!("{shape}, {old} to {new}"), &operation, seed, &mut total);
        }
    }
    super::enough("resize", total, 3000);
}
