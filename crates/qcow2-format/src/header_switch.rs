//! Another header for an image that is there: another version, other feature bits, another backing file's name.
//!
//! The disk writes one sector at a time, and the header's first cluster may be several. So a change is a sequence of patches, each durable before the
//! next: patches of the first sector switch, all others go to bytes that nothing refers to then. Whichever was the last, the header is the old one
//! or the new one; at worst it lacks the names of features meanwhile, which nothing depends on.

use crate::bitmap_switch::{HeaderPatch, apply_patch};
use crate::error::FormatError;
use crate::extension::{self, BACKING_FORMAT, DATA_FILE, END, FEATURE_NAMES};
use crate::header::Header;
use crate::limits::SECTOR;
use crate::units::HostOffset;

/// What the header says besides its fixed fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderNames {
    /// The backing file's name; none: there is none.
    pub backing_name: Option<Vec<u8>>,
    /// The name of its format.
    pub backing_format: Option<Vec<u8>>,
    /// The name of the external data file.
    pub data_file: Option<Vec<u8>>,
}

impl HeaderNames {
    /// What `cluster`, the first one of an image, says.
    ///
    /// # Errors
    /// What forbids reading the header.
    pub fn of(cluster: &[u8]) -> Result<Self, FormatError> {
        let header = Header::parse(cluster)?;
        let mut names = Self {
            backing_name: name_of(cluster, &header).map(<[u8]>::to_vec),
            ..Self::default()
        };
        for (kind, data) in extension::list(cluster, &header) {
            match kind {
                BACKING_FORMAT => names.backing_format = Some(data),
                DATA_FILE => names.data_file = Some(data),
                _ => {}
            }
        }
        Ok(names)
    }
}

/// The patches that turn `cluster`, the first one of an image as far as the file goes, into one with the fixed fields of `header` (but for its
/// `backing_name`) and with `names`. Every other extension is kept byte for byte.
///
/// # Errors
/// What forbids reading the header, and [`FormatError::HeaderFull`] if there is no room for it all, or no way to get there sector by sector.
pub fn switch_header(cluster: &[u8], header: &Header, names: &HeaderNames) -> Result<Vec<HeaderPatch>, FormatError> {
    let old_header = Header::parse(cluster)?;
    let size = header.geometry.cluster_size();
    let full = |needed| FormatError::HeaderFull {
        needed,
        cluster_size: size,
    };
    let others = extension::list(cluster, &old_header);
    let old_end = area_end(cluster, &old_header);
    let area = encode(header, names, &others, true);
    let end = area.len() as u64;
    if end > size {
        return Err(full(end));
    }
    let old_name = name_of(cluster, &old_header).map(<[u8]>::to_vec);
    let mut old_place = old_header
        .backing_name
        .map(|(place, length)| (place.0, place.0.saturating_add(u64::from(length))));
    let mut patches = Vec::new();
    let mut now = cluster.to_vec();
    // Nobody pads what a file does not have: all of it is there from the first patch on.
    now.resize(usize::try_from(size).unwrap_or(usize::MAX).max(now.len()), 0);
    let mut visible_end = old_end;
    let beyond = |bytes: &[u8]| bytes.get(sector()..).unwrap_or_default().to_vec();
    let there = now.get(..area.len()).unwrap_or_default();
    if end > SECTOR && beyond(there) != beyond(&area) {
        let in_the_way = old_place.is_some_and(|(from, to)| from < end && to > SECTOR);
        if visible_end > SECTOR || in_the_way {
            // The names of features give way first, so that the header ends in its first sector; and the name, if it is in the way.
            let short = encode(&old_header, &HeaderNames::of(cluster)?, &others, visible_end <= SECTOR);
            if short.len() as u64 > SECTOR {
                return Err(full(short.len() as u64));
            }
            if let Some((from, to)) = old_place.filter(|_| in_the_way) {
                let at = round(end.max(visible_end).max(to));
                let to = at.saturating_add(to.saturating_sub(from));
                if to > size {
                    return Err(full(to));
                }
                add(&mut patches, &mut now, at, old_name.clone().unwrap_or_default());
                old_place = Some((at, to));
            }
            let mut first = now.get(..sector()).unwrap_or_default().to_vec();
            place(&mut first, 0, &short);
            name_fields(&mut first, old_place);
            visible_end = short.len() as u64;
            add(&mut patches, &mut now, 0, first);
        }
    }
    let name = names.backing_name.as_deref().filter(|name| !name.is_empty());
    let new_place = match name {
        None => None,
        Some(name) => {
            let length = name.len() as u64;
            // What nobody may touch before the switch, unless the switch itself writes it.
            let free = |at: u64| {
                let (from, to) = (at.max(SECTOR), at.saturating_add(length));
                let hits = |(begin, end): (u64, u64)| from < end && begin < to;
                to <= SECTOR || !(hits((0, visible_end)) || old_place.is_some_and(hits))
            };
            let behind = round(end.max(visible_end).max(old_place.map_or(0, |(_, to)| to)));
            let choices = [end, behind];
            let at = choices
                .into_iter()
                .find(|at| at.saturating_add(length) <= size && free(*at));
            // It stays where it is, if it is the same and out of the way.
            let stays = old_place.filter(|(from, _)| *from >= end && old_name.as_deref() == Some(name));
            let at = stays.map(|(from, _)| from).or(at);
            let at = at.ok_or(full(behind.saturating_add(length).max(size.saturating_add(1))))?;
            Some((at, at.saturating_add(length)))
        }
    };
    // Beyond the first sector nobody looks now; then the first one switches.
    let mut new = now.clone();
    place(&mut new, 0, &area);
    if let (Some((at, _)), Some(name)) = (new_place, name) {
        place(&mut new, at, name);
    }
    name_fields(&mut new, new_place);
    let new_end = end.max(new_place.map_or(0, |(_, to)| to));
    let tail = new
        .get(sector()..usize::try_from(new_end).unwrap_or(0))
        .unwrap_or_default();
    if now.get(sector()..sector().saturating_add(tail.len())) != Some(tail) {
        add(&mut patches, &mut now, SECTOR, tail.to_vec());
    }
    let first = new.get(..sector().min(new.len())).unwrap_or_default().to_vec();
    if now.get(..first.len()) != Some(first.as_slice()) {
        add(&mut patches, &mut now, 0, first);
    }
    Ok(patches)
}

