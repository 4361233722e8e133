//! Opening one image or raw file, and what is known of it then.

use std::sync::Arc;

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::storage::Storage;
use qcow2_engine::{Error, Format, Layer, LayerOptions, Limits, Locking};
use qcow2_format::Version;
use qcow2_format::features::{autoclear, compatible, incompatible};

use crate::call::accept;
use crate::encryption::LuksFacts;
use crate::handles::{Handle, Resource};
use crate::listing::{BitmapFacts, NoticeFacts, SnapshotFacts};
use crate::numbers::{unsigned, whole};
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::source::SourceSpec;
use crate::words::{compression_name, format_named, unknown};

/// How a layer is opened.
#[napi(object, object_to_js = false)]
pub struct LayerSpec {
    /// What its bytes mean: `qcow2`, `raw` or `luks`.
    pub format: String,
    /// Read although another process may be writing.
    pub force_share: bool,
    /// `auto`, `on` or `off`.
    pub locking: String,
    /// Written too: takes the locks of a writer, and its source must be writable. Default false.
    pub writable: Option<bool>,
    /// Facts alone are wanted.
    pub metadata_only: bool,
    /// Keep going where `check` wants to report.
    pub for_check: bool,
    /// Largest virtual size in bytes.
    pub max_virtual_size: Option<BigInt>,
    /// Most bytes of tables.
    pub max_memory: f64,
    /// Most layers of a chain.
    pub max_chain_depth: u32,
    /// Most iterations of PBKDF2 for one LUKS header. None: the core's own bound.
    pub max_key_iterations: Option<f64>,
}

/// What is known of a layer once it is open. Sizes in bytes.
#[napi(object, object_from_js = false)]
pub struct LayerFacts {
    /// Stands for the open layer.
    pub handle: Handle,
    /// `qcow2`, `raw` or `luks`.
    #[napi(ts_type = "'qcow2' | 'raw' | 'luks'")]
    pub format: String,
    /// The size that a guest sees.
    pub virtual_size: BigInt,
    /// Length of the file.
    pub file_size: BigInt,
    /// What the file takes on its device.
    pub actual_size: Option<BigInt>,
    /// What its tables take in memory while it is open.
    pub table_bytes: f64,
    /// Cluster size.
    pub cluster_size: Option<u32>,
    /// With `inode`: what makes two files the same.
    pub device: Option<BigInt>,
    /// With `device`: what makes two files the same.
    pub inode: Option<BigInt>,
    /// 2 or 3.
    pub version: Option<u32>,
    /// Width of a refcount.
    pub refcount_bits: Option<u32>,
    /// How its clusters are compressed.
    #[napi(ts_type = "'zlib' | 'zstd' | 'lz4'")]
    pub compression_type: Option<String>,
    /// Refcounts may be behind while it is written.
    pub lazy_refcounts: Option<bool>,
    /// L2 entries with subclusters.
    pub extended_l2: Option<bool>,
    /// It was not closed.
    pub dirty: Option<bool>,
    /// It was found corrupt.
    pub corrupt: Option<bool>,
    /// How guest data is encrypted, if it is.
    #[napi(ts_type = "'aes' | 'luks'")]
    pub encryption: Option<String>,
    /// What its LUKS header says.
    pub luks: Option<LuksFacts>,
    /// The recorded name of the backing file.
    pub backing_file: Option<String>,
    /// Its recorded format.
    pub backing_format: Option<String>,
    /// The recorded name of the data file.
    pub data_file: Option<String>,
    /// Guest data is in a data file, which is not attached.
    pub needs_data_file: Option<bool>,
    /// The data file alone is a raw image.
    pub data_file_raw: Option<bool>,
    /// Internal snapshots.
    pub snapshots: Vec<SnapshotFacts>,
    /// Persistent bitmaps.
    pub bitmaps: Vec<BitmapFacts>,
    /// What a reader should know.
    pub notices: Vec<NoticeFacts>,
}

/// Opens an image or raw file. Nothing that it names is opened. `luks_header`: the header of a LUKS container, if that is in a file of its own. Completes
/// with its facts.
#[napi(catch_unwind)]
pub fn open_layer(
    env: Env,
    id: CallId,
    source: SourceSpec,
    options: LayerSpec,
    luks_header: Option<SourceSpec>,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let source = source.accept(call)?;
        let header = luks_header.map(|header| header.accept(call)).transpose()?;
        let open = options.opener()?;
        call.run(Lane::Short, move |job| {
            let header = header.map(|header| header.open()).transpose()?;
            let layer = open(source.open()?, header)?;
            let facts = LayerFacts::of(&layer)?;
            job.cancel.check()?;
            Outcome::value(move |_, instance, values| {
                let handle = instance.handles.borrow_mut().insert(Resource::Layer(Arc::new(layer)));
                values.add(LayerFacts { handle, ..facts })
            })
        })
    })
}

/// What makes two files the same.
#[napi(object, object_from_js = false)]
pub struct IdentityFacts {
    /// The device it is on.
    pub device: Option<BigInt>,
    /// Its number there.
    pub inode: Option<BigInt>,
}

