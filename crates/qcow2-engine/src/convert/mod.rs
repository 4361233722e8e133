//! Images into other images: `resolve → fetch → transform → sink`.
//!
//! The scanner walks the source's mapping and cuts it into items: ranges that read as zeros, ranges that the target's backing file already
//! has, and chunks with data. Workers fetch and transform chunks in any order; the sink takes everything in guest order. What is written
//! depends on the items, and these on the source alone: not on the number of workers.

mod bitmaps;
mod salvage;
mod scan;
mod source;
mod transform;

use std::sync::Arc;
use std::time::{Duration, Instant};

use qcow2_codec::Compression;
use qcow2_format::{CompressionType, Version};

use crate::chain::Chain;
use crate::create::{CreateOptions, NewImage};
use crate::error::{Error, Result};
use crate::layer::Format;
use crate::pipeline::{self, Crowd};
use crate::progress::JobContext;
use crate::sink::{Chunk, Preallocation};
use crate::storage::Storage;
use crate::target::Target;
use salvage::Losses;
pub use salvage::LostRange;
use scan::{Item, Scanner};
use source::Source;
use transform::Transform;

/// Largest [`ConvertOptions::sparse_size`].
pub const MAX_SPARSE_SIZE: u64 = 16 << 20;
/// Most workers.
pub const MAX_THREADS: usize = 64;
/// Guest bytes that one worker handles at a time, at least.
const CHUNK: u64 = 1 << 20;
/// Chunks under way or waiting for their turn, for each worker: as many as go on while the system keeps one worker from its processor.
const AHEAD: usize = 8;
/// Bytes that they take together at most, with their compressed forms. Eight of the largest, so that eight workers always have one each.
const IN_FLIGHT: u64 = 32 << 20;

/// What a conversion makes, and how.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The new image.
    pub create: CreateOptions,
    /// Clusters are stored compressed, by the image's compression type.
    pub compress: bool,
    /// Level of the compressor.
    pub level: Option<i32>,
    /// Zero areas of at least this many bytes are not stored: a multiple of 512, at most 16 MiB. 0 stores every byte.
    pub sparse_size: u64,
    /// Workers, 1 to 64.
    pub threads: usize,
    /// The new image's backing file, named by [`CreateOptions::backing_name`]: what reads the same there is not stored.
    pub backing: Option<Arc<Chain>>,
    /// A target that is written in place is known to read as zeros.
    pub target_is_zero: bool,
    /// The part of the source to convert: offset and length in bytes. What passes the source's end is not there.
    pub range: Option<(u64, u64)>,
    /// Most bytes that the new files may take.
    pub max_output: Option<u64>,
    /// Most bytes of source a second.
    pub rate_limit: Option<u64>,
    /// What of the source cannot be read becomes zeros, and is told in the report.
    pub salvage: bool,
    /// Bitmaps of the source's top layer that the target gets, by name.
    pub bitmaps: Vec<String>,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            create: CreateOptions::default(),
            compress: false,
            level: None,
            sparse_size: 4096,
            threads: 1,
            backing: None,
            target_is_zero: false,
            range: None,
            max_output: None,
            rate_limit: None,
            salvage: false,
            bitmaps: Vec::new(),
        }
    }
}

/// What a conversion did. Bytes are guest bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertReport {
    /// Virtual size in bytes of the new image.
    pub virtual_size: u64,
    /// Length of its file in bytes.
    pub file_size: u64,
    /// Bytes that were stored, plain or compressed.
    pub data_bytes: u64,
    /// Bytes that became zeros or holes.
    pub zero_bytes: u64,
    /// Clusters that were stored compressed.
    pub compressed_clusters: u64,
    /// With [`ConvertOptions::salvage`]: what could not be read, by rising offset.
    pub lost: Vec<LostRange>,
    /// How many such ranges are not listed.
    pub lost_omitted: u64,
}

