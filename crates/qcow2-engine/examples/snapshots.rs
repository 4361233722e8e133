//! Times of snapshot operations on an image, in milliseconds: `snapshots IMAGE [ROUNDS]`. Each round opens the image, takes a snapshot, applies it,
//! deletes it and closes; opening and closing are not counted. `qemu-img snapshot -c|-a|-d` on the same image is what to compare with.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use qcow2_engine::storage::{AllowSpecial, FileStorage, OpenMode};
use qcow2_engine::{Disk, DiskOptions, Layer, LayerOptions, NewSnapshot, SnapshotChoice};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("the name of an image is missing")?;
    let rounds = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    for _ in 0..rounds {
        let mode = OpenMode {
            writable: true,
            special: AllowSpecial::No,
        };
        let writable = LayerOptions {
            writable: true,
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(Arc::new(FileStorage::open(path.as_ref(), mode)?), &writable)?;
        let disk = Disk::open(vec![layer], DiskOptions::default())?;
        let mut begin = Instant::now();
        let mut lap = || std::mem::replace(&mut begin, Instant::now()).elapsed().as_secs_f64() * 1e3;
        let taken = disk.snapshot_create(NewSnapshot {
            name: "measured".into(),
            ..NewSnapshot::default()
        })?;
        let create = lap();
        let which = SnapshotChoice::Id(String::from_utf8(taken.id)?);
        disk.snapshot_apply(&which)?;
        let apply = lap();
        disk.snapshot_delete(&which)?;
        let delete = lap();
        disk.close()?;
        println!("create {create:.1}  apply {apply:.1}  delete {delete:.1}");
    }
    Ok(())
}
