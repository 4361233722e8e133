//! Rows of entries that follow each other, broken at every place, against a walk that looks at each entry for itself.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::sync::Arc;

use qcow2_engine::storage::testing::{Operation, RecordingStorage};
use qcow2_engine::{Chain, ChainOptions, Layer, LayerOptions, MemoryStorage, RunKind};
use qcow2_format::GuestOffset;
use support::{Folder, qemu_img};

const CLUSTER: u64 = 4096;
const ENTRIES: usize = 512;
const TABLES: usize = 4;
const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An image of four L2 tables, all of whose clusters are reserved and follow each other within their table.
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        let folder = Folder::new();
        let size = (CLUSTER as usize * ENTRIES * TABLES).to_string();
        let options = "preallocation=metadata,cluster_size=4k";
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", &size],
        );
        Self(std::fs::read(folder.path("a.qcow2")).unwrap())
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn put(&mut self, at: usize, word: u64) {
        self.0[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }

    fn l1(&self, table: usize) -> usize {
        self.word(40) as usize + table * 8
    }

    /// Where an entry stands in the file.
    fn l2(&self, table: usize, entry: usize) -> usize {
        (self.word(self.l1(table)) & OFFSET) as usize + entry * 8
    }

    fn chain(&self) -> (Chain, Arc<RecordingStorage>) {
        let storage = Arc::new(RecordingStorage::new(Arc::new(MemoryStorage::new(self.0.clone()))));
        let layer = Layer::open_qcow2(storage.clone(), &LayerOptions::default()).unwrap();
        storage.take();
        (Chain::new(vec![layer], ChainOptions::default()).unwrap(), storage)
    }

    /// Each entry for itself, neighbours put together afterwards: start, length, whether zero, and where.
    fn expected(&self) -> Vec<(u64, u64, bool, Option<u64>)> {
        let mut runs: Vec<(u64, u64, bool, Option<u64>)> = Vec::new();
        for index in 0..TABLES * ENTRIES {
            let word = self.word(self.l2(index / ENTRIES, index % ENTRIES));
            let host = Some(word & OFFSET).filter(|&host| host != 0);
            let (zero, start) = (word & 1 == 1 || host.is_none(), index as u64 * CLUSTER);
            match runs.last_mut() {
                Some((_, length, same, at)) if *same == zero && at.map(|at| at + *length) == host => *length += CLUSTER,
                _ => runs.push((start, CLUSTER, zero, host)),
            }
        }
        runs
    }

    fn assert_mapped(&self, what: &str) {
        let (chain, _) = self.chain();
        let status = chain.status(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
        let status = status
            .iter()
            .map(|s| (s.start.0, s.length, s.zero, s.offset.map(|at| at.0)));
        assert_eq!(status.collect::<Vec<_>>(), self.expected(), "map, {what}");
        let runs = chain.resolve(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
        let runs = runs.iter().map(|run| match run.kind {
            RunKind::Data { host } => (run.start.0, run.length, false, Some(host.0)),
            RunKind::Zero { host, .. } => (run.start.0, run.length, true, host.map(|host| host.0)),
            _ => (run.start.0, run.length, true, None),
        });
        assert_eq!(runs.collect::<Vec<_>>(), self.expected(), "runs, {what}");
    }
}

/// Changes of one entry, of which all but the last end the row.
const CHANGES: [fn(u64) -> u64; 6] = [
    |_| 0,
    |word| word | 1,
    |word| word + CLUSTER,
    |word| word - CLUSTER,
    |word| word ^ (1 << 20),
    |word| word ^ COPIED,
];

#[test]
fn a_row_ends_exactly_where_an_entry_does_not_follow() {
    let image = Image::new();
    image.assert_mapped("whole");
    assert!(image.expected().len() <= TABLES);
    for entry in (0..70).chain(ENTRIES - 20..ENTRIES) {
        for (number, change) in CHANGES.iter().enumerate() {
            let mut broken = Image(image.0.clone());
            let at = broken.l2(1, entry);
            broken.put(at, change(image.word(at)));
            broken.assert_mapped(&format!("change {number} of entry {entry}"));
            let unbroken = broken.expected() == image.expected();
            assert_eq!(unbroken, number == 5, "change {number} of entry {entry}");
        }
    }
}

/// A map passes by tables that it does not keep: what it keeps of one must never be taken for another, and none is read for each of its runs.
#[test]
fn tables_that_are_named_in_turns_are_told_apart_and_read_once_a_visit() {
    let mut image = Image::new();
    for entry in (0..ENTRIES).step_by(3) {
        let at = image.l2(2, entry);
        image.put(at, 0);
    }
    let (even, odd) = (image.word(image.l1(2)), image.word(image.l1(0)));
    for table in 0..TABLES {
        let at = image.l1(table);
        image.put(at, if table % 2 == 0 { even } else { odd });
    }
    image.assert_mapped("tables in turns");
    let (chain, storage) = image.chain();
    let all = chain.status(GuestOffset(0), u64::MAX, usize::MAX).unwrap();
    assert!(all.len() > ENTRIES);
    let reads = storage.take();
    let tables = reads
        .iter()
        .filter(|read| matches!(read, Operation::Read { length, .. } if *length as u64 == CLUSTER));
    assert!((2..=TABLES).contains(&tables.count()), "{reads:?}");
}
