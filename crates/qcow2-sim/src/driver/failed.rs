//! What an operation that changes everything has come to when it has failed.

use qcow2_format::GuestOffset;

use super::Driver;
use crate::log::{Event, Outcome, SECTOR};
use crate::plan::Op;

impl Driver {
    /// Whether the last such operation has happened although it failed. The disk knows, unless it is poisoned: then the workload ends.
    pub(super) fn went_through(&mut self, happened: impl Fn(&Self) -> Option<bool>) -> bool {
        let Some(op) = self.shared().failed_switch.take() else {
            return false;
        };
        let before = self.shared().errors;
        self.simple(&Op::Flush);
        let happened = happened(self).filter(|_| self.shared().errors == before);
        match happened {
            Some(happened) => {
                let outcome = if happened { Outcome::Done } else { Outcome::Refused };
                self.log.mark(Event::OpEnd(op, outcome));
                happened
            }
            None => {
                self.stop = true;
                false
            }
        }
    }

    /// Whether the disk holds this; none if it cannot be read.
    pub(super) fn holds(&self, wanted: &[u32]) -> Option<bool> {
        let mut bytes = vec![0; self.size() as usize];
        self.disk().chain().read(GuestOffset(0), &mut bytes).ok()?;
        let shared = self.shared();
        let same = bytes
            .chunks(SECTOR)
            .zip(wanted)
            .all(|(there, content)| shared.contents.get(*content) == there);
        Some(same && bytes.len() == wanted.len() * SECTOR)
    }
}
