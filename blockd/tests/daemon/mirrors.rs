//! Mirrored volumes between real daemons: what is answered is on both hosts, and nobody waits for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fixtures::process::{ProcessError, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::moves::{done, newest, pair, place, refused, request};
use crate::place::Place;

const SIZE: usize = 24 << 20;
const BLOCK: usize = 4096;
const MOVE: &str = "00112233445566778899aabbccddeeff";
const PATIENCE: Duration = Duration::from_secs(60);

/// Two hosts, a volume, its replica that is expected.
fn begin(a: &Place, b: &Place) {
    pair(a, b);
    a.ok(&format!("volume create web --size {SIZE}"));
    let mut client = a.client("web:1");
    client.write(0, &vec![1; 1 << 20]).unwrap();
    client.leave().unwrap();
    a.ok("sync web --to B");
    done(b, &format!("/v1/moves/{MOVE}/expect"), &json!({ "peer": "A", "volumes": ["web"] }));
}

fn mirror(a: &Place) -> Value {
    let (_, all) = request(a, "GET", "/v1/mirrors", &json!(null));
    all["mirrors"][0].clone()
}

/// Until it is at that stage.
fn stage(a: &Place, stage: &str) -> Value {
    let found = wait_until(stage, PATIENCE, || {
        let mirror = mirror(a);
        assert!(stage == "ended" || mirror["stage"] != "ended", "{mirror}");
        Ok::<_, ProcessError>((mirror["stage"] == stage).then_some(mirror))
    });
    found.unwrap()
}

fn start(a: &Place) {
    done(a, "/v1/mirrors", &json!({ "volume": "web", "to": "B" }));
}

/// A guest that writes all the time: blocks in turn, each with the number of the round.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Duration)>,
}

impl Writer {
    fn start(a: &Place) -> Self {
        let mut client = a.client("web:1");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut written, mut longest) = (0, Duration::ZERO);
            let blocks = (SIZE / BLOCK) as u64;
            while !stopped.load(Ordering::Relaxed) {
                let block = written * 37 % blocks;
                let bytes = [u8::try_from(written / blocks % 250).unwrap() + 2; BLOCK];
                let begun = std::time::Instant::now();
                client.write(block * BLOCK as u64, &bytes).expect("latency at most, never an error");
                longest = longest.max(begun.elapsed());
                written += 1;
            }
            client.leave().unwrap();
            (written, longest)
        });
        Self { stop, thread }
    }

    /// How many were answered.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().0
    }
}

/// The last difference, from frozen to owned.
fn hand_over(a: &Place, b: &Place) {
    let volumes = json!(["web"]);
    done(a, &format!("/v1/moves/{MOVE}/freeze"), &json!({ "peer": "B", "volumes": volumes }));
    a.ok("sync web --to B");
    let ended = stage(a, "ended");
    assert!(ended["reason"].as_str().unwrap().contains("all of it was brought"), "{ended}");
    let (name, root) = newest(a);
    assert_eq!(
        (ended["published"].as_str(), ended["root"].as_str()),
        (name.strip_prefix("web@"), Some(&*root))
    );
    let snapshots = json!([{ "name": name, "root": root }]);
    done(a, &format!("/v1/moves/{MOVE}/release"), &json!({ "snapshots": snapshots }));
    let (_, moved) = request(a, "GET", &format!("/v1/moves/{MOVE}"), &json!(null));
    let handed = json!({ "volume": "web", "epoch": 2, "uid": moved["volumes"][0]["uid"], "root": root });
    done(b, &format!("/v1/moves/{MOVE}/own"), &json!({ "volumes": [handed] }));
}

/// Rounds while a guest writes send nothing again, and the last one finds the other host equal.
#[test]
fn a_volume_is_mirrored_while_it_is_written_and_handed_over() {
    let (a, b) = (place("A"), place("B"));
    let (_a, _b) = (a.serve(), b.serve());
    begin(&a, &b);
    let writer = Writer::start(&a);
    start(&a);
    stage(&a, "in_sync");
    start(&a);
    for _ in 0..3 {
        a.ok("sync web --to B");
        let (name, root) = newest(&a);
        assert_eq!(b.ok(&format!("snapshot hash {name}")).split(' ').next(), Some(&*root));
        let content = a.content(&name);
        assert_eq!(blake3::hash(&content).to_hex().as_str(), root);
        assert!(content == b.content("web"), "the replica shows the snapshot");
    }
    let before = mirror(&a)["sent_bytes"].as_u64().unwrap();
    assert!(before > 16 << 10, "{before}");
    let written = writer.stop();
    assert!(written > 200, "{written}");
    let at_the_end = a.content("web");
    hand_over(&a, &b);
    assert!(b.content("web:2") == at_the_end, "all that was answered");
    assert_eq!(refused(&a, "/v1/mirrors", &json!({ "volume": "web", "to": "C" })), "not_found");
}

/// The other host stands still, and dies: its writes wait for a while, and go on.
#[test]
fn a_guest_does_not_notice_more_than_latency_when_the_mirror_breaks() {
    let (a, b) = (place("A"), place("B"));
    let (_a, running_b) = (a.serve(), b.serve());
    begin(&a, &b);
    let writer = Writer::start(&a);
    start(&a);
    stage(&a, "in_sync");
    let pid = Pid::from_raw(i32::try_from(running_b.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    stage(&a, "ended");
    kill_process(pid, Signal::CONT).unwrap();
    // It begins again over what was shown, and what it had brought before is not in the way.
    a.ok("sync web --to B");
    start(&a);
    stage(&a, "in_sync");
    running_b.kill();
    stage(&a, "ended");
    let _b = b.serve();
    assert!(writer.stop() > 100);
    a.ok("sync web --to B");
    let (name, root) = newest(&a);
    assert_eq!(b.ok(&format!("snapshot hash {name}")).split(' ').next(), Some(&*root));
}

/// Nobody writes to a replica that is not about to be given away to this host.
#[test]
fn a_mirror_is_for_what_is_expected_only() {
    let (a, b) = (place("A"), place("B"));
    let (_a, _b) = (a.serve(), b.serve());
    begin(&a, &b);
    done(&b, &format!("/v1/moves/{MOVE}/abort"), &json!({}));
    start(&a);
    let ended = stage(&a, "ended");
    assert!(ended["reason"].as_str().unwrap().contains("not expected"), "{ended}");
    let mut client = a.client("web:1");
    client.write(0, &[9; BLOCK]).unwrap();
    client.leave().unwrap();
    let (status, answer) = request(&a, "DELETE", "/v1/mirrors/db", &json!(null));
    assert_eq!((status, &answer["error"]["kind"]), (404, &json!("not_found")));
}

/// A run of replication needs the replica's head, which the mirror has: it waits for its turn.
#[test]
fn a_mirror_that_is_told_to_end_leaves_the_replica_to_others() {
    let (a, b) = (place("A"), place("B"));
    let (_a, _b) = (a.serve(), b.serve());
    begin(&a, &b);
    start(&a);
    stage(&a, "in_sync");
    let mut client = a.client("web:1");
    client.write(0, &[9; BLOCK]).unwrap();
    client.leave().unwrap();
    let (status, _) = request(&a, "DELETE", "/v1/mirrors/web", &json!(null));
    assert_eq!(status, 200);
    assert_eq!(mirror(&a)["reason"], "it was told to end");
    a.ok("sync web --to B");
    assert_eq!(b.content("web")[..BLOCK], [9; BLOCK]);
}
