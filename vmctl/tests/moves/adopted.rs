//! A guest whose QEMU somebody else has started.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use fixtures::cutover::{Rig, read_console};
use fixtures::process::{ChildGuard, ProcessError, find_program, wait_for_file, wait_until};

use crate::place::{PATIENCE, rig, said, try_migrate};

/// The rig's guest, with devices where QEMU puts them and a port of another kind than vmctl has.
fn start(rig: &Rig, qmp: &Path, console: &Path) -> ChildGuard {
    let mut qemu = Command::new(find_program("qemu-system-x86_64").unwrap());
    qemu.args(["-name", "web1", "-machine", "pc-q35-7.2", "-accel", "tcg", "-cpu", "max", "-m", "128"]);
    qemu.args(["-nodefaults", "-display", "none", "-append", "console=ttyS0 quiet panic=-1"]);
    qemu.arg("-kernel").arg(&rig.files.kernel).arg("-initrd").arg(&rig.files.initramfs);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
    let server = rig.a.nbd_socket();
    let node =
        format!("driver=nbd,node-name=net0,server.type=unix,server.path={},export=web1", server.display());
    qemu.args(["-blockdev", &node, "-blockdev", "driver=raw,node-name=disk0,file=net0"]);
    qemu.args(["-device", "virtio-blk-pci,drive=disk0,id=disk0,werror=stop,rerror=stop"]);
    ChildGuard::spawn(qemu.stdin(Stdio::null()).stdout(Stdio::null())).unwrap()
}

fn goes_on(console: &Path, words: &str) {
    let number = || read_console(&fs::read_to_string(console).unwrap_or_default()).last();
    let before = number();
    wait_until(words, PATIENCE, || Ok::<_, ProcessError>((number() >= before + 3).then_some(()))).unwrap();
}

/// Its machine cannot be built anew from what its monitor tells: the destination refuses what comes, and it runs on.
#[test]
fn an_adopted_guest_that_cannot_be_built_anew_stays_where_it_is() {
    let (rig, dir) = rig();
    rig.a.vmctl(&["vm", "delete", "web1"]).unwrap();
    let run = tempfile::tempdir().unwrap();
    let (qmp, console) = (run.path().join("qmp"), dir.path().join("adopted.console"));
    let mut qemu = start(&rig, &qmp, &console);
    wait_for_file(&qmp, PATIENCE).unwrap();
    goes_on(&console, "a guest that boots");
    rig.a.vmctl(&["vm", "adopt", &qmp.display().to_string()]).unwrap();
    let output = try_migrate(&rig.a, "B", &[]);
    let text = said(&output);
    assert!(!output.status.success() && text.contains("next:"), "{text}");
    println!("{text}");
    goes_on(&console, "a guest that was not moved");
    assert_eq!(rig.a.state().unwrap().as_deref(), Some("running"));
    rig.b.vmctl(&["recover"]).unwrap();
    assert_eq!(rig.b.qemu_pid(), None);
    assert!(qemu.try_status().unwrap().is_none(), "its QEMU has ended");
    let story = read_console(&fs::read_to_string(&console).unwrap());
    story.check(0).unwrap();
    assert!(story.memory_good > 0);
}
