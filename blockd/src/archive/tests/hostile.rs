//! What somebody can do who may write to the storage, and what the storage can do by itself.

use super::super::index::{self, IndexedPack};
use super::super::key;
use super::super::pack::tests::pack_of;
use super::super::storage::{CONFIG, index_name, pack_name, page_name, root_name};
use super::super::{Archive, ArchiveError, Damage, Trust};
use super::world::{World, disk, name, storage};

const MIB: u64 = 1 << 20;

async fn pushed() -> World {
    let world = World::new().await;
    world.push("web@a", MIB, &disk([1, 2]), None).await.unwrap();
    world
}

/// Changes an object, and expects pull and verify to say so of that object.
async fn assert_found(world: &World, object: &str, snapshot: &str) {
    let damage = world.pull(snapshot).await.unwrap_err();
    assert!(damage.iter().all(|damage| damage.object == object), "{object}: {damage:?}");
    let damage = world.verify(snapshot, true).await.damage;
    assert!(
        !damage.is_empty() && damage.iter().all(|damage| damage.object == object),
        "{object}: {damage:?}"
    );
}

async fn flip(world: &World, object: &str, at: usize) {
    let mut bytes = world.get(object).await;
    bytes[at] ^= 1;
    world.put(object, bytes).await;
}

#[tokio::test]
async fn rotten_data_in_a_pack_are_found() {
    let world = pushed().await;
    let pack = world.only("packs/").await;
    flip(&world, &pack, 100).await;
    assert_found(&world, &pack, "web@a").await;
    assert_eq!(world.verify("web@a", false).await.damage, [], "which only reading can find");
}

#[tokio::test]
async fn a_truncated_pack_is_found_and_not_relied_on() {
    let world = pushed().await;
    let pack = world.only("packs/").await;
    let whole = world.get(&pack).await;
    for length in [0, 10, whole.len() / 2, whole.len() - 1] {
        world.put(&pack, whole[..length].to_vec()).await;
        let loaded = world.archive.load_index().await.unwrap();
        assert!(loaded.damage.iter().all(|damage| damage.object == pack) && !loaded.damage.is_empty());
        assert_eq!(loaded.index.chunks(), 0, "cut to {length}");
        assert_eq!(world.verify("web@a", false).await.damage.len(), 2, "cut to {length}");
        assert!(world.pull("web@a").await.is_err());
    }
    // A push stores what is lost anew, and heals the older snapshot by that.
    world.push("web@b", MIB, &disk([1, 2]), None).await.unwrap();
    world.assert_holds("web@b", &disk([1, 2])).await;
    world.assert_holds("web@a", &disk([1, 2])).await;
}

#[tokio::test]
async fn a_missing_pack_is_found_and_not_relied_on() {
    let world = pushed().await;
    let pack = world.only("packs/").await;
    world.delete(&pack).await;
    let loaded = world.archive.load_index().await.unwrap();
    assert_eq!(loaded.damage, [Damage { object: pack, why: "it is missing; the index names it".into() }]);
    assert_eq!(world.verify("web@a", false).await.damage.len(), 2);
    world.push("web@b", MIB, &disk([1, 2]), None).await.unwrap();
    world.assert_holds("web@b", &disk([1, 2])).await;
}

#[tokio::test]
async fn a_pack_of_absurd_size_is_not_read() {
    let world = pushed().await;
    let pack = pack_name(&[9; 32]);
    world.put(&pack, vec![0; 18 << 20]).await;
    let loaded = world.archive.load_index().await.unwrap();
    assert_eq!(loaded.damage.len(), 1);
    assert!(loaded.damage[0].why.contains("at most"), "{:?}", loaded.damage);
    world.assert_holds("web@a", &disk([1, 2])).await;
}

#[tokio::test]
async fn a_lying_index_can_hide_and_never_change() {
    let world = pushed().await;
    let mut packs = index::parse(&world.get(&world.only("index/").await).await).unwrap();
    let (first, second) = (packs[0].entries[0].hash, packs[0].entries[1].hash);
    packs[0].entries[0].hash = second;
    packs[0].entries[1].hash = first;
    world.delete(&world.only("index/").await).await;
    let bytes = index::encode(&packs);
    world.put(&index_name(blake3::hash(&bytes).as_bytes()), bytes).await;
    let pack = world.only("packs/").await;
    assert_found(&world, &pack, "web@a").await;
}

