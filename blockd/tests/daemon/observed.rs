//! What a person and a monitor see of NBD clients: connections, counters, log lines, limits.

use std::fs;
use std::time::Duration;

use fixtures::nbd::client::{Client, Negotiation, Wire};
use fixtures::nbd::codec::command;
use fixtures::process::{ProcessError, wait_until};

use crate::hosts::json;
use crate::place::Place;

/// Long enough for everything but a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// The value of a metric with these labels.
fn metric(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    Some(line[name.len() + 1..].to_owned())
}

#[test]
fn connections_are_shown_counted_and_logged() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    place.ok("snapshot create web@a");
    let mut first = place.client("web");
    let mut second = place.client("web@a");
    first.write(0, &[3; 8192]).unwrap();
    for _ in 0..3 {
        first.read(0, 4096).unwrap();
    }
    second.read(0, 512).unwrap();
    assert!(second.call(0, command::READ, 1 << 30, 512).unwrap().is_err());
    let shown = json(&place.ok("export show web -o json"));
    let connection = &shown["connections"][0];
    assert_eq!(shown["connections"].as_array().unwrap().len(), 1, "{shown}");
    let counted = ["requests", "errors", "read_bytes", "written_bytes"].map(|key| connection[key].as_u64());
    assert_eq!(counted, [Some(4), Some(0), Some(12_288), Some(8192)], "{connection}");
    assert_eq!((&connection["peer"], &connection["export"]), (&"unix".into(), &"web".into()));
    assert!(connection["p99_us"].is_u64() && connection["since_ms"].as_u64() > Some(1_700_000_000_000));
    let people = place.ok("export show web@a");
    assert!(people.contains("CLIENT") && people.contains("read-only"), "{people}");
    first.leave().unwrap();
    let said =
        |what: &str| place.log().lines().any(|line| line.contains("connection ended") && line.contains(what));
    wait_until::<_, ProcessError>("the line of its end", PATIENCE, || {
        Ok(said("reason=\"LEFT\"").then_some(()))
    })
    .unwrap();
    let log = place.log();
    let line = log.lines().find(|line| line.contains("connection ended")).unwrap();
    for part in ["peer=", "unix", "identity=", "export=", "web", "requests=4", "errors=0", "read_bytes=12288"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    let metrics = place.ok("metrics");
    for (name, value) in [
        ("blockd_export_connections{export=\"web\"}", "0"),
        ("blockd_export_connections{export=\"web@a\"}", "1"),
        ("blockd_export_read_bytes_total{export=\"web\"}", "12288"),
        ("blockd_export_errors_total{export=\"web@a\"}", "1"),
        ("blockd_export_request_seconds_count{export=\"web\",op=\"read\"}", "3"),
        ("blockd_export_request_seconds_bucket{export=\"web\",op=\"write\",le=\"+Inf\"}", "1"),
    ] {
        assert_eq!(metric(&metrics, name).as_deref(), Some(value), "{name}\n{metrics}");
    }
    // What is gone is forgotten, or the book of names would grow for ever.
    drop(second);
    wait_until::<_, ProcessError>("the snapshot's client to be gone", PATIENCE, || {
        Ok((place.ctl("snapshot delete web@a").0 == 0).then_some(()))
    })
    .unwrap();
    assert!(!place.ok("metrics").contains("export=\"web@a\""));
}

#[test]
fn limits_are_what_the_file_says_and_status_shows_them() {
    let mut place = Place::new();
    let file = place.path("blockd.toml");
    fs::write(
        &file,
        "[nbd_limits]\nstall_time = '1s'\nhandshake_time = '1s'\nrequests = 4\npayload_bytes = '33MiB'\n",
    )
    .unwrap();
    place.arguments.extend(["--config".to_owned(), file.display().to_string()]);
    place.arguments.extend(["--connections-max", "5"].map(str::to_owned));
    let daemon = place.serve();
    let limits = &json(&place.ok("status -o json"))["nbd_limits"];
    for (key, value) in [
        ("connections", 5),
        ("connections_per_client", 256),
        ("handshake_seconds", 1),
        ("options", 32),
        ("option_bytes", 65_536),
        ("requests", 4),
        ("payload_bytes", 33 << 20),
        ("stall_seconds", 1),
    ] {
        assert_eq!(limits[key], value, "{key} of {limits}");
    }
    assert!(place.ok("status").contains("5 connections, 256 a client"));
    place.ok("volume create web --size 1M");
    let mut silent = Negotiation::begin(Wire::unix(&place.socket()).unwrap()).unwrap();
    let mut half = place.client("web");
    let (_, request) = half.prepare(0, command::WRITE, 0, 4096);
    half.wire().send(&request).unwrap();
    let mut other = place.client("web");
    assert!(silent.wire().receive_to_end().unwrap().is_empty(), "the handshake's time is up");
    assert!(half.wire().receive_to_end().unwrap().is_empty(), "half a request is given up");
    assert_eq!(other.read(0, 512).unwrap(), [0; 512]);
    let said = place.log();
    assert!(said.contains("HANDSHAKE_TIMEOUT") && said.contains("STALLED"), "{said}");
    let held: Vec<Client> = (0..4).map(|_| place.client("web")).collect();
    assert!(Negotiation::begin(Wire::unix(&place.socket()).unwrap()).is_err(), "a sixth");
    drop(held);
    drop(other);
    daemon.stop();
    for (text, key) in
        [("[nbd_limits]\nrequests = 0\n", "requests"), ("[nbd_limits]\nrequest = 1\n", "request")]
    {
        fs::write(&file, text).unwrap();
        let (code, said) = place.refused();
        assert!(code == 2 && said.contains(&format!("blockd.toml:2: {key}")), "{said}");
    }
}
