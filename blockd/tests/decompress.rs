//! The process that decompresses what other hosts send (P11): what it can do, what it cannot, and what becomes of a session
//! whose process dies, hangs or never was.
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use blockd::decompress::confine::{ADDRESS_SPACE_MAX, NOBODY};
use blockd::decompress::process::{ANSWER_TIME_MAX, Session, Workers};
use blockd::decompress::{Decompress, DecompressError, InProcess};
use blockd::sync::batch::{Bounds, DATA_BYTES_MAX, Packer, decode, run_hash};
use blockd::units::{CLUSTER_BYTES, ClusterIndex};
use fixtures::process::{ChildGuard, wait_until};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

fn workers() -> Arc<Workers> {
    Workers::of(PathBuf::from(env!("CARGO_BIN_EXE_blockd")), ANSWER_TIME_MAX)
}

/// Data that can be compressed, and the frame.
fn data() -> (Vec<u8>, Vec<u8>) {
    let mut data = vec![0; DATA_BYTES_MAX];
    for half in data.chunks_mut(1024) {
        fastrand::fill(&mut half[..512]);
    }
    let stored = zstd::bulk::compress(&data, 1).unwrap();
    (data, stored)
}

/// A session whose process runs.
fn running() -> (Session, u32) {
    let session = workers().session();
    assert_eq!(session.pid(), None, "none before something compressed comes");
    let (data, stored) = data();
    assert_eq!(session.decompress(&stored, data.len()).unwrap(), data);
    let pid = session.pid().expect("it runs");
    (session, pid)
}

fn file(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
}

/// Neither runs nor waits to be waited for.
fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

#[test]
fn it_has_nothing_but_its_socket() {
    let (session, pid) = running();
    let status = file(pid, "status");
    let field = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    assert_eq!(field("Threads:"), ["1"]);
    assert_eq!(file(pid, "comm"), "blockd-unzstd\n");
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"blockd\0decompress\0");
    let limits = file(pid, "limits");
    let limit = |name: &str| {
        let line =
            limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max address space"), vec![ADDRESS_SPACE_MAX.to_string(); 2]);
    for name in ["Max processes", "Max open files", "Max file size", "Max core file size"] {
        assert_eq!(limit(name), ["0", "0"], "{name}");
    }
    if geteuid().is_root() {
        let nobody = vec![NOBODY.to_string(); 4];
        assert_eq!((field("Uid:"), field("Gid:"), field("Groups:")), (nobody.clone(), nobody, Vec::new()));
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
        assert_eq!(field("CapPrm:"), ["0000000000000000"]);
        // Of a process that cannot be dumped, only root sees these.
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let what = fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned();
            (entry.file_name().into_string().unwrap(), what.split(':').next().unwrap().to_owned())
        });
        let open: BTreeSet<(String, String)> = open.collect();
        let own = [("0", "socket"), ("1", "/dev/null"), ("2", "/dev/null")];
        assert_eq!(open, own.map(|(number, what)| (number.to_owned(), what.to_owned())).into());
    }
    drop(session);
    assert!(is_gone(pid), "it ends with its session, and is no zombie");
}

/// Whoever asked has gone, without a word: killed, perhaps.
#[test]
fn it_ends_when_nobody_asks_any_more() {
    let (mut own, its_own) = UnixStream::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
    command.arg("decompress").stdin(OwnedFd::from(its_own));
    let mut child = ChildGuard::spawn(&mut command).unwrap();
    drop(command);
    let mut ready = [9; 5];
    own.read_exact(&mut ready).unwrap();
    assert_eq!(ready, [0; 5], "confined by all that there is");
    drop(own);
    let ended = wait_until("its end", Duration::from_secs(10), || child.try_status());
    assert_eq!(ended.unwrap().code(), Some(0));
}

fn probe(what: &str) -> ExitStatus {
    let output =
        Command::new(env!("CARGO_BIN_EXE_blockd")).args(["decompress", "--probe", what]).output().unwrap();
    assert_eq!((output.stdout, output.stderr), (vec![], vec![]), "{what}");
    output.status
}

#[test]
fn whatever_else_it_tries_is_refused() {
    assert_eq!(probe("nothing").code(), Some(0), "being confined is no trouble");
    for what in ["open", "socket", "exec", "thread", "descriptor"] {
        assert_eq!(probe(what).signal(), Some(libc::SIGSYS), "{what}");
    }
    assert_eq!(probe("landlock").code(), Some(0), "Landlock alone is enough for files and ports");
}

/// P4, in the process: the same answers as in ours, and it goes on.
#[test]
fn bombs_harm_nobody() {
    let (session, pid) = running();
    let (good, stored) = data();
    let zstd = |data: &[u8]| zstd::bulk::compress(data, 3).unwrap();
    let length = good.len();
    let window = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8][..], &[1, 0, 0]].concat();
    let bombs = [
        zstd(&vec![0; 1 << 28]),
        zstd(&vec![0; length + 1]),
        zstd(&vec![0; length - 1]),
        Vec::new(),
        vec![9; 4096],
        vec![9; 1 << 20],
        [stored.clone(), zstd(&[])].concat(),
        stored[..stored.len() - 1].to_vec(),
        window,
    ];
    for bomb in bombs {
        let refused = session.decompress(&bomb, length).expect_err("a bomb");
        assert_eq!(Err(refused), InProcess.decompress(&bomb, length));
        assert!(session.decompress(&stored, length).unwrap() == good);
    }
    assert_eq!(session.pid(), Some(pid), "it is still the same one");
}

