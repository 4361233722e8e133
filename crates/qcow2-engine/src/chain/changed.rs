//! The map has changed under the readers: what they keep of it follows.

use qcow2_format::{GuestOffset, HostOffset};

use super::Chain;
use super::mapping::PIECE;
use crate::run::{Run, RunKind};

impl Chain {
    /// The top's tables hold `bytes` at `offset` from now on.
    pub(crate) fn patch_table(&self, offset: HostOffset, bytes: &[u8]) {
        let Some(size) = self.cluster_size() else { return };
        let size = size.min(PIECE);
        let at = HostOffset(offset.0 & !(size - 1));
        let within = usize::try_from(offset.0 - at.0).unwrap_or(usize::MAX);
        self.cache.change((0, at), |piece| {
            if std::sync::Arc::get_mut(piece).is_none() {
                *piece = piece.iter().copied().collect();
            }
            let piece = std::sync::Arc::get_mut(piece).unwrap_or_default();
            let end = within.saturating_add(bytes.len());
            if let Some(place) = piece.get_mut(within..end) {
                place.copy_from_slice(bytes);
            }
        });
    }

    /// There is no table at `offset` any more.
    pub(crate) fn drop_table(&self, offset: HostOffset) {
        let Some(size) = self.cluster_size() else { return };
        self.cache.remove((0, HostOffset(offset.0 & !(size.min(PIECE) - 1))));
    }

    /// `length` bytes from `start` on stand at `host` in the top, or in its data file.
    pub(crate) fn data_written(&self, start: GuestOffset, host: HostOffset, length: u64) {
        self.changed(start, length, RunKind::Data { host });
    }

    /// `length` bytes from `start` on are zeros because the top says so; `host` is kept for them.
    pub(crate) fn zero_written(&self, start: GuestOffset, length: u64, host: Option<HostOffset>) {
        self.changed(start, length, RunKind::Zero { explicit: true, host });
    }

    fn changed(&self, start: GuestOffset, length: u64, kind: RunKind) {
        let length = length.min(self.virtual_size().saturating_sub(start.0));
        if length > 0 {
            self.index.change(&Run {
                start,
                length,
                depth: 0,
                kind,
            });
        }
    }
}
