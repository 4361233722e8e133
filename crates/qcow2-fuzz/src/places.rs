//! Where an image's fields lie, found by following its tables as far as they can be followed: damaged ones too.

/// What a field is, which says what values hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// A host offset without flags.
    Offset,
    /// An L1 or L2 entry: an offset with flags, or a compressed descriptor.
    Entry,
    /// Bytes without an order.
    Bytes,
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Where it lies in the file.
    pub at: usize,
    /// Its length in bytes.
    pub width: usize,
    /// What it is.
    pub kind: Kind,
}

/// Most entries of one table that are taken.
const MOST: u64 = 64;

/// The number of `width` bytes at `at`; 0 beyond the end.
pub fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let field = bytes.get(at..at.saturating_add(width)).unwrap_or_default();
    field.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

struct Walk<'a> {
    bytes: &'a [u8],
    cluster: u64,
    places: Vec<Place>,
}

impl Walk<'_> {
    fn add(&mut self, at: u64, width: usize, kind: Kind) {
        let end = at.saturating_add(width as u64);
        if end <= self.bytes.len() as u64 {
            self.places.push(Place {
                at: at as usize,
                width,
                kind,
            });
        }
    }

    fn number(&self, at: u64, width: usize) -> u64 {
        usize::try_from(at).map_or(0, |at| number(self.bytes, at, width))
    }

    /// Entries of a table that are not 0, and some that are.
    fn entries(&mut self, table: u64, count: u64, kind: Kind) -> Vec<u64> {
        let mut found = Vec::new();
        let count = count.min((self.bytes.len() as u64).saturating_sub(table) / 8);
        let mut taken = 0;
        for index in 0..count {
            let at = table.saturating_add(index * 8);
            let entry = self.number(at, 8);
            if (entry != 0 || index < 4) && taken < MOST {
                self.add(at, 8, kind);
                taken += 1;
            }
            if entry != 0 {
                found.push(entry);
            }
        }
        found
    }

    fn tree(&mut self, l1: u64, count: u64) {
        let tables = self.entries(l1, count.min(1 << 16), Kind::Entry);
        for table in tables.into_iter().take(4) {
            let entries = self.entries(table & OFFSET, self.cluster / 8, Kind::Entry);
            for entry in entries.into_iter().filter(|entry| entry >> 62 & 1 == 1).take(2) {
                let shift = 62 - (self.cluster.trailing_zeros().max(9) - 8);
                let payload = entry & ((1 << shift) - 1);
                for at in 0..24 {
                    self.add(payload.saturating_add(at), 1, Kind::Bytes);
                }
            }
        }
    }

    fn snapshots(&mut self) {
        let mut at = self.number(64, 8);
        for _ in 0..self.number(60, 4).min(4) {
            for (offset, width, kind) in [
                (0, 8, Kind::Offset),
                (8, 4, Kind::Number),
                (12, 2, Kind::Number),
                (14, 2, Kind::Number),
                (32, 4, Kind::Number),
                (36, 4, Kind::Number),
                (40, 8, Kind::Number),
                (48, 8, Kind::Number),
                (56, 8, Kind::Bytes),
            ] {
                self.add(at.saturating_add(offset), width, kind);
            }
            self.tree(self.number(at, 8), self.number(at.saturating_add(8), 4));
            let (id, name, extra) = (
                self.number(at.saturating_add(12), 2),
                self.number(at.saturating_add(14), 2),
                self.number(at.saturating_add(36), 4),
            );
            at = at.saturating_add((40 + id + name + extra).next_multiple_of(8));
        }
    }

    fn bitmaps(&mut self, extension: u64) {
        self.add(extension, 4, Kind::Number);
        self.add(extension.saturating_add(8), 8, Kind::Number);
        self.add(extension.saturating_add(16), 8, Kind::Offset);
        let mut at = self.number(extension.saturating_add(16), 8);
        for _ in 0..self.number(extension, 4).min(4) {
            let fields = [
                (0, 8, Kind::Offset),
                (8, 4, Kind::Number),
                (12, 4, Kind::Number),
                (16, 1, Kind::Number),
            ];
            for (offset, width, kind) in fields {
                self.add(at.saturating_add(offset), width, kind);
            }
            for (offset, width) in [(17, 1), (18, 2), (20, 4), (24, 4)] {
                self.add(at.saturating_add(offset), width, Kind::Number);
            }
            self.entries(self.number(at, 8), self.number(at.saturating_add(8), 4), Kind::Entry);
            let more = self.number(at.saturating_add(18), 2) + self.number(at.saturating_add(20), 4);
            at = at.saturating_add((24 + more).next_multiple_of(8));
        }
    }

    fn extensions(&mut self) {
        let mut at = if self.number(4, 4) == 2 {
            72
        } else {
            self.number(100, 4)
        };
        for _ in 0..8 {
            let (kind, length) = (self.number(at, 4), self.number(at.saturating_add(4), 4));
            self.add(at, 4, Kind::Number);
            self.add(at.saturating_add(4), 4, Kind::Number);
            match kind {
                0 => return,
                0x2385_2875 => self.bitmaps(at.saturating_add(8)),
                _ => self.add(at.saturating_add(8), 8, Kind::Bytes),
            }
            at = at.saturating_add(8 + length.next_multiple_of(8));
        }
    }
}

/// The fields of a LUKS header.
fn luks_places(bytes: &[u8]) -> Vec<Place> {
    let mut walk = Walk {
        bytes,
        cluster: 512,
        places: Vec::new(),
    };
    for (at, width) in [(6, 2), (104, 4), (108, 4), (164, 4)] {
        walk.add(at, width, Kind::Number);
    }
    for name in [8, 40, 72] {
        (0..16).for_each(|at| walk.add(name + at, 1, Kind::Bytes));
    }
    for slot in (208..592).step_by(48) {
        for at in [0, 4, 40, 44] {
            walk.add(slot + at, 4, Kind::Number);
        }
    }
    walk.places
}

/// All fields that can be found.
pub fn places(bytes: &[u8]) -> Vec<Place> {
    if bytes.starts_with(&qcow2_format::luks::MAGIC) {
        return luks_places(bytes);
    }
    let bits = number(bytes, 20, 4).clamp(9, 21);
    let mut walk = Walk {
        bytes,
        cluster: 1 << bits,
        places: Vec::new(),
    };
    for (at, width, kind) in [
        (0, 4, Kind::Number),
        (4, 4, Kind::Number),
        (8, 8, Kind::Offset),
        (16, 4, Kind::Number),
        (20, 4, Kind::Number),
        (24, 8, Kind::Number),
        (32, 4, Kind::Number),
        (36, 4, Kind::Number),
        (40, 8, Kind::Offset),
        (48, 8, Kind::Offset),
        (56, 4, Kind::Number),
        (60, 4, Kind::Number),
        (64, 8, Kind::Offset),
        (72, 8, Kind::Number),
        (80, 8, Kind::Number),
        (88, 8, Kind::Number),
        (96, 4, Kind::Number),
        (100, 4, Kind::Number),
        (104, 1, Kind::Number),
    ] {
        walk.add(at, width, kind);
    }
    walk.extensions();
    walk.tree(walk.number(40, 8), walk.number(36, 4));
    let blocks = walk.entries(
        walk.number(48, 8),
        walk.number(56, 4).min(16) * walk.cluster / 8,
        Kind::Offset,
    );
    for block in blocks.into_iter().take(4) {
        for at in 0..MOST {
            walk.add(block.saturating_add(at * 2), 2, Kind::Number);
        }
    }
    walk.snapshots();
    walk.places
}
