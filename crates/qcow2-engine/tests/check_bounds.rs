//! A check of a hostile image ends soon and in little memory: what it reads follows what is in the file, not what the file claims.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use qcow2_engine::storage::{Extent, Storage};
use qcow2_engine::{
    CancelToken, CheckOptions, CheckReport, Error, FindingCode, JobContext, Layer, LayerOptions, Progress, check,
};
use qcow2_format::HostOffset;

const CLUSTER: u64 = 65536;
/// The largest L1 table.
const MOST_L1_ENTRIES: u64 = 4 << 20;

/// A sparse file of any length, which counts the bytes and calls of its reads.
#[derive(Debug, Default)]
struct Sparse {
    pieces: BTreeMap<u64, Vec<u8>>,
    length: u64,
    bytes: AtomicU64,
    calls: AtomicU64,
}

impl Sparse {
    fn put(&mut self, offset: u64, bytes: Vec<u8>) {
        self.length = self.length.max(offset + bytes.len() as u64);
        self.pieces.insert(offset, bytes);
    }

    fn words(&mut self, offset: u64, words: impl IntoIterator<Item = u64>) {
        self.put(offset, words.into_iter().flat_map(u64::to_be_bytes).collect());
    }
}

impl Storage for Sparse {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, offset: HostOffset, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.length.saturating_sub(offset.0).min(buffer.len() as u64) as usize;
        self.bytes.fetch_add(there as u64, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        buffer[..there].fill(0);
        let end = offset.0 + there as u64;
        for (&begin, bytes) in self.pieces.range(..end) {
            let (from, to) = (begin.max(offset.0), (begin + bytes.len() as u64).min(end));
            if from < to {
                let source = &bytes[(from - begin) as usize..(to - begin) as usize];
                buffer[(from - offset.0) as usize..(to - offset.0) as usize].copy_from_slice(source);
            }
        }
        Ok(there)
    }

