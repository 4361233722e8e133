//! With a rule switched off, the simulator finds it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests may stop at the first surprise"
)]

use qcow2_engine::Weaken;
use qcow2_sim::calibrate::TRIALS;

/// Runs the trial of one rule.
fn is_found(name: &str) {
    let trial = TRIALS.iter().find(|trial| trial.name == name).unwrap();
    let outcome = trial.run(1, 60_000);
    let Some(bad) = outcome.bad.first() else {
        panic!("nothing found in {} states without {name}", outcome.counts.all());
    };
    println!("{name}: after {} states: {}", outcome.counts.all(), bad.failure.text);
}

macro_rules! rules {
    ($($test:ident $name:literal,)*) => {
        $(#[test]
        fn $test() {
            is_found($name);
        })*

        #[test]
        fn every_rule_is_tried() {
            let tried = [$($name),*];
            for trial in TRIALS {
                assert!(tried.contains(&trial.name), "{} is not tried", trial.name);
            }
            for (name, _) in Weaken::ALL {
                assert!(tried.contains(name), "{name} has no trial");
            }
        }
    };
}

rules! {
    structures_before_their_names "NO_BARRIER_STRUCTURE",
    contents_before_pointers "NO_BARRIER_PREPARE",
    pointers_before_the_answer "NO_BARRIER_PUBLISH",
    the_data_file_first "NO_DATA_FILE_SYNC",
    only_what_was_sealed "NO_SEAL",
    no_use_before_the_unlink_is_durable "NO_QUARANTINE",
    readers_hold_up_reclaiming "NO_TICKETS",
    no_hole_where_something_is_linked_again "NO_PUNCH_CANCEL",
    refcounts_before_references "REFCOUNTS_LATE",
    late_refcounts_are_declared "NO_DIRTY_BIT",
    a_snapshot_is_named_when_it_is_whole "SNAPSHOT_EARLY",
    what_is_shared_is_not_written_in_place "COPIED_NOT_CLEARED",
    one_sector_applies_a_snapshot "APPLY_IN_PLACE",
    bitmaps_in_use_are_declared "BITMAP_NOT_IN_USE",
    a_failed_sync_poisons "NO_POISON",
}
