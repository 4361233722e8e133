//! Fuzzing on stable Rust: sound images (`seeds`) are damaged where it hurts (`mutate`), handed to one part of the engine (`target`), and judged:
//! no panic, no wrong byte, no end that does not come. What behaves in a new way is kept and damaged further (`campaign`); what fails is cut down to
//! the patches that matter and written as a text (`dump`) that `tests/replay.rs` reads back.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a tool of the tests: what it did not foresee is to stop it"
)]

pub mod campaign;
pub mod capped;
pub mod dump;
pub mod mutate;
pub mod places;
pub mod random;
pub mod seeds;
pub mod target;