    fn write_at(&self, _: HostOffset, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn extent(&self, offset: HostOffset) -> io::Result<Extent> {
        let within = self.pieces.range(..=offset.0).next_back();
        let end = within.map_or(0, |(&begin, bytes)| begin + bytes.len() as u64);
        let next = self
            .pieces
            .range(offset.0 + 1..)
            .next()
            .map_or(self.length, |(&begin, _)| begin);
        let data = end > offset.0;
        Ok(Extent {
            data,
            end: HostOffset(if data { end } else { next }),
        })
    }
}

/// What a header says beside sizes that are always the same.
#[derive(Default)]
struct Shape {
    l1: (u64, u64),
    refcount_table: (u64, u64),
    snapshots: (u64, u64),
}

/// An image with clusters of 64 KiB and refcounts of 16 bits.
fn image(shape: &Shape) -> Sparse {
    let mut header = Vec::new();
    let size = shape.l1.1 * 8192 * CLUSTER;
    header.extend(0x5146_49fb_u32.to_be_bytes());
    header.extend(3u32.to_be_bytes());
    header.extend([0; 12]);
    header.extend(16u32.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend([0; 4]);
    header.extend((shape.l1.1 as u32).to_be_bytes());
    header.extend(shape.l1.0.to_be_bytes());
    header.extend(shape.refcount_table.0.to_be_bytes());
    header.extend((shape.refcount_table.1 as u32).to_be_bytes());
    header.extend((shape.snapshots.1 as u32).to_be_bytes());
    header.extend(shape.snapshots.0.to_be_bytes());
    header.extend([0; 24]);
    header.extend(4u32.to_be_bytes());
    header.extend(104u32.to_be_bytes());
    header.resize(CLUSTER as usize, 0);
    let mut file = Sparse::default();
    file.put(0, header);
    file
}

/// The outcome, and how many bytes it read in how many calls.
fn judge(file: Sparse) -> (Result<CheckReport, Error>, u64, u64) {
    let file = Arc::new(file);
    let options = LayerOptions {
        for_check: true,
        ..LayerOptions::default()
    };
    let layer = Layer::open_qcow2(file.clone(), &options).unwrap();
    file.bytes.store(0, Ordering::Relaxed);
    file.calls.store(0, Ordering::Relaxed);
    let report = check(&layer, &CheckOptions::default(), &JobContext::quiet());
    (
        report,
        file.bytes.load(Ordering::Relaxed),
        file.calls.load(Ordering::Relaxed),
    )
}

#[test]
fn a_table_that_every_l1_entry_names_is_read_twice_and_its_findings_count_each_time() {
    let shape = Shape {
        l1: (CLUSTER, MOST_L1_ENTRIES),
        refcount_table: (1 << 30, 1),
        ..Shape::default()
    };
    let mut file = image(&shape);
    let l2 = 1 << 31;
    file.words(CLUSTER, std::iter::repeat_n(l2, MOST_L1_ENTRIES as usize));
    file.words(1 << 30, [0; 8192]);
    // Reserved bits, and none of the entries has a place.
    file.words(l2, [0x80; 8192]);
    let (report, bytes, _) = judge(file);
    let report = report.unwrap();
    let of_l2 = MOST_L1_ENTRIES * 8192;
    // The header, the L1 table's clusters, the L2 table and the refcount table have references and no refcount.
    let too_many = MOST_L1_ENTRIES - 65535;
    assert_eq!(
        report.corruptions,
        of_l2 + too_many + 1 + MOST_L1_ENTRIES * 8 / CLUSTER + 1 + 1
    );
    assert_eq!(report.findings.len(), 10_000);
    assert_eq!(report.findings_omitted + 10_000, report.corruptions);
    assert!(bytes < 40 << 20, "{bytes} bytes");
    let last = report.findings.last().unwrap();
    assert_eq!(
        last.guest_ranges[0].0.0 / (8192 * CLUSTER),
        10_000 / 8192,
        "moved to its own L1 entry"
    );
}

#[test]
fn two_tables_named_in_turns_are_read_no_more_often() {
    let shape = Shape {
        l1: (CLUSTER, MOST_L1_ENTRIES),
        refcount_table: (1 << 30, 1),
        ..Shape::default()
    };
    let mut file = image(&shape);
    let tables = [1 << 31, 1 << 32];
    file.words(CLUSTER, (0..MOST_L1_ENTRIES as usize).map(|n| tables[n % 2]));
    file.words(1 << 30, [0; 8192]);
    for at in tables {
        // Clusters of the file, in no order.
        file.words(at, (0..8192u64).map(|n| (n * 5003 % 8192 + 1) * CLUSTER));
    }
    let (report, bytes, _) = judge(file);
    assert_eq!(report.unwrap().allocated_clusters, MOST_L1_ENTRIES * 8192);
    // Twice through the L1 table: once more to tell which guest ranges suffer.
    assert!(bytes < 80 << 20, "{bytes} bytes");
}

#[test]
fn tables_in_holes_are_not_read() {
    let shape = Shape {
        l1: (CLUSTER, MOST_L1_ENTRIES),
        refcount_table: (1 << 50, 1),
        ..Shape::default()
    };
    let mut file = image(&shape);
    file.words(CLUSTER, (1..=MOST_L1_ENTRIES).map(|n| (1 << 40) + n * CLUSTER));
    file.words(1 << 50, [0; 8192]);
    file.length = (1 << 63) - 1;
    let (report, bytes, _) = judge(file);
    assert_eq!(report.unwrap().allocated_clusters, 0);
    assert!(bytes < 80 << 20, "{bytes} bytes");
}

#[test]
fn references_strewn_over_exabytes_end_at_the_limit_of_memory() {
    let tables = 64;
    let shape = Shape {
        l1: (CLUSTER, tables),
        refcount_table: (1 << 50, 1),
        ..Shape::default()
    };
    let mut file = image(&shape);
    file.words(CLUSTER, (1..=tables).map(|n| n << 24));
    for n in 1..=tables {
        file.words(n << 24, (0..8192u64).map(|m| ((n * 8192 + m) << 30) | 1 << 50));
    }
    file.words(1 << 50, [0; 8192]);
    file.length = (1 << 63) - 1;
    let (report, bytes, _) = judge(file);
    assert!(
        matches!(report, Err(Error::Limit { limit: "maxMemory", .. })),
        "{report:?}"
    );
    assert!(bytes < 40 << 20, "{bytes} bytes");
}

/// A refcount table of 8 MiB, every entry of which names the same block.
fn one_block(counts: impl Fn(u64) -> u64) -> Sparse {
    let shape = Shape {
        l1: (CLUSTER, 1),
        refcount_table: (1 << 30, 128),
        ..Shape::default()
    };
    let mut file = image(&shape);
    file.words(CLUSTER, [0]);
    let block = 1 << 31;
    file.words(1 << 30, std::iter::repeat_n(block, 1 << 20));
    file.words(block, (0..8192).map(counts));
    file.length = 1 << 62;
    file
}

#[test]
fn a_block_that_every_entry_of_the_refcount_table_names_is_not_read_for_each() {
    for (name, counts, each) in [
        ("all ones", (|_| 0x0001_0001_0001_0001) as fn(u64) -> u64, 32768),
        ("nothing", |_| 0, 0),
        ("one", |n| u64::from(n == 8191), 1),
    ] {
        let (report, bytes, _) = judge(one_block(counts));
        let report = report.unwrap();
        assert!(bytes < 300 << 20, "{name}: {bytes} bytes");
        let blocks: u64 = (1 << 62) / (32768 * CLUSTER);
        let leaks = blocks.min(1 << 20) * each;
        // But for the few clusters that are in use.
        assert!(
            report.leaks <= leaks && report.leaks + 200 >= leaks,
            "{name}: {}",
            report.leaks
        );
        let named = |finding: &&qcow2_engine::Finding| finding.code == FindingCode::RefcountBlockReferences;
        assert!(report.findings.iter().filter(named).count() > 9000);
        assert!(report.image_end_offset > 1 << 50 || each == 0, "{name}");
    }
}

/// As many snapshots as there can be, whose L1 tables of 32 MiB begin `step` bytes apart.
fn snapshots_over_each_other(step: u64) -> (Sparse, u64) {
    let count = 65_536;
    let shape = Shape {
        l1: (CLUSTER, 1),
        refcount_table: (1 << 40, 1),
        snapshots: (1 << 41, count),
    };
    let mut file = image(&shape);
    file.words(CLUSTER, [0]);
    file.words(1 << 40, [0; 8192]);
    let (l1, l2) = (1u64 << 42, 1 << 50);
    let entries: Vec<u8> = (0..count)
        .flat_map(|n| {
            let mut entry = (l1 + n * step).to_be_bytes().to_vec();
            entry.extend((MOST_L1_ENTRIES as u32).to_be_bytes());
            entry.extend([0, 0, 0, 0]);
            entry.extend([0; 20]);
            entry.extend(16u32.to_be_bytes());
            entry.extend([0; 16]);
            entry
        })
        .collect();
    file.put(1 << 41, entries);
    file.words(l1, std::iter::repeat_n(l2, MOST_L1_ENTRIES as usize));
    file.words(l2, [0x80; 8192]);
    file.length = 1 << 62;
    (file, count)
}

#[test]
fn snapshots_that_share_one_tree_are_walked_once_and_counted_each() {
    let (file, count) = snapshots_over_each_other(0);
    let (report, bytes, _) = judge(file);
    let report = report.unwrap();
    let findings = count * MOST_L1_ENTRIES * 8192;
    // The L2 table and each cluster of the L1 table have more references than can be counted, too.
    assert!(report.corruptions > findings && report.corruptions < findings + count * MOST_L1_ENTRIES + (1 << 20));
    assert!(bytes < 60 << 20, "{bytes} bytes");
}

#[test]
fn snapshots_whose_tables_are_shifted_against_each_other_are_no_worse() {
    let (file, _) = snapshots_over_each_other(CLUSTER);
    let (report, bytes, calls) = judge(file);
    let report = report.unwrap();
    // Entry n of the table that has any is in the tables of the snapshots up to n / 8192.
    let named: u64 = (0..MOST_L1_ENTRIES / 8192).map(|n| (n + 1) * 8192).sum();
    assert!(report.corruptions >= named * 8192);
    assert!(bytes < 80 << 20 && calls < 10_000, "{bytes} bytes, {calls} calls");
}

fn small() -> Sparse {
    let shape = Shape {
        l1: (CLUSTER, 512),
        refcount_table: (2 * CLUSTER, 1),
        ..Shape::default()
    };
    let mut file = image(&shape);
    file.words(CLUSTER, (0..512u64).map(|n| (1 << 63) | ((4 + n) * CLUSTER)));
    file.words(2 * CLUSTER, [3 * CLUSTER]);
    let used = 4 + 512u64;
    let counts: Vec<u8> = (0..32768u64).flat_map(|n| u16::from(n < used).to_be_bytes()).collect();
    file.put(3 * CLUSTER, counts);
    for n in 0..512 {
        file.words((4 + n) * CLUSTER, [0; 8192]);
    }
    file
}

#[test]
fn progress_rises_to_its_total() {
    let layer = Layer::open_qcow2(Arc::new(small()), &LayerOptions::default()).unwrap();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let listener = reports.clone();
    let context = JobContext {
        cancel: CancelToken::new(),
        progress: Progress::new(move |report| listener.lock().unwrap().push(report)),
    };
    let report = check(&layer, &CheckOptions::default(), &context).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0));
    let reports = reports.lock().unwrap();
    assert!(
        reports
            .windows(2)
            .all(|pair| pair[0].done <= pair[1].done && pair[0].total == pair[1].total)
    );
    let last = reports.last().unwrap();
    assert_eq!((last.phase, last.done), ("check", last.total));
    assert_eq!(last.total, (512 + 1) * CLUSTER);
}

