//! Commands, errors and exit codes; no guest has to boot for them.

use std::fs;
use std::process::{Command, Stdio};

use fixtures::process::ChildGuard;

use crate::rig::{Rig, kill};

const SMALL: &str = "name = \"web1\"\nmemory = \"64MiB\"\n";

#[test]
fn definitions_are_made_shown_and_forgotten() {
    let rig = Rig::new();
    rig.vmctl(&["vm", "define", &rig.file("name = \"web1\"\nmemory = \"1MiB\"\n")])
        .fails(2, "memory: 1048576 bytes");
    rig.vmctl(&["vm", "define", &rig.file("name = \"web1\"\nmemori = 1\n")])
        .fails(2, "vm.toml:2: memori: unknown field");
    rig.vmctl(&["vm", "define", "/nonexistent"]).fails(3, "No such file");
    let unknown = format!("{SMALL}machine = \"pc-q35-99.9\"\n");
    rig.vmctl(&["vm", "define", &rig.file(&unknown)]).fails(2, "no machine \"pc-q35-99.9\"");
    let good = rig.file(&format!("{SMALL}[[nic]]\n"));
    assert!(rig.vmctl(&["vm", "define", &good]).ok().contains("pc-q35-"));
    rig.vmctl(&["vm", "define", &good]).fails(1, "there is a VM web1 already");
    rig.vmctl(&["vm", "define", &good, "--replace"]).ok();
    let vm = rig.show("web1");
    assert_eq!((vm["v"].as_u64(), vm["state"].as_str()), (Some(1), Some("stopped")));
    assert!(vm["definition"]["nic"][0]["mac"].as_str().unwrap().starts_with("52:54:00:"));
    rig.vmctl(&["vm", "show", "web2"]).fails(3, "there is no VM web2");
    rig.vmctl(&["vm", "start", "web2"]).fails(3, "there is no VM web2");
    assert!(rig.vmctl(&["vm", "delete", "web1", "--plan"]).ok().contains("Nothing was changed"));
    rig.vmctl(&["vm", "delete", "web1"]).ok();
    assert_eq!(rig.vmctl(&["vm", "list", "-o", "jsonl"]).ok(), "");
    assert!(!rig.path("data/vms/web1.json").exists());
    assert_eq!(rig.vmctl(&["vm", "start", "../x"]).code, 2);
}

#[test]
fn what_blockd_says_is_passed_on_with_its_code() {
    let mut rig = Rig::new();
    rig.vmctl(&["vm", "define", &rig.file(&format!("{SMALL}[[disk]]\nvolume = \"web1\"\n"))]).ok();
    rig.vmctl(&["vm", "start", "web1"]).fails(3, "web1");
    assert_eq!(rig.show("web1")["state"], "stopped");
    rig.kill_blockd();
    rig.vmctl(&["vm", "start", "web1"]).fails(7, "blockd");
    assert!(rig.vmctl(&["status"]).ok().contains("blockd"));
}

#[test]
fn one_agent_a_directory_and_nobody_there_is_unreachable() {
    let mut rig = Rig::new();
    let second = rig.agent_command().arg("--socket").arg(rig.path("other")).output();
    assert_eq!(second.unwrap().status.code(), Some(2), "a flag given twice is a mistake");
    let mut second = rig.agent_command();
    let second = second.env("VMCTL_LOG", "off").output().unwrap();
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent holds its lock"));
    rig.kill_agent();
    rig.vmctl(&["vm", "list"]).fails(7, "Connection refused");
}

#[test]
fn a_damaged_record_is_shown_and_left_alone() {
    let mut rig = Rig::new();
    rig.vmctl(&["vm", "define", &rig.file(SMALL)]).ok();
    rig.kill_agent();
    fs::write(rig.path("data/vms/web1.json"), "{\"version\":1,").unwrap();
    rig.start_agent();
    assert_eq!(rig.show("web1")["state"], "damaged");
    rig.vmctl(&["vm", "start", "web1"]).fails(8, "web1.json is damaged");
    rig.vmctl(&["vm", "define", &rig.file(SMALL), "--replace"]).fails(8, "is damaged");
    rig.vmctl(&["vm", "delete", "web1"]).fails(8, "is damaged");
    assert_eq!(fs::read_to_string(rig.path("data/vms/web1.json")).unwrap(), "{\"version\":1,");
    rig.vmctl(&["vm", "define", &rig.file("name = \"web2\"\nmemory = \"64MiB\"\n")]).ok();
}

