//! `check` counts what qemu-img counts: on images of every kind, and on the same images with damaged metadata.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use qcow2_engine::storage::{MemoryStorage, Storage};
use qcow2_engine::{CheckOptions, CheckReport, FindingCode, JobContext, Layer, LayerOptions, check};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("qcow2-check-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn run(&self, program: &str, words: &[&str]) -> String {
        let output = Command::new(program).current_dir(&self.0).args(words).output();
        let output =
            output.unwrap_or_else(|error| panic!("these tests need qemu-img and qemu-io 10: {program}: {error}"));
        assert!(
            output.status.success(),
            "{program} {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The counters of qemu-img's JSON, in our order. `None`: qemu-img would not open the image at all.
fn qemu_counts(path: &Path) -> Option<[u64; 8]> {
    // QEMU 10.0 looks for a relative data file in the current folder.
    let mut command = Command::new("qemu-img");
    command
        .current_dir(path.parent().unwrap())
        .args(["check", "--output=json"]);
    if path.ends_with("luks") {
        let options = format!("driver=qcow2,file.filename={},encrypt.key-secret=s", path.display());
        command.args(["--object", "secret,id=s,data=key", "--image-opts", &options]);
    } else {
        command.args(["-f", "qcow2"]).arg(path);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |key: &str| {
        let at = text.find(&format!("\"{key}\": "))?;
        let digits = text[at + key.len() + 4..].trim_start_matches(' ');
        digits[..digits.find(|c: char| !c.is_ascii_digit())?].parse().ok()
    };
    number("check-errors")?;
    let keys = [
        "check-errors",
        "corruptions",
        "leaks",
        "image-end-offset",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
    ];
    Some(keys.map(|key| number(key).unwrap_or(0)))
}

fn ours(bytes: Vec<u8>) -> Result<CheckReport, qcow2_engine::Error> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes));
    let options = LayerOptions {
        for_check: true,
        metadata_only: true,
        ..LayerOptions::default()
    };
    check(
        &Layer::open_qcow2(storage, &options)?,
        &CheckOptions::default(),
        &JobContext::quiet(),
    )
}

fn counts(report: &CheckReport) -> [u64; 8] {
    [
        report.check_errors,
        report.corruptions,
        report.leaks,
        report.image_end_offset,
        report.total_clusters,
        report.allocated_clusters,
        report.fragmented_clusters,
        report.compressed_clusters,
    ]
}

/// Small images of many kinds, each with some data. Made once for the tests that run at a time.
struct Images {
    folder: Folder,
    paths: Vec<PathBuf>,
}

impl Images {
    fn shared() -> Arc<Self> {
        static MADE: Mutex<Weak<Images>> = Mutex::new(Weak::new());
        let mut made = MADE.lock().unwrap();
        made.upgrade().unwrap_or_else(|| {
            let folder = Folder::new("images");
            let images = Arc::new(Self {
                paths: make(&folder),
                folder,
            });
            *made = Arc::downgrade(&images);
            images
        })
    }

    /// Those small enough to be damaged over and over.
    fn small(&self) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        self.paths
            .iter()
            .map(move |path| (name(path), std::fs::read(path).unwrap()))
            .filter(|(_, bytes)| bytes.len() < 16 << 20)
    }
}

fn make(folder: &Folder) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let kinds = [
        ("plain", "cluster_size=65536"),
        ("v2", "compat=0.10,cluster_size=4096"),
        ("c512", "cluster_size=512"),
        ("c2m", "cluster_size=2M"),
        ("r1", "refcount_bits=1,cluster_size=4096"),
        ("r2", "refcount_bits=2,cluster_size=1024"),
        ("r8", "refcount_bits=8,cluster_size=4096"),
        ("r64", "refcount_bits=64,cluster_size=4096"),
        ("ext", "extended_l2=on,cluster_size=16384"),
        ("zstd", "compression_type=zstd,cluster_size=4096"),
        ("lazy", "lazy_refcounts=on,cluster_size=4096"),
        ("meta", "preallocation=metadata,cluster_size=4096"),
        ("data", "data_file=data.raw,cluster_size=4096"),
    ];
    for (name, options) in kinds {
        folder.run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "5M"]);
        let compressed = if matches!(name, "data" | "r8") {
            "write -P 5 0 4k"
        } else {
            "write -c -P 5 2M 2M"
        };
        let commands = [
            "write -P 1 0 70k",
            "write -P 2 1M 3k",
            "write -z 1536k 64k",
            "write -P 3 4M 20k",
            compressed,
        ];
        let commands: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        if name != "meta" {
            folder.run("qemu-io", &[&["-f", "qcow2"], commands.as_slice(), &[name]].concat());
        }
        if !matches!(name, "r1" | "r2" | "data") {
            folder.run("qemu-img", &["snapshot", "-c", "one", name]);
            folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 5k", name]);
            if name != "v2" {
                folder.run("qemu-img", &["snapshot", "-c", "two", name]);
                folder.run("qemu-img", &["bitmap", "--add", "-g", "4096", name, "b"]);
                folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 5k", name]);
            }
        }
        paths.push(folder.0.join(name));
    }
    let secret = "secret,id=s,data=key";
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    folder.run(
        "qemu-img",
        &[
            "create", "-q", "-f", "qcow2", "--object", secret, "-o", luks, "luks", "1M",
        ],
    );
    paths.push(folder.0.join("luks"));
    paths
}

