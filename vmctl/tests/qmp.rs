//! The QMP client against monitors that misbehave.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use vmctl::qmp::{Client, Connection, LINE_BYTES_MAX, Limits, QmpError};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x\u001b[2J"}, "capabilities": ["oob"]}}"#;

/// A monitor on its way.
struct Monitor {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Monitor {
    async fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, write) = stream.into_split();
        Self { read: BufReader::new(read), write }
    }

    async fn say(&mut self, text: &str) {
        // A client that has given up is the test's subject.
        drop(self.write.write_all(text.as_bytes()).await);
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.read.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }

    /// Greets and lets the client negotiate; returns what it asked for.
    async fn greet(&mut self) -> Value {
        self.say(&format!("{GREETING}\r\n")).await;
        let asked = self.hear().await;
        self.say(&format!("{{\"return\": {{}}, \"id\": {}}}\r\n", asked["id"])).await;
        asked
    }

    /// Until the client leaves.
    async fn linger(mut self) {
        while self.hear().await != Value::Null {}
    }
}

fn place() -> (TempDir, PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    (dir, socket, listener)
}

fn limits() -> Limits {
    Limits { greeting: Duration::from_secs(5), command: Duration::from_secs(5) }
}

/// What must happen, or the test fails instead of hanging.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it happens soon")
}

/// Asks for the status of a monitor that answers so; the text's `ID` is the command's.
async fn answered(answer: &str) -> (Result<vmctl::qmp::types::StatusInfo, QmpError>, Connection) {
    let (_dir, socket, listener) = place();
    let answer = answer.to_owned();
    tokio::spawn(async move {
        let mut monitor = Monitor::accept(&listener).await;
        monitor.greet().await;
        let asked = monitor.hear().await;
        monitor.say(&answer.replace("ID", &asked["id"].to_string())).await;
        monitor.linger().await;
    });
    let connection = Client::connect(&socket, limits()).await.unwrap();
    (connection.client.query_status().await, connection)
}

#[tokio::test]
async fn greeting_and_negotiation() {
    let (_dir, socket, listener) = place();
    let monitor = tokio::spawn(async move {
        let mut monitor = Monitor::accept(&listener).await;
        let negotiated = monitor.greet().await;
        let out_of_band = monitor.hear().await;
        monitor.say(&format!("{{\"return\": {{}}, \"id\": {}}}\n", out_of_band["id"])).await;
        (negotiated, out_of_band)
    });
    let connection = Client::connect(&socket, limits()).await.unwrap();
    assert_eq!(connection.greeting.version.to_string(), "7.2.22");
    assert_eq!(connection.greeting.package, "x\\u{1b}[2J");
    assert_eq!(connection.greeting.pid, i32::try_from(std::process::id()).ok());
    connection.client.yank_migration().await.unwrap();
    let (negotiated, out_of_band) = monitor.await.unwrap();
    assert_eq!(negotiated["arguments"], json!({"enable": ["oob"]}));
    assert_eq!(out_of_band["exec-oob"], "yank");
}

#[tokio::test]
async fn an_answer_and_a_refusal() {
    let (status, _connection) =
        answered("{\"return\": {\"status\": \"io-error\", \"running\": false, \"new\": 1}, \"id\": ID}\n")
            .await;
    assert_eq!(status.unwrap().status, vmctl::qmp::types::RunState::IoError);
    let (status, connection) =
        answered("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b[2J\"}, \"id\": ID}\n")
            .await;
    let Err(QmpError::Refused { command, reason, .. }) = status else { panic!("{status:?}") };
    assert_eq!((command, reason.as_str()), ("query-status", "no\\u{1b}[2J"));
    assert_eq!(connection.client.closed(), None);
}

#[tokio::test]
async fn an_answer_of_another_form_is_an_error_and_the_connection_goes_on() {
    for answer in
        ["{\"return\": 7, \"id\": ID}\n", "{\"id\": ID}\n", "{\"return\": {}, \"error\": {}, \"id\": ID}\n"]
    {
        let (status, connection) = answered(answer).await;
        assert!(matches!(status, Err(QmpError::Answer { .. })), "{answer}: {status:?}");
        assert_eq!(connection.client.closed(), None);
    }
}

#[tokio::test]
async fn what_nobody_asked_for_ends_the_connection() {
    let giant = "x".repeat(LINE_BYTES_MAX + 1);
    let lies = [
        "{\"return\": {}, \"id\": 4711}\n",
        "{\"return\": {}, \"id\": \"ID\"}\n",
        "{\"return\": {}, \"id\": -1}\n",
        "{\"return\": {}}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n",
        "[1, 2]\n",
        "null\n",
        "nonsense\n",
        "\u{0}\n",
        &giant,
        "{\"event\": 7}\n",
        "{\"event\": \"STOP\"}\n",
    ];
    for lie in lies {
        let (status, mut connection) = answered(lie).await;
        assert!(matches!(status, Err(QmpError::Closed(_))), "{lie:.60}: {status:?}");
        assert!(soon(connection.events.next()).await.is_err());
        // Later commands fail at once.
        assert!(matches!(connection.client.query_kvm().await, Err(QmpError::Closed(_))), "{lie:.60}");
    }
}

#[tokio::test]
async fn an_answer_twice_ends_the_connection() {
    let good = "{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": ID}\n";
    let (status, mut connection) = answered(&format!("{good}{good}")).await;
    status.unwrap();
    let error = soon(connection.events.next()).await.unwrap_err().to_string();
    assert!(error.contains("was not asked or is answered"), "{error}");
}

