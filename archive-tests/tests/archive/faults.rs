//! A storage that fails, is slow or says too little, and pushes that die.

use std::process::Stdio;
use std::time::Duration;

use fixtures::process::{ChildGuard, ProcessError, wait_until};
use hyper::Method;

use crate::host::{Host, Target};
use crate::server::{Fault, Seen, Server};

const MIB: u64 = 1 << 20;

fn prepared(server: &Server, host: &Host, prefix: &str, bytes: usize) -> Target {
    let target = server.target(prefix);
    host.ok(&target, "archive init");
    host.ok(&target, "volume create web --size 64M");
    host.fill("web", &[(0, bytes, 1)]);
    host.ok(&target, "snapshot create web@a");
    target
}

fn restore(host: &Host, target: &Target) {
    host.ok(target, "archive verify --read-data");
    host.ok(target, "archive pull web@a neu");
    assert_eq!(host.hash(target, "neu@a"), host.hash(target, "web@a"));
}

/// Bytes of packs that were stored.
fn packs(seen: &[Seen]) -> u64 {
    let stored =
        |seen: &&Seen| seen.method == Method::PUT && seen.object.contains("/packs/") && seen.status == 200;
    seen.iter().filter(stored).map(|seen| seen.bytes).sum()
}

#[test]
fn requests_that_fail_now_and_then_are_tried_again() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host, "prod", 20 << 20);
    // Each third request of a kind, with what overloaded servers say.
    server.set_rule(|_, _, before| match before % 6 {
        1 => Some(Fault::Status(503)),
        4 => Some(Fault::Status(500)),
        _ => None,
    });
    host.push(&target, "web@a");
    assert!(server.take_seen().iter().any(|seen| seen.status == 503 && seen.method == Method::PUT));
    server.set_rule(|method, _, before| match before % 4 {
        1 => Some(Fault::Status(503)),
        2 if method == Method::GET => Some(Fault::Short),
        _ => Some(Fault::Slow),
    });
    restore(&host, &target);
    assert!(server.take_seen().iter().any(|seen| seen.status == 503 && seen.method == Method::GET));
}

#[test]
fn a_storage_that_keeps_failing_ends_the_command() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host, "prod", 1 << 20);
    server.set_rule(|method, _, _| (method == Method::PUT).then_some(Fault::Status(500)));
    let why = host.not_ok(&target, "archive push web@a", 7);
    assert!(why.contains("error: cannot push web@a") && why.lines().count() < 6, "{why}");
    server.take_seen();
    host.push(&target, "web@a");
    restore(&host, &target);
}

/// The root is stored and the answer lost: the second try finds it, and that it is its own.
#[test]
fn an_answer_that_is_lost_is_no_failure() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host, "prod", 1 << 20);
    let mut done = false;
    server.set_rule(move |method, object, _| {
        let root = method == Method::PUT && object.contains("snapshots/");
        (root && !std::mem::replace(&mut done, true)).then_some(Fault::DoneBut(500))
    });
    host.push(&target, "web@a");
    assert!(server.take_seen().iter().any(|seen| seen.object.contains("snapshots/") && seen.status == 500));
    restore(&host, &target);
}

/// Ended after each object in turn: what is there is whole, and the next push goes on.
#[test]
fn a_push_that_dies_after_any_object_leaves_a_sound_archive() {
    let (server, host) = (Server::start(), Host::start());
    let first = prepared(&server, &host, "first", 20 << 20);
    server.set_rule(|_, _, _| None);
    host.push(&first, "web@a");
    let all: Vec<Seen> = server.take_seen().into_iter().filter(|seen| seen.method == Method::PUT).collect();
    assert!(all.len() >= 6 && all.last().unwrap().object.ends_with("snapshots/web/a"), "{all:?}");
    for end in 0..all.len() {
        let target = Target { url: format!("{}-{end}", first.url), ..first.clone() };
        host.ok(&target, "archive init");
        server.set_rule(move |method, _, before| {
            (method == Method::PUT && before >= end).then_some(Fault::Status(403))
        });
        host.not_ok(&target, "archive push web@a", 5);
        let died = packs(&server.take_seen());
        let list = host.ok(&target, "archive list");
        assert!(list.contains("no snapshots"), "after {end}: {list}");
        host.ok(&target, "archive verify --read-data");
        server.set_rule(|_, _, _| None);
        host.push(&target, "web@a");
        let again = packs(&server.take_seen());
        assert!(again + died <= packs(&all) + 65_536, "after {end}: {died}, then {again} of {}", packs(&all));
        host.ok(&target, "archive verify --read-data");
    }
}

#[test]
fn a_killed_push_is_gone_on_with() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host, "prod", 48 << 20);
    server.set_rule(|method, _, before| (method == Method::PUT && before == 2).then_some(Fault::Hold));
    let mut command = host.command(&target, "archive push web@a");
    let mut push = ChildGuard::spawn(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
    let two_are_stored = wait_until("two packs", Duration::from_secs(60), || {
        let (held, seen) = server.held();
        Ok::<_, ProcessError>((held == 1 && packs(&seen) > 32 * MIB).then_some(()))
    });
    two_are_stored.unwrap();
    push.kill().unwrap();
    server.release();
    server.set_rule(|_, _, _| None);
    host.push(&target, "web@a");
    let again = packs(&server.take_seen());
    assert!(again < 17 * MIB, "{again} bytes were sent again");
    restore(&host, &target);
}

#[test]
fn an_interrupted_pull_leaves_no_volume() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host, "prod", 4 << 20);
    host.push(&target, "web@a");
    server.set_rule(|method, object, _| {
        (method == Method::GET && object.contains("/packs/")).then_some(Fault::Hold)
    });
    let mut command = host.command(&target, "archive pull web@a neu");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let held = wait_until("a request for data", Duration::from_secs(30), || {
        Ok::<_, ProcessError>((server.held().0 > 0).then_some(()))
    });
    held.unwrap();
    assert!(host.volumes(&target)[0].starts_with("neu.pulling-"));
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let (code, _, stderr) = crate::host::outcome(&child.wait_with_output().unwrap());
    assert!(code == 1 && stderr.contains("Ctrl-C; the half-made volume was removed"), "{code}: {stderr}");
    server.release();
    assert_eq!(host.volumes(&target), ["web"]);
}
