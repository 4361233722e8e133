//! The first sector of a disk: a boot sector with or without a table of partitions.

/// Where the table of partitions stands, and what its entries take.
const TABLE: std::ops::Range<usize> = 446..510;
const ENTRY: usize = 16;
/// The kind of the one partition that a GPT lays over the disk.
const PROTECTIVE: u8 = 0xee;
/// Cylinder, head and sector of the disk's second sector, where that partition begins.
const SECOND_SECTOR: [u8; 3] = [0, 2, 0];

/// A sector that ends in the boot signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSector {
    /// The begin of a FAT file system, not a table of partitions: it keeps two tables on a fixed disk.
    pub fat: bool,
    /// Why its table of partitions is none, in plain words.
    pub fault: Option<&'static str>,
}

impl BootSector {
    /// Reads the first bytes of a disk.
    pub fn read(head: &[u8]) -> Option<Self> {
        let signed = head.get(510..512) == Some(&[0x55, 0xaa]);
        signed.then(|| Self {
            fat: head.get(16) == Some(&2) && head.get(21) == Some(&0xf8),
            fault: fault(head),
        })
    }

    /// Whether its table names partitions, and is one: file systems have the signature alone.
    pub fn has_partitions(&self) -> bool {
        self.fault.is_none_or(|fault| fault != NONE && fault != FLAG)
    }
}

const NONE: &str = "its table of partitions is empty";
const FLAG: &str = "an entry of its table of partitions is neither active nor inactive";

fn fault(head: &[u8]) -> Option<&'static str> {
    let entries = head.get(TABLE).unwrap_or_default().chunks_exact(ENTRY);
    let kind = |entry: &[u8]| entry.get(4).copied().unwrap_or(0);
    if entries.clone().any(|entry| !matches!(entry.first(), Some(0 | 0x80))) {
        return Some(FLAG);
    }
    let used = entries.clone().map(kind).filter(|kind| *kind != 0).count();
    let protective = |entry: &&[u8]| kind(entry) == PROTECTIVE;
    let displaced = |entry: &[u8]| entry.get(1..4) != Some(&SECOND_SECTOR) || entry.get(8..12) != Some(&[1, 0, 0, 0]);
    match entries.clone().find(protective) {
        _ if entries.clone().filter(protective).any(displaced) => {
            Some("the partition that stands for its GPT does not begin at sector 1")
        }
        Some(_) if used > 1 || entries.clone().next().map(kind) != Some(PROTECTIVE) => {
            Some("partitions stand beside that of its GPT")
        }
        None if used == 0 => Some(NONE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(entries: &[(usize, [u8; 16])]) -> [u8; 512] {
        let mut sector = [0; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        for (index, entry) in entries {
            sector[446 + index * 16..][..16].copy_from_slice(entry);
        }
        sector
    }

    fn entry(flag: u8, kind: u8, first: u8) -> [u8; 16] {
        [flag, 0, 2, 0, kind, 0, 0, 0, first, 0, 0, 0, 9, 0, 0, 0]
    }

    fn told(entries: &[(usize, [u8; 16])]) -> Option<&'static str> {
        BootSector::read(&sector(entries)).unwrap().fault
    }

    #[test]
    fn a_table_of_partitions_is_told_from_what_is_none() {
        assert_eq!(told(&[]), Some(NONE));
        assert_eq!(told(&[(0, entry(0x80, 0x83, 5))]), None);
        assert_eq!(told(&[(3, entry(0, 0x83, 5))]), None);
        assert_eq!(told(&[(0, entry(0, 0x83, 5)), (2, entry(0x81, 0, 0))]), Some(FLAG));
        assert_eq!(told(&[(0, entry(0, 0xee, 1))]), None);
        assert!(told(&[(0, entry(0, 0xee, 2))]).unwrap().contains("sector 1"));
        assert!(
            told(&[(0, entry(0, 0xee, 1)), (1, entry(0, 0x83, 9))])
                .unwrap()
                .contains("beside")
        );
        assert!(told(&[(1, entry(0, 0xee, 1))]).unwrap().contains("beside"));
        assert_eq!(BootSector::read(&[0; 512]), None);
        assert_eq!(BootSector::read(&sector(&[])[..511]), None);
    }

    #[test]
    fn a_fat_file_system_is_no_table() {
        let mut fat = sector(&[]);
        fat[16] = 2;
        fat[21] = 0xf8;
        assert!(BootSector::read(&fat).unwrap().fat);
        assert!(!BootSector::read(&sector(&[])).unwrap().fat);
    }
}
