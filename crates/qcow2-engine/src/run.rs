//! The answer of *resolve*.

use qcow2_format::{CompressedDescriptor, GuestOffset, HostOffset};

/// A guest range with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it begins.
    pub start: GuestOffset,
    /// Its length in bytes, never 0.
    pub length: u64,
    /// The layer that answered, 0 being the top. For [`RunKind::Unallocated`]: the lowest layer that was asked.
    pub depth: u32,
    /// The answer.
    pub kind: RunKind,
}

impl Run {
    /// The first guest offset behind the run.
    pub fn end(&self) -> GuestOffset {
        GuestOffset(self.start.0.saturating_add(self.length))
    }

    /// The part of the run from `from` to `to`, if there is any.
    pub(crate) fn cut(&self, from: GuestOffset, to: GuestOffset) -> Option<Self> {
        let (start, end) = (from.max(self.start), to.min(self.end()));
        let length = end.0.checked_sub(start.0).filter(|&length| length != 0)?;
        let skip = start.0 - self.start.0;
        let moved = |host: HostOffset| HostOffset(host.0.saturating_add(skip));
        let kind = match self.kind {
            RunKind::Data { host } => RunKind::Data { host: moved(host) },
            RunKind::Zero { explicit, host } => RunKind::Zero {
                explicit,
                host: host.map(moved),
            },
            kind @ (RunKind::Compressed { .. } | RunKind::Unallocated) => kind,
        };
        Some(Self {
            start,
            length,
            depth: self.depth,
            kind,
        })
    }
}

/// What a run's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// They stand as they are in the layer's file (or its external data file), `host` being the place of the run's first byte.
    Data {
        /// Place of the first byte.
        host: HostOffset,
    },
    /// They are part of one compressed cluster. Such a run never crosses a cluster.
    Compressed {
        /// Where the compressed bytes stand.
        descriptor: CompressedDescriptor,
        /// Guest offset at which the cluster begins.
        cluster: GuestOffset,
    },
    /// Zeros. `explicit`: a cluster or subcluster says so; otherwise the answering layer, or its backing file, ends before.
    Zero {
        /// Said by an entry (or by a hole of a raw file), not by an end.
        explicit: bool,
        /// Place of the first byte of the host range that is kept for it, if any.
        host: Option<HostOffset>,
    },
    /// No layer has the range: zeros.
    Unallocated,
}