/// Makes a new image of the content of `sources`, one behind the other.
///
/// # Errors
/// As [`create`](crate::create()); `SAME_FILE` if the target is a file that a source, or the backing file, needs; those of reading a source;
/// [`Error::Limit`] past `max_output`. Nothing is left behind then, but in a target that is written in place.
pub fn convert(
    sources: &[Arc<Chain>],
    target: &Target,
    options: &ConvertOptions,
    job: &JobContext,
) -> Result<ConvertReport> {
    check(sources, target, options)?;
    let bitmaps = match sources {
        [chain] => bitmaps::load(chain, &options.bitmaps)?,
        _ => Vec::new(),
    };
    let losses = options.salvage.then(|| Arc::new(Losses::default()));
    let source = Source::new(sources, options.range)?;
    let create = &options.create;
    let size = create.virtual_size(Some(source.size()))?;
    if size < source.size() {
        return Err(state("TARGET_TOO_SMALL", "output file is smaller than input file"));
    }
    let backing = options
        .backing
        .as_ref()
        .map(|chain| Source::new(std::slice::from_ref(chain), None));
    let backing = backing.transpose()?;
    let files = files(sources.iter().chain(&options.backing));
    let transform = Transform::new(source.clone(), backing.clone(), options, losses.clone())?;
    let in_place = (options.target_is_zero, options.max_output);
    let mut image = NewImage::begin(target, create, size, &files, in_place, job)?;
    let cipher = image.cipher.clone();
    let cluster = if create.format == Format::Qcow2 {
        create.cluster_size
    } else {
        4096
    };
    let scanner = Scanner {
        // No cluster is decompressed for two chunks.
        chunk: CHUNK.max(cluster).max(source.largest_cluster()),
        source,
        backing,
        size,
        cluster,
        says_zero: create.version == Version::V3,
        stores_zeros: options.sparse_size == 0,
        losses: losses.clone(),
    };
    job.progress.begin("convert", size);
    let mut pace = Pace::new(options.rate_limit);
    let spare = transform.spare();
    pipeline::run(
        crowd(options, scanner.chunk),
        scanner.items(job),
        || transform.worker(),
        |worker, item| match item {
            Item::Chunk { start, length } => worker.prepare(start, length).map(Step::Chunk),
            Item::Zero { start, length } => Ok(Step::Fill(start, length, false)),
            Item::Leave { start, length } => Ok(Step::Fill(start, length, true)),
        },
        |step| match step {
            Step::Fill(start, length, leave) => image.fill(start, length, leave, job),
            Step::Chunk(chunk) => {
                image.sink.place(&chunk)?;
                job.progress.advance(chunk.length);
                let length = chunk.length;
                spare.give(chunk);
                pace.keep(length, job)
            }
        },
    )?;
    let report = image.finish(job, |image, data| {
        if bitmaps.is_empty() {
            return Ok(None);
        }
        bitmaps::store((image, data), cipher, &bitmaps).map(Some)
    })?;
    if let Target::Disk(disk) = target {
        bitmaps::add(disk, &bitmaps)?;
    }
    let (lost, lost_omitted) = losses.map(|losses| losses.take()).unwrap_or_default();
    job.progress.finish();
    Ok(ConvertReport {
        virtual_size: size,
        file_size: report.file_length,
        data_bytes: report.data_bytes,
        zero_bytes: report.zero_bytes,
        compressed_clusters: report.compressed_clusters,
        lost,
        lost_omitted,
    })
}

/// As many workers as were asked for, unless their chunks would take too much memory.
fn crowd(options: &ConvertOptions, chunk: u64) -> Crowd {
    let bytes = if options.compress {
        chunk.saturating_mul(2)
    } else {
        chunk
    };
    let most = usize::try_from(IN_FLIGHT / bytes.max(1)).unwrap_or(usize::MAX);
    Crowd {
        threads: options.threads,
        window: AHEAD.saturating_mul(options.threads).min(most),
    }
}

/// What the sink is handed.
enum Step {
    Chunk(Chunk),
    /// A range without content; whether it is left to the backing file.
    Fill(qcow2_format::GuestOffset, u64, bool),
}

