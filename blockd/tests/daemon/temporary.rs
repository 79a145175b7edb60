//! Exports for a while: secret and open names, one use, and all the ways in which they end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fixtures::nbd::client::{Client, ClientError, Negotiation, Wire, info_data, option, reply_type};
use fixtures::process::{ProcessError, wait_until};
use serde_json::Value;

use crate::hosts::json;
use crate::place::Place;
use crate::tools::{run, tool};

/// Long enough for everything but a hang.
const PATIENCE: Duration = Duration::from_secs(10);
/// CAN_MULTI_CONN and READ_ONLY, by their numbers in the protocol document.
const MULTI_CONN: u16 = 1 << 8;
const READ_ONLY: u16 = 1 << 1;

fn place() -> Place {
    Place::new()
}

/// Makes one that its time ends.
fn detached(place: &Place, words: &str) -> Value {
    json(&place.ok(&format!("export create {words} --detach -o json")))["created"].clone()
}

fn name(created: &Value) -> &str {
    created["export"]["name"].as_str().unwrap()
}

fn open_as(created: &Value) -> &str {
    created["open_as"].as_str().unwrap()
}

fn exports(place: &Place) -> Vec<String> {
    let listed = json(&place.ok("export list -o json"));
    let names = listed["exports"].as_array().unwrap().iter().map(|export| export["name"].as_str().unwrap());
    names.map(str::to_owned).collect()
}

fn is_gone(place: &Place, open_as: &str) {
    assert!(matches!(place.no_client(open_as), ClientError::Refused(reply_type::ERR_UNKNOWN)));
}

fn is_disconnected(client: &mut Client) {
    assert!(client.wire().receive_to_end().unwrap().is_empty());
}

fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    wait_until::<_, ProcessError>(what, PATIENCE, || Ok(look().then_some(()))).unwrap();
}

#[test]
fn a_token_opens_an_export_once() {
    let place = place();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    place.client("web").write(0, &[7; 512]).unwrap();
    let created = detached(&place, "web --ttl 10m --token");
    let secret = open_as(&created).to_owned();
    assert!(secret.len() == "token:".len() + 32 && created["export"]["one_use"] == true, "{created}");
    assert_eq!(exports(&place), ["web", name(&created)], "it is listed by its name, not by its secret");
    is_gone(&place, name(&created));

    // A look is no use.
    let mut asking = Negotiation::begin(Wire::unix(&place.socket()).unwrap()).unwrap();
    let told = asking.ask(option::INFO, &info_data(secret.as_bytes(), &[])).unwrap();
    assert!(told.iter().all(|reply| !reply.is_error()), "{told:?}");
    assert!(
        !asking.ask(option::LIST, &[]).unwrap().iter().any(|reply| reply.data.ends_with(secret.as_bytes()))
    );
    let mut client = asking.go(secret.as_bytes()).unwrap();
    assert_eq!(client.flags() & (MULTI_CONN | READ_ONLY), READ_ONLY, "for reading, and nobody else comes");
    assert_eq!(client.read(0, 512).unwrap(), [7; 512]);
    assert!(matches!(client.write(0, &[1; 512]), Err(ClientError::Failed(1))));
    is_gone(&place, &secret);
    let shown = json(&place.ok(&format!("export show {} -o json", name(&created))));
    assert!(shown["temporary"]["used"] == true && shown["uri"].is_null(), "{shown}");
    assert_eq!(shown["connections"].as_array().unwrap().len(), 1, "{shown}");
    client.leave().unwrap();
    eventually("the end of what is used up", || exports(&place) == ["web"]);
    assert!(!place.log().contains(&secret), "a secret is in nobody's log");
    assert!(!place.ok("events").contains(&secret));
}

