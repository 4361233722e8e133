//! COPIED flags of the active disk: set exactly where the refcount is one.

use std::collections::HashSet;

use qcow2_format::{HostOffset, L1Entry, L2Entry, Table};

use super::Repair;
use crate::check::reader::{Reader, words};
use crate::check::{Finding, FindingCode};
use crate::error::{Error, Result};

/// The flag in L1 and L2 entries.
const COPIED: u64 = 1 << 63;
/// Bytes of the L1 table that are looked at together.
const PIECE: usize = 64 << 10;

impl Repair<'_> {
    /// Mends the flags of the active L1 table and of the L2 tables that it names.
    pub(super) fn copied_flags(&mut self) -> Result<()> {
        let (header, layer) = (self.header, self.layer);
        let mut reader = Reader::new(&**layer.storage(), header)?;
        let length = u64::from(header.l1_entries) * 8;
        let l1 = reader
            .read(header.l1_offset, length)
            .map_err(Error::io("read", &**layer.storage()))?;
        let mut walked = HashSet::new();
        for (number, old) in l1.chunks(PIECE).enumerate() {
            let mut new = old.to_vec();
            let first = (number * PIECE / 8) as u64;
            for (index, place) in (first..).zip(new.as_chunks_mut::<8>().0) {
                let entry = L1Entry(u64::from_be_bytes(*place));
                let Some(offset) = entry.l2_offset() else { continue };
                if !offset.is_aligned(header.geometry.cluster_size()) || offset.0 >= reader.file_length {
                    continue;
                }
                let count = self.references.counts.get(header.geometry.cluster_index(offset).0);
                let flagged = self.flagged(entry.0, count == 1, |finding| Finding {
                    index: Some(index),
                    offset: Some(header.l1_offset.0.saturating_add(index * 8)),
                    refcount: Some(count),
                    ..finding
                });
                *place = flagged.to_be_bytes();
                // A table that is named again has been looked at, and all its clusters are counted more than once.
                if count <= 1 || walked.insert(offset) {
                    self.context.cancel.check()?;
                    self.table_flags(&mut reader, offset, index)?;
                }
            }
            if new != old {
                self.writer.mark()?;
                let offset = HostOffset(header.l1_offset.0 + (number * PIECE) as u64);
                self.writer.write_changed(offset, old, &new)?;
            }
        }
        Ok(())
    }

    fn table_flags(&mut self, reader: &mut Reader<'_>, offset: HostOffset, l1_index: u64) -> Result<()> {
        let rules = self.header.entry_rules();
        let (geometry, size) = (rules.geometry, rules.geometry.cluster_size());
        if reader.is_hole(offset, size) {
            return Ok(());
        }
        let old = reader
            .table(offset)
            .map_err(Error::io("read", &**self.layer.storage()))?;
        let step = usize::try_from(geometry.l2_entry_size()).unwrap_or(8);
        let mut new: Option<Vec<u8>> = None;
        for (at, bytes) in (0..).step_by(step).zip(old.chunks_exact(step)) {
            let word = words(bytes).next().unwrap_or(0);
            if word == 0 {
                continue;
            }
            let entry = L2Entry { word, subclusters: 0 };
            let host = entry.host_offset();
            let refcount = self.references.counts.get(geometry.cluster_index(host).0);
            let one = if entry.is_compressed() {
                false
            } else if rules.data_file {
                host.0 != 0 || entry.copied()
            } else {
                host.0 != 0 && refcount == 1
            };
            let index = (at / step) as u64;
            let flagged = self.flagged(word, one, |finding| Finding {
                table: Table::L2,
                index: Some(index),
                offset: Some(offset.0.saturating_add(at as u64)),
                refcount: Some(refcount),
                guest_ranges: geometry
                    .guest_offset(l1_index, index)
                    .map(|guest| (guest, geometry.cluster_size()))
                    .into_iter()
                    .collect(),
                ..finding
            });
            if flagged != word {
                let table = new.get_or_insert_with(|| old.to_vec());
                if let Some(place) = table.get_mut(at..at + 8) {
                    place.copy_from_slice(&flagged.to_be_bytes());
                }
            }
        }
        if let Some(new) = new {
            self.writer.mark()?;
            self.writer.write_changed(offset, &old, &new)?;
        }
        Ok(())
    }

    /// An entry with the flag as it should be. It is not set where there may be references that were not counted.
    fn flagged(&mut self, entry: u64, one: bool, place: impl FnOnce(Finding) -> Finding) -> u64 {
        let wanted = if one { entry | COPIED } else { entry & !COPIED };
        if wanted == entry || (one && self.references.hidden) {
            return entry;
        }
        self.report.corruptions_fixed += 1;
        self.fixed(|| {
            place(Finding {
                value: Some(entry),
                ..Finding::corruption(FindingCode::CopiedFlag, Table::L1)
            })
        });
        wanted
    }
}
