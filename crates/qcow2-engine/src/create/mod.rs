//! New images without content.

mod encryption;
mod options;

use std::sync::Arc;

use qcow2_format::{GuestOffset, HostOffset};

pub use encryption::NewEncryption;
pub use options::{CREATE_REFUSALS, CreateOptions, NewDataFile};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::layer::{Format, GuestCipher, SealedStorage};
use crate::progress::JobContext;
use crate::sink::{DiskSink, Preallocation, Qcow2Sink, RawSink, Sink, SinkReport};
use crate::storage::Storage;
use crate::target::{OpenTarget, Target, different};

/// Between looks at the cancel token: guest bytes, and clusters at most.
const STEP_CLUSTERS: u64 = 1 << 20;

/// What [`create`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateReport {
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
}

/// Makes a new image that reads as zeros, or as its backing file.
///
/// # Errors
/// [`Error::State`] with a code of [`CREATE_REFUSALS`] for options that the format does not have together; `EXISTS`, `NOT_REGULAR`,
/// `TARGET_TOO_SMALL`, [`Error::Locked`], [`Error::Io`] from the target; [`Error::Cancelled`]. Nothing is left behind then.
pub fn create(target: &Target, options: &CreateOptions, job: &JobContext) -> Result<CreateReport> {
    let size = options.virtual_size(None)?;
    let mut image = NewImage::begin(target, options, size, &[], (false, None), job)?;
    job.progress.begin("create", size);
    // A container that nobody has written to holds noise, as those of other programs do.
    if options.format != Format::Luks || options.preallocation == Preallocation::Full {
        image.fill(GuestOffset(0), size, options.backing_name.is_some(), job)?;
    }
    let file_size = image.finish(job, |_, _| Ok(None))?.file_length;
    job.progress.finish();
    Ok(CreateReport {
        virtual_size: size,
        file_size,
    })
}

/// Targets and the sink that writes them.
pub(crate) struct NewImage {
    pub(crate) sink: Box<dyn Sink>,
    /// None: the sink writes into a disk that is open already.
    target: Option<OpenTarget>,
    data_file: Option<OpenTarget>,
    cluster_size: u64,
    /// What guest clusters are encrypted with.
    pub(crate) cipher: Option<Arc<GuestCipher>>,
    /// Bytes of the file before what the sink writes.
    before: u64,
}

impl NewImage {
    /// Opens the targets for an image of `size` bytes, which must be none of `sources`. `reads_zero`: whatever is there already is zeros.
    pub(crate) fn begin(
        target: &Target,
        options: &CreateOptions,
        size: u64,
        sources: &[Arc<dyn Storage>],
        (reads_zero, max_length): (bool, Option<u64>),
        job: &JobContext,
    ) -> Result<Self> {
        if let Target::Disk(disk) = target {
            return Self::in_disk(disk, size, sources, reads_zero);
        }
        let layout = match options.format {
            Format::Raw => {
                options.check_raw()?;
                None
            }
            Format::Luks => {
                options.check_luks()?;
                None
            }
            Format::Qcow2 => Some(options.layout(size)?),
        };
        let container = options.format == Format::Luks;
        if (layout.is_some() || container) && matches!(target, Target::InPlace { .. }) {
            return Err(Error::Invalid {
                argument: "target",
                reason: "a new image is not made in place: open the one that is there, and give its disk".to_owned(),
            });
        }
        let detached = options.encryption.as_ref().is_some_and(NewEncryption::is_detached);
        if detached && (!container || size > 0) {
            return Err(Error::Invalid {
                argument: "detachedHeader",
                reason: "a header of its own has no disk in it: it is made alone, without a size".to_owned(),
            });
        }
        let encryption = options.encryption.as_ref();
        let encryption = encryption.map(|new| new.make(job)).transpose()?;
        let cipher = encryption.as_ref().map(|made| made.cipher.clone());
        let target = OpenTarget::open(target, options.attributes(), sources)?;
        let data_file = options.data_file.as_ref();
        let data_file = data_file
            .map(|file| OpenTarget::open(&file.target, options.attributes(), sources))
            .transpose()?;
        if let Some(data_file) = &data_file {
            data_file.check_room(size)?;
            if data_file.is_same_file(&target) {
                return Err(same_file(target.storage()));
            }
        }
        let fresh = target.is_fresh();
        let storage = Arc::clone(target.storage());
        let mut before = 0;
        let (sink, cluster_size): (Box<dyn Sink>, _) = match (layout, encryption) {
            (Some(layout), encryption) => {
                let data = data_file.as_ref();
                let data = data.map(|data| (Arc::clone(data.storage()), data.is_fresh()));
                let cluster_size = layout.header.geometry.cluster_size();
                let sink = Qcow2Sink::new(layout, (storage, fresh), data, encryption, max_length)?;
                (Box::new(sink), cluster_size)
            }
            (None, Some(made)) => {
                target.check_room(size.saturating_add(made.length))?;
                before = made.length;
                let failed = |operation| Error::io(operation, &*storage);
                storage.write_at(HostOffset(0), &made.header).map_err(failed("write"))?;
                storage.set_length(before).map_err(failed("truncate"))?;
                // Zeros are written, for what nobody writes reads as noise.
                let payload = Arc::new(SealedStorage::new(storage.clone(), before, made.cipher)?);
                let sink = RawSink::new(payload, size, options.preallocation, (false, true), max_length)?;
                (Box::new(sink), 4096)
            }
            (None, None) => {
                target.check_room(size)?;
                let zeroed = fresh || reads_zero;
                let sink = RawSink::new(storage, size, options.preallocation, (zeroed, fresh), max_length)?;
                (Box::new(sink), 4096)
            }
        };
        Ok(Self {
            sink,
            target: Some(target),
            data_file,
            cluster_size,
            cipher,
            before,
        })
    }

