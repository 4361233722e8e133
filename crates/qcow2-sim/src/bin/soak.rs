//! `soak --states N --seed S --minutes M`: power cuts until there are enough. `--calibrate`: the table of rules. `--replay SEED:WORKLOAD`: one workload again.
#![allow(clippy::print_stdout, reason = "a command")]

use std::process::ExitCode;
use std::time::Duration;

use qcow2_sim::calibrate::TRIALS;
use qcow2_sim::campaign::{Bad, Campaign};
use qcow2_sim::plan::Focus;
use qcow2_sim::shrink;
use qcow2_sim::sweep::{Bench, Counts, GENERATORS};

fn main() -> ExitCode {
    // A panic is a finding, which is reported once.
    std::panic::set_hook(Box::new(|_| {}));
    let mut campaign = Campaign {
        states: 1_000_000,
        time: Duration::from_secs(4 * 3600),
        qemu: 3000,
        ..Campaign::default()
    };
    let mut words = std::env::args().skip(1);
    let mut calibrate = false;
    let mut replay = None;
    let mut tries = 1;
    while let Some(word) = words.next() {
        if word == "--calibrate" {
            calibrate = true;
            continue;
        }
        let Some(value) = words.next() else { return usage(&word) };
        let number = value.parse::<u64>();
        match (word.as_str(), number) {
            ("--states", Ok(number)) => campaign.states = number,
            ("--seed", Ok(number)) => campaign.seed = number,
            ("--minutes", Ok(number)) => campaign.time = Duration::from_secs(number * 60),
            ("--workers", Ok(number)) => campaign.workers = usize::try_from(number).unwrap_or(1),
            ("--faulty", Ok(number)) => campaign.faulty = number,
            ("--qemu", Ok(number)) => campaign.qemu = number,
            ("--bad", Ok(number)) => campaign.most_bad = usize::try_from(number).unwrap_or(1),
            ("--tries", Ok(number)) => tries = number,
            ("--shape", _) => campaign.shape = Some(value),
            ("--without", _) => campaign.without = Some(value),
            ("--focus", _) => match focus(&value) {
                Some(focus) => campaign.focus = Some(focus),
                None => return usage(&value),
            },
            ("--replay", _) => replay = Some(value),
            _ => return usage(&word),
        }
    }
    if calibrate {
        return table(campaign.seed, campaign.states.min(200_000));
    }
    if let Some(id) = replay {
        return again(campaign, &id, tries);
    }
    soak(&campaign)
}

fn usage(word: &str) -> ExitCode {
    println!(
        "soak: what is {word}? --states N, --seed S, --minutes M, --workers N, --faulty N, --qemu N, --bad N, --shape NAME, --focus KIND, --replay SEED:WORKLOAD, --tries N, --calibrate"
    );
    ExitCode::from(2)
}

fn focus(name: &str) -> Option<Focus> {
    Some(match name {
        "all" => Focus::All,
        "sequential" => Focus::Sequential,
        "threads" => Focus::Threads,
        "snapshots" => Focus::Snapshots,
        "bitmaps" => Focus::Bitmaps,
        "reuse" => Focus::Reuse,
        "resize" => Focus::Resize,
        "readers" => Focus::Readers,
        _ => return None,
    })
}

fn soak(campaign: &Campaign) -> ExitCode {
    println!(
        "seed {}, {} states, {} workers",
        campaign.seed, campaign.states, campaign.workers
    );
    let outcome = campaign.run(|counts, time| println!("{}", line(counts, time)));
    println!("{}", line(&outcome.counts, outcome.time));
    for bad in &outcome.bad {
        println!("BAD {}", shrink::report(campaign, bad));
    }
    println!("{} bad of {} states", outcome.bad.len(), outcome.counts.all());
    if outcome.bad.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn line(counts: &Counts, time: Duration) -> String {
    let kinds: Vec<String> = GENERATORS
        .iter()
        .zip(counts.states)
        .map(|(letter, count)| format!("{letter} {count}"))
        .collect();
    let all = counts.all();
    let rate = u128::from(all) * 1000 / time.as_millis().max(1);
    format!(
        "{all} states ({}), {} duplicates, {rate}/s, {} workloads; {} written on, {} repaired, {} snapshots, {} bitmaps, {} with leaks (at most {}), {} by qemu-img, {} calls failed, {} switched",
        kinds.join(", "),
        counts.duplicates,
        counts.workloads,
        counts.thorough,
        counts.repaired,
        counts.snapshots,
        counts.bitmaps,
        counts.leaking,
        counts.most_leaks,
        counts.qemu,
        counts.faults,
        counts.instead
    )
}

fn again(mut campaign: Campaign, id: &str, tries: u64) -> ExitCode {
    let mut parts = id.split(':').map(str::parse::<u64>);
    let (Some(Ok(seed)), Some(Ok(number))) = (parts.next(), parts.next()) else {
        return usage(id);
    };
    campaign.seed = seed;
    let bench = Bench::default();
    let case = campaign.case(number);
    // Threads go another way every time.
    for _ in 0..tries {
        let trace = match campaign.trace(&case) {
            Ok(trace) => trace,
            Err(text) => {
                println!("{text}");
                return ExitCode::FAILURE;
            }
        };
        let Err(failure) = campaign.sweep(&case, &trace, &bench, &mut Counts::default()) else {
            continue;
        };
        let mut text = format!(
            "shape {:?}\nfault {:?}\nat {} {:?}: {}\n",
            trace.shape, case.fault, failure.at, failure.choice, failure.text
        );
        shrink::describe(&trace, &failure, &mut text);
        println!(
            "{text}\nmade smaller:\n{}",
            shrink::report(&campaign, &Bad { number, failure })
        );
        return ExitCode::FAILURE;
    }
    println!("nothing is wrong with it");
    ExitCode::SUCCESS
}

/// What a finding is, in few words.
fn kind(text: &str) -> String {
    let kinds = [
        ("neither before nor after", "a half switched disk"),
        ("a read of", "a reader sees bytes of another place"),
        ("says consistent", "a bitmap misses a change"),
        ("misses sector", "a bitmap misses a change"),
        ("has changed in sector", "a changed snapshot"),
        ("reads as operation", "the disk reads wrong"),
        ("the disk reads wrong", "the disk reads wrong"),
        ("the disk has", "a resize is lost"),
        ("foreign bytes", "a sector holds foreign bytes"),
        ("it may hold", "a sector holds what it must not"),
        ("poisoned", "a disk goes on that must not"),
    ];
    if let Some((_, rest)) = text.split_once("code: ") {
        let code: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        return format!("a check: {code}");
    }
    kinds
        .iter()
        .find(|(part, _)| text.contains(part))
        .map_or_else(|| text.chars().take(80).collect(), |(_, kind)| (*kind).to_owned())
}

fn table(seed: u64, states: u64) -> ExitCode {
    println!("| switched off | rule | states until it is found | found as |\n|---|---|---:|---|");
    let mut missed = false;
    for trial in TRIALS {
        let outcome = trial.run(seed, states);
        let found = outcome.bad.first();
        missed |= found.is_none();
        let what = found.map_or_else(|| "not found".to_owned(), |bad| kind(&bad.failure.text));
        println!(
            "| `{}` | {} | {} | {} |",
            trial.name,
            trial.rule,
            outcome.counts.all(),
            what.replace(['|', '\n'], " ")
        );
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
