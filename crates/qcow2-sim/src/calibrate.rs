//! The simulator is tried out: with a rule switched off, it has to find something.

use std::time::Duration;

use qcow2_engine::Weaken;

use crate::campaign::{Campaign, EFFORT, Outcome};
use crate::plan::Focus;

/// A rule, and where its loss shows.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Its name.
    pub name: &'static str,
    /// The switch.
    pub weaken: Weaken,
    /// Which operations show it.
    pub focus: Option<Focus>,
    /// Which shapes show it.
    pub shape: Option<&'static str>,
    /// Whether calls have to fail.
    pub faulty: bool,
    /// What it is, in the words of the rules.
    pub rule: &'static str,
}

const fn trial(name: &'static str, weaken: Weaken, rule: &'static str) -> Trial {
    Trial {
        name,
        weaken,
        focus: None,
        shape: None,
        faulty: false,
        rule,
    }
}

/// All rules that can be switched off.
pub static TRIALS: &[Trial] = &[
    Trial {
        focus: Some(Focus::Reuse),
        shape: Some("512"),
        ..trial(
            "NO_BARRIER_STRUCTURE",
            Weaken::NO_BARRIER_STRUCTURE,
            "W3, W4: a refcount block is durable before it is named",
        )
    },
    trial(
        "NO_BARRIER_PREPARE",
        Weaken::NO_BARRIER_PREPARE,
        "W1, W2: data, tables and refcounts before the pointer",
    ),
    trial(
        "NO_BARRIER_PUBLISH",
        Weaken::NO_BARRIER_PUBLISH,
        "W9: a flush returns when its pointers are durable",
    ),
    Trial {
        shape: Some("data file"),
        ..trial(
            "NO_DATA_FILE_SYNC",
            Weaken::NO_DATA_FILE_SYNC,
            "W1: the data file is synced first",
        )
    },
    Trial {
        focus: Some(Focus::Threads),
        ..trial(
            "NO_SEAL",
            Weaken::NO_SEAL,
            "a flush writes what was sealed, nothing newer",
        )
    },
    Trial {
        focus: Some(Focus::Reuse),
        ..trial(
            "NO_QUARANTINE",
            Weaken::NO_QUARANTINE,
            "W6: unlinked space is not used again before the unlink is durable",
        )
    },
    Trial {
        focus: Some(Focus::Readers),
        ..trial("NO_TICKETS", Weaken::NO_TICKETS, "readers hold up reclaiming")
    },
    Trial {
        focus: Some(Focus::Reuse),
        shape: Some("data file"),
        ..trial(
            "NO_PUNCH_CANCEL",
            Weaken::NO_PUNCH_CANCEL,
            "W6: a range that is linked again is not punched",
        )
    },
    trial(
        "REFCOUNTS_LATE",
        Weaken::REFCOUNTS_LATE,
        "W1: refcounts before what they protect is named",
    ),
    Trial {
        shape: Some("lazy"),
        ..trial(
            "NO_DIRTY_BIT",
            Weaken::NO_DIRTY_BIT,
            "H2: refcounts are late only under the dirty bit",
        )
    },
    Trial {
        focus: Some(Focus::Snapshots),
        ..trial(
            "SNAPSHOT_EARLY",
            Weaken::SNAPSHOT_EARLY,
            "S3: a snapshot is named when its references are durable",
        )
    },
    Trial {
        focus: Some(Focus::Snapshots),
        ..trial(
            "COPIED_NOT_CLEARED",
            Weaken::COPIED_NOT_CLEARED,
            "S2, S3: what is shared has COPIED clear",
        )
    },
    Trial {
        focus: Some(Focus::Snapshots),
        shape: Some("long L1"),
        ..trial(
            "APPLY_IN_PLACE",
            Weaken::APPLY_IN_PLACE,
            "S2: apply switches by one sector",
        )
    },
    Trial {
        focus: Some(Focus::Bitmaps),
        ..trial(
            "BITMAP_NOT_IN_USE",
            Weaken::BITMAP_NOT_IN_USE,
            "2.5: a bitmap is marked in use before the first write",
        )
    },
    Trial {
        faulty: true,
        ..trial("NO_POISON", Weaken::NO_POISON, "W9: a failed sync poisons")
    },
];

impl Trial {
    /// The campaign that has to find it within `states`.
    pub fn campaign(&self, seed: u64, states: u64) -> Campaign {
        let mut effort = EFFORT;
        if self.focus == Some(Focus::Readers) {
            // What goes wrong shows while the workload runs: more workloads, fewer cuts.
            effort.most = 20;
        }
        Campaign {
            seed,
            states,
            effort,
            time: Duration::from_secs(300),
            weaken: self.weaken,
            focus: self.focus,
            shape: self.shape.map(str::to_owned),
            faulty: u64::from(self.faulty),
            qemu: 0,
            ..Campaign::default()
        }
    }

    /// Runs it.
    pub fn run(&self, seed: u64, states: u64) -> Outcome {
        self.campaign(seed, states).run(|_, _| {})
    }
}
