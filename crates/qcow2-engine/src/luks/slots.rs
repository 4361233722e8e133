//! Changes of key slots: what is new is written, read back and proven before what is old goes.
//!
//! A crash at any moment leaves a header in which every slot that was not to be changed opens, and of those that were, the old or the new. The state of
//! a slot is a word inside one sector; everything else of it is written while the state says that it holds nothing.

use std::sync::Arc;

use qcow2_codec::crypt::{ConstantTimeEq, SECTOR, random};
use qcow2_format::HostOffset;
use qcow2_format::luks::{self, KeySlot, LuksHeader};

use super::create::{iterations, new_slot, rate};
use super::unlock::{open_slot, unlock};
use super::{LuksVolume, Secret, failed};
use crate::error::{Error, Result};
use crate::progress::JobContext;
use crate::storage::Storage;

/// How often erased material is overwritten. Where a device writes to other places than it says, no number helps.
const PASSES: u32 = 40;
/// What becomes of the key slots: one more password, one less, or another one.
#[derive(Debug)]
pub struct KeySlotChange {
    /// What opens the image now.
    pub secret: Secret,
    /// What is to open it from now on.
    pub add: Option<NewKeySlot>,
    /// What is not to open it any more: all slots that it opens are erased, after those that are new are proven.
    pub erase: Option<Secret>,
    /// Where the new password goes; without one, the slot that is erased. None: the first that is free; those that the password opens.
    pub slot: Option<u32>,
    /// Also what cannot be undone: the last slot, and a slot that is in use.
    pub force: bool,
}

/// A password that opens the image besides others.
#[derive(Debug)]
pub struct NewKeySlot {
    /// The password.
    pub secret: Secret,
    /// Milliseconds that one try of it is to take.
    pub iter_time: u64,
}

/// What was found out before anything is changed.
#[derive(Debug)]
pub(crate) struct SlotPlan {
    key: Secret,
    target: Option<usize>,
    erase: Vec<usize>,
}

/// Decides what is to be done, if it may be.
///
/// # Errors
/// [`Error::State`] with code `KEY_SLOT` for what may not be, `WRONG_KEY`; those of [`unlock`].
pub(crate) fn plan(
    storage: &Arc<dyn Storage>,
    volume: &LuksVolume,
    change: &KeySlotChange,
    max_iterations: u64,
    job: &JobContext,
) -> Result<SlotPlan> {
    let refused = |reason: String| Error::State {
        code: "KEY_SLOT",
        path: storage.path().map(Into::into),
        reason,
    };
    let slots = &volume.header.slots;
    let active = |number: usize| slots.get(number).is_some_and(|slot| slot.active);
    let asked = match change.slot {
        Some(number) if number as usize >= luks::SLOTS => {
            return Err(refused(format!(
                "Invalid keyslot {number} specified, must be between 0 and 7"
            )));
        }
        other => other.map(|number| number as usize),
    };
    if change.add.is_none() && change.erase.is_none() && asked.is_none() {
        let reason = "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given";
        return Err(refused(reason.to_owned()));
    }
    let target = match (&change.add, asked) {
        (None, _) => None,
        (Some(_), Some(number)) if active(number) && !change.force => {
            return Err(refused(format!(
                "Refusing to overwrite active keyslot {number} - please erase it first"
            )));
        }
        (Some(_), Some(number)) => Some(number),
        (Some(_), None) => {
            let free = (0..luks::SLOTS).find(|number| !active(*number));
            Some(free.ok_or_else(|| refused("Can't add a keyslot - all keyslots are in use".to_owned()))?)
        }
    };
    let (key, _) = unlock(storage, volume, &change.secret, max_iterations, job)?;
    let mut erase = Vec::new();
    if let Some(old) = &change.erase {
        let only = asked.filter(|_| target.is_none());
        for (number, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.active) {
            let wanted = only.is_none_or(|only| only == number) && target != Some(number);
            if wanted && open_slot(storage, volume, slot, old, job)?.is_some() {
                erase.push(number);
            }
        }
        if erase.is_empty() {
            return Err(refused(match only {
                Some(number) => {
                    format!("Given keyslot {number} doesn't contain the given old password for erase operation")
                }
                None => "No keyslots match given (old) password for erase operation".to_owned(),
            }));
        }
    } else if let Some(number) = asked.filter(|_| target.is_none()) {
        if !active(number) && !change.force {
            return Err(refused(format!("Given keyslot {number} is already erased (inactive) ")));
        }
        erase.push(number);
    }
    let left = (0..luks::SLOTS)
        .filter(|number| active(*number) && !erase.contains(number))
        .count();
    if target.is_none() && left == 0 && !change.force {
        return Err(refused(match (&change.erase, erase.first()) {
            (None, Some(number)) => format!(
                "Attempt to erase the only active keyslot {number} which will erase all the data in the image irreversibly - refusing operation"
            ),
            _ => "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation".to_owned(),
        }));
    }
    Ok(SlotPlan { key, target, erase })
}

