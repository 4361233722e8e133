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
use std::sync::Arc;

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

/// Small images of many kinds, each with some data.
fn images(folder: &Folder) -> Vec<PathBuf> {
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
    let folder = Folder::new("sound");
    for path in images(&folder) {
        let report = ours(std::fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.display();
        assert_eq!(
            Some(counts(&report)),
            qemu_counts(&path),
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
    )
}

#[test]
fn damaged_metadata_has_qemu_imgs_counts_unless_ours_sees_more() {
    let folder = Folder::new("damaged");
    let seed: u64 = std::env::var("QCOW2_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    let cases: u64 = std::env::var("QCOW2_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(25);
    let mut random = Random(seed);
    let scratch = folder.0.join("scratch");
    let (mut compared, mut stricter_cases) = (0, 0);
    for path in images(&folder) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let sound = std::fs::read(&path).unwrap();
        if sound.len() > 16 << 20 {
            continue;
        }
        let places = metadata(&sound);
        for _ in 0..cases {
            let mut bytes = sound.clone();
            let at = places[random.below(places.len() as u64) as usize];
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            std::fs::write(&scratch, &bytes).unwrap();
            let (theirs, report) = (qemu_counts(&scratch), ours(bytes));
            let label = format!("seed {seed}, image {name}, byte {at:#x}, bit {bit}");
            match (theirs, report) {
                (_, Err(_)) => {}
                (None, Ok(_)) => {}
                (Some(theirs), Ok(report)) => {
                    compared += 1;
                    if report.findings.iter().any(|finding| stricter(finding.code)) {
                        stricter_cases += 1;
                        assert!(report.corruptions > 0, "{label}");
                    } else {
                        assert_eq!(counts(&report), theirs, "{label}: {:#?}", report.findings);
                    }
                }
            }
        }
    }
    assert!(
        compared > 100 && stricter_cases < compared / 3,
        "{compared} compared, {stricter_cases} stricter"
    );
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