#[tokio::test]
async fn a_flood_of_events_ends_the_connection_and_loses_none_before() {
    let (_dir, socket, listener) = place();
    tokio::spawn(async move {
        let mut monitor = Monitor::accept(&listener).await;
        monitor.greet().await;
        for number in 0..100_000 {
            let event = json!({"event": "STOP", "data": {"n": number}, "timestamp": {"seconds": 1, "microseconds": 2}});
            if monitor.write.write_all(format!("{event}\n").as_bytes()).await.is_err() {
                return;
            }
        }
        monitor.linger().await;
    });
    let mut connection = Client::connect(&socket, limits()).await.unwrap();
    soon(async {
        while connection.client.closed().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut seen = 0;
    let error = loop {
        match connection.events.next().await {
            Ok(event) => {
                assert_eq!(event.data["n"], seen, "in order and without gaps");
                seen += 1;
            }
            Err(error) => break error.to_string(),
        }
    };
    assert!(seen > 0 && seen < 1000, "{seen}");
    assert!(error.contains("events wait for us"), "{error}");
}

#[tokio::test]
async fn a_giant_event_ends_the_connection() {
    let giant = "x".repeat(100_000);
    let event = json!({"event": "STOP", "data": giant, "timestamp": {"seconds": 1, "microseconds": 2}});
    let (status, _connection) = answered(&format!("{event}\n")).await;
    assert!(status.unwrap_err().to_string().contains("64 KiB"));
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_says_nothing_is_given_up() {
    let (_dir, socket, listener) = place();
    let error = Client::connect(&socket, limits()).await.unwrap_err().to_string();
    assert!(error.contains("serves another client"), "{error}");
    drop(listener);
    let error = Client::connect(&socket, limits()).await.unwrap_err();
    assert!(matches!(error, QmpError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_command_without_an_answer_is_late_and_its_answer_later_harmless() {
    let (_dir, socket, listener) = place();
    tokio::spawn(async move {
        let mut monitor = Monitor::accept(&listener).await;
        monitor.greet().await;
        let first = monitor.hear().await;
        let second = monitor.hear().await;
        for asked in [first, second] {
            let answer = json!({"return": {"status": "paused", "running": false}, "id": asked["id"]});
            monitor.say(&format!("{answer}\n")).await;
        }
        monitor.linger().await;
    });
    let limits = Limits { command: Duration::from_millis(50), ..limits() };
    let connection = Client::connect(&socket, limits).await.unwrap();
    let late = connection.client.query_status().await;
    assert!(matches!(late, Err(QmpError::Late { command: "query-status", .. })), "{late:?}");
    let patient = Duration::from_secs(5);
    let status: Value = connection.client.run_within(patient, "query-status", json!({})).await.unwrap();
    assert_eq!(status["status"], "paused");
}

/// QEMU stops reading when eight commands wait, and then sees no out-of-band command either.
#[tokio::test]
async fn out_of_band_commands_overtake_those_that_hang() {
    let (_dir, socket, listener) = place();
    let monitor = tokio::spawn(async move {
        let mut monitor = Monitor::accept(&listener).await;
        monitor.greet().await;
        let mut in_band = 0;
        loop {
            let asked = monitor.hear().await;
            if asked.get("exec-oob").is_some() {
                monitor.say(&format!("{{\"return\": {{}}, \"id\": {}}}\n", asked["id"])).await;
                return in_band;
            }
            in_band += 1;
        }
    });
    let connection = Client::connect(&socket, limits()).await.unwrap();
    for _ in 0..20 {
        let client = connection.client.clone();
        tokio::spawn(async move { drop(client.query_status().await) });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    connection.client.yank_migration().await.unwrap();
    assert!(soon(monitor).await.unwrap() < 8);
}

#[tokio::test]
async fn the_monitor_is_free_again_when_the_client_is_gone_or_was_cut_off() {
    let (_dir, socket, listener) = place();
    let monitor = tokio::spawn(async move {
        let mut monitor = Monitor::accept(&listener).await;
        monitor.greet().await;
        monitor.say("nonsense\n").await;
        // The client holds its half open no longer, although somebody still has it.
        monitor.linger().await;
        let mut monitor = Monitor::accept(&listener).await;
        monitor.greet().await;
        monitor.linger().await;
    });
    let cut_off = Client::connect(&socket, limits()).await.unwrap();
    let again = Client::connect(&socket, limits()).await.unwrap();
    drop(again);
    soon(monitor).await.unwrap();
    drop(cut_off);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a monitor says, before the greeting or after it: an error or a result, no panic, no hang.
    #[test]
    fn nothing_that_is_said_makes_the_client_hang(
        greeted in any::<bool>(),
        pieces in prop::collection::vec(prop_oneof![
            "\\PC{0,40}\n",
            Just("{\"return\": {}, \"id\": 2}\n".to_owned()),
            Just("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 1}}\n".to_owned()),
            Just(format!("{GREETING}\n")),
            prop::collection::vec(any::<u8>(), 0..60).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        ], 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, socket, listener) = place();
            tokio::spawn(async move {
                let mut monitor = Monitor::accept(&listener).await;
                if greeted {
                    monitor.greet().await;
                }
                for piece in pieces {
                    monitor.say(&piece).await;
                }
            });
            soon(async {
                if let Ok(mut connection) = Client::connect(&socket, limits()).await {
                    drop(connection.client.query_status().await);
                    while connection.events.next().await.is_ok() {}
                }
            })
            .await;
        });
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let (dir, _socket, _listener) = place();
    let error = Client::connect(&dir.path().join("none"), limits()).await.unwrap_err();
    assert!(matches!(error, QmpError::Unreachable { .. }));
    drop(UnixStream::connect(dir.path().join("none")).await);
}
