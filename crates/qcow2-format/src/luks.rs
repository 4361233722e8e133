//! The LUKS1 header ("LUKS On-Disk Format Specification", version 1.2.3): 592 bytes, then the key slots' material, then the payload.
//!
//! Names of ciphers and hashes stay names here: whether they are known is the matter of whoever has the ciphers.

use crate::bytes::{be16, be32};
use crate::error::FormatError;

/// The first bytes of a header.
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// Bytes of the header.
pub const LENGTH: usize = 592;
/// Key slots that it has.
pub const SLOTS: usize = 8;
/// Stripes that a key is spread over.
pub const STRIPES: u32 = 4000;
/// The unit of its offsets, in bytes.
pub const SECTOR: u64 = 512;
/// Key material begins at multiples of so many sectors.
pub const ALIGNMENT: u32 = 8;
/// Most bytes of a key: two of 256 bits.
pub const MAX_KEY_BYTES: u32 = 64;

const ENABLED: u32 = 0x00AC_71F3;
const DISABLED: u32 = 0x0000_DEAD;
const SLOT_TABLE: usize = 208;
/// Bytes that the header has for each key slot.
pub const SLOT_LENGTH: usize = 48;

/// One of the eight places that hold the master key, each under a password of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySlot {
    /// Whether it holds the key.
    pub active: bool,
    /// Iterations of PBKDF2.
    pub iterations: u32,
    /// Its salt.
    pub salt: [u8; 32],
    /// Where its material begins, in sectors from the begin of the header.
    pub material: u32,
}

/// A LUKS1 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    /// Family of the cipher, such as `aes`; printable text of at most 31 bytes.
    pub cipher: String,
    /// Mode and generator of initialisation vectors, such as `xts-plain64`.
    pub mode: String,
    /// Hash of all derivations, such as `sha256`.
    pub hash: String,
    /// Where the payload begins, in sectors from the begin of the header.
    pub payload: u32,
    /// Bytes of the master key.
    pub key_bytes: u32,
    /// What tells the master key from others.
    pub digest: [u8; 20],
    /// Salt of the digest.
    pub digest_salt: [u8; 32],
    /// Iterations of the digest.
    pub digest_iterations: u32,
    /// The volume's identity, as text.
    pub uuid: String,
    /// The key slots.
    pub slots: [KeySlot; SLOTS],
}

/// Sectors that the material of one slot takes, for keys of so many bytes.
pub fn material_sectors(key_bytes: u32) -> u32 {
    let bytes = u64::from(key_bytes).saturating_mul(u64::from(STRIPES));
    u32::try_from(bytes.div_ceil(SECTOR)).unwrap_or(u32::MAX)
}

/// Bytes of one slot's material.
pub fn material_bytes(key_bytes: u32) -> u64 {
    u64::from(key_bytes).saturating_mul(u64::from(STRIPES))
}

impl LuksHeader {
    /// Where slot `number`'s material begins in a new header, in sectors.
    pub fn place(number: u32, key_bytes: u32) -> u32 {
        let each = material_sectors(key_bytes).checked_next_multiple_of(ALIGNMENT);
        let slots = each.unwrap_or(u32::MAX).saturating_mul(number);
        slots.saturating_add(ALIGNMENT)
    }

    /// Where the payload begins in a new header, in sectors: behind all slots.
    pub fn payload_behind(key_bytes: u32) -> u32 {
        Self::place(8, key_bytes)
    }

