//! What once failed or was worth keeping, asked again; and some thousands of new inputs, always the same ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may stop at the first surprise")]

use std::path::Path;

use qcow2_fuzz::campaign::{Campaign, ask};
use qcow2_fuzz::dump::Input;
use qcow2_fuzz::seeds;
use qcow2_fuzz::target::{TARGETS, run};

/// Inputs of each target: a minute of all on a slow machine.
const INPUTS: usize = 20_000;

#[test]
fn the_corpus_and_all_reproducers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut asked = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let input = Input::from_text(&std::fs::read_to_string(&path).unwrap());
        if let Err(what) = ask(&input) {
            panic!("{}: {what}", path.display());
        }
        asked += 1;
    }
    assert!(asked > 0);
}

#[test]
fn what_is_not_damaged_is_sound() {
    for number in 0..seeds::COUNT {
        for target in TARGETS.into_iter().filter(|target| *target != "luks") {
            let seen = run(target, &seeds::image(number), 1).unwrap();
            assert!(seen.is_empty(), "seed {number}, {target}: {seen:?}");
        }
    }
}

fn some_of(target: &str) {
    let mut campaign = Campaign::new(target, 1);
    for number in 0..INPUTS {
        let input = campaign.input();
        if let Err(failure) = campaign.step(input) {
            panic!("input {number}: {}\n{}", failure.what, failure.input.to_text());
        }
    }
    // Deep code is reached: most inputs get past the header and behave in many ways.
    let least = match target {
        "luks" => 5,
        "bitmaps" | "snapshots" => 8,
        _ => 15,
    };
    assert!(
        campaign.behaviours() >= least,
        "{target}: {} behaviours",
        campaign.behaviours()
    );
}

macro_rules! targets {
    ($($name:ident),*) => { $(#[test] fn $name() { some_of(stringify!($name)); })* };
}
targets!(header, read, check, snapshots, bitmaps, repair, operations, luks);
