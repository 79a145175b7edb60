//! Guests that boot.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::rig::Rig;

/// Writes for ever, and says each time that the write is durable.
const WRITER: &str = "i=0\nwhile :; do\n i=$((i+1))\n dd if=/dev/zero of=/dev/vda bs=4096 seek=$((i%1000)) count=1 conv=fsync 2>/dev/null || echo WRITE-FAILED\n echo round-$i\n usleep 100000\ndone\n";

/// The highest round on the console.
fn rounds(rig: &Rig, name: &str) -> u64 {
    let console = rig.console(name);
    let numbers = console.lines().filter_map(|line| line.trim().strip_prefix("round-")?.parse().ok());
    numbers.max().unwrap_or(0)
}

#[track_caller]
fn wait_rounds_beyond(rig: &Rig, name: &str, seen: u64) {
    rig.wait_console(name, &format!("round-{}", seen + 1));
}

#[test]
fn guest_lives_is_asked_talks_and_powers_off() {
    let mut rig = Rig::new();
    rig.define_guest("web1", "read word\necho heard $word\n");
    rig.vmctl(&["vm", "start", "web1"]).ok();
    rig.wait_console("web1", "GUEST-READY");
    assert!(rig.vmctl(&["vm", "console", "web1", "--log"]).ok().contains("GUEST-READY"));
    rig.vmctl(&["vm", "start", "web1"]).fails(4, "it is running");
    rig.vmctl(&["vm", "delete", "web1"]).fails(4, "runs");
    // Nobody in this guest listens to the power button.
    rig.vmctl(&["vm", "stop", "web1", "--timeout", "200ms"]).fails(1, "did not power off in time");
    let before = rig.show("web1");
    assert_eq!(before["state"], "running");

    rig.kill_agent();
    rig.start_agent();
    let after = rig.wait_state("web1", "running");
    assert_eq!(after["process"], before["process"], "the same QEMU");

    // Without a terminal the console is a pipe; the guest reads a line, and powers off when its script ends.
    let mut console = Command::new(env!("CARGO_BIN_EXE_vmctl"));
    console.arg("--socket").arg(rig.path("agent")).args(["vm", "console", "web1"]);
    let mut console =
        console.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    console.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let said = console.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("heard hello"), "{said:?}");
    let vm = rig.wait_state("web1", "stopped");
    assert_eq!(vm["reason"], "the guest powered off");
    rig.vmctl(&["vm", "stop", "web1"]).ok();
    rig.vmctl(&["vm", "console", "web1"]).fails(7, "serial.sock");
}

#[test]
fn guest_that_powers_off_without_an_agent_has_not_crashed() {
    let mut rig = Rig::new();
    rig.define_guest("web1", "sleep 1\n");
    rig.vmctl(&["vm", "start", "web1"]).ok();
    rig.kill_agent();
    rig.wait_console("web1", "GUEST-DONE");
    rig.start_agent();
    let vm = rig.wait_state("web1", "stopped");
    assert_eq!(vm["reason"], "the guest powered off");
}

#[test]
fn guest_outlives_a_blockd_that_is_killed() {
    let mut rig = Rig::new();
    rig.define_guest("web1", WRITER);
    rig.vmctl(&["vm", "start", "web1"]).ok();
    rig.wait_console("web1", "round-3");
    // At once: it waits, and never knows.
    rig.kill_blockd();
    let seen = rounds(&rig, "web1");
    rig.start_blockd();
    wait_rounds_beyond(&rig, "web1", seen + 1);
    // Longer than QEMU waits: it is paused, and goes on by itself when there is a blockd again.
    rig.kill_blockd();
    let vm = rig.wait_state("web1", "io-error");
    assert!(vm["reason"].as_str().unwrap().contains("disk0"), "{vm}");
    let seen = rounds(&rig, "web1");
    rig.start_blockd();
    rig.wait_state("web1", "running");
    wait_rounds_beyond(&rig, "web1", seen + 1);
    assert!(!rig.console("web1").contains("WRITE-FAILED"), "{}", rig.console("web1"));
    rig.vmctl(&["vm", "stop", "web1", "--force"]).ok();
    let vm = rig.show("web1");
    assert_eq!((vm["state"].as_str(), vm["reason"].as_str()), (Some("stopped"), Some("it was stopped")));
}