    /// Reads the header that stands at byte `at` of its file and may take `room` bytes with its key slots.
    ///
    /// # Errors
    /// [`FormatError::LuksVersion`], [`FormatError::LuksHeader`], [`FormatError::LuksSlot`].
    pub fn parse(bytes: &[u8], at: u64, room: u64) -> Result<Self, FormatError> {
        let bad = |offset: usize, reason| FormatError::LuksHeader {
            offset: at.saturating_add(offset as u64),
            reason,
        };
        let bytes = bytes.get(..LENGTH).ok_or_else(|| bad(0, "the file ends inside it"))?;
        if !bytes.starts_with(&MAGIC) {
            return Err(bad(0, "its magic is missing"));
        }
        let word = |offset| be32(bytes, offset).unwrap_or(0);
        let version = be16(bytes, 6).unwrap_or(0);
        if version != 1 {
            return Err(FormatError::LuksVersion {
                offset: at.saturating_add(6),
                version,
            });
        }
        let text = |offset, length, reason| text(bytes, offset, length).ok_or_else(|| bad(offset, reason));
        let mut slots = <[KeySlot; SLOTS]>::default();
        for ((number, slot), bytes) in (0u8..).zip(&mut slots).zip(slot_table(bytes)) {
            *slot = parse_slot(bytes).map_err(|reason| FormatError::LuksSlot {
                offset: at.saturating_add(slot_offset(number)),
                slot: number,
                reason,
            })?;
        }
        let header = Self {
            cipher: text(8, 32, "the cipher's name has no end or is no plain text")?,
            mode: text(40, 32, "the cipher mode has no end or is no plain text")?,
            hash: text(72, 32, "the hash's name has no end or is no plain text")?,
            payload: word(104),
            key_bytes: word(108),
            digest: array(bytes, 112),
            digest_salt: array(bytes, 132),
            digest_iterations: word(164),
            // Nothing depends on it.
            uuid: self::text(bytes, 168, 40).unwrap_or_default(),
            slots,
        };
        if header.key_bytes == 0 || header.key_bytes > MAX_KEY_BYTES {
            return Err(bad(108, "the length of its key is not valid"));
        }
        if header.digest_iterations == 0 {
            return Err(bad(164, "the key's digest has no iterations"));
        }
        if u64::from(header.payload).saturating_mul(SECTOR) > room {
            return Err(bad(104, "its payload begins behind the end"));
        }
        header.check_slots(at)?;
        Ok(header)
    }

    /// Material lies behind the header, before the payload, and no two overlap.
    fn check_slots(&self, at: u64) -> Result<(), FormatError> {
        let length = material_sectors(self.key_bytes);
        let end = |slot: &KeySlot| slot.material.saturating_add(length);
        let header_end = u32::try_from((LENGTH as u64).div_ceil(SECTOR)).unwrap_or(2);
        for (number, slot) in (0u8..).zip(&self.slots) {
            let above = self.slots.iter().skip(usize::from(number).saturating_add(1));
            let reason = if slot.material < header_end {
                "its material overlaps the header"
            } else if self.payload != 0 && end(slot) > self.payload {
                "its material overlaps the payload"
            } else if above
                .into_iter()
                .any(|other| slot.material < end(other) && other.material < end(slot))
            {
                "its material overlaps that of another slot"
            } else if slot.active && slot.iterations == 0 {
                "it has no iterations"
            } else {
                continue;
            };
            return Err(FormatError::LuksSlot {
                offset: at.saturating_add(slot_offset(number)),
                slot: number,
                reason,
            });
        }
        Ok(())
    }

    /// The header's bytes. Names that are too long are cut: those of this library are not.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in out.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        let name = |text: &str, room: usize| text.bytes().take(room.saturating_sub(1)).collect::<Vec<u8>>();
        put(0, &MAGIC);
        put(6, &1u16.to_be_bytes());
        put(8, &name(&self.cipher, 32));
        put(40, &name(&self.mode, 32));
        put(72, &name(&self.hash, 32));
        put(104, &self.payload.to_be_bytes());
        put(108, &self.key_bytes.to_be_bytes());
        put(112, &self.digest);
        put(132, &self.digest_salt);
        put(164, &self.digest_iterations.to_be_bytes());
        put(168, &name(&self.uuid, 40));
        for (number, at) in (0..SLOTS).zip((SLOT_TABLE..).step_by(SLOT_LENGTH)) {
            put(at, &self.slot_bytes(number));
        }
        out
    }

    /// What the header says of slot `number`; its state stands first.
    pub fn slot_bytes(&self, number: usize) -> [u8; SLOT_LENGTH] {
        let mut out = [0; SLOT_LENGTH];
        let Some(slot) = self.slots.get(number) else { return out };
        let state = if slot.active { ENABLED } else { DISABLED };
        let words = |pair: [u32; 2]| pair.map(u32::to_be_bytes).concat();
        let before = words([state, slot.iterations]);
        let behind = words([slot.material, STRIPES]);
        let all = before.iter().chain(&slot.salt).chain(&behind);
        for (to, from) in out.iter_mut().zip(all) {
            *to = *from;
        }
        out
    }

    /// Where that stands in the header.
    pub fn slot_place(number: usize) -> usize {
        SLOT_TABLE.saturating_add(number.saturating_mul(SLOT_LENGTH))
    }
}

