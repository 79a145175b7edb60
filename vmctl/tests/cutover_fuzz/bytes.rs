//! What comes over the link.

use proptest::collection::vec;
use proptest::prelude::*;
use vmctl::cutover::codec::{DecodeError, Decoder, MESSAGE_BYTES_MAX, encode};
use vmctl::cutover::message::{Envelope, Message};

use crate::config;
use crate::words::{ID, id, message};

fn framed(json: &[u8]) -> Vec<u8> {
    [&u32::try_from(json.len()).expect("small").to_be_bytes()[..], json].concat()
}

fn decode(bytes: &[u8]) -> Result<Option<Envelope>, DecodeError> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    decoder.next()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_said_is_heard(all in vec((id(), message()), 1..5), cut in 1..600_usize) {
        let all: Vec<_> = all.into_iter().map(|(id, message)| Envelope { id, message }).collect();
        let bytes: Vec<u8> = all.iter().flat_map(encode).collect();
        let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
        for part in bytes.chunks(cut) {
            decoder.push(part);
            while let Some(envelope) = decoder.next().unwrap() {
                heard.push(envelope);
            }
        }
        prop_assert!(decoder.is_empty());
        prop_assert_eq!(heard, all);
    }

    #[test]
    fn any_bytes_are_an_error_or_wait_for_more(bytes in vec(any::<u8>(), 0..200)) {
        let _ended: Result<_, _> = decode(&bytes);
        let _ended: Result<_, _> = decode(&framed(&bytes));
    }

    #[test]
    fn a_changed_byte_is_an_error_or_another_message(message in message(), place: prop::sample::Index, byte: u8) {
        let envelope = Envelope { id: ID, message };
        let mut bytes = encode(&envelope);
        let place = 4 + place.index(bytes.len() - 4);
        bytes[place] = byte;
        if let Ok(Some(heard)) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&heard)).unwrap(), Some(heard));
        }
    }
}

#[test]
fn lengths_are_judged_before_bytes_are_kept() {
    for length in [0, u32::try_from(MESSAGE_BYTES_MAX).unwrap() + 1, u32::MAX] {
        assert_eq!(decode(&length.to_be_bytes()), Err(DecodeError::Length(length)));
    }
}

#[test]
fn after_an_error_there_is_nothing_but_it() {
    let mut decoder = Decoder::default();
    decoder.push(&framed(b"{}"));
    let error = decoder.next().unwrap_err();
    decoder.push(&encode(&Envelope { id: ID, message: Message::Query {} }));
    assert_eq!(decoder.next(), Err(error));
    assert!(!decoder.is_empty());
}

#[test]
fn what_is_not_meant_is_refused() {
    let id = "01".repeat(16);
    let bad = |json: String| {
        assert!(matches!(decode(&framed(json.as_bytes())), Err(DecodeError::Malformed(_))), "{json}");
    };
    let of = |message: &str| format!(r#"{{"v":1,"id":"{id}","message":{message}}}"#);
    assert!(decode(&framed(of(r#"{"type":"abort"}"#).as_bytes())).unwrap().is_some());
    bad(of(r#"{"type":"jump"}"#));
    bad(of(r#"{"type":"abort","more":1}"#));
    bad(format!(r#"{{"v":1,"id":"{id}","message":{{"type":"abort"}},"more":1}}"#));
    bad(format!(r#"{{"v":1,"id":"{}","message":{{"type":"abort"}}}}"#, "0G".repeat(16)));
    bad(format!(r#"{{"v":1,"id":"{}","message":{{"type":"abort"}}}}"#, "AB".repeat(16)));
    bad(of(&format!(r#"{{"type":"failed","reason":"{}"}}"#, "a".repeat(513))));
    bad(of(r#"{"type":"commit","commit":{"epoch":1,"snapshots":[]}}"#));
    bad(of(r#"{"type":"commit","commit":{"epoch":-1,"snapshots":[]}}"#));
    bad("[".repeat(60_000));
    let snapshot = format!(r#"{{"volume":"v","uid":"{id}","root":"{}"}}"#, "00".repeat(32));
    bad(of(&format!(r#"{{"type":"commit","commit":{{"epoch":1,"snapshots":[{snapshot},{snapshot}]}}}}"#)));
    let evil = snapshot.replace("\"v\"", "\"../v\"");
    bad(of(&format!(r#"{{"type":"commit","commit":{{"epoch":1,"snapshots":[{evil}]}}}}"#)));
}

#[test]
fn another_version_is_named() {
    assert_eq!(decode(&framed(br#"{"v":2,"hello":[]}"#)), Err(DecodeError::Version(2)));
}

/// docs/migration.md shows these bytes.
#[test]
fn the_bytes_are_those_of_the_documentation() {
    let bytes = encode(&Envelope { id: ID, message: Message::Query {} });
    let json = br#"{"v":1,"id":"01010101010101010101010101010101","message":{"type":"query"}}"#;
    assert_eq!(bytes, framed(json));
}

/// The longest message there is fits the limit.
#[test]
fn the_longest_message_fits() {
    use vmctl::cutover::ids::{Epoch, NAME_BYTES_MAX, Name, Root, SnapshotUid};
    use vmctl::cutover::message::Outcome;
    use vmctl::cutover::record::{Commit, FinalSnapshot, VOLUMES_MAX};
    let snapshots = (0..VOLUMES_MAX).map(|number| FinalSnapshot {
        volume: Name::new(&format!("{number:0NAME_BYTES_MAX$}")).unwrap(),
        uid: SnapshotUid([255; 16]),
        root: Root([255; 32]),
    });
    let commit = Commit { epoch: Epoch(u64::MAX), snapshots: snapshots.collect() };
    let envelope = Envelope { id: ID, message: Message::Outcome { outcome: Outcome::Released { commit } } };
    let bytes = encode(&envelope);
    assert!(bytes.len() < 16 << 10, "{} bytes", bytes.len());
    assert_eq!(decode(&bytes), Ok(Some(envelope)));
}
