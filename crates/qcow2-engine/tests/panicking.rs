//! A panic at every call that reaches the storage, in turn, in the middle of everything that a disk can do. What was being changed is not written any
//! more, reads go on and nobody waits for ever; what is on disk is consistent, and each sector is one that was there since the last flush.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "tests may stop at the first surprise"
)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use qcow2_engine::storage::testing::FailingStorage;
use qcow2_engine::{
    Chain, ChainOptions, Disk, DiskOptions, Error, Layer, LayerOptions, MemoryStorage, NewBitmap, NewSnapshot,
    ResizeOptions, SnapshotChoice, Storage, guard,
};
use qcow2_format::GuestOffset;
use support::dirty::our_check;
use support::{Folder, qemu_img, qemu_io};

const SIZE: usize = 1 << 20;
const SECTOR: usize = 512;

fn open(storage: Arc<dyn Storage>) -> Result<Disk, Error> {
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    Disk::open(vec![Layer::open_qcow2(storage, &options)?], DiskOptions::default())
}

/// The first byte of each sector that the disk may hold: what it holds for certain, and what was written since.
struct Model {
    now: Vec<u8>,
    allowed: Vec<BTreeSet<u8>>,
    snapshot: Vec<u8>,
}

impl Model {
    fn put(&mut self, begin: usize, length: usize, value: u8) {
        for sector in begin / SECTOR..(begin + length) / SECTOR {
            self.now[sector] = value;
            self.allowed[sector].insert(value);
        }
    }

    /// It may be so from now on.
    fn may_be(&mut self, sectors: Vec<u8>) {
        self.allowed
            .resize(sectors.len().max(self.allowed.len()), BTreeSet::from([0]));
        for (allowed, value) in self.allowed.iter_mut().zip(&sectors) {
            allowed.insert(*value);
        }
        self.now = sectors;
    }

    fn durable(&mut self) {
        self.allowed = self.now.iter().map(|value| BTreeSet::from([*value])).collect();
    }

    fn judge(&self, bytes: &[u8], about: &str) {
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "{about}: sector {index} is torn"
            );
            let allowed = &self.allowed[index];
            assert!(
                allowed.contains(&sector[0]),
                "{about}: sector {index} holds {} of {allowed:?}",
                sector[0]
            );
        }
    }
}

type Step = (&'static str, fn(&Disk, &mut Model) -> Result<(), Error>);

fn write(disk: &Disk, model: &mut Model, begin: usize, length: usize, value: u8) -> Result<(), Error> {
    model.put(begin, length, value);
    disk.write(GuestOffset(begin as u64), &vec![value; length])
}

const ONE: fn() -> SnapshotChoice = || SnapshotChoice::Name("one".to_owned());

/// Everything that changes a disk. What a flush made durable is told behind it.
const STEPS: [Step; 13] = [
    ("write", |disk, model| write(disk, model, 512, 40_960, 11)),
    ("write elsewhere", |disk, model| {
        write(disk, model, 700 << 10, 100 << 10, 12)
    }),
    ("flush", |disk, model| disk.flush().map(|()| model.durable())),
    ("snapshot", |disk, model| {
        model.snapshot = model.now.clone();
        let name = "one".to_owned();
        let new = NewSnapshot {
            name,
            ..NewSnapshot::default()
        };
        disk.snapshot_create(new).map(|_| model.durable())
    }),
    ("bitmap", |disk, _| {
        disk.bitmap_add(NewBitmap {
            name: "bits".to_owned(),
            granularity: None,
            enabled: true,
        })
        .map(|_| ())
    }),
    ("write over", |disk, model| write(disk, model, 1024, 8192, 13)),
    ("zeroes", |disk, model| {
        model.put(704 << 10, 50 << 10, 0);
        disk.write_zeroes(GuestOffset(704 << 10), 50 << 10, true)
    }),
    ("discard", |disk, model| {
        model.put(16384, 16384, 0);
        disk.discard(GuestOffset(16384), 16384)
    }),
    ("grow", |disk, model| {
        let mut larger = model.now.clone();
        larger.resize(2 * SIZE / SECTOR, 0);
        model.may_be(larger);
        disk.resize(2 * SIZE as u64, ResizeOptions::default())
            .map(|()| model.durable())
    }),
    ("apply", |disk, model| {
        model.may_be(model.snapshot.clone());
        disk.snapshot_apply(&ONE()).map(|()| model.durable())
    }),
    ("delete", |disk, model| {
        disk.snapshot_delete(&ONE()).map(|()| model.durable())
    }),
    ("write at last", |disk, model| write(disk, model, 0, 4096, 14)),
    ("close", |disk, model| disk.close().map(|()| model.durable())),
];

/// Runs all steps over a storage that panics at call `at`. Answers with the step that it met; none, if there were fewer calls.
fn run(image: &[u8], sectors: &[u8], at: u64) -> Option<&'static str> {
    let memory = Arc::new(MemoryStorage::new(image.to_vec()));
    let storage = Arc::new(FailingStorage::panicking(memory.clone(), at));
    let mut model = Model {
        now: sectors.to_vec(),
        allowed: sectors.iter().map(|value| BTreeSet::from([*value])).collect(),
        snapshot: Vec::new(),
    };
    let met = match guard(|| open(storage.clone())) {
        Ok(disk) => STEPS.iter().find_map(|(name, step)| {
            let outcome = guard(|| step(&disk, &mut model));
            let about = format!("{name} at call {at}");
            match outcome {
                Ok(()) => None,
                Err(Error::Internal { .. }) => {
                    refuses_changes(&disk, &about);
                    still_reads(&disk, &model, &about);
                    Some(*name)
                }
                Err(error) => panic!("{about}: {error}"),
            }
        }),
        Err(Error::Internal { .. }) => Some("open"),
        Err(error) => panic!("open at call {at}: {error}"),
    };
    let name = met?;
    let about = format!("{name} at call {at}, opened again");
    let disk = open(memory.clone()).unwrap_or_else(|error| panic!("{about}: {error}"));
    disk.close().unwrap();
    drop(disk);
    let report = our_check(memory.clone());
    assert_eq!(
        (report.corruptions, report.check_errors),
        (0, 0),
        "{about}: {:#?}",
        report.findings
    );
    let layer = Layer::open_qcow2(memory, &LayerOptions::default()).unwrap();
    model.judge(
        &support::read_all(&Chain::new(vec![layer], ChainOptions::default()).unwrap()),
        &about,
    );
    Some(name)
}

