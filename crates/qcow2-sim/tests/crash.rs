//! What `npm test` runs of the simulator: a fixed seed, more than 50,000 states.
#![allow(clippy::print_stdout, reason = "the counts are the result")]

use std::time::Duration;

use qcow2_sim::campaign::Campaign;
use qcow2_sim::shrink;

/// Runs a campaign that must not find anything, and says what it has looked at.
fn nothing_is_bad(campaign: &Campaign) {
    let outcome = campaign.run(|_, _| {});
    println!("seed {}: {:?} in {:?}", campaign.seed, outcome.counts, outcome.time);
    let reports: Vec<String> = outcome.bad.iter().map(|bad| shrink::report(campaign, bad)).collect();
    assert!(reports.is_empty(), "{}", reports.join("\n"));
    assert!(
        outcome.counts.all() >= campaign.states,
        "only {} states",
        outcome.counts.all()
    );
    assert!(outcome.counts.qemu > 0, "qemu-img has checked none");
}

#[test]
fn no_power_cut_loses_what_was_flushed() {
    nothing_is_bad(&Campaign {
        states: 55_000,
        faulty: 0,
        time: Duration::from_secs(300),
        ..Campaign::default()
    });
}

#[test]
fn no_call_that_fails_damages_an_image() {
    nothing_is_bad(&Campaign {
        seed: 2,
        states: 10_000,
        faulty: 1,
        qemu: 300,
        time: Duration::from_secs(300),
        ..Campaign::default()
    });
}
