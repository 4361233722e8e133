//! The bitmap directory, the tables it names and their data.

use qcow2_format::bitmap::{BitmapTableEntry, parse_directory};
use qcow2_format::{BitmapsExtension, Table, limits};

use super::finding::{Finding, FindingCode, Severity};
use super::reader::words;
use super::{Check, Result};

impl Check<'_> {
    pub(super) fn bitmaps(&mut self, place: BitmapsExtension) -> Result<()> {
        let geometry = self.reader.header.geometry;
        let (offset, size) = (place.directory_offset, place.directory_size);
        let damaged = |detail: String| Finding {
            offset: Some(offset.0),
            detail: Some(detail),
            ..Finding::corruption(FindingCode::BitmapDirectory, Table::BitmapDirectory)
        };
        if !offset.is_aligned(geometry.cluster_size()) || offset.0 == 0 || size > limits::MAX_BITMAP_DIRECTORY_BYTES {
            self.hidden = true;
            let finding = damaged("its offset or size is not valid".to_owned());
            self.findings.push(Severity::Corruption, || finding);
            return Ok(());
        }
        self.reference(offset, size, Table::BitmapDirectory)?;
        let directory = match self.reader.read(offset, size) {
            Ok(directory) => directory,
            Err(error) => {
                self.unreadable(Table::BitmapDirectory, offset, size, &error);
                return Ok(());
            }
        };
        let bitmaps = match parse_directory(&directory, offset, place.count, geometry) {
            Ok(bitmaps) => bitmaps,
            Err(error) => {
                self.hidden = true;
                self.findings.push(Severity::Corruption, || damaged(error.to_string()));
                return Ok(());
            }
        };
        for bitmap in bitmaps {
            self.context.cancel.check()?;
            let length = u64::from(bitmap.table_entries).saturating_mul(8);
            let needed = bitmap
                .data_bytes(self.reader.header.virtual_size())
                .div_ceil(geometry.cluster_size());
            // Of one that is in use the size may have been another.
            if u64::from(bitmap.table_entries) != needed && !bitmap.in_use() {
                self.findings.push(Severity::Corruption, || Finding {
                    offset: Some(bitmap.table_offset.0),
                    value: Some(u64::from(bitmap.table_entries)),
                    ..Finding::corruption(FindingCode::BitmapTable, Table::BitmapTable)
                });
            }
            self.reference(bitmap.table_offset, length, Table::BitmapTable)?;
            match self.reader.read(bitmap.table_offset, length) {
                Ok(table) => self.bitmap_table(&table, bitmap.table_offset.0)?,
                Err(error) => self.unreadable(Table::BitmapTable, bitmap.table_offset, length, &error),
            }
        }
        Ok(())
    }

    fn bitmap_table(&mut self, table: &[u8], offset: u64) -> Result<()> {
        let size = self.reader.header.geometry.cluster_size();
        for (index, entry) in (0u64..).zip(words(table).map(BitmapTableEntry)) {
            let data = entry.data_offset();
            if entry.reserved() != 0 || data.is_some_and(|data| !data.is_aligned(size)) {
                self.hidden = true;
                self.findings.push(Severity::Corruption, || Finding {
                    index: Some(index),
                    offset: Some(offset.saturating_add(index.saturating_mul(8))),
                    value: Some(entry.0),
                    ..Finding::corruption(FindingCode::BitmapTable, Table::BitmapTable)
                });
                continue;
            }
            if let Some(data) = data {
                self.reference(data, size, Table::BitmapTable)?;
            }
        }
        Ok(())
    }
}
