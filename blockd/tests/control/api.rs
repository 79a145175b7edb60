//! The API by itself: limits, refusals, pages, and what the documentation says of it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;

use blockd::api::client::{Client, ClientError};
use blockd::api::server::{self, BindError, bind};
use blockd::api::types::{DiffQuery, Kind, Line};
use blockd::control::ErrorKind;
use blockd::events::Events;
use blockd::service::{NbdAddresses, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::engine::{MANY_EXTENTS, TestEngine};
use crate::harness::Daemon;

fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

fn kind_of(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").unwrap_or_default().1;
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    body["error"]["kind"].as_str().unwrap_or("none").to_owned()
}

#[test]
fn the_api_page_names_every_route_and_every_kind_of_error() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md")).unwrap();
    for (method, path) in blockd::api::routes() {
        assert!(page.contains(&format!("`{method} {path}`")), "docs/api.md lacks `{method} {path}`");
    }
    for kind in Kind::ALL {
        let name = serde_json::to_string(&kind).unwrap();
        assert!(page.contains(&format!("`{}`", name.trim_matches('"'))), "docs/api.md lacks {name}");
    }
}

#[test]
fn kinds_of_the_store_keep_their_names() {
    for kind in [ErrorKind::BadName, ErrorKind::NoSpace, ErrorKind::Damaged] {
        assert_eq!(serde_json::to_string(&kind).unwrap(), serde_json::to_string(&Kind::from(kind)).unwrap());
    }
}