fn check(sources: &[Arc<Chain>], target: &Target, options: &ConvertOptions) -> Result<()> {
    let create = &options.create;
    let raw = create.format != Format::Qcow2;
    if !options.sparse_size.is_multiple_of(512) || options.sparse_size > MAX_SPARSE_SIZE {
        return Err(invalid(
            "sparseSize",
            "it must be a multiple of 512 up to 16777216, or 0",
        ));
    }
    if !(1..=MAX_THREADS).contains(&options.threads) {
        return Err(invalid("threads", "it must be 1 to 64"));
    }
    if options.rate_limit == Some(0) {
        return Err(invalid("rateLimit", "it must not be 0"));
    }
    if options.compress && raw {
        return Err(state(
            "COMPRESSION_UNSUPPORTED",
            "Compression not supported for this file format",
        ));
    }
    if options.compress && create.preallocation != Preallocation::Off {
        return Err(state(
            "COMPRESSION_PREALLOCATION",
            "Compression and preallocation not supported at the same time",
        ));
    }
    if options.compress && create.encryption.is_some() {
        return Err(state(
            "COMPRESSION_ENCRYPTION",
            "Compression and encryption not supported at the same time",
        ));
    }
    if options.compress && create.data_file.is_some() {
        return Err(state(
            "COMPRESSION_DATA_FILE",
            "an external data file holds no compressed clusters",
        ));
    }
    if !options.compress && options.level.is_some() {
        return Err(invalid("level", "there is nothing to compress"));
    }
    if options.backing.is_some() && sources.len() > 1 {
        return Err(state(
            "CONCAT_BACKING",
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ));
    }
    if options.backing.is_some() != create.backing_name.is_some() {
        return Err(invalid(
            "backing",
            "the backing file's name and the backing file come together",
        ));
    }
    if !options.bitmaps.is_empty() && sources.len() > 1 {
        return Err(state(
            "CONCAT_BITMAPS",
            "Copying bitmaps only possible with single source",
        ));
    }
    if !options.bitmaps.is_empty() && raw && !matches!(target, Target::Disk(_)) {
        return Err(state(
            "BITMAPS_UNSUPPORTED",
            "Format driver 'raw' does not support bitmaps",
        ));
    }
    if !raw && matches!(target, Target::Disk(_)) {
        return Err(invalid(
            "target",
            "a disk is written as it is: the format is its own matter",
        ));
    }
    if options.target_is_zero && !matches!(target, Target::InPlace { .. } | Target::Disk(_)) {
        return Err(invalid("targetIsZero", "the target is not written in place"));
    }
    Ok(())
}

/// Every file that reading `chains` needs.
fn files<'a>(chains: impl Iterator<Item = &'a Arc<Chain>>) -> Vec<Arc<dyn Storage>> {
    let layers = chains.flat_map(|chain| chain.layers());
    let files = layers.flat_map(|layer| [Some(layer.storage()), layer.data_file()]);
    files.flatten().cloned().collect()
}

/// The codec of a compression type.
pub(crate) fn codec(kind: CompressionType) -> Compression {
    match kind {
        CompressionType::Deflate => Compression::Deflate,
        CompressionType::Zstd => Compression::Zstd,
        CompressionType::Lz4 => Compression::Lz4,
    }
}

fn invalid(argument: &'static str, reason: &str) -> Error {
    Error::Invalid {
        argument,
        reason: reason.to_owned(),
    }
}

fn state(code: &'static str, reason: &str) -> Error {
    Error::State {
        code,
        path: None,
        reason: reason.to_owned(),
    }
}

/// Keeps a job from going faster than it may.
pub(crate) struct Pace {
    limit: Option<u64>,
    began: Instant,
    done: u64,
}

impl Pace {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            began: Instant::now(),
            done: 0,
        }
    }

    /// `bytes` more are done: waits until so many may be.
    pub(crate) fn keep(&mut self, bytes: u64, job: &JobContext) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        self.done = self.done.saturating_add(bytes);
        let nanoseconds = u128::from(self.done) * 1_000_000_000 / u128::from(limit.max(1));
        let due = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        while let Some(rest) = due.checked_sub(self.began.elapsed()).filter(|rest| !rest.is_zero()) {
            job.cancel.check()?;
            std::thread::sleep(rest.min(Duration::from_millis(50)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_fits_its_memory_and_keeps_eight_workers_busy() {
        for threads in [1, 2, 8, 64] {
            for compress in [false, true] {
                for chunk in [1 << 20, 2 << 20] {
                    let options = ConvertOptions {
                        threads,
                        compress,
                        ..ConvertOptions::default()
                    };
                    let Crowd { threads, window } = crowd(&options, chunk);
                    assert!(window >= threads.min(8));
                    assert!(window as u64 * chunk * if compress { 2 } else { 1 } <= IN_FLIGHT);
                }
            }
        }
    }
}
