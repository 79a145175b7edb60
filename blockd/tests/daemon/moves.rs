//! Volumes that change hands between real daemons, and what agents say to each other through them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use fixtures::nbd::client::Client;
use serde_json::{Value, json};

use crate::place::Place;

const SIZE: usize = 24 << 20;
const MOVE: &str = "00112233445566778899aabbccddeeff";
const BACK: &str = "ffeeddccbbaa99887766554433221100";

/// A host that is found at the same port after a restart, and where its agent is.
pub(crate) fn place(name: &str) -> Place {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut place = Place::new();
    let agent = place.agent_socket().display().to_string();
    let own = ["--name", name, "--peer-listen", &free.to_string(), "--agent-socket", &agent];
    place.arguments.extend(own.map(str::to_owned));
    place
}

pub(crate) fn pair(a: &Place, b: &Place) {
    let token = b.ok("host pair --new");
    a.ok(&format!("host pair {}", token.trim()));
}

/// A request to the API: the status, and the body.
pub(crate) fn request(place: &Place, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = UnixStream::connect(place.control_socket()).unwrap();
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: blockd\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| json!(body)))
}

pub(crate) fn done(place: &Place, path: &str, body: &Value) {
    let (status, answer) = request(place, "POST", path, body);
    assert_eq!((status, &answer), (200, &json!({ "done": true })), "{path} {body}");
}

pub(crate) fn refused(place: &Place, path: &str, body: &Value) -> String {
    let (_, answer) = request(place, "POST", path, body);
    answer["error"]["kind"].as_str().unwrap_or_else(|| panic!("{path}: {answer}")).to_owned()
}

fn stage(place: &Place, id: &str) -> String {
    let (status, answer) = request(place, "GET", &format!("/v1/moves/{id}"), &json!(null));
    assert_eq!(status, 200, "{answer}");
    answer["stage"].as_str().unwrap().to_owned()
}

/// What the newest common snapshot is called, its uid and root.
pub(crate) fn newest(place: &Place) -> (String, String) {
    let listed = place.ok("snapshot list web -o jsonl");
    let last: Value = serde_json::from_str(listed.lines().last().unwrap()).unwrap();
    let name = format!("web@{}", last["name"].as_str().unwrap());
    let root = place.ok(&format!("snapshot hash {name}"));
    (name, root.split(' ').next().unwrap().to_owned())
}

/// Everything from the last difference to the first write at the other host.
fn hand_over(from: (&Place, &str), to: (&Place, &str), id: &str, epoch: u64) {
    let volumes = json!(["web"]);
    done(to.0, &format!("/v1/moves/{id}/expect"), &json!({ "peer": from.1, "volumes": volumes }));
    done(from.0, &format!("/v1/moves/{id}/freeze"), &json!({ "peer": to.1, "volumes": volumes }));
    from.0.ok(&format!("sync web --to {}", to.1));
    let (name, root) = newest(from.0);
    let snapshots = json!([{ "name": name, "root": root }]);
    done(from.0, &format!("/v1/moves/{id}/release"), &json!({ "snapshots": snapshots }));
    let (_, moved) = request(from.0, "GET", &format!("/v1/moves/{id}"), &json!(null));
    let released = &moved["volumes"][0];
    assert_eq!((released["root"].as_str(), moved["stage"].as_str()), (Some(&*root), Some("released")));
    let handed = json!({ "volume": "web", "epoch": epoch, "uid": released["uid"], "root": root });
    done(to.0, &format!("/v1/moves/{id}/own"), &json!({ "volumes": [handed] }));
}

fn write(client: &mut Client, block: u64, value: u8) -> Result<(), String> {
    client.write(block * 4096, &[value; 4096]).map_err(|error| error.to_string())
}

