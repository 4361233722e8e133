//! What JavaScript holds of ours: numbers for opened things, never addresses.
//!
//! Whether a handle is closed is one `Option` (its slot's resource) behind one accessor ([`Handles::resource`]).

use std::collections::HashMap;
use std::sync::Arc;

use qcow2_engine::storage::MemoryStorage;
use qcow2_engine::{Chain, Disk, Error, Layer};

use crate::outbox::CallId;
use crate::turnstile::Turnstile;

/// A number that stands for an opened thing. Never used twice in an environment.
#[napi]
pub type Handle = u32;

/// An opened thing.
#[derive(Clone)]
pub(crate) enum Resource {
    /// Bytes in memory.
    Memory(Arc<MemoryStorage>),
    /// An image that is not part of a chain yet.
    Layer(Arc<Layer>),
    /// A disk that is read.
    Chain(Arc<Chain>),
    /// A disk that is written.
    Disk(Writable),
}

/// A disk that is written, and the order of its requests.
#[derive(Clone)]
pub(crate) struct Writable {
    pub(crate) disk: Arc<Disk>,
    pub(crate) turnstile: Arc<Turnstile>,
}

impl Resource {
    /// What reads go through, if it is a disk.
    pub(crate) fn chain(&self) -> Option<&Arc<Chain>> {
        match self {
            Self::Chain(chain) => Some(chain),
            Self::Disk(writable) => Some(writable.disk.chain()),
            Self::Memory(_) | Self::Layer(_) => None,
        }
    }

    /// Ends it. A disk that is written is closed, which may take as long as the device likes.
    ///
    /// # Errors
    /// Those of [`Disk::close`].
    pub(crate) fn close(self) -> Result<(), Error> {
        match self {
            Self::Disk(writable) => writable.disk.close(),
            Self::Memory(_) | Self::Layer(_) | Self::Chain(_) => Ok(()),
        }
    }
}

/// The handles of one environment. Used on its thread alone.
#[derive(Default)]
pub(crate) struct Handles {
    slots: HashMap<Handle, Slot>,
    last: Handle,
}

#[derive(Default)]
struct Slot {
    /// `None`: closed, or on its way to be.
    resource: Option<Resource>,
    /// What is closed but still used by accepted calls.
    leaving: Option<Resource>,
    /// Accepted calls that use it.
    uses: usize,
    /// Calls of `close` that wait for them.
    closers: Vec<CallId>,
}

/// Something that nobody uses any more, to be dropped where waiting is allowed, and the calls that wait for that.
pub(crate) struct Leaving {
    pub(crate) resource: Option<Resource>,
    pub(crate) closers: Vec<CallId>,
}

impl Handles {
    /// Gives `resource` a number.
    pub(crate) fn insert(&mut self, resource: Resource) -> Handle {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.slots.contains_key(&self.last) {
                break;
            }
        }
        let slot = Slot {
            resource: Some(resource),
            ..Slot::default()
        };
        self.slots.insert(self.last, slot);
        self.last
    }

    /// The open thing behind a handle.
    pub(crate) fn resource(&self, handle: Handle) -> Result<&Resource, Error> {
        self.slots
            .get(&handle)
            .and_then(|slot| slot.resource.as_ref())
            .ok_or(Error::Closed)
    }

    /// A call begins to use the handle, which [`Handles::release`] must end.
    pub(crate) fn retain(&mut self, handle: Handle) {
        if let Some(slot) = self.slots.get_mut(&handle) {
            slot.uses += 1;
        }
    }

    /// A call has ended. If it was the last that a `close` waited for: what there is to drop.
    pub(crate) fn release(&mut self, handle: Handle) -> Option<Leaving> {
        let slot = self.slots.get_mut(&handle)?;
        slot.uses = slot.uses.saturating_sub(1);
        if slot.uses > 0 || slot.resource.is_some() {
            return None;
        }
        self.leave(handle)
    }

    /// Closes a handle for the call `closer`: at once if nobody uses it, else with the last release.
    pub(crate) fn close(&mut self, handle: Handle, closer: CallId) -> Option<Leaving> {
        let Some(slot) = self.slots.get_mut(&handle) else {
            // Closed before: nothing is left to wait for.
            return Some(Leaving {
                resource: None,
                closers: vec![closer],
            });
        };
        slot.closers.push(closer);
        self.close_quietly(handle)
    }

    /// [`Handles::close`] without anybody who waits.
    pub(crate) fn close_quietly(&mut self, handle: Handle) -> Option<Leaving> {
        let slot = self.slots.get_mut(&handle)?;
        if let Some(resource) = slot.resource.take() {
            slot.leaving = Some(resource);
        }
        if slot.uses > 0 {
            return None;
        }
        self.leave(handle)
    }

    /// Takes the thing behind a handle, which ends with that. An accepted call that uses it refuses this.
    pub(crate) fn take(&mut self, handle: Handle) -> Result<Resource, Error> {
        let resource = self.lend(handle)?;
        self.slots.remove(&handle);
        Ok(resource)
    }

    /// As [`Handles::take`], but the handle waits for [`Handles::give_back`]; the call that this is for has to retain it.
    pub(crate) fn lend(&mut self, handle: Handle) -> Result<Resource, Error> {
        let slot = self.slots.get_mut(&handle).ok_or(Error::Closed)?;
        if slot.uses > 0 {
            return Err(Error::State {
                code: "BUSY",
                path: None,
                reason: "the image is still in use by another call".to_owned(),
            });
        }
        slot.resource.take().ok_or(Error::Closed)
    }

    /// Ends [`Handles::lend`]. A handle that was closed meanwhile lets go of it with its last release.
    pub(crate) fn give_back(&mut self, handle: Handle, resource: Resource) {
        if let Some(slot) = self.slots.get_mut(&handle) {
            if slot.closers.is_empty() {
                slot.resource = Some(resource);
            } else {
                slot.leaving = Some(resource);
            }
        }
    }

    fn leave(&mut self, handle: Handle) -> Option<Leaving> {
        let slot = self.slots.remove(&handle)?;
        Some(Leaving {
            resource: slot.leaving,
            closers: slot.closers,
        })
    }
}
