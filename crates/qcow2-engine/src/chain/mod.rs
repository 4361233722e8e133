//! Layers as one disk.

mod ahead;
mod changed;
mod decoded;
mod fetch;
mod fill;
mod index;
pub(crate) mod l1;
mod lane;
pub(crate) mod mapping;
mod now;
mod preallocated;
pub(crate) mod resolve;
mod streams;

use std::sync::{Arc, Mutex, PoisonError};

use qcow2_format::GuestOffset;

pub use fetch::FetchContext;
pub use now::{DecodedPiece, EncryptedPiece, NowAnswer, NowPiece};

use crate::cache::TableCache;
use crate::error::{Error, Result};
use crate::layer::{Format, GuestData, Layer, same_place};
use crate::overlay::Overlay;
use crate::parallel;
use crate::run::{Run, RunKind};
use crate::ticket::{Ticket, Tickets};
use decoded::Decoded;
use fetch::Reader;
use index::Index;
use l1::L1Table;
use mapping::View;

/// Byte budget of a chain's caches if nobody says.
pub const DEFAULT_CACHE_BYTES: u64 = 64 << 20;
/// Runs that a read takes at a time.
const READ_RUNS: usize = 1024;
/// Reads from here on that meet compressed clusters are split over threads.
const SPLIT_FROM: usize = 256 << 10;

/// How a chain is put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainOptions {
    /// An internal snapshot of the top layer, by id or, if there is no such id, by name, instead of the active disk.
    pub snapshot: Option<String>,
    /// Byte budget of all that is kept of the chain: half for decoded clusters (at least one), three eighths for tables, an eighth
    /// for the index.
    pub cache_bytes: u64,
    /// The last layer may name a backing file that is not there: what it leaves unallocated reads as zeros.
    pub without_backing: bool,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            snapshot: None,
            cache_bytes: DEFAULT_CACHE_BYTES,
            without_backing: false,
        }
    }
}

/// Layers as one disk, top first. Shared between threads. Only a [`Disk`](crate::Disk) changes anything in it.
#[derive(Debug)]
pub struct Chain {
    views: Vec<Arc<View>>,
    /// Where their guest clusters stand: what a read goes to is one step away instead of three, none of which are in the processor's cache if there
    /// are many layers.
    data: Vec<GuestData>,
    cache: TableCache,
    index: Index,
    /// See [`fill::span`].
    fill_span: u64,
    decoded: Arc<Decoded>,
    tickets: Tickets,
    contexts: Mutex<Vec<FetchContext>>,
}

impl Chain {
    /// Puts `layers` on top of each other, the first being the top.
    ///
    /// # Errors
    /// [`Error::State`] with code `BACKING_LOOP`, `DATA_FILE_REQUIRED`, `BACKING_REQUIRED`, `METADATA_ONLY` or `NO_SNAPSHOT`; [`Error::Limit`]
    /// for too many layers; [`Error::Encrypted`]; [`Error::Invalid`] for no layers, or one under a raw layer; what is wrong with the snapshot.
    pub fn new(layers: Vec<Layer>, options: ChainOptions) -> Result<Self> {
        Self::with_overlay(layers, options, None)
    }

    /// The same, for whoever writes to the top layer: `overlay` holds what is newer there than the file.
    pub(crate) fn with_overlay(
        layers: Vec<Layer>,
        options: ChainOptions,
        overlay: Option<Arc<Overlay>>,
    ) -> Result<Self> {
        check(&layers, &options)?;
        let mut views = Vec::with_capacity(layers.len());
        for (depth, layer) in (0u32..).zip(layers) {
            let (l1, virtual_size) = match (&options.snapshot, layer.image()) {
                (Some(snapshot), _) if depth == 0 => layer.snapshot_view(snapshot)?,
                (_, Some(image)) => (image.l1.clone(), layer.virtual_size()),
                (_, None) => (Default::default(), layer.virtual_size()),
            };
            let overlay = overlay.clone().filter(|_| depth == 0);
            let l1 = Arc::new(L1Table::new(&l1));
            views.push(Arc::new(View::new(Arc::new(layer), depth, l1, virtual_size, overlay)));
        }
        Self::of_views(views, options.cache_bytes)
    }

