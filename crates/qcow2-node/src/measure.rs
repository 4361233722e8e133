//! Measuring what an image would take.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{Error, Format, MeasureSource, MeasureTarget, Measurement, measure as judge};
use qcow2_format::{Geometry, RefcountOrder};

use crate::call::accept;
use crate::encryption::EncryptionSpec;
use crate::handles::Handle;
use crate::numbers::unsigned;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::words::{format_named, version_numbered};

/// What is measured, a chain or a size, and the target.
#[napi(object, object_to_js = false)]
pub struct MeasureSpec {
    /// The disk that is to be copied, or…
    pub chain: Option<Handle>,
    /// … the virtual size in bytes of an empty one.
    pub size: Option<BigInt>,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Cluster size in bytes.
    pub cluster_size: u32,
    /// 2 or 3.
    pub version: u32,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// `off`, `metadata`, `falloc` or `full`.
    pub preallocation: String,
    /// It has a backing file.
    pub backing: bool,
    /// How it is to be encrypted: the password does not matter.
    pub encryption: Option<EncryptionSpec>,
}

/// The answer of a measurement, in bytes.
#[napi(object, object_from_js = false)]
pub struct MeasureFacts {
    /// What the content needs.
    pub required: BigInt,
    /// What the image needs once every cluster is written.
    pub fully_allocated: BigInt,
    /// What the persistent bitmaps need.
    pub bitmaps: Option<BigInt>,
}

/// Measures a target. Completes with the answer.
#[napi(catch_unwind)]
pub fn measure(env: Env, id: CallId, options: MeasureSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let size = unsigned("size", options.size.as_ref())?;
        let chain = options.chain.map(|handle| call.chain(handle)).transpose()?;
        let target = options.target()?;
        call.run(Lane::Long, move |job| {
            let source = match (&chain, size) {
                (Some(chain), None) => MeasureSource::Chain(chain),
                (None, Some(size)) => MeasureSource::Size(size),
                _ => return Err(invalid("source", "either a chain or a size")),
            };
            let Measurement {
                required,
                fully_allocated,
                bitmaps,
                ..
            } = judge(source, target, job)?;
            // What the job held is let go before its end is told.
            drop(chain);
            Outcome::value(move |_, _, values| {
                values.add(MeasureFacts {
                    required: required.into(),
                    fully_allocated: fully_allocated.into(),
                    bitmaps: bitmaps.map(BigInt::from),
                })
            })
        })
    })
}

impl MeasureSpec {
    fn target(self) -> Result<MeasureTarget, Error> {
        let format = format_named(&self.format)?;
        if format == Format::Raw {
            return Ok(MeasureTarget::Raw);
        }
        if !self.cluster_size.is_power_of_two() {
            return Err(invalid("clusterSize", "not a power of two"));
        }
        let encryption = self.encryption.map(EncryptionSpec::accept).transpose()?;
        let header = encryption
            .and_then(|new| new.luks)
            .map_or(0, |options| options.header_bytes());
        if format == Format::Luks {
            return Ok(MeasureTarget::Luks { header });
        }
        Ok(MeasureTarget::Qcow2 {
            geometry: Geometry::new(self.cluster_size.ilog2(), self.extended_l2)
                .ok_or_else(|| invalid("clusterSize", "outside of what the format has"))?,
            refcount_order: RefcountOrder::from_bits(self.refcount_bits)
                .ok_or_else(|| invalid("refcountBits", "not a power of two from 1 to 64"))?,
            version: version_numbered(self.version)?,
            preallocated: match self.preallocation.as_str() {
                "off" | "metadata" => false,
                "falloc" | "full" => true,
                other => return Err(crate::words::unknown("preallocation", other)),
            },
            encryption: header,
            backing: self.backing,
        })
    }
}

fn invalid(argument: &'static str, reason: &str) -> Error {
    Error::Invalid {
        argument,
        reason: reason.to_owned(),
    }
}
