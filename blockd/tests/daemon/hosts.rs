//! `blockctl host …` between two daemons.

use std::os::unix::fs::PermissionsExt;

use crate::place::Place;

/// A daemon that others can reach, or one that only reaches others.
pub(crate) fn place(name: &str, listens: bool) -> Place {
    let mut place = Place::new();
    place.arguments.extend(["--name".to_owned(), name.to_owned()]);
    if listens {
        place.arguments.extend(["--peer-listen".to_owned(), "127.0.0.1:0".to_owned()]);
    }
    place
}

pub(crate) fn json(text: &str) -> serde_json::Value {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(value["v"], 1, "{text}");
    value
}

#[test]
fn two_daemons_are_paired_checked_and_parted() {
    let (a, b) = (place("A", true), place("B", true));
    let (_a, running_b) = (a.serve(), b.serve());
    assert_eq!(a.ok("host list"), "no hosts are paired; blockctl host pair --help\n");
    let token = b.ok("host pair --new --ttl 90s");
    assert!(token.starts_with("bp1.") && token.lines().count() == 1, "{token}");
    let paired = a.ok(&format!("host pair {}", token.trim()));
    let id = json(&b.ok("host show -o json"))["id"].as_str().unwrap().to_owned();
    assert_eq!(paired, format!("paired with B ({id})\n"));

    let listed = a.ok("host list");
    assert!(listed.starts_with("NAME  TRUST    LINKS  PAIRED (UTC)"), "{listed}");
    assert!(listed.contains("\nB     trusted      0  20") && listed.contains("127.0.0.1:"), "{listed}");
    let check = json(&a.ok("host show B --check -o json"));
    assert_eq!(check["remote_name"], "B");
    assert!(b.ok("host show A --check").starts_with("A answers at 127.0.0.1:"));
    assert_eq!(json(&b.ok("host list -o json"))["hosts"][0]["name"], "A");
    assert_eq!(json(&b.ok("host list -o jsonl"))["name"], "A");
    assert!(b.ok("events").contains("host_paired") && a.ok("events").contains("host_paired"));

    let stderr = a.not_ok(&format!("host pair {}", token.trim()), 5);
    assert!(
        stderr.starts_with("error: cannot pair\nwhy:   the other host says: the token is not open"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 3);
    assert!(a.not_ok(&format!("host pair {}", &token[..40]), 2).contains("not whole"));

    b.ok("host trust A --revoke");
    assert!(a.not_ok("host show B --check", 5).contains("does not trust this host any more"));
    b.ok("host trust A");
    a.ok("host show B --check");
    running_b.stop();
    let stderr = a.not_ok("host show B --check", 7);
    assert!(stderr.contains("next:  blockctl host show B"), "{stderr}");

    let plan = a.ok("host remove B --plan");
    assert!(plan.starts_with(&format!("would forget host B ({id})")), "{plan}");
    assert!(a.not_ok("host remove B", 5).contains("no terminal"));
    assert_eq!(a.ok("host remove B --yes"), "removed host B\n");
    assert!(a.not_ok("host show B", 3).contains("there is no paired host B"));
    assert!(!a.log().contains("bp1.") && !b.log().contains("bp1."), "a token is in a log");
}

#[test]
fn a_daemon_that_does_not_listen_can_still_join() {
    let (a, b) = (place("A", false), place("B", true));
    let (running_a, _b) = (a.serve(), b.serve());
    assert!(!a.data().join("peer").exists(), "a host that knows no others needs no identity");
    assert!(a.not_ok("host pair --new", 5).contains("next:  blockd serve --peer-listen"));
    let token = json(&b.ok("host pair --new --as first -o json"))["token"].as_str().unwrap().to_owned();
    a.ok(&format!("host pair {token} --as beta"));
    a.ok("host show beta --check");
    assert!(b.not_ok("host show first --check", 7).contains("no address of first is known"));
    // A restart changes nothing.
    running_a.stop();
    let running_a = a.serve();
    a.ok("host show beta --check");
    running_a.kill();
    let _again = a.serve();
    a.ok("host show beta --check");
}

#[test]
fn a_damaged_identity_is_named() {
    let b = place("B", true);
    b.serve().stop();
    let key = b.data().join("peer/host.key");
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "x").unwrap();
    let (code, log) = b.refused();
    assert_eq!(code, 8, "{log}");
    assert!(log.contains("peer/host.key is damaged: it is no private key; nothing was changed"), "{log}");
    std::fs::write(&key, good).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let (code, log) = b.refused();
    assert!(code == 5 && log.contains("next:  chmod 600 "), "{log}");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    b.serve().stop();
}
