//! docs/replication.md says what the code does, as far as a program can tell.

use super::batch::{DATA_BYTES_MAX, RUNS_MAX, ZERO_BLOCKS_MAX};
use super::fetch::FETCH_STALL_MAX;
use super::session::{IDLE_MAX, PING_INTERVAL, SOURCE_STALL_MAX, TARGET_STALL_MAX, TARGET_WORK_BYTES_PER_MS};
use super::source::{BATCH_COST_MIN, WINDOW_BYTES};
use super::target::{APPLYING_MAX, EARLY_PINGS_MAX};
use super::wire::{
    Begin, CANDIDATES_MAX, Code, FETCH_CLUSTERS_MAX, Fetch, Found, Frame, HEADER_BYTES, HaveVolume, Hello,
    KeepWish, Message, Mode, PAYLOAD_BYTES_MAX, Ready, Refusal, TEXT_BYTES_MAX, VALUES_MAX, VERSION,
    VOLUMES_MAX, Values, Wanted,
};
use super::writing::KNOWN_MAX;
use crate::units::{HostId, Lineage, SnapshotUid};

const PAGE: &str = include_str!("../../../docs/replication.md");

#[track_caller]
fn says(line: &str) {
    assert!(PAGE.contains(line), "docs/replication.md does not say {line:?}");
}

#[test]
fn every_message_stands_in_the_page() {
    let hello =
        Hello { version_min: 1, version_max: 1, compression: 1, host: HostId([1; 16]), nonce: [1; 32] };
    let ready = Ready { token: [1; 16], cursor: 1, complete: false };
    // Who says it, and the bytes of its payload where these are always the same.
    let fetch = Fetch { lineage: Lineage([1; 16]), uid: SnapshotUid([1; 16]), clusters: Vec::new() };
    let all: [(Message, &str, bool); 19] = [
        (Message::Hello(hello), "both", true),
        (Message::Bind { version: 1, proof: [1; 32] }, "both", true),
        (Message::Offer(Vec::new()), "source", false),
        (Message::Have(HaveVolume::default()), "target", false),
        (Message::Begin(Begin { mode: Mode::Changes, base: None, resume: None }), "source", false),
        (Message::Ready(ready), "target", true),
        (Message::Data { from: 0, cursor: 1, batch: Vec::new() }, "source", false),
        (Message::Confirmed(1), "target", true),
        (Message::Values(Values { first: 1, values: Vec::new() }), "source", false),
        (Message::Wanted(Wanted { first: 1, differs: Vec::new() }), "target", false),
        (Message::End { cursor: 0, root: [1; 32] }, "source", true),
        (Message::Verified, "target", true),
        (Message::Publish, "source", true),
        (Message::Published, "target", true),
        (Message::Refuse(Refusal::new(Code::Failed, "")), "both", false),
        (Message::Ping, "both", true),
        (Message::Keep(KeepWish::default()), "source", true),
        (Message::Fetch(fetch), "asking", false),
        (Message::Fetched { cluster: 1, found: Found::Missing }, "asked", false),
    ];
    for (number, (message, by, fixed)) in (1..).zip(all) {
        let name = message.name();
        let bytes = Frame::session(message).encode();
        assert_eq!(u16::from_be_bytes([bytes[4], bytes[5]]), number, "{name}");
        let length = if fixed { format!(" {}", bytes.len() - HEADER_BYTES) } else { String::new() };
        says(&format!("| {number} | {name} | {by} |{length} |"));
    }
}

#[test]
fn every_code_stands_in_the_page() {
    for code in Code::ALL {
        says(&format!("| {} | {} |", code as u16, code.name()));
    }
}

#[test]
fn every_limit_stands_in_the_page() {
    let limits: [(&str, u64); 20] = [
        ("PAYLOAD_BYTES_MAX", PAYLOAD_BYTES_MAX as u64),
        ("VOLUMES_MAX", VOLUMES_MAX as u64),
        ("CANDIDATES_MAX", CANDIDATES_MAX as u64),
        ("KNOWN_MAX", KNOWN_MAX as u64),
        ("VALUES_MAX", VALUES_MAX as u64),
        ("FETCH_CLUSTERS_MAX", FETCH_CLUSTERS_MAX as u64),
        ("FETCH_STALL_MAX", FETCH_STALL_MAX),
        ("TEXT_BYTES_MAX", TEXT_BYTES_MAX as u64),
        ("DATA_BYTES_MAX", DATA_BYTES_MAX as u64),
        ("ZERO_BLOCKS_MAX", ZERO_BLOCKS_MAX),
        ("RUNS_MAX", RUNS_MAX as u64),
        ("WINDOW_BYTES", WINDOW_BYTES as u64),
        ("BATCH_COST_MIN", BATCH_COST_MIN as u64),
        ("APPLYING_MAX", APPLYING_MAX as u64),
        ("EARLY_PINGS_MAX", u64::from(EARLY_PINGS_MAX)),
        ("IDLE_MAX", IDLE_MAX),
        ("PING_INTERVAL", PING_INTERVAL),
        ("SOURCE_STALL_MAX", SOURCE_STALL_MAX),
        ("TARGET_STALL_MAX", TARGET_STALL_MAX),
        ("TARGET_WORK_BYTES_PER_MS", TARGET_WORK_BYTES_PER_MS),
    ];
    for (name, value) in limits {
        says(&format!("| {name} | {value} |"));
    }
    says(&format!("VERSION is {VERSION}"));
}

/// The drawings are those above the code.
#[test]
fn the_drawings_are_those_of_the_code() {
    let store = include_str!("../store/replica.rs");
    for code in [
        include_str!("source.rs"),
        include_str!("target.rs"),
        include_str!("session.rs"),
        include_str!("fetch.rs"),
        store,
    ] {
        let mut lines = code.lines().skip_while(|line| *line != "//! ```text").skip(1);
        let drawing: Vec<&str> = lines
            .by_ref()
            .take_while(|line| *line != "//! ```")
            .map(|line| line.strip_prefix("//! ").expect("of the module's doc"))
            .collect();
        assert!(!drawing.is_empty());
        says(&drawing.join("\n"));
    }
}
