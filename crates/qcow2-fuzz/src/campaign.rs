//! A run: images are damaged, asked, and kept if they behave in a way that was not seen before.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::dump::Input;
use crate::mutate::mutate;
use crate::random::Random;
use crate::seeds;
use crate::target::{Behaviour, TARGETS, run};

/// Most images that are kept to be damaged further.
const MOST_KEPT: usize = 400;

/// One target's run.
#[derive(Debug)]
pub struct Campaign {
    target: String,
    random: Random,
    seen: BTreeSet<Behaviour>,
    kept: Vec<Vec<u8>>,
}

/// What must not be, and the input that showed it.
#[derive(Debug)]
pub struct Failure {
    /// The input.
    pub input: Input,
    /// What happened.
    pub what: String,
}

/// Asks, and takes a panic for an answer that must not be.
///
/// # Errors
/// What must not be.
pub fn ask(input: &Input) -> Result<Behaviour, String> {
    catch_unwind(AssertUnwindSafe(|| run(&input.target, &input.bytes, input.choices))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("without words")))
    })
}

impl Campaign {
    /// A run of a target from a seed.
    pub fn new(target: &str, seed: u64) -> Self {
        let stream = TARGETS.iter().position(|one| *one == target).unwrap_or(0) as u64;
        Self {
            target: target.into(),
            random: Random::new(seed ^ stream << 32),
            seen: BTreeSet::new(),
            kept: seeds::of(target),
        }
    }

    /// Distinct behaviours so far.
    pub fn behaviours(&self) -> usize {
        self.seen.len()
    }

    /// The next input.
    pub fn input(&mut self) -> Input {
        let mut bytes = self.kept[self.random.index(self.kept.len())].clone();
        mutate(&mut bytes, &mut self.random);
        Input {
            target: self.target.clone(),
            choices: self.random.number(),
            bytes,
        }
    }

    /// Asks an input. True if it showed something new.
    ///
    /// # Errors
    /// What must not be.
    pub fn step(&mut self, input: Input) -> Result<bool, Box<Failure>> {
        match ask(&input) {
            Err(what) => Err(Box::new(Failure { what, input })),
            Ok(behaviour) => {
                let new = self.seen.insert(behaviour);
                if new && self.kept.len() < MOST_KEPT && input.bytes.len() < 200_000 {
                    self.kept.push(input.bytes);
                }
                Ok(new)
            }
        }
    }
}

/// The same failure with less damage: bytes that differ from the nearest sound image are put back as long as it still fails.
pub fn shrink(input: &Input) -> Input {
    let mut best = input.clone();
    let distance = |bytes: &[u8]| bytes.iter().zip(&input.bytes).filter(|(a, b)| a != b).count();
    let Some(sound) = seeds::of(&input.target).into_iter().min_by_key(|image| distance(image)) else {
        return best;
    };
    for size in [4096, 512, 64, 8, 1] {
        let mut at = 0;
        while at < best.bytes.len().min(sound.len()) {
            let end = (at + size).min(best.bytes.len()).min(sound.len());
            if best.bytes[at..end] != sound[at..end] {
                let mut less = best.clone();
                less.bytes[at..end].copy_from_slice(&sound[at..end]);
                if ask(&less).is_err() {
                    best = less;
                }
            }
            at = end;
        }
    }
    best
}
