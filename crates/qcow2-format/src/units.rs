//! Offsets that cannot be mistaken for each other.

use std::fmt;

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number itself.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// This place `by` further on, or `None` past the end of the number range.
            pub const fn checked_add(self, by: u64) -> Option<Self> {
                match self.0.checked_add(by) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Whether this is a multiple of `unit`, a power of two.
            pub const fn is_aligned(self, unit: u64) -> bool {
                self.0 & unit.wrapping_sub(1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

offset! {
    /// A byte offset in the virtual disk.
    GuestOffset
}
offset! {
    /// A byte offset in the file that holds an image (or in its external data file).
    HostOffset
}
offset! {
    /// The number of a host cluster: its host offset divided by the cluster size.
    ClusterIndex
}
