//! The bitmap directory (qcow2 specification, "Bitmaps").

use std::collections::HashSet;

use crate::bytes::{be16, be32, be64, round_up_8};
use crate::error::FormatError;
use crate::geometry::Geometry;
use crate::limits;
use crate::units::HostOffset;

/// Bytes of a directory entry before its extra data.
const FIXED: u64 = 24;
/// Flag: the bitmap was in use and is inconsistent.
pub const IN_USE: u32 = 1;
/// Flag: the bitmap follows every write.
pub const AUTO: u32 = 1 << 1;

/// An entry of the bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Where its table lies.
    pub table_offset: HostOffset,
    /// Entries of its table.
    pub table_entries: u32,
    /// The flags as they stand.
    pub flags: u32,
    /// log2 of the guest bytes that a bit stands for: 9 to 31.
    pub granularity_bits: u8,
    /// Its name.
    pub name: String,
}

impl Bitmap {
    /// The bitmap may miss writes: it was not stored on a clean close.
    pub const fn in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    /// The bitmap follows every write.
    pub const fn auto(&self) -> bool {
        self.flags & AUTO != 0
    }

    /// Guest bytes that a bit stands for.
    pub const fn granularity(&self) -> u64 {
        1u64.wrapping_shl(self.granularity_bits as u32)
    }

    /// Bytes of its directory entry.
    pub const fn entry_bytes(&self) -> u64 {
        FIXED.saturating_add(self.name.len() as u64).saturating_add(7) & !7
    }

    /// Bytes of bitmap data that a disk of `virtual_size` bytes needs.
    pub const fn data_bytes(&self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.granularity()).div_ceil(8)
    }
}

/// An entry of a bitmap's table: where one cluster of its data stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapTableEntry(pub u64);

impl BitmapTableEntry {
    /// No data, and every bit is zero.
    pub const ZEROS: Self = Self(0);
    /// No data, and every bit is one.
    pub const ONES: Self = Self(1);

    /// The data stands at `offset`.
    pub const fn data(offset: HostOffset) -> Self {
        Self(offset.0)
    }

    /// Host offset of the data; `None`: all zeros, or all ones with [`BitmapTableEntry::all_ones`].
    pub const fn data_offset(self) -> Option<HostOffset> {
        match self.0 & 0x00ff_ffff_ffff_fe00 {
            0 => None,
            offset => Some(HostOffset(offset)),
        }
    }

    /// No data, and every bit is one.
    pub const fn all_ones(self) -> bool {
        self.0 & 1 != 0
    }

    /// The reserved bits that are set; bit 0 counts as one where there is an offset.
    pub const fn reserved(self) -> u64 {
        self.0
            & if self.data_offset().is_some() {
                0xff00_0000_0000_01ff
            } else {
                0xff00_0000_0000_01fe
            }
    }
}

/// Where the flags stand in a directory entry. They never cross a sector, since entries begin at multiples of 8.
pub const FLAGS_AT: u64 = 12;

/// The directory of `bitmaps`, in their order.
pub fn encode_directory(bitmaps: &[Bitmap]) -> Vec<u8> {
    let mut out = Vec::new();
    for bitmap in bitmaps {
        out.extend_from_slice(&bitmap.table_offset.0.to_be_bytes());
        out.extend_from_slice(&bitmap.table_entries.to_be_bytes());
        out.extend_from_slice(&bitmap.flags.to_be_bytes());
        out.extend_from_slice(&[1, bitmap.granularity_bits]);
        out.extend_from_slice(&u16::try_from(bitmap.name.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(bitmap.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// Reads a directory of `count` bitmaps that begins at `offset` of the file and is exactly `bytes` long.
///
/// # Errors
/// [`FormatError::BitmapDirectory`] for the first entry that is damaged.
pub fn parse_directory(
    bytes: &[u8],
    offset: HostOffset,
    count: u32,
    geometry: Geometry,
) -> Result<Vec<Bitmap>, FormatError> {
    let mut bitmaps: Vec<Bitmap> = Vec::new();
    let mut names = HashSet::new();
    let mut at = 0u64;
    for index in 0..count {
        let entry = offset.0.saturating_add(at);
        let fault = |reason| FormatError::BitmapDirectory {
            offset: entry,
            index,
            reason,
        };
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| bytes.get(at..))
            .unwrap_or_default();
        let (bitmap, length) = parse_one(rest, geometry).map_err(fault)?;
        if !names.insert(bitmap.name.clone()) {
            return Err(fault("its name stands there twice"));
        }
        at = round_up_8(at.saturating_add(length)).unwrap_or(u64::MAX);
        if at > bytes.len() as u64 {
            return Err(fault("it passes the end of the directory"));
        }
        bitmaps.push(bitmap);
    }
    if at != bytes.len() as u64 {
        return Err(FormatError::BitmapDirectory {
            offset: offset.0.saturating_add(at),
            index: count,
            reason: "the directory is longer than its entries",
        });
    }
    Ok(bitmaps)
}

fn parse_one(bytes: &[u8], geometry: Geometry) -> Result<(Bitmap, u64), &'static str> {
    const PAST_END: &str = "it passes the end of the directory";
    let table_offset = HostOffset(be64(bytes, 0).ok_or(PAST_END)?);
    let table_entries = be32(bytes, 8).ok_or(PAST_END)?;
    let flags = be32(bytes, 12).ok_or(PAST_END)?;
    let (&kind, &granularity_bits) = bytes.get(16).zip(bytes.get(17)).ok_or(PAST_END)?;
    let name_length = be16(bytes, 18).ok_or(PAST_END)?;
    let extra_length = be32(bytes, 20).ok_or(PAST_END)?;
    if kind != 1 {
        return Err("its type is not known");
    }
    if !limits::BITMAP_GRANULARITY_BITS.contains(&granularity_bits) {
        return Err("its granularity is not 2^9 to 2^31 bytes");
    }
    if name_length == 0 || name_length > limits::MAX_BITMAP_NAME {
        return Err("its name is not 1 to 1023 bytes long");
    }
    if flags & !(IN_USE | AUTO) != 0 {
        return Err("it has flags that are not known");
    }
    if extra_length != 0 {
        return Err("it has extra data");
    }
    if table_offset.0 == 0 || !table_offset.is_aligned(geometry.cluster_size()) {
        return Err("its table offset is not valid");
    }
    let data = u64::from(table_entries).saturating_mul(geometry.cluster_size());
    if table_entries == 0 || table_entries > limits::MAX_BITMAP_TABLE_ENTRIES || data > limits::MAX_BITMAP_BYTES {
        return Err("its table size is not valid");
    }
    let end = FIXED.saturating_add(u64::from(name_length));
    let name = usize::try_from(end)
        .ok()
        .and_then(|end| bytes.get(24..end))
        .ok_or(PAST_END)?;
    let name = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8 text")?;
    if name.chars().any(char::is_control) {
        return Err("its name has control characters");
    }
    Ok((
        Bitmap {
            table_offset,
            table_entries,
            flags,
            granularity_bits,
            name: name.to_owned(),
        },
        end,
    ))
}
