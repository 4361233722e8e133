//! The images that are written, and how they begin.

use std::sync::Arc;

use qcow2_engine::{
    Chain, ChainOptions, ConvertOptions, CreateOptions, Format, JobContext, Layer, LayerOptions, MemoryStorage,
    NewDataFile, Preallocation, Result, Storage, Target, convert, create,
};
use qcow2_format::Version;

use crate::contents::{Contents, ZERO};
use crate::log::SECTOR;

/// How an image is filled before the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Not.
    Empty,
    /// With compressed clusters, here and there.
    Compressed,
    /// Every cluster has its place.
    Preallocated,
}

/// What lies below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    None,
    /// A raw file of so many bytes.
    Raw(u64),
    /// An image of so many bytes.
    Qcow2(u64),
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its name, for reports.
    pub name: &'static str,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Largest size that it grows to.
    pub most: u64,
    /// Size of a cluster in bytes.
    pub cluster: u64,
    /// Width of a refcount in bits.
    pub refcount_bits: u32,
    /// Version 2.
    pub version2: bool,
    /// With subclusters.
    pub extended: bool,
    /// With lazy refcounts.
    pub lazy: bool,
    /// With a data file; `Some(true)`: a raw one.
    pub data_file: Option<bool>,
    /// What lies below.
    pub backing: Backing,
    /// How it is filled.
    pub fill: Fill,
}

const PLAIN: Shape = Shape {
    name: "plain 64k",
    size: 1 << 20,
    most: 2 << 20,
    cluster: 65536,
    refcount_bits: 16,
    version2: false,
    extended: false,
    lazy: false,
    data_file: None,
    backing: Backing::None,
    fill: Fill::Empty,
};

const K4: Shape = Shape {
    name: "plain 4k",
    size: 256 << 10,
    most: 384 << 10,
    cluster: 4096,
    ..PLAIN
};

const SMALL: Shape = Shape {
    name: "plain 512",
    size: 96 << 10,
    most: 160 << 10,
    cluster: 512,
    ..PLAIN
};

const K16: Shape = Shape {
    name: "extended",
    size: 384 << 10,
    most: 512 << 10,
    cluster: 16384,
    extended: true,
    ..PLAIN
};

/// All shapes.
pub static SHAPES: &[Shape] = &[
    PLAIN,
    K4,
    SMALL,
    // More than one sector of L1 entries.
    Shape {
        name: "512, long L1",
        size: (2 << 20) + (96 << 10),
        most: (2 << 20) + (160 << 10),
        ..SMALL
    },
    Shape {
        name: "512, 64-bit refcounts",
        refcount_bits: 64,
        ..SMALL
    },
    Shape {
        name: "512, 32-bit refcounts",
        refcount_bits: 32,
        ..SMALL
    },
    Shape {
        name: "4k, 1-bit refcounts",
        refcount_bits: 1,
        ..K4
    },
    Shape {
        name: "4k, 2-bit refcounts",
        refcount_bits: 2,
        ..K4
    },
    Shape {
        name: "512, 4-bit refcounts",
        refcount_bits: 4,
        ..SMALL
    },
    Shape {
        name: "4k, 8-bit refcounts",
        refcount_bits: 8,
        ..K4
    },
    Shape {
        name: "version 2",
        version2: true,
        ..K4
    },
    Shape {
        name: "version 2, 512",
        version2: true,
        ..SMALL
    },
    Shape {
        name: "version 2 with backing",
        version2: true,
        backing: Backing::Raw(160 << 10),
        ..K4
    },
    K16,
    Shape {
        name: "extended with backing",
        backing: Backing::Raw((200 << 10) + 512),
        ..K16
    },
    Shape {
        name: "extended, compressed",
        fill: Fill::Compressed,
        ..K16
    },
    Shape {
        name: "lazy 4k",
        lazy: true,
        ..K4
    },
    Shape {
        name: "lazy 512",
        lazy: true,
        ..SMALL
    },
    Shape {
        name: "lazy extended",
        lazy: true,
        ..K16
    },
    Shape {
        name: "data file 4k",
        data_file: Some(false),
        ..K4
    },
    Shape {
        name: "data file 512",
        data_file: Some(false),
        ..SMALL
    },
    Shape {
        name: "raw data file",
        data_file: Some(true),
        ..K4
    },
    Shape {
        name: "data file, lazy",
        data_file: Some(false),
        lazy: true,
        ..K4
    },
    Shape {
        name: "data file, extended",
        data_file: Some(false),
        ..K16
    },
    Shape {
        name: "data file with backing",
        data_file: Some(false),
        backing: Backing::Raw(160 << 10),
        ..K4
    },
    Shape {
        name: "shorter raw backing",
        backing: Backing::Raw((128 << 10) + 1536),
        ..K4
    },
    Shape {
        name: "longer raw backing",
        backing: Backing::Raw(512 << 10),
        ..K4
    },
    Shape {
        name: "qcow2 backing",
        backing: Backing::Qcow2(192 << 10),
        ..K4
    },
    Shape {
        name: "longer qcow2 backing, 64k",
        backing: Backing::Qcow2(2 << 20),
        ..PLAIN
    },
    Shape {
        name: "preallocated 4k",
        fill: Fill::Preallocated,
        ..K4
    },
    Shape {
        name: "compressed 4k",
        fill: Fill::Compressed,
        ..K4
    },
    Shape {
        name: "compressed 64k",
        fill: Fill::Compressed,
        ..PLAIN
    },
    Shape {
        name: "compressed 512",
        fill: Fill::Compressed,
        ..SMALL
    },
];

