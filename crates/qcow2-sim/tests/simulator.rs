//! The simulator itself: what its files remember of a power cut, and what its oracle allows.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may stop at the first surprise"
)]

use std::sync::Arc;

use qcow2_engine::Storage;
use qcow2_format::HostOffset;
use qcow2_sim::cut::{Choice, Cut};
use qcow2_sim::faults::{Fault, Faults};
use qcow2_sim::log::{Event, IMAGE, Log, Outcome};
use qcow2_sim::model::{Effect, Expectation, Oracle, Step};
use qcow2_sim::scratch::Scratch;
use qcow2_sim::storage::SimStorage;

fn storage(faults: Faults) -> (SimStorage, Arc<Log>) {
    let log = Arc::new(Log::default());
    (
        SimStorage::new(IMAGE, vec![0; 4096], log.clone(), Arc::new(faults), None),
        log,
    )
}

/// What is on the disk after the whole log and a cut.
fn after(log: &Log, choice: Choice) -> Vec<u8> {
    let mut cut = Cut::new(&[0; 4096], None);
    for (at, event) in log.take().iter().enumerate() {
        cut.advance(at, event);
        log.mark(event.clone());
    }
    let files = [Scratch::default(), Scratch::default()];
    cut.build(choice, [&files[0], &files[1]]);
    files[0].to_vec()
}

#[test]
fn what_was_synced_is_there_and_what_was_not_may_be_missing() {
    let (file, log) = storage(Faults::default());
    file.write_at(HostOffset(0), &[1; 512]).unwrap();
    file.sync().unwrap();
    file.write_at(HostOffset(512), &[2; 512]).unwrap();
    file.write_at(HostOffset(1024), &[3; 512]).unwrap();
    let none = after(&log, Choice::Subset(0));
    assert_eq!((none[0], none[512], none[1024]), (1, 0, 0));
    let second = after(&log, Choice::Only(1));
    assert_eq!((second[0], second[512], second[1024]), (1, 0, 3));
    let all = after(&log, Choice::Prefix);
    assert_eq!((all[0], all[512], all[1024]), (1, 2, 3));
}

#[test]
fn a_write_in_flight_when_a_sync_begins_is_not_covered() {
    let (_, log) = storage(Faults::default());
    let change = |byte| qcow2_sim::log::Change::Write {
        first: 0,
        bytes: vec![byte; 512].into(),
        end: 512,
    };
    let write = log.begin(IMAGE, change(7));
    let sync = log.sync_begin(IMAGE);
    log.mark(Event::End(write));
    log.mark(Event::SyncEnd(sync, true));
    assert_eq!(after(&log, Choice::Subset(0))[0], 0);
    let sync = log.sync_begin(IMAGE);
    log.mark(Event::SyncEnd(sync, true));
    assert_eq!(after(&log, Choice::Subset(0))[0], 7);
}

#[test]
fn a_sector_holds_what_all_writes_to_it_made_of_it() {
    let (file, log) = storage(Faults::default());
    file.write_at(HostOffset(0), &[1; 100]).unwrap();
    file.write_at(HostOffset(100), &[2; 100]).unwrap();
    // The page holds both when it goes out for the second.
    let bytes = after(&log, Choice::Only(1));
    assert_eq!((bytes[0], bytes[100], bytes[200]), (1, 2, 0));
}

#[test]
fn a_torn_write_is_torn_between_sectors_and_nowhere_else() {
    let (file, log) = storage(Faults::default());
    file.write_at(HostOffset(0), &[9; 4096]).unwrap();
    let mut mixed = false;
    for seed in 0..64 {
        let bytes = after(&log, Choice::Torn(seed));
        let sectors: Vec<bool> = bytes.chunks(512).map(|sector| sector[0] == 9).collect();
        assert!(
            bytes
                .chunks(512)
                .all(|sector| sector.iter().all(|byte| *byte == sector[0]))
        );
        mixed |= sectors.contains(&true) && sectors.contains(&false);
    }
    assert!(mixed);
}

