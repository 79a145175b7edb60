//! Moves that go well.

use std::time::Duration;

use fixtures::cutover::{Host, Rig, VOLUME_BYTES, read_console};

use crate::place::rig;

const PATIENCE: Duration = Duration::from_secs(60);

fn last(host: &Host) -> u64 {
    read_console(&host.console()).last()
}

/// Waits until the guest has gone on here.
fn goes_on(host: &Host, after: u64) {
    host.wait_for_console(&format!("SEQ {}", after + 3), PATIENCE).unwrap();
}

fn migrate(from: &Host, to: &Host) {
    let output = from.vmctl_command(&["migrate", "web1", "--to", to.name]).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}{}\n{}\n{}", said[0], said[1], from.last_words(), to.last_words());
}

/// Nothing that the guest was answered is lost, wherever it was when it wrote it.
fn judge(rig: &mut Rig, order: &[&str]) {
    let of = |name: &str| if name == "A" { &rig.a } else { &rig.b };
    let runs_at = of(order.last().unwrap());
    runs_at.vmctl(&["vm", "stop", "web1", "--force", "--timeout", "0"]).unwrap();
    let consoles: Vec<_> = ["A", "B"].map(|name| read_console(&of(name).console())).into();
    let mut all: Vec<u64> = consoles.iter().flat_map(|story| story.written.clone()).collect();
    all.sort_unstable();
    let story = fixtures::cutover::Story {
        written: all,
        memory_good: consoles.iter().map(|story| story.memory_good).sum(),
        complaints: consoles.iter().flat_map(|story| story.complaints.clone()).collect(),
    };
    story.check(order.len()).unwrap();
    assert!(story.memory_good > 0);
    story.check_disk(&runs_at.disk(VOLUME_BYTES).unwrap()).unwrap();
}

#[test]
fn a_guest_moves_to_another_host_and_back() {
    let (mut rig, _dir) = rig();
    rig.boot().unwrap();
    migrate(&rig.a, &rig.b);
    let at = last(&rig.a);
    goes_on(&rig.b, at);
    assert_eq!(rig.b.state().unwrap().as_deref(), Some("running"));
    assert_eq!(rig.a.state().unwrap().as_deref(), Some("stopped"));
    let report = rig.a.report().unwrap();
    println!("{}", serde_json::to_string_pretty(&report["numbers"]).unwrap());
    assert!(report["numbers"]["silence_ms"].as_f64().unwrap() > 0.0);
    migrate(&rig.b, &rig.a);
    let at = last(&rig.b);
    goes_on(&rig.a, at);
    judge(&mut rig, &["A", "B", "A"]);
}
