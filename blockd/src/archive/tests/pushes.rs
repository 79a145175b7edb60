//! What is pushed comes back, and nothing is written twice.

use proptest::prelude::*;

use super::super::ArchiveError;
use super::super::page::LEAF_CLUSTERS;
use super::world::{Disk, World, disk, name};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_snapshot_comes_back() {
    let world = World::new().await;
    let full = disk([0, 1, 5, 700]);
    // The last cluster is cut short.
    let size = 1600 * 65_536 + 512;
    world.push("web@a", size, &full, None).await.unwrap();
    world.assert_holds("web@a", &full).await;
    let summary = world.verify("web@a", true).await;
    assert_eq!((summary.clusters, summary.damage), (4, vec![]));
    assert_eq!(world.verify("web@a", false).await.clusters, 4);
}

#[tokio::test]
async fn an_empty_snapshot_is_a_root_and_nothing_else() {
    let world = World::new().await;
    let report = world.push("web@a", 64 * MIB, &Disk::new(), None).await.unwrap();
    assert_eq!(report.objects, 1);
    world.assert_holds("web@a", &Disk::new()).await;
    assert_eq!(world.verify("web@a", true).await.damage, []);
}

#[tokio::test]
async fn equal_content_is_stored_once() {
    let world = World::new().await;
    let twins: Disk = (0..1000).map(|cluster| (cluster, u64::from(cluster) % 3)).collect();
    let report = world.push("web@a", 64 * MIB, &twins, None).await.unwrap();
    assert_eq!((report.clusters, report.new_chunks), (1000, 3));
    world.assert_holds("web@a", &twins).await;
    let report = world.push("db@a", 128 * MIB, &twins, None).await.unwrap();
    assert_eq!(report.new_chunks, 0);
}

#[tokio::test]
async fn a_small_change_writes_little() {
    let world = World::new().await;
    // Three leaf pages.
    let size = 3 * LEAF_CLUSTERS * 65_536;
    let before = disk((0..300).map(|number| number * 40));
    let first = world.push("web@a", size, &before, None).await.unwrap();
    let mut after = before.clone();
    after.insert(40, 999_999);
    after.insert(41, 999_998);
    after.remove(&80);
    let second = world.push("web@b", size, &after, Some(("web@a", &before))).await.unwrap();
    // A pack, its index, one leaf page, the inner page, the root.
    assert_eq!((second.clusters, second.new_chunks, second.objects), (2, 2, 5));
    assert!(second.uploaded_bytes < first.uploaded_bytes / 20, "{second:?} after {first:?}");
    world.assert_holds("web@a", &before).await;
    world.assert_holds("web@b", &after).await;
    assert_eq!(world.verify("web@b", false).await.damage, []);
}

#[tokio::test]
async fn a_volume_that_grew_keeps_its_pages() {
    let world = World::new().await;
    let before = disk([0, 3]);
    // The old end cuts cluster 3 short.
    let size = 3 * 65_536 + 40_960;
    world.push("web@a", size, &before, None).await.unwrap();
    let mut after = before.clone();
    after.insert(9, 5);
    world.push("web@b", 10 * 65_536, &after, Some(("web@a", &before))).await.unwrap();
    world.assert_holds("web@b", &after).await;
    assert_eq!(world.verify("web@b", true).await.damage, []);
}

#[tokio::test]
async fn a_volume_of_several_tib_has_several_inner_pages() {
    let world = World::new().await;
    let tib = 1 << 24;
    let before = disk([0, tib, 2 * tib + 4096, 2 * tib + 5000]);
    let size = 3u64 << 40;
    world.push("web@a", size, &before, None).await.unwrap();
    world.assert_holds("web@a", &before).await;
    let mut after = before.clone();
    after.remove(&tib);
    let report = world.push("web@b", size, &after, Some(("web@a", &before))).await.unwrap();
    assert_eq!(report.objects, 1, "an inner page that is empty is not written");
    world.assert_holds("web@b", &after).await;
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let world = World::new().await;
    world.push("web@a", MIB, &disk([1]), None).await.unwrap();
    let error = world.push("web@a", MIB, &disk([2]), None).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Refused(_)), "{error}");
    world.assert_holds("web@a", &disk([1])).await;
}

