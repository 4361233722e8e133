//! Header extensions and the backing file name (qcow2 specification, "Header extensions").

use crate::bytes::{be32, be64, round_up_8};
use crate::error::FormatError;
use crate::features;
use crate::header::{EncryptionMethod, Header, Version};
use crate::limits;
use crate::units::HostOffset;

pub(crate) const END: u32 = 0;
pub(crate) const BACKING_FORMAT: u32 = 0xE279_2ACA;
pub(crate) const FEATURE_NAMES: u32 = 0x6803_F857;
pub(crate) const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_BE77;
pub(crate) const DATA_FILE: u32 = 0x4441_5441;
/// Stands for every type that is not known here.
const UNKNOWN: u32 = u32::MAX;

/// One row of the feature name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub kind: u8,
    /// The bit, 0–63.
    pub bit: u8,
    /// Its name; control characters are replaced, since it may reach a terminal.
    pub name: String,
}

/// Where the bitmap directory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub count: u32,
    /// Length of the directory in bytes.
    pub directory_size: u64,
    /// Its place.
    pub directory_offset: HostOffset,
}

/// Where the LUKS header lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CryptoExtension {
    /// Its place.
    pub offset: HostOffset,
    /// Its length in bytes.
    pub length: u64,
}

/// Everything between the fixed header and the end of the first cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Name of the backing file, as recorded.
    pub backing_name: Option<String>,
    /// Name of its format.
    pub backing_format: Option<String>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// The LUKS header.
    pub encryption: Option<CryptoExtension>,
    /// Names of feature bits.
    pub feature_names: Vec<FeatureName>,
    /// The bitmap directory.
    pub bitmaps: Option<BitmapsExtension>,
    /// Extensions that are not known here, kept as they are.
    pub unknown: Vec<(u32, Vec<u8>)>,
}

impl Extensions {
    /// Reads the extensions and the backing file name from the first cluster, as far as the file goes.
    ///
    /// # Errors
    /// A [`FormatError`] for an extension that passes its room or contradicts the header, and
    /// [`FormatError::Features`] if the header has unknown incompatible features, named as far as the image names them.
    pub fn parse(cluster: &[u8], header: &Header) -> Result<Self, FormatError> {
        let end = header
            .backing_name
            .map_or(header.geometry.cluster_size(), |(offset, _)| offset.0);
        let room = cluster
            .get(..usize::try_from(end).unwrap_or(usize::MAX).min(cluster.len()))
            .unwrap_or_default();
        let mut extensions = Self::default();
        let mut at = u64::from(header.length);
        let mut fault = None;
        // A fault is reported only after unknown features are: what an unknown feature changes is not known.
        while let Some((kind, length)) = head(room, at).filter(|&(kind, _)| kind != END) {
            match extensions.read_one(room, at, kind, length) {
                Ok(next) => at = next,
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
        }
        extensions.refuse_features(header.unknown_features())?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        extensions.backing_name = backing_name(cluster, header)?;
        extensions.check(header)?;
        Ok(extensions)
    }

    fn read_one(&mut self, room: &[u8], at: u64, kind: u32, length: u32) -> Result<u64, FormatError> {
        let too_large = FormatError::ExtensionTooLarge {
            offset: at,
            kind,
            length,
        };
        let begin = at.saturating_add(8);
        let end = begin.saturating_add(u64::from(length));
        let data = usize::try_from(begin)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(b, e)| room.get(b..e));
        let data = data.ok_or(too_large)?;
        let duplicate = FormatError::ExtensionDuplicate { offset: at, kind };
        match kind {
            BACKING_FORMAT if self.backing_format.is_some() => return Err(duplicate),
            DATA_FILE if self.data_file.is_some() => return Err(duplicate),
            BITMAPS if self.bitmaps.is_some() => return Err(duplicate),
            ENCRYPTION if self.encryption.is_some() => return Err(duplicate),
            BACKING_FORMAT => {
                if data.len() >= limits::MAX_BACKING_FORMAT {
                    return Err(FormatError::BackingFormatTooLong { offset: at, length });
                }
                self.backing_format = Some(plain_text(data).ok_or(FormatError::BackingFormatName { offset: at })?);
            }
            DATA_FILE => self.data_file = Some(plain_text(data).ok_or(FormatError::DataFileName { offset: at })?),
            FEATURE_NAMES => self.feature_names.extend(feature_names(data)),
            BITMAPS => self.bitmaps = Some(bitmaps(data, at)?),
            ENCRYPTION => self.encryption = Some(encryption(data, at)?),
            _ => self.unknown.push((kind, data.to_vec())),
        }
        round_up_8(end).ok_or(FormatError::ExtensionTooLarge {
            offset: at,
            kind,
            length,
        })
    }