/// As the boundary does it: a panic poisons, and from then on nothing is changed, whatever is asked.
fn refuses_changes(disk: &Disk, about: &str) {
    disk.poison();
    let code = |outcome: Result<(), Error>| outcome.err().map(|error| error.code());
    let closing = about.starts_with("close");
    let poisoned = Some(
        if closing {
            "ERR_QCOW2_CLOSED"
        } else {
            "ERR_QCOW2_POISONED"
        }
        .to_owned(),
    );
    assert_eq!(code(disk.write(GuestOffset(0), &[1; 512])), poisoned, "{about}");
    assert_eq!(code(disk.flush()), poisoned, "{about}");
    assert_eq!(code(disk.snapshot_delete(&ONE())), poisoned, "{about}");
    assert_eq!(code(disk.close()), poisoned.filter(|_| !closing), "{about}");
}

/// What a step left half done keeps no reader waiting.
fn still_reads(disk: &Disk, model: &Model, about: &str) {
    let chain = Arc::clone(disk.chain());
    let size = chain.virtual_size() as usize;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = vec![0; size];
        let outcome = guard(|| chain.read(GuestOffset(0), &mut bytes)).map(|_| bytes);
        let _ = tell.send(outcome);
    });
    let outcome = told
        .recv_timeout(std::time::Duration::from_secs(30))
        .unwrap_or_else(|_| panic!("{about}: a read waits for ever"));
    match outcome {
        Ok(bytes) => model.judge(&bytes, about),
        Err(error) => panic!("{about}: a read fails: {error}"),
    }
}

#[test]
fn a_panic_at_any_call_of_the_storage_is_contained() {
    for options in [
        "cluster_size=4096",
        "cluster_size=512,lazy_refcounts=on",
        "cluster_size=16384,extended_l2=on",
    ] {
        let folder = Folder::new();
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "1M"],
        );
        let commands = ["write -P 1 0 200k", "write -P 2 600k 200k"].map(str::to_owned);
        qemu_io(&folder, "a.qcow2", &commands);
        let image = std::fs::read(folder.path("a.qcow2")).unwrap();
        let mut sectors = vec![0; SIZE / SECTOR];
        sectors[..400].fill(1);
        sectors[1200..1600].fill(2);
        let mut met = BTreeSet::new();
        let mut at = 0;
        while let Some(name) = run(&image, &sectors, at) {
            met.insert(name);
            at += 1;
        }
        assert!(at > 60, "{options}: only {at} calls");
        // The bitmap alone needs none: it is stored when the disk is closed.
        let all: BTreeSet<_> = STEPS.iter().map(|(name, _)| *name).chain(["open"]).collect();
        let without: Vec<_> = all.difference(&met).collect();
        assert!(without.len() <= 2, "{options}: no panic in {without:?}");
    }
}
