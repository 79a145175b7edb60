//! Stopping with SIGTERM while clients are connected or busy, and starting again.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use fixtures::process::{ChildGuard, ProcessError, wait_for_file, wait_until};

use crate::server::{CACHES, Place};
use crate::tools::{allocated, noise, python, run, tool};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes, flushes, says so, and stays connected until it is ended.
const FLUSH_AND_STAY: &str = r#"
import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(open(sys.argv[2], "rb").read(), 12345)
h.flush()
open(sys.argv[3], "w").close()
time.sleep(600)
"#;

#[test]
fn what_was_flushed_is_there_after_sigterm_with_a_client_connected() {
    for cache in CACHES {
        let place = Place::new();
        let (source, flushed) = (place.noisy("source", 5 << 20), place.path("flushed"));
        let image = place.sparse("disk.img", 8 * MIB);
        let server = place.serve(&["disk.img", "--cache", cache]);
        let mut script = python(FLUSH_AND_STAY);
        let _client = ChildGuard::spawn(script.arg(server.uri()).arg(&source).arg(&flushed)).unwrap();
        wait_for_file(&flushed, PATIENCE).unwrap();
        server.stop();
        let bytes = fs::read(&image).unwrap();
        assert!(bytes[12345..12345 + (5 << 20)] == fs::read(&source).unwrap());
        place.serve(&["disk.img", "--cache", cache]).stop();
    }
}

/// fio writes behind the first MiB until it is ended.
fn fio_without_end(uri: &str) -> ChildGuard {
    tool("fio");
    let mut command = tool("timeout");
    command.args(["60", "fio", "--name=busy", "--ioengine=nbd", "--rw=randwrite", "--bs=32k"]);
    command.args(["--numjobs=2", "--iodepth=32", "--offset=1m", "--size=31m", "--fsync=50"]);
    command.args(["--time_based", "--runtime=600", &format!("--uri={uri}")]);
    ChildGuard::spawn(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap()
}

#[test]
fn sigterm_under_load_ends_the_server_and_keeps_what_was_flushed() {
    for cache in CACHES {
        let place = Place::new();
        let image = place.sparse("disk.img", 32 * MIB);
        let (source, server) = (place.noisy("source", 1 << 20), place.serve(&["disk.img", "--cache", cache]));
        run(tool("qemu-io")
            .args(["-f", "raw", "-c"])
            .arg(format!("write -f -s {} 0 1M", source.display()))
            .arg(server.uri()));
        let mut busy = fio_without_end(&server.uri());
        let writing = || {
            assert!(busy.try_status()?.is_none(), "fio ended");
            Ok::<_, ProcessError>((allocated(&image) > 8 * MIB).then_some(()))
        };
        wait_until("fio's first writes", PATIENCE, writing).unwrap();
        server.stop();
        let mut kept = vec![0; MIB as usize];
        fs::File::open(&image).unwrap().read_exact_at(&mut kept, 0).unwrap();
        assert!(kept == noise(MIB, MIB as usize));
        assert_eq!(fs::metadata(&image).unwrap().len(), 32 * MIB);
    }
}

/// nbdcopy reads from a pipe that we feed: the server stops in the middle of the copy, not before or after.
#[test]
fn sigterm_in_the_middle_of_a_copy_makes_the_copy_fail() {
    let place = Place::new();
    let (source, image) = (noise(1, 16 << 20), place.sparse("disk.img", 16 * MIB));
    let server = place.serve(&["disk.img"]);
    let (input, mut feed) = std::io::pipe().unwrap();
    let mut command = tool("nbdcopy");
    command.args(["--flush", "-", &server.uri()]).stdin(input).stderr(Stdio::null());
    let mut copy = ChildGuard::spawn(&mut command).unwrap();
    // Else our own copy of the pipe's end would keep it open after nbdcopy's end.
    drop(command);
    feed.write_all(&source[..8 << 20]).unwrap();
    let begun = || Ok::<_, ProcessError>((allocated(&image) >= 4 * MIB).then_some(()));
    wait_until("nbdcopy's first writes", PATIENCE, begun).unwrap();
    server.stop();
    match feed.write_all(&source[8 << 20..]) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::BrokenPipe),
        Ok(()) => drop(feed),
    }
    assert!(!copy.wait_for(PATIENCE).unwrap().success(), "nbdcopy was told that all is written");
    assert!(fs::read(&image).unwrap()[..4 << 20] == source[..4 << 20]);
}

#[test]
fn a_killed_server_is_replaced_at_once() {
    let place = Place::new();
    place.noisy("disk.img", 1 << 20);
    for _ in 0..3 {
        let server = place.serve(&["disk.img"]);
        run(tool("nbdinfo").args(["--size", &server.uri()]));
        server.kill();
    }
    assert!(place.socket().exists(), "SIGKILL leaves the socket's file");
    let server = place.serve(&["disk.img"]);
    run(tool("nbdinfo").args(["--size", &server.uri()]));
    server.stop();
}

/// A client in the middle of its handshake holds nothing up.
#[test]
fn sigterm_does_not_wait_for_silent_clients() {
    let place = Place::new();
    place.sparse("disk.img", MIB);
    let server = place.serve(&["disk.img"]);
    let silent = fixtures::process::connect_unix(server.socket()).unwrap();
    let mut half = fixtures::process::connect_unix(server.socket()).unwrap();
    half.write_all(&[0, 0]).unwrap();
    server.stop();
    drop((silent, half));
}

#[test]
fn systemd_is_told_when_clients_are_accepted_and_when_the_end_begins() {
    let place = Place::new();
    place.sparse("disk.img", 1 << 20);
    let socket = place.socket();
    let notices = UnixDatagram::bind(socket.with_file_name("n")).unwrap();
    notices.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = place.command(&["disk.img", "--unix"]);
    command.arg(&socket).env("NOTIFY_SOCKET", socket.with_file_name("n"));
    let mut server = ChildGuard::spawn(&mut command).unwrap();
    let mut said = [0; 64];
    let bytes = notices.recv(&mut said).unwrap();
    assert_eq!(&said[..bytes], b"READY=1\n");
    run(tool("nbdinfo").arg("--size").arg(format!("nbd+unix:///?socket={}", socket.display())));
    assert_eq!(server.terminate(PATIENCE).unwrap().code(), Some(0));
    let bytes = notices.recv(&mut said).unwrap();
    assert_eq!(&said[..bytes], b"STOPPING=1\n");
}
