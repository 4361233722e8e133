//! One opened image or raw file.

mod guest;
mod open;
mod sealed;
mod tables;

use std::sync::Arc;

pub(crate) use guest::{Count, GuestCipher, GuestData};
use qcow2_format::bitmap::Bitmap;
use qcow2_format::entry::EntryRules;
use qcow2_format::{EncryptionMethod, Extensions, FormatError, Header, L1Entry, Snapshot};
pub(crate) use sealed::SealedStorage;

use crate::error::{Error, Result};
use crate::lock::{ImageLock, LockMode, Locking};
use crate::luks::{self, LuksVolume, Secret};
use crate::notice::Notice;
use crate::progress::JobContext;
use crate::storage::{Identity, Storage};

/// What a layer's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A qcow2 image.
    Qcow2,
    /// The disk's bytes as they are.
    Raw,
    /// A LUKS1 container: a header, and the disk's bytes behind it, encrypted.
    Luks,
}

impl Format {
    /// `"qcow2"`, `"raw"` or `"luks"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Luks => "luks",
        }
    }

    /// The format that the first bytes of a file show, by QEMU's rule: qcow2 if the magic is there with a version from 2 up, luks for LUKS1. Version 1 counts as
    /// qcow2 too, which opening then refuses by its name: as a raw disk it would be read as what it is not.
    pub fn probe(prefix: &[u8]) -> Self {
        let version = prefix.get(4..8).and_then(|bytes| bytes.try_into().ok());
        let version = version.map_or(0, u32::from_be_bytes);
        if prefix.starts_with(&qcow2_format::header::MAGIC) && version >= 1 {
            Self::Qcow2
        } else if prefix.starts_with(&qcow2_format::luks::MAGIC) && prefix.get(6..8) == Some(&[0, 1]) {
            Self::Luks
        } else {
            Self::Raw
        }
    }
}

/// Several times what the fastest machines write at QEMU's default of two seconds, in all eight slots; half a minute of work at most.
const DEFAULT_KEY_ITERATIONS: u64 = 200_000_000;

/// Bounds on what an image may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest virtual size in bytes; none: the format's own.
    pub max_virtual_size: Option<u64>,
    /// Most bytes of tables that are kept for one layer.
    pub max_memory: u64,
    /// Most layers of a chain.
    pub max_chain_depth: u32,
    /// Most iterations of PBKDF2 that the key slots of one LUKS header may ask for in all.
    pub max_key_iterations: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_virtual_size: None,
            max_memory: 256 << 20,
            max_chain_depth: 200,
            max_key_iterations: DEFAULT_KEY_ITERATIONS,
        }
    }
}

/// How a layer is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerOptions {
    /// Read although somebody may be writing. A notice says that what is read may be torn.
    pub force_share: bool,
    /// Whether locks are taken.
    pub locking: Locking,
    /// For writing too: takes the locks of a writer, on the data file as well. Its storage is open for writing. Not together with `force_share`.
    pub writable: bool,
    /// Bounds.
    pub limits: Limits,
    /// Only what the header, its extensions, the snapshot table and the bitmap directory say is wanted: neither key nor data file is needed.
    /// Such a layer cannot be part of a chain.
    pub metadata_only: bool,
    /// Open in spite of faults that a check reports: a damaged snapshot table, an L1 table that passes the end of the file.
    pub for_check: bool,
}

impl LayerOptions {
    /// How others see this use of the file.
    pub(crate) fn lock_mode(&self) -> LockMode {
        match (self.writable, self.force_share) {
            (true, _) => LockMode::Write,
            (false, true) => LockMode::ForceShare,
            (false, false) => LockMode::ReadOnly,
        }
    }
}

