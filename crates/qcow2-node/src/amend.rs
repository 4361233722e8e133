//! Changing the format of an image.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{AmendOptions, Error, KeySlotChange, NewKeySlot, Secret};
use qcow2_format::Version;

use crate::call::accept;
use crate::disk::virtual_size;
use crate::handles::Handle;
use crate::numbers::{unsigned, whole};
use crate::outbox::CallId;
use crate::pool::Lane;
use crate::raw::Bytes;

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
    /// Passwords of an image with LUKS encryption.
    pub key_slot: Option<KeySlotSpec>,
}

/// What becomes of the passwords of an image.
#[napi(object, object_to_js = false)]
pub struct KeySlotSpec {
    /// What opens it now; copied, and the copy is wiped, as of the others.
    #[napi(ts_type = "Uint8Array")]
    pub secret: Bytes,
    /// What is to open it.
    #[napi(ts_type = "Uint8Array")]
    pub new_secret: Option<Bytes>,
    /// What is not to open it any more.
    #[napi(ts_type = "Uint8Array")]
    pub old_secret: Option<Bytes>,
    /// Which slot, from 0 to 7.
    pub slot: Option<u32>,
    /// Milliseconds that one try of the new password is to take.
    pub iter_time: f64,
    /// Also what cannot be undone.
    pub force: bool,
}

impl KeySlotSpec {
    fn accept(self) -> Result<KeySlotChange, Error> {
        let iter_time = whole("iterTime", self.iter_time)?;
        Ok(KeySlotChange {
            secret: Secret::new(self.secret.0),
            add: self.new_secret.map(|bytes| NewKeySlot {
                secret: Secret::new(bytes.0),
                iter_time,
            }),
            erase: self.old_secret.map(|bytes| Secret::new(bytes.0)),
            slot: self.slot,
            force: self.force,
        })
    }
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
            key_slots: options.key_slot.map(KeySlotSpec::accept).transpose()?,
        };
        call.run(Lane::Long, move |job| {
            disk.amend(&options, job)?;
            virtual_size(&disk)
        })
    })
}
