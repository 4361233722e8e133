//! The header's first sector: what it says now, and what it says on disk. Every field that points somewhere stands in it, so that each switch is one
//! sector; everything else in it stays as it is.

use qcow2_format::Header;

use crate::overlay::Sector;

/// The fields that a writer changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    /// Virtual size in bytes as recorded.
    pub(super) size: u64,
    /// Place and entries of the active L1 table.
    pub(super) l1: (u64, u32),
    /// Place and clusters of the refcount table.
    pub(super) refcount_table: (u64, u32),
    /// Place and number of snapshots.
    pub(super) snapshots: (u64, u32),
    pub(super) incompatible: u64,
    pub(super) autoclear: u64,
}

/// The header as it is, and as the disk has it.
#[derive(Debug)]
pub(super) struct HeaderFields {
    pub(super) newest: Fields,
    pub(super) durable: Fields,
    sector: Box<Sector>,
    version3: bool,
}

/// What a flush writes of the header.
#[derive(Debug)]
pub(super) struct SealedHeader {
    /// Before the pointers: only the refcount table is switched.
    pub(super) prepare: Option<Sector>,
    /// With the pointers.
    pub(super) publish: Option<Sector>,
    after: Fields,
}

impl HeaderFields {
    /// `sector` is the first one of the file.
    pub(super) fn new(header: &Header, sector: Box<Sector>) -> Self {
        let fields = Fields {
            size: header.recorded_size,
            l1: (header.l1_offset.0, header.l1_entries),
            refcount_table: (header.refcount_table_offset.0, header.refcount_table_clusters),
            snapshots: (header.snapshots_offset.0, header.snapshot_count),
            incompatible: header.incompatible,
            autoclear: header.autoclear,
        };
        Self {
            newest: fields.clone(),
            durable: fields,
            sector,
            version3: header.version == qcow2_format::Version::V3,
        }
    }

    pub(super) fn is_version3(&self) -> bool {
        self.version3
    }

    /// The sector with `fields` in it.
    pub(super) fn render(&self, fields: &Fields) -> Sector {
        let mut sector = *self.sector;
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = sector.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(24, &fields.size.to_be_bytes());
        put(36, &fields.l1.1.to_be_bytes());
        put(40, &fields.l1.0.to_be_bytes());
        put(48, &fields.refcount_table.0.to_be_bytes());
        put(56, &fields.refcount_table.1.to_be_bytes());
        put(60, &fields.snapshots.1.to_be_bytes());
        put(64, &fields.snapshots.0.to_be_bytes());
        if self.version3 {
            put(72, &fields.incompatible.to_be_bytes());
            put(88, &fields.autoclear.to_be_bytes());
        }
        sector
    }

    /// Other bytes of the sector, such as an extension, have changed on disk.
    pub(super) fn rebase(&mut self, sector: &Sector) {
        *self.sector = *sector;
    }

    pub(super) fn seal(&self) -> SealedHeader {
        let prepared = Fields {
            refcount_table: self.newest.refcount_table,
            ..self.durable.clone()
        };
        SealedHeader {
            prepare: (prepared != self.durable).then(|| self.render(&prepared)),
            publish: (self.newest != prepared).then(|| self.render(&self.newest)),
            after: self.newest.clone(),
        }
    }

    pub(super) fn settle(&mut self, sealed: SealedHeader) {
        self.durable = sealed.after;
    }
}
