//! What lies in `DATA/peer`: who may read it, and what happens when it is not what was written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use blockd::peer::{PeerErrorKind, PeerLimits, Peers};
use rcgen::KeyPair;

use crate::forge::{Ca, Purposes};
use crate::host::{Host, echo, pair};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn only_the_owner_may_look() {
    let (a, _b) = pair().await;
    let dir = a.dir.path().join("peer");
    assert_eq!(mode(&dir), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["ca.crt", "ca.key", "host.crt", "host.key", "hosts.json", "id"]);
    assert!(!format!("{:?}", a.peers).contains("PRIVATE"));
    for key in ["ca.key", "host.key"] {
        fs::set_permissions(dir.join(key), PermissionsExt::from_mode(0o640)).unwrap();
        let error = Peers::open(a.dir.path(), "A").unwrap_err();
        assert_eq!(error.kind, PeerErrorKind::Refused);
        assert!(error.to_string().contains(key) && error.next.unwrap().starts_with("chmod 600 "));
        fs::set_permissions(dir.join(key), PermissionsExt::from_mode(0o600)).unwrap();
    }
    Peers::open(a.dir.path(), "A").unwrap();
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Each file, missing, empty, cut, of another host: named, and left as it is.
#[tokio::test]
async fn damage_is_named_and_nothing_is_made_in_its_place() {
    let (a, b) = pair().await;
    let dir = a.dir.path().join("peer");
    for name in ["ca.crt", "ca.key", "host.crt", "host.key", "hosts.json", "id"] {
        let path = dir.join(name);
        let good = fs::read(&path).unwrap();
        let of_other = fs::read(b.dir.path().join("peer").join(name)).unwrap();
        let cut = good[..good.len() / 2].to_vec();
        let big = vec![b' '; 5 << 20];
        let damages = [("missing", None), ("empty", Some(vec![])), ("cut", Some(cut)), ("big", Some(big))];
        // A list of hosts may be anybody's; that it is whole is all that can be known.
        let other = (name != "hosts.json").then_some(("of another host", Some(of_other)));
        for (damage, bytes) in damages.into_iter().chain(other) {
            match &bytes {
                Some(bytes) => write(&path, bytes),
                None => fs::remove_file(&path).unwrap(),
            }
            let error = Peers::open(a.dir.path(), "A").expect_err(&format!("{name} {damage}"));
            assert_eq!(error.kind, PeerErrorKind::Damaged, "{name} {damage}: {error}");
            let text = error.to_string();
            assert!(text.contains("is damaged: ") && !text.contains("PRIVATE"), "{name} {damage}: {text}");
            assert_eq!(fs::read(&path).ok(), bytes, "{name} {damage}: it was touched");
            write(&path, &good);
        }
    }
    assert_eq!(Peers::open(a.dir.path(), "A").unwrap().host_id(), a.peers.host_id());
}

#[tokio::test]
async fn a_list_of_hosts_that_contradicts_itself_is_damaged() {
    let (a, _b) = pair().await;
    let path = a.dir.path().join("peer/hosts.json");
    let good = fs::read_to_string(&path).unwrap();
    let value: serde_json::Value = serde_json::from_str(&good).unwrap();
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = value.clone();
        change(&mut value);
        value.to_string()
    };
    let cases = [
        ("version", changed(&|v| v["v"] = 2.into())),
        ("unknown field", changed(&|v| v["hosts"][0]["x"] = 2.into())),
        ("name", changed(&|v| v["hosts"][0]["name"] = "../x".into())),
        ("id", changed(&|v| v["hosts"][0]["id"] = "12".into())),
        ("CA", changed(&|v| v["hosts"][0]["ca"] = "-----BEGIN".into())),
        ("address", changed(&|v| v["hosts"][0]["addresses"][0] = "nowhere".into())),
        (
            "twice",
            changed(&|v| {
                let host = v["hosts"][0].clone();
                v["hosts"].as_array_mut().unwrap().push(host);
            }),
        ),
        (
            "too many",
            changed(&|v| {
                let host = v["hosts"][0].clone();
                let many = (0..257).map(|number| {
                    let mut host = host.clone();
                    (host["name"], host["id"]) =
                        (format!("h{number}").into(), format!("{number:032x}").into());
                    host
                });
                v["hosts"] = many.collect();
            }),
        ),
    ];
    for (case, text) in cases {
        fs::write(&path, &text).unwrap();
        let error = Peers::open(a.dir.path(), "A").expect_err(case);
        assert_eq!(error.kind, PeerErrorKind::Damaged, "{case}");
        assert!(error.to_string().contains("hosts.json is damaged"), "{case}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[tokio::test]
async fn a_crash_while_an_identity_is_made_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("peer.new")).unwrap();
    fs::write(dir.path().join("peer.new/ca.key"), "half").unwrap();
    Peers::open(dir.path(), "A").unwrap();
    assert!(!dir.path().join("peer.new").exists());
}

/// A host that was off for a year; also one that has another name now.
#[tokio::test]
async fn a_certificate_that_has_ended_is_renewed_at_start() {
    let (a, b) = pair().await;
    let (id, dir) = (b.peers.host_id(), b.stop());
    let path = dir.path().join("peer/host.crt");
    let key = KeyPair::from_pem(&fs::read_to_string(dir.path().join("peer/host.key")).unwrap()).unwrap();
    let ended = Ca::of(dir.path()).sign(&[&id.to_string()], &key, (-300, -1), Purposes::both()).pem();
    fs::write(&path, &ended).unwrap();
    let b = Host::at(dir, "B", PeerLimits::default()).await;
    assert_ne!(fs::read_to_string(&path).unwrap(), ended);
    assert_eq!(b.peers.host_id(), id);
    echo(&mut b.peers.connect("A").await.unwrap()).await.unwrap();
    let renewed = fs::read(&path).unwrap();
    Peers::open(b.dir.path(), "B").unwrap();
    assert_eq!(fs::read(&path).unwrap(), renewed, "it is renewed once");
    Peers::open(b.dir.path(), "gamma").unwrap();
    assert_ne!(fs::read(&path).unwrap(), renewed);
    drop(a);
}
