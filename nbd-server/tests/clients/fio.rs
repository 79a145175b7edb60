//! fio: random writes from several jobs, each byte verified by checksum afterwards.

use crate::server::{CACHES, Place};
use crate::tools::{run, run_failing, tool};

/// Four jobs, each with a connection and a quarter of the disk of its own.
const JOBS: [&str; 10] = [
    "--name=verify",
    "--ioengine=nbd",
    "--numjobs=4",
    "--size=16m",
    "--offset_increment=16m",
    "--iodepth=16",
    "--verify=crc32c",
    "--verify_fatal=1",
    // Else fio leaves its state in files, where it happens to run.
    "--verify_state_save=0",
    "--group_reporting",
];

/// fio never reconnects and spins when its server dies, so it runs on a leash.
fn fio(arguments: &[&str], uri: &str) -> std::process::Command {
    tool("fio");
    let mut command = tool("timeout");
    command.args(["60", "fio"]).args(JOBS).args(arguments).arg(format!("--uri={uri}"));
    command
}

#[test]
fn what_four_jobs_write_at_random_verifies() {
    for cache in CACHES {
        let place = Place::new();
        place.sparse("disk.img", 64 << 20);
        let server = place.serve(&["disk.img", "--cache", cache]);
        run(&mut fio(&["--rw=randwrite", "--bs=16k", "--fsync=64"], &server.uri()));
        run(&mut fio(&["--rw=randwrite", "--bs=16k", "--verify_only=1"], &server.uri()));
        server.stop();
    }
}

#[test]
fn what_mixed_jobs_write_and_trim_verifies() {
    let place = Place::new();
    place.sparse("disk.img", 64 << 20);
    let server = place.serve(&["disk.img"]);
    run(&mut fio(
        &["--rw=randrw", "--bsrange=512-64k", "--bs_unaligned=1", "--norandommap=0"],
        &server.uri(),
    ));
    server.stop();
}

#[test]
fn a_changed_byte_does_not_verify() {
    let place = Place::new();
    let image = place.sparse("disk.img", 64 << 20);
    let server = place.serve(&["disk.img"]);
    run(&mut fio(&["--rw=write", "--bs=64k"], &server.uri()));
    server.stop();
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 20 << 20).unwrap();
    let server = place.serve(&["disk.img"]);
    run_failing(&mut fio(&["--rw=write", "--bs=64k", "--verify_only=1"], &server.uri()));
}
