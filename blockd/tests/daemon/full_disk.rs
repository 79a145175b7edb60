//! A file system without room: filled by the store itself, and by others.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fixtures::nbd::client::{Client, ClientError};
use fixtures::nbd::codec::{command, errno};
use fixtures::process::{ProcessError, wait_until};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tempfile::TempDir;

use crate::place::Place;
use crate::tools::{Unmount, assert_same, may_mount, noise, run, tool};

const MIB: u64 = 1 << 20;

/// An ext4 of 320 MiB of its own.
struct Small {
    dir: TempDir,
    mount: PathBuf,
}

impl Small {
    fn new() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        File::create(&image).unwrap().set_len(320 * MIB).unwrap();
        run(tool("mkfs.ext4")
            .args(["-q", "-m", "0", "-O", "^has_journal"])
            .arg(&image)
            .env_remove("MKE2FS_CONFIG"));
        run(tool("tune2fs").args(["-O", "has_journal"]).arg(&image));
        std::fs::create_dir(&mount).unwrap();
        run(tool("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { dir, mount }
    }

    fn place(&self) -> Place {
        let mut place = Place::at(&self.mount.join("data"));
        place.arguments = vec!["--pool-size".to_owned(), "512M".to_owned()];
        place
    }

    fn free(&self) -> u64 {
        let space = statvfs(&self.mount).unwrap();
        space.f_bavail * space.f_frsize
    }

    /// Another's file that takes what is free, but for so much.
    fn fill(&self, name: &str, leave: u64) -> PathBuf {
        let path = self.mount.join(name);
        let file = File::create(&path).unwrap();
        let mut end = 0;
        for step in [MIB, 64 << 10, 4096] {
            while self.free() > leave + step && fallocate(&file, FallocateFlags::empty(), end, step).is_ok() {
                end += step;
            }
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Unmount(&self.mount));
        assert!(self.dir.path().exists());
    }
}

/// Writes noise, a MiB at a place, until there is no room; what was answered.
fn fill_volume(client: &mut Client, seed: u64, places: impl Iterator<Item = u64>) -> BTreeMap<u64, u64> {
    let mut answered = BTreeMap::new();
    let mut refused = 0;
    for place in places {
        match client.call_write(0, place * MIB, &noise(seed + place, MIB as usize)).unwrap() {
            Ok(_) => drop(answered.insert(place, seed + place)),
            Err(error) => {
                assert_eq!(error, errno::ENOSPC);
                refused += 1;
                if refused == 4 {
                    break;
                }
            }
        }
    }
    assert!(refused > 0, "there was room for everything");
    answered
}

fn verify(place: &Place, export: &str, answered: &BTreeMap<u64, u64>) {
    let mut client = place.client(export);
    for (at, seed) in answered {
        let found = client.read(at * MIB, MIB as u32).unwrap();
        assert_same(&found, &noise(*seed, MIB as usize), &format!("{export}, MiB {at}"));
    }
    client.leave().unwrap();
}

/// Freed space comes back in the background.
fn write_soon(client: &mut Client, at: u64, bytes: &[u8]) {
    let written =
        wait_until("room", Duration::from_secs(15), || match client.call_write(0, at, bytes).unwrap() {
            Ok(_) => Ok::<_, ProcessError>(Some(())),
            Err(error) => {
                assert_eq!(error, errno::ENOSPC);
                Ok(None)
            }
        });
    written.unwrap();
}

/// A write that waited for freed clusters held them back itself: neither it nor the daemon ever ended.
#[test]
fn a_write_to_a_full_pool_gets_what_was_just_trimmed() {
    let mut place = Place::new();
    place.arguments = vec!["--pool-size".to_owned(), "16M".to_owned()];
    let daemon = place.serve();
    place.ok("volume create web --size 32M");
    let mut client = place.client("web");
    let mut answered = fill_volume(&mut client, 1, 0..32);
    assert!(answered.len() >= 14, "{} MiB", answered.len());
    for round in 0..5 {
        // No FLUSH in between, so that the write comes before the commit that frees.
        for at in [0, 1] {
            client.call(0, command::TRIM, at * MIB, MIB as u32).unwrap().unwrap();
        }
        for at in [0, 1] {
            let seed = 100 * round + at;
            client.write((20 + at) * MIB, &noise(seed, MIB as usize)).unwrap();
            client.call(0, command::TRIM, (20 + at) * MIB, MIB as u32).unwrap().unwrap();
            client.write(at * MIB, &noise(seed, MIB as usize)).unwrap();
            answered.insert(at, seed);
        }
    }
    assert_eq!(client.call_write(0, 20 * MIB, &noise(7, MIB as usize)).unwrap(), Err(errno::ENOSPC));
    client.flush().unwrap();
    verify(&place, "web", &answered);
    client.leave().unwrap();
    daemon.stop();
    place.assert_sound();
}

#[test]
fn a_store_that_fills_its_file_system_loses_nothing_and_recovers() {
    if !may_mount() {
        return;
    }
    let small = Small::new();
    let place = small.place();
    let daemon = place.serve();
    place.ok("volume create web --size 400M");
    place.ok("volume create db --size 64M");
    let mut db = place.client("db");
    db.write(0, &noise(5, 16 << 20)).unwrap();
    db.flush().unwrap();
    db.leave().unwrap();
    let mut client = place.client("web");
    let mut answered = fill_volume(&mut client, 1000, 0..400);
    assert!(answered.len() > 40, "{} MiB", answered.len());
    client.flush().unwrap();
    verify(&place, "web", &answered);
    daemon.kill();

    let daemon = place.serve();
    verify(&place, "web", &answered);
    let mut client = place.client("web");
    answered.extend(fill_volume(
        &mut client,
        2000,
        (0..400).filter(|at| !answered.contains_key(at)).collect::<Vec<_>>().into_iter(),
    ));
    // Metadata have their own room: a snapshot of a full store, changes of it, and its deletion.
    place.ok("snapshot create web@full");
    let first = *answered.keys().next().unwrap();
    let overwritten = client.call_write(0, first * MIB, &noise(1, MIB as usize)).unwrap();
    assert!(matches!(overwritten, Ok(_) | Err(errno::ENOSPC)));
    client.flush().unwrap();
    verify(&place, "web@full", &answered);
    answered.remove(&first);
    verify(&place, "web", &answered);
    place.ok("snapshot delete web@full");
    // A trim makes room for as much, at once or nearly.
    let trimmed: Vec<u64> = answered.keys().copied().take(20).collect();
    for at in &trimmed {
        client.call(0, command::TRIM, at * MIB, MIB as u32).unwrap().unwrap();
        answered.remove(at);
    }
    client.flush().unwrap();
    for at in &trimmed[..16] {
        write_soon(&mut client, at * MIB, &noise(3000 + at, MIB as usize));
        answered.insert(*at, 3000 + at);
    }
    // So does a volume that goes.
    fill_volume(
        &mut client,
        4000,
        (300..400).filter(|at| !answered.contains_key(at)).collect::<Vec<_>>().into_iter(),
    );
    place.ok("volume delete db --yes");
    let at = (0..400).find(|at| !answered.contains_key(at)).unwrap();
    write_soon(&mut client, at * MIB, &noise(5000, MIB as usize));
    answered.insert(at, 5000);
    client.flush().unwrap();
    answered.retain(|at, seed| *at < 300 || *seed == 5000 || *seed >= 3000);
    verify(&place, "web", &answered);
    client.leave().unwrap();
    daemon.stop();
    place.assert_sound();
}

/// Everything is taken by others; what the store has accepted becomes durable all the same.
#[test]
fn a_file_system_that_others_fill_fails_no_flush() {
    if !may_mount() {
        return;
    }
    let small = Small::new();
    let place = small.place();
    let daemon = place.serve();
    let ballast = place.data().join("ballast");
    assert!(ballast.exists());
    place.ok("volume create web --size 64M");
    let mut client = place.client("web");
    let mut answered = BTreeMap::new();
    let mut write = |client: &mut Client, at: u64| {
        client.write(at * MIB, &noise(at, MIB as usize)).unwrap();
        client.flush().unwrap();
        answered.insert(at, at);
    };
    (0..8).for_each(|at| write(&mut client, at));
    let other = small.fill("other", 0);
    assert!(small.free() < MIB, "{}", small.free());
    // The pool has space of its own, so these are accepted; the records find the ballast's.
    (8..20).for_each(|at| write(&mut client, at));
    place.ok("snapshot create web@a");
    assert!(!ballast.exists(), "it was given up");
    assert!(place.ok("status").contains("health ok"));

    // And that is taken, too: a FLUSH waits, and goes on when there is room.
    let second = small.fill("second", 0);
    client.write(20 * MIB, &noise(20, MIB as usize)).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(2500));
            std::fs::remove_file(&second).unwrap();
        });
        client.flush().unwrap();
    });
    assert!(began.elapsed() > Duration::from_secs(2), "it did not have to wait");
    answered.insert(20, 20);
    verify(&place, "web", &answered);
    drop(client);
    daemon.kill();

    // A start on a full file system, with and without ballast.
    let third = small.fill("third", 0);
    std::fs::remove_file(&other).unwrap();
    let daemon = place.serve();
    assert!(ballast.exists(), "there is room again");
    verify(&place, "web", &answered);
    daemon.kill();
    let fourth = small.fill("fourth", 0);
    let daemon = place.serve();
    verify(&place, "web", &answered);
    let mut client = place.client("web");
    // In place, and in the records alone: neither needs more of the pool.
    client.write(20 * MIB, &noise(21, MIB as usize)).unwrap();
    client.flush().unwrap();
    answered.insert(20, 21);
    place.ok("snapshot create web@b");
    [third, fourth].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    write_soon(&mut client, 22 * MIB, &noise(22, MIB as usize));
    client.flush().unwrap();
    answered.insert(22, 22);
    verify(&place, "web", &answered);
    client.leave().unwrap();
    daemon.stop();
    place.assert_sound();
}