fn sector() -> usize {
    usize::try_from(SECTOR).unwrap_or(usize::MAX)
}

fn round(at: u64) -> u64 {
    at.saturating_add(7) & !7
}

fn add(patches: &mut Vec<HeaderPatch>, now: &mut [u8], at: u64, bytes: Vec<u8>) {
    let patch = HeaderPatch {
        offset: HostOffset(at),
        bytes,
    };
    apply_patch(now, &patch);
    patches.push(patch);
}

fn place(target: &mut [u8], at: u64, bytes: &[u8]) {
    let begin = usize::try_from(at).unwrap_or(usize::MAX);
    // The first sector alone takes what of it is inside.
    let room = target.len().saturating_sub(begin).min(bytes.len());
    let range = begin..begin.saturating_add(room);
    if let (Some(target), Some(bytes)) = (target.get_mut(range), bytes.get(..room)) {
        target.copy_from_slice(bytes);
    }
}

/// Where the backing file's name stands, in the fixed fields.
fn name_fields(target: &mut [u8], name: Option<(u64, u64)>) {
    let (at, end) = name.unwrap_or_default();
    place(target, 8, &at.to_be_bytes());
    let length = u32::try_from(end.saturating_sub(at)).unwrap_or(u32::MAX);
    place(target, 16, &length.to_be_bytes());
}

fn name_of<'a>(cluster: &'a [u8], header: &Header) -> Option<&'a [u8]> {
    let (place, length) = header.backing_name?;
    let begin = usize::try_from(place.0).ok()?;
    let end = begin.checked_add(usize::try_from(length).ok()?)?;
    cluster.get(begin..end)
}

/// Where the extensions of a header end, with their end marker.
fn area_end(cluster: &[u8], header: &Header) -> u64 {
    let heads = extension::heads(cluster, header);
    heads.last().map_or(u64::from(header.length), |(_, _, next)| *next)
}

/// Header, extensions, end marker. What names files comes first, the names of features come last, so that one sector mostly holds all else.
fn encode(header: &Header, names: &HeaderNames, others: &[(u32, Vec<u8>)], features: bool) -> Vec<u8> {
    let mut out = header.encode();
    name_fields(&mut out, None);
    if let Some(format) = &names.backing_format {
        extension::put(&mut out, BACKING_FORMAT, format);
    }
    if let Some(name) = &names.data_file {
        extension::put(&mut out, DATA_FILE, name);
    }
    let kept = |kind: u32| !matches!(kind, BACKING_FORMAT | DATA_FILE | FEATURE_NAMES | END);
    for (kind, data) in others.iter().filter(|(kind, _)| kept(*kind)) {
        extension::put(&mut out, *kind, data);
    }
    for (kind, data) in others.iter().filter(|(kind, _)| features && *kind == FEATURE_NAMES) {
        extension::put(&mut out, *kind, data);
    }
    extension::put(&mut out, END, &[]);
    out
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may stop at the first surprise"
)]
mod tests {
    use super::*;
    use crate::extension::{BitmapsExtension, Extensions};
    use crate::header::Version;

    fn names(name: &str, format: &str) -> HeaderNames {
        let some = |text: &str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
        HeaderNames {
            backing_name: some(name),
            backing_format: some(format),
            data_file: None,
        }
    }

