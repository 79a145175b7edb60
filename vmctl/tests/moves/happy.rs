//! Moves that go well.

use std::time::Duration;

use fixtures::cutover::{Daemon, Host};
use fixtures::process::{ProcessError, wait_until};

use crate::place::{PATIENCE, goes_on, judge, last, migrate, rig, said, try_migrate};

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

/// Each connection is a tunnel of its own; the way back is without.
#[test]
fn memory_is_spread_over_several_connections() {
    let (rig, _dir) = rig();
    rig.boot().unwrap();
    let spread = |host: &Host| host.report().unwrap()["numbers"]["multifd_bytes"].as_u64().unwrap();
    let at = last(&rig.a);
    let output = try_migrate(&rig.a, "B", &["--multifd", "3"]);
    assert!(output.status.success(), "{}\n{}\n{}", said(&output), rig.a.last_words(), rig.b.last_words());
    goes_on(&rig.b, at);
    assert!(spread(&rig.a) > 1 << 20, "{} bytes", spread(&rig.a));
    let at = last(&rig.b);
    migrate(&rig.b, &rig.a);
    goes_on(&rig.a, at);
    assert_eq!(spread(&rig.b), 0);
    judge(&rig, &rig.a, 2);
}

/// The copy is deleted once nobody is there who lingers; then the way back begins with nothing.
#[test]
fn the_former_copy_goes_when_its_time_is_over() {
    let (rig, _dir) = rig();
    rig.boot().unwrap();
    let at = last(&rig.a);
    let output = try_migrate(&rig.a, "B", &["--keep-source", "1s", "--when", "quiet"]);
    assert!(output.status.success(), "{}\n{}\n{}", said(&output), rig.a.last_words(), rig.b.last_words());
    goes_on(&rig.b, at);
    let notes = rig.a.report().unwrap()["notes"].to_string();
    assert!(notes.contains("waits for a quiet moment") && notes.contains("MiB/s changed"), "{notes}");
    let gone = wait_until("the former copy's end", PATIENCE, || {
        let volumes = rig.a.blockctl(&["volume", "list", "-o", "json"]).unwrap();
        Ok::<_, ProcessError>((!volumes.contains("web1")).then_some(()))
    });
    assert!(gone.is_ok(), "{gone:?}\n{}", rig.a.report().unwrap()["notes"]);
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

/// Between the end of a move, which is written down, and what follows from it the agent was killed: the VM was held for ever by
/// a move that nobody goes on with. (Kill matrix: agent-destination/cleanup/kill+cut.)
#[test]
fn a_hold_that_a_killed_agent_left_is_let_go_of() {
    let (mut rig, dir) = rig();
    rig.boot().unwrap();
    migrate(&rig.a, &rig.b);
    rig.b.kill(Daemon::Agent).unwrap();
    let file = dir.path().join("B/agent/vms/web1.json");
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let id = rig.a.report().unwrap()["id"].as_str().unwrap().to_owned();
    assert!(kept["record"].get("held_by").is_none_or(serde_json::Value::is_null), "{kept}");
    kept["record"]["held_by"] = format!("move {id}").into();
    std::fs::write(&file, kept.to_string()).unwrap();
    rig.b.start_agent().unwrap();
    let at = last(&rig.b);
    migrate(&rig.b, &rig.a);
    goes_on(&rig.a, at);
}

/// The source's QEMU is told to end several times, and each is done late: the guest has come back by then. It was ended by a move
/// that was over. (Kill matrix: blockd-destination/cleanup/kill, on a busy machine.)
#[test]
fn a_guest_that_has_come_back_is_not_ended_by_the_move_before() {
    let (mut rig, _dir) = rig();
    rig.a.settings.hold = Some("cleanup=3000".to_owned());
    rig.a.restart_agent().unwrap();
    rig.boot().unwrap();
    migrate(&rig.a, &rig.b);
    let at = last(&rig.b);
    migrate(&rig.b, &rig.a);
    goes_on(&rig.a, at);
    // Until the last of them was done: what must not happen has no event.
    std::thread::sleep(Duration::from_secs(4));
    goes_on(&rig.a, last(&rig.a));
    assert_eq!(rig.a.state().unwrap().as_deref(), Some("running"));
    judge(&rig, &rig.a, 2);
}
