//! Power fails a second time, while what the first time left is recovered.

use std::sync::Arc;

use qcow2_engine::{DiskOptions, Storage};
use qcow2_format::{GuestOffset, HostOffset};

use crate::cut::{Choice, Cut};
use crate::faults::{Fault, Faults};
use crate::judge::{Case, Files, files, judge};
use crate::log::{DATA, Event, IMAGE, Log};
use crate::open;
use crate::random::mix;
use crate::storage::SimStorage;
use crate::sweep::Bench;

/// Most states of one recovery.
const MOST: u64 = 24;

/// Recovers what is in `files`, changes a sector to what it is already, closes; and judges what a crash at any place of that leaves. Returns how many states.
///
/// # Errors
/// What is wrong with one.
pub fn recovery(case: &Case<'_>, state: &Files, bench: &Bench, seed: u64) -> Result<u64, String> {
    let log = Arc::new(Log::default());
    let image = bytes(&state.image)?;
    let data = state.data.as_ref().map(bytes).transpose()?;
    let events = record(case, &image, data.as_deref(), &log, Arc::default());
    let events = events.map_err(|error| format!("recovery fails: {error}"))?;
    let mut cut = Cut::new(&image, data.as_deref());
    let mut count = 0;
    let changes = events
        .iter()
        .filter(|event| matches!(event, Event::Begin { .. }))
        .count() as u64;
    for (at, event) in events.iter().enumerate() {
        if matches!(event, Event::Begin { .. } | Event::SyncEnd(..)) && cut.pending() > 0 {
            let random = mix(seed ^ mix(at as u64));
            let choices = [Choice::Prefix, Choice::Random(random), Choice::Torn(random)];
            for choice in choices {
                if count >= MOST || (changes > MOST && mix(random ^ count).is_multiple_of(3)) {
                    continue;
                }
                cut.build(choice, [&bench.second[0], &bench.second[1]]);
                let files = files([&bench.second[0], &bench.second[1]], data.is_some());
                let case = Case {
                    thorough: random.is_multiple_of(16),
                    ..*case
                };
                judge(&case, &files)
                    .map_err(|text| format!("cut again at {at} ({choice:?}) while recovering: {text}"))?;
                count += 1;
            }
        }
        cut.advance(at, event);
    }
    Ok(count + faults(case, (&image, data.as_deref()), bench, seed)?)
}

/// Lets calls of the recovery fail; what that leaves is recovered after all.
fn faults(case: &Case<'_>, (image, data): (&[u8], Option<&[u8]>), bench: &Bench, seed: u64) -> Result<u64, String> {
    let counting = Arc::new(Faults::default());
    let _ = record(case, image, data, &Arc::default(), counting.clone());
    let mut count = 0;
    for (number, fault) in [Fault::Once, Fault::Short, Fault::Sticky, Fault::Sync]
        .into_iter()
        .enumerate()
    {
        let random = mix(seed ^ number as u64);
        let failing = Arc::new(Faults::new(fault, random % counting.calls().max(1)));
        let log = Arc::new(Log::default());
        let outcome = record(case, image, data, &log, failing);
        let mut cut = Cut::new(image, data);
        for (at, event) in log.take().iter().enumerate() {
            cut.advance(at, event);
        }
        for choice in [Choice::Prefix, Choice::Torn(random)] {
            cut.build(choice, [&bench.second[0], &bench.second[1]]);
            let files = files([&bench.second[0], &bench.second[1]], data.is_some());
            judge(
                &Case {
                    thorough: false,
                    leaks: None,
                    ..*case
                },
                &files,
            )
            .map_err(|text| {
                let ended = outcome.as_ref().err().map(ToString::to_string);
                format!("recovery with {fault:?} at {random} ({choice:?}) ended with {ended:?}, and then: {text}")
            })?;
            count += 1;
        }
    }
    Ok(count)
}

/// What recovery asks of the files.
pub(crate) fn record(
    case: &Case<'_>,
    image: &[u8],
    data: Option<&[u8]>,
    log: &Arc<Log>,
    faults: Arc<Faults>,
) -> qcow2_engine::Result<Vec<Event>> {
    let file = |file: u8, bytes: &[u8]| -> Arc<dyn Storage> {
        Arc::new(SimStorage::new(file, bytes.to_vec(), log.clone(), faults.clone(), None))
    };
    let storage = file(IMAGE, image);
    let data = data.map(|bytes| file(DATA, bytes));
    let options = DiskOptions {
        cache_bytes: 1 << 20,
        ..DiskOptions::default()
    };
    let disk = open::disk(&storage, data.as_ref(), case.begin, &options)?;
    let mut sector = [0; 512];
    disk.chain().read(GuestOffset(0), &mut sector)?;
    disk.write(GuestOffset(0), &sector)?;
    disk.flush()?;
    disk.close()?;
    Ok(log.take())
}

pub(crate) fn bytes(storage: &Arc<dyn Storage>) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; storage.length().map_err(|error| error.to_string())? as usize];
    storage
        .read_at(HostOffset(0), &mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}