/// How an image begins.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The image's bytes.
    pub image: Vec<u8>,
    /// The data file's.
    pub data: Option<Vec<u8>>,
    /// What lies below, and whether it is an image.
    pub backing: Option<(Arc<MemoryStorage>, bool)>,
    /// What the disk's sectors hold.
    pub sectors: Vec<u32>,
    /// What the backing file's sectors hold.
    pub below: Vec<u32>,
}

/// What lies below, whether it is an image, and what its sectors hold.
type Below = (Option<(Arc<MemoryStorage>, bool)>, Vec<u32>);

impl Shape {
    /// Whether internal snapshots are possible.
    pub fn snapshots(&self) -> bool {
        self.data_file.is_none() && self.refcount_bits > 1
    }

    /// Whether bitmaps are possible.
    pub fn bitmaps(&self) -> bool {
        !self.version2
    }

    fn create_options(&self, data: Option<&Arc<MemoryStorage>>) -> CreateOptions {
        let backed = self.backing != Backing::None;
        let below = if matches!(self.backing, Backing::Qcow2(_)) {
            "qcow2"
        } else {
            "raw"
        };
        CreateOptions {
            format: Format::Qcow2,
            size: Some(self.size),
            cluster_size: self.cluster,
            version: if self.version2 { Version::V2 } else { Version::V3 },
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended,
            lazy_refcounts: self.lazy,
            backing_name: backed.then(|| "base".to_owned()),
            backing_format: backed.then(|| below.to_owned()),
            preallocation: if self.fill == Fill::Preallocated {
                Preallocation::Metadata
            } else {
                Preallocation::Off
            },
            data_file: data.map(|storage| NewDataFile {
                name: "data".to_owned(),
                target: Target::Storage(storage.clone()),
            }),
            data_file_raw: self.data_file == Some(true),
            ..CreateOptions::default()
        }
    }

    /// Makes the image.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn begin(&self, contents: &mut Contents) -> Result<Begin> {
        let job = JobContext::quiet();
        let (backing, below) = self.make_backing(contents)?;
        let count = self.size as usize / SECTOR;
        let mut sectors: Vec<u32> = below
            .iter()
            .copied()
            .chain(std::iter::repeat(ZERO))
            .take(count)
            .collect();
        let image = Arc::new(MemoryStorage::default());
        let data = self.data_file.map(|_| Arc::new(MemoryStorage::default()));
        let options = self.create_options(data.as_ref());
        let target = Target::Storage(image.clone());
        if self.fill == Fill::Compressed {
            let per_cluster = (self.cluster as usize / SECTOR).max(1);
            let mut source = Vec::with_capacity(self.size as usize);
            for (number, sector) in sectors.iter_mut().enumerate() {
                if (number / per_cluster) % 3 != 2 {
                    *sector = contents.tagged(number as u64 | 1 << 40, 0);
                }
                source.extend_from_slice(contents.get(*sector));
            }
            let source: Arc<dyn Storage> = Arc::new(MemoryStorage::new(source));
            let layer = Layer::open_raw(source, &LayerOptions::default())?;
            let chain = Arc::new(Chain::new(vec![layer], ChainOptions::default())?);
            let options = ConvertOptions {
                create: options,
                compress: true,
                ..ConvertOptions::default()
            };
            convert(&[chain], &target, &options, &job)?;
        } else {
            create(&target, &options, &job)?;
        }
        Ok(Begin {
            image: image.to_vec(),
            data: data.map(|data| data.to_vec()),
            backing,
            sectors,
            below,
        })
    }

    fn make_backing(&self, contents: &mut Contents) -> Result<Below> {
        let (size, image) = match self.backing {
            Backing::None => return Ok((None, Vec::new())),
            Backing::Raw(size) => (size, false),
            Backing::Qcow2(size) => (size, true),
        };
        let mut below = Vec::new();
        let mut bytes = Vec::new();
        for number in 0..size / SECTOR as u64 {
            // Some of it is zeros.
            let content = if number / 24 % 4 == 3 {
                ZERO
            } else {
                contents.tagged(number | 1 << 41, 0)
            };
            below.push(content);
            bytes.extend_from_slice(contents.get(content));
        }
        let raw = Arc::new(MemoryStorage::new(bytes));
        if !image {
            return Ok((Some((raw, false)), below));
        }
        let layer = Layer::open_raw(raw, &LayerOptions::default())?;
        let chain = Arc::new(Chain::new(vec![layer], ChainOptions::default())?);
        let made = Arc::new(MemoryStorage::default());
        let options = ConvertOptions {
            create: CreateOptions {
                cluster_size: 4096,
                ..CreateOptions::default()
            },
            ..ConvertOptions::default()
        };
        convert(&[chain], &Target::Storage(made.clone()), &options, &JobContext::quiet())?;
        Ok((Some((made, true)), below))
    }
}
