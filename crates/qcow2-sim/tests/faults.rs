//! Every call to the files of an image fails: once, from then on, in the middle, for want of space. Nothing that was flushed is lost, and nothing is damaged.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests may stop at the first surprise"
)]

use qcow2_sim::campaign::Campaign;
use qcow2_sim::faults::Fault;
use qcow2_sim::plan::Focus;
use qcow2_sim::sweep::{Bench, Counts, Effort};

fn every_call_fails(fault: Fault) {
    let mut calls = 0;
    let mut counts = Counts::default();
    for (seed, shape) in (0..).zip([
        "plain 4k",
        "512, 64-bit",
        "data file 4k",
        "extended with backing",
        "compressed 4k",
    ]) {
        let campaign = Campaign {
            seed,
            shape: Some(shape.to_owned()),
            focus: Some(Focus::Sequential),
            effort: Effort {
                everywhere: 0,
                at_ends: 1,
                most: 8,
                thorough: 6,
                recovery: 0,
                last: 12,
            },
            ..Campaign::default()
        };
        // Without space only calls that grow the file fail: from each on.
        let mut case = campaign.case(seed);
        case.plan.ops.truncate(12);
        calls += campaign
            .every_call(&case, fault, &Bench::default(), &mut counts)
            .unwrap();
    }
    println!("{fault:?}: {calls} calls, {counts:?}");
    assert!(calls > 200 && counts.all() > calls && counts.faults > 0);
}

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
