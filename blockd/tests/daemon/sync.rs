//! Replication between real daemons on loopback: increments, kills, cuts, the way back.

use std::net::TcpListener;
use std::time::Duration;

use fixtures::process::{ProcessError, wait_until};

use crate::place::Place;

const SIZE: usize = 24 << 20;
const BLOCK: usize = 4096;

/// A host that is found at the same port after a restart.
pub(crate) fn place(name: &str) -> Place {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut place = Place::new();
    let own = ["--name", name, "--peer-listen", &free.to_string()];
    place.arguments.extend(own.map(str::to_owned));
    place
}

/// Two hosts that know each other.
pub(crate) fn pair(a: &Place, b: &Place) {
    let token = b.ok("host pair --new");
    a.ok(&format!("host pair {}", token.trim()));
}

fn write(place: &Place, volume: &str, writes: &[(usize, u8, usize)]) {
    let mut client = place.client(volume);
    for &(block, value, blocks) in writes {
        let bytes = noise(value, blocks * BLOCK);
        client.write((block * BLOCK) as u64, &bytes).unwrap();
    }
    client.flush().unwrap();
    client.leave().unwrap();
}

/// That cannot be compressed; value 0 is zeroes.
fn noise(value: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    if value > 0 {
        fastrand::Rng::with_seed(u64::from(value)).fill(&mut bytes);
    }
    bytes
}

/// The newest snapshot of a volume, as its host lists them.
fn newest(place: &Place, volume: &str) -> String {
    let listed = place.ok(&format!("snapshot list {volume} -o jsonl"));
    let last = listed.lines().last().expect("there is one");
    let value: serde_json::Value = serde_json::from_str(last).unwrap();
    value["name"].as_str().unwrap().to_owned()
}

/// The replica shows what the source's newest snapshot does.
fn assert_equal(a: &Place, b: &Place, volume: &str) {
    let snapshot = newest(a, volume);
    let name = format!("{volume}@{snapshot}");
    assert_eq!(newest(b, volume), snapshot);
    assert!(a.content(&name) == b.content(&name), "{name} differs");
    let hashes = [a, b].map(|place| place.ok(&format!("snapshot hash {name}")));
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(hashes[0].split(' ').next(), Some(blake3::hash(&b.content(volume)).to_hex().as_str()));
}