#[test]
fn a_qemu_that_says_no_is_told_in_its_words() {
    let rig = Rig::new();
    let bad = format!("{SMALL}[boot]\nkernel = \"/nonexistent/vmlinuz\"\n");
    rig.vmctl(&["vm", "define", &rig.file(&bad)]).ok();
    rig.vmctl(&["vm", "start", "web1"]).fails(1, "/nonexistent/vmlinuz");
    let vm = rig.show("web1");
    assert_eq!(vm["state"], "stopped");
    assert!(vm["last_end"]["reason"].as_str().unwrap().contains("its start failed"), "{vm}");
}

#[test]
fn a_qemu_that_is_killed_has_crashed_and_can_be_started_again() {
    let mut rig = Rig::new();
    rig.vmctl(&["vm", "define", &rig.file(SMALL)]).ok();
    rig.vmctl(&["vm", "start", "web1", "--paused"]).ok();
    rig.vmctl(&["vm", "stop", "web1"]).fails(5, "cannot be asked to power off");
    kill(rig.show("web1")["process"]["pid"].as_i64().unwrap());
    let vm = rig.wait_state("web1", "crashed");
    assert!(vm["reason"].as_str().unwrap().contains("killed, or crashed"), "{vm}");
    rig.vmctl(&["vm", "start", "web1"]).ok();
    // Killed while no agent looks: found out by the next one.
    let pid = rig.show("web1")["process"]["pid"].as_i64().unwrap();
    rig.kill_agent();
    kill(pid);
    rig.start_agent();
    rig.wait_state("web1", "crashed");
    rig.vmctl(&["vm", "delete", "web1"]).ok();
}

#[test]
fn an_agent_that_died_in_a_start_leaves_no_half_vm() {
    let mut rig = Rig::new();
    rig.vmctl(&["vm", "define", &rig.file(SMALL)]).ok();
    rig.vmctl(&["vm", "start", "web1", "--paused"]).ok();
    let pid = rig.show("web1")["process"]["pid"].as_i64().unwrap();
    rig.kill_agent();
    // As the record stands before QEMU's process is known.
    let record = rig.path("data/vms/web1.json");
    let mut json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
    json["record"]["run"]["process"] = serde_json::Value::Null;
    fs::write(&record, json.to_string()).unwrap();
    rig.start_agent();
    rig.wait_state("web1", "stopped");
    assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
    rig.vmctl(&["vm", "start", "web1"]).ok();
}

#[test]
fn a_running_qemu_is_adopted_honestly() {
    let rig = Rig::new();
    rig.blockctl(&["volume", "create", "old", "--size", "32M"]).ok();
    let (qmp, nbd) = (rig.path("qmp"), rig.path("nbd"));
    let drive = format!("file=nbd:unix:{}:exportname=old,format=raw,if=virtio", nbd.display());
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35",
        "-m",
        "64",
        "-smp",
        "2",
    ]);
    qemu.args([
        "-name",
        "legacy",
        "-drive",
        &drive,
        "-device",
        "virtio-net-pci,mac=52:54:00:01:02:03,romfile=",
    ]);
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
    let mut qemu = ChildGuard::spawn(qemu.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
    fixtures::process::wait_for_file(&qmp, crate::rig::PATIENCE).unwrap();
    let qmp = qmp.display().to_string();
    rig.vmctl(&["vm", "adopt", "/nonexistent"]).fails(7, "No such file");
    let said = rig.vmctl(&["vm", "adopt", &qmp]).ok();
    assert!(said.contains("legacy is adopted; it is running"), "{said}");
    assert!(said.contains("werror=auto, not stop") || said.contains("werror=enospc, not stop"), "{said}");
    let vm = rig.show("legacy");
    assert_eq!(vm["definition"]["memory"], "64MiB");
    assert_eq!(vm["definition"]["vcpus"], 2);
    assert_eq!(vm["definition"]["disk"][0]["volume"], "old");
    assert_eq!(vm["definition"]["nic"][0]["mac"], "52:54:00:01:02:03");
    assert!(vm["definition"]["machine"].as_str().unwrap().starts_with("pc-q35-"), "{vm}");
    assert_eq!(vm["process"]["pid"].as_u64(), Some(u64::from(qemu.pid())));
    rig.vmctl(&["vm", "adopt", &qmp]).fails(7, "serves another client");
    rig.vmctl(&["vm", "stop", "legacy", "--force"]).ok();
    qemu.wait_for(crate::rig::PATIENCE).unwrap();
    rig.vmctl(&["vm", "start", "legacy"]).fails(5, "was adopted");
}
