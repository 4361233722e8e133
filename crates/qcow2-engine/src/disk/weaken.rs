//! Rules that a test removes, to see that the crash simulator finds it.

/// Rules that are switched off. Nothing but tests can set any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weaken(u32);

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Weaken {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*

            /// All of them, with their names.
            pub const ALL: &[(&str, Self)] = &[$((stringify!($name), Self::$name)),*];
        }
    };
}

rules! {
    /// Refcount structures are named before their contents are durable.
    NO_BARRIER_STRUCTURE = 0;
    /// Pointers are written before what they name is durable.
    NO_BARRIER_PREPARE = 1;
    /// A flush returns before its pointers are durable.
    NO_BARRIER_PUBLISH = 2;
    /// The data file is not synced.
    NO_DATA_FILE_SYNC = 3;
    /// A flush writes what tables say when it comes to them, not what they said when it began.
    NO_SEAL = 4;
    /// What is unlinked is punched and free at once.
    NO_QUARANTINE = 5;
    /// Readers do not hold up reclaiming.
    NO_TICKETS = 6;
    /// A hole is punched although the range is linked again.
    NO_PUNCH_CANCEL = 7;
    /// Refcounts are written with the pointers, after what they protect.
    REFCOUNTS_LATE = 8;
    /// Lazy refcounts and snapshots without the dirty bit.
    NO_DIRTY_BIT = 9;
    /// A snapshot's name is published before its references are durable.
    SNAPSHOT_EARLY = 10;
    /// Shared entries keep their COPIED flags.
    COPIED_NOT_CLEARED = 11;
    /// Applying a snapshot overwrites the active L1 table in place.
    APPLY_IN_PLACE = 12;
    /// Bitmaps are not marked as in use.
    BITMAP_NOT_IN_USE = 13;
    /// A failed sync is forgotten.
    NO_POISON = 14;
}

impl Weaken {
    /// Whether a rule is switched off.
    pub const fn has(self, rule: Self) -> bool {
        self.0 & rule.0 != 0
    }
}
