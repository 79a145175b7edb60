//! Moves that are given up, or not begun: the guest runs on, and the next move succeeds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fixtures::cutover::{Daemon, Settings};
use fixtures::process::find_program;

use crate::place::{
    goes_on, held, judge, last, migrate, moves_at_last, refused, rig, rig_with, said, try_migrate,
};

#[test]
fn a_move_is_given_up_in_every_phase_before_the_commit() {
    let (mut rig, _dir) = rig();
    rig.boot().unwrap();
    for phase in ["check", "prepare", "bulk", "rounds", "gate", "switch"] {
        held(&mut rig, &format!("{phase}=1500"), &[]);
        let abort = rig.a.vmctl(&["abort", "web1"]);
        assert!(abort.is_ok(), "{phase}: {abort:?}\n{}", rig.a.last_words());
        assert!(!rig.a.report().unwrap()["ended_ms"].is_null(), "{phase}");
        goes_on(&rig.a, last(&rig.a));
        rig.b.vmctl(&["recover"]).unwrap();
        assert_eq!(rig.b.qemu_pid(), None, "{phase}: what was made at B is still there");
    }
    moves_at_last(&mut rig);
}

#[test]
fn what_is_asked_for_wrongly_is_refused_and_the_guest_runs_on() {
    let (mut rig, _dir) = rig();
    rig.boot().unwrap();
    let text = refused(&rig.a, "C", &[]);
    assert!(text.contains('C'), "{text}");
    let text = refused(&rig.a, "B", &["--silence", "1ms"]);
    assert!(text.contains("1 ms are allowed"), "{text}");
    // Nobody is there who could take it.
    rig.b.kill(Daemon::Agent).unwrap();
    let text = refused(&rig.a, "B", &[]);
    assert!(text.contains("next:"), "{text}");
    rig.b.start_agent().unwrap();
    // While it is being moved, it is not moved elsewhere.
    held(&mut rig, "rounds=2000", &[]);
    let second = try_migrate(&rig.a, "B", &[]);
    assert_eq!(second.status.code(), Some(4), "{}", said(&second));
    goes_on(&rig.b, last(&rig.a));
    rig.a.vmctl(&["recover"]).unwrap();
    judge(&rig, &rig.b, 1);
}

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let file = dir.join(name);
    let real = find_program("qemu-system-x86_64").unwrap();
    fs::write(&file, format!("#!/bin/sh\nQEMU={}\n{text}\n", real.display())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn a_qemu_that_cannot_take_the_guest_leaves_it_where_it_is() {
    let (mut rig, dir) = rig();
    rig.boot().unwrap();
    let old =
        "case \"$*\" in *machine*help*) $QEMU \"$@\" | grep -v '^pc-q35-7'; exit;; esac; exec $QEMU \"$@\"";
    let broken = "case \"$*\" in *-incoming*) echo broken >&2; exit 1;; esac; exec $QEMU \"$@\"";
    for (name, text, told) in [("old", old, "machine"), ("broken", broken, "QEMU does not start")] {
        rig.b.settings.qemu = Some(script(dir.path(), name, text));
        rig.b.restart_agent().unwrap();
        let text = refused(&rig.a, "B", &[]);
        assert!(text.contains(told), "{name}: {text}\n{}", rig.b.last_words());
    }
    rig.b.settings.qemu = None;
    rig.b.restart_agent().unwrap();
    let at = last(&rig.a);
    migrate(&rig.a, &rig.b);
    goes_on(&rig.b, at);
    judge(&rig, &rig.b, 1);
}

#[test]
fn a_destination_without_room_leaves_the_guest_where_it_is() {
    let small = Settings { pool: "16M".to_owned(), ..Settings::default() };
    let (rig, _dir) = rig_with(&small, "");
    // Beyond what the guest writes; nothing that could be made smaller.
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(40 << 20).collect();
    rig.a.write_disk(8 << 20, &noise).unwrap();
    rig.boot().unwrap();
    let text = refused(&rig.a, "B", &[]);
    println!("{text}");
    assert!(rig.b.qemu_pid().is_none());
    judge(&rig, &rig.a, 0);
}
