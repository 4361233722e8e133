//! The lists among a layer's facts.

use napi::bindgen_prelude::BigInt;
use qcow2_engine::Notice;
use qcow2_format::Snapshot;
use qcow2_format::bitmap::Bitmap;

/// A snapshot as its table has it.
#[napi(object, object_from_js = false)]
pub struct SnapshotFacts {
    /// Its id, a text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Bytes of saved machine state.
    pub vm_state_size: BigInt,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// The guest's clock in nanoseconds.
    pub vm_clock_nsec: BigInt,
    /// Instruction count, if the entry carries one.
    pub icount: Option<BigInt>,
    /// Virtual size at that time, in bytes.
    pub disk_size: BigInt,
}

impl SnapshotFacts {
    /// Where an old entry has no size of its own, it is the image's.
    pub(crate) fn of(snapshot: &Snapshot, virtual_size: u64) -> Self {
        Self {
            id: String::from_utf8_lossy(&snapshot.id).into_owned(),
            name: String::from_utf8_lossy(&snapshot.name).into_owned(),
            vm_state_size: snapshot.vm_state_size.into(),
            date_sec: snapshot.date_sec,
            date_nsec: snapshot.date_nsec,
            vm_clock_nsec: snapshot.vm_clock_nsec.into(),
            icount: snapshot.icount.map(BigInt::from),
            disk_size: snapshot.disk_size.unwrap_or(virtual_size).into(),
        }
    }
}

/// A persistent bitmap.
#[napi(object, object_from_js = false)]
pub struct BitmapFacts {
    /// Its name.
    pub name: String,
    /// Bytes of guest that a bit stands for.
    pub granularity: f64,
    /// It was not stored when its image was last closed.
    pub in_use: bool,
    /// It records writes.
    pub auto: bool,
}

impl From<&Bitmap> for BitmapFacts {
    fn from(bitmap: &Bitmap) -> Self {
        Self {
            name: bitmap.name.clone(),
            granularity: bitmap.granularity() as f64,
            in_use: bitmap.in_use(),
            auto: bitmap.auto(),
        }
    }
}

/// Something found on opening.
#[napi(object, object_from_js = false)]
pub struct NoticeFacts {
    /// Stable.
    pub code: String,
    /// In words.
    pub message: String,
}

impl From<&Notice> for NoticeFacts {
    fn from(notice: &Notice) -> Self {
        Self {
            code: notice.code.to_owned(),
            message: notice.message.clone(),
        }
    }
}