#[tokio::test]
async fn an_index_that_names_packs_elsewhere_is_no_path() {
    let world = pushed().await;
    let pack = pack_of(&[77]);
    let bytes = index::encode(&[IndexedPack { name: pack.name, entries: pack.entries }]);
    world.put(&index_name(blake3::hash(&bytes).as_bytes()), bytes).await;
    let loaded = world.archive.load_index().await.unwrap();
    assert_eq!(loaded.damage.len(), 1);
    assert_eq!(loaded.index.packs(), 1);
}

#[tokio::test]
async fn a_damaged_index_object_costs_nothing_but_time() {
    let world = pushed().await;
    let object = world.only("index/").await;
    flip(&world, &object, 60).await;
    let loaded = world.archive.load_index().await.unwrap();
    assert_eq!(loaded.damage[0].object, object);
    assert_eq!(loaded.unindexed.len(), 1);
    world.assert_holds("web@a", &disk([1, 2])).await;
}

#[tokio::test]
async fn a_changed_page_is_found() {
    let world = pushed().await;
    let pages: Vec<String> =
        world.objects().await.into_keys().filter(|object| object.starts_with("pages/")).collect();
    assert_eq!(pages.len(), 2);
    for page in pages {
        let whole = world.get(&page).await;
        flip(&world, &page, 600.min(whole.len() - 1)).await;
        assert_found(&world, &page, "web@a").await;
        world.put(&page, vec![0; 200 << 10]).await;
        assert_found(&world, &page, "web@a").await;
        world.delete(&page).await;
        assert_found(&world, &page, "web@a").await;
        world.put(&page, whole).await;
    }
    world.assert_holds("web@a", &disk([1, 2])).await;
}

/// Each page is right by itself, and belongs to another snapshot.
#[tokio::test]
async fn a_page_of_another_snapshot_is_found() {
    let world = pushed().await;
    world.push("web@b", MIB, &disk([3]), None).await.unwrap();
    let page = |root: super::super::root::Root| page_name(&root.inner[0].unwrap());
    let first = page(world.archive.root(&name("web@a")).await.unwrap());
    let second = page(world.archive.root(&name("web@b")).await.unwrap());
    world.put(&first, world.get(&second).await).await;
    assert_found(&world, &first, "web@a").await;
}

#[tokio::test]
async fn the_root_of_another_snapshot_is_refused() {
    let world = pushed().await;
    world.push("web@b", MIB, &disk([3]), None).await.unwrap();
    let (first, second) = (root_name(&name("web@a")), root_name(&name("web@b")));
    world.put(&second, world.get(&first).await).await;
    let error = world.archive.root(&name("web@b")).await.unwrap_err();
    assert!(error.to_string().contains("it is the root of web@a"), "{error}");
    let listed = world.archive.list(None).await.unwrap();
    assert!(listed[0].root.is_ok() && listed[1].root.is_err());
}

/// Same pages, same chunks, signed by the right key: only the image's own hash tells.
#[tokio::test]
async fn a_root_with_the_wrong_image_hash_is_found() {
    let world = pushed().await;
    let mut root = world.archive.root(&name("web@a")).await.unwrap();
    root.hash[0] ^= 1;
    let object = root_name(&root.name);
    world.put(&object, root.encode(&world.archive.config, &world.key)).await;
    let damage = world.verify("web@a", true).await.damage;
    assert!(
        damage.len() == 1 && damage[0].object == object && damage[0].why.contains("BLAKE3"),
        "{damage:?}"
    );
}

#[tokio::test]
async fn a_root_that_counts_wrong_is_found() {
    let world = pushed().await;
    let mut root = world.archive.root(&name("web@a")).await.unwrap();
    root.clusters = 1;
    let object = root_name(&root.name);
    world.put(&object, root.encode(&world.archive.config, &world.key)).await;
    assert_found(&world, &object, "web@a").await;
    assert_eq!(world.verify("web@a", false).await.damage.len(), 1);
}

