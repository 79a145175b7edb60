//! What a guest has besides a disk: a second one of another epoch, two processors, an open TCP connection, a clock (C8).

use std::fs;
use std::time::{Duration, Instant};

use fixtures::cutover::{Net, Rig, Script, VOLUME_BYTES, Wanted, read_console};
use serde_json::Value;
use tempfile::TempDir;

use crate::place::{goes_on, last, migrate, rig_made, story_of};

const DATA: &str = "web1-data";
/// How exact `/proc/uptime` is, on both ends.
const CLOCK: Duration = Duration::from_millis(20);

/// Defines the guest anew: two processors, a network card, and a second disk if one is wanted.
fn define(rig: &Rig, net: &Net, second: Option<&str>) {
    let text = fs::read_to_string(rig.dir.join("guest.toml")).unwrap().replace("vcpus = 1", "vcpus = 2");
    let socket = net.socket().display();
    let disk = second.map(|volume| format!("[[disk]]\nvolume = {volume:?}\n")).unwrap_or_default();
    let text = format!("{text}\n{disk}\n[[nic]]\nbackend = {{ stream = {{ path = \"{socket}\" }} }}\n");
    let file = rig.dir.join("company.toml");
    fs::write(&file, text).unwrap();
    rig.a.vmctl(&["vm", "define", "--replace", &file.display().to_string()]).unwrap();
}

fn there_and_back(rig: &Rig) {
    for (from, to) in [(&rig.a, &rig.b), (&rig.b, &rig.a)] {
        let at = last(from);
        migrate(from, to);
        goes_on(to, at);
    }
}

/// Volume and epoch, of those at A.
fn epoch(rig: &Rig, name: &str) -> u64 {
    let list = rig.a.blockctl(&["volume", "list", "-o", "json"]).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    let volume = list["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name);
    volume.unwrap()["epoch"].as_u64().unwrap()
}

/// Numbers after `first`, and what the guest's clock said with each.
fn clock(rig: &Rig, first: u64) -> Vec<(u64, f64)> {
    let consoles = rig.a.console() + &rig.b.console();
    let told = consoles.lines().filter_map(|line| {
        let (number, up) = line.trim().strip_prefix("UP ")?.split_once(' ')?;
        Some((number.parse().ok()?, up.parse().ok()?))
    });
    let mut told: Vec<(u64, f64)> = told.filter(|(number, _)| *number > first).collect();
    told.sort_unstable_by_key(|(number, _)| *number);
    told
}

#[test]
fn a_guest_keeps_its_connection_its_clock_and_both_disks() {
    let run = TempDir::new().unwrap();
    let net = Net::start(&run.path().join("net")).unwrap();
    let (rig, _dir) = rig_made(&Wanted { script: Script::Company, ..Wanted::default() });
    define(&rig, &net, None);
    rig.boot().unwrap();
    there_and_back(&rig);
    rig.a.vmctl(&["vm", "stop", "web1", "--force", "--timeout", "0"]).unwrap();
    // A disk that has never moved beside one that has, twice.
    rig.a.blockctl(&["volume", "create", DATA, "--size", &VOLUME_BYTES.to_string()]).unwrap();
    assert_ne!(epoch(&rig, DATA), epoch(&rig, "web1"));
    define(&rig, &net, Some(DATA));
    let (first, began) = (last(&rig.a) + 1, Instant::now());
    rig.a.vmctl(&["vm", "start", "web1"]).unwrap();
    goes_on(&rig.a, first);
    there_and_back(&rig);
    rig.a.vmctl(&["vm", "stop", "web1", "--force", "--timeout", "0"]).unwrap();
    let lived = began.elapsed() + CLOCK;

    let story = story_of(&rig);
    story.check(5).unwrap();
    for volume in ["web1", DATA] {
        let disk = rig.a.volume(volume, VOLUME_BYTES).unwrap();
        let mut told = story.clone();
        told.written.retain(|number| volume == "web1" || *number > first);
        told.check_disk(&disk, story.last()).unwrap_or_else(|error| panic!("{volume}: {error}"));
    }
    let told = net.told();
    assert_eq!(told.connections, 2, "one a boot, and none because of a move");
    let lines: Vec<u64> =
        told.text.lines().filter_map(|line| line.strip_prefix("LINE ")?.parse().ok()).collect();
    // Its first end by force may have come between a write and its line, or taken one that QEMU had not sent yet.
    let gaps = lines.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect::<Vec<_>>();
    assert!(gaps.len() <= 1 && gaps.iter().all(|pair| pair[1] == pair[0] + 2), "{gaps:?} in {lines:?}");
    assert!(lines.last().copied() >= Some(story.last()), "{:?} of {}", lines.last(), story.last());
    let clock = clock(&rig, first);
    assert!(clock.windows(2).all(|pair| pair[0].1 <= pair[1].1), "it went back: {clock:?}");
    let up = clock.last().unwrap().1;
    assert!(up <= lived.as_secs_f64(), "the guest's clock says {up} s, it has lived {lived:?}");
    assert!(read_console(&rig.b.console()).memory_good > 0);
}
