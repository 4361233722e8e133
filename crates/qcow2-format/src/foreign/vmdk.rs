//! The descriptor of a VMDK: a text that says how its disk is stored, and in which files. Nothing of them is opened.

use crate::bytes::{le32, le64};

const MAGIC: &[u8] = b"KDMV";
const SECTOR: u64 = 512;
/// Of a file that is all descriptor, what must be text.
const FIRST: usize = 512;
/// The fields of the header that are looked at.
const FIELDS: usize = 64;
/// What a descriptor takes at most, as other readers have it.
const MOST: u64 = (1 << 20) - 1;
/// Of a file that is all descriptor, what is looked at.
const TEXT: usize = 4096;
/// In place of the grain directory's offset: the last header of the file has it.
const IN_FOOTER: u64 = u64::MAX;
const CREATE_TYPE: &str = "createtype=\"";

/// Where the descriptor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// First byte.
    pub offset: u64,
    /// Bytes, at most 1 MiB.
    pub length: usize,
    /// The last header of the file counts.
    pub in_footer: bool,
}

/// What a descriptor says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmdk {
    /// How the disk is stored, in small letters, such as `monolithicsparse`.
    pub create_type: Option<String>,
    /// The lines that name the files with data, in small letters.
    pub extents: Vec<String>,
    /// What is wrong, in plain words.
    pub fault: Option<&'static str>,
    /// The file ends before it does.
    pub cut: bool,
}

/// Whether a file is a descriptor alone: text that says how a disk is stored.
pub(super) fn is_text(head: &[u8]) -> bool {
    let first = head.get(..FIRST).unwrap_or(head);
    let plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t'..=b'\r' | 0x1c..=0x1f);
    first.len() >= FIELDS
        && first.iter().all(plain)
        && lower(text_of(head)).is_some_and(|text| text.contains(CREATE_TYPE))
}

fn text_of(head: &[u8]) -> &[u8] {
    head.get(..TEXT).unwrap_or(head)
}

/// As text in small letters up to its first NUL.
fn lower(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    text.is_ascii()
        .then(|| String::from_utf8_lossy(text).to_ascii_lowercase())
}

impl Descriptor {
    /// Finds it by the first bytes of a file that is a sparse disk with its descriptor, or a descriptor alone; `Err`: why there is none.
    pub fn find(head: &[u8]) -> Option<Result<Self, &'static str>> {
        if head.starts_with(MAGIC) {
            return Some(Self::by_header(head));
        }
        let length = text_of(head).len();
        is_text(head).then_some(Ok(Self {
            offset: 0,
            length,
            in_footer: false,
        }))
    }

    fn by_header(head: &[u8]) -> Result<Self, &'static str> {
        let field = |at| le64(head, at).ok_or("its header is cut off");
        let (place, sectors, directory) = (field(28)?, field(36)?, field(56)?);
        if !matches!(le32(head, 4), Some(1..=3)) {
            return Err("its version is none of 1 to 3");
        }
        if place != 1 {
            return Err("its descriptor does not follow its header");
        }
        let length = sectors.saturating_mul(SECTOR).min(MOST);
        Ok(Self {
            offset: SECTOR,
            length: usize::try_from(length).unwrap_or(usize::MAX),
            in_footer: directory == IN_FOOTER,
        })
    }
}

impl Vmdk {
    /// What is wrong with one that cannot be read.
    pub fn faulty(fault: &'static str) -> Self {
        Self {
            fault: Some(fault),
            ..Self::default()
        }
    }

    /// Reads the bytes of a descriptor, as many as there are, beside the first and the last bytes of its file.
    pub fn read(place: &Descriptor, descriptor: &[u8], head: &[u8], tail: &[u8]) -> Self {
        if descriptor.len() < place.length {
            return Self {
                cut: true,
                ..Self::faulty("its descriptor is cut off")
            };
        }
        let Some(text) = lower(descriptor) else {
            return Self::faulty("its descriptor is no text");
        };
        let create_type = text.split_once(CREATE_TYPE).and_then(|(_, rest)| rest.split_once('"'));
        let create_type = create_type
            .map(|(name, _)| name.to_owned())
            .filter(|name| name.len() < 64);
        let mut found = Self {
            create_type,
            ..Self::default()
        };
        for line in text
            .split('\n')
            .map(|line| line.trim_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '\x0b' | '\x1c'..='\x1f')))
        {
            let extent = matches!(line.split(' ').next(), Some("rw" | "rdonly" | "noaccess"));
            let field = line.split_once('=').is_some_and(|(name, _)| !name.contains(' '));
            if line.is_empty() || line.starts_with('#') || line.starts_with("ddb") || field {
                continue;
            } else if extent {
                found.extents.push(line.to_owned());
            } else {
                found.fault = Some("its descriptor has a line that is neither field nor extent");
            }
        }
        if place.in_footer {
            found.fault = found.fault.or_else(|| footer_fault(head, tail));
        }
        found
    }
}