    /// The error of a version 3 header with unknown incompatible features that cannot be read otherwise: an unknown feature may have changed what
    /// the field at fault means, so it is the reason to give, with the names that the image has for it. `cluster` is the first cluster, as far
    /// as the file goes.
    pub fn unknown_features(cluster: &[u8]) -> Option<FormatError> {
        if be32(cluster, 4) != Some(3) {
            return None;
        }
        let mask = be64(cluster, 72)? & !features::incompatible::KNOWN;
        let mut extensions = Self::default();
        let mut at = be32(cluster, 100).map_or(u64::MAX, u64::from);
        while let Some((kind, length)) = head(cluster, at).filter(|&(kind, _)| kind != END) {
            // Only for the names: what is wrong with other extensions does not matter here.
            let kind = if kind == FEATURE_NAMES { kind } else { UNKNOWN };
            match extensions.read_one(cluster, at, kind, length) {
                Ok(next) => at = next,
                Err(_) => break,
            }
        }
        extensions.refuse_features(mask).err()
    }

    /// `mask`: the incompatible features that are not known here.
    fn refuse_features(&self, mask: u64) -> Result<(), FormatError> {
        if mask == 0 {
            return Ok(());
        }
        let mut unnamed = mask;
        let mut names = String::new();
        for row in self.feature_names.iter().filter(|row| row.kind == 0) {
            let bit = 1u64.wrapping_shl(u32::from(row.bit));
            // The first name counts: with all that a cluster holds for one bit, the message would be megabytes long.
            if unnamed & bit == 0 {
                continue;
            }
            unnamed &= !bit;
            names.push_str(", ");
            names.push_str(&row.name);
        }
        Err(FormatError::Features { mask, names, unnamed })
    }

    fn check(&self, header: &Header) -> Result<(), FormatError> {
        match (header.encryption, self.encryption) {
            (EncryptionMethod::Luks, None) => {
                return Err(FormatError::EncryptionHeaderMissing {
                    method: header.encryption.wire(),
                });
            }
            (EncryptionMethod::None | EncryptionMethod::Aes, Some(_)) => {
                return Err(FormatError::EncryptionHeaderUnexpected {});
            }
            _ => {}
        }
        if let Some(CryptoExtension { offset, length }) = self.encryption
            && (!offset.is_aligned(header.geometry.cluster_size())
                || offset.0 == 0
                || offset.checked_add(length).is_none_or(|end| end.0 > i64::MAX as u64))
        {
            return Err(FormatError::EncryptionHeader {
                offset: offset.0,
                length,
            });
        }
        if self.data_file.is_some() && !header.has(features::incompatible::DATA_FILE) {
            return Err(FormatError::DataFileUnexpected {
                offset: u64::from(header.length),
            });
        }
        Ok(())
    }

