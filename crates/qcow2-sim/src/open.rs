//! Opening what is simulated: as everybody opens an image for writing.

use std::sync::Arc;

use qcow2_engine::{
    Chain, ChainOptions, Disk, DiskOptions, JobContext, Layer, LayerOptions, Locking, RepairMode, RepairOptions,
    Result, Storage, repair,
};

use crate::shape::Begin;

/// How layers are opened.
pub fn layer_options(writable: bool) -> LayerOptions {
    LayerOptions {
        writable,
        locking: Locking::Off,
        // Snapshots are looked at while the disk is open.
        force_share: !writable,
        ..LayerOptions::default()
    }
}

/// The layers of an image.
///
/// # Errors
/// Those of opening.
pub fn layers(
    image: &Arc<dyn Storage>,
    data: Option<&Arc<dyn Storage>>,
    begin: &Begin,
    writable: bool,
) -> Result<Vec<Layer>> {
    let mut top = Layer::open_qcow2(image.clone(), &layer_options(writable))?;
    if let Some(data) = data {
        top.set_data_file(data.clone())?;
    }
    let mut layers = vec![top];
    if let Some((storage, is_image)) = &begin.backing {
        let storage: Arc<dyn Storage> = storage.clone();
        let options = layer_options(false);
        layers.push(if *is_image {
            Layer::open_qcow2(storage, &options)?
        } else {
            Layer::open_raw(storage, &options)?
        });
    }
    Ok(layers)
}

/// Repairs the image if it was not closed. Whether it was necessary.
///
/// # Errors
/// Those of repair.
pub fn recover(image: &Arc<dyn Storage>, data: Option<&Arc<dyn Storage>>, begin: &Begin) -> Result<bool> {
    let dirty = layers(image, data, begin, false)?
        .first()
        .and_then(Layer::header)
        .is_some_and(|header| header.has(qcow2_format::features::incompatible::DIRTY));
    if dirty {
        // Opening for writing repairs it.
        drop(layers(image, data, begin, true)?);
    }
    Ok(dirty)
}

/// The disk, repaired if it must be.
///
/// # Errors
/// Those of repair and of opening.
pub fn disk(
    image: &Arc<dyn Storage>,
    data: Option<&Arc<dyn Storage>>,
    begin: &Begin,
    options: &DiskOptions,
) -> Result<Disk> {
    recover(image, data, begin)?;
    Disk::open(layers(image, data, begin, true)?, options.clone())
}

/// A snapshot, read-only.
///
/// # Errors
/// Those of opening.
pub fn snapshot(image: &Arc<dyn Storage>, data: Option<&Arc<dyn Storage>>, begin: &Begin, id: &str) -> Result<Chain> {
    let options = ChainOptions {
        snapshot: Some(id.to_owned()),
        cache_bytes: 1 << 20,
        ..ChainOptions::default()
    };
    Chain::new(layers(image, data, begin, false)?, options)
}

/// Gives back what leaks.
///
/// # Errors
/// Those of repair.
pub fn repair_leaks(image: &Arc<dyn Storage>, data: Option<&Arc<dyn Storage>>) -> Result<()> {
    let options = RepairOptions {
        locking: Locking::Off,
        ..RepairOptions::new(RepairMode::Leaks)
    };
    repair(image, data, options, &JobContext::quiet()).map(|_| ())
}