#[tokio::test]
async fn a_wrong_signature_is_refused() {
    let world = pushed().await;
    let object = root_name(&name("web@a"));
    let length = world.get(&object).await.len();
    flip(&world, &object, length - 1).await;
    let error = world.archive.root(&name("web@a")).await.unwrap_err();
    assert!(
        matches!(&error, ArchiveError::Damaged { why, .. } if why == "its signature is wrong"),
        "{error}"
    );
}

#[tokio::test]
async fn a_config_of_another_key_is_refused() {
    let world = pushed().await;
    let other = World::new().await;
    world.put(CONFIG, other.get(CONFIG).await).await;
    let error = world.reopen().await.unwrap_err();
    assert!(matches!(error, ArchiveError::Refused(_)), "{error}");
    // Who trusts the archive itself gets the other's, but no snapshot of this one.
    let fooled = Archive::open(storage(&world.store), Trust::Archive).await.unwrap();
    assert!(fooled.root(&name("web@a")).await.is_err());
}

/// An older or another archive of the same key, put in this one's place.
#[tokio::test]
async fn a_config_of_another_archive_of_the_same_key_is_no_use() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    let made = key::create(&file).unwrap();
    let world = World::with_key(made).await;
    world.push("web@a", MIB, &disk([1]), None).await.unwrap();
    let other = World::with_key(key::read_secret(&file).unwrap()).await;
    world.put(CONFIG, other.get(CONFIG).await).await;
    let archive = world.reopen().await.unwrap();
    let error = archive.root(&name("web@a")).await.unwrap_err();
    assert!(error.to_string().contains("another archive"), "{error}");
}

#[tokio::test]
async fn an_unknown_version_is_told_as_such() {
    let world = pushed().await;
    for object in [CONFIG.to_owned(), root_name(&name("web@a"))] {
        let mut bytes = world.get(&object).await;
        bytes[8] = 2;
        world.put(&object, bytes).await;
    }
    let error = world.archive.root(&name("web@a")).await.unwrap_err();
    assert!(error.to_string().contains("it has version 2, this program knows 1"), "{error}");
    assert!(world.reopen().await.unwrap_err().to_string().contains("version 2"));
}

#[tokio::test]
async fn objects_larger_than_they_may_be_are_not_read() {
    let world = pushed().await;
    world.put(CONFIG, vec![0; 1 << 20]).await;
    world.put(&root_name(&name("web@a")), vec![0; 1 << 20]).await;
    for error in [world.reopen().await.unwrap_err(), world.archive.root(&name("web@a")).await.unwrap_err()] {
        assert!(error.to_string().contains("at most"), "{error}");
    }
}

/// Names in the storage are never more than keys: what is none of ours is not looked at.
#[tokio::test]
async fn strange_names_are_left_alone() {
    let world = pushed().await;
    let strange = [
        "snapshots/web/a/b",
        "snapshots/web",
        "snapshots/.hidden/a",
        "snapshots/we b/a",
        "snapshots/web/-x",
        "packs/zz/zz",
        "packs/00/11",
        "index/x",
        "pages/x",
        "other",
    ];
    for object in strange {
        world.put(object, b"x".to_vec()).await;
    }
    let listed = world.archive.list(None).await.unwrap();
    assert_eq!(listed.len(), 1);
    let loaded = world.archive.load_index().await.unwrap();
    assert_eq!(loaded.damage, []);
    world.assert_holds("web@a", &disk([1, 2])).await;
}

/// The base that a push was told to begin with has lost a page: it must not be half-copied.
#[tokio::test]
async fn a_base_that_is_damaged_is_refused() {
    let world = pushed().await;
    let pages: Vec<String> =
        world.objects().await.into_keys().filter(|object| object.starts_with("pages/")).collect();
    for page in pages {
        let whole = world.get(&page).await;
        flip(&world, &page, 20).await;
        let before = disk([1, 2]);
        let result = world.push("web@b", MIB, &disk([1, 2, 3]), Some(("web@a", &before))).await;
        assert!(matches!(result, Err(ArchiveError::Damaged { object, .. }) if object == page));
        world.put(&page, whole).await;
    }
    assert!(world.archive.root(&name("web@b")).await.is_err());
    assert_eq!(world.pull("web@a").await.unwrap().len(), 2);
}