/// The parts that only a qcow2 layer has.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) header: Header,
    pub(crate) extensions: Extensions,
    pub(crate) rules: EntryRules,
    /// Empty if only metadata was wanted.
    pub(crate) l1: Arc<[L1Entry]>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) snapshot_table_bytes: u64,
    pub(crate) snapshot_fault: Option<FormatError>,
    pub(crate) bitmaps: Vec<Bitmap>,
    pub(crate) bitmap_fault: Option<FormatError>,
    /// The LUKS header, or why it cannot be used.
    pub(crate) luks: Option<Result<LuksVolume>>,
}

/// What only a LUKS container has.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) volume: LuksVolume,
    /// The file that the header is in: the container, or one of its own.
    pub(crate) header: Arc<dyn Storage>,
    /// The storage of the layer is the payload, decrypted.
    pub(crate) open: bool,
}

impl Container {
    /// Where the payload begins in its file, in bytes.
    pub(crate) fn payload(&self) -> u64 {
        u64::from(self.volume.header.payload).saturating_mul(qcow2_format::luks::SECTOR)
    }
}

/// One opened image or raw file, read-only.
#[derive(Debug)]
pub struct Layer {
    storage: Arc<dyn Storage>,
    data_file: Option<Arc<dyn Storage>>,
    guest: GuestData,
    locks: Vec<ImageLock>,
    image: Option<Box<Image>>,
    container: Option<Container>,
    virtual_size: u64,
    notices: Vec<Notice>,
    options: LayerOptions,
}

impl Layer {
    /// Opens a qcow2 image. Nothing that it names is opened.
    ///
    /// # Errors
    /// [`Error::Format`] for everything in header, extensions and tables that forbids reading, [`Error::Limit`],
    /// [`Error::Locked`], [`Error::Io`].
    pub fn open_qcow2(storage: Arc<dyn Storage>, options: &LayerOptions) -> Result<Self> {
        open::qcow2(storage, options)
    }

    /// Opens a qcow2 image whose locks the caller has.
    pub(crate) fn open_unlocked(storage: Arc<dyn Storage>, options: &LayerOptions) -> Result<Self> {
        open::unlocked(storage, options, (Vec::new(), Vec::new()))
    }

    /// Opens a raw file. Its virtual size is its length rounded up to whole sectors of 512 bytes.
    ///
    /// # Errors
    /// [`Error::Limit`], [`Error::Locked`], [`Error::Io`].
    pub fn open_raw(storage: Arc<dyn Storage>, options: &LayerOptions) -> Result<Self> {
        open::raw(storage, options)
    }

    /// Opens a LUKS1 container, whose header is its begin or in a file of its own. Its virtual size is that of the payload in whole sectors.
    ///
    /// # Errors
    /// [`Error::Format`] for a damaged header, [`Error::Limit`], [`Error::Locked`], [`Error::Io`].
    pub fn open_luks(
        storage: Arc<dyn Storage>,
        header: Option<Arc<dyn Storage>>,
        options: &LayerOptions,
    ) -> Result<Self> {
        open::luks_container(storage, header, options)
    }

    /// What the layer's bytes mean.
    pub fn format(&self) -> Format {
        match (&self.image, &self.container) {
            (Some(_), _) => Format::Qcow2,
            (None, Some(_)) => Format::Luks,
            (None, None) => Format::Raw,
        }
    }

    /// Size of the disk in bytes, a multiple of 512.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// The header of a qcow2 layer.
    pub fn header(&self) -> Option<&Header> {
        self.image.as_ref().map(|image| &image.header)
    }

    /// The header extensions of a qcow2 layer.
    pub fn extensions(&self) -> Option<&Extensions> {
        self.image.as_ref().map(|image| &image.extensions)
    }

    /// Cluster size of a qcow2 layer in bytes.
    pub fn cluster_size(&self) -> Option<u64> {
        self.header().map(|header| header.geometry.cluster_size())
    }

    /// The internal snapshots. Their L1 tables are looked at when one is opened, not before.
    pub fn snapshots(&self) -> &[Snapshot] {
        self.image.as_ref().map_or(&[], |image| &image.snapshots)
    }

