//! *amend*: another version, other widths, other features of an image that is there.
//!
//! What has to be done to the content is done through the disk: another size, zero clusters that version 2 cannot say. Then the disk is closed, and
//! nothing but this writes to the image, whose locks are held still. Then the header changes, by one sector each time: to version 3, the refcount
//! structure (a whole new one beside the old one), to version 2. Wherever that ends, the image is right; at most it has clusters that nothing refers to.

mod refcounts;

use std::sync::PoisonError;

use qcow2_format::features::{autoclear, compatible, incompatible};
use qcow2_format::header::{V2_LENGTH, WRITTEN_LENGTH};
use qcow2_format::header_switch::{HeaderNames, switch_header};
use qcow2_format::{CompressionType, Header, HostOffset, RefcountOrder, Version};

use super::names::{first_cluster, sectors};
use super::resize::ResizeOptions;
use super::{Disk, Image};
use crate::check::{CheckOptions, check};
use crate::error::{Error, Result};
use crate::layer::{Format, Layer, LayerOptions};
use crate::luks::{KeySlotChange, SlotPlan, apply_slots, plan_slots};
use crate::progress::JobContext;

/// What is changed; what is `None` stays as it is.
#[derive(Debug, Default)]
pub struct AmendOptions {
    /// Version of the format.
    pub version: Option<Version>,
    /// Width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64.
    pub refcount_bits: Option<u32>,
    /// Whether refcounts may be late, under the dirty mark.
    pub lazy_refcounts: Option<bool>,
    /// Whether the data file stays valid as a raw image. It can only be given up.
    pub data_file_raw: Option<bool>,
    /// Name of the external data file, as recorded. The file itself is not touched.
    pub data_file: Option<String>,
    /// Virtual size in bytes, a multiple of 512. A smaller one drops what lies beyond.
    pub size: Option<u64>,
    /// Passwords of an image with LUKS encryption. It is changed last.
    pub key_slots: Option<KeySlotChange>,
}

/// What the header says when all is done.
struct Aim {
    version: Version,
    order: RefcountOrder,
    lazy: bool,
    raw: bool,
    slots: Option<SlotPlan>,
}

impl Disk {
    /// Changes the format of the image, and closes the disk, also if it fails. Guests and snapshots see what they saw. Durable when it returns.
    ///
    /// What contradicts itself, or what the image holds, is refused before anything is changed. After any other error, a cancellation or a crash the
    /// image is right, with some of the changes made; the same call completes them.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::State`] with code `AMEND` for what cannot be, `REFCOUNT_OVERFLOW` for a count that is too large, `REFCOUNT_TABLE_FULL`;
    /// [`Error::Cancelled`]; those of [`Disk::resize`] and [`Disk::flush`].
    pub fn amend(&self, options: &AmendOptions, job: &JobContext) -> Result<()> {
        if self.chain.layer(0).is_some_and(|top| top.format() == Format::Luks) {
            let outcome = self.amend_container(options, job);
            let closed = self.close();
            return outcome.and(closed);
        }
        let outcome = self.amend_open(options, job);
        let closed = self.close();
        let aim = outcome?;
        closed?;
        let image = self.image()?;
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        image.amend_closed(&aim, options, job)
    }

    /// Of a LUKS container, its key slots can be changed.
    fn amend_container(&self, options: &AmendOptions, job: &JobContext) -> Result<()> {
        self.refuse()?;
        let top = self.chain.layer(0).ok_or(Error::Closed)?;
        let others = options.version.is_some()
            || options.refcount_bits.is_some()
            || options.lazy_refcounts.is_some()
            || options.data_file_raw.is_some()
            || options.data_file.is_some()
            || options.size.is_some();
        let (Some(change), Some(volume), false) = (&options.key_slots, top.luks()?, others) else {
            return Err(top.state("AMEND", "of a LUKS container, the key slots can be amended"));
        };
        let most = top.options().limits.max_key_iterations;
        let plan = plan_slots(top.luks_header(), volume, change, most, job)?;
        apply_slots(top.luks_header(), volume, change, &plan, job)
    }

    /// What is done while the disk is one.
    fn amend_open(&self, options: &AmendOptions, job: &JobContext) -> Result<Aim> {
        self.refuse()?;
        let image = self.image()?;
        let mut aim = image.aim(options)?;
        aim.slots = image.key_slots(options, job)?;
        let down = aim.version == Version::V2 && !image.rules().version2;
        if aim.order != image.lock().order {
            image.begin_writing()?;
            image.quiesce()?;
            image.refuse_damaged(job)?;
            refcounts::refuse(&image.storage, aim.order, job)?;
        }
        if let Some(size) = options.size {
            let resize = ResizeOptions {
                shrink: true,
                ..ResizeOptions::default()
            };
            self.resize(size, resize)?;
        }
        if down {
            image.without_zeros(job)?;
        }
        Ok(aim)
    }
}

