//! Two hosts whose QEMUs are of different versions: the machine's own, and Debian's backport beside it.

use std::fs;

use fixtures::cutover::{Host, Rig};
use fixtures::guest::{OtherQemu, default_cache};

use crate::place::{goes_on, judge, last, migrate, process, refused, rig};

/// What a processor must be called for both to mean the same.
const CPU: &str = "Nehalem";

/// The other QEMU; `None`: it cannot be had, and why is told.
fn other() -> Option<OtherQemu> {
    match OtherQemu::fetch(&default_cache()) {
        Ok(other) => Some(other),
        Err(error) => {
            eprintln!("SKIPPED: no second QEMU: {error:#}");
            None
        }
    }
}

fn use_qemu(host: &mut Host, other: &OtherQemu) {
    host.settings.qemu = Some(other.program.clone());
    host.restart_agent().unwrap();
}

/// Defines the guest anew, with more of a definition in front.
fn define(rig: &Rig, more: &str) {
    let text = fs::read_to_string(rig.dir.join("guest.toml")).unwrap();
    let file = rig.dir.join("other.toml");
    fs::write(&file, format!("{more}\n{text}")).unwrap();
    rig.a.vmctl(&["vm", "define", "--replace", &file.display().to_string()]).unwrap();
}

/// The version of the QEMU that runs the guest there.
fn runs_in(host: &Host) -> u64 {
    process(host)["qemu"]["major"].as_u64().unwrap()
}

fn stop(host: &Host) {
    host.vmctl(&["vm", "stop", "web1", "--force", "--timeout", "0"]).unwrap();
}

#[test]
fn a_guest_goes_to_a_later_qemu_and_back() {
    let Some(other) = other() else { return };
    let (mut rig, _dir) = rig();
    use_qemu(&mut rig.b, &other);
    define(&rig, &format!("cpu = {CPU:?}"));
    rig.boot().unwrap();
    let own = runs_in(&rig.a);
    for number in 0..4 {
        let (from, to) = if number % 2 == 0 { (&rig.a, &rig.b) } else { (&rig.b, &rig.a) };
        let at = last(from);
        migrate(from, to);
        goes_on(to, at);
        assert_eq!(runs_in(to) > own, number % 2 == 0, "both hosts have the same QEMU");
    }
    judge(&rig, &rig.a, 4);
}

/// Its machine is one that the destination's QEMU has never heard of; what is proposed then is done, and works.
#[test]
fn a_guest_whose_machine_is_too_new_is_refused_and_told_what_both_have() {
    let Some(other) = other() else { return };
    let (mut rig, _dir) = rig();
    use_qemu(&mut rig.a, &other);
    define(&rig, &format!("cpu = {CPU:?}"));
    rig.boot().unwrap();
    let said = refused(&rig.a, "B", &[]);
    assert!(said.contains("has no machine pc-q35-"), "{said}");
    let (_, both) = said.split_once("give it machine = \"").unwrap();
    let (both, _) = both.split_once('"').unwrap();
    stop(&rig.a);
    // A processor that is whatever a QEMU can is another one at B.
    define(&rig, &format!("machine = {both:?}"));
    let at = last(&rig.a);
    rig.a.vmctl(&["vm", "start", "web1"]).unwrap();
    goes_on(&rig.a, at);
    let said = refused(&rig.a, "B", &[]);
    assert!(said.contains("processor") && said.contains("name a cpu model"), "{said}");
    stop(&rig.a);
    define(&rig, &format!("machine = {both:?}\ncpu = {CPU:?}"));
    let at = last(&rig.a);
    rig.a.vmctl(&["vm", "start", "web1"]).unwrap();
    goes_on(&rig.a, at);
    let at = last(&rig.a);
    migrate(&rig.a, &rig.b);
    goes_on(&rig.b, at);
    // Two ends by force and a move: each may have come between a write and its word.
    judge(&rig, &rig.b, 3);
}