#[test]
fn sound_images_have_qemu_imgs_counts_and_no_finding() {
    for path in &Images::shared().paths {
        let report = ours(std::fs::read(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.display();
        assert_eq!(
            Some(counts(&report)),
            qemu_counts(path),
            "{name}: {:#?}",
            report.findings
        );
        assert_eq!(report.findings, [], "{name}");
    }
}

/// Findings that qemu-img does not count: the image is worse than it says.
fn stricter(code: FindingCode) -> bool {
    matches!(
        code,
        FindingCode::Truncated
            | FindingCode::DataFileOffset
            | FindingCode::ZeroFlagInV2
            | FindingCode::CopiedWithoutOffset
            | FindingCode::OffsetTooLarge
            | FindingCode::ZeroFlagWithSubclusters
            | FindingCode::SnapshotTable
            | FindingCode::SnapshotExtra
            | FindingCode::SnapshotsOverhanging
            | FindingCode::BitmapDirectory
    )
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Compares the counts of qemu-img with ours, for bytes that it may not open at all.
struct Judges {
    scratch: PathBuf,
    compared: u32,
    stricter: u32,
    failures: Vec<String>,
}

impl Judges {
    fn new(folder: &Folder, scratch: &str) -> Self {
        Self {
            scratch: folder.0.join(scratch),
            compared: 0,
            stricter: 0,
            failures: Vec::new(),
        }
    }

    fn judge(&mut self, bytes: Vec<u8>, label: &str) {
        std::fs::write(&self.scratch, &bytes).unwrap();
        let (Some(theirs), Ok(report)) = (qemu_counts(&self.scratch), ours(bytes)) else {
            return;
        };
        self.compared += 1;
        let differs = if report.findings.iter().any(|finding| stricter(finding.code)) {
            self.stricter += 1;
            report.corruptions == 0
        } else {
            counts(&report) != theirs
        };
        if differs {
            let findings: Vec<String> = report.findings.iter().map(qcow2_engine::Finding::message).collect();
            self.failures.push(format!(
                "{label}\n  ours {:?}, qemu-img's {theirs:?}\n  {}",
                counts(&report),
                findings.join("\n  ")
            ));
        }
    }

    fn finish(&self, at_least: u32) {
        assert!(
            self.failures.is_empty(),
            "{} differ:\n{}",
            self.failures.len(),
            self.failures.join("\n")
        );
        assert!(self.compared > at_least, "only {} compared", self.compared);
    }
}

#[test]
fn a_flipped_bit_in_metadata_has_qemu_imgs_counts_unless_ours_sees_more() {
    let images = Images::shared();
    let (seed, cases) = (number("QCOW2_SEED").unwrap_or(1), number("QCOW2_CASES").unwrap_or(6));
    let mut random = Random(seed);
    let mut judges = Judges::new(&images.folder, "flipped");
    for (name, sound) in images.small() {
        let places = metadata(&sound);
        for _ in 0..cases {
            let mut bytes = sound.clone();
            let at = places[random.below(places.len() as u64) as usize];
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            let label = format!("seed {seed}, image {name}, byte {at:#x}, bit {bit}");
            judges.judge(bytes, &label);
        }
    }
    judges.finish(40);
    assert!(
        judges.stricter < judges.compared / 3,
        "{} of {} stricter",
        judges.stricter,
        judges.compared
    );
}

#[test]
fn damaged_tables_have_qemu_imgs_counts_unless_ours_sees_more() {
    let images = Images::shared();
    let (seed, cases) = (number("QCOW2_SEED").unwrap_or(1), number("QCOW2_CASES").unwrap_or(12));
    let mut random = Random(seed ^ 0x5555);
    let mut judges = Judges::new(&images.folder, "damaged");
    for (name, sound) in images.small() {
        let anatomy = Anatomy::of(&sound);
        for _ in 0..cases {
            let mut bytes = sound.clone();
            let mut label = format!("seed {seed}, image {name}");
            for _ in 0..1 + random.below(3) {
                let damage = anatomy.damage(&mut random, &bytes);
                label.push_str(&format!(", {damage:x?}"));
                let (_, at, _, word) = damage;
                bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
            }
            judges.judge(bytes, &label);
        }
    }
    judges.finish(40);
}

/// Where the words of an image's tables stand, and the offsets that are worth pointing them at.
struct Anatomy {
    /// Table by table: its name, and where each of its words that are in use stands, with a few that are not.
    tables: Vec<(&'static str, Vec<usize>)>,
    targets: Vec<u64>,
    cluster: u64,
}

impl Anatomy {
    fn of(image: &[u8]) -> Self {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(image.to_vec()));
        let options = LayerOptions {
            for_check: true,
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(storage, &options).unwrap();
        let header = layer.header().unwrap();
        let cluster = header.geometry.cluster_size();
        let mut this = Self {
            tables: Vec::new(),
            targets: vec![
                0,
                header.l1_offset.0,
                header.refcount_table_offset.0,
                header.snapshots_offset.0,
            ],
            cluster,
        };
        let l1s = layer
            .snapshots()
            .iter()
            .map(|one| ("snapshot-l1", one.l1_offset.0, one.l1_entries));
        let l1s: Vec<_> = std::iter::once(("l1", header.l1_offset.0, header.l1_entries))
            .chain(l1s)
            .collect();
        for (name, offset, entries) in l1s {
            for l2 in this.table(name, image, offset, u64::from(entries) * 8, 0x00ff_ffff_ffff_fe00) {
                this.table("l2", image, l2, cluster, 0x00ff_ffff_ffff_fe00);
            }
        }
        let blocks = this.table("refcount-table", image, header.refcount_table_offset.0, cluster, !511);
        for block in blocks {
            this.table("refcount-block", image, block, cluster, 0);
        }
        for snapshot in layer.snapshots() {
            let entry = snapshot.entry_offset.0 as usize;
            this.tables.push(("snapshot", vec![entry, entry + 8]));
        }
        if let Some(bitmaps) = layer.extensions().unwrap().bitmaps {
            let directory = bitmaps.directory_offset.0 as usize;
            this.tables
                .push(("bitmap-directory", vec![directory, directory + 8, directory + 16]));
            for bitmap in layer.bitmaps() {
                let bytes = u64::from(bitmap.table_entries) * 8;
                this.table(
                    "bitmap-table",
                    image,
                    bitmap.table_offset.0,
                    bytes,
                    0x00ff_ffff_ffff_fe00,
                );
            }
        }
        this
    }

    /// Notes a table and returns what its words point at.
    fn table(&mut self, name: &'static str, image: &[u8], offset: u64, length: u64, mask: u64) -> Vec<u64> {
        let (begin, end) = (offset as usize, (offset + length) as usize);
        let word = |at: &usize| {
            image
                .get(*at..*at + 8)
                .map_or(0, |word| u64::from_be_bytes(word.try_into().unwrap()))
        };
        let mut places: Vec<usize> = (begin..end.min(image.len().saturating_sub(8))).step_by(8).collect();
        let spare: Vec<usize> = places.iter().copied().filter(|at| word(at) == 0).take(2).collect();
        places.retain(|at| word(at) != 0);
        let targets: Vec<u64> = places.iter().map(|at| word(at) & mask).filter(|&at| at != 0).collect();
        self.targets.extend(targets.iter().take(6));
        places.extend(spare);
        if !places.is_empty() {
            self.tables.push((name, places));
        }
        targets
    }

    /// A word to change: table, place, what stands there, what shall.
    fn damage(&self, random: &mut Random, image: &[u8]) -> (&'static str, usize, u64, u64) {
        let (name, places) = &self.tables[random.below(self.tables.len() as u64) as usize];
        let at = places[random.below(places.len() as u64) as usize];
        let other = places[random.below(places.len() as u64) as usize];
        let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
        let old = word(at);
        let target = self.targets[random.below(self.targets.len() as u64) as usize];
        let flags = [0, 1 << 63, 1, 1 << 63 | 1][random.below(4) as usize];
        let length = (image.len() as u64).next_multiple_of(self.cluster);
        let new = match random.below(16) {
            0 => 0,
            1 => u64::MAX,
            2 => old ^ 512,
            3 => old ^ 1 << random.below(64),
            4 => target + 512,
            5 => (length + self.cluster * random.below(3)) | flags,
            6 => (1 << random.below(56)) | flags,
            7 | 8 => word(other),
            9 => old ^ 1 << 63,
            10 => old ^ 1,
            11 => old ^ 1 << 62,
            12 => flags,
            _ => target | flags,
        };
        (name, at, old, new)
    }
}

/// The bytes that are not zero and do not look like the patterns that the guests wrote.
fn metadata(image: &[u8]) -> Vec<usize> {
    let pattern = |chunk: &[u8]| chunk.iter().all(|&byte| byte == chunk[0]);
    (112..image.len())
        .filter(|&at| !pattern(&image[at & !511..(at & !511) + 512.min(image.len() - (at & !511))]))
        .collect()
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}