/// Nobody makes room in time: that commit fails, and every FLUSH after it; what was answered before is there after a
/// restart. A FLUSH with map records only needs no room of the file system: it is in the intent log.
#[test]
fn without_room_in_time_a_commit_fails_for_good() {
    if !may_mount() {
        return;
    }
    let small = Small::new();
    let place = small.place();
    let daemon = place.serve();
    place.ok("volume create web --size 64M");
    let mut client = place.client("web");
    client.write(0, &noise(1, MIB as usize)).unwrap();
    client.flush().unwrap();
    let other = small.fill("other", 0);
    place.ok("snapshot create web@a");
    let second = small.fill("second", 0);
    client.write(MIB, &noise(2, MIB as usize)).unwrap();
    client.flush().unwrap();
    let began = Instant::now();
    place.not_ok("snapshot create web@b", 1);
    assert!(began.elapsed() > Duration::from_secs(25), "{:?}", began.elapsed());
    assert!(place.log().contains("a commit waits for room"));
    [&other, &second].into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
    assert!(matches!(client.flush(), Err(ClientError::Failed(errno::EIO))), "it is final");
    let why = place.not_ok("snapshot create web@b", 1);
    assert!(why.contains("restart"), "{why}");
    assert_eq!(place.ctl("check").0, 2);
    let (first, flushed) = (BTreeMap::from([(0, 1)]), BTreeMap::from([(0, 1), (1, 2)]));
    verify(&place, "web", &flushed);
    drop(client);
    daemon.stop_anyhow();
    place.assert_sound();
    let _daemon = place.serve();
    verify(&place, "web", &flushed);
    verify(&place, "web@a", &first);
    place.client("web").flush().unwrap();
    place.ok("snapshot create web@b");
}
