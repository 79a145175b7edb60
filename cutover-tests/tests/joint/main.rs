//! The simulation of moves with blockd's own store at both hosts: the same protocol code as in vmctl's tests, and of blockd
//! everything but its threads and sockets. Commands of moves, the cut of the last snapshot, sessions of replication over a link
//! that breaks in the middle, doors and clients' writes are what the daemons do; disks lose what was not synced.
//!
//! One seed is one case; a violation names it. `JOINT_CASES` is how many (default 2000), `JOINT_FIRST` the first one,
//! `JOINT_SEED` runs one and prints what happened.
#![forbid(unsafe_code)]

mod commands;
mod doors;
mod ledger;
mod sessions;
mod stores;
mod writes;

use cutover_sim::Sim;
use cutover_sim::blockds::Blockds;
use fixtures::sim::seeds::run_cases;
use stores::Stores;
use vmctl::cutover::event::{Answer, BlockdOp};
use vmctl::cutover::ids::MoveId;

/// What must be seen of many cases, besides what every simulation of moves must see.
const EVERYTHING: [&str; 13] = [
    "probes that were held",
    "blockd died in a command",
    "blockd died after an answer",
    "blockd died in a write",
    "power was gone in a command or session",
    "sessions that ended well",
    "sessions that were cut midway",
    "sessions that a crash ended",
    "ships that failed",
    "wrong snapshots that were refused",
    "writes that were durable at once",
    "answered writes that a power cut took",
    "writes without an answer that are there",
];

#[test]
fn moves_of_real_stores_lose_nothing_and_end() {
    let all = [&cutover_sim::EVERYTHING[..], &EVERYTHING].concat();
    run_cases("JOINT", &all, |seed, verbose| Sim::new(seed, verbose, Stores::new(seed)).run());
}

/// Somebody has deleted the replica after the first copy: the move cannot begin, and its end must not be refused for ever.
#[test]
fn a_move_to_a_host_that_has_lost_the_volume_ends() {
    let (mut stores, id) = (Stores::new(1), MoveId([1; 16]));
    stores.calm();
    assert!(matches!(stores.apply(1, id, &BlockdOp::Expect), Answer::Refused(..)));
    assert_eq!(stores.apply(1, id, &BlockdOp::Abort), Answer::Done);
    // Elsewhere a refusal is one.
    assert!(matches!(stores.apply(1, id, &BlockdOp::Freeze), Answer::Refused(..)));
}
