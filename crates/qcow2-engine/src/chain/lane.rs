//! The fast lane: what memory can answer, straight into a caller's memory.

use std::sync::{Mutex, PoisonError};

use qcow2_format::GuestOffset;

use super::Chain;
use super::now::{NowAnswer, NowPiece};
use crate::crew;
use crate::storage::CallerMemory;

/// From here on helpers copy too.
const SHARED_FROM: usize = 256 << 10;
/// What one thread copies at a time: some 6 µs, which is how long the other may have to wait for it in the end.
const UNIT: usize = 64 << 10;

impl Chain {
    /// Fills `memory` with the bytes from `start` on as far as they can be had without waiting, and returns how many those were.
    ///
    /// Fewer than there is room for says nothing about the rest, not even where the disk ends or a file is damaged: [`Chain::read`] goes on
    /// from there, and decides.
    pub fn read_now(&self, start: GuestOffset, memory: &mut CallerMemory<'_>) -> usize {
        if memory.length() >= SHARED_FROM {
            return self.read_shared(start, memory);
        }
        let Some(answer) = self.now(start, memory.length()) else {
            return 0;
        };
        let mut done = 0;
        for piece in answer.pieces() {
            let count = fill(piece, 0, &mut memory.part(done, piece.length()));
            done += count;
            if count < piece.length() {
                break;
            }
        }
        done
    }

    /// The same with helpers: everything is looked up first, then copied in units.
    fn read_shared(&self, start: GuestOffset, memory: &mut CallerMemory<'_>) -> usize {
        let answers = self.answers(start, memory.length());
        let mut units = Vec::new();
        let mut rest = memory.part(0, usize::MAX);
        for piece in answers.iter().flat_map(NowAnswer::pieces) {
            for from in (0..piece.length()).step_by(UNIT) {
                let (unit, later) = rest.split_at(UNIT.min(piece.length() - from));
                rest = later;
                units.push((piece, from, Mutex::new((unit, 0))));
            }
        }
        let copied = crew::share(units.len(), &|index| {
            let Some((piece, from, unit)) = units.get(index) else {
                return;
            };
            let mut unit = unit.lock().unwrap_or_else(PoisonError::into_inner);
            unit.1 = fill(piece, *from, &mut unit.0);
        });
        if copied.is_err() {
            return 0;
        }
        let mut done = 0;
        for (_, _, unit) in units {
            let (unit, count) = unit.into_inner().unwrap_or_else(PoisonError::into_inner);
            done += count;
            if count < unit.length() {
                break;
            }
        }
        done
    }

    /// The answers from `start` on, as far as there are any: one, or several where the map is too fine for that.
    fn answers(&self, start: GuestOffset, length: usize) -> Vec<NowAnswer<'_>> {
        if let Some(answer) = self.now(start, length) {
            return vec![answer];
        }
        let mut answers = Vec::new();
        for from in (0..length).step_by(UNIT) {
            let at = start.0.checked_add(from as u64).map(GuestOffset);
            let Some(answer) = at.and_then(|at| self.now(at, UNIT.min(length - from))) else {
                break;
            };
            answers.push(answer);
        }
        answers
    }
}

/// Fills `memory` with the bytes of a piece from byte `from` of it on; returns how many there were at once.
fn fill(piece: &NowPiece<'_>, from: usize, memory: &mut CallerMemory<'_>) -> usize {
    match piece {
        NowPiece::Zero { .. } => memory.clear(),
        NowPiece::Data { storage, host, .. } => host
            .checked_add(from as u64)
            .and_then(|host| storage.read_now(host, memory))
            .unwrap_or(0),
        NowPiece::Encrypted(piece) => piece.read_now(from, memory).unwrap_or(0),
        NowPiece::Decoded(piece) => memory.fill(piece.bytes().get(from..).unwrap_or_default()),
    }
}
