//! The store against a model: random requests, commands, faults and crashes over the simulated disk and metadata.
//!
//! One seed is one case; a violation names it. `MODEL_CASES` is how many (default 2000), `MODEL_SEED` runs one.

mod directed;
mod driver;
mod foresight;
mod merging;
mod mirror;
mod moves;
mod packing;
mod reference;
mod regressions;
mod replicas;
mod throttling;
mod world;

const CASES: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn the_store_keeps_its_promises() {
    let (seen, cases) = run_cases(false);
    if cases >= 500 {
        seen.assert_everything_happened();
    }
}

/// What a commit has under way is changed again, in all ways there are.
#[test]
fn a_few_blocks_written_and_flushed_again_and_again_keep_them() {
    run_cases(true);
}

/// What was seen, in how many cases.
fn run_cases(hot: bool) -> (driver::Seen, u64) {
    if let Some(seed) = number("MODEL_SEED") {
        driver::run_case(seed, hot);
        return (driver::Seen::default(), 1);
    }
    let first = number("MODEL_FIRST").unwrap_or(1);
    let cases = number("MODEL_CASES").unwrap_or(CASES);
    let mut seen = driver::Seen::default();
    for seed in first..first + cases {
        let outcome = std::panic::catch_unwind(|| driver::run_case_counting(seed, hot, false));
        match outcome {
            Ok(counts) => seen.add(&counts),
            Err(cause) => {
                eprintln!("violation with MODEL_SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{cases} cases from seed {first}: {seen:?}");
    (seen, cases)
}