fn slot_offset(number: u8) -> u64 {
    LuksHeader::slot_place(usize::from(number)) as u64
}

fn slot_table(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.get(SLOT_TABLE..).unwrap_or_default().chunks_exact(SLOT_LENGTH)
}

fn parse_slot(bytes: &[u8]) -> Result<KeySlot, &'static str> {
    let word = |offset| be32(bytes, offset).unwrap_or(0);
    let active = match word(0) {
        ENABLED => true,
        DISABLED => false,
        _ => return Err("it is neither enabled nor disabled"),
    };
    if word(44) != STRIPES {
        return Err("it does not have 4000 stripes");
    }
    Ok(KeySlot {
        active,
        iterations: word(4),
        salt: array(bytes, 8),
        material: word(40),
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = at.checked_add(N).and_then(|end| bytes.get(at..end)?.try_into().ok());
    found.unwrap_or([0; N])
}

/// Printable text that ends with a zero byte inside its room.
fn text(bytes: &[u8], at: usize, room: usize) -> Option<String> {
    let field = bytes.get(at..at.checked_add(room)?)?;
    let end = field.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(field.get(..end)?).ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_graphic() || byte == b' ')
        .then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> LuksHeader {
        let mut slots = <[KeySlot; SLOTS]>::default();
        for (number, slot) in (0..).zip(&mut slots) {
            slot.material = LuksHeader::place(number, 64);
        }
        slots[0].active = true;
        slots[0].iterations = 1000;
        LuksHeader {
            cipher: "aes".into(),
            mode: "xts-plain64".into(),
            hash: "sha256".into(),
            payload: LuksHeader::place(8, 64),
            key_bytes: 64,
            digest: [1; 20],
            digest_salt: [2; 32],
            digest_iterations: 1000,
            uuid: "uuid".into(),
            slots,
        }
    }

    #[test]
    fn what_is_encoded_is_parsed_and_lies_where_qemu_puts_it() {
        let header = header();
        assert_eq!(u64::from(header.payload) * SECTOR, 2_068_480);
        assert_eq!(LuksHeader::parse(&header.encode(), 0, 1 << 30), Ok(header));
    }

    #[test]
    fn each_damage_is_refused_at_its_place() {
        type Damage = (fn(&mut [u8]), u64, &'static str);
        let damages: &[Damage] = &[
            (|b| b[0] = b'l', 0, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[7] = 2, 6, "ERR_QCOW2_LUKS_VERSION"),
            (|b| b[8..40].fill(b'a'), 8, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[40] = 0x1b, 40, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[72..104].fill(b'a'), 72, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[104..108].fill(0xff), 104, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[108..112].fill(0xff), 108, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[108..112].fill(0), 108, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[164..168].fill(0), 164, "ERR_QCOW2_LUKS_HEADER"),
            (|b| b[208] = 1, 208, "ERR_QCOW2_LUKS_KEY_SLOT"),
            (|b| b[212..216].fill(0), 208, "ERR_QCOW2_LUKS_KEY_SLOT"),
            (|b| b[256 + 44] = 1, 256, "ERR_QCOW2_LUKS_KEY_SLOT"),
            (|b| b[208 + 43] = 0, 208, "ERR_QCOW2_LUKS_KEY_SLOT"),
            (
                |b| b[256 + 40..256 + 44].copy_from_slice(&9u32.to_be_bytes()),
                208,
                "ERR_QCOW2_LUKS_KEY_SLOT",
            ),
            (|b| b[544 + 40..544 + 44].fill(0xff), 544, "ERR_QCOW2_LUKS_KEY_SLOT"),
        ];
        for (number, (damage, offset, code)) in damages.iter().enumerate() {
            let mut bytes = header().encode();
            damage(&mut bytes);
            let error = LuksHeader::parse(&bytes, 0x1000, 1 << 30).unwrap_err();
            assert_eq!(
                (error.code(), error.offset()),
                (*code, Some(0x1000 + offset)),
                "damage {number}"
            );
        }
        let bytes = header().encode();
        assert!(LuksHeader::parse(&bytes[..591], 0, 1 << 30).is_err());
        assert!(
            LuksHeader::parse(&bytes, 0, 2_068_479).is_err(),
            "a payload behind the end"
        );
    }
}
