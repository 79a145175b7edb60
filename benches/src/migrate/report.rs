//! The tables of moves: a line for each contestant, a column for each measure.

use super::{
    DISK_X, FINISHED, FORECAST, MigrateResults, OFF, SILENCE, SILENCE_X, TOLD, USUAL, WALL_X, WITHIN, WROTE,
};
use crate::report::Table;
use crate::sync::report::table;
use crate::sync::{WALL, WIRE, WIRE_X};

/// All measures, in the order of columns.
const KNOWN: [&str; 14] = [
    WROTE, FINISHED, SILENCE, USUAL, TOLD, FORECAST, OFF, WITHIN, WALL, WIRE, WIRE_X, DISK_X, SILENCE_X,
    WALL_X,
];

/// One table a case.
pub fn tables(results: &MigrateResults) -> Vec<Table> {
    let all = results.cases.iter().map(|case| table(&results.rows, case.name(), &KNOWN));
    all.filter(|table| !table.rows.is_empty()).collect()
}

/// What a reader of the tables has to know.
pub const LEGEND: &str = "\
Medians over the moves, in brackets the smallest and the largest. *Silence* is what a listener at the guest's serial port hears, \
from its last word at the source to its first at the destination; the *longest pause before* tells how exact that is. \
*wire / changed*: all bytes between the hosts by those of the disk that had changed and of the memory that QEMU sent. What each \
case does is told in benches/README.md.
";

/// How moves were measured.
pub fn method(results: &MigrateResults) -> String {
    let MigrateResults { disk_mib, slow_mib, moves, rounds, accel, .. } = results;
    format!(
        "- Moves: a guest ({accel}, 128 MiB of memory, one processor) with a disk of {disk_mib} MiB, completely written with what nothing \
         compresses; {moves} moves of each contestant in `switch`, {rounds} in the others, one in `pressure` with {slow_mib} MiB. \
         Contestants take turns; one guest runs at a time, booted for each move. blockds and QEMUs in a network of their own, whose \
         loopback device counts the bytes; in `pressure` behind a relay.\n"
    )
}
