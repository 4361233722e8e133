//! Repair: whatever of it reached the disk, the guest's bytes are what they were, and repairing again ends with an image that is right.

use std::sync::Arc;

use qcow2_engine::{JobContext, Locking, RepairMode, RepairOptions, Storage, repair};
use qcow2_sim::made::{Made, chain, checked, contents, make, same, words};
use qcow2_sim::open;
use qcow2_sim::operation::{Ended, Files, Operation, Swept};
use qcow2_sim::plan::Focus;
use qcow2_sim::random::Random;

const SHAPES: [&str; 10] = [
    "plain 4k",
    "plain 512",
    "512, 64-bit",
    "4k, 2-bit",
    "4k, 1-bit",
    "lazy 4k",
    "version 2",
    "extended with backing",
    "compressed 4k",
    "data file 4k",
];

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Changes refcounts and COPIED flags: damage that takes no byte of the guest.
fn damage(image: &mut [u8], seed: u64) {
    let mut random = Random::new(&[seed]);
    let cluster = 1usize << u32::from_be_bytes(image[20..24].try_into().unwrap());
    let (table, clusters) = (
        number(image, 48) as usize,
        u32::from_be_bytes(image[56..60].try_into().unwrap()) as usize,
    );
    let blocks: Vec<usize> = (0..clusters * cluster / 8)
        .map(|index| (number(image, table + index * 8) & !511) as usize)
        .filter(|block| *block != 0)
        .collect();
    for _ in 0..3 + random.below(12) {
        let block = *random.pick(&blocks);
        // Where there is something, or right behind it.
        let used = (0..cluster).rev().find(|at| image[block + at] != 0).unwrap_or(0) + 4;
        let at = block + random.below(used.min(cluster) as u64) as usize;
        image[at] ^= *random.pick(&[1, 2, 3, 255]);
    }
    if random.one_in(4) {
        // A whole block is lost.
        let index = random.below(blocks.len() as u64) as usize;
        image[table + index * 8..table + index * 8 + 8].fill(0);
    }
    let (l1, entries) = (
        number(image, 40) as usize,
        u32::from_be_bytes(image[36..40].try_into().unwrap()) as usize,
    );
    for index in 0..entries {
        let entry = number(image, l1 + index * 8);
        if entry != 0 && random.one_in(2) {
            image[l1 + index * 8] ^= 0x80;
        }
    }
}

fn mend(files: &Files) -> Result<(), String> {
    let options = RepairOptions {
        locking: Locking::Off,
        ..RepairOptions::new(RepairMode::All)
    };
    let report = repair(&files[0], files.get(1), options, &JobContext::quiet()).map_err(words)?;
    let after = &report.after;
    if after.corruptions + after.leaks + after.check_errors != 0 || report.still_marked {
        return Err(format!("it says that something is left: {:?}", after.findings.first()));
    }
    Ok(())
}

fn guest(made: &Made, files: &Files, when: &str) -> Result<(), String> {
    same(
        &format!("the disk {when}"),
        &contents(&chain(&files[0], files.get(1), &made.begin)?)?,
        &made.disk,
    )?;
    for (id, wanted) in &made.snapshots {
        let view = open::snapshot(&files[0], files.get(1), &made.begin, id).map_err(words)?;
        same(&format!("snapshot {id} {when}"), &contents(&view)?, wanted)?;
    }
    Ok(())
}

#[test]
fn a_repair_that_was_cut_off_can_be_done_again() {
    let mut total = Swept::default();
    for (seed, shape) in (0..).zip(SHAPES) {
        for round in 0..3 {
            let made = make(shape, Focus::Snapshots, seed + 100 * round).unwrap();
            let mut image = made.image.clone();
            damage(&mut image, seed ^ round << 8);
            let judge = |files: &Files, ended: Ended| {
                guest(&made, files, "after the crash")?;
                if ended == Ended::Amid {
                    mend(files)?;
                }
                let report = checked(&files[0])?;
                if report.corruptions + report.leaks + report.check_errors != 0 {
                    return Err(format!("check: {:?}", report.findings.first()));
                }
                guest(&made, files, "after the repair")?;
                let before = made_bytes(&files[0])?;
                mend(files)?;
                same("repaired twice", &made_bytes(&files[0])?, &before)
            };
            let operation = Operation {
                image: &image,
                other: made.data.as_deref(),
                run: &mend,
                judge: &judge,
            };
            super::prove(&format!("{shape}, {seed} {round}"), &operation, seed, &mut total);
        }
    }
    super::enough("repair", total, 3000);
}

fn made_bytes(storage: &Arc<dyn Storage>) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; storage.length().map_err(|error| error.to_string())? as usize];
    storage
        .read_at(qcow2_format::HostOffset(0), &mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}