    /// The same layers and files with another L1 table, and size, of the top.
    pub(crate) fn seen_through(&self, l1: Arc<L1Table>, virtual_size: u64, cache_bytes: u64) -> Result<Self> {
        let mut views = self.views.clone();
        if let Some(top) = views.first_mut() {
            let (layer, overlay) = (top.layer.clone(), top.overlay.clone());
            *top = Arc::new(View::new(layer, 0, l1, virtual_size, overlay));
        }
        Self::of_views(views, cache_bytes)
    }

    /// A chain of views, the first being the top.
    pub(crate) fn of_views(views: Vec<Arc<View>>, cache_bytes: u64) -> Result<Self> {
        let tables: u64 = views.iter().map(|view| view.l1.entries().len() * 8).sum();
        let allowed = views.first().map_or(0, |view| view.layer.options().limits.max_memory);
        let room = allowed.checked_sub(tables).ok_or(Error::Limit {
            limit: "maxMemory",
            allowed,
            wanted: tables,
        })?;
        let budget = cache_bytes.min(room);
        Ok(Self {
            cache: TableCache::new(budget / 8 * 3),
            index: Index::new(budget / 8),
            fill_span: fill::span(&views),
            decoded: Arc::new(Decoded::new(budget / 2, &views)),
            data: views.iter().map(|view| view.layer.guest_data().clone()).collect(),
            views,
            tickets: Tickets::default(),
            contexts: Mutex::default(),
        })
    }

    /// Size of the disk in bytes: that of the top layer, or of its snapshot.
    pub fn virtual_size(&self) -> u64 {
        self.views.first().map_or(0, |view| view.virtual_size())
    }

    /// The layers, top first.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &Layer> + Clone {
        self.views.iter().map(|view| &*view.layer)
    }

    /// The layer at `depth`.
    pub fn layer(&self, depth: u32) -> Option<&Layer> {
        Some(&self.view(depth)?.layer)
    }

    /// Cluster size of the top layer in bytes; none if it is raw.
    pub fn cluster_size(&self) -> Option<u64> {
        self.layer(0).and_then(Layer::cluster_size)
    }

    /// Takes a ticket: what whoever resolves and fetches by itself must hold from before the resolve until the bytes are there.
    pub fn ticket(&self) -> Ticket<'_> {
        self.tickets.take()
    }

    /// The tickets of this chain.
    pub fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    /// The maximal runs of `length` bytes from `start`, as far as they lie inside the disk: at most `max_runs`, in order, without gaps.
    ///
    /// The answer may end early where a table cannot be read; the error comes when that is the first thing asked for.
    ///
    /// # Errors
    /// [`Error::Entry`], [`Error::Truncated`], [`Error::Io`]: what forbids following the map at `start`.
    pub fn resolve(&self, start: GuestOffset, length: u64, max_runs: usize) -> Result<Vec<Run>> {
        resolve::resolve(self, start, length, max_runs)
    }

    /// Fills `buffer` with the bytes from `start` on. `runs` are what resolve answered for at least that range, in order.
    ///
    /// # Errors
    /// [`Error::Truncated`] for clusters past the end of the file, [`Error::Decompress`], [`Error::Io`], [`Error::Invalid`] if `runs` do not
    /// cover the range.
    pub fn fetch(&self, runs: &[Run], start: GuestOffset, buffer: &mut [u8], context: &mut FetchContext) -> Result<()> {
        fetch::fetch(self, runs, start, buffer, context, Reader::Passing)
    }

    /// Reads into `buffer` from `offset` on and returns how many bytes there were: fewer than asked for only at the end of the disk.
    ///
    /// # Errors
    /// Those of [`Chain::resolve`] and [`Chain::fetch`].
    pub fn read(&self, offset: GuestOffset, buffer: &mut [u8]) -> Result<usize> {
        let _ticket = self.ticket();
        let there = self.virtual_size().saturating_sub(offset.0);
        let count = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        let mut rest = buffer.get_mut(..count).unwrap_or_default();
        let mut at = offset;
        let mut context = self.borrow_context();
        let mut runs = std::mem::take(&mut context.context.runs);
        while !rest.is_empty() {
            self.runs(at, rest.len() as u64, READ_RUNS, &mut runs)?;
            let length: u64 = runs.iter().map(|run| run.length).sum();
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
            if length == 0 {
                return Err(Error::Internal {
                    message: format!("nothing is resolved at {at}, inside the disk"),
                });
            }
            let (now, later) = rest.split_at_mut(length);
            self.fetch_parallel(&runs, at, now, &mut context.context)?;
            at = GuestOffset(at.0 + length as u64);
            rest = later;
        }
        context.context.runs = runs;
        Ok(count)
    }

    /// As `fetch`, on several threads where that helps: decompressing takes longer than starting them.
    fn fetch_parallel(
        &self,
        runs: &[Run],
        start: GuestOffset,
        buffer: &mut [u8],
        context: &mut FetchContext,
    ) -> Result<()> {
        let compressed = |run: &&Run| matches!(run.kind, RunKind::Compressed { .. });
        let threads = parallel::default_threads();
        let large = buffer.len() >= SPLIT_FROM;
        let reader = Reader::Chain { ahead: !large };
        if threads == 1 || !large || runs.iter().filter(compressed).nth(1).is_none() {
            return fetch::fetch(self, runs, start, buffer, context, reader);
        }
        let mut items = Vec::new();
        let (mut at, mut rest) = (start, buffer);
        for part in runs.chunks(runs.len().div_ceil(threads * 4)) {
            let length: u64 = part.iter().map(|run| run.length).sum();
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            items.push((part, at, now));
            at = GuestOffset(at.0 + length as u64);
            rest = later;
        }
        parallel::for_each(
            threads,
            items,
            || self.borrow_context(),
            |context, (part, at, now)| fetch::fetch(self, part, at, now, &mut context.context, reader),
        )
    }

    fn borrow_context(&self) -> BorrowedContext<'_> {
        let kept = self.contexts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        BorrowedContext {
            chain: self,
            context: kept.unwrap_or_default(),
        }
    }

    pub(crate) fn view(&self, depth: u32) -> Option<&View> {
        self.views.get(usize::try_from(depth).ok()?).map(|view| &**view)
    }
}

