//! Moves whose guest's writes are at both hosts before it is answered.

use fixtures::process::{ProcessError, wait_until};
use serde_json::Value;

use crate::place::{PATIENCE, goes_on, held, judge, last, moves_at_last, rig, said, try_migrate};

const MIRROR: [&str; 2] = ["--strategy", "mirror"];

/// What blockd says of the mirror there.
fn stage(host: &fixtures::cutover::Host) -> String {
    let listed = host.blockctl(&["mirror", "list", "-o", "json"]).unwrap();
    let all: Value = serde_json::from_str(&listed).unwrap();
    all["mirrors"][0]["stage"].as_str().unwrap_or("none").to_owned()
}

#[test]
fn a_mirrored_guest_moves_to_another_host_and_back() {
    let (rig, _dir) = rig();
    rig.boot().unwrap();
    for (from, to) in [(&rig.a, &rig.b), (&rig.b, &rig.a)] {
        let at = last(from);
        let output = try_migrate(from, to.name, &MIRROR);
        assert!(output.status.success(), "{}\n{}\n{}", said(&output), from.last_words(), to.last_words());
        goes_on(to, at);
        let report = from.report().unwrap();
        let numbers = &report["numbers"];
        assert!(numbers["mirror"]["in_sync_ms"].as_f64().unwrap() > 0.0, "{numbers}");
        // The last difference was there already: what is left is the root.
        assert_eq!(numbers["last_round"]["bytes_changed"], 0, "{numbers}");
        assert_eq!(stage(from), "ended", "the mirror ends before the guest runs at {}", to.name);
    }
    judge(&rig, &rig.a, 2);
}

/// The link breaks while writes are mirrored: the guest waits a little, sees no error, and stays; the next move succeeds.
#[test]
fn a_mirror_that_breaks_leaves_the_guest_where_it_is() {
    let (mut rig, _dir) = rig();
    rig.boot().unwrap();
    held(&mut rig, "gate=60000", &MIRROR);
    assert_eq!(stage(&rig.a), "in_sync");
    rig.swallow();
    let broken = wait_until("the mirror's end", PATIENCE, || {
        Ok::<_, ProcessError>((stage(&rig.a) == "ended").then_some(()))
    });
    broken.unwrap();
    goes_on(&rig.a, last(&rig.a));
    assert_eq!(rig.a.state().unwrap().as_deref(), Some("running"));
    rig.mend();
    rig.a.vmctl(&["abort", "web1"]).unwrap();
    rig.b.vmctl(&["recover"]).unwrap();
    moves_at_last(&mut rig);
}

/// An agent that dies while writes are mirrored, and one that gives the move up, leave no mirror.
#[test]
fn a_move_that_is_given_up_leaves_no_mirror() {
    let (mut rig, _dir) = rig();
    rig.boot().unwrap();
    for crash in [false, true] {
        held(&mut rig, "gate=60000", &MIRROR);
        assert_eq!(stage(&rig.a), "in_sync");
        if crash {
            rig.a.kill(fixtures::cutover::Daemon::Agent).unwrap();
            rig.a.start_agent().unwrap();
            rig.a.vmctl(&["recover"]).unwrap();
        } else {
            rig.a.vmctl(&["abort", "web1"]).unwrap();
        }
        assert_eq!(stage(&rig.a), "ended");
        goes_on(&rig.a, last(&rig.a));
        rig.b.vmctl(&["recover"]).unwrap();
    }
    judge(&rig, &rig.a, 0);
}
