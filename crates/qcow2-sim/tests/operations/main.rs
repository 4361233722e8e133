//! Operations on whole images: power is cut, and calls fail, at every place of each.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::panic,
    reason = "tests may stop at the first surprise"
)]

mod amends;
mod commits;
mod names;
mod repairs;
mod resizes;

use qcow2_sim::operation::{Operation, Swept};
use qcow2_sim::sweep::Bench;

/// Cuts power and lets calls fail; says which case was wrong.
fn prove(what: &str, operation: &Operation<'_>, seed: u64, total: &mut Swept) {
    let bench = Bench::default();
    let mut add = |swept: Swept| {
        total.states += swept.states;
        total.duplicates += swept.duplicates;
        total.faults += swept.faults;
    };
    add(operation
        .cut_power(seed, 400, &bench)
        .unwrap_or_else(|failure| panic!("{what}: {failure:?}")));
    add(operation
        .fail_calls(seed, 24, &bench)
        .unwrap_or_else(|failure| panic!("{what}: {failure:?}")));
}

/// A test that looked at nothing proves nothing.
fn enough(what: &str, total: Swept, states: u64) {
    println!("{what}: {total:?}");
    assert!(total.states >= states && total.faults > 50, "{total:?}");
}
