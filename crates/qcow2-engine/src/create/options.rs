//! What a new image is to be, and which combinations the format does not have.

use qcow2_format::features::{autoclear, compatible, incompatible};
use qcow2_format::{
    CompressionType, CryptoExtension, EncryptionMethod, Extensions, Geometry, Header, HostOffset, RefcountOrder,
    Version, header, limits,
};

use super::NewEncryption;
use crate::error::{Error, Result};
use crate::layer::Format;
use crate::sink::{ImageLayout, Preallocation, encode_header};
use crate::storage::CacheMode;
use crate::target::{FileAttributes, Target};

/// What a new image is to be. The defaults are QEMU's.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The format of the new image.
    pub format: Format,
    /// Virtual size in bytes, rounded up to a multiple of 512. `convert` takes the source's size if there is none.
    pub size: Option<u64>,
    /// Cluster size in bytes: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Version of the format.
    pub version: Version,
    /// Width of a refcount in bits: a power of two from 1 to 64.
    pub refcount_bits: u32,
    /// L2 entries know subclusters.
    pub extended_l2: bool,
    /// Refcounts may be written late.
    pub lazy_refcounts: bool,
    /// How compressed clusters are compressed.
    pub compression_type: CompressionType,
    /// Name of the backing file, as it is to be recorded.
    pub backing_name: Option<String>,
    /// Name of the backing file's format, as it is to be recorded.
    pub backing_format: Option<String>,
    /// What of the space is reserved.
    pub preallocation: Preallocation,
    /// The external data file.
    pub data_file: Option<NewDataFile>,
    /// The external data file alone is a valid raw image.
    pub data_file_raw: bool,
    /// How guest data is encrypted.
    pub encryption: Option<NewEncryption>,
    /// Sets the files' no-copy-on-write attribute where the file system has it.
    pub nocow: bool,
    /// Extent size hint of the files in bytes, where the file system has it; 0 for none.
    pub extent_size_hint: Option<u32>,
    /// The caches that the files are written with.
    pub cache: CacheMode,
}

/// An external data file that is made with the image.
#[derive(Clone, Debug)]
pub struct NewDataFile {
    /// Its name, as it is to be recorded.
    pub name: String,
    /// Where it goes.
    pub target: Target,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            format: Format::Qcow2,
            size: None,
            cluster_size: 65536,
            version: Version::V3,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            compression_type: CompressionType::Deflate,
            backing_name: None,
            backing_format: None,
            preallocation: Preallocation::Off,
            data_file: None,
            data_file_raw: false,
            encryption: None,
            nocow: false,
            extent_size_hint: None,
            cache: CacheMode::Writeback,
        }
    }
}

