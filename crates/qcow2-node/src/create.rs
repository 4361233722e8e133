//! Making a new image.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{CreateOptions, CreateReport, Error, NewDataFile, Preallocation, create as make};

use crate::call::accept;
use crate::encryption::EncryptionSpec;
use crate::numbers::{unsigned, whole};
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::target::TargetSpec;
use crate::words::{cache_named, compression_named, format_named, unknown, version_numbered};

/// A new image. The core checks the numbers against each other.
#[napi(object, object_to_js = false)]
pub struct CreateSpec {
    /// `qcow2` or `raw`.
    pub format: String,
    /// Virtual size in bytes.
    pub size: Option<BigInt>,
    /// Cluster size in bytes.
    pub cluster_size: f64,
    /// 2 or 3.
    pub version: u32,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// Refcounts may be behind while it is written.
    pub lazy_refcounts: bool,
    /// `zlib`, `zstd` or `lz4`.
    pub compression_type: String,
    /// Name of the backing file as it is recorded.
    pub backing: Option<String>,
    /// Name of its format as it is recorded.
    pub backing_format: Option<String>,
    /// `off`, `metadata`, `falloc` or `full`.
    pub preallocation: String,
    /// Name of the data file as it is recorded.
    pub data_file: Option<String>,
    /// Where the data file is made.
    pub data_file_path: Option<String>,
    /// The data file alone is a raw image.
    pub data_file_raw: bool,
    /// No copy on write, where the file system has that.
    pub nocow: bool,
    /// Extent size hint in bytes, where the file system has that.
    pub extent_size_hint: Option<BigInt>,
    /// How guest data is encrypted.
    pub encryption: Option<EncryptionSpec>,
}

/// What was made. Sizes in bytes.
#[napi(object, object_from_js = false)]
pub struct CreateFacts {
    /// The size that a guest sees.
    pub virtual_size: BigInt,
    /// Length of the file.
    pub file_size: BigInt,
}

/// Makes a new image. Completes with what was made.
#[napi(catch_unwind)]
pub fn create(env: Env, id: CallId, target: TargetSpec, options: CreateSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let place = target.accept(call)?;
        let options = options.accept(&target)?;
        // Preallocation, a key, and what was not empty before, can take as long as a conversion; a sync as long as the device likes.
        let brief = options.preallocation == Preallocation::Off
            && options.encryption.is_none()
            && !target.durable
            && !target.in_place;
        let lane = if brief { Lane::Short } else { Lane::Long };
        call.run(lane, move |job| {
            let CreateReport {
                virtual_size,
                file_size,
                ..
            } = make(&place, &options, job)?;
            Outcome::value(move |_, _, values| {
                values.add(CreateFacts {
                    virtual_size: virtual_size.into(),
                    file_size: file_size.into(),
                })
            })
        })
    })
}

impl CreateSpec {
    /// The engine's options. A data file goes where `target`'s conditions allow.
    pub(crate) fn accept(self, target: &TargetSpec) -> Result<CreateOptions, Error> {
        let data_file = match (self.data_file, self.data_file_path) {
            (None, None) => None,
            (Some(name), Some(path)) => Some(NewDataFile {
                name,
                target: target.beside(path.into()),
            }),
            _ => {
                return Err(Error::Invalid {
                    argument: "dataFile",
                    reason: "its name and its path go together".to_owned(),
                });
            }
        };
        let hint = unsigned("extentSizeHint", self.extent_size_hint.as_ref())?;
        let hint = hint.map(|hint| {
            u32::try_from(hint).map_err(|_| Error::Invalid {
                argument: "extentSizeHint",
                reason: format!("{hint} is 4 GiB or more"),
            })
        });
        Ok(CreateOptions {
            format: format_named(&self.format)?,
            size: unsigned("size", self.size.as_ref())?,
            cluster_size: whole("clusterSize", self.cluster_size)?,
            version: version_numbered(self.version)?,
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended_l2,
            lazy_refcounts: self.lazy_refcounts,
            compression_type: compression_named(&self.compression_type)?,
            backing_name: self.backing,
            backing_format: self.backing_format,
            preallocation: preallocation_named(&self.preallocation)?,
            data_file,
            data_file_raw: self.data_file_raw,
            encryption: self.encryption.map(EncryptionSpec::accept).transpose()?,
            nocow: self.nocow,
            extent_size_hint: hint.transpose()?,
            cache: cache_named(target.cache.as_deref())?,
        })
    }
}

pub(crate) fn preallocation_named(word: &str) -> Result<Preallocation, Error> {
    match word {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        other => Err(unknown("preallocation", other)),
    }
}
