//! Every call to the files of an image fails: once, from then on, in the middle, for want of space. Nothing that was flushed is lost, and nothing is damaged.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests may stop at the first surprise"
)]

use qcow2_sim::campaign::Campaign;
use qcow2_sim::faults::Fault;
use qcow2_sim::plan::Focus;
use qcow2_sim::sweep::{Bench, Counts, Effort};

const SHAPES: [&str; 8] = [
    "plain 4k",
    "lazy 4k",
    "version 2 with backing",
    "512, 64-bit",
    "data file 4k",
    "extended with backing",
    "compressed 4k",
    "plain 64k",
];

const FOCUS: [Focus; 3] = [Focus::Sequential, Focus::Reuse, Focus::Bitmaps];

fn every_call_fails(fault: Fault) {
    let mut calls = 0;
    let mut counts = Counts::default();
    for (seed, shape) in (0..).zip(SHAPES) {
        for focus in [FOCUS[seed as usize % 3], Focus::Snapshots] {
            let campaign = Campaign {
                seed,
                shape: Some(shape.to_owned()),
                focus: Some(focus),
                faulty: 0,
                effort: EFFORT,
                ..Campaign::default()
            };
            let mut case = campaign.case(seed);
            case.plan.ops.retain(|op| !op.is_parallel());
            case.plan.ops.truncate(8);
            calls += campaign
                .every_call(&case, fault, &Bench::default(), &mut counts)
                .unwrap();
        }
    }
    println!("{fault:?}: {calls} calls, {counts:?}");
    assert!(calls > 500 && counts.all() > calls && counts.faults > 0);
}

/// The end of every log, where the failure has its effect.
const EFFORT: Effort = Effort {
    everywhere: 0,
    at_ends: 1,
    most: 6,
    thorough: 6,
    recovery: 0,
    last: 12,
};

#[test]
fn once() {
    every_call_fails(Fault::Once);
}

#[test]
fn from_then_on() {
    every_call_fails(Fault::Sticky);
}

#[test]
fn in_the_middle_of_a_write() {
    every_call_fails(Fault::Short);
}

#[test]
fn without_space() {
    every_call_fails(Fault::Full);
}

#[test]
fn a_sync() {
    every_call_fails(Fault::Sync);
}
