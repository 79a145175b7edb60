//! nbdcopy: many requests in flight over several connections, there and back.

use std::fs;
use std::process::Command;

use crate::server::{CACHES, Place};
use crate::tools::{assert_same_content, run, tool};

const MIB: u64 = 1 << 20;

/// nbdcopy with four connections and 64 requests in flight on each.
fn nbdcopy() -> Command {
    let mut command = tool("nbdcopy");
    command.args(["--connections=4", "--requests=64"]);
    command
}

#[test]
fn a_file_comes_back_as_it_went() {
    for cache in CACHES {
        let place = Place::new();
        let (source, image) = (place.noisy("source", 48 << 20), place.sparse("disk.img", 48 * MIB));
        let server = place.serve(&["disk.img", "--cache", cache]);
        run(nbdcopy().arg("--flush").arg(&source).arg(server.uri()));
        let back = place.path("back");
        run(nbdcopy().arg(server.uri()).arg(&back));
        assert_same_content(&source, &back);
        server.stop();
        assert_same_content(&source, &image);
    }
}

#[test]
fn requests_of_an_odd_size_cover_an_odd_disk() {
    let place = Place::new();
    let bytes = 3_333_333;
    let (source, image) = (place.noisy("source", bytes), place.sparse("disk.img", bytes as u64));
    let server = place.serve(&["disk.img"]);
    run(nbdcopy().arg("--request-size=65536").arg("--flush").arg(&source).arg(server.uri()));
    let back = place.path("back");
    run(nbdcopy().arg(server.uri()).arg(&back));
    assert_same_content(&source, &back);
    server.stop();
    assert_same_content(&source, &image);
}

#[test]
fn holes_replace_what_memory_held_before() {
    let place = Place::new();
    let (before, source) = (place.noisy("before", 32 << 20), place.path("source"));
    place.islands("source", 32 * MIB, &[0, 9 * MIB + 4096, 31 * MIB]);
    let server = place.serve(&["--memory", "32M"]);
    let back = place.path("back");
    for file in [&before, &source] {
        run(nbdcopy().arg(file).arg(server.uri()));
        run(nbdcopy().arg(server.uri()).arg(&back));
        assert_same_content(file, &back);
        fs::remove_file(&back).unwrap();
    }
}

#[test]
fn never_written_memory_is_zeroes() {
    let place = Place::new();
    let zeroes = place.sparse("zeroes", 16 * MIB);
    let server = place.serve(&["--memory", "16M"]);
    let back = place.path("back");
    run(nbdcopy().arg(server.uri()).arg(&back));
    assert_same_content(&zeroes, &back);
}

#[test]
fn one_export_is_copied_to_another_of_the_same_server() {
    let place = Place::new();
    let (left, right) = (place.noisy("left.img", 16 << 20), place.sparse("right.img", 16 * MIB));
    let server = place.serve(&["left=left.img", "right=right.img", "--threads", "2"]);
    run(nbdcopy().arg("--flush").arg(server.export_uri("left")).arg(server.export_uri("right")));
    server.stop();
    assert_same_content(&left, &right);
}
