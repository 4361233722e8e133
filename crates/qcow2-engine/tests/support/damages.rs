//! Images that qemu made, damage that takes no byte of the guest, and a look at what a repair makes of it.

use std::sync::Arc;

use qcow2_engine::{
    Chain, ChainOptions, Error, JobContext, Layer, LayerOptions, MemoryStorage, RepairMode, RepairOptions,
    RepairReport, Storage, repair,
};
use qcow2_format::GuestOffset;

use super::{Folder, Random, qemu_img, qemu_io};

/// An image that qemu made, and what it holds.
pub struct Sample {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub cluster: usize,
    pub refcount_bits: usize,
    pub step: usize,
    /// The data file, if it has one.
    pub data: Option<Vec<u8>>,
}

pub const SHAPES: &[(&str, &str, &[&str])] = &[
    ("plain", "cluster_size=64k", &[]),
    ("snapshots", "cluster_size=4k", &["snapshots"]),
    (
        "small clusters",
        "cluster_size=512",
        &["snapshots", "compressed", "bitmap"],
    ),
    ("one bit", "cluster_size=512,refcount_bits=1", &[]),
    ("two bits", "cluster_size=1k,refcount_bits=2", &["snapshots", "bitmap"]),
    ("four bits", "cluster_size=4k,refcount_bits=4", &["compressed"]),
    (
        "eight bits",
        "cluster_size=4k,refcount_bits=8",
        &["compressed", "snapshots"],
    ),
    ("32 bits", "cluster_size=1k,refcount_bits=32", &["snapshots"]),
    (
        "64 bits",
        "cluster_size=512,refcount_bits=64",
        &["snapshots", "compressed"],
    ),
    ("large clusters", "cluster_size=2M", &["snapshots"]),
    ("version 2", "compat=0.10,cluster_size=4k", &["snapshots", "compressed"]),
    (
        "subclusters",
        "cluster_size=16k,extended_l2=on",
        &["snapshots", "bitmap"],
    ),
    ("lazy", "cluster_size=4k,lazy_refcounts=on", &["snapshots"]),
    ("data file", "cluster_size=4k,data_file=d.raw", &["bitmap"]),
];

impl Sample {
    pub fn new(name: &'static str, options: &str, contents: &[&str]) -> Self {
        let folder = Folder::new();
        let has = |what| contents.contains(&what);
        qemu_img(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "2M"],
        );
        let io = |commands: &[&str]| {
            qemu_io(
                &folder,
                "a.qcow2",
                &commands.iter().map(|c| (*c).into()).collect::<Vec<_>>(),
            )
        };
        if has("bitmap") {
            qemu_img(&folder, &["bitmap", "--add", "-g", "4096", "a.qcow2", "b"]);
        }
        io(&["write -P 1 0 300k", "write -P 2 700k 1k", "write -z 400k 64k"]);
        if has("compressed") {
            io(&[
                "write -c -P 9 1M 4k",
                "write -c -P 10 1028k 4k",
                "write -c -P 11 1032k 64k",
            ]);
        }
        if has("snapshots") {
            qemu_img(&folder, &["snapshot", "-c", "one", "a.qcow2"]);
            io(&["write -P 3 100k 30k"]);
            qemu_img(&folder, &["snapshot", "-c", "two", "a.qcow2"]);
            io(&["write -P 4 900k 9k", "write -P 5 0 512"]);
        }
        let bytes = std::fs::read(folder.path("a.qcow2")).unwrap();
        let bits = u32::from_be_bytes(bytes[20..24].try_into().unwrap());
        let version2 = bytes[7] == 2;
        Self {
            name,
            cluster: 1 << bits,
            refcount_bits: if version2 { 16 } else { 1 << bytes[99] },
            step: if !version2 && bytes[79] & 16 != 0 { 16 } else { 8 },
            data: std::fs::read(folder.path("d.raw")).ok(),
            bytes,
        }
    }

    pub fn all() -> impl Iterator<Item = Self> {
        SHAPES
            .iter()
            .map(|(name, options, contents)| Self::new(name, options, contents))
    }

    pub fn word(&self, at: usize) -> usize {
        word(&self.bytes, at)
    }

    /// Offsets of the refcount blocks.
    pub fn blocks(&self) -> Vec<usize> {
        let table = self.word(48);
        let clusters = u32::from_be_bytes(self.bytes[56..60].try_into().unwrap()) as usize;
        let entries = (table..table + clusters * self.cluster).step_by(8);
        entries.map(|at| self.word(at)).filter(|block| *block != 0).collect()
    }

    /// Offsets of the entries of the active L1 table, and of those of its L2 tables, that name something.
    pub fn entries(&self) -> Vec<usize> {
        let (l1, count) = (
            self.word(40),
            u32::from_be_bytes(self.bytes[36..40].try_into().unwrap()),
        );
        let named = |at: &usize| self.word(*at) & 0x00ff_ffff_ffff_fe00 != 0 && self.word(*at) & (1 << 62) == 0;
        let mut entries: Vec<usize> = (0..count as usize).map(|n| l1 + n * 8).filter(named).collect();
        for l1 in entries.clone() {
            let table = self.word(l1) & 0x00ff_ffff_ffff_fe00;
            entries.extend((table..table + self.cluster).step_by(self.step).filter(named));
        }
        entries
    }
}

