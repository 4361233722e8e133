//! Where the ranges of a disk come from.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{Chain, Status};
use qcow2_format::{GuestOffset, HostOffset};

use crate::call::accept;
use crate::handles::Handle;
use crate::numbers::required;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::raw::Words;

/// Words of one range: start, length, flags and depth, offset, nothing yet.
const WORDS: usize = 5;

const PRESENT: u64 = 1;
const ZERO: u64 = 1 << 1;
const DATA: u64 = 1 << 2;
const COMPRESSED: u64 = 1 << 3;
const HAS_OFFSET: u64 = 1 << 4;
const IN_DATA_FILE: u64 = 1 << 5;
const DEPTH_SHIFT: u32 = 32;

/// Completes with at most `max` ranges from the guest offset `start` on, as a `BigUint64Array` of five words for each: start, length,
/// flags (1 present, 2 zero, 4 data, 8 compressed, 16 has an offset, 32 in the data file; depth from bit 32 on), offset, 0.
#[napi(catch_unwind)]
pub fn map(env: Env, id: CallId, chain: Handle, start: BigInt, length: BigInt, max: u32) -> napi::Result<()> {
    accept(&env, id, |call| {
        let chain = call.chain(chain)?;
        let start = GuestOffset(required("start", &start)?);
        let length = required("length", &length)?;
        call.run(Lane::Short, move |job| {
            let ranges = chain.status_unless(start, length, max as usize, &job.cancel)?;
            let mut words = Vec::with_capacity(ranges.len() * WORDS);
            for range in &ranges {
                words.extend(words_of(range, base(&chain, range)));
            }
            Outcome::value(move |_, _, values| values.add(Words(words)))
        })
    })
}

/// Where the storage that has a range's bytes begins in its file.
fn base(chain: &Chain, range: &Status) -> u64 {
    let storage = range.file.and_then(|file| {
        let layer = chain.layer(file.layer)?;
        if file.data_file {
            layer.data_file().map(|storage| storage.base())
        } else {
            Some(layer.storage().base())
        }
    });
    storage.unwrap_or(HostOffset(0)).0
}

fn words_of(range: &Status, base: u64) -> [u64; WORDS] {
    let flag = |set, flag| if set { flag } else { 0 };
    let flags = flag(range.present, PRESENT)
        | flag(range.zero, ZERO)
        | flag(range.data, DATA)
        | flag(range.compressed, COMPRESSED)
        | flag(range.offset.is_some(), HAS_OFFSET)
        | flag(range.file.is_some_and(|file| file.data_file), IN_DATA_FILE)
        | u64::from(range.depth) << DEPTH_SHIFT;
    let offset = range
        .offset
        .map(|offset| offset.0.saturating_add(base))
        .unwrap_or_default();
    [range.start.0, range.length, flags, offset, 0]
}
