//! Objects that are not what they should be: nothing wrong is ever restored, and the object is named.

use std::fs;
use std::path::{Path, PathBuf};

use blockd::archive::config::ArchiveConfig;
use blockd::archive::key::read_secret;
use blockd::archive::root::Root;

use crate::host::{Host, Target, files};
use crate::server::Server;

fn pushed(server: &Server, host: &Host) -> Target {
    let target = server.target("prod");
    host.ok(&target, "archive init");
    host.ok(&target, "volume create web --size 16M");
    host.fill("web", &[(0, 1 << 20, 1)]);
    host.ok(&target, "snapshot create web@a");
    host.push(&target, "web@a");
    target
}

fn only(directory: &Path) -> PathBuf {
    let mut found = files(directory);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

#[test]
fn rotten_data_are_not_restored() {
    let (server, host) = (Server::start(), Host::start());
    let target = pushed(&server, &host);
    let pack = only(&server.objects("prod/packs"));
    change(&pack, |bytes| bytes[200_000] ^= 1);
    let why = host.not_ok(&target, "archive pull web@a neu", 8);
    let name = pack.file_name().unwrap().to_string_lossy();
    assert!(why.contains(&*name) && why.contains("the half-made volume was removed"), "{why}");
    assert_eq!(host.volumes(&target), ["web"]);
    host.ok(&target, "archive verify");
    let report = host.not_ok(&target, "archive verify --read-data", 8);
    assert!(report.contains("web@a  DAMAGED") && report.contains(&*name), "{report}");
}

#[test]
fn a_pack_cut_short_is_not_restored_and_is_replaced_by_the_next_push() {
    let (server, host) = (Server::start(), Host::start());
    let target = pushed(&server, &host);
    change(&only(&server.objects("prod/packs")), |bytes| bytes.truncate(300_000));
    let report = host.not_ok(&target, "archive verify", 8);
    assert!(report.contains("the index says"), "{report}");
    host.not_ok(&target, "archive pull web@a neu", 8);
    assert_eq!(host.volumes(&target), ["web"]);
    host.ok(&target, "volume create db --size 16M");
    host.fill("db", &[(0, 1 << 20, 1)]);
    host.ok(&target, "snapshot create db@a");
    assert_eq!(host.push(&target, "db@a")["new_chunks"], 16, "what is lost is not relied on");
    host.ok(&target, "archive verify --read-data");
    host.ok(&target, "archive pull web@a neu");
    assert_eq!(host.hash(&target, "neu@a"), host.hash(&target, "web@a"));
}

/// All is signed and each chunk is right; the image as a whole is another.
#[test]
fn an_image_with_another_hash_than_signed_is_not_kept() {
    let (server, host) = (Server::start(), Host::start());
    let target = pushed(&server, &host);
    let key = read_secret(&target.key).unwrap();
    let config = ArchiveConfig::parse(&fs::read(server.objects("prod/config")).unwrap()).unwrap();
    let file = server.objects("prod/snapshots/web/a");
    let mut root = Root::parse(&fs::read(&file).unwrap(), &config, &"web@a".parse().unwrap()).unwrap();
    root.hash[5] ^= 1;
    fs::write(&file, root.encode(&config, &key)).unwrap();
    let why = host.not_ok(&target, "archive pull web@a neu", 8);
    assert!(why.contains("the archive signed") && why.contains("was removed"), "{why}");
    assert_eq!(host.volumes(&target), ["web"]);
}

#[test]
fn a_root_that_was_changed_or_swapped_is_not_restored() {
    let (server, host) = (Server::start(), Host::start());
    let target = pushed(&server, &host);
    let file = server.objects("prod/snapshots/web/a");
    let whole = fs::read(&file).unwrap();
    fs::copy(&file, server.objects("prod/snapshots/web/b")).unwrap();
    let why = host.not_ok(&target, "archive pull web@b neu", 8);
    assert!(why.contains("it is the root of web@a"), "{why}");
    change(&file, |bytes| bytes[30] ^= 1);
    let why = host.not_ok(&target, "archive pull web@a neu", 8);
    assert!(why.contains("its signature is wrong"), "{why}");
    let list = host.not_ok(&target, "archive list", 8);
    assert!(list.contains("2 snapshots cannot be read"), "{list}");
    fs::write(&file, whole).unwrap();
    fs::remove_file(server.objects("prod/snapshots/web/b")).unwrap();
    host.ok(&target, "archive pull web@a neu");
}

#[test]
fn a_full_store_ends_a_pull_and_nothing_is_left() {
    let (server, host) = (Server::start(), Host::start());
    let target = server.target("prod");
    host.ok(&target, "archive init");
    host.ok(&target, "volume create web --size 64M");
    host.fill("web", &[(0, 48 << 20, 1)]);
    host.ok(&target, "snapshot create web@a");
    host.push(&target, "web@a");
    let small = Host::with_pool("32M");
    let why = small.not_ok(&target, "archive pull web@a neu", 1);
    assert!(why.contains("No space left") && why.contains("was removed"), "{why}");
    assert_eq!(small.volumes(&target), Vec::<String>::new());
}
