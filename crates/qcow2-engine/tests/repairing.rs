//! Images with damaged refcounts, refcount structures and COPIED flags are repaired: qemu-img finds nothing any more, the disk and its snapshots hold
//! what they held, a second repair writes nothing, and no crash in the middle does harm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::storage::testing::{Operation, RecordingStorage};
use qcow2_engine::{MemoryStorage, RepairMode, Storage};
use support::Random;
use support::damages::{DAMAGES, SHAPES, Sample, assert_sound, contents, mend, mended, qemu_check};

#[test]
fn every_damage_of_every_shape_is_repaired() {
    let mut random = Random::new(11);
    let mut repaired = 0;
    for sample in Sample::all() {
        let expected = contents(&sample, &sample.bytes);
        for (damage, make) in DAMAGES {
            let what = format!("{}: {damage}", sample.name);
            let mut bytes = sample.bytes.clone();
            make(&sample, &mut bytes, &mut random);
            let (after, report) = mended(&bytes);
            assert_sound(&sample, &after, &what);
            assert!(!report.still_marked, "{what}");
            assert_eq!(
                (report.after.corruptions, report.after.leaks, report.after.check_errors),
                (0, 0, 0),
                "{what}: {:?}",
                report.after.findings.first()
            );
            assert!(contents(&sample, &after) == expected, "{what}: contents");
            if bytes != after {
                repaired += 1;
            }

            // Once more: nothing is written.
            let recorder = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::new(after.clone()))));
            let report = mend(&(recorder.clone() as Arc<dyn Storage>), RepairMode::All).unwrap();
            assert_eq!((report.leaks_fixed, report.corruptions_fixed), (0, 0), "{what}");
            let changes = |operation: &Operation| !matches!(operation, Operation::Read { .. } | Operation::Sync);
            assert!(!recorder.take().iter().any(changes), "{what}: a second repair wrote");
        }
    }
    assert!(repaired > SHAPES.len() * (DAMAGES.len() - 3), "{repaired}");
}

/// qemu-img's repair of a copy leaves the same disk, where it can repair at all.
#[test]
fn the_guest_sees_what_it_sees_after_a_repair_by_qemu_img() {
    let mut random = Random::new(12);
    let mut compared = 0;
    for sample in Sample::all().filter(|sample| sample.cluster < 1 << 20) {
        // For a block beyond the end qemu-img makes the file that long, and takes minutes.
        for (damage, make) in DAMAGES.iter().filter(|(name, _)| *name != "a block beyond the end") {
            let mut bytes = sample.bytes.clone();
            make(&sample, &mut bytes, &mut random);
            let (code, _, theirs) = qemu_check(&sample, &bytes, Some("all"));
            if code == 0 && !theirs.is_empty() {
                let (ours, _) = mended(&bytes);
                let (ours, theirs) = (contents(&sample, &ours), contents(&sample, &theirs));
                assert!(ours == contents(&sample, &sample.bytes), "{}: {damage}", sample.name);
                // Where there are bitmaps, qemu-img 10.0 loses the snapshots: it writes a header before it has read their table.
                let both = ours.len().min(theirs.len());
                assert!(ours[..both] == theirs[..both], "{}: {damage}", sample.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 50, "{compared}");
}

#[test]
fn leaks_are_given_back_without_raising_anything() {
    let mut random = Random::new(15);
    for sample in Sample::all() {
        let mut bytes = sample.bytes.clone();
        (DAMAGES.iter().find(|(name, _)| *name == "leaks").unwrap().1)(&sample, &mut bytes, &mut random);
        // What is leaked lies inside the file.
        bytes.resize(bytes.len().next_multiple_of(sample.cluster) + 120 * sample.cluster, 0);
        let (code, _, _) = qemu_check(&sample, &bytes, None);
        assert_eq!(code, 3, "{}: there are leaks", sample.name);
        let memory = Arc::new(MemoryStorage::new(bytes.clone()));
        let report = mend(&(memory.clone() as Arc<dyn Storage>), RepairMode::Leaks).unwrap();
        assert!(
            report.leaks_fixed > 0 && report.corruptions_fixed == 0,
            "{}",
            sample.name
        );
        let after = memory.to_vec();
        assert_sound(&sample, &after, sample.name);
        let refcounts_only = after.iter().zip(&sample.bytes).all(|(after, before)| after == before);
        assert!(refcounts_only, "{}", sample.name);

        // Refcounts that are too low stay so.
        let block = sample.blocks()[0];
        bytes[block..block + 8].fill(0);
        let memory = Arc::new(MemoryStorage::new(bytes.clone()));
        let report = mend(&(memory.clone() as Arc<dyn Storage>), RepairMode::Leaks).unwrap();
        assert!(
            report.leaks_fixed > 0 && report.after.corruptions > 0,
            "{}",
            sample.name
        );
        assert_eq!(memory.to_vec()[block..block + 8], [0; 8], "{}", sample.name);
    }
}