#[test]
fn a_volume_is_brought_to_another_host_again_and_again() {
    let (a, b) = (place("A"), place("B"));
    let (running_a, running_b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    write(&a, "web", &[(0, 1, 256), (1000, 2, 64), (4000, 3, 1)]);
    let said = a.ok("sync web --to B");
    assert!(said.contains("web"), "{said}");
    assert_equal(&a, &b, "web");
    // Some blocks changed, some written as they were, some zeroed.
    write(&a, "web", &[(10, 4, 3), (0, 1, 8), (1000, 0, 64), (6143, 5, 1)]);
    a.ok("sync web --to B");
    assert_equal(&a, &b, "web");
    let stderr = b.not_ok("snapshot create web@mine", 5);
    assert!(stderr.contains("is a replica"), "{stderr}");
    // After restarts it goes on where it was.
    running_b.stop();
    let running_b = b.serve();
    running_a.kill();
    let running_a = a.serve();
    write(&a, "web", &[(77, 6, 2)]);
    retry(&a, "sync web --to B");
    assert_equal(&a, &b, "web");
    running_a.stop();
    running_b.stop();
    a.assert_sound();
    b.assert_sound();
}

fn job(place: &Place, name: &str) -> serde_json::Value {
    serde_json::from_str(&place.ok(&format!("job show {name} -o json"))).unwrap()
}

#[test]
fn several_targets_are_brought_one_cut_that_is_read_once() {
    let (a, b, c) = (place("A"), place("B"), place("C"));
    let (_a, _b, _c) = (a.serve(), b.serve(), c.serve());
    pair(&a, &b);
    pair(&a, &c);
    a.ok(&format!("volume create web --size {SIZE}"));
    write(&a, "web", &[(0, 1, 4096)]);
    // Slow enough for both to be under way at the same time.
    a.ok("sync web --to B --to C --rate 16MB/s");
    write(&a, "web", &[(7, 2, 1024), (5000, 3, 1)]);
    a.ok("sync web --to B --to C --rate 16MB/s");
    for place in [&b, &c] {
        assert_equal(&a, place, "web");
    }
    let names: std::collections::BTreeSet<String> =
        a.ok("snapshot list web -o jsonl").lines().map(str::to_owned).collect();
    assert_eq!(names.len(), 2, "one cut for both targets: {names:?}");
    let runs = job(&a, "web-B-C")["runs"].as_array().unwrap().clone();
    let sum = |field: &str| runs.iter().map(|run| run["report"][field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(runs.len(), 4, "{runs:?}");
    // Each byte was needed twice; at least once in four it was there when the second session wanted it.
    assert!(sum("bytes_shared") * 4 >= sum("bytes_changed"), "{runs:?}");
    assert!(sum("bytes_shared") * 2 <= sum("bytes_changed"), "{runs:?}");
}

#[test]
fn a_host_is_sent_no_more_than_its_limit_by_all_jobs() {
    let (a, b) = (place("A"), place("B"));
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    assert!(a.not_ok("host limit C 1MB/s", 3).contains("no paired host C"));
    assert_eq!(a.ok("host limit B 64KB/s"), "all jobs together send at most 64 KiB/s to B\n");
    for (volume, value) in [("web", 1), ("db", 2)] {
        a.ok(&format!("volume create {volume} --size {SIZE}"));
        write(&a, volume, &[(0, value, 4096)]);
        a.ok(&format!("job add {volume} --volume {volume} --to B"));
        a.ok(&format!("job run {volume} --no-wait"));
    }
    let running = |name: &str| job(&a, name)["targets"][0]["running"].clone();
    for name in ["web", "db"] {
        let sending = wait_until("a run that sends", Duration::from_secs(60), || {
            Ok::<_, ProcessError>((running(name)["phase"] == "sending").then_some(()))
        });
        sending.unwrap();
    }
    // Without the limit they would be done by now.
    for _ in 0..20 {
        for name in ["web", "db"] {
            assert!(running(name)["bytes_sent"].as_u64().unwrap() < 8 << 20, "{}", running(name));
        }
    }
    assert!(a.ok("host show B").contains("64 KiB/s"));
    a.ok("host limit B none");
    for name in ["web", "db"] {
        retry(&a, &format!("job run {name}"));
        assert_equal(&a, &b, name);
    }
}

/// Until it succeeds.
fn retry(place: &Place, words: &str) {
    let done = wait_until(words, Duration::from_secs(60), || {
        let (code, _, _) = place.ctl(words);
        Ok::<_, ProcessError>((code == 0).then_some(()))
    });
    done.unwrap();
}

#[test]
fn several_volumes_and_a_clone_are_one_instant() {
    let (a, b) = (place("A"), place("B"));
    let (_a, _b) = (a.serve(), b.serve());
    pair(&a, &b);
    for volume in ["sys", "data"] {
        a.ok(&format!("volume create {volume} --size {SIZE}"));
        write(&a, volume, &[(0, 1, 512)]);
    }
    a.ok("sync sys data --to B");
    let snapshot = newest(&a, "sys");
    a.ok(&format!("clone sys@{snapshot} web"));
    write(&a, "web", &[(5, 9, 1)]);
    a.ok("sync web --to B");
    for volume in ["sys", "data", "web"] {
        assert_equal(&a, &b, volume);
    }
    // The clone's replica shares what it was cloned from.
    let status: serde_json::Value = serde_json::from_str(&b.ok("status -o json")).unwrap();
    let used = status["store"]["used_bytes"].as_u64().unwrap();
    assert!(used < (2 * 512 + 64) * BLOCK as u64 + (1 << 20), "{used} bytes are used");
}

#[test]
fn a_schedule_keeps_a_replica_fresh() {
    let (a, b) = (place("A"), place("B"));
    let (_a, running_b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    write(&a, "web", &[(0, 1, 16)]);
    a.ok("sync web --to B --every 1s");
    wait_for_block(&b, 0, 1);
    write(&a, "web", &[(3, 2, 1)]);
    wait_for_block(&b, 3, 2);
    assert!(a.ok("job list").contains("ok"));
    running_b.kill();
    let behind = wait_until("a job that is behind", Duration::from_secs(60), || {
        let listed = a.ok("job list");
        Ok::<_, ProcessError>(listed.contains("behind").then_some(()))
    });
    behind.unwrap();
    write(&a, "web", &[(4, 3, 1)]);
    let again = b.serve();
    wait_for_block(&b, 4, 3);
    a.ok("job delete web-B");
    again.stop();
    b.assert_sound();
}

fn wait_for_block(place: &Place, block: usize, value: u8) {
    let expected = noise(value, BLOCK);
    let come = wait_until("a block at the replica", Duration::from_secs(60), || {
        let (code, _, _) = place.ctl("snapshot list web");
        if code != 0 || place.ok("export list").lines().all(|line| !line.contains("web@")) {
            return Ok::<_, ProcessError>(None);
        }
        let mut client = place.client("web");
        let found = client.read((block * BLOCK) as u64, BLOCK as u32).unwrap();
        client.leave().unwrap();
        Ok((found == expected).then_some(()))
    });
    come.unwrap();
}

/// Half of each block is noise: what is sent is compressed, and is not little.
fn write_compressible(place: &Place, volume: &str) {
    let mut client = place.client(volume);
    let mut bytes = noise(9, SIZE / 2);
    for half in bytes.chunks_mut(BLOCK / 2).skip(1).step_by(2) {
        half.fill(0);
    }
    for (at, piece) in bytes.chunks(1 << 20).enumerate() {
        client.write((at << 20) as u64, piece).unwrap();
    }
    client.flush().unwrap();
    client.leave().unwrap();
}

/// The process of a daemon that decompresses: there is one as soon as something compressed has come.
fn decompressing(daemon: u32) -> u32 {
    let found = wait_until("a process that decompresses", Duration::from_secs(60), || {
        let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("children")).ok()
        };
        let all: String = tasks.filter_map(of_task).collect();
        Ok::<_, ProcessError>(all.split_whitespace().next().map(|pid| pid.parse().unwrap()))
    });
    found.unwrap()
}

fn is_gone(pid: u32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// P11.
#[test]
fn a_process_that_decompresses_is_killed_and_the_next_session_brings_all() {
    let (a, b) = (place("A"), place("B"));
    let (_a, running_b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    write_compressible(&a, "web");
    std::thread::scope(|scope| {
        // Slow enough for the session to be under way when that happens.
        let said = scope.spawn(|| a.ctl("sync web --to B --rate 1MB/s"));
        let pid = decompressing(running_b.pid());
        kill(pid);
        let (code, _, stderr) = said.join().unwrap();
        assert_ne!(code, 0, "{stderr}");
        // The latter if it was killed before it could say that it is confined.
        let told = ["the process that decompresses has ended", "decompress has said nothing"];
        assert!(stderr.contains("FAILED") && told.iter().any(|text| stderr.contains(text)), "{stderr}");
        assert!(is_gone(pid), "it was waited for");
    });
    assert!(b.log().contains("a session's process that decompresses has ended"), "{}", b.log());
    a.ok("sync web --to B");
    assert_equal(&a, &b, "web");
}

/// P11.
#[test]
fn a_process_that_decompresses_does_not_outlive_its_daemon() {
    let (a, b) = (place("A"), place("B"));
    let (_a, running_b) = (a.serve(), b.serve());
    pair(&a, &b);
    a.ok(&format!("volume create web --size {SIZE}"));
    write_compressible(&a, "web");
    std::thread::scope(|scope| {
        let said = scope.spawn(|| a.ctl("sync web --to B --rate 1MB/s"));
        let pid = decompressing(running_b.pid());
        running_b.kill();
        let gone = || Ok::<_, ProcessError>(is_gone(pid).then_some(()));
        wait_until("the end of its process", Duration::from_secs(10), gone).unwrap();
        assert_ne!(said.join().unwrap().0, 0);
    });
    let _b = b.serve();
    retry(&a, "sync web --to B");
    assert_equal(&a, &b, "web");
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
