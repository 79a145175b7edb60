//! What may come in through the socket for other hosts' agents: each is turned away, and the next one is served.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::Rig;

const INTRODUCTION: &str = "{\"v\":1,\"host\":\"B\",\"host_id\":\"00\"}\n";
const MOVE: &str = "00112233445566778899aabbccddeeff";
const SMALL: &str = "name = \"web1\"\nmemory = \"64MiB\"\n[[disk]]\nvolume = \"web1\"\n";

fn connect(rig: &Rig) -> UnixStream {
    let stream = UnixStream::connect(rig.path("run/peer.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Everything that is said until the other side ends it.
fn answer(rig: &Rig, said: &[u8]) -> Vec<u8> {
    let mut stream = connect(rig);
    // It may have heard enough before we are through.
    drop(stream.write_all(said));
    let mut heard = Vec::new();
    drop(stream.read_to_end(&mut heard));
    heard
}

fn hello(purpose: &Value) -> Vec<u8> {
    format!("{INTRODUCTION}{}\n", json!({ "v": 1, "for": purpose })).into_bytes()
}

/// A question, and its answer.
fn asked(rig: &Rig, question: &Value) -> Value {
    let mut stream = connect(rig);
    stream.write_all(&hello(&json!({ "ask": question }))).unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    serde_json::from_str(&heard).unwrap_or_else(|_| panic!("{heard:?}"))
}

fn offer(rig: &Rig, change: impl FnOnce(&mut Value)) -> Value {
    let definition = rig.show("web1")["definition"].clone();
    let volumes = json!([{ "name": "web1", "size": 1 << 20, "epoch": 1, "role": "primary" }]);
    let mut offer = json!({ "id": MOVE, "definition": definition, "volumes": volumes, "options": {},
        "qemu": { "major": 7, "minor": 2, "micro": 0 }, "accel": "tcg" });
    change(&mut offer);
    json!({ "judge": offer })
}

#[test]
fn who_says_nonsense_is_turned_away_and_harms_nobody() {
    let rig = Rig::new();
    let control = hello(&json!({ "control": { "id": MOVE } }));
    let with = |bytes: &[u8]| [&control, bytes].concat();
    let cases: [(&str, Vec<u8>); 14] = [
        ("nothing", Vec::new()),
        ("no JSON", b"hello\n".to_vec()),
        ("no introduction", b"{}\n".to_vec()),
        ("another version", b"{\"v\":2,\"host\":\"B\"}\n{\"v\":2,\"for\":{}}\n".to_vec()),
        ("an endless line", vec![b'x'; 1 << 20]),
        ("no purpose", format!("{INTRODUCTION}{{\"v\":1}}\n").into_bytes()),
        ("another purpose", hello(&json!({ "shell": {} }))),
        ("a field too many", hello(&json!({ "control": { "id": MOVE, "force": true } }))),
        ("no move", hello(&json!({ "control": { "id": "../x" } }))),
        ("memory of no move", hello(&json!({ "memory": { "id": MOVE } }))),
        ("an unknown frame", with(&[9, 0, 0, 0, 1])),
        ("a length that lies", with(&[1, 255, 255, 255, 255])),
        ("a message that is none", with(&[1, 0, 0, 0, 2, b'{', b'}'])),
        ("a message of another version", with(b"\x01\x00\x00\x00\x07{\"v\":9}")),
    ];
    for (name, said) in cases {
        let mut stream = connect(&rig);
        drop(stream.write_all(&said));
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        drop(stream.read_to_end(&mut heard));
        assert!(heard.is_empty(), "{name}: {}", String::from_utf8_lossy(&heard));
        rig.vmctl(&["status"]).ok();
    }
}

/// A move that nobody knows is answered, and nothing is done because of it.
#[test]
fn who_asks_about_an_unknown_move_learns_that_it_is_unknown() {
    let rig = Rig::new();
    let message = json!({ "v": 1, "id": MOVE, "message": { "type": "abort" } }).to_string();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let frame = [&[1][..], &length, message.as_bytes()].concat();
    let mut stream = connect(&rig);
    stream.write_all(&[hello(&json!({ "control": { "id": MOVE } })), vec![0], frame].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    let text = String::from_utf8_lossy(&heard);
    assert!(text.contains("\"type\":\"discarded\"") && text.contains(MOVE), "{text}");
    assert!(answer(&rig, &hello(&json!({ "memory": { "id": MOVE } }))).is_empty());
}

#[test]
fn an_offer_is_judged_by_what_is_here() {
    let rig = Rig::new();
    rig.vmctl(&["vm", "define", &rig.file(SMALL)]).ok();
    let failing = |answer: &Value| -> Vec<String> {
        let checks = answer["ok"]["checks"].as_array().unwrap_or_else(|| panic!("{answer}"));
        checks
            .iter()
            .filter(|check| check["ok"] == false)
            .map(|check| check["what"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(failing(&asked(&rig, &offer(&rig, |_| {}))), Vec::<String>::new());
    let huge = offer(&rig, |offer| offer["definition"]["memory"] = json!("1TiB"));
    assert_eq!(failing(&asked(&rig, &huge)), ["memory"]);
    let later = offer(&rig, |offer| offer["definition"]["machine"] = json!("pc-q35-99.0"));
    assert_eq!(failing(&asked(&rig, &later)), ["machine"]);
    let other = offer(&rig, |offer| offer["accel"] = json!("kvm"));
    assert_eq!(failing(&asked(&rig, &other)), ["processor"]);
    let boot = offer(&rig, |offer| offer["definition"]["boot"] = json!({ "kernel": "/nonexistent/kernel" }));
    assert_eq!(failing(&asked(&rig, &boot)), ["boot"]);
    rig.blockctl(&["volume", "create", "web1", "--size", "1M"]).ok();
    assert_eq!(failing(&asked(&rig, &offer(&rig, |_| {}))), ["volume"], "there is one that is no replica");
    // What cannot be is no VM at all.
    let bad = offer(&rig, |offer| offer["definition"]["vcpus"] = json!(0));
    assert_eq!(asked(&rig, &bad)["error"]["kind"], json!("bad_value"));
    let unknown = asked(&rig, &json!({ "return": { "vm": "web9", "options": {} } }));
    assert_eq!(unknown["error"]["kind"], json!("not_found"));
}
