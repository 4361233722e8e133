//! Bitmaps in tests: opening for writing, what qemu says is dirty, and granules as a plain array.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use qcow2_engine::storage::{AllowSpecial, OpenMode};
use qcow2_engine::{
    CheckOptions, CheckReport, Disk, DiskOptions, FileStorage, JobContext, Layer, LayerOptions, Result, Storage, check,
};
use qcow2_format::GuestOffset;

use super::{Folder, qemu_img, run};

pub fn writable(path: &Path) -> Arc<dyn Storage> {
    let mode = OpenMode {
        writable: true,
        special: AllowSpecial::No,
    };
    Arc::new(FileStorage::open(path, mode).unwrap())
}

pub fn try_disk(storage: Arc<dyn Storage>) -> Result<Disk> {
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    Disk::open(vec![Layer::open_qcow2(storage, &options)?], DiskOptions::default())
}

/// An image of the folder with whatever raw files it names.
pub fn disk(folder: &Folder, name: &str) -> Disk {
    let options = LayerOptions {
        writable: true,
        ..LayerOptions::default()
    };
    let mut top = Layer::open_qcow2(writable(&folder.path(name)), &options).unwrap();
    if top.needs_data_file() {
        top.set_data_file(writable(&folder.path("data.raw"))).unwrap();
    }
    let below = top.extensions().unwrap().backing_name.clone();
    let below =
        below.map(|name| Layer::open_raw(super::storage(&folder.path(&name)), &LayerOptions::default()).unwrap());
    Disk::open([top].into_iter().chain(below).collect(), DiskOptions::default()).unwrap()
}

/// All dirty ranges, asked for a few at a time.
pub fn dirty(disk: &Disk, name: &str) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    loop {
        let some = disk.bitmap_dirty(name, GuestOffset(at), 7).unwrap();
        let Some(last) = some.last() else { return all };
        at = last.end;
        all.extend(some);
    }
}

/// What qemu says is dirty in a bitmap.
pub fn qemu_dirty(folder: &Folder, image: &str, name: &str) -> Vec<Range<u64>> {
    let socket = folder.path("nbd.sock");
    let _ = std::fs::remove_file(&socket);
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-t", "-f", "qcow2", "-B", name, "-k"])
        .arg(&socket)
        .arg(folder.path(image))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..500 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        socket.display()
    );
    let text = qemu_img(folder, &["map", "--output=json", "--image-opts", &options]);
    server.kill().unwrap();
    server.wait().unwrap();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for line in text.lines().filter(|line| line.contains("\"data\": false")) {
        let (start, length) = (number(line, "start"), number(line, "length"));
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end += length,
            _ => ranges.push(start..start + length),
        }
    }
    ranges
}

fn number(line: &str, name: &str) -> u64 {
    let at = line.find(&format!("\"{name}\": ")).unwrap() + name.len() + 4;
    let digits: String = line[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Name, granularity and flags of each bitmap as qemu lists them.
pub fn qemu_list(folder: &Folder, image: &str) -> Vec<(String, u64, Vec<String>)> {
    let text = qemu_img(folder, &["info", "-U", "--output=json", image]);
    let Some(at) = text.find("\"bitmaps\": [") else {
        return Vec::new();
    };
    let mut list = Vec::new();
    let mut flags = Vec::new();
    let mut name = String::new();
    for line in text[at..].lines().skip(1).map(str::trim) {
        match line {
            "\"auto\"" | "\"auto\"," | "\"in-use\"" | "\"in-use\"," => {
                flags.push(line.trim_matches(['"', ',']).to_owned());
            }
            "]," => {
                if !flags.is_empty() || name.is_empty() {
                    continue;
                }
                break;
            }
            _ if line.starts_with("\"name\"") => {
                name = line.split('"').nth(3).unwrap().to_owned();
            }
            _ if line.starts_with("\"granularity\"") => {
                list.push((
                    std::mem::take(&mut name),
                    number(line, "granularity"),
                    std::mem::take(&mut flags),
                ));
            }
            "]" => break,
            _ => {}
        }
    }
    list
}

pub fn our_check(storage: Arc<dyn Storage>) -> CheckReport {
    let layer = Layer::open_qcow2(storage, &LayerOptions::default()).unwrap();
    check(&layer, &CheckOptions::default(), &JobContext::quiet()).unwrap()
}

/// Nothing is wrong and nothing is leaked, by our check and by qemu's.
#[track_caller]
pub fn clean(folder: &Folder, name: &str) {
    let report = our_check(super::storage(&folder.path(name)));
    let counts = (report.corruptions, report.leaks, report.check_errors);
    assert_eq!(counts, (0, 0, 0), "{:#?}", report.findings);
    run(folder, "qemu-img", &["check", "-q", name]);
}

/// A bitmap as a plain array of granules.
#[derive(Clone, Debug)]
pub struct Granules {
    pub name: String,
    pub granularity: u64,
    pub enabled: bool,
    pub dirty: Vec<bool>,
    pub size: u64,
}

impl Granules {
    pub fn new(name: &str, granularity: u64, enabled: bool, size: u64) -> Self {
        Self {
            name: name.into(),
            granularity,
            enabled,
            dirty: vec![false; size.div_ceil(granularity) as usize],
            size,
        }
    }

    pub fn mark(&mut self, range: Range<u64>) {
        if range.start < range.end.min(self.size) {
            let last = (range.end.min(self.size) - 1) / self.granularity;
            self.dirty[(range.start / self.granularity) as usize..=last as usize].fill(true);
        }
    }

    pub fn resize(&mut self, size: u64) {
        self.size = size;
        self.dirty.resize(size.div_ceil(self.granularity) as usize, false);
    }

    pub fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (index, _) in self.dirty.iter().enumerate().filter(|(_, dirty)| **dirty) {
            let begin = index as u64 * self.granularity;
            let end = (begin + self.granularity).min(self.size);
            match ranges.last_mut() {
                Some(last) if last.end == begin => last.end = end,
                _ => ranges.push(begin..end),
            }
        }
        ranges
    }

    pub fn bytes(&self) -> u64 {
        self.ranges().iter().map(|range| range.end - range.start).sum()
    }
}