#[test]
fn bad_requests_are_refused_in_our_own_words() {
    let daemon = Daemon::start(TestEngine::default());
    let cases = [
        ("POST", "/v1/volumes", r#"{"name":"web","size":512,"colour":"red"}"#, 400, "bad_request"),
        ("POST", "/v1/volumes", r#"{"name":"web""#, 400, "bad_request"),
        ("POST", "/v1/volumes", r#"{"name":"web","size":-1}"#, 400, "bad_request"),
        ("POST", "/v1/volumes", r#"{"name":"../web","size":512}"#, 400, "bad_name"),
        ("POST", "/v1/volumes", r#"{"name":"web","size":513}"#, 400, "bad_value"),
        ("GET", "/v1/volumes/..%2f..%2fetc%2fpasswd", "", 400, "bad_name"),
        ("GET", "/v1/volumes/%2e%2e", "", 400, "bad_name"),
        ("GET", "/v1/volumes/%ff", "", 400, "bad_name"),
        ("GET", "/v1/snapshots/web", "", 400, "bad_name"),
        ("DELETE", "/v1/snapshots/web@..%2fx", "", 400, "bad_name"),
        ("GET", "/v1/volumes/web", "", 404, "not_found"),
        ("GET", "/v1/volumes?limit=0", "", 400, "bad_value"),
        ("GET", "/v1/volumes?limit=1000000", "", 400, "bad_value"),
        ("GET", "/v1/volumes?colour=red", "", 400, "bad_request"),
        ("GET", "/v1/snapshots?after=x", "", 400, "bad_value"),
        ("POST", "/v1/snapshots", r#"{"names":[]}"#, 400, "bad_value"),
        ("DELETE", "/v1/pins/x", "", 400, "bad_value"),
        ("DELETE", "/v1/pins/8", "", 404, "not_found"),
        ("GET", "/v2/volumes", "", 400, "bad_request"),
        ("PUT", "/v1/volumes", "", 400, "bad_request"),
    ];
    for (method, path, body, status, kind) in cases {
        let answer = daemon.http(method, path, body);
        assert_eq!(
            (status_of(&answer), kind_of(&answer).as_str()),
            (status, kind),
            "{method} {path} {body}: {answer}"
        );
    }
}

#[test]
fn an_oversized_body_is_refused() {
    let daemon = Daemon::start(TestEngine::default());
    let told = daemon.raw(
        b"POST /v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 99999999\r\n\r\n",
    );
    assert_eq!((status_of(&told), kind_of(&told).as_str()), (413, "too_large"));
    // Without a length told, it is counted.
    let mut chunked =
        b"POST /v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..17 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b'x'; 65_536]);
        chunked.extend_from_slice(b"\r\n");
    }
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    // The server may close before all was sent.
    drop(stream.write_all(&chunked));
    let mut answer = [0; 64];
    let count = std::io::Read::read(&mut stream, &mut answer).unwrap();
    assert_eq!(status_of(&String::from_utf8_lossy(&answer[..count])), 413);
    assert!(daemon.ok("volume list").contains("no volumes"));
}

/// The clock is simulated: it jumps ahead as soon as everybody waits.
async fn slow(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (listener, _file) = bind(&socket, None).unwrap().into_parts();
    let service = Service::new(Arc::new(TestEngine::default()), Events::default(), NbdAddresses::default());
    let api = server::start(vec![listener], service, None, 4).unwrap();
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let began = tokio::time::Instant::now();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let took = began.elapsed().as_secs();
    assert!((5..30).contains(&took), "closed after {took} s");
    api.stop().await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_its_header_is_cut_off() {
    slow(b"GET /v1/status HTTP/1.1\r\nhost: ").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_its_body_is_told_and_cut_off() {
    let answer =
        slow(b"POST /v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{")
            .await;
    assert_eq!(kind_of(&answer), "timeout", "{answer}");
}

#[test]
fn lists_come_in_pages() {
    let daemon = Daemon::start(TestEngine::with_volumes(10_000));
    let answer = daemon.http("GET", "/v1/volumes", "");
    assert!(answer.len() < 400_000, "a page has {} bytes", answer.len());
    assert_eq!(answer.matches("\"name\":\"v").count(), 1000);
    assert!(answer.contains("\"next\":\"v00999\""));
    let last = daemon.http("GET", "/v1/volumes?after=v09990&limit=100", "");
    assert_eq!(last.matches("\"name\":\"v").count(), 9);
    assert!(last.contains("\"next\":null"));
    let listed = daemon.ok("volume list -o jsonl");
    assert_eq!(listed.lines().count(), 10_000);
    assert_eq!(daemon.ok("export list -o jsonl").lines().count(), 10_000);
}

#[test]
fn too_many_clients_are_told() {
    let daemon = Daemon::start(TestEngine::default());
    let waiting: Vec<UnixStream> = (0..16).map(|_| UnixStream::connect(&daemon.socket).unwrap()).collect();
    let answer = daemon.http("GET", "/v1/status", "");
    assert_eq!((status_of(&answer), kind_of(&answer).as_str()), (503, "overloaded"));
    drop(waiting);
}

/// Only root can become somebody else; elsewhere the test has nothing to say.
#[test]
fn a_foreign_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let daemon = Daemon::start(TestEngine::default());
    // Even where the file system would let everybody in.
    for path in [daemon.dir.path(), &daemon.socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let program = daemon.dir.path().join("blockctl");
    std::fs::copy(env!("CARGO_BIN_EXE_blockctl"), &program).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .arg("--socket")
        .arg(&daemon.socket);
    let (code, _, stderr) = crate::harness::outcome(command.arg("status").output().unwrap());
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("why:   this user may not talk to the daemon"), "{stderr}");
    std::fs::set_permissions(&daemon.socket, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .arg("--socket")
        .arg(&daemon.socket);
    let (code, _, stderr) = crate::harness::outcome(command.arg("status").output().unwrap());
    assert_eq!(code, 5, "{stderr}");
}

#[test]
fn the_socket_is_ours_alone_and_stale_ones_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = bind(&path, None).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(bind(&path, None), Err(BindError::InUse)));
    let (listener, file) = first.into_parts();
    drop(listener);
    let second = bind(&path, None).unwrap();
    std::mem::forget(file);
    drop(second);
    assert!(!path.exists());
    std::fs::write(&path, "not a socket").unwrap();
    assert!(matches!(bind(&path, None), Err(BindError::NotASocket)));
    assert!(matches!(bind(&dir.path().join("t"), Some("no-such-group")), Err(BindError::Group(_))));
}

#[tokio::test]
async fn a_long_answer_is_streamed_and_a_failed_one_ends_with_its_error() {
    let daemon = Daemon::start(TestEngine::default());
    let client = Client::new(&daemon.socket);
    client.create_volume("web", 1 << 30).await.unwrap();
    client.create_volume("db", 1 << 30).await.unwrap();
    client.create_snapshots(&["web@many".to_owned(), "db@a".to_owned()]).await.unwrap();
    let mut extents = 0;
    let query = DiffQuery { from: None, to: "web@many".to_owned() };
    let end =
        client.diff(&query, |line| extents += u64::from(matches!(line, Line::Extent(_)))).await.unwrap();
    assert_eq!((extents, end.count), (MANY_EXTENTS, Some(MANY_EXTENTS)));
    let query = DiffQuery { from: Some("db@a".to_owned()), to: "web@many".to_owned() };
    match client.diff(&query, |_| {}).await {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, Kind::BadValue),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_work() {
    let daemon = Daemon::start(TestEngine::default());
    let client = Client::new(&daemon.socket);
    client.create_volume("web", 1 << 30).await.unwrap();
    client.create_snapshots(&["web@many".to_owned()]).await.unwrap();
    // More than there may be at once: each must give its place back when its client leaves.
    for _ in 0..8 {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.write_all(b"GET /v1/diff?to=web@many HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut some = [0; 100];
        std::io::Read::read_exact(&mut stream, &mut some).unwrap();
        drop(stream);
        let mut tries = 0;
        while matches!(client.hash("web@many", |_| {}).await, Err(ClientError::Refused(error)) if error.kind == Kind::Overloaded)
        {
            tries += 1;
            assert!(tries < 100, "the place of a client that left is not given back");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn pins_are_given_and_taken() {
    let daemon = Daemon::start(TestEngine::default());
    daemon.ok("volume create web --size 1G");
    daemon.ok("snapshot create web@a");
    let pinned = daemon.http("POST", "/v1/snapshots/web@a/pin", "");
    assert!(pinned.ends_with(r#"{"pin":7,"chain":[3,1],"size":1073741824}"#), "{pinned}");
    assert_eq!(status_of(&daemon.http("DELETE", "/v1/pins/7", "")), 200);
}