/// What another process in its place is taken for.
fn stand_in(dir: &TempDir, script: &str, limit: Duration) -> Session {
    let program = dir.path().join("stand-in");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    Workers::of(program, limit).session()
}

/// It is confined, it says.
const READY: &str = r"printf '\0\0\0\0\0' >&0";
const LATER: Duration = Duration::from_secs(60);

#[test]
fn one_that_is_killed_from_outside_is_nobodys_fault_and_the_next_session_has_another() {
    let (session, pid) = running();
    let (data, stored) = data();
    signal(pid, Signal::KILL);
    let lost = session.decompress(&stored, data.len()).expect_err("it was killed");
    let DecompressError::Local(why) = &lost else { panic!("not the peer's fault: {lost:?}") };
    assert!(why.contains("has ended") && why.contains("signal: 9"), "{why}");
    assert!(is_gone(pid), "it was waited for");
    assert_eq!(session.decompress(&stored, data.len()), Err(lost), "not started again in this session");
    assert_eq!(session.pid(), None);
    running();
}

#[test]
fn one_that_dies_of_what_it_was_given_is_the_peers_fault() {
    let dir = tempfile::tempdir().unwrap();
    for (how, says) in
        [("kill -SEGV $$", "signal: 11"), ("kill -SYS $$", "signal: 31"), ("exit 1", "exit status: 1")]
    {
        let session = stand_in(&dir, &format!("{READY}; head -c 14 >/dev/null <&0; {how}"), LATER);
        let lost = session.decompress(b"stored", 100).expect_err("it has died");
        let DecompressError::Bad(why) = &lost else { panic!("{how}: {lost:?}") };
        assert!(why.contains("has ended") && why.contains(says), "{why}");
    }
}

#[test]
fn one_that_hangs_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("pid");
    let script = format!("{READY}; echo $$ > {}; exec sleep 1000", note.display());
    let session = stand_in(&dir, &script, Duration::from_millis(500));
    let begun = Instant::now();
    let lost = session.decompress(b"stored", 100).expect_err("it says nothing");
    assert_eq!(
        lost,
        DecompressError::Bad("the process that decompresses gave no answer in 500ms".to_owned())
    );
    assert!(begun.elapsed() < LATER);
    let pid = fs::read_to_string(note).unwrap().trim().parse().unwrap();
    assert!(is_gone(pid), "it was killed and waited for");
}

#[test]
fn one_that_lies_about_the_length_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    // Four gigabytes, of which nothing comes.
    let session =
        stand_in(&dir, &format!(r"{READY}; printf '\0\377\377\377\377' >&0; exec sleep 1000"), LATER);
    let lost = session.decompress(b"stored", 100).expect_err("a lie");
    assert_eq!(
        lost,
        DecompressError::Bad("4294967295 decompressed bytes where 100 are announced".to_owned())
    );
    assert_eq!(session.pid(), None);
}

#[test]
fn one_that_cannot_be_started_is_this_hosts_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (Workers::of(dir.path().join("missing"), LATER).session(), "cannot be started: No such file"),
        (stand_in(&dir, "exit 3", LATER), "exit status: 3"),
    ];
    for (session, says) in cases {
        let lost = session.decompress(b"stored", 100).expect_err("there is none");
        let DecompressError::Local(why) = &lost else { panic!("not the peer's fault: {lost:?}") };
        assert!(why.contains(says), "{why}");
    }
    let session = stand_in(&dir, r"printf '\1\0\0\0\2no' >&0; exec sleep 1000", LATER);
    let Err(DecompressError::Local(why)) = session.decompress(b"stored", 100) else { panic!("it refused") };
    assert!(why.ends_with("cannot be confined: no"), "{why}");
}

/// What it costs: run by hand, `cargo test --release -p blockd --test decompress -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    const BATCHES: usize = 1024;
    let bounds = Bounds { from: 0, to: 16, size: 16 * CLUSTER_BYTES, candidates: 0 };
    let (data, _) = data();
    let mut packer = Packer::new(true);
    for (cluster, bytes) in (0..).zip(data.chunks(65_536)) {
        let cluster = ClusterIndex(cluster);
        packer.data(cluster, 0, bytes, run_hash(cluster, 0, bytes));
    }
    let batch = packer.finish();
    println!("{BATCHES} batches of {} bytes, {} compressed", data.len(), batch.len());
    let (session, pid) = running();
    // Not from one thread: so many batches of a session are under way in a daemon.
    for threads in [1, 2, 4] {
        let run = |decompress: &dyn Decompress| {
            let (begun, left) = (Instant::now(), AtomicUsize::new(BATCHES));
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                            decode(&batch, &bounds, decompress).unwrap();
                        }
                    });
                }
            });
            begun.elapsed().as_secs_f64()
        };
        for _ in 0..3 {
            let (here, there) = (run(&InProcess), run(&session));
            println!(
                "{threads} threads: in process {here:.3} s, worker {there:.3} s, {:.2} times",
                there / here
            );
        }
    }
    for line in
        file(pid, "status").lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("Rss"))
    {
        println!("{line}");
    }
}
