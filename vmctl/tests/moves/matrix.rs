//! Some cells of the kill matrix: each phase and each victim. All of them: `cargo xtask soak --cutover`.

use fixtures::cutover::matrix::{AtA, Strategy, choose, run_cell};

use crate::place::rig;

fn run(cells: &str, strategy: Strategy) {
    let (mut rig, _dir) = rig();
    rig.boot().unwrap();
    let mut at = AtA(true);
    for cell in choose(cells) {
        match run_cell(&mut rig, &cell, strategy, at) {
            Ok((verdict, now)) => {
                println!("{cell}: {:?} ({:.1} s) {}", verdict.end, verdict.seconds, verdict.why);
                at = now;
            }
            Err(error) => panic!("{cell}: {error:#}\n{}\n{}", rig.a.last_words(), rig.b.last_words()),
        }
    }
}

#[test]
fn whoever_is_hit_one_guest_runs_in_the_end() {
    run("gate", Strategy::Rounds);
}

#[test]
fn whoever_is_hit_while_writes_are_mirrored_one_guest_runs_in_the_end() {
    run("gate-mirror", Strategy::Mirror);
}
