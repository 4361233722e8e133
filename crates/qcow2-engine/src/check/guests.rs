//! Which guest ranges the clusters with a wrong refcount belong to.

use std::collections::{HashMap, HashSet};

use qcow2_format::{GuestOffset, HostOffset, L1Entry, L2Entry};

use super::finding::FindingCode;
use super::reader::words;
use super::table::descriptor;
use super::{Check, Result};

/// Most guest ranges that a finding lists.
const MOST: usize = 16;

impl Check<'_> {
    /// Walks the active disk once more, only if a cluster has a wrong refcount, and adds the guest ranges that lie in such clusters.
    pub(super) fn attribute_guests(&mut self) -> Result<()> {
        let mut wanted: HashMap<u64, Vec<(GuestOffset, u64)>> = HashMap::new();
        for finding in self.findings.kept_mut() {
            if matches!(
                finding.code,
                FindingCode::RefcountTooLow | FindingCode::ReferenceOverflow
            ) && let Some(cluster) = finding.cluster
            {
                wanted.insert(cluster, Vec::new());
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let header = self.reader.header;
        let length = u64::from(header.l1_entries).saturating_mul(8);
        let l1 = self.reader.read(header.l1_offset, length).unwrap_or_default();
        let mut walked = HashSet::new();
        for (l1_index, entry) in (0u64..).zip(words(&l1).map(L1Entry)) {
            let Some(l2_offset) = entry
                .l2_offset()
                .filter(|at| at.is_aligned(header.geometry.cluster_size()))
            else {
                continue;
            };
            self.context.cancel.check()?;
            let table = header.geometry.cluster_index(l2_offset).0;
            if let (Some(ranges), Some(guest)) = (wanted.get_mut(&table), header.geometry.guest_offset(l1_index, 0)) {
                add(ranges, guest, header.geometry.l1_entry_span());
            }
            // Only a table whose cluster has several references can come up again.
            if self.counts.get(table) <= 1 || walked.insert(l2_offset) {
                self.attribute_table(l1_index, l2_offset, &mut wanted);
            }
        }
        for finding in self.findings.kept_mut() {
            if let Some(ranges) = finding.cluster.and_then(|cluster| wanted.get(&cluster))
                && finding.guest_ranges.is_empty()
            {
                finding.guest_ranges.clone_from(ranges);
            }
        }
        Ok(())
    }

    fn attribute_table(
        &mut self,
        l1_index: u64,
        l2_offset: HostOffset,
        wanted: &mut HashMap<u64, Vec<(GuestOffset, u64)>>,
    ) {
        let rules = self.reader.header.entry_rules();
        let (geometry, size) = (rules.geometry, rules.geometry.cluster_size());
        if self.reader.is_hole(l2_offset, size) {
            return;
        }
        let Ok(table) = self.reader.table(l2_offset) else {
            return;
        };
        let step = usize::try_from(geometry.l2_entry_size()).unwrap_or(8);
        for (index, bytes) in (0u64..).zip(table.chunks_exact(step)) {
            let mut words = words(bytes);
            let entry = L2Entry {
                word: words.next().unwrap_or(0),
                subclusters: words.next().unwrap_or(0),
            };
            let Some(guest) = geometry.guest_offset(l1_index, index).filter(|_| entry.word != 0) else {
                continue;
            };
            let (host, length) = match descriptor(entry, &rules) {
                Some(found) => (found.offset, found.length()),
                None => (entry.host_offset(), size),
            };
            let last = host.0.saturating_add(length.saturating_sub(1));
            for cluster in geometry.cluster_index(host).0..=geometry.cluster_index(HostOffset(last)).0 {
                if let Some(ranges) = wanted.get_mut(&cluster) {
                    add(ranges, guest, size);
                }
            }
        }
    }
}

/// Adds a range, joined to the last one where it follows it.
fn add(ranges: &mut Vec<(GuestOffset, u64)>, guest: GuestOffset, length: u64) {
    if let Some((start, known)) = ranges.last_mut()
        && start.0.saturating_add(*known) == guest.0
    {
        *known = known.saturating_add(length);
    } else if ranges.len() < MOST {
        ranges.push((guest, length));
    }
}
