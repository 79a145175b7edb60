//! Replicas through the API, `blockctl` and NBD: what they show, how one takes over, and the way back.

use std::os::unix::fs::FileExt;

use blockd::catalog::format::Point;
use blockd::control::replication::{Incoming, Patch, Replication};
use blockd::units::{HostId, Lineage, SnapshotUid};
use fixtures::nbd::client::{ClientError, reply_type};
use fixtures::nbd::codec::errno;
use serde_json::Value;

use crate::connected::ok_soon;
use crate::hosts::{json, place};
use crate::place::Place;
use crate::within::Within;

const SIZE: u64 = 4 << 20;
const BLOCK: usize = 4096;

/// Two hosts, not started.
fn hosts() -> (Place, Place) {
    (place("A", true), place("B", true))
}

/// A knows B; nobody replicates anything.
fn pair(a: &Place, b: &Place) {
    a.ok(&format!("host pair {}", b.ok("host pair --new").trim()));
}

fn replica(place: &Place, name: &str) -> Value {
    json(&place.ok(&format!("replica show {name} -o json")))
}

fn role(place: &Place, name: &str) -> String {
    json(&place.ok(&format!("volume show {name} -o json")))["role"].as_str().unwrap().to_owned()
}

/// Refused with that code, in three lines.
fn refused(place: &Place, words: &str, code: i32) -> String {
    let stderr = place.not_ok(words, code);
    let starts: Vec<&str> = stderr.lines().map(|line| line.split(':').next().unwrap_or_default()).collect();
    assert_eq!(starts, ["error", "why", "next"], "{words}: {stderr}");
    stderr
}

/// A volume with a snapshot, and something written since.
fn written(place: &Place) {
    place.ok(&format!("volume create web --size {SIZE}"));
    let mut client = place.client("web");
    client.write(0, &[1; BLOCK]).unwrap();
    place.ok("snapshot create web@a");
    client.write(BLOCK as u64, &[2; BLOCK]).unwrap();
    client.leave().unwrap();
}

#[test]
fn a_demoted_volume_is_read_only_and_has_nothing_to_show_yet() {
    let (a, b) = hosts();
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    written(&a);
    let none = "no replicas; they come from other hosts: blockctl sync --help, there\n";
    assert_eq!(a.ok("replica list"), none);
    assert!(!a.ok("status").contains("replicas"), "there are none");
    ok_soon(&a, "replica demote web --to-follow B --plan");
    assert_eq!(role(&a, "web"), "primary", "a plan changes nothing");
    let mut client = a.client("web");
    client.write(0, &[1; BLOCK]).unwrap();
    client.leave().unwrap();

    ok_soon(&a, "replica demote web --to-follow B --yes");
    assert!(matches!(a.no_client("web"), ClientError::Refused(reply_type::ERR_UNKNOWN)));
    assert_eq!(a.client("web@a").call_write(0, 0, &[9; BLOCK]).unwrap(), Err(errno::EPERM));
    assert_eq!(role(&a, "web"), "replica");
    let exports = json(&a.ok("export list -o json"));
    assert_eq!(exports["exports"].as_array().unwrap().len(), 1, "nothing has come that web could show");
    assert_eq!(exports["exports"][0]["name"], "web@a");
    assert!(a.not_ok("export show web", 3).contains("no complete snapshot has come yet"));
    let web = replica(&a, "web");
    let id = json(&b.ok("host show -o json"))["id"].clone();
    let facts = (&web["role"], &web["epoch"], &web["diverged"]);
    assert_eq!(facts, (&"replica".into(), &1.into(), &true.into()));
    assert_eq!((&web["peer"]["name"], &web["peer"]["id"]), (&"B".into(), &id));
    assert!(web["newest"].is_null() && web["receiving"].is_null(), "{web}");
    assert!(a.ok("status").contains("\nreplicas 1, 1 without a complete snapshot\n"));
    for words in ["volume resize web --size 8M", "snapshot create web@b", "snapshot rollback web@a --yes"] {
        assert_eq!(a.ctl(words).0, 5, "{words}");
    }
}

