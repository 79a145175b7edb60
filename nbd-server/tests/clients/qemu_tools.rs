//! qemu-img and qemu-io: conversions, and patterns at every kind of offset.

use std::process::Command;

use crate::server::{CACHES, Place, Server};
use crate::tools::{assert_same_content, run, run_failing, tool};

const MIB: u64 = 1 << 20;

fn qemu_img(arguments: &[&str]) -> Command {
    let mut command = tool("qemu-img");
    command.args(arguments);
    command
}

/// Runs the commands on one connection; a pattern that differs makes qemu-io fail.
fn qemu_io(server: &Server, commands: &[&str]) {
    let mut command = tool("qemu-io");
    command.args(["-f", "raw"]);
    for word in commands {
        command.args(["-c", word]);
    }
    let said = run(command.arg(server.uri())).stdout;
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn an_image_is_converted_compared_and_brought_back_through_qcow2() {
    for cache in CACHES {
        let place = Place::new();
        let source = place.islands("source", 48 * MIB, &[0, 5 * MIB + 65536, 20 * MIB, 47 * MIB]);
        let image = place.noisy("disk.img", 48 << 20);
        let server = place.serve(&["disk.img", "--cache", cache]);
        let raw = ["-f", "raw", "-O", "raw"];
        run(qemu_img(&["convert", "-n", "-W", "-m", "8"]).args(raw).arg(&source).arg(server.uri()));
        run(qemu_img(&["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(server.uri()));
        let qcow2 = place.path("back.qcow2");
        run(qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &server.uri()]).arg(&qcow2));
        run(qemu_img(&["compare", "-f", "qcow2", "-F", "raw"]).arg(&qcow2).arg(server.uri()));
        let noise = place.noisy("noise", 48 << 20);
        run(qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw"]).arg(noise).arg(server.uri()));
        run(qemu_img(&["convert", "-n", "-f", "qcow2", "-O", "raw"]).arg(&qcow2).arg(server.uri()));
        server.stop();
        assert_same_content(&source, &image);
    }
}

#[test]
fn info_shows_the_size() {
    let place = Place::new();
    place.sparse("disk.img", 7 * MIB);
    let server = place.serve(&["disk.img"]);
    let said = run(qemu_img(&["info", "--output=json", "-f", "raw"]).arg(server.uri())).stdout;
    assert!(said.contains(r#""virtual-size": 7340032"#), "{said}");
}

#[test]
fn compare_notices_one_changed_byte() {
    let place = Place::new();
    let source = place.noisy("source", 1 << 20);
    std::fs::copy(&source, place.path("disk.img")).unwrap();
    let server = place.serve(&["disk.img"]);
    let compare = || qemu_img(&["compare", "-f", "raw", "-F", "raw"]);
    run(compare().arg(&source).arg(server.uri()));
    let byte = crate::tools::noise(1 << 20, 1 << 20)[777_777] ^ 1;
    qemu_io(&server, &[&format!("write -P {byte} 777777 1"), "flush"]);
    run_failing(compare().arg(&source).arg(server.uri()));
}

/// Writes of every kind, each verified at once, all again on a new connection.
#[test]
fn patterns_are_read_back() {
    for cache in CACHES {
        let place = Place::new();
        place.noisy("disk.img", 16 << 20);
        let server = place.serve(&["disk.img", "--cache", cache]);
        qemu_io(
            &server,
            &[
                "write -P 0xa1 0 64k",
                "write -f -P 0xa2 64k 64k",
                "write -z 128k 64k",
                "write -z -u 192k 64k",
                "write -f -z 256k 4k",
                "discard 1M 1M",
                "flush",
                "read -P 0xa1 0 64k",
                "read -P 0xa2 64k 64k",
                "read -P 0 128k 128k",
                "read -P 0 256k 4k",
                "read -P 0 1M 1M",
            ],
        );
        qemu_io(&server, &["read -P 0xa1 0 64k", "read -P 0xa2 64k 64k", "read -P 0 128k 132k"]);
        qemu_io(&server, &["write -P 0xee 12M 4M", "write -f -P 0xef 12M 4M", "read -P 0xef 12M 4M"]);
        server.stop();
    }
}

/// Neighbours of unaligned writes, zeroes and discards keep their bytes.
#[test]
fn unaligned_ranges_leave_their_neighbours_alone() {
    for cache in CACHES {
        let place = Place::new();
        place.sparse("disk.img", 4 * MIB);
        let server = place.serve(&["disk.img", "--cache", cache]);
        qemu_io(
            &server,
            &[
                "write -P 0x11 0 1M",
                "write -P 0x22 1 1",
                "write -P 0x33 4095 2",
                "write -f -P 0x44 12289 10000",
                "write -z 50001 20000",
                "write -z -u 100003 7",
                "discard 150001 30000",
                "flush",
                "read -P 0x11 0 1",
                "read -P 0x22 1 1",
                "read -P 0x11 2 4093",
                "read -P 0x33 4095 2",
                "read -P 0x11 4097 8192",
                "read -P 0x44 12289 10000",
                "read -P 0x11 22289 27712",
                "read -P 0 50001 20000",
                "read -P 0x11 70001 30002",
                "read -P 0 100003 7",
                "read -P 0x11 100010 49991",
                "read -P 0 150001 30000",
                "read -P 0x11 180001 868575",
                "read -P 0 1M 3M",
            ],
        );
        server.stop();
    }
}

/// Requests that overlap nothing but share blocks, sixteen in flight: direct I/O must order them.
#[test]
fn neighbours_in_one_block_do_not_undo_each_other() {
    for cache in CACHES {
        let place = Place::new();
        place.sparse("disk.img", MIB);
        let server = place.serve(&["disk.img", "--cache", cache]);
        let piece = |number: u64| (1 + number % 255, 3 + number * 700);
        let write = |n| {
            let (pattern, at) = piece(n);
            format!("aio_write -P {pattern} {at} 700")
        };
        let read = |n| {
            let (pattern, at) = piece(n);
            format!("read -P {pattern} {at} 700")
        };
        let mut commands: Vec<String> = (0..200).map(write).collect();
        commands.push("aio_flush".into());
        commands.extend((0..200).map(read));
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        qemu_io(&server, &commands);
    }
}

#[test]
fn a_write_to_a_read_only_export_fails() {
    let place = Place::new();
    let image = place.noisy("disk.img", 1 << 20);
    let server = place.serve(&["disk.img", "--read-only"]);
    run_failing(tool("qemu-io").args(["-f", "raw", "-c", "write -P 1 0 4k"]).arg(server.uri()));
    run(tool("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 1M"]).arg(server.uri()));
    server.stop();
    assert_same_content(&image, &place.noisy("same", 1 << 20));
}