#[test]
fn holes_and_lengths_are_a_matter_of_chance_until_a_sync() {
    let (file, log) = storage(Faults::default());
    file.write_at(HostOffset(0), &[1; 4096]).unwrap();
    file.sync().unwrap();
    file.punch(HostOffset(0), 1024).unwrap();
    file.set_length(2048).unwrap();
    assert_eq!(after(&log, Choice::Subset(0)), [1; 4096]);
    assert_eq!(after(&log, Choice::Only(0))[..1025], [vec![0; 1024], vec![1]].concat());
    assert_eq!(after(&log, Choice::Only(1)), [1; 2048]);
    file.sync().unwrap();
    assert_eq!(after(&log, Choice::Subset(0)).len(), 2048);
}

#[test]
fn a_failed_sync_loses_what_it_should_have_covered_even_for_later_ones() {
    let (file, log) = storage(Faults::new(Fault::Sync, 0));
    file.write_at(HostOffset(0), &[1; 512]).unwrap();
    assert!(file.sync().is_err());
    file.write_at(HostOffset(512), &[2; 512]).unwrap();
    file.sync().unwrap();
    let bytes = after(&log, Choice::Prefix);
    assert_eq!((bytes[0], bytes[512]), (0, 2));
}

#[test]
fn a_full_disk_takes_what_does_not_grow_it() {
    let (file, _) = storage(Faults::new(Fault::Full, 0));
    file.write_at(HostOffset(0), &[1; 512]).unwrap();
    let error = file.write_at(HostOffset(4096), &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

/// Contents that one sector may have after steps, given as effects on sector 0.
fn allowed(steps: &[Effect]) -> Vec<u32> {
    let steps: Vec<Step> = steps
        .iter()
        .map(|effect| Step {
            effect: effect.clone(),
            bitmap: None,
            text: String::new(),
        })
        .collect();
    let mut oracle = Oracle::new(&steps, Expectation::new(vec![5]));
    for (op, at) in (0..steps.len()).zip((0..).step_by(2)) {
        oracle.begin(u32::try_from(op).unwrap(), at);
        oracle.end(u32::try_from(op).unwrap(), Outcome::Done, at + 1);
    }
    std::iter::once(oracle.now.first(0))
        .chain(oracle.now.others(0))
        .collect()
}

fn write(content: u32) -> Effect {
    Effect::Sectors {
        entries: vec![(0, content)],
        weak: false,
    }
}

#[test]
fn the_oracle_allows_what_was_flushed_and_all_that_came_after() {
    let discard = Effect::Sectors {
        entries: vec![(0, 0)],
        weak: true,
    };
    assert_eq!(allowed(&[write(6), write(7)]), [5, 6, 7]);
    assert_eq!(allowed(&[write(6), Effect::Flush]), [6]);
    assert_eq!(allowed(&[write(6), Effect::Flush, write(7)]), [6, 7]);
    assert_eq!(allowed(&[write(6), discard.clone(), Effect::Flush]), [6, 0]);
    assert_eq!(allowed(&[write(6), discard, write(7), Effect::Flush]), [7]);
}

#[test]
fn scratch_files_come_back_as_they_were() {
    let base: Vec<u8> = (0..10_000u32).map(|number| number.to_le_bytes()[0]).collect();
    let scratch = Scratch::default();
    scratch.reset(&base, true);
    scratch.write_at(HostOffset(5000), &[0xEE; 9000]).unwrap();
    scratch.punch(HostOffset(0), 300).unwrap();
    scratch.set_length(100).unwrap();
    scratch.reset(&base, false);
    assert_eq!(scratch.to_vec(), base);
    scratch.set_length(20_000).unwrap();
    scratch.reset(&base, false);
    assert_eq!(scratch.to_vec(), base);
}
