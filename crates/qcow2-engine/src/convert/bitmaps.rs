//! Bitmaps that a new image gets from its source.

use std::sync::Arc;

use crate::chain::Chain;
use crate::disk::{Disk, DiskOptions, NewBitmap, StoredBitmap};
use crate::error::{Error, Result};
use crate::layer::{GuestCipher, Layer, LayerOptions};
use crate::lock::Locking;
use crate::storage::{MemoryStorage, Storage};

/// A bitmap as the source has it.
#[derive(Debug)]
pub(super) struct Copied {
    name: String,
    granularity: u64,
    enabled: bool,
    stored: StoredBitmap,
}

/// Reads the bitmaps called `names` of the top layer.
pub(super) fn load(chain: &Chain, names: &[String]) -> Result<Vec<Copied>> {
    let layer = chain.layer(0).ok_or(Error::Closed)?;
    let each = names.iter().map(|name| {
        let stored = StoredBitmap::load(chain, name)?;
        let found = layer.bitmaps().iter().find(|bitmap| bitmap.name == *name);
        let found = found.ok_or(Error::Closed)?;
        Ok(Copied {
            name: name.clone(),
            granularity: 1 << found.granularity_bits,
            enabled: found.flags & qcow2_format::bitmap::AUTO != 0,
            stored,
        })
    });
    each.collect()
}

/// Adds them to an image that nobody uses yet: to its file, and that of its data if it has one.
pub(super) fn store(
    (image, data): (&Arc<dyn Storage>, Option<&Arc<dyn Storage>>),
    cipher: Option<Arc<GuestCipher>>,
    bitmaps: &[Copied],
) -> Result<u64> {
    let options = LayerOptions {
        writable: true,
        locking: Locking::Off,
        ..LayerOptions::default()
    };
    let mut top = Layer::open_qcow2(image.clone(), &options)?;
    if let Some(data) = data {
        top.set_data_file(data.clone())?;
    }
    if let Some(cipher) = cipher {
        top.set_cipher(cipher);
    }
    let backed = top
        .extensions()
        .is_some_and(|extensions| extensions.backing_name.is_some());
    let mut layers = vec![top];
    if backed {
        // Nothing of the guest's is read.
        layers.push(Layer::open_raw(
            Arc::new(MemoryStorage::default()),
            &LayerOptions::default(),
        )?);
    }
    let disk = Disk::open(layers, DiskOptions::default())?;
    let added = add(&disk, bitmaps);
    let closed = disk.close();
    added.and(closed)?;
    image.length().map_err(Error::io("stat", &**image))
}

/// Adds them to a disk.
pub(super) fn add(disk: &Disk, bitmaps: &[Copied]) -> Result<()> {
    for bitmap in bitmaps {
        disk.bitmap_add(NewBitmap {
            name: bitmap.name.clone(),
            granularity: Some(bitmap.granularity),
            enabled: bitmap.enabled,
        })?;
        disk.bitmap_merge_from(&bitmap.name, bitmap.stored.disk_size(), |start, max| {
            Ok(bitmap.stored.dirty(start, max))
        })?;
    }
    Ok(())
}
