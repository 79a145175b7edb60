//! The simulation of moves with twins of blockd: `cutover-tests` has the same with blockd's own store.
//!
//! One seed is one case; a violation names it. `CUTOVER_CASES` is how many (default 2000), `CUTOVER_FIRST` the first one,
//! `CUTOVER_SEED` runs one and prints what happened.

use cutover_sim::twins::Twins;
use cutover_sim::{EVERYTHING, Sim};
use fixtures::sim::seeds::run_cases;

#[test]
fn moves_lose_nothing_and_end() {
    run_cases("CUTOVER", &EVERYTHING, |seed, verbose| Sim::new(seed, verbose, Twins::default()).run());
}
