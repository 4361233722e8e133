//! Which formats the bytes of a file look like: qcow2, and others by their names alone.
//!
//! A file may look like several, for nothing keeps their marks from standing in one file; so all are told.

use crate::bytes::{be32, be64};
use crate::{header, luks};

mod boot;
mod vmdk;

pub use boot::BootSector;
pub use vmdk::{Descriptor, Vmdk};

/// Bytes from the begin of a file in which all marks stand, but for one.
pub const HEAD: usize = 34 << 10;
/// Bytes at the end of a file: the footers of a VHD and of a VMDK.
pub const TAIL: usize = 1536;
/// Of those, the footer of a VHD.
const VHD_FOOTER: usize = 512;

/// A mark: the name of a format, where it stands, and its bytes.
type Mark = (&'static str, usize, &'static [u8]);

const MARKS: &[Mark] = &[
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vhd", 0, b"conectix"),
    ("vhdx", 0, b"vhdxfile"),
    ("qed", 0, b"QED\0"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("luks", 0, &luks::MAGIC),
    ("vma", 0, b"VMA\0"),
    ("iso", 32_769, b"CD001"),
    ("udf", 32_769, b"NSR02"),
    ("udf", 32_769, b"NSR03"),
    ("gpt", 512, b"EFI PART"),
    ("gpt", 4096, b"EFI PART"),
    ("tar", 257, b"ustar"),
    ("gzip", 0, b"\x1f\x8b\x08"),
    ("bzip2", 0, b"BZh"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("squashfs", 0, b"hsqs"),
];

/// The formats that the first bytes of a file, up to [`HEAD`] of them, and its last [`TAIL`] bytes look like, each once. None: a raw disk, or nothing
/// that is known here.
pub fn recognise(head: &[u8], tail: &[u8]) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut add = |name| {
        if !found.contains(&name) {
            found.push(name);
        }
    };
    if head.starts_with(&header::MAGIC) {
        add(if be32(head, 4) == Some(1) { "qcow" } else { "qcow2" });
    }
    for (name, at, bytes) in MARKS {
        if head.get(*at..).is_some_and(|rest| rest.starts_with(bytes)) {
            add(name);
        }
    }
    if vmdk::is_text(head) {
        add("vmdk");
    }
    if is_fixed_vhd(tail) {
        add("vhd");
    }
    if BootSector::read(head).is_some_and(|sector| sector.has_partitions()) {
        add("mbr");
    }
    found
}

/// Whether the last bytes of a file, up to [`TAIL`] of them, end in the footer of a VHD: the only mark of one whose disk has a fixed size.
pub fn is_fixed_vhd(tail: &[u8]) -> bool {
    let footer = tail.len().checked_sub(VHD_FOOTER).and_then(|at| tail.get(at..));
    footer.is_some_and(|footer| footer.starts_with(b"conectix"))
}

/// What the fixed fields of a qcow2 header say, whether or not they make sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawHeader {
    /// Version.
    pub version: u32,
    /// Where the backing file's name stands; 0: there is none.
    pub backing_offset: u64,
    /// Incompatible features; 0 in version 2.
    pub incompatible: u64,
    /// Compatible features.
    pub compatible: u64,
    /// Autoclear features.
    pub autoclear: u64,
    /// What stands at byte 72: incompatible features from version 3 on, an extension before that.
    pub at_72: u64,
}

impl RawHeader {
    /// Reads them from the first bytes of a file that begins with the magic.
    pub fn read(head: &[u8]) -> Option<Self> {
        let version = head.starts_with(&header::MAGIC).then(|| be32(head, 4)).flatten()?;
        let feature = |at| if version >= 3 { be64(head, at).unwrap_or(0) } else { 0 };
        Some(Self {
            version,
            backing_offset: be64(head, 8)?,
            incompatible: feature(72),
            compatible: feature(80),
            autoclear: feature(88),
            at_72: be64(head, 72).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_seen_at_its_place_and_nowhere_else() {
        for (name, at, bytes) in MARKS {
            let mut head = vec![0; HEAD];
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(recognise(&head, &[]), [*name]);
            head.rotate_right(1);
            assert!(recognise(&head, &[]).is_empty(), "{name}");
            assert!(recognise(&bytes[..bytes.len() - 1], &[]).is_empty());
        }
        let mut tail = [0; TAIL];
        tail[1024..1032].copy_from_slice(b"conectix");
        assert_eq!(recognise(&[0; 512], &tail), ["vhd"]);
        assert!(recognise(&[0; 512], &tail[..1535]).is_empty());
    }

    #[test]
    fn a_file_of_several_formats_is_all_of_them() {
        let mut head = vec![0; HEAD];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        head[32_769..32_774].copy_from_slice(b"CD001");
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(recognise(&head, &[]), ["qcow2", "iso"], "a signature is no partition");
        head[450] = 0x83;
        assert_eq!(recognise(&head, &[]), ["qcow2", "iso", "mbr"]);
        head[7] = 1;
        assert_eq!(recognise(&head, &[])[0], "qcow");
    }

    #[test]
    fn the_fields_of_a_header_are_read_without_judging_them() {
        let mut head = vec![0xff; 112];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        let header = RawHeader::read(&head).unwrap();
        assert_eq!((header.version, header.incompatible), (3, u64::MAX));
        head[7] = 2;
        assert_eq!(RawHeader::read(&head).unwrap().incompatible, 0);
        assert_eq!(RawHeader::read(&head[..15]), None);
        assert_eq!(RawHeader::read(b"not one"), None);
    }
}