    /// Length of the snapshot table in bytes.
    pub fn snapshot_table_bytes(&self) -> u64 {
        self.image.as_ref().map_or(0, |image| image.snapshot_table_bytes)
    }

    /// Why the snapshot table cannot be read; only with [`LayerOptions::for_check`].
    pub fn snapshot_fault(&self) -> Option<&FormatError> {
        self.image.as_ref().and_then(|image| image.snapshot_fault.as_ref())
    }

    /// The persistent bitmaps: none if the directory is damaged or stale.
    pub fn bitmaps(&self) -> &[Bitmap] {
        self.image.as_ref().map_or(&[], |image| &image.bitmaps)
    }

    /// Why the bitmap directory cannot be read.
    pub fn bitmap_fault(&self) -> Option<&FormatError> {
        self.image.as_ref().and_then(|image| image.bitmap_fault.as_ref())
    }

    /// The active L1 table of a qcow2 layer; empty if only metadata was wanted.
    pub fn l1(&self) -> &[L1Entry] {
        self.image.as_ref().map_or(&[], |image| &image.l1)
    }

    /// What was found on opening that a reader should know.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// The file itself.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The external data file, once attached.
    pub fn data_file(&self) -> Option<&Arc<dyn Storage>> {
        self.data_file.as_ref()
    }

    /// The options that it was opened with.
    pub fn options(&self) -> &LayerOptions {
        &self.options
    }

    /// Whether guest data lives in an external data file that is not attached yet.
    pub fn needs_data_file(&self) -> bool {
        self.data_file.is_none() && self.image.as_ref().is_some_and(|image| image.rules.data_file)
    }

    /// Attaches the external data file.
    ///
    /// # Errors
    /// [`Error::State`] if the image has none, or if it is the image itself; [`Error::Locked`].
    pub fn set_data_file(&mut self, storage: Arc<dyn Storage>) -> Result<()> {
        if !self.image.as_ref().is_some_and(|image| image.rules.data_file) {
            return Err(self.state("NO_DATA_FILE", "the image has no external data file"));
        }
        if same_place(&*storage, &*self.storage) {
            return Err(self.state("SAME_FILE", "the image is named as its own data file"));
        }
        let (lock, notice) = ImageLock::acquire(storage.clone(), self.options.lock_mode(), self.options.locking)?;
        self.locks.push(lock);
        self.notices.extend(notice);
        self.guest = self.guest.moved_to(storage.clone());
        self.data_file = Some(storage);
        Ok(())
    }

