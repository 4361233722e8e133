//! Carries a workload out, and notes what every operation has promised.

mod amid;
mod failed;
mod ranges;
mod whole;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use qcow2_engine::{Disk, DiskOptions, Error, Storage, Weaken};
use qcow2_format::GuestOffset;

use crate::contents::Contents;
use crate::faults::Faults;
use crate::log::{DATA, Event, IMAGE, Log, Outcome, SECTOR};
use crate::model::{BitmapMark, Effect, Expectation, SnapshotModel, Step};
use crate::open;
use crate::plan::{Op, Plan};
use crate::shape::{Begin, SHAPES, Shape};
use crate::storage::{Pause, SimStorage};

/// A workload that was carried out.
pub struct Trace {
    /// How the image began.
    pub begin: Begin,
    /// What was asked of its files.
    pub events: Vec<Event>,
    /// What was done.
    pub steps: Vec<Step>,
    /// What sectors can hold.
    pub contents: Contents,
    /// What was wrong already while it ran.
    pub wrong: Option<String>,
    /// Calls of the files.
    pub calls: u64,
    /// Errors that operations have answered.
    pub errors: u64,
    /// The shape.
    pub shape: &'static Shape,
}

/// How a workload is carried out.
#[derive(Clone, Default)]
pub struct Conditions {
    /// Rules that are switched off.
    pub weaken: Weaken,
    /// Calls that fail.
    pub faults: Option<Arc<Faults>>,
    /// Called inside of calls to the files.
    pub pause: Option<Pause>,
}

/// Refusals that are right: nothing was changed.
const REFUSALS: &[&str] = &[
    "SHRINK",
    "RESIZE_SNAPSHOTS",
    "BITMAP",
    "BITMAP_EXISTS",
    "BITMAP_INCONSISTENT",
    "SNAPSHOT_EXISTS",
    "SNAPSHOT_UNSUPPORTED",
    "SNAPSHOT_IN_USE",
    "REFCOUNT_OVERFLOW",
];

pub(crate) struct Driver {
    pub(crate) shape: &'static Shape,
    pub(crate) begin: Begin,
    image: Arc<SimStorage>,
    data: Option<Arc<SimStorage>>,
    log: Arc<Log>,
    options: DiskOptions,
    pub(crate) disk: Option<Disk>,
    shared: Mutex<Shared>,
    tags: AtomicU32,
    names: u32,
    /// Names, and from which operation on they record.
    bitmaps: Vec<(String, Option<u32>)>,
    snapshots: Arc<Vec<SnapshotModel>>,
    faulty: bool,
    stop: bool,
}

/// What threads share.
struct Shared {
    contents: Contents,
    steps: Vec<Step>,
    current: Vec<u32>,
    /// What sectors have ever held.
    versions: HashMap<u32, Vec<u32>>,
    /// Which operation changed which sector.
    touched: Vec<(u32, u32)>,
    /// Sectors that an operation which failed may have written, and that could not be read since.
    unknown: BTreeMap<u32, Vec<u32>>,
    /// The last operation that changes everything, if it has failed.
    failed_switch: Option<u32>,
    wrong: Option<String>,
    errors: u64,
}