#[test]
fn a_demoted_volume_is_promoted_to_what_it_was() {
    let (a, b) = hosts();
    let (running, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    written(&a);
    ok_soon(&a, "replica demote web --to-follow B --yes");
    let before = replica(&a, "web");
    let plan = a.ok("replica promote web --plan");
    let first = "web becomes writable here, epoch 1 → 2: what it was when it was demoted\n";
    let last = "Nothing was changed. Run without --plan to do it.\n";
    assert!(plan.starts_with(first) && plan.ends_with(last), "{plan}");
    assert!(plan.contains("on B: blockctl replica demote web --to-follow A\n"), "{plan}");
    assert_eq!(replica(&a, "web"), before, "a plan changes nothing");
    let said = a.ok("replica promote web --yes");
    assert!(said.ends_with("promoted web: clients of this host write to it, in epoch 2\n"), "{said}");
    let mut client = a.client("web");
    assert_eq!(client.read(0, 2 * BLOCK as u32).unwrap(), [[1; BLOCK], [2; BLOCK]].concat());
    client.write(0, &[3; BLOCK]).unwrap();
    client.leave().unwrap();
    let events = a.ok("events");
    assert!(events.contains("replica_promoted  web  epoch 1 to 2") && events.contains("volume_demoted  web"));
    running.stop();
    let _again = a.serve();
    let web = replica(&a, "web");
    let facts = (&web["role"], &web["epoch"], &web["peer"]);
    assert_eq!(facts, (&"primary".into(), &2.into(), &Value::Null));
    assert!(a.ok("replica list").contains("\nweb   primary      2"));
    assert_eq!(a.client("web").read(0, BLOCK as u32).unwrap(), [3; BLOCK]);
}

#[test]
fn what_has_clients_is_not_demoted() {
    let (a, b) = hosts();
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    let mut client = a.client("web");
    client.write(0, &[1; BLOCK]).unwrap();
    for words in ["replica demote web --to-follow B --yes", "replica demote web --to-follow B --plan"] {
        assert!(a.not_ok(words, 4).contains("1 client"), "{words}");
    }
    client.write(0, &[2; BLOCK]).unwrap();
    client.flush().unwrap();
    assert_eq!(role(&a, "web"), "primary");
    client.leave().unwrap();
    ok_soon(&a, "replica demote web --to-follow B --yes");
}

#[test]
fn what_cannot_be_is_refused_in_three_lines() {
    let (a, b) = hosts();
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    for verb in
        ["show nothing", "promote nothing --yes", "demote nothing --to-follow B --yes", "verify nothing"]
    {
        refused(&a, &format!("replica {verb}"), 3);
    }
    refused(&a, "replica demote web --to-follow nobody --yes", 3);
    assert!(refused(&a, "replica promote web --yes", 5).contains("web is no replica"));
    assert!(refused(&a, "replica promote web --plan", 5).contains("web is no replica"));
    assert!(refused(&a, "replica verify web", 5).contains("next:  blockctl snapshot verify"));
    a.ok("host trust B --revoke");
    assert!(refused(&a, "replica demote web --to-follow B --yes", 5).contains("not trusted"));
    a.ok("host trust B");
    for words in ["replica show ../x", "replica demote web", "replica promote web@a", "replica"] {
        assert_eq!(a.ctl(words).0, 2, "{words}");
    }
}

#[test]
fn nothing_is_done_unless_somebody_says_yes() {
    let (a, b) = hosts();
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    let stderr = refused(&a, "replica demote web --to-follow B", 5);
    assert!(stderr.contains("next:  blockctl replica demote --to-follow B web --yes"), "{stderr}");
    assert_eq!(role(&a, "web"), "primary");
    a.ok("replica demote web --to-follow B --yes");
    assert!(refused(&a, "replica demote web --to-follow B --yes", 5).contains("a replica already"));
    assert!(refused(&a, "replica verify web", 3).contains("no complete snapshot of web has come yet"));
    assert!(refused(&a, "replica promote web", 5).contains("there is no terminal to ask at"));
    assert_eq!(role(&a, "web"), "replica");
}

const LINEAGE: Lineage = Lineage([7; 16]);

/// Begins to bring snapshot `s{number}`: blocks 0 and `number` hold that number.
fn begin(within: &Within, number: u8, base: Option<u8>) {
    let (lineage, token) = (LINEAGE, [number; 16]);
    let incoming = Incoming {
        lineage,
        peer: HostId([9; 16]),
        volume: "r".to_owned(),
        uid: SnapshotUid([number; 16]),
        point: Point { epoch: 4, sequence: u64::from(number) },
        name: format!("s{number}"),
        size: SIZE,
        created_ms: 1_795_183_410_000 + u64::from(number),
        base: base.map(|base| SnapshotUid([base; 16])),
        token,
    };
    within.ask(Replication::Receive(incoming)).unwrap();
    let block = |at: usize| Patch::Data { offset: (at * BLOCK) as u64, bytes: vec![number; BLOCK] };
    let patches = vec![block(0), block(usize::from(number))];
    within.ask(Replication::Apply { lineage, token, patches }).unwrap();
    within.ask(Replication::Confirm { lineage, token, cursor: 16 }).unwrap();
}

fn publish(within: &Within, number: u8) {
    let (lineage, token) = (LINEAGE, [number; 16]);
    within.ask(Replication::Stage { lineage, token }).unwrap();
    within.ask(Replication::Publish { staged: vec![(lineage, token)] }).unwrap();
}

fn export(within: &Within, name: &str) -> Option<Value> {
    let list = json(&within.ok("export list -o json"));
    list["exports"].as_array().unwrap().iter().find(|export| export["name"] == name).cloned()
}

fn first_block(within: &Within, export: &str) -> Vec<u8> {
    within.client(export).read(0, BLOCK as u32).unwrap()
}

#[test]
fn a_replica_is_read_by_its_own_name() {
    let within = Within::start();
    begin(&within, 1, None);
    assert_eq!(export(&within, "r"), None, "nothing was published");
    assert!(!within.can_open("r") && !within.can_open("r@s1"));
    publish(&within, 1);
    let shown = export(&within, "r").unwrap();
    assert_eq!((&shown["read_only"], &shown["size"]), (&true.into(), &SIZE.into()));
    let mut client = within.client("r");
    assert_eq!(client.read(0, 2 * BLOCK as u32).unwrap(), vec![1; 2 * BLOCK]);
    assert_eq!(client.call_write(0, 0, &[9; BLOCK]).unwrap(), Err(errno::EPERM));
    assert_eq!(export(&within, "r").unwrap()["clients"], 1);

    // It stays with what it has opened; others see the next one.
    begin(&within, 2, Some(1));
    publish(&within, 2);
    assert_eq!(client.read(0, BLOCK as u32).unwrap(), vec![1; BLOCK]);
    assert_eq!(first_block(&within, "r"), vec![2; BLOCK]);
    assert_eq!(first_block(&within, "r@s1"), vec![1; BLOCK]);
    let shown = json(&within.ok("export show r -o json"));
    assert_eq!((&shown["read_only"], &shown["name"]), (&true.into(), &"r".into()));
    assert!(within.ok("export show r --libvirt").contains("<readonly/>"));
    within.ok("clone r@s2 test");
    within.client("test").write(0, &[5; BLOCK]).unwrap();
    assert_eq!(first_block(&within, "r"), vec![2; BLOCK]);
}

#[test]
fn what_is_on_its_way_is_told() {
    let within = Within::start();
    begin(&within, 1, None);
    publish(&within, 1);
    begin(&within, 2, Some(1));
    let told = json(&within.ok("replica show r -o json"));
    let receiving = r#"{"bytes":1048576,"cursor":16,"snapshot":"s2","staged":false,"total":64}"#;
    assert_eq!(told["receiving"], serde_json::from_str::<Value>(receiving).unwrap());
    assert_eq!((&told["newest"]["name"], &told["epoch"]), (&"r@s1".into(), &4.into()));
    assert_eq!(told["newest"]["created_ms"], 1_795_183_410_001_u64);
    assert_eq!(told["lineage"], "07".repeat(16));
    assert_eq!((&told["peer"]["id"], &told["peer"]["name"]), (&"09".repeat(16).into(), &Value::Null));
    let list = within.ok("replica list");
    assert!(list.starts_with("NAME  ROLE     EPOCH  FOLLOWS") && list.contains("25 %"), "{list}");
    let show = within.ok("replica show r");
    for part in [
        "r@s1  taken 2026-11-20 14:03:30",
        "s2: 16 of 64 clusters, 1 MiB (25 %)",
        "blockctl clone r@s1 r-test",
        "nbd+unix:///r?socket=",
    ] {
        assert!(show.contains(part), "{part} in {show}");
    }
    assert!(within.ok("status").contains("replicas 1, 1 receiving; oldest r, "));
    assert_eq!(json(&within.ok("status -o json"))["replicas"][0]["name"], "r");
}

#[test]
fn a_promotion_takes_the_newest_snapshot_and_throws_away_what_is_on_its_way() {
    let within = Within::start();
    begin(&within, 1, None);
    assert_eq!(within.ctl("replica promote r --yes").0, 5, "nothing complete has come");
    publish(&within, 1);
    begin(&within, 2, Some(1));
    let plan = within.ok("replica promote r --plan");
    assert!(plan.contains("epoch 4 → 5: what r@s1 holds, taken 2026-11-20 14:03:30"), "{plan}");
    assert!(plan.contains("thrown away: what has come of s2: 16 of 64"), "{plan}");
    let promoted = json(&within.ok("replica promote r --yes -o json"));
    assert_eq!((&promoted["action"], &promoted["done"]), (&"promoted".into(), &true.into()));
    assert_eq!(first_block(&within, "r"), vec![1; BLOCK]);
    within.client("r").write(0, &[9; BLOCK]).unwrap();
    let told = json(&within.ok("replica show r -o json"));
    let facts = (&told["role"], &told["epoch"], &told["receiving"]);
    assert_eq!(facts, (&"primary".into(), &5.into(), &Value::Null));
    assert_eq!(export(&within, "r").unwrap()["read_only"], false);
}

#[test]
fn all_of_the_newest_snapshot_is_verified() {
    let within = Within::start();
    begin(&within, 1, None);
    publish(&within, 1);
    let content = within.client("r").read(0, SIZE as u32).unwrap();
    let root = blake3::hash(&content).to_hex().to_string();
    // Nothing has compared it yet, as a session would have.
    let (code, stdout, stderr) = within.ctl("replica verify r -o jsonl");
    assert!(code == 6 && stderr.contains("no root is recorded"), "{code} {stdout}{stderr}");
    let first = json(stdout.lines().last().unwrap());
    let facts = (&first["name"], &first["verdict"], &first["hash"]);
    assert_eq!(facts, (&"r@s1".into(), &"unknown".into(), &root.as_str().into()));
    within.ok("snapshot hash r@s1");
    let said = within.ok("replica verify r");
    assert_eq!(said, format!("r@s1  ok  64 KiB checked\n  root {root}\n"));
    flip(&within);
    let (code, stdout, stderr) = within.ctl("replica verify r");
    assert_eq!(code, 8, "{stdout}{stderr}");
    assert!(stdout.starts_with("r@s1  DAMAGED") && !stdout.contains("root"), "{stdout}");
    assert!(within.ok("events").contains("snapshot_damaged  r@s1"));
    let (code, _, stderr) = within.ctl("replica verify r --repair");
    assert!(code == 5 && stderr.contains("no replication"), "{code} {stderr}");
}

/// Changes a byte of the replica's data in the pool.
fn flip(within: &Within) {
    for path in std::fs::read_dir(within.data()).unwrap().map(|entry| entry.unwrap().path()) {
        let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let found = bytes.chunks_exact(BLOCK).position(|block| block.iter().all(|&byte| byte == 1));
        if let Some(at) = found {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            return file.write_all_at(&[2], (at * BLOCK) as u64).unwrap();
        }
    }
    panic!("no data in {}", within.data().display());
}