#[test]
fn without_a_token_it_is_open_until_its_end() {
    let place = place();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    place.ok("snapshot create web@a");
    let created = detached(&place, "web --ttl 10m --write");
    let mut clients: Vec<Client> = (0..3).map(|_| place.client(open_as(&created))).collect();
    clients[0].write(4096, &[9; 512]).unwrap();
    assert!(clients[0].flags() & MULTI_CONN != 0);
    assert_eq!(place.client("web").read(4096, 512).unwrap(), [9; 512]);
    // What can be asked of the volume can be asked of it.
    let mut negotiation = Negotiation::begin(Wire::unix(&place.socket()).unwrap()).unwrap();
    negotiation.structured().unwrap();
    let chosen = negotiation.choose_contexts(open_as(&created).as_bytes(), &["qemu:dirty-bitmap:a"]).unwrap();
    assert_eq!(chosen.len(), 1);
    let read_only = detached(&place, "web@a --ttl 10m");
    assert!(place.client(open_as(&read_only)).flags() & READ_ONLY != 0);
    assert!(place.not_ok("export create web@a --ttl 10m --write", 5).contains("read-only"));
    place.not_ok("export create missing --ttl 10m", 3);
    place.not_ok("export create web --ttl 8d", 2);
    place.not_ok("export create web --ttl 10", 2);

    place.ok(&format!("export remove {}", name(&created)));
    clients.iter_mut().for_each(is_disconnected);
    is_gone(&place, open_as(&created));
    assert!(place.not_ok(&format!("export remove {}", name(&created)), 3).contains("no temporary export"));
    assert!(place.not_ok("export remove web", 3).contains("no temporary export"), "a volume's own stays");
}

#[test]
fn its_time_ends_it_whoever_is_connected() {
    let place = place();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    let created = detached(&place, "web --ttl 1s --token");
    let mut client = place.client(open_as(&created));
    client.read(0, 512).unwrap();
    is_disconnected(&mut client);
    is_gone(&place, open_as(&created));
    assert_eq!(exports(&place), ["web"]);
}

#[test]
fn it_ends_with_what_it_stood_for() {
    let place = place();
    let _daemon = place.serve();
    for volume in ["web", "db"] {
        place.ok(&format!("volume create {volume} --size 1M"));
    }
    place.ok("snapshot create db@a");
    let made = ["web", "db", "db@a"].map(|of| detached(&place, &format!("{of} --ttl 10m")));
    place.ok("volume rename web old");
    place.ok("volume create web --size 2M");
    is_gone(&place, open_as(&made[0]));
    place.ok("snapshot delete db@a");
    is_gone(&place, open_as(&made[2]));
    place.client(open_as(&made[1])).leave().unwrap();
    assert_eq!(exports(&place), ["db", name(&made[1]), "old", "web"]);
}

/// `blockctl export create` that stays.
fn holding(place: &Place, words: &str) -> (Child, BufReader<std::process::ChildStdout>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
    command.arg("--socket").arg(place.control_socket()).args(["-o", "json", "export", "create"]);
    command.args(words.split(' ')).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while serde_json::from_str::<Value>(&line).is_err() {
        assert!(lines.read_line(&mut line).unwrap() > 0, "{line}");
    }
    (child, lines, json(&line)["created"].clone())
}

#[test]
fn it_ends_with_its_creator() {
    let place = place();
    let daemon = place.serve();
    place.ok("volume create web --size 1M");
    let (mut creator, _, created) = holding(&place, "web --ttl 10m --token");
    let mut client = place.client(open_as(&created));
    client.read(0, 512).unwrap();
    creator.kill().unwrap();
    creator.wait().unwrap();
    is_disconnected(&mut client);
    is_gone(&place, open_as(&created));

    // Who waits is told how it ended.
    let (mut creator, lines, created) = holding(&place, "web --ttl 10m --token");
    let uri = created["uri"].as_str().unwrap().to_owned();
    run(tool("nbdinfo").args(["--size", &uri]));
    assert!(creator.wait().unwrap().success());
    let rest: String = lines.lines().map(Result::unwrap).collect();
    assert_eq!(json(&rest)["ended"], "used_up");

    // And nothing of it outlives the daemon.
    let created = detached(&place, "web --ttl 10m");
    daemon.stop();
    let _daemon = place.serve();
    is_gone(&place, open_as(&created));
}