/// A context from the chain's own, given back when it is dropped.
struct BorrowedContext<'a> {
    chain: &'a Chain,
    context: FetchContext,
}

impl Drop for BorrowedContext<'_> {
    fn drop(&mut self) {
        let mut kept = self.chain.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < parallel::default_threads() {
            kept.push(std::mem::take(&mut self.context));
        }
    }
}

fn check(layers: &[Layer], options: &ChainOptions) -> Result<()> {
    let (Some(top), Some(last)) = (layers.first(), layers.last()) else {
        return Err(Error::Invalid {
            argument: "layers",
            reason: "a chain has at least one layer".into(),
        });
    };
    let allowed = top.options().limits.max_chain_depth;
    if layers.len() as u64 > u64::from(allowed) {
        return Err(Error::Limit {
            limit: "maxChainDepth",
            allowed: allowed.into(),
            wanted: layers.len() as u64,
        });
    }
    for (depth, layer) in layers.iter().enumerate() {
        let above = layers.get(..depth).unwrap_or_default();
        if above
            .iter()
            .any(|other| same_place(&**other.storage(), &**layer.storage()))
        {
            return Err(layer.state("BACKING_LOOP", "the image is its own backing file"));
        }
        if above.last().is_some_and(|upper| upper.image().is_none()) {
            return Err(Error::Invalid {
                argument: "layers",
                reason: "a raw layer has no backing file".into(),
            });
        }
        check_layer(layer, layers)?;
    }
    let named = last.extensions().is_some_and(|e| e.backing_name.is_some());
    if named && !options.without_backing {
        return Err(last.state("BACKING_REQUIRED", "the image needs its backing file"));
    }
    Ok(())
}

fn check_layer(layer: &Layer, layers: &[Layer]) -> Result<()> {
    if layer.format() != Format::Raw && layer.options().metadata_only {
        return Err(layer.state("METADATA_ONLY", "only the image's metadata was opened"));
    }
    if let Some(method) = layer.encryption().filter(|_| layer.needs_key()) {
        return Err(Error::Encrypted {
            path: layer.path(),
            format: layer.format().name(),
            method,
        });
    }
    if layer.needs_data_file() {
        return Err(layer.state("DATA_FILE_REQUIRED", "the image needs its external data file"));
    }
    let data = layer.data_file();
    let same = |other: &Layer| data.is_some_and(|data| same_place(&**data, &**other.storage()));
    if layers.iter().any(same) {
        return Err(layer.state("SAME_FILE", "the data file is also an image of the chain"));
    }
    Ok(())
}