/// A refusal and the words QEMU has for it; the first column is the ending of the error code, for the command line to word it anew.
/// `create_refusals_are_named` in the tests holds the list against qemu-img.
pub const CREATE_REFUSALS: &[(&str, &str)] = &[
    ("SIZE_REQUIRED", "Image creation needs a size parameter"),
    (
        "IMAGE_TOO_BIG",
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    ),
    (
        "CLUSTER_SIZE",
        "Cluster size must be a power of two between 512 and 2048k",
    ),
    (
        "CLUSTER_SIZE_EXTENDED_L2",
        "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
    ),
    (
        "EXTENDED_L2_COMPAT",
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    (
        "LAZY_REFCOUNTS_COMPAT",
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    (
        "REFCOUNT_BITS_COMPAT",
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
    ),
    (
        "DATA_FILE_COMPAT",
        "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    (
        "COMPRESSION_TYPE_COMPAT",
        "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    (
        "REFCOUNT_BITS",
        "Refcount width must be a power of two and may not exceed 64 bits",
    ),
    (
        "BACKING_FORMAT_ALONE",
        "Backing format cannot be used without backing file",
    ),
    (
        "BACKING_PREALLOCATION",
        "Backing file and preallocation can only be used at the same time if extended_l2 is on",
    ),
    (
        "BACKING_DATA_FILE_RAW",
        "Backing file and data-file-raw cannot be used at the same time",
    ),
    ("DATA_FILE_RAW_ALONE", "data-file-raw requires data-file"),
    (
        "ENCRYPTION_DATA_FILE_RAW",
        "An encrypted data file is no raw image: encryption and data-file-raw cannot be used at the same time",
    ),
    ("BACKING_NAME_EMPTY", "Expected backing file name, got empty string"),
    (
        "BACKING_UNSUPPORTED",
        "Backing file not supported for file format 'raw'",
    ),
    (
        "PREALLOCATION_VALUE",
        "Parameter 'preallocation' does not accept value 'metadata'",
    ),
    ("OPTION_UNSUPPORTED", "Invalid parameter"),
];

fn refuse(code: &'static str) -> Error {
    let reason = CREATE_REFUSALS.iter().find(|(known, _)| *known == code);
    Error::State {
        code,
        path: None,
        reason: reason.map_or_else(|| code.to_owned(), |(_, text)| (*text).to_owned()),
    }
}

fn refuse_if(condition: bool, code: &'static str) -> Result<()> {
    if condition { Err(refuse(code)) } else { Ok(()) }
}

impl CreateOptions {
    /// The virtual size in bytes: as said, else `default`, in whole sectors.
    pub(crate) fn virtual_size(&self, default: Option<u64>) -> Result<u64> {
        let size = self.size.or(default).ok_or_else(|| refuse("SIZE_REQUIRED"))?;
        if size > limits::MAX_VIRTUAL_SIZE {
            return Err(refuse("IMAGE_TOO_BIG"));
        }
        Ok(size.next_multiple_of(limits::SECTOR))
    }

    pub(crate) fn attributes(&self) -> FileAttributes {
        FileAttributes {
            nocow: self.nocow,
            extent_size_hint: self.extent_size_hint,
            cache: self.cache,
        }
    }

    /// What is reserved: a raw external data file needs its metadata.
    fn reserved(&self) -> Preallocation {
        if self.data_file_raw {
            self.preallocation.max(Preallocation::Metadata)
        } else {
            self.preallocation
        }
    }

    /// Refuses what a raw file cannot be.
    pub(crate) fn check_raw(&self) -> Result<()> {
        refuse_if(
            self.backing_name.is_some() || self.backing_format.is_some(),
            "BACKING_UNSUPPORTED",
        )?;
        refuse_if(self.preallocation == Preallocation::Metadata, "PREALLOCATION_VALUE")?;
        refuse_if(
            self.data_file.is_some() || self.data_file_raw || self.encryption.is_some(),
            "OPTION_UNSUPPORTED",
        )
    }

    /// Refuses what a LUKS container cannot be.
    pub(crate) fn check_luks(&self) -> Result<()> {
        refuse_if(
            self.backing_name.is_some() || self.backing_format.is_some(),
            "BACKING_UNSUPPORTED",
        )?;
        refuse_if(self.preallocation == Preallocation::Metadata, "PREALLOCATION_VALUE")?;
        let luks = self.encryption.as_ref().is_some_and(|new| new.luks.is_some());
        refuse_if(
            self.data_file.is_some() || self.data_file_raw || !luks,
            "OPTION_UNSUPPORTED",
        )
    }

    /// The image of `size` bytes that these options describe.
    ///
    /// # Errors
    /// [`Error::State`] with a code of [`CREATE_REFUSALS`]; [`Error::Format`] if names do not fit the header.
    pub(crate) fn layout(&self, size: u64) -> Result<ImageLayout> {
        self.check_combinations()?;
        let bits = self.cluster_size.trailing_zeros();
        let geometry = Geometry::new(bits, self.extended_l2).ok_or_else(|| refuse("CLUSTER_SIZE"))?;
        let l1_entries = geometry.l1_entries(size);
        refuse_if(l1_entries.saturating_mul(8) > limits::MAX_L1_BYTES, "IMAGE_TOO_BIG")?;
        let mut header = Header {
            version: self.version,
            backing_name: None,
            geometry,
            recorded_size: size,
            encryption: self
                .encryption
                .as_ref()
                .map_or(EncryptionMethod::None, NewEncryption::method),
            l1_entries: 0,
            l1_offset: HostOffset(0),
            refcount_table_offset: HostOffset(0),
            refcount_table_clusters: 0,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: self.incompatible(),
            compatible: if self.lazy_refcounts {
                compatible::LAZY_REFCOUNTS
            } else {
                0
            },
            autoclear: if self.data_file_raw {
                autoclear::RAW_DATA_FILE
            } else {
                0
            },
            refcount_order: RefcountOrder::from_bits(self.refcount_bits).ok_or_else(|| refuse("REFCOUNT_BITS"))?,
            length: if self.version == Version::V2 {
                header::V2_LENGTH
            } else {
                header::WRITTEN_LENGTH
            },
            compression: self.compression_type,
            unknown_fields: Vec::new(),
        };
        let extensions = Extensions {
            backing_name: self.backing_name.clone(),
            backing_format: self.backing_format.clone(),
            data_file: self.data_file.as_ref().map(|file| file.name.clone()),
            feature_names: Extensions::default_feature_names(&header),
            // The place is filled in: here it takes its room.
            encryption: (header.encryption == EncryptionMethod::Luks).then_some(CryptoExtension {
                offset: HostOffset(0),
                length: 0,
            }),
            ..Extensions::default()
        };
        // Before anything is written: the header has the same length whatever its fields are.
        encode_header(&extensions, &mut header)?;
        Ok(ImageLayout {
            header,
            extensions,
            preallocation: self.reserved(),
            backing: self.backing_name.is_some(),
            data_file_raw: self.data_file_raw,
        })
    }

    fn incompatible(&self) -> u64 {
        let bits = [
            (self.data_file.is_some(), incompatible::DATA_FILE),
            (
                self.compression_type != CompressionType::Deflate,
                incompatible::COMPRESSION,
            ),
            (self.extended_l2, incompatible::EXTENDED_L2),
        ];
        bits.iter().filter(|(set, _)| *set).fold(0, |all, (_, bit)| all | bit)
    }

    /// In QEMU's order, so that the first refusal is the same.
    fn check_combinations(&self) -> Result<()> {
        let v2 = self.version == Version::V2;
        let backing = self.backing_name.is_some();
        let bits = self.cluster_size.trailing_zeros();
        let known_size = self.cluster_size.is_power_of_two() && Geometry::new(bits, false).is_some();
        refuse_if(self.backing_name.as_deref() == Some(""), "BACKING_NAME_EMPTY")?;
        refuse_if(!known_size, "CLUSTER_SIZE")?;
        refuse_if(self.extended_l2 && v2, "EXTENDED_L2_COMPAT")?;
        refuse_if(
            self.extended_l2 && bits < limits::MIN_CLUSTER_BITS_EXTENDED,
            "CLUSTER_SIZE_EXTENDED_L2",
        )?;
        refuse_if(
            backing && self.preallocation > Preallocation::Off && !self.extended_l2,
            "BACKING_PREALLOCATION",
        )?;
        refuse_if(self.lazy_refcounts && v2, "LAZY_REFCOUNTS_COMPAT")?;
        refuse_if(RefcountOrder::from_bits(self.refcount_bits).is_none(), "REFCOUNT_BITS")?;
        refuse_if(self.refcount_bits != 16 && v2, "REFCOUNT_BITS_COMPAT")?;
        refuse_if(self.data_file_raw && self.data_file.is_none(), "DATA_FILE_RAW_ALONE")?;
        refuse_if(self.data_file_raw && backing, "BACKING_DATA_FILE_RAW")?;
        refuse_if(
            self.data_file_raw && self.encryption.is_some(),
            "ENCRYPTION_DATA_FILE_RAW",
        )?;
        refuse_if(self.data_file.is_some() && v2, "DATA_FILE_COMPAT")?;
        refuse_if(
            self.compression_type != CompressionType::Deflate && v2,
            "COMPRESSION_TYPE_COMPAT",
        )?;
        refuse_if(self.backing_format.is_some() && !backing, "BACKING_FORMAT_ALONE")?;
        let name = self.backing_name.as_ref().map_or(0, String::len);
        let format = self.backing_format.as_ref().map_or(0, String::len);
        if name > limits::MAX_BACKING_NAME as usize || format >= limits::MAX_BACKING_FORMAT {
            return Err(Error::Invalid {
                argument: if format >= limits::MAX_BACKING_FORMAT {
                    "backingFormat"
                } else {
                    "backing"
                },
                reason: "the name is too long: 1023 bytes at most for the file, 15 for its format".to_owned(),
            });
        }
        Ok(())
    }
}