#[tokio::test]
async fn names_are_listed_with_their_roots() {
    let world = World::new().await;
    for snapshot in ["web@b", "web@a", "web-2@a", "db@x"] {
        world.push(snapshot, MIB, &disk([1]), None).await.unwrap();
    }
    let names = |listed: Vec<super::super::Listed>| -> Vec<String> {
        listed
            .into_iter()
            .map(|listed| format!("{} {}", listed.name, listed.root.unwrap().clusters))
            .collect()
    };
    let all = names(world.archive.list(None).await.unwrap());
    assert_eq!(all, ["db@x 1", "web@a 1", "web@b 1", "web-2@a 1"]);
    assert_eq!(names(world.archive.list(Some("web")).await.unwrap()), ["web@a 1", "web@b 1"]);
}

/// What a push leaves that died: any of its packs and pages, perhaps the index, never the root.
#[tokio::test]
async fn a_push_that_died_is_gone_on_with() {
    let whole = World::new().await;
    let full: Disk = disk(0..900).into_iter().map(|(cluster, seed)| (cluster, seed * 2 + 1)).collect();
    let first = whole.push("web@a", 64 * MIB, &full, None).await.unwrap();
    let objects = whole.objects().await;
    let packs: Vec<_> = objects.iter().filter(|(object, _)| object.starts_with("packs/")).collect();
    assert!(packs.len() > 1, "{}", packs.len());
    for kept in 0..=packs.len() {
        for with_index in [false, kept == packs.len()] {
            let world = World::new().await;
            for (object, bytes) in &packs[..kept] {
                world.put(object, bytes.to_vec()).await;
            }
            for (object, bytes) in
                objects.iter().filter(|(object, _)| object.starts_with("pages/")).take(kept)
            {
                world.put(object, bytes.clone()).await;
            }
            for (object, bytes) in
                objects.iter().filter(|(object, _)| with_index && object.starts_with("index/"))
            {
                world.put(object, bytes.clone()).await;
            }
            assert_eq!(world.archive.list(None).await.unwrap().len(), 0);
            let again = world.push("web@a", 64 * MIB, &full, None).await.unwrap();
            let spared: u64 = packs[..kept].iter().map(|(_, bytes)| bytes.len() as u64).sum();
            assert!(again.uploaded_bytes + spared <= first.uploaded_bytes + (64 << 10), "{kept}: {again:?}");
            world.assert_holds("web@a", &full).await;
            assert_eq!(world.verify("web@a", true).await.damage, []);
            // The index names them all now.
            assert_eq!(world.archive.load_index().await.unwrap().unindexed, []);
        }
    }
}

#[tokio::test]
async fn a_lost_index_is_made_anew_from_the_packs() {
    let world = World::new().await;
    world.push("web@a", MIB, &disk([1, 2]), None).await.unwrap();
    let index = world.only("index/").await;
    world.delete(&index).await;
    world.assert_holds("web@a", &disk([1, 2])).await;
    world.push("web@b", MIB, &disk([1, 2, 3]), None).await.unwrap();
    assert!(world.objects().await.keys().any(|object| object.starts_with("index/")));
    world.assert_holds("web@b", &disk([1, 2, 3])).await;
}

#[tokio::test]
async fn an_archive_is_made_once() {
    let world = World::new().await;
    let again = super::super::Archive::create(super::world::storage(&world.store), &world.key, 2).await;
    assert!(matches!(again, Err(ArchiveError::Refused(_))));
    assert!(world.reopen().await.is_ok());
    assert!(world.archive.root(&name("web@a")).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Chains of snapshots, each pushed as what differs from one of those before it; clusters are cleared as often as
    /// not.
    #[test]
    fn any_chain_comes_back(changes in prop::collection::vec(
        (prop::collection::vec((0u32..30, 0u64..4), 0..25), any::<prop::sample::Index>()), 1..6)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let mut disks: Vec<Disk> = vec![Disk::new()];
            for (number, (changes, base)) in changes.iter().enumerate() {
                let base = base.index(disks.len());
                let mut disk = disks[base].clone();
                for &(number, seed) in changes {
                    // Spread over three leaves.
                    let cluster = number * 300;
                    if seed == 0 { disk.remove(&cluster); } else { disk.insert(cluster, seed); }
                }
                let base = (base > 0).then(|| (format!("web@s{base}"), disks[base].clone()));
                let base = base.as_ref().map(|(name, disk)| (name.as_str(), disk));
                world.push(&format!("web@s{}", number + 1), 9000 * 65_536, &disk, base).await.unwrap();
                disks.push(disk);
            }
            for (number, disk) in disks.iter().enumerate().skip(1) {
                world.assert_holds(&format!("web@s{number}"), disk).await;
            }
        });
    }
}
