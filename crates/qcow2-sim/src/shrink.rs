//! Makes a bad state small enough to be understood: operations are left out, then writes are put back.

use std::fmt::Write as _;

use crate::campaign::{Bad, Campaign, Case};
use crate::cut::{Choice, Cut};
use crate::driver::Trace;
use crate::log::{Change, Event};
use crate::sweep::{Bench, Counts, Failure};

/// A bad state, as small as it gets, in words.
pub fn report(campaign: &Campaign, bad: &Bad) -> String {
    let bench = Bench::default();
    let mut case = campaign.case(bad.number);
    let mut text = format!("seed {} workload {}: {}\n", campaign.seed, bad.number, bad.failure.text);
    let Some(mut failure) = fails(campaign, &case, &bench) else {
        let _ = writeln!(text, "it does not come again: threads were in another order");
        return text;
    };
    let mut at = 0;
    while at < case.plan.ops.len() {
        let dropped = case.plan.ops.remove(at);
        match fails(campaign, &case, &bench) {
            Some(smaller) => failure = smaller,
            None => {
                case.plan.ops.insert(at, dropped);
                at += 1;
            }
        }
    }
    let Ok(trace) = campaign.trace(&case) else { return text };
    if let Some(choice) = failure.choice {
        failure.choice = Some(put_back(campaign, &trace, &case, failure.at, choice, &bench));
    }
    let _ = writeln!(
        text,
        "shape {:?}, weaken {:?}, fault {:?}",
        trace.shape, campaign.weaken, case.fault
    );
    let _ = writeln!(text, "left of it: {:?}", case.plan.ops);
    let _ = writeln!(text, "at {} {:?}: {}", failure.at, failure.choice, failure.text);
    describe(&trace, &failure, &mut text);
    text
}

fn fails(campaign: &Campaign, case: &Case, bench: &Bench) -> Option<Failure> {
    let threads = case.plan.ops.iter().any(crate::plan::Op::is_parallel);
    let tries = if threads { 12 } else { 1 };
    (0..tries).find_map(|_| campaign.workload(case, bench, &mut Counts::default()).err())
}

/// Writes that are missing are put back as long as the state stays bad.
fn put_back(campaign: &Campaign, trace: &Trace, case: &Case, at: usize, choice: Choice, bench: &Bench) -> Choice {
    let count = pending(trace, at).len().min(64);
    let all = if count == 64 { u64::MAX } else { (1 << count) - 1 };
    let bad = |mask: u64| {
        campaign
            .state(trace, case.seed, at, Choice::Subset(mask), bench)
            .is_err()
    };
    let begin = match choice {
        Choice::Subset(mask) => mask & all,
        Choice::Without(one) if one < 64 => all & !(1 << one),
        Choice::Only(one) if one < 64 => 1 << one,
        _ => return choice,
    };
    let mut mask = begin;
    for bit in 0..count {
        if mask >> bit & 1 == 0 && bad(mask | 1 << bit) {
            mask |= 1 << bit;
        }
    }
    if bad(mask) { Choice::Subset(mask) } else { choice }
}

/// Numbers of the changes that are pending at a place.
fn pending(trace: &Trace, at: usize) -> Vec<u32> {
    let mut cut = Cut::new(&trace.begin.image, trace.begin.data.as_deref());
    for (place, event) in trace.events.iter().enumerate().take(at) {
        cut.advance(place, event);
    }
    cut.ids()
}

/// The log around a bad state.
pub fn describe(trace: &Trace, failure: &Failure, text: &mut String) {
    let pending = pending(trace, failure.at);
    let _ = writeln!(text, "pending: {pending:?}");
    let from = trace.events.len().min(failure.at).saturating_sub(80);
    for (at, event) in trace.events.iter().enumerate().skip(from).take(90) {
        let here = if at == failure.at { "==> " } else { "    " };
        let _ = match event {
            Event::Begin {
                id,
                file,
                change: Change::Write { first, bytes, end },
            } => writeln!(
                text,
                "{here}{at}: #{id} file {file} write {:#x}+{:#x} (to {end:#x})",
                first * 512,
                bytes.len()
            ),
            Event::OpBegin(op) => writeln!(text, "{here}{at}: begin {op}: {}", trace.steps[*op as usize].text),
            Event::End(_) => Ok(()),
            other => writeln!(text, "{here}{at}: {other:x?}"),
        };
    }
}
