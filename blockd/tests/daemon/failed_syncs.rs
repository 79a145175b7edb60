//! A sync that fails is final (D6): the metadata's, by system calls that strace makes fail, and the pool's, which only a
//! file system can make fail, for the ring syncs it.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use fixtures::lossy_fs::{LossyFs, Options};
use fixtures::nbd::client::ClientError;
use fixtures::nbd::codec::{errno, flag};
use fixtures::process::{ChildGuard, ProcessError, wait_until};

use crate::place::{Daemon, Place};
use crate::tools::{may_cut_power, tool};

/// strace on a daemon that runs.
struct Saboteur(ChildGuard);

impl Saboteur {
    fn attach(daemon: &Daemon<'_>, injection: &str) -> Self {
        let calls = injection.split(':').next().unwrap();
        let mut strace = tool("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={injection}"), "-p", &daemon.pid().to_string()]);
        let child = ChildGuard::spawn(strace.stdin(Stdio::null()).stderr(Stdio::null())).unwrap();
        let attached = wait_until("strace", Duration::from_secs(10), || {
            Ok::<_, ProcessError>(all_traced(daemon.pid()).then_some(()))
        });
        attached.unwrap();
        Self(child)
    }

    fn detach(mut self) {
        // It ends by the signal, not before it has let go.
        drop(self.0.terminate(Duration::from_secs(5)));
    }
}

fn all_traced(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.lines().any(|line| line == "TracerPid:\t0")
    })
}

/// What holds after any failed sync of the metadata.
fn nothing_is_called_durable_any_more(injection: &str) {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 4M");
    place.ok("volume create db --size 4M");
    let mut client = place.client("web");
    client.write(0, &[1; 8192]).unwrap();
    client.flush().unwrap();
    place.ok("snapshot create web@a");
    for at in [0, 32 << 10] {
        client.write(at, &[2; 4096]).unwrap();
        client.flush().unwrap();
    }

    let saboteur = Saboteur::attach(&daemon, injection);
    client.write(64 << 10, &[3; 4096]).unwrap();
    // A FLUSH alone would have its records in the intent log only.
    place.not_ok("volume create third --size 1M", 1);
    assert!(matches!(client.flush(), Err(ClientError::Failed(errno::EIO))), "{injection}");
    saboteur.detach();
    // The last frame of the intent log is not known to be durable, and will not be: nothing is written over it.
    assert_eq!(client.call_write(0, 32 << 10, &[4; 4096]).unwrap(), Err(errno::EIO), "{injection}");
    // The system calls work again; what they say proves nothing any more.
    for at in [0, 128 << 10] {
        client.write(at, &[4; 4096]).unwrap();
        assert!(matches!(client.flush(), Err(ClientError::Failed(errno::EIO))), "{injection}");
        assert_eq!(client.call_write(flag::FUA, at, &[5; 4096]).unwrap(), Err(errno::EIO), "{injection}");
    }
    let mut other = place.client("db");
    other.write(0, &[6; 4096]).unwrap();
    assert!(matches!(other.flush(), Err(ClientError::Failed(errno::EIO))), "{injection}");
    for words in ["snapshot create web@b", "volume create more --size 1M", "snapshot delete web@a"] {
        let why = place.not_ok(words, 1);
        assert!(why.contains("sync") && why.contains("restart"), "{words}: {why}");
    }
    assert_eq!(client.read(64 << 10, 4096).unwrap(), [3; 4096], "reads go on");
    let status = place.ok("status -o json");
    assert!(status.contains("\"sync_failed\"") && status.contains("\"recent_log\":false"), "{status}");
    let (code, line, _) = place.ctl("check");
    assert!(code == 2 && line.starts_with("CRITICAL - a sync has failed"), "{line}");

    drop((client, other));
    daemon.stop_anyhow();
    place.assert_sound();
    let daemon = place.serve();
    assert!(place.ok("status -o json").contains("\"recent_log\":true"), "a start begins anew");
    let mut client = place.client("web");
    let found = client.read(0, 8192).unwrap();
    assert!(
        [2, 4, 5].contains(&found[0]) && found[4096] == 1,
        "what was answered durable, or later: {}",
        found[0]
    );
    assert!([0, 3].contains(&client.read(64 << 10, 4096).unwrap()[0]));
    assert_eq!(client.read(32 << 10, 4096).unwrap(), [2; 4096]);
    assert_eq!(place.client("web@a").read(0, 8192).unwrap(), [1; 8192]);
    client.write(0, &[7; 4096]).unwrap();
    client.flush().unwrap();
    place.ok("snapshot create web@b");
    client.leave().unwrap();
    daemon.stop();
}

#[test]
fn a_failed_sync_of_the_log_is_final() {
    nothing_is_called_durable_any_more("fdatasync:error=EIO:when=1");
}

#[test]
fn a_failed_mark_is_final() {
    nothing_is_called_durable_any_more("pwritev2:error=EIO:when=1");
}

/// RocksDB without room for its log, where `check_room` saw some: whether the batch is in, nobody knows.
#[test]
fn a_log_without_room_is_final() {
    nothing_is_called_durable_any_more("fdatasync:error=ENOSPC:when=1");
}

#[test]
fn a_failed_sync_of_the_pool_is_final_for_its_volumes() {
    if !may_cut_power() {
        return;
    }
    let mount = tempfile::tempdir().unwrap();
    let fs = LossyFs::mount(mount.path(), Options::default()).unwrap();
    let mut place = Place::at(&mount.path().join("data"));
    place.arguments = vec!["--pool-size".to_owned(), "64M".to_owned()];
    let daemon = place.serve();
    place.ok("volume create web --size 4M");
    place.ok("volume create db --size 4M");
    let mut client = place.client("web");
    client.write(0, &vec![1; 1 << 20]).unwrap();
    client.flush().unwrap();
    client.write(0, &vec![2; 1 << 20]).unwrap();
    client.write(1 << 20, &[2; 4096]).unwrap();
    fs.fail_syncs(1);
    for _ in 0..3 {
        assert!(matches!(client.flush(), Err(ClientError::Failed(errno::EIO))));
        assert_eq!(client.call_write(flag::FUA, 0, &[3; 4096]).unwrap(), Err(errno::EIO));
    }
    assert_eq!(client.read(4096, 4096).unwrap(), [2; 4096], "reads go on");
    let why = place.not_ok("snapshot create web@a", 1);
    assert!(why.contains("sync"), "{why}");
    assert!(place.ok("status -o json").contains("\"sync_failed\""));
    // Nothing of the other volume was in doubt.
    let mut other = place.client("db");
    other.write(0, &[6; 4096]).unwrap();
    other.flush().unwrap();
    fs.freeze();
    daemon.kill();
    fs.power_on(5);
    place.assert_sound();
    let daemon = place.serve();
    assert_eq!(place.client("db").read(0, 4096).unwrap(), [6; 4096]);
    let mut client = place.client("web");
    assert!(client.read(0, 1 << 20).unwrap().iter().all(|byte| [1, 2, 3].contains(byte)));
    client.write(0, &[4; 4096]).unwrap();
    client.flush().unwrap();
    daemon.kill();
}