/// Carries `plan` out.
///
/// # Errors
/// Those of making and opening the image, which are not part of it.
pub fn run(plan: &Plan, conditions: &Conditions) -> Result<Trace, Error> {
    let shape = &SHAPES[plan.shape];
    let mut contents = Contents::default();
    let begin = shape.begin(&mut contents)?;
    let below = begin
        .backing
        .as_ref()
        .map(|(backing, _)| backing.to_vec())
        .unwrap_or_default();
    let log = Arc::new(Log::default());
    let faults = conditions.faults.clone().unwrap_or_default();
    let file = |file: u8, bytes: &[u8]| {
        Arc::new(SimStorage::new(
            file,
            bytes.to_vec(),
            log.clone(),
            faults.clone(),
            conditions.pause.clone(),
        ))
    };
    let mut driver = Driver {
        shape,
        image: file(IMAGE, &begin.image),
        data: begin.data.as_deref().map(|bytes| file(DATA, bytes)),
        log: log.clone(),
        options: DiskOptions {
            cache_bytes: 1 << 20,
            dirty_bytes: plan.dirty_bytes,
            weaken: conditions.weaken,
            without_backing: false,
        },
        disk: None,
        shared: Mutex::new(Shared {
            contents,
            steps: Vec::new(),
            current: begin.sectors.clone(),
            versions: HashMap::new(),
            touched: Vec::new(),
            unknown: BTreeMap::new(),
            failed_switch: None,
            wrong: None,
            errors: 0,
        }),
        begin,
        tags: AtomicU32::new(1),
        names: 0,
        bitmaps: Vec::new(),
        snapshots: Arc::default(),
        faulty: conditions.faults.is_some(),
        stop: false,
    };
    // Operation 0 is what was before.
    driver.note(Effect::Nothing, None, "begin".to_owned());
    match driver.open() {
        Ok(disk) => driver.disk = Some(disk),
        Err(error) if !driver.faulty => return Err(error),
        Err(_) => driver.stop = true,
    }
    for op in &plan.ops {
        if driver.stop {
            break;
        }
        driver.carry_out(op);
    }
    if !driver.stop {
        if driver.faulty {
            // Space is back, devices work again.
            faults.relieve();
            driver.after_faults(faults.is_full());
        }
        driver.verify("at the end");
        if !driver.stop {
            driver.carry_out(&Op::Reopen);
        }
    }
    drop(driver.disk.take());
    if let Some((backing, _)) = &driver.begin.backing
        && backing.to_vec() != below
    {
        driver.wrong("the backing file has changed".to_owned());
    }
    let shared = driver.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Trace {
        begin: driver.begin,
        events: log.take(),
        steps: shared.steps,
        contents: shared.contents,
        wrong: shared.wrong,
        calls: faults.calls(),
        errors: shared.errors,
        shape,
    })
}

impl Trace {
    /// What the image is before anything is done.
    pub fn expectation(&self) -> Expectation {
        Expectation::new(self.begin.sectors.clone())
    }
}

impl Driver {
    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Disk, Error> {
        let image: Arc<dyn Storage> = self.image.clone();
        let data = self.data.clone().map(|data| -> Arc<dyn Storage> { data });
        open::disk(&image, data.as_ref(), &self.begin, &self.options)
    }

    fn note(&self, effect: Effect, bitmap: Option<BitmapMark>, text: String) -> u32 {
        let mut shared = self.shared();
        shared.steps.push(Step { effect, bitmap, text });
        shared.steps.len() as u32 - 1
    }

    fn wrong(&self, text: String) {
        let mut shared = self.shared();
        shared.wrong.get_or_insert(text);
    }

    fn disk(&self) -> &Disk {
        match &self.disk {
            Some(disk) => disk,
            None => unreachable!("no operation runs without a disk"),
        }
    }

    /// Runs an operation between its marks. Whether it succeeded.
    fn step<T>(
        &self,
        effect: Effect,
        bitmap: Option<BitmapMark>,
        text: String,
        call: impl FnOnce() -> Result<T, Error>,
    ) -> (u32, Option<T>) {
        let switch = matches!(effect, Effect::Switch(_));
        let op = self.note(effect, bitmap, text.clone());
        self.log.mark(Event::OpBegin(op));
        let outcome = call();
        let end = match &outcome {
            Ok(_) => Outcome::Done,
            Err(Error::State { code, .. }) if REFUSALS.contains(code) => Outcome::Refused,
            Err(_) => Outcome::Failed,
        };
        self.log.mark(Event::OpEnd(op, end));
        match outcome {
            Ok(value) => (op, Some(value)),
            Err(error) => {
                if switch && end == Outcome::Failed {
                    self.shared().failed_switch = Some(op);
                }
                self.failed(&text, &error);
                (op, None)
            }
        }
    }

    fn failed(&self, text: &str, error: &Error) {
        if let Error::State { code, .. } = error
            && REFUSALS.contains(code)
        {
            return;
        }
        self.shared().errors += 1;
        if !self.faulty {
            self.wrong(format!("{text} failed: {error} ({error:?})"));
        } else if matches!(
            error,
            Error::Internal { .. } | Error::Format { .. } | Error::Entry { .. }
        ) {
            self.wrong(format!("{text} failed, and not because of a call that failed: {error}"));
        }
    }

