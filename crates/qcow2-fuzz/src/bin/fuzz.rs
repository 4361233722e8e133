//! `npm run fuzz -- --seconds N --seed S --target X`: fuzzes, prints how far it is, writes what fails into the corpus and ends with 1.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a tool of the tests"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use qcow2_fuzz::campaign::{Campaign, shrink};
use qcow2_fuzz::target::TARGETS;

/// What an input may take at most: nothing that is said in some kilobytes is worth more.
const MOST_MEMORY: usize = 256 << 20;
/// An input that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

static USED: AtomicUsize = AtomicUsize::new(0);

/// Counts what is allocated, and refuses beyond the limit: then the process ends, and the input that was written before it was asked is left.
struct Counting;

// SAFETY: every call is handed to the system's allocator as it came; the counter changes no address and no size.
#[allow(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size() > MOST_MEMORY {
            USED.fetch_sub(layout.size(), Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises about `layout` are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above with this layout, and so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn option(name: &str) -> Option<String> {
    let mut words = std::env::args().skip_while(|word| word != name);
    words.next().and_then(|_| words.next())
}

/// Milliseconds since the start at which the input in flight began.
static BEGAN: AtomicU64 = AtomicU64::new(0);

fn main() {
    let seconds = option("--seconds").map_or(60, |text| text.parse().unwrap());
    let seed = option("--seed").map_or(1, |text| text.parse().unwrap());
    let targets: Vec<&str> = match option("--target") {
        Some(name) => vec![
            TARGETS
                .into_iter()
                .find(|one| *one == name)
                .unwrap_or_else(|| panic!("targets: {TARGETS:?}")),
        ],
        None => TARGETS.to_vec(),
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let keep = std::env::args().any(|word| word == "--keep");
    let flight = std::env::temp_dir().join(format!("qcow2-fuzz-{}.input", std::process::id()));
    let start = Instant::now();
    let aside = flight.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let began = Duration::from_millis(BEGAN.load(Ordering::Relaxed));
            if start.elapsed().saturating_sub(began) > PATIENCE {
                println!("hang: the input is {}", aside.display());
                std::process::abort();
            }
        }
    });
    // A panic is an answer that is judged; its words are in the failure.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failures = 0;
    for target in &targets {
        let end = Instant::now() + Duration::from_secs(seconds) / targets.len() as u32;
        let mut campaign = Campaign::new(target, seed);
        let (mut count, mut kept) = (0u64, 0);
        while Instant::now() < end {
            let input = campaign.input();
            BEGAN.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
            std::fs::write(&flight, input.to_text()).unwrap();
            let copy = keep.then(|| input.clone());
            count += 1;
            match campaign.step(input) {
                Ok(new) => {
                    if let Some(input) = copy.filter(|input| new && kept < 6 && input.bytes.len() < 40_000) {
                        kept += 1;
                        std::fs::write(corpus.join(format!("{target}-{kept}.txt")), input.to_text()).unwrap();
                    }
                }
                Err(failure) => {
                    let small = shrink(&failure.input);
                    let path = corpus.join(format!("failed-{target}-{seed}-{count}.txt"));
                    std::fs::write(
                        &path,
                        format!("# {}\n{}", failure.what.replace('\n', " "), small.to_text()),
                    )
                    .unwrap();
                    println!("{target}, input {count}: {}\n  {}", failure.what, path.display());
                    failures += 1;
                    if failures > 20 {
                        break;
                    }
                }
            }
        }
        println!("{target}: {count} inputs, {} behaviours", campaign.behaviours());
    }
    let _ = std::fs::remove_file(&flight);
    println!("{failures} failures");
    std::process::exit(i32::from(failures > 0));
}