#[test]
fn a_cancelled_check_says_so_and_reads_no_further() {
    let file = Arc::new(small());
    let layer = Layer::open_qcow2(file.clone(), &LayerOptions::default()).unwrap();
    let before = file.bytes.load(Ordering::Relaxed);
    let cancel = CancelToken::new();
    let pressed = cancel.clone();
    let context = JobContext {
        cancel,
        progress: Progress::new(move |_| pressed.cancel()),
    };
    let outcome = check(&layer, &CheckOptions::default(), &context);
    assert!(matches!(outcome, Err(Error::Cancelled)));
    assert!(file.bytes.load(Ordering::Relaxed) - before < 1 << 20);
}

/// `QCOW2_IMAGE=… cargo test --profile fast --test check_bounds -- --ignored --nocapture` times a check beside qemu-img's.
#[test]
#[ignore = "a measurement"]
fn time_of_a_check() {
    let path = std::path::PathBuf::from(std::env::var("QCOW2_IMAGE").unwrap());
    for _ in 0..3 {
        let storage = qcow2_engine::FileStorage::open(&path, Default::default()).unwrap();
        let layer = Layer::open_qcow2(Arc::new(storage), &LayerOptions::default()).unwrap();
        let begin = std::time::Instant::now();
        let report = check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap();
        let ours = begin.elapsed();
        let begin = std::time::Instant::now();
        let theirs = std::process::Command::new("qemu-img")
            .arg("check")
            .arg(&path)
            .output()
            .unwrap();
        println!(
            "ours {ours:?}, qemu-img {:?}: {} of {} clusters\n{}",
            begin.elapsed(),
            report.allocated_clusters,
            report.total_clusters,
            String::from_utf8_lossy(&theirs.stdout)
        );
    }
}
