//! Some cells of the kill matrix: each phase and each victim. All of them: `cargo xtask soak --cutover`.

use fixtures::cutover::matrix::{AtA, choose, run_cell};

use crate::place::rig;

#[test]
fn whoever_is_hit_one_guest_runs_in_the_end() {
    let (mut rig, _dir) = rig();
    rig.boot().unwrap();
    let mut at = AtA(true);
    for cell in choose("gate") {
        match run_cell(&mut rig, &cell, at) {
            Ok((verdict, now)) => {
                println!("{cell}: {:?} ({:.1} s) {}", verdict.end, verdict.seconds, verdict.why);
                at = now;
            }
            Err(error) => panic!("{cell}: {error:#}\n{}\n{}", rig.a.last_words(), rig.b.last_words()),
        }
    }
}