/// Does what was planned. Durable when it returns.
///
/// # Errors
/// [`Error::Io`], [`Error::Cancelled`]: then each slot is as it was, or as it was to be.
pub(crate) fn apply(
    storage: &Arc<dyn Storage>,
    volume: &LuksVolume,
    change: &KeySlotChange,
    plan: &SlotPlan,
    job: &JobContext,
) -> Result<()> {
    let mut slots = Slots {
        storage,
        volume: volume.clone(),
    };
    if let (Some(target), Some(add)) = (plan.target, &change.add) {
        let made = rate(volume.hash, job)?;
        let count = iterations(made, (volume.hash, add.iter_time), plan.key.bytes().len(), 1)?;
        let put = |slots: &mut Slots<'_>, number| slots.put(number, &add.secret, &plan.key, count, job);
        if slots.is_active(target) {
            // Somewhere the key must stand while its place is written.
            let spare = (0..luks::SLOTS).find(|number| !slots.is_active(*number));
            if let Some(spare) = spare {
                put(&mut slots, spare)?;
            }
            slots.erase(target)?;
            put(&mut slots, target)?;
            if let Some(spare) = spare {
                slots.erase(spare)?;
            }
        } else {
            put(&mut slots, target)?;
        }
    }
    // From here on there is no way back, nor a reason for one.
    plan.erase.iter().try_for_each(|number| slots.erase(*number))
}

/// The slots of a header that is being changed.
struct Slots<'a> {
    storage: &'a Arc<dyn Storage>,
    volume: LuksVolume,
}

impl Slots<'_> {
    fn is_active(&self, number: usize) -> bool {
        self.volume.header.slots.get(number).is_some_and(|slot| slot.active)
    }

    /// Puts the key into a slot that holds none.
    fn put(&mut self, number: usize, secret: &Secret, key: &Secret, iterations: u32, job: &JobContext) -> Result<()> {
        let (slot, material) = new_slot(&self.volume, number, secret, key, iterations, job)?;
        self.write_material(&slot, &material)?;
        self.describe(
            number,
            KeySlot {
                active: false,
                ..slot.clone()
            },
        )?;
        let there = open_slot(self.storage, &self.volume, &slot, secret, job)?;
        if !there.is_some_and(|there| bool::from(there.bytes().ct_eq(key.bytes()))) {
            return Err(Error::Io {
                operation: "verify",
                path: self.storage.path().map(Into::into),
                source: std::io::Error::other("the new key slot does not read back as it was written"),
            });
        }
        self.describe(number, slot)
    }

    /// The slot holds nothing from now on; then its material goes.
    fn erase(&mut self, number: usize) -> Result<()> {
        let Some(old) = self.volume.header.slots.get(number).cloned() else {
            return Ok(());
        };
        self.describe(
            number,
            KeySlot {
                active: false,
                ..old.clone()
            },
        )?;
        let none = KeySlot {
            material: old.material,
            ..KeySlot::default()
        };
        self.describe(number, none)?;
        let mut noise = vec![0; usize::try_from(luks::material_bytes(self.volume.header.key_bytes)).unwrap_or(0)];
        for _ in 0..PASSES {
            random(&mut noise).map_err(|error| failed(None, error))?;
            self.write_material(&old, &noise)?;
        }
        Ok(())
    }

    fn write_material(&self, slot: &KeySlot, bytes: &[u8]) -> Result<()> {
        let begin = u64::from(slot.material).saturating_mul(luks::SECTOR);
        self.write(begin, bytes)
    }

    /// Writes what the header says of a slot, durably, one sector after the other.
    fn describe(&mut self, number: usize, slot: KeySlot) -> Result<()> {
        let mut there = vec![0; luks::LENGTH.next_multiple_of(SECTOR)];
        let outcome = self.storage.read_at(self.volume.offset, &mut there);
        outcome.map_err(Error::io("read", &**self.storage))?;
        if let Some(place) = self.volume.header.slots.get_mut(number) {
            *place = slot;
        }
        let wanted = self.volume.header.slot_bytes(number);
        let begin = LuksHeader::slot_place(number);
        let end = begin.saturating_add(wanted.len());
        for (to, from) in there.iter_mut().skip(begin).zip(wanted) {
            *to = from;
        }
        // The state stands in the first: where a slot lies in two sectors, an active one is described in full before it is one.
        let sectors = begin / SECTOR..end.div_ceil(SECTOR);
        let write = |number: usize| {
            let at = number.saturating_mul(SECTOR);
            let bytes = there.get(at..at.saturating_add(SECTOR)).unwrap_or_default();
            self.write(at as u64, bytes)
        };
        if self.is_active(number) {
            sectors.rev().try_for_each(write)
        } else {
            { sectors }.try_for_each(write)
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let place = HostOffset(self.volume.offset.0.saturating_add(at));
        let written = self.storage.write_at(place, bytes);
        written.map_err(Error::io("write", &**self.storage))?;
        self.storage.sync().map_err(Error::io("fsync", &**self.storage))
    }
}