/// Attaches the external data file of a layer, which nobody else may be using. Failing closes the layer. Completes with the file's
/// identity.
#[napi(catch_unwind)]
pub fn attach_data_file(env: Env, id: CallId, layer: Handle, source: SourceSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let source = source.accept(call)?;
        let mut lent = call.borrow_layer(layer)?;
        call.run(Lane::Short, move |_| {
            let storage = source.open()?;
            let identity = storage.identity();
            lent.set_data_file(storage)?;
            Outcome::value(move |_, instance, values| {
                instance
                    .handles
                    .borrow_mut()
                    .give_back(layer, Resource::Layer(Arc::new(lent)));
                values.add(IdentityFacts {
                    device: identity.map(|identity| identity.device.into()),
                    inode: identity.map(|identity| identity.inode.into()),
                })
            })
        })
    })
}

type Opener = Box<dyn FnOnce(Arc<dyn Storage>, Option<Arc<dyn Storage>>) -> Result<Layer, Error> + Send>;

impl LayerSpec {
    /// When locks are taken.
    pub(crate) fn locking(&self) -> Result<Locking, Error> {
        match self.locking.as_str() {
            "auto" => Ok(Locking::Auto),
            "on" => Ok(Locking::On),
            "off" => Ok(Locking::Off),
            other => Err(unknown("locking", other)),
        }
    }

    /// What may not be passed.
    pub(crate) fn limits(&self) -> Result<Limits, Error> {
        Ok(Limits {
            max_virtual_size: unsigned("maxVirtualSize", self.max_virtual_size.as_ref())?,
            max_memory: whole("maxMemory", self.max_memory)?,
            max_chain_depth: self.max_chain_depth,
            max_key_iterations: match self.max_key_iterations {
                Some(most) => whole("maxKeyIterations", most)?,
                None => Limits::default().max_key_iterations,
            },
        })
    }

    fn opener(self) -> Result<Opener, Error> {
        let options = LayerOptions {
            force_share: self.force_share,
            writable: self.writable == Some(true),
            locking: self.locking()?,
            limits: self.limits()?,
            metadata_only: self.metadata_only,
            for_check: self.for_check,
        };
        Ok(match format_named(&self.format)? {
            Format::Qcow2 => Box::new(move |storage, _| Layer::open_qcow2(storage, &options)),
            Format::Raw => Box::new(move |storage, _| Layer::open_raw(storage, &options)),
            Format::Luks => Box::new(move |storage, header| Layer::open_luks(storage, header, &options)),
        })
    }
}

impl LayerFacts {
    /// The facts of a layer that has no handle yet.
    fn of(layer: &Layer) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            operation: "fstat",
            path: layer.storage().path().map(Into::into),
            source,
        };
        let identity = layer.identity();
        let header = layer.header();
        let names = layer.extensions();
        let has = |bit| header.map(|header| header.has(bit));
        let word = |text: &str| Some(text.to_owned());
        Ok(Self {
            handle: 0,
            format: layer.format().name().to_owned(),
            virtual_size: layer.virtual_size().into(),
            file_size: layer.storage().length().map_err(failed)?.into(),
            actual_size: layer.storage().allocated_bytes().map_err(failed)?.map(BigInt::from),
            table_bytes: (layer.l1().len() as u64 * 8 + layer.snapshot_table_bytes()) as f64,
            cluster_size: layer.cluster_size().and_then(|size| u32::try_from(size).ok()),
            device: identity.map(|identity| identity.device.into()),
            inode: identity.map(|identity| identity.inode.into()),
            version: header.map(|header| match header.version {
                Version::V2 => 2,
                Version::V3 => 3,
            }),
            refcount_bits: header.map(|header| header.refcount_order.bits()),
            compression_type: header.map(|header| compression_name(header.compression).to_owned()),
            lazy_refcounts: header.map(|header| header.compatible & compatible::LAZY_REFCOUNTS != 0),
            extended_l2: has(incompatible::EXTENDED_L2),
            dirty: has(incompatible::DIRTY),
            corrupt: has(incompatible::CORRUPT),
            encryption: layer.encryption().and_then(word),
            // One with a cipher that is not known here has facts all the same.
            luks: layer
                .luks()
                .ok()
                .flatten()
                .map(|volume| LuksFacts::of(volume, layer.has_detached_header())),
            backing_file: names.and_then(|names| names.backing_name.clone()),
            backing_format: names.and_then(|names| names.backing_format.clone()),
            data_file: names.and_then(|names| names.data_file.clone()),
            needs_data_file: Some(layer.needs_data_file()),
            data_file_raw: header
                .map(|header| header.has(incompatible::DATA_FILE) && header.autoclear & autoclear::RAW_DATA_FILE != 0),
            snapshots: layer
                .snapshots()
                .iter()
                .map(|snapshot| SnapshotFacts::of(snapshot, layer.virtual_size()))
                .collect(),
            bitmaps: layer.bitmaps().iter().map(BitmapFacts::from).collect(),
            notices: layer.notices().iter().map(NoticeFacts::from).collect(),
        })
    }
}