    fn image(version: Version, bits: u32, name: &str, format: &str, bitmaps: bool) -> Vec<u8> {
        let mut bytes = vec![0; 112];
        bytes[..4].copy_from_slice(&crate::header::MAGIC);
        bytes[7] = 3;
        bytes[20..24].copy_from_slice(&bits.to_be_bytes());
        bytes[48..56].copy_from_slice(&(1u64 << bits).to_be_bytes());
        bytes[59] = 1;
        bytes[99] = 4;
        bytes[103] = 112;
        let mut header = Header::parse(&bytes).unwrap();
        if version == Version::V2 {
            header.version = Version::V2;
            header.length = crate::header::V2_LENGTH;
        }
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let extensions = Extensions {
            backing_name: some(name),
            backing_format: some(format),
            feature_names: Extensions::default_feature_names(&header),
            bitmaps: bitmaps.then_some(BitmapsExtension {
                count: 1,
                directory_size: 32,
                directory_offset: HostOffset(1 << bits),
            }),
            unknown: vec![(0x1234, vec![7; 11])],
            ..Extensions::default()
        };
        let mut cluster = extensions.encode(&mut header).unwrap();
        cluster.resize(1 << bits, 0xEE);
        cluster
    }

    /// What a reader makes of a header, but for the names of features.
    fn meaning(cluster: &[u8]) -> (Header, Extensions) {
        let mut header = Header::parse(cluster).unwrap();
        let mut extensions = Extensions::parse(cluster, &header).unwrap();
        header.backing_name = None;
        extensions.feature_names.clear();
        (header, extensions)
    }

    #[test]
    fn whatever_was_written_last_the_header_is_the_old_one_or_the_new_one() {
        let long = "x".repeat(900);
        let all = [
            ("", ""),
            ("base", "qcow2"),
            ("base", ""),
            ("../other.raw", "raw"),
            (long.as_str(), "qcow2"),
        ];
        let mut changes = 0;
        for bits in [9, 12, 16] {
            for (old_version, new_version) in [
                (Version::V3, Version::V3),
                (Version::V2, Version::V3),
                (Version::V3, Version::V2),
                (Version::V2, Version::V2),
            ] {
                for (old_name, old_format) in all {
                    for (new_name, new_format) in all {
                        if bits == 9 && (old_name.len() > 200 || new_name.len() > 200) {
                            continue;
                        }
                        let bitmaps = old_version == Version::V3 && new_version == Version::V3;
                        let old = image(old_version, bits, old_name, old_format, bitmaps);
                        let mut header = Header::parse(&old).unwrap();
                        header.version = new_version;
                        header.length = if new_version == Version::V2 { 72 } else { 112 };
                        let wanted = names(new_name, new_format);
                        let patches = switch_header(&old, &header, &wanted).unwrap();
                        let before = meaning(&old);
                        let mut now = old.clone();
                        let mut switched = false;
                        for (index, patch) in patches.iter().enumerate() {
                            assert!(patch.sector().is_some() || patch.offset.0 >= SECTOR, "{patch:?}");
                            // A patch of several sectors, torn: any of them may be there.
                            for torn in 0..patch.bytes.len().div_ceil(sector()) {
                                let mut torn_now = now.clone();
                                let piece = patch.bytes.chunks(sector()).nth(torn).unwrap().to_vec();
                                let at = patch.offset.0 + (torn as u64) * SECTOR;
                                place(&mut torn_now, at, &piece);
                                let last = index + 1 == patches.len();
                                let there = meaning(&torn_now);
                                assert!(there == before || last, "{old_name} {new_name} {index}");
                            }
                            apply_patch(&mut now, patch);
                            switched |= patch.offset.0 == 0;
                        }
                        let (there, extensions) = meaning(&now);
                        assert_eq!(extensions.backing_name.unwrap_or_default(), new_name);
                        let format = if new_name.is_empty() { "" } else { new_format };
                        assert_eq!(extensions.backing_format.unwrap_or_default(), format);
                        assert_eq!(extensions.unknown, before.1.unknown);
                        assert_eq!(extensions.bitmaps, before.1.bitmaps);
                        assert_eq!(there.version, new_version);
                        let kept = Extensions::parse(&now, &Header::parse(&now).unwrap()).unwrap();
                        let had = Extensions::parse(&old, &Header::parse(&old).unwrap()).unwrap();
                        assert_eq!(kept.feature_names, had.feature_names);
                        changes += u32::from(switched);
                        let again = switch_header(&now, &Header::parse(&now).unwrap(), &wanted).unwrap();
                        assert!(again.is_empty(), "{again:?}");
                    }
                }
            }
        }
        assert!(changes > 100);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let old = image(Version::V3, 9, "", "", false);
        let header = Header::parse(&old).unwrap();
        let fault = switch_header(&old, &header, &names(&"x".repeat(500), "raw"));
        assert!(matches!(fault, Err(FormatError::HeaderFull { .. })), "{fault:?}");
    }
}
