//! Repairs that are cut off: by a crash at any write, and by a storage that fails. Whatever was written, the guest sees what it saw, and repairing again
//! ends with an image that is right.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::io;
use std::sync::Arc;

use qcow2_engine::storage::testing::{FailingStorage, Operation, RecordingStorage};
use qcow2_engine::{JobContext, Layer, LayerOptions, MemoryStorage, RepairMode, Storage};
use qcow2_format::HostOffset;
use support::Random;
use support::damages::{DAMAGES, Sample, assert_sound, contents, mend, mended};

/// The writes of a repair, applied to what it began with: each prefix, and each with a part of what was not synced yet.
fn crashes(before: &[u8], log: &[Operation], random: &mut Random) -> Vec<(bool, Vec<u8>)> {
    let mut states = Vec::new();
    let mut durable = before.to_vec();
    let mut pending: Vec<(HostOffset, Vec<u8>)> = Vec::new();
    let apply = |bytes: &mut Vec<u8>, offset: HostOffset, data: &[u8]| {
        let begin = offset.0 as usize;
        bytes.resize(bytes.len().max(begin + data.len()), 0);
        bytes[begin..begin + data.len()].copy_from_slice(data);
    };
    for operation in log {
        match operation {
            Operation::Write { offset, bytes } => {
                let sectors = bytes.chunks(512).zip(0u64..);
                pending.extend(sectors.map(|(sector, n)| (HostOffset(offset.0 + n * 512), sector.to_vec())));
                for _ in 0..2 {
                    let mut state = durable.clone();
                    for (offset, sector) in &pending {
                        if random.below(2) == 0 {
                            apply(&mut state, *offset, sector);
                        }
                    }
                    states.push((false, state));
                }
            }
            Operation::Sync => {
                for (offset, sector) in pending.drain(..) {
                    apply(&mut durable, offset, &sector);
                }
                states.push((true, durable.clone()));
            }
            _ => {}
        }
    }
    states
}

#[test]
fn a_crash_at_any_write_leaves_an_image_that_is_repaired_again() {
    let mut random = Random::new(13);
    let mut tried = 0;
    for sample in Sample::all().filter(|sample| sample.cluster <= 4096) {
        let expected = contents(&sample, &sample.bytes);
        for (damage, make) in DAMAGES {
            let what = format!("{}: {damage}", sample.name);
            let mut bytes = sample.bytes.clone();
            make(&sample, &mut bytes, &mut random);
            let recorder = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::new(bytes.clone()))));
            mend(&(recorder.clone() as Arc<dyn Storage>), RepairMode::All).unwrap();
            let log = recorder.take();
            let states = crashes(&bytes, &log, &mut random);
            let last = states.len().saturating_sub(1);
            for (number, (_, state)) in states.into_iter().enumerate() {
                // Before it is marked nothing gets worse: leaks may have been given back.
                let marked = sample.bytes[7] == 3 && state[79] & 1 != 0;
                assert!(
                    marked || corruptions(&state) <= corruptions(&bytes),
                    "{what}: state {number} of {last} is worse than before"
                );
                let (after, report) = mended(&state);
                assert!(
                    !report.still_marked && report.after.corruptions == 0,
                    "{what}: {number}: {:?}",
                    report.after.findings.first()
                );
                assert_eq!(report.after.leaks, 0, "{what}: {number}");
                assert!(contents(&sample, &after) == expected, "{what}: {number}: contents");
                if random.below(25) == 0 {
                    assert_sound(&sample, &after, &what);
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}

fn corruptions(bytes: &[u8]) -> u64 {
    let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let options = LayerOptions {
        for_check: true,
        metadata_only: true,
        ..LayerOptions::default()
    };
    let layer = Layer::open_qcow2(storage, &options).unwrap();
    let report = qcow2_engine::check(&layer, &qcow2_engine::CheckOptions::default(), &JobContext::quiet()).unwrap();
    report.corruptions
}

#[test]
fn a_repair_that_a_storage_stops_can_be_done_again() {
    let sample = Sample::new("small clusters", "cluster_size=512", &["snapshots", "compressed"]);
    let expected = contents(&sample, &sample.bytes);
    let mut random = Random::new(14);
    for (damage, make) in DAMAGES {
        let mut bytes = sample.bytes.clone();
        make(&sample, &mut bytes, &mut random);
        for fail_at in (0..).step_by(7) {
            let memory = Arc::new(MemoryStorage::new(bytes.clone()));
            let failing: Arc<dyn Storage> =
                Arc::new(FailingStorage::new(memory.clone(), fail_at, true, io::ErrorKind::Other));
            let outcome = mend(&failing, RepairMode::All);
            if let Ok(report) = &outcome
                && report.after.check_errors == 0
            {
                break;
            }
            let (after, report) = mended(&memory.to_vec());
            assert_eq!(
                (report.after.corruptions, report.after.leaks),
                (0, 0),
                "{damage}: {fail_at}"
            );
            assert!(contents(&sample, &after) == expected, "{damage}: {fail_at}");
        }
    }
}