#[test]
fn a_volume_goes_to_another_host_and_comes_back() {
    let (a, b) = (place("A"), place("B"));
    let (running_a, running_b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    let mut at_a = a.client("web:1");
    write(&mut at_a, 0, 1).unwrap();
    a.ok("sync web --to B");
    write(&mut at_a, 1, 2).unwrap();
    done(&b, &format!("/v1/moves/{MOVE}/expect"), &json!({ "peer": "A", "volumes": ["web"] }));
    let mut at_b = b.client("web:2");
    assert_eq!(write(&mut at_b, 5, 9).unwrap_err(), "request failed with error 1", "not yet this host's");
    hand_over((&a, "A"), (&b, "B"), MOVE, 2);
    assert!(write(&mut at_a, 2, 9).is_err(), "not this host's any more");
    write(&mut at_b, 2, 3).unwrap();
    at_b.flush().unwrap();
    // A killed daemon knows all of it again.
    at_b.leave().unwrap();
    running_b.kill();
    running_a.kill();
    let (_a, _b) = (a.serve(), b.serve());
    assert_eq!((stage(&a, MOVE), stage(&b, MOVE)), ("released".to_owned(), "owned".to_owned()));
    a.no_client("web:1");
    let mut at_b = b.client("web:2");
    write(&mut at_b, 3, 4).unwrap();
    b.ok("sync web --to A");
    done(&a, &format!("/v1/moves/{BACK}/expect"), &json!({ "peer": "B", "volumes": ["web"] }));
    let mut back = a.client("web:3");
    hand_over((&b, "B"), (&a, "A"), BACK, 3);
    write(&mut back, 4, 5).unwrap();
    let content = a.content("web");
    let found: Vec<u8> = (0..6).map(|block| content[block * 4096]).collect();
    assert_eq!(found, [1, 2, 3, 4, 5, 0]);
    assert!(write(&mut at_b, 5, 9).is_err());
    back.leave().unwrap();
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (a, b) = (place("A"), place("B"));
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    let path = |verb: &str| format!("/v1/moves/{MOVE}/{verb}");
    let begin = json!({ "peer": "B", "volumes": ["web"] });
    for (path, body, kind) in [
        ("/v1/moves/xyz/freeze".to_owned(), begin.clone(), "bad_value"),
        (path("freeze"), json!({ "peer": "C", "volumes": ["web"] }), "not_found"),
        (path("freeze"), json!({ "peer": "B", "volumes": ["db"] }), "not_found"),
        (path("freeze"), json!({ "peer": "B", "volumes": ["../x"] }), "bad_name"),
        (path("freeze"), json!({ "peer": "B", "volumes": ["web"], "force": true }), "bad_request"),
        (path("expect"), begin.clone(), "refused"),
        (path("release"), json!({ "snapshots": [{ "name": "web@x", "root": "00" }] }), "bad_value"),
        (path("release"), json!({ "snapshots": [{ "name": "web", "root": "00" }] }), "bad_name"),
        (path("own"), json!({ "volumes": [] }), "not_found"),
        (path("abort"), json!({}), "not_found"),
    ] {
        assert_eq!(refused(&a, &path, &body), kind, "{path} {body}");
    }
    done(&a, &path("freeze"), &begin);
    let stderr = a.not_ok("volume delete web --yes", 4);
    assert!(stderr.contains("takes part in the move"), "{stderr}");
    done(&a, &path("abort"), &json!({}));
    let (_, moves) = request(&a, "GET", "/v1/moves", &json!(null));
    assert_eq!(moves["moves"][0]["stage"], json!("aborted"));
}

/// The other end of a tunnel: who is there, and then what he says, said again.
fn echo(place: &Place) -> thread::JoinHandle<Value> {
    let listener = UnixListener::bind(place.agent_socket()).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        std::io::copy(&mut reader, &mut &stream).unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

fn tunnel(place: &Place, host: &str, headers: &str) -> (String, BufReader<UnixStream>) {
    let mut stream = UnixStream::connect(place.control_socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "POST /v1/hosts/{host}/tunnel HTTP/1.1\r\nhost: blockd\r\n{headers}\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    (head, reader)
}

#[test]
fn agents_speak_to_each_other_through_the_daemons() {
    const UPGRADE: &str = "connection: Upgrade\r\nupgrade: blockd-tunnel\r\n";
    let (a, b) = (place("A"), place("B"));
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    let (head, _) = tunnel(&a, "B", "");
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let (head, _) = tunnel(&a, "C", UPGRADE);
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    // Nobody there: the tunnel ends at once.
    let (head, mut nobody) = tunnel(&a, "B", UPGRADE);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(nobody.read(&mut [0]).unwrap(), 0);
    let agent = echo(&b);
    let (head, mut reader) = tunnel(&a, "B", UPGRADE);
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: blockd-tunnel"), "{head}");
    let mut sent = vec![0; 8 << 20];
    fastrand::Rng::with_seed(1).fill(&mut sent);
    let mut writer = reader.get_ref().try_clone().unwrap();
    let sending = sent.clone();
    let sender = thread::spawn(move || {
        writer.write_all(&sending).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    let introduced = agent.join().unwrap();
    assert_eq!((introduced["v"].as_u64(), introduced["host"].as_str()), (Some(1), Some("A")));
    assert_eq!(introduced["host_id"].as_str().map(str::len), Some(32));
}
