//! What is pushed by one host is restored by another that knows nothing but the address and the key.

use crate::host::{Host, Target, files};
use crate::server::Server;

const MIB: u64 = 1 << 20;

fn prepared(server: &Server, host: &Host) -> Target {
    let target = server.target("prod");
    host.ok(&target, "archive init");
    host.ok(&target, "volume create web --size 64M");
    host.fill("web", &[(0, 100_000, 1), (5 * MIB, 3 << 20, 2), (64 * MIB - 512, 512, 3)]);
    host.ok(&target, "snapshot create web@a");
    target
}

#[test]
fn another_host_restores_what_was_pushed() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host);
    let pushed = host.push(&target, "web@a");
    assert_eq!((&pushed["name"], &pushed["new_chunks"]), (&"web@a".into(), &51.into()), "{pushed}");
    let hash = host.hash(&target, "web@a");
    assert_eq!(pushed["hash"], hash.as_str());
    drop(host);

    let other = Host::start();
    let reader = Target { key: target.key.with_extension("pub"), ..target };
    let list = other.ok(&reader, "archive list");
    assert!(list.contains("web@a") && list.contains("64 MiB") && list.contains("signed"), "{list}");
    other.ok(&reader, "archive verify --read-data");
    let pulled = other.ok(&reader, "archive pull web@a neu");
    assert!(pulled.starts_with("pulled web@a as neu, 64 MiB, with its snapshot neu@a; BLAKE3 "), "{pulled}");
    assert_eq!(other.hash(&reader, "neu@a"), hash);
    assert_eq!(other.volumes(&reader), ["neu"]);
    let why = other.not_ok(&reader, "archive pull web@a neu", 1);
    assert!(why.contains("there is a volume neu already"), "{why}");
    other.not_ok(&reader, "archive pull web@b x", 3);
    let why = other.not_ok(&reader, "archive push neu@a", 2);
    assert!(why.contains("public half only"), "{why}");
}

#[test]
fn a_push_reads_only_what_differs() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host);
    assert_eq!(host.push(&target, "web@a")["read_bytes"], 51 * 65_536);
    host.fill("web", &[(6 * MIB + 4096, 4096, 9), (40 * MIB, 65_536, 10)]);
    host.ok(&target, "snapshot create web@b");
    let plan = host.ok(&target, "archive push web@b --plan");
    assert!(plan.contains("read 128 KiB of 64 MiB, what differs from web@a"), "{plan}");
    let pushed = host.push(&target, "web@b");
    assert_eq!((&pushed["read_bytes"], &pushed["objects"]), (&(2 * 65_536).into(), &5.into()), "{pushed}");
    // A snapshot between the two, pushed afterwards, is told from its neighbour, too.
    host.ok(&target, "snapshot create web@c");
    assert_eq!(host.push(&target, "web@c")["read_bytes"], 0);
    assert_eq!(host.push(&target, "web@c")["action"], "unchanged");
    host.ok(&target, "archive verify --read-data");
    for snapshot in ["a", "b", "c"] {
        host.ok(&target, &format!("archive pull web@{snapshot} neu-{snapshot}"));
        let hash = |name: String| host.hash(&target, &name);
        assert_eq!(hash(format!("neu-{snapshot}@{snapshot}")), hash(format!("web@{snapshot}")));
    }
}

/// Its name is in the archive, and it is another one.
#[test]
fn a_snapshot_that_was_made_anew_is_no_base() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host);
    host.push(&target, "web@a");
    host.ok(&target, "snapshot delete web@a");
    host.fill("web", &[(0, 65_536, 77)]);
    host.ok(&target, "snapshot create web@a");
    let why = host.not_ok(&target, "archive push web@a", 5);
    assert!(why.contains("another snapshot of that name"), "{why}");
    host.ok(&target, "snapshot create web@b");
    let pushed = host.push(&target, "web@b");
    assert_eq!(pushed["read_bytes"], 51 * 65_536, "all of it is read, for there is no base");
    assert_eq!(pushed["new_chunks"], 1, "and only what is new is sent");
    host.ok(&target, "archive pull web@b neu");
    assert_eq!(host.hash(&target, "neu@b"), host.hash(&target, "web@b"));
}

#[test]
fn a_volume_that_grew_is_pushed_on_top() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host);
    host.push(&target, "web@a");
    host.ok(&target, "volume resize web --size 80M");
    host.fill("web", &[(70 * MIB, 4096, 5)]);
    host.ok(&target, "snapshot create web@b");
    assert_eq!(host.push(&target, "web@b")["read_bytes"], 65_536);
    host.ok(&target, "archive pull web@b neu");
    assert_eq!(host.hash(&target, "neu@b"), host.hash(&target, "web@b"));
}

#[test]
fn a_directory_is_an_archive_too() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host);
    let directory = host.path("archive");
    let local = Target { url: format!("file://{}", directory.display()), key: host.path("key"), ..target };
    host.ok(&local, "archive init");
    host.not_ok(&local, "archive init", 5);
    host.push(&local, "web@a");
    assert!(files(&directory).iter().any(|file| file.ends_with("snapshots/web/a")));
    host.ok(&local, "archive verify web@a --read-data");
    host.ok(&local, "archive pull web@a neu");
    assert_eq!(host.hash(&local, "neu@a"), host.hash(&local, "web@a"));
}

#[test]
fn whose_word_is_taken_is_said() {
    let (server, host) = (Server::start(), Host::start());
    let target = prepared(&server, &host);
    host.push(&target, "web@a");
    let mut command = host.command(&target, "archive pull web@a neu");
    let (code, _, stderr) = crate::host::outcome(&command.env_remove("BLOCKD_ARCHIVE_KEY").output().unwrap());
    assert!(code == 5 && stderr.contains("--trust-archive"), "{code}: {stderr}");
    let mut command = host.command(&target, "archive pull web@a neu --trust-archive");
    let output = command.env_remove("BLOCKD_ARCHIVE_KEY").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let other = Target { key: host.path("other"), url: target.url.clone() + "-2", ..target.clone() };
    host.ok(&other, "archive init");
    let why = host.not_ok(&Target { key: other.key, ..target }, "archive pull web@a x", 5);
    assert!(why.contains("the archive is of key"), "{why}");
}

#[test]
fn addresses_that_make_no_sense_are_refused() {
    let (server, host) = (Server::start(), Host::start());
    let target = server.target("prod");
    host.ok(&target, "archive init");
    let with =
        |url: &str, endpoint: &str| Target { url: url.into(), endpoint: endpoint.into(), ..target.clone() };
    host.not_ok(&with("gs://vms", &target.endpoint), "archive list", 2);
    host.not_ok(&with("s3://vm-archive/../x", &target.endpoint), "archive pull web@a x", 3);
    host.not_ok(&with("file:///nonexistent", &target.endpoint), "archive list", 2);
    host.not_ok(&with("s3://vm-archive/other", &target.endpoint), "archive list", 3);
    let why = host.not_ok(&with("s3://vm-archive", "http://192.0.2.1:9000"), "archive list", 5);
    assert!(why.contains("not encrypted"), "{why}");
    // Each of the variables is looked at.
    let mut command = host.command(&target, "archive list");
    let output = command.env("AWS_ENDPOINT_URL_S3", "http://192.0.2.1:9000").output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    host.not_ok(&target, "archive pull ../web@a x", 2);
    let mut command = host.command(&target, "archive list");
    let output = command.env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}