    fn size(&self) -> u64 {
        self.disk().chain().virtual_size()
    }

    /// A range cut at the end of the disk.
    fn cut(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let length = length.min(self.size().saturating_sub(offset));
        (length > 0).then_some((offset, length))
    }

    fn carry_out(&mut self, op: &Op) {
        match op {
            Op::Write { .. } | Op::Zero { .. } | Op::Discard { .. } | Op::Flush | Op::Read { .. } => self.simple(op),
            Op::Parallel(lists) => {
                let this = &*self;
                std::thread::scope(|scope| {
                    for list in lists {
                        scope.spawn(move || list.iter().for_each(|op| this.simple(op)));
                    }
                });
            }
            Op::SnapshotAmid(lists) => self.snapshot_amid(lists),
            Op::Resize { size, preallocate } => self.resize(*size, *preallocate),
            Op::SnapshotCreate => self.snapshot_create(),
            Op::SnapshotApply(which) => self.snapshot_apply(*which),
            Op::SnapshotDelete(which) => self.snapshot_delete(*which),
            Op::SnapshotRename(which) => self.snapshot_rename(*which),
            Op::BitmapAdd { enabled } => self.bitmap_add(*enabled),
            Op::BitmapClear(which) => self.bitmap_clear(*which),
            Op::BitmapRemove(which) => self.bitmap_remove(*which),
            Op::BitmapEnable(which, enabled) => self.bitmap_enable(*which, *enabled),
            Op::Reopen => self.reopen(),
        }
    }

    fn verify(&mut self, when: &str) {
        self.settle_unknown();
        let expected = self.shared().current.len() as u64 * 512;
        let size = self.size();
        if size != expected {
            self.wrong(format!("{when} the disk has {size:#x} bytes, not {expected:#x}"));
            self.stop = true;
            return;
        }
        let mut bytes = vec![0; size as usize];
        if let Err(error) = self.disk().chain().read(GuestOffset(0), &mut bytes) {
            if !self.faulty {
                self.wrong(format!("{when} reading fails: {error}"));
            }
            self.stop = true;
            return;
        }
        let mut shared = self.shared();
        let wrong = bytes
            .chunks(SECTOR)
            .zip(&shared.current)
            .position(|(there, content)| shared.contents.get(*content) != there);
        if let Some(sector) = wrong {
            let there = &bytes[sector * SECTOR..][..SECTOR];
            let what = shared.contents.find(there).map(|content| shared.contents.op(content));
            let text = format!(
                "{when} sector {sector:#x} reads as operation {what:?} wrote, not as {:?}",
                shared.contents.op(shared.current[sector])
            );
            shared.wrong.get_or_insert(text);
        }
    }

    fn reopen(&mut self) {
        let text = "close".to_owned();
        let (_, closed) = self.step(Effect::Flush, None, text, || self.disk().close());
        if closed.is_none() {
            self.stop = true;
            return;
        }
        self.disk = None;
        match self.open() {
            Ok(disk) => {
                self.disk = Some(disk);
                self.verify("after opening again");
                if !self.faulty {
                    self.verify_bitmaps();
                }
            }
            Err(error) => {
                self.failed("opening again", &error);
                self.stop = true;
            }
        }
    }

    /// Devices work again: either the disk is poisoned and says so, or everything works.
    fn after_faults(&mut self, full: bool) {
        let disk = self.disk();
        match disk.flush() {
            Ok(()) => {
                let op = Op::Write {
                    offset: 0,
                    length: self.shape.cluster,
                };
                self.simple(&op);
                let before = self.shared().errors;
                self.simple(&Op::Flush);
                if self.shared().errors > before {
                    self.wrong("a flush fails after everything works again, though one has succeeded".to_owned());
                }
            }
            Err(Error::State { code: "POISONED", .. }) => {
                if full {
                    self.wrong("a full disk has poisoned the image".to_owned());
                }
                if disk.write(GuestOffset(0), &[1; 512]).is_ok() {
                    self.wrong("a poisoned disk takes writes".to_owned());
                }
                self.stop = true;
            }
            Err(error) => {
                self.wrong(format!("devices work again, but a flush answers: {error}"));
                self.stop = true;
            }
        }
    }
}
