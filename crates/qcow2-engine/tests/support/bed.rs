//! Small images in memory, made by qemu, whose clusters are all of one kind: what sequences of operations begin with.

use std::sync::Arc;

use qcow2_engine::{Disk, DiskOptions, Layer, LayerOptions, MemoryStorage, Storage};

use super::{Folder, qemu_img, qemu_io};

/// The cluster that operations are about, and its neighbour.
pub const TARGET: u64 = 2;

/// What the clusters of a bed are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unallocated,
    /// The backing file is longer than the disk.
    Backed,
    /// The backing file ends within the cluster.
    BackedInPart,
    Zero,
    ZeroWithOffset,
    /// The same over a backing file.
    ZeroOverBacking,
    Data,
    Shared,
    Compressed,
    /// Some of the subclusters are data, some zero, the rest is not there.
    Subclusters,
    /// The same over a backing file.
    SubclustersBacked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Inside,
    DataFile,
    RawDataFile,
}

/// An image and what it reads as.
pub struct Bed {
    pub name: String,
    pub cluster: u64,
    pub place: Place,
    pub image: Vec<u8>,
    pub data: Vec<u8>,
    pub backing: Option<Vec<u8>>,
    pub disk: Vec<u8>,
    /// Contents of the snapshot that it has.
    pub snapshot: Option<Vec<u8>>,
    pub folder: Folder,
}

impl Bed {
    pub fn new(kind: Kind, place: Place, cluster: u64, more: &str) -> Self {
        let folder = Folder::new();
        let size = cluster * 5 + 512;
        let extended = matches!(kind, Kind::Subclusters | Kind::SubclustersBacked);
        let mut options = format!("cluster_size={cluster}{more}");
        if extended {
            options += ",extended_l2=on";
        }
        if place != Place::Inside {
            options += &format!(",data_file={}", folder.path("data.raw").display());
        }
        if place == Place::RawDataFile {
            options += ",data_file_raw=on";
        }
        let backed = match kind {
            Kind::Backed | Kind::ZeroOverBacking | Kind::SubclustersBacked => cluster * 11,
            Kind::BackedInPart => cluster * 2 + cluster / 2 + 512,
            _ => 0,
        };
        let backing: Option<Vec<u8>> =
            (backed > 0).then(|| (0..backed).map(|at| 0x80 | (at / 256 % 100) as u8).collect());
        let mut disk = vec![0; size as usize];
        let text = size.to_string();
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if let Some(bytes) = &backing {
            std::fs::write(folder.path("base.raw"), bytes).unwrap();
            args.extend(["-b", "base.raw", "-F", "raw"]);
            let common = bytes.len().min(disk.len());
            disk[..common].copy_from_slice(&bytes[..common]);
        }
        args.extend(["a.qcow2", &text]);
        qemu_img(&folder, &args);
        let mut commands = Vec::new();
        let mut fill = |flags: &str, begin: u64, length: u64, value: u8| {
            commands.push(format!("write {flags} {begin} {length}"));
            disk[begin as usize..(begin + length) as usize].fill(value);
        };
        for number in 1..4 {
            let begin = number * cluster;
            let value = 0x10 + number as u8;
            let pattern = format!("-P {value}");
            match kind {
                Kind::Unallocated | Kind::Backed | Kind::BackedInPart => {}
                Kind::Zero | Kind::ZeroOverBacking => fill("-z -u", begin, cluster, 0),
                Kind::ZeroWithOffset => {
                    fill(&pattern, begin, cluster, value);
                    fill("-z", begin, cluster, 0);
                }
                Kind::Data | Kind::Shared => fill(&pattern, begin, cluster, value),
                Kind::Compressed => fill(&format!("-c {pattern}"), begin, cluster, value),
                Kind::Subclusters | Kind::SubclustersBacked => {
                    let unit = cluster / 32;
                    fill(&pattern, begin + unit * 4, unit * 6, value);
                    fill("-z", begin + unit * 8, unit * 12, 0);
                    fill(&pattern, begin + unit * 28, unit * 2, value);
                }
            }
        }
        if !commands.is_empty() {
            qemu_io(&folder, "a.qcow2", &commands);
        }
        let mut snapshot = None;
        if kind == Kind::Shared {
            qemu_img(&folder, &["snapshot", "-c", "first", "a.qcow2"]);
            snapshot = Some(disk.clone());
        }
        Self {
            name: format!("{kind:?} {place:?} {options}"),
            cluster,
            place,
            image: std::fs::read(folder.path("a.qcow2")).unwrap(),
            data: std::fs::read(folder.path("data.raw")).unwrap_or_default(),
            backing,
            disk,
            snapshot,
            folder,
        }
    }

    /// Whether the image was made with an option.
    pub fn has(&self, option: &str) -> bool {
        self.name.split([' ', ',']).any(|found| found == option)
    }

    /// Discarding does nothing: version 2 could not keep the backing file's bytes from coming to light.
    pub fn keeps_discarded(&self) -> bool {
        self.has("compat=0.10") && self.backing.is_some()
    }

    /// The image's files in memory, fresh.
    pub fn files(&self) -> Files {
        Files {
            image: Arc::new(MemoryStorage::new(self.image.clone())),
            data: Arc::new(MemoryStorage::new(self.data.clone())),
        }
    }

    pub fn open(&self, files: &Files) -> qcow2_engine::Result<Disk> {
        let writable = LayerOptions {
            writable: true,
            ..LayerOptions::default()
        };
        let mut top = Layer::open_qcow2(Arc::clone(&files.image) as Arc<dyn Storage>, &writable)?;
        if top.needs_data_file() {
            top.set_data_file(Arc::clone(&files.data) as Arc<dyn Storage>)?;
        }
        let mut layers = vec![top];
        if let Some(bytes) = &self.backing {
            let storage = Arc::new(MemoryStorage::new(bytes.clone()));
            layers.push(Layer::open_raw(storage, &LayerOptions::default())?);
        }
        let options = DiskOptions {
            cache_bytes: 1 << 20,
            ..DiskOptions::default()
        };
        Disk::open(layers, options)
    }
}

/// What a sequence writes to.
pub struct Files {
    pub image: Arc<MemoryStorage>,
    pub data: Arc<MemoryStorage>,
}
