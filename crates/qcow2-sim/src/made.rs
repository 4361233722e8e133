//! Images that a random workload has made, for operations on whole images: what their disks and snapshots hold is known.

use std::sync::Arc;

use qcow2_engine::{Chain, ChainOptions, CheckOptions, CheckReport, JobContext, Layer, Storage, check};
use qcow2_format::GuestOffset;

use crate::campaign::Campaign;
use crate::cut::{Choice, Cut};
use crate::open;
use crate::plan::Focus;
use crate::shape::Begin;
use crate::sweep::Bench;

/// An image, and what lies below it.
pub struct Made {
    /// The image's bytes.
    pub image: Vec<u8>,
    /// The data file's.
    pub data: Option<Vec<u8>>,
    /// How it began.
    pub begin: Begin,
    /// What a guest sees.
    pub disk: Vec<u8>,
    /// The snapshots: id, and what a guest sees of each.
    pub snapshots: Vec<(String, Vec<u8>)>,
}

/// Carries out a workload without threads on `shape`, and closes the disk.
///
/// # Errors
/// What went wrong, in words.
pub fn make(shape: &str, focus: Focus, seed: u64) -> Result<Made, String> {
    let campaign = Campaign {
        seed,
        shape: Some(shape.to_owned()),
        focus: Some(focus),
        faulty: 0,
        ..Campaign::default()
    };
    let mut case = campaign.case(seed);
    case.plan.ops.retain(|op| !op.is_parallel());
    let trace = campaign.trace(&case)?;
    if let Some(wrong) = trace.wrong {
        return Err(wrong);
    }
    let mut cut = Cut::new(&trace.begin.image, trace.begin.data.as_deref());
    for (at, event) in trace.events.iter().enumerate() {
        cut.advance(at, event);
    }
    let bench = Bench::default();
    cut.build(Choice::Prefix, [&bench.scratch[0], &bench.scratch[1]]);
    let image: Arc<dyn Storage> = bench.scratch[0].clone();
    let data: Option<Arc<dyn Storage>> = trace
        .begin
        .data
        .is_some()
        .then(|| -> Arc<dyn Storage> { bench.scratch[1].clone() });
    let chain = chain(&image, data.as_ref(), &trace.begin)?;
    let ids: Vec<String> = chain
        .layer(0)
        .map(|layer| layer.snapshots().to_vec())
        .unwrap_or_default()
        .into_iter()
        .map(|snapshot| String::from_utf8_lossy(&snapshot.id).into_owned())
        .collect();
    let snapshots = ids.into_iter().map(|id| {
        let chain = open::snapshot(&image, data.as_ref(), &trace.begin, &id).map_err(words)?;
        Ok((id, contents(&chain)?))
    });
    Ok(Made {
        image: bench.scratch[0].to_vec(),
        data: data.is_some().then(|| bench.scratch[1].to_vec()),
        disk: contents(&chain)?,
        snapshots: snapshots.collect::<Result<_, String>>()?,
        begin: trace.begin,
    })
}

/// The image with what lies below it, to be read.
///
/// # Errors
/// Those of opening, in words.
pub fn chain(image: &Arc<dyn Storage>, data: Option<&Arc<dyn Storage>>, begin: &Begin) -> Result<Chain, String> {
    let layers = open::layers(image, data, begin, false).map_err(words)?;
    stack(layers)
}

/// A chain of layers, top first.
///
/// # Errors
/// Those of opening, in words.
pub fn stack(layers: Vec<Layer>) -> Result<Chain, String> {
    let options = ChainOptions {
        cache_bytes: 1 << 20,
        ..ChainOptions::default()
    };
    Chain::new(layers, options).map_err(words)
}

/// What a guest sees.
///
/// # Errors
/// Those of reading, in words.
pub fn contents(chain: &Chain) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read(GuestOffset(0), &mut bytes).map_err(words)?;
    Ok(bytes)
}

/// What a check finds.
///
/// # Errors
/// Those of checking, in words.
pub fn checked(image: &Arc<dyn Storage>) -> Result<CheckReport, String> {
    let layer = Layer::open_qcow2(
        image.clone(),
        &qcow2_engine::LayerOptions {
            for_check: true,
            metadata_only: true,
            ..open::layer_options(false)
        },
    )
    .map_err(words)?;
    check(&layer, &CheckOptions { max_findings: 64 }, &JobContext::quiet()).map_err(words)
}

/// An error in words.
pub fn words(error: qcow2_engine::Error) -> String {
    error.to_string()
}

/// Where two contents differ first, in words.
///
/// # Errors
/// That.
pub fn same(what: &str, found: &[u8], wanted: &[u8]) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    let at = found.iter().zip(wanted).position(|(one, other)| one != other);
    Err(format!(
        "{what}: {} bytes, and {} were wanted; they differ from {at:#x?} on",
        found.len(),
        wanted.len()
    ))
}