impl Image {
    /// What is wanted, if it can be.
    fn aim(&self, options: &AmendOptions) -> Result<Aim> {
        let header = Header::parse(&first_cluster(&*self.storage, self.geometry.cluster_len())?)
            .map_err(|error| self.format_error(error))?;
        let version = options.version.unwrap_or(header.version);
        let invalid = |argument, reason: &str| Error::Invalid {
            argument,
            reason: reason.into(),
        };
        let order = match options.refcount_bits {
            None => header.refcount_order,
            Some(bits) => RefcountOrder::from_bits(bits).ok_or(invalid(
                "refcountBits",
                "Refcount width must be a power of two and may not exceed 64 bits",
            ))?,
        };
        let v2 = version == Version::V2;
        if v2 && options.lazy_refcounts == Some(true) {
            return Err(self.amend_state(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        if v2 && order.bits() != 16 {
            return Err(self.amend_state(match options.refcount_bits {
                Some(bits) if bits != 16 && bits != header.refcount_order.bits() => {
                    "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
                }
                _ => "compat=0.10 requires refcount_bits=16",
            }));
        }
        let external = header.has(incompatible::DATA_FILE);
        let raw = header.autoclear & autoclear::RAW_DATA_FILE != 0;
        if options.data_file_raw == Some(true) && !raw {
            return Err(self.amend_state("data-file-raw cannot be set on existing images"));
        }
        if options.data_file.is_some() && !external {
            return Err(self.amend_state("data-file can only be set for images that use an external data file"));
        }
        if v2 && header.version == Version::V3 {
            self.refuse_downgrade(&header)?;
        }
        let lazy = header.compatible & compatible::LAZY_REFCOUNTS != 0;
        Ok(Aim {
            version,
            order,
            lazy: options.lazy_refcounts.unwrap_or(lazy) && !v2,
            raw: raw && options.data_file_raw != Some(false),
            slots: None,
        })
    }

    /// What becomes of the key slots.
    fn key_slots(&self, options: &AmendOptions, job: &JobContext) -> Result<Option<SlotPlan>> {
        let Some(change) = &options.key_slots else {
            return Ok(None);
        };
        let top = self.chain.layer(0).ok_or(Error::Closed)?;
        let volume = match top.luks()? {
            Some(volume) => volume,
            None if top.encryption().is_some() => {
                return Err(self.amend_state("Only LUKS encryption options can be amended"));
            }
            None => return Err(self.amend_state("Can't amend encryption options - encryption not present")),
        };
        let most = top.options().limits.max_key_iterations;
        plan_slots(top.luks_header(), volume, change, most, job).map(Some)
    }

    fn refuse_downgrade(&self, header: &Header) -> Result<()> {
        if header.has(incompatible::DATA_FILE) {
            return Err(self.amend_state("Cannot downgrade an image with a data file"));
        }
        let gone = incompatible::DIRTY | incompatible::CORRUPT | incompatible::COMPRESSION;
        let left = header.incompatible & !gone;
        if left != 0 {
            let reason = format!("Cannot downgrade an image with incompatible features {left:#x} set");
            return Err(self.amend_state(&reason));
        }
        if !self.bitmaps.is_empty() {
            return Err(self.amend_state("Bitmaps prevent downgrade of image: they cannot be stored in version 2"));
        }
        let size = self.chain.virtual_size();
        let snapshots = self.lock().snapshots.clone();
        let other = |snapshot: &qcow2_format::Snapshot| {
            snapshot.disk_size.is_some_and(|own| own != size) || snapshot.vm_state_size > u64::from(u32::MAX)
        };
        if snapshots.iter().any(other) {
            return Err(self.amend_state("Internal snapshots prevent downgrade of image"));
        }
        Ok(())
    }

    /// Counts are moved to another place, and the place they had is given back: that has to be theirs.
    fn refuse_damaged(&self, job: &JobContext) -> Result<()> {
        let options = LayerOptions {
            for_check: true,
            metadata_only: true,
            ..LayerOptions::default()
        };
        let layer = Layer::open_unlocked(self.storage.clone(), &options)?;
        let report = check(&layer, &CheckOptions { max_findings: 1 }, job)?;
        if report.corruptions == 0 && report.check_errors == 0 {
            return Ok(());
        }
        Err(self.amend_state(&format!(
            "the image has {} errors: repair it first (check -r all)",
            report.corruptions.saturating_add(report.check_errors)
        )))
    }

    /// Nothing says zero any more, in the disk and in its snapshots.
    fn without_zeros(&self, job: &JobContext) -> Result<()> {
        self.begin_writing()?;
        self.quiesce()?;
        let below = self.chain.layer(1).map_or(0, Layer::virtual_size);
        let survey = self.survey(below, job)?;
        let compression = self
            .chain
            .layer(0)
            .and_then(Layer::header)
            .map(|header| header.compression);
        if survey.compressed && compression != Some(CompressionType::Deflate) {
            return Err(self
                .amend_state("Cannot downgrade an image with zstd compression type and existing compressed clusters"));
        }
        if let Some(name) = survey.hiding_snapshot {
            return Err(self.amend_state(&format!(
                "Internal snapshots prevent downgrade of image: '{name}' has zero clusters that hide its backing file"
            )));
        }
        let total = survey.hiding.iter().map(|(begin, end)| end - begin).sum();
        job.progress.begin("amend", total);
        for (begin, end) in survey.hiding {
            // What hides a backing file is zeros then.
            let end = end.min(self.chain.virtual_size());
            let mut at = begin;
            while at < end {
                job.cancel.check()?;
                let stop = (at + (1 << 20)).min(end);
                self.begin_change(qcow2_format::GuestOffset(at), stop - at)?;
                let ticket = self.chain.ticket();
                self.write_zeros(at, stop)?;
                drop(ticket);
                job.progress.advance(stop - at);
                at = stop;
            }
        }
        job.progress.finish();
        if survey.zeros {
            self.drop_zeros()?;
        }
        Ok(())
    }

    /// The disk is closed, and nobody else writes.
    fn amend_closed(&self, aim: &Aim, options: &AmendOptions, job: &JobContext) -> Result<()> {
        let mut cluster = first_cluster(&*self.storage, self.geometry.cluster_len())?;
        let mut header = Header::parse(&cluster).map_err(|error| self.format_error(error))?;
        if header.version == Version::V2 && aim.version == Version::V3 {
            header.version = Version::V3;
            header.length = WRITTEN_LENGTH;
        }
        if header.version == Version::V3 {
            let set = |bits: u64, bit: u64, on: bool| if on { bits | bit } else { bits & !bit };
            header.compatible = set(header.compatible, compatible::LAZY_REFCOUNTS, aim.lazy);
            header.autoclear = set(header.autoclear, autoclear::RAW_DATA_FILE, aim.raw);
        }
        let data_file = options.data_file.as_ref().map(|name| name.clone().into_bytes());
        self.switch_to(&mut cluster, &header, data_file)?;
        if aim.order != header.refcount_order {
            refcounts::rebuild(&self.storage, aim.order, job)?;
            cluster = first_cluster(&*self.storage, self.geometry.cluster_len())?;
            header = Header::parse(&cluster).map_err(|error| self.format_error(error))?;
        }
        if header.version == Version::V3 && aim.version == Version::V2 {
            header.version = Version::V2;
            header.length = V2_LENGTH;
            header.unknown_fields.clear();
            (header.incompatible, header.compatible, header.autoclear) = (0, 0, 0);
            header.compression = CompressionType::Deflate;
            self.switch_to(&mut cluster, &header, None)?;
        }
        self.storage.sync().map_err(Error::io("fsync", &*self.storage))?;
        let volume = self.chain.layer(0).map_or(Ok(None), Layer::luks)?;
        match (&aim.slots, &options.key_slots, volume) {
            (Some(plan), Some(change), Some(volume)) => apply_slots(&self.storage, volume, change, plan, job),
            _ => Ok(()),
        }
    }

    fn switch_to(&self, cluster: &mut Vec<u8>, header: &Header, data_file: Option<Vec<u8>>) -> Result<()> {
        let patches = HeaderNames::of(cluster).and_then(|mut names| {
            if data_file.is_some() {
                names.data_file = data_file;
            }
            switch_header(cluster, header, &names)
        });
        let patches = patches.map_err(|error| self.format_error(error))?;
        for patch in &patches {
            let (begin, bytes) = sectors(cluster, std::slice::from_ref(patch));
            let outcome = self.storage.write_at(HostOffset(begin), &bytes);
            outcome.map_err(Error::io("write", &*self.storage))?;
            self.storage.sync().map_err(Error::io("fsync", &*self.storage))?;
        }
        Ok(())
    }

    fn amend_state(&self, reason: &str) -> Error {
        Error::State {
            code: "AMEND",
            path: self.storage.path().map(Into::into),
            reason: reason.into(),
        }
    }
}
