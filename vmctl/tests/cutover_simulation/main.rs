//! Moves back and forth, with a guest that writes: the real machines on two hosts, in virtual time, over a link that delays,
//! loses, repeats, reorders and breaks, with crashes of agents, blockds and QEMUs at any instant.
//!
//! One seed is one case; a violation names it. `CUTOVER_CASES` is how many (default 2000), `CUTOVER_FIRST` the first one,
//! `CUTOVER_SEED` runs one and prints what happened.

mod chance;
mod guest;
mod sim;
#[path = "../cutover_common/twins.rs"]
mod twins;

use sim::{Seen, Sim};

const CASES: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn moves_lose_nothing_and_end() {
    if let Some(seed) = number("CUTOVER_SEED") {
        println!("{:?}", Sim::new(seed, true).run());
        return;
    }
    let first = number("CUTOVER_FIRST").unwrap_or(1);
    let cases = number("CUTOVER_CASES").unwrap_or(CASES);
    let mut seen = Seen::default();
    for seed in first..first + cases {
        match std::panic::catch_unwind(|| Sim::new(seed, false).run()) {
            Ok(counts) => seen.add(&counts),
            Err(cause) => {
                eprintln!("violation with CUTOVER_SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{cases} cases from seed {first}: {seen:?}");
    if cases >= 500 {
        seen.assert_everything_happened();
    }
}