/// The last three sectors: a marker, the header again, a marker.
fn footer_fault(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let sector = |range| tail.get(range).unwrap_or_default();
    let (marker, header, end) = (sector(0..512), sector(512..1024), sector(1024..1536));
    let same = |range: std::ops::Range<usize>| header.get(range.clone()) == head.get(range);
    if tail.len() != 1536 {
        Some("its footer is cut off")
    } else if !same(0..8) || !same(28..44) {
        Some("its header and its footer differ")
    } else if le64(header, 56) == Some(IN_FOOTER) {
        Some("its footer names another footer")
    } else if le32(marker, 8) != Some(0) || le32(marker, 12) != Some(3) || marker.iter().skip(16).any(|byte| *byte != 0)
    {
        Some("the marker of its footer is none")
    } else if end.iter().any(|byte| *byte != 0) {
        Some("the marker of its end is none")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT_OF_ONE: &str = "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicSparse\"\n\n# Extent\nRW 8 SPARSE \"a.vmdk\"\nddb.x = \"1\"\n";

    fn sparse(text: &str, directory: u64) -> Vec<u8> {
        let mut file = vec![0; 512];
        file[..4].copy_from_slice(MAGIC);
        file[4] = 1;
        file[28] = 1;
        file[36] = 2;
        file[56..64].copy_from_slice(&directory.to_le_bytes());
        file.extend_from_slice(text.as_bytes());
        file.resize(512 * 3, 0);
        file
    }

    fn told(file: &[u8]) -> Vmdk {
        let tail = &file[file.len().saturating_sub(1536)..];
        match Descriptor::find(file).unwrap() {
            Err(fault) => Vmdk::faulty(fault),
            Ok(place) => {
                let rest = &file[usize::try_from(place.offset).unwrap()..];
                Vmdk::read(&place, &rest[..place.length.min(rest.len())], file, tail)
            }
        }
    }

    #[test]
    fn a_descriptor_says_how_the_disk_is_stored_and_where() {
        for file in [sparse(TEXT_OF_ONE, 9), TEXT_OF_ONE.as_bytes().to_vec()] {
            let found = told(&file);
            assert_eq!(found.create_type.as_deref(), Some("monolithicsparse"));
            assert_eq!(found.extents, ["rw 8 sparse \"a.vmdk\""]);
            assert_eq!((found.fault, found.cut), (None, false));
        }
        assert_eq!(
            told(&sparse("nothing = 1", 9)).fault,
            Some("its descriptor has a line that is neither field nor extent")
        );
        assert_eq!(told(&sparse("\u{e4}=1", 9)).fault, Some("its descriptor is no text"));
        assert_eq!(told(&sparse("", 9)), Vmdk::default());
        assert_eq!(Descriptor::find(b"#!/bin/sh"), None);
        assert_eq!(Descriptor::find(&[b'x'; 4096]), None);
    }

    #[test]
    fn a_header_that_does_not_lead_to_a_descriptor_says_why() {
        let mut file = sparse(TEXT_OF_ONE, 9);
        file[4] = 4;
        assert!(told(&file).fault.unwrap().contains("version"));
        file[4] = 3;
        file[28] = 2;
        assert!(told(&file).fault.unwrap().contains("follow"));
        assert!(told(&file[..63]).fault.unwrap().contains("cut off"));
        file[28] = 1;
        assert!(told(&file[..1535]).cut);
        file[36..44].fill(0xff);
        assert_eq!(Descriptor::find(&file).unwrap().unwrap().length, (1 << 20) - 1);
    }

    #[test]
    fn where_the_last_header_counts_it_is_the_first_again() {
        let mut file = sparse(TEXT_OF_ONE, IN_FOOTER);
        let mut footer = sparse("", 9);
        footer.truncate(512);
        let mut marker = [0; 512];
        marker[12] = 3;
        file.extend_from_slice(&[&marker[..], &footer, &[0; 512]].concat());
        assert_eq!(told(&file).fault, None);
        let at = file.len() - 1536;
        for (place, fault) in [
            (12, "the marker of its footer"),
            (8, "the marker of its footer"),
            (16, "the marker of its footer"),
            (512 + 4, "differ"),
        ] {
            let mut bad = file.clone();
            bad[at + place] ^= 1;
            assert!(told(&bad).fault.unwrap().contains(fault), "{place}");
        }
        let last = file.len() - 1;
        file[last] = 1;
        assert!(told(&file).fault.unwrap().contains("end"));
        file[at + 512 + 56..at + 512 + 64].fill(0xff);
        assert!(told(&file).fault.unwrap().contains("another"));
    }
}
