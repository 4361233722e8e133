//! Changing the format of an image.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{AmendOptions, Error};
use qcow2_format::Version;

use crate::call::accept;
use crate::disk::virtual_size;
use crate::handles::Handle;
use crate::numbers::unsigned;
use crate::outbox::CallId;
use crate::pool::Lane;

/// What is changed; what is left out stays.
#[napi(object, object_to_js = false)]
pub struct AmendSpec {
    /// `0.10` or `1.1`.
    pub compat: Option<String>,
    /// Width of a refcount in bits.
    pub refcount_bits: Option<u32>,
    /// Whether refcounts may be late.
    pub lazy_refcounts: Option<bool>,
    /// Whether the data file stays valid as a raw image.
    pub data_file_raw: Option<bool>,
    /// Name of the data file, as recorded.
    pub data_file: Option<String>,
    /// Virtual size in bytes.
    pub size: Option<BigInt>,
}

/// Changes the format of a disk's image and closes the disk; its handle stays. Reports progress; completes with the virtual size then.
#[napi(catch_unwind)]
pub fn amend(env: Env, id: CallId, disk: Handle, options: AmendSpec) -> napi::Result<()> {
    accept(&env, id, |call| {
        let disk = call.disk(disk)?.disk;
        let version = match options.compat.as_deref() {
            None => None,
            Some("0.10") => Some(Version::V2),
            Some("1.1") => Some(Version::V3),
            Some(other) => {
                return Err(Error::Invalid {
                    argument: "compat",
                    reason: format!("it must be '0.10' or '1.1': it is '{other}'"),
                });
            }
        };
        let options = AmendOptions {
            version,
            refcount_bits: options.refcount_bits,
            lazy_refcounts: options.lazy_refcounts,
            data_file_raw: options.data_file_raw,
            data_file: options.data_file,
            size: unsigned("size", options.size.as_ref())?,
        };
        call.run(Lane::Long, move |job| {
            disk.amend(&options, job)?;
            virtual_size(&disk)
        })
    })
}
