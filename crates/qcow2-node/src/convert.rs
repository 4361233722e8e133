//! Copying disks into a new image.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{ConvertOptions, ConvertReport, Error, LostRange, convert as copy};

use crate::call::{Call, accept};
use crate::create::CreateSpec;
use crate::handles::Handle;
use crate::numbers::{unsigned, whole};
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::target::TargetSpec;
use crate::words::compression_named;

/// A conversion.
#[napi(object, object_to_js = false)]
pub struct ConvertSpec {
    /// The new image.
    pub create: CreateSpec,
    /// Clusters are compressed, by this.
    pub compression: Option<String>,
    /// How hard.
    pub level: Option<i32>,
    /// Zero areas of at least this many bytes are not stored.
    pub sparse_size: f64,
    /// Workers.
    pub threads: u32,
    /// The chain below the target: what reads the same there is not stored.
    pub backing: Option<Handle>,
    /// A target that is written in place is known to read as zeros.
    pub target_is_zero: bool,
    /// Begin of the part of the source that is copied, in bytes.
    pub range_start: Option<BigInt>,
    /// Length of that part in bytes. Default: up to the end.
    pub range_length: Option<BigInt>,
    /// Most bytes that are written.
    pub max_output: Option<BigInt>,
    /// Most bytes of source a second.
    pub rate_limit: Option<f64>,
    /// What cannot be read becomes zeros, and is told.
    pub salvage: bool,
    /// Bitmaps that the target gets, by name.
    pub bitmaps: Option<Vec<String>>,
}

/// A range of the source that could not be read. Bytes.
#[napi(object, object_from_js = false)]
pub struct LostFacts {
    /// Where it begins.
    pub offset: BigInt,
    /// Its length.
    pub length: BigInt,
    /// Where its bytes are is not known.
    pub mapping: bool,
    /// The system's error number; 0: it was not the system.
    pub errno: i32,
    /// Why.
    pub reason: String,
}

/// What a conversion did. Bytes are guest bytes.
#[napi(object, object_from_js = false)]
pub struct ConvertFacts {
    /// The size that a guest sees, in bytes.
    pub virtual_size: BigInt,
    /// Length of the file in bytes.
    pub file_size: BigInt,
    /// Bytes that were stored, plain or compressed.
    pub data_bytes: BigInt,
    /// Bytes that became zeros or holes.
    pub zero_bytes: BigInt,
    /// Clusters that were stored compressed.
    pub compressed_clusters: BigInt,
    /// What could not be read.
    pub lost: Vec<LostFacts>,
    /// How much more of that there is.
    pub lost_omitted: BigInt,
}

/// Copies disks, one behind the other, into a new image. Their handles stay open. Reports progress; completes with what was done.
#[napi(catch_unwind)]
pub fn convert(
    env: Env,
    id: CallId,
    sources: Vec<Handle>,
    target: TargetSpec,
    options: ConvertSpec,
) -> napi::Result<()> {
    accept(&env, id, |call| {
        let sources: Vec<_> = sources
            .into_iter()
            .map(|handle| call.chain(handle))
            .collect::<Result<_, _>>()?;
        let place = target.accept(call)?;
        let options = options.accept(call, &target)?;
        call.run(Lane::Long, move |job| {
            let report = copy(&sources, &place, &options, job)?;
            // What the job held is let go before its end is told.
            drop((sources, place, options));
            Outcome::value(move |_, _, values| values.add(ConvertFacts::from(report)))
        })
    })
}

impl ConvertSpec {
    fn accept(self, call: &mut Call, target: &TargetSpec) -> Result<ConvertOptions, Error> {
        let mut create = self.create.accept(target)?;
        if let Some(compression) = &self.compression {
            create.compression_type = compression_named(compression)?;
        }
        let range = match (
            unsigned("rangeStart", self.range_start.as_ref())?,
            unsigned("rangeLength", self.range_length.as_ref())?,
        ) {
            (None, None) => None,
            (start, length) => Some((start.unwrap_or(0), length.unwrap_or(u64::MAX))),
        };
        Ok(ConvertOptions {
            create,
            compress: self.compression.is_some(),
            level: self.level,
            sparse_size: whole("sparseSize", self.sparse_size)?,
            threads: self.threads as usize,
            backing: self.backing.map(|handle| call.chain(handle)).transpose()?,
            target_is_zero: self.target_is_zero,
            range,
            max_output: unsigned("maxOutput", self.max_output.as_ref())?,
            salvage: self.salvage,
            bitmaps: self.bitmaps.unwrap_or_default(),
            rate_limit: self.rate_limit.map(|rate| whole("rateLimit", rate)).transpose()?,
        })
    }
}

impl From<LostRange> for LostFacts {
    fn from(range: LostRange) -> Self {
        Self {
            offset: range.offset.into(),
            length: range.length.into(),
            mapping: range.mapping,
            errno: range.errno,
            reason: range.reason,
        }
    }
}

impl From<ConvertReport> for ConvertFacts {
    fn from(report: ConvertReport) -> Self {
        Self {
            virtual_size: report.virtual_size.into(),
            file_size: report.file_size.into(),
            data_bytes: report.data_bytes.into(),
            zero_bytes: report.zero_bytes.into(),
            compressed_clusters: report.compressed_clusters.into(),
            lost: report.lost.into_iter().map(LostFacts::from).collect(),
            lost_omitted: report.lost_omitted.into(),
        }
    }
}
