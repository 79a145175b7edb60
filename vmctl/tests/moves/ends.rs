//! Guests that end by themselves while they are moved.

use fixtures::process::{ProcessError, wait_until};

use crate::place::{PATIENCE, goes_on, last, migrate, rig_with, said, try_migrate};

/// The number after which the guest ends; the phase is held until it has.
const LAST: u64 = 400;

fn ends(how: &str, state: &str) {
    let (mut rig, _dir) =
        rig_with(&fixtures::cutover::Settings::default(), &format!("story.end={how}:{LAST}"));
    rig.a.settings.hold = Some("rounds=30000".to_owned());
    rig.a.restart_agent().unwrap();
    rig.boot().unwrap();
    let output = try_migrate(&rig.a, "B", &[]);
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    assert!(last(&rig.a) <= LAST, "it went on");
    let settled = wait_until("the guest's end", PATIENCE, || {
        Ok::<_, ProcessError>((rig.a.state().ok().flatten().as_deref() == Some(state)).then_some(()))
    });
    assert!(settled.is_ok(), "{:?}, {text}\n{}", rig.a.state(), rig.a.last_words());
    rig.b.vmctl(&["recover"]).unwrap();
    assert_eq!(rig.b.qemu_pid(), None);
    // The owner is definite: it is started where it was, and can be moved.
    rig.a.settings.hold = None;
    rig.a.restart_agent().unwrap();
    if state != "stopped" {
        rig.a.vmctl(&["vm", "stop", "web1", "--force", "--timeout", "0"]).unwrap();
    }
    rig.a.vmctl(&["vm", "start", "web1"]).unwrap();
    goes_on(&rig.a, LAST);
    let at = last(&rig.a);
    migrate(&rig.a, &rig.b);
    goes_on(&rig.b, at);
}

#[test]
fn a_guest_that_powers_off_while_it_is_moved_is_off() {
    ends("poweroff", "stopped");
}

#[test]
fn a_guest_that_panics_while_it_is_moved_has_panicked() {
    ends("panic", "panicked");
}