    /// How guest data is encrypted, if it is: `"aes"` or `"luks"`.
    pub fn encryption(&self) -> Option<&'static str> {
        if self.container.is_some() {
            return Some("luks");
        }
        match self.header()?.encryption {
            EncryptionMethod::None => None,
            EncryptionMethod::Aes => Some("aes"),
            EncryptionMethod::Luks => Some("luks"),
        }
    }

    /// The LUKS volume of an image that is encrypted with it.
    ///
    /// # Errors
    /// Why it cannot be used: [`Error::Format`], [`Error::State`] with code `CIPHER_UNSUPPORTED`.
    pub fn luks(&self) -> Result<Option<&LuksVolume>> {
        if let Some(container) = &self.container {
            return Ok(Some(&container.volume));
        }
        match self.image.as_ref().and_then(|image| image.luks.as_ref()) {
            None => Ok(None),
            Some(Ok(volume)) => Ok(Some(volume)),
            Some(Err(error)) => Err(error.again()),
        }
    }

    /// Whether guest data is encrypted and its key is not known yet.
    pub fn needs_key(&self) -> bool {
        let open = self.container.as_ref().is_some_and(|container| container.open);
        self.encryption().is_some() && !self.guest.is_encrypted() && !open
    }

    /// The file that the LUKS header is in.
    pub(crate) fn luks_header(&self) -> &Arc<dyn Storage> {
        self.container
            .as_ref()
            .map_or(&self.storage, |container| &container.header)
    }

    /// Whether the LUKS header is in a file of its own.
    pub fn has_detached_header(&self) -> bool {
        let own = |container: &Container| !same_place(&*container.header, &*self.storage);
        self.container
            .as_ref()
            .is_some_and(|container| !container.open && own(container))
    }

    /// Gives an encrypted image its key. `legacy`: the caller knows of the old method what is wrong with it, and wants it all the same; nothing tells
    /// a wrong password there.
    ///
    /// # Errors
    /// [`Error::State`] with code `WRONG_KEY`, `NOT_ENCRYPTED`, `LEGACY_ENCRYPTION` or `CIPHER_UNSUPPORTED`; [`Error::Format`] for a damaged LUKS header;
    /// [`Error::Limit`] for more iterations than [`Limits::max_key_iterations`]; [`Error::Cancelled`], [`Error::Io`].
    pub fn unlock(&mut self, secret: &Secret, legacy: bool, job: &JobContext) -> Result<()> {
        let (cipher, count) = match self.encryption() {
            None => return Err(self.state("NOT_ENCRYPTED", "the image is not encrypted")),
            Some("aes") if !legacy => {
                let reason = "the image is encrypted with the old AES-CBC method, which hides little: say that it is meant to be read";
                return Err(self.state("LEGACY_ENCRYPTION", reason));
            }
            Some("aes") => (luks::legacy_cipher(secret)?, Count::Guest),
            Some(_) => {
                let volume = self.luks()?.ok_or(Error::Closed)?;
                let most = self.options.limits.max_key_iterations;
                let (key, _) = luks::unlock(self.luks_header(), volume, secret, most, job)?;
                (luks::cipher(volume, &key)?, Count::Host)
            }
        };
        let cipher = Arc::new(GuestCipher::new(cipher, count));
        let Some(container) = self.container.as_mut() else {
            self.set_cipher(cipher);
            return Ok(());
        };
        let sealed = SealedStorage::new(self.storage.clone(), container.payload(), cipher)?;
        container.open = true;
        self.storage = Arc::new(sealed);
        self.guest = GuestData::new(self.storage.clone(), None);
        Ok(())
    }

    /// For whoever made the image, and so has its key.
    pub(crate) fn set_cipher(&mut self, cipher: Arc<GuestCipher>) {
        self.guest = GuestData::new(self.guest.storage().clone(), Some(cipher));
    }

    /// What tells the file apart.
    pub fn identity(&self) -> Option<Identity> {
        self.storage.identity()
    }

    /// Where guest clusters that are not compressed stand: the external data file, or the image itself; and their cipher.
    pub(crate) fn guest_data(&self) -> &GuestData {
        &self.guest
    }

    pub(crate) fn image(&self) -> Option<&Image> {
        self.image.as_deref()
    }

    pub(crate) fn path(&self) -> Option<std::path::PathBuf> {
        self.storage.path().map(Into::into)
    }

    pub(crate) fn state(&self, code: &'static str, reason: impl Into<String>) -> Error {
        Error::State {
            code,
            path: self.path(),
            reason: reason.into(),
        }
    }

    /// The L1 table of a snapshot and the size of the disk at that time.
    pub(crate) fn snapshot_view(&self, wanted: &str) -> Result<(Arc<[L1Entry]>, u64)> {
        tables::snapshot_view(self, wanted)
    }

    /// The L1 table of `snapshot` and the size of the disk at that time, which is `size` if the snapshot does not record it.
    pub(crate) fn snapshot_l1(&self, snapshot: &Snapshot, size: u64) -> Result<(Arc<[L1Entry]>, u64)> {
        tables::snapshot_l1(self, snapshot, size)
    }
}

/// Whether two storages are the same bytes: the same file, from the same place on.
pub(crate) fn same_place(a: &dyn Storage, b: &dyn Storage) -> bool {
    std::ptr::addr_eq(a, b) || (a.identity().is_some() && a.identity() == b.identity() && a.base() == b.base())
}