    fn in_disk(disk: &Arc<Disk>, size: u64, sources: &[Arc<dyn Storage>], reads_zero: bool) -> Result<Self> {
        let top = disk.chain().layer(0).ok_or(Error::Closed)?;
        for storage in [Some(top.storage()), top.data_file()].into_iter().flatten() {
            different(&**storage, sources)?;
        }
        let there = disk.chain().virtual_size();
        if there < size {
            return Err(Error::State {
                code: "TARGET_TOO_SMALL",
                path: top.path(),
                reason: format!("the target has {there} bytes, but {size} are needed"),
            });
        }
        Ok(Self {
            sink: Box::new(DiskSink::new(disk.clone(), reads_zero)),
            target: None,
            data_file: None,
            cluster_size: 4096,
            cipher: None,
            before: 0,
        })
    }

    /// A range without content: zeros, or what the backing file has.
    pub(crate) fn fill(&mut self, start: GuestOffset, length: u64, leave: bool, job: &JobContext) -> Result<()> {
        let step = STEP_CLUSTERS.saturating_mul(self.cluster_size);
        let mut done = 0;
        while done < length {
            job.cancel.check()?;
            let piece = step.min(length - done);
            let at = GuestOffset(start.0 + done);
            if leave {
                self.sink.leave(at, piece)?;
            } else {
                self.sink.zeros(at, piece)?;
            }
            done += piece;
            job.progress.advance(piece);
        }
        Ok(())
    }

    /// Writes the rest, and gives the files their names. Before that `complete` may change the whole image, and its data file; it answers the
    /// file's length if it has.
    pub(crate) fn finish(
        mut self,
        job: &JobContext,
        complete: impl FnOnce(&Arc<dyn Storage>, Option<&Arc<dyn Storage>>) -> Result<Option<u64>>,
    ) -> Result<SinkReport> {
        job.cancel.check()?;
        let mut report = self.sink.finish()?;
        report.file_length = report.file_length.saturating_add(self.before);
        // The last moment at which cancelling leaves everything as it was.
        job.cancel.check()?;
        drop(self.sink);
        let Some(target) = self.target else { return Ok(report) };
        let data = self.data_file.as_ref().map(OpenTarget::storage);
        if let Some(length) = complete(target.storage(), data)? {
            report.file_length = length;
        }
        let data_file = self.data_file.map(OpenTarget::publish).transpose()?;
        match target.publish() {
            Ok(_) => Ok(report),
            Err(error) => {
                if let Some(data_file) = data_file {
                    data_file.withdraw();
                }
                Err(error)
            }
        }
    }
}

fn same_file(storage: &Arc<dyn Storage>) -> Error {
    Error::State {
        code: "SAME_FILE",
        path: storage.path().map(Into::into),
        reason: "the image and its data file are the same file".to_owned(),
    }
}