    /// The first cluster's used part: header, extensions, end marker, backing file name. `header` gets its
    /// `backing_name` set to where the name went.
    ///
    /// # Errors
    /// [`FormatError::HeaderFull`] if it all does not fit the first cluster.
    pub fn encode(&self, header: &mut Header) -> Result<Vec<u8>, FormatError> {
        let mut tail = Vec::new();
        if let Some(format) = &self.backing_format {
            put(&mut tail, BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(&mut tail, DATA_FILE, name.as_bytes());
        }
        if let Some(CryptoExtension { offset, length }) = self.encryption {
            put(
                &mut tail,
                ENCRYPTION,
                &[offset.0.to_be_bytes(), length.to_be_bytes()].concat(),
            );
        }
        if !self.feature_names.is_empty() {
            put(&mut tail, FEATURE_NAMES, &encode_names(&self.feature_names));
        }
        if let Some(bitmaps) = self.bitmaps {
            put(&mut tail, BITMAPS, &bitmaps_data(bitmaps));
        }
        for (kind, data) in &self.unknown {
            put(&mut tail, *kind, data);
        }
        put(&mut tail, END, &[]);
        let name = self.backing_name.as_deref().unwrap_or_default();
        let name_offset = u64::from(header.length).saturating_add(tail.len() as u64);
        header.backing_name =
            (!name.is_empty()).then(|| (HostOffset(name_offset), u32::try_from(name.len()).unwrap_or(u32::MAX)));
        tail.extend_from_slice(name.as_bytes());
        let mut out = header.encode();
        out.extend_from_slice(&tail);
        let (needed, cluster_size) = (out.len() as u64, header.geometry.cluster_size());
        if needed > cluster_size {
            return Err(FormatError::HeaderFull { needed, cluster_size });
        }
        Ok(out)
    }

    /// The rows of the feature name table that a new image gets: none for version 2, nor where 4 KiB clusters leave little room.
    pub fn default_feature_names(header: &Header) -> Vec<FeatureName> {
        if header.version == Version::V2 || header.geometry.cluster_size() <= 4096 {
            return Vec::new();
        }
        features::NAMES
            .iter()
            .map(|&(kind, bit, name)| FeatureName {
                kind,
                bit,
                name: name.to_owned(),
            })
            .collect()
    }
}

fn head(room: &[u8], at: u64) -> Option<(u32, u32)> {
    let at = usize::try_from(at).ok()?;
    Some((be32(room, at)?, be32(room, at.checked_add(4)?)?))
}

/// The extensions of an image's first cluster, up to and with the end marker if there is one: where each begins, its type, where the next one does.
pub(crate) fn heads(cluster: &[u8], header: &Header) -> Vec<(u64, u32, u64)> {
    let end = header
        .backing_name
        .map_or(header.geometry.cluster_size(), |(offset, _)| offset.0);
    let room = usize::try_from(end).unwrap_or(usize::MAX).min(cluster.len());
    let room = cluster.get(..room).unwrap_or_default();
    let mut heads = Vec::new();
    let mut at = u64::from(header.length);
    while let Some((kind, length)) = head(room, at) {
        let next = round_up_8(at.saturating_add(8).saturating_add(u64::from(length))).unwrap_or(u64::MAX);
        heads.push((at, kind, next));
        if kind == END {
            break;
        }
        at = next;
    }
    heads
}

/// Data of the bitmaps extension.
pub(crate) fn bitmaps_data(bitmaps: BitmapsExtension) -> Vec<u8> {
    let words = [
        u64::from(bitmaps.count) << 32,
        bitmaps.directory_size,
        bitmaps.directory_offset.0,
    ];
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Type and length of the bitmaps extension.
pub(crate) fn bitmaps_head() -> [u8; 8] {
    (u64::from(BITMAPS) << 32 | 24).to_be_bytes()
}

/// The extensions of an image's first cluster, without the end marker: type and data of each.
pub(crate) fn list(cluster: &[u8], header: &Header) -> Vec<(u32, Vec<u8>)> {
    let heads = heads(cluster, header);
    let each = heads.into_iter().filter(|(_, kind, _)| *kind != END);
    each.filter_map(|(at, kind, _)| {
        let (_, length) = head(cluster, at)?;
        let begin = usize::try_from(at.checked_add(8)?).ok()?;
        let end = begin.checked_add(usize::try_from(length).ok()?)?;
        Some((kind, cluster.get(begin..end)?.to_vec()))
    })
    .collect()
}

/// Appends an extension, padded to 8 bytes.
pub(crate) fn put(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Text that is safe to show and to use as a file name: UTF-8 without control characters.
fn plain_text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

fn backing_name(cluster: &[u8], header: &Header) -> Result<Option<String>, FormatError> {
    let Some((offset, length)) = header.backing_name else {
        return Ok(None);
    };
    let begin = usize::try_from(offset.0).unwrap_or(usize::MAX);
    let end = begin.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
    let bytes = cluster.get(begin..end).ok_or(FormatError::HeaderTruncated {
        length: cluster.len() as u64,
        wanted: offset.0.saturating_add(u64::from(length)),
    })?;
    plain_text(bytes)
        .map(Some)
        .ok_or(FormatError::BackingName { offset: offset.0 })
}

fn feature_names(data: &[u8]) -> impl Iterator<Item = FeatureName> + '_ {
    data.chunks_exact(48).filter_map(|row| {
        let (&kind, &bit, text) = (row.first()?, row.get(1)?, row.get(2..)?);
        let length = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        let name = String::from_utf8_lossy(text.get(..length)?).replace(char::is_control, "\u{fffd}");
        (kind <= 2 && bit <= 63 && !name.is_empty()).then_some(FeatureName { kind, bit, name })
    })
}

fn encode_names(names: &[FeatureName]) -> Vec<u8> {
    let mut out = Vec::with_capacity(names.len().saturating_mul(48));
    for FeatureName { kind, bit, name } in names {
        let begin = out.len();
        out.extend_from_slice(&[*kind, *bit]);
        out.extend(name.bytes().take(46));
        out.resize(begin.saturating_add(48), 0);
    }
    out
}

fn bitmaps(data: &[u8], at: u64) -> Result<BitmapsExtension, FormatError> {
    let fault = |reason| FormatError::BitmapsExtension { offset: at, reason };
    let fields = (data.len() == 24).then(|| Some((be32(data, 0)?, be32(data, 4)?, be64(data, 8)?, be64(data, 16)?)));
    let (count, reserved, directory_size, offset) = fields.flatten().ok_or(fault("it must be 24 bytes long"))?;
    if reserved != 0 {
        return Err(fault("its reserved field is not zero"));
    }
    if count == 0 || count > limits::MAX_BITMAPS {
        return Err(fault("it must name 1 to 65535 bitmaps"));
    }
    Ok(BitmapsExtension {
        count,
        directory_size,
        directory_offset: HostOffset(offset),
    })
}

fn encryption(data: &[u8], at: u64) -> Result<CryptoExtension, FormatError> {
    let length = data.len() as u64;
    let fields = (data.len() == 16).then(|| be64(data, 0).zip(be64(data, 8))).flatten();
    let (offset, length) = fields.ok_or(FormatError::EncryptionHeader { offset: at, length })?;
    Ok(CryptoExtension {
        offset: HostOffset(offset),
        length,
    })
}