pub fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

pub fn put(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 8].copy_from_slice(&(value as u64).to_be_bytes());
}

/// A way to damage an image.
pub type Damage = (&'static str, fn(&Sample, &mut Vec<u8>, &mut Random));

pub const DAMAGES: &[Damage] = &[
    ("no refcounts", |sample, bytes, _| {
        for block in sample.blocks() {
            bytes[block..block + sample.cluster].fill(0);
        }
    }),
    ("wild refcounts", |sample, bytes, random| {
        for block in sample.blocks() {
            let used = 64.min(sample.cluster);
            for _ in 0..9 {
                bytes[block + random.below(used as u64) as usize] = random.next() as u8;
            }
        }
    }),
    ("leaks", |sample, bytes, _| {
        for block in sample.blocks() {
            let end = block + sample.cluster;
            let begin = bytes[block..end].iter().rposition(|byte| *byte != 0).unwrap() + block + 1;
            // Whole refcounts, each one.
            let width = (sample.refcount_bits / 8).max(1);
            let mut at = begin.next_multiple_of(8);
            while at + width <= end && at < begin + 100 {
                bytes[at + width - 1] = 1;
                at += width;
            }
        }
    }),
    ("wrong flags", |sample, bytes, random| {
        for at in sample.entries() {
            if random.below(3) == 0 {
                bytes[at] ^= 0x80;
            }
        }
    }),
    ("empty refcount table", |sample, bytes, _| {
        let table = sample.word(48);
        bytes[table..table + sample.cluster].fill(0);
    }),
    ("refcount table nowhere", |sample, bytes, _| {
        put(bytes, 48, 1 << 40 & !(sample.cluster - 1));
    }),
    ("no refcount table", |_, bytes, _| bytes[56..60].fill(0)),
    ("refcount table over the L1 table", |sample, bytes, _| {
        put(bytes, 48, sample.word(40))
    }),
    ("a block over data", |sample, bytes, _| {
        let data = sample.word(*sample.entries().last().unwrap()) & 0x00ff_ffff_ffff_fe00;
        put(bytes, sample.word(48), data);
    }),
    ("a block over the header", |sample, bytes, _| {
        put(bytes, sample.word(48), 0);
        put(bytes, sample.word(48), sample.cluster / 512 * 512);
    }),
    ("an unaligned block", |sample, bytes, _| {
        let block = sample.word(sample.word(48));
        put(bytes, sample.word(48), block + 512);
    }),
    ("a block beyond the end", |sample, bytes, _| {
        put(bytes, sample.word(48), 1 << 40)
    }),
    ("reserved bits of a refcount table entry", |sample, bytes, _| {
        let block = sample.word(sample.word(48));
        put(bytes, sample.word(48), block | 4);
    }),
    ("one block twice", |sample, bytes, _| {
        let block = sample.word(sample.word(48));
        put(bytes, sample.word(48) + 8, block);
    }),
    ("marked dirty", |sample, bytes, random| {
        if bytes[7] == 3 {
            bytes[79] |= 1;
        }
        for block in sample.blocks() {
            bytes[block + random.below(8) as usize] = 0;
        }
    }),
    ("snapshots with too much extra data", |sample, bytes, _| {
        snapshot_table(sample, bytes, |extra| extra.resize(1300, 7));
    }),
    ("snapshots that lack their size", |sample, bytes, _| {
        if bytes[7] == 3 {
            snapshot_table(sample, bytes, |extra| extra.truncate(8));
        }
    }),
    ("clusters of zeros at places that are none", |sample, bytes, _| {
        let (entries, size) = (sample.entries(), sample.cluster);
        // With clusters of 512 bytes every place is one.
        if bytes[7] == 3 && sample.step == 8 && sample.data.is_none() && size > 512 {
            let table = entries.last().unwrap() / size * size;
            let free = |at: &usize| sample.word(*at) == 0;
            // With bits beside the offset that mean nothing, or what they should not.
            let beside = [0, 0x14, 1 << 63, 1 << 63 | 8];
            for (at, bits) in (table..table + size).step_by(8).filter(free).zip(beside) {
                put(bytes, at, (size * 5 + 512) | bits | 1);
            }
        }
    }),
    ("marked corrupt", |_, bytes, _| {
        if bytes[7] == 3 {
            bytes[79] |= 2;
        }
    }),
];

/// Writes the snapshot table again with other extra data, if there is one and room for it.
pub fn snapshot_table(sample: &Sample, bytes: &mut [u8], change: fn(&mut Vec<u8>)) {
    let (begin, count) = (
        sample.word(64),
        u32::from_be_bytes(sample.bytes[60..64].try_into().unwrap()),
    );
    let (mut at, mut table) = (begin, Vec::new());
    for _ in 0..count {
        let half = |place: usize| u16::from_be_bytes(sample.bytes[place..place + 2].try_into().unwrap()) as usize;
        let extra = u32::from_be_bytes(sample.bytes[at + 36..at + 40].try_into().unwrap()) as usize;
        let (names, end) = (at + 40 + extra, at + 40 + extra + half(at + 12) + half(at + 14));
        let mut kept = sample.bytes[at + 40..names].to_vec();
        change(&mut kept);
        table.extend_from_slice(&sample.bytes[at..at + 36]);
        table.extend_from_slice(&(kept.len() as u32).to_be_bytes());
        table.extend_from_slice(&kept);
        table.extend_from_slice(&sample.bytes[names..end]);
        table.resize(table.len().next_multiple_of(8), 0);
        at = end.next_multiple_of(8);
    }
    if table.len() <= sample.cluster {
        bytes[begin..begin + table.len()].copy_from_slice(&table);
    }
}

pub fn mend(storage: &Arc<dyn Storage>, mode: RepairMode) -> Result<RepairReport, Error> {
    repair(storage, None, RepairOptions::new(mode), &JobContext::quiet())
}

pub fn mended(bytes: &[u8]) -> (Vec<u8>, RepairReport) {
    let memory = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let report = mend(&(memory.clone() as Arc<dyn Storage>), RepairMode::All).unwrap();
    (memory.to_vec(), report)
}

/// What the disk and its snapshots hold. Locks are of no interest here, nor are marks.
pub fn contents(sample: &Sample, bytes: &[u8]) -> Vec<Vec<u8>> {
    let open = || {
        let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
        let mut layer = Layer::open_qcow2(storage, &LayerOptions::default()).unwrap();
        if let Some(data) = &sample.data {
            layer.set_data_file(Arc::new(MemoryStorage::new(data.clone()))).unwrap();
        }
        layer
    };
    let names: Vec<String> = open()
        .snapshots()
        .iter()
        .map(|snapshot| String::from_utf8(snapshot.id.clone()).unwrap())
        .collect();
    let mut all = Vec::new();
    for name in [None].into_iter().chain(names.into_iter().map(Some)) {
        let options = ChainOptions {
            snapshot: name,
            ..ChainOptions::default()
        };
        let chain = Chain::new(vec![open()], options).unwrap();
        let mut disk = vec![0xaa; chain.virtual_size() as usize];
        chain.read(GuestOffset(0), &mut disk).unwrap();
        all.push(disk);
    }
    all
}

/// Exit code and text of `qemu-img check`.
pub fn qemu_check(sample: &Sample, bytes: &[u8], repair: Option<&str>) -> (i32, String, Vec<u8>) {
    let folder = Folder::new();
    std::fs::write(folder.path("a.qcow2"), bytes).unwrap();
    if let Some(data) = &sample.data {
        std::fs::write(folder.path("d.raw"), data).unwrap();
    }
    let mut command = std::process::Command::new("qemu-img");
    command
        .args(["check", "-q", "-f", "qcow2"])
        .current_dir(folder.path("."));
    if let Some(mode) = repair {
        command.args(["-r", mode]);
    }
    let output = command.arg("a.qcow2").output().expect("these tests need qemu-img 10");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // A file that qemu-img made enormous is of no use.
    let path = folder.path("a.qcow2");
    let small = std::fs::metadata(&path).unwrap().len() < 256 << 20;
    let after = if small {
        std::fs::read(&path).unwrap()
    } else {
        Vec::new()
    };
    (output.status.code().unwrap(), text, after)
}

#[track_caller]
pub fn assert_sound(sample: &Sample, bytes: &[u8], what: &str) {
    let (code, text, _) = qemu_check(sample, bytes, None);
    assert_eq!((code, text.as_str()), (0, ""), "{what}");
    if bytes[7] == 3 {
        assert_eq!(bytes[79] & 3, 0, "{what}: marks");
    }
}
