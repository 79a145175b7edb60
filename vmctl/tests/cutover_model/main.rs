//! The cutover in every reachable state: two agents that run the real machines, blockds as records, QEMUs that do what was
//! measured (fail and resume, complete unheard, exit), a network that loses, repeats and reorders without a limit, and faults
//! out of a budget. docs/migration.md, "What was checked", says what is exhaustive.
//!
//! Each test prints its number of states; a property that fails prints the way there.

mod model;
mod settle;
mod world;

use model::{Faults, check};
use world::Budget;

const NONE: Budget = Budget { crashes: 0, cuts: 0, wishes: 0, deaths: 0, writes: 1 };

#[test]
fn lossy_network_cut_wish_and_death() {
    check("lossy", Budget { cuts: 1, wishes: 1, deaths: 1, ..NONE }, Faults::default());
}

/// One crash is among them; a way that needs only one is the shortest, and is what is printed.
#[test]
fn two_crashes_of_anything_and_a_cut() {
    check("two crashes", Budget { crashes: 2, cuts: 1, ..NONE }, Faults::all());
}

/// Everything at once, for long runs: `CUTOVER_MODEL=all`.
#[test]
fn two_crashes_a_cut_a_wish_and_a_death() {
    if std::env::var("CUTOVER_MODEL").is_ok_and(|text| text == "all") {
        check("all", Budget { crashes: 2, cuts: 1, wishes: 1, deaths: 1, ..NONE }, Faults::all());
    }
}
