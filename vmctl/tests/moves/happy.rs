//! Moves that go well.

use crate::place::{goes_on, judge, last, migrate, rig};

/// Moves of the longer test.
const MOVES: usize = 20;

#[test]
fn a_guest_moves_to_another_host_and_back() {
    let (rig, _dir) = rig();
    rig.boot().unwrap();
    let at = last(&rig.a);
    migrate(&rig.a, &rig.b);
    goes_on(&rig.b, at);
    assert_eq!(rig.b.state().unwrap().as_deref(), Some("running"));
    assert_eq!(rig.a.state().unwrap().as_deref(), Some("stopped"));
    let report = rig.a.report().unwrap();
    println!("{}", serde_json::to_string_pretty(&report["numbers"]).unwrap());
    assert!(report["numbers"]["silence_ms"].as_f64().unwrap() > 0.0);
    let at = last(&rig.b);
    migrate(&rig.b, &rig.a);
    goes_on(&rig.a, at);
    judge(&rig, &rig.a, 2);
}

#[test]
fn a_guest_moves_back_and_forth_without_a_restart() {
    let (rig, _dir) = rig();
    rig.boot().unwrap();
    for number in 0..MOVES {
        let (from, to) = if number % 2 == 0 { (&rig.a, &rig.b) } else { (&rig.b, &rig.a) };
        let at = last(from);
        migrate(from, to);
        goes_on(to, at);
    }
    judge(&rig, &rig.a, MOVES);
}
