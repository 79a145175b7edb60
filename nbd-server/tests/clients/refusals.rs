//! What the server refuses to start with: exit codes and the three lines for people.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::server::Place;
use crate::tools::{run, tool};

/// The exit code, the three lines, and `word` somewhere in them.
fn assert_refused(place: &Place, arguments: &[&str], code: i32, word: &str) {
    let (found, said) = place.refused(arguments);
    assert_eq!(found, code, "{arguments:?}: {said}");
    let lines: Vec<&str> = said.lines().collect();
    let shape = lines.len() == 3
        && lines[0].starts_with("error: ")
        && lines[1].starts_with("why:   ")
        && lines[2].starts_with("next:  ");
    assert!(shape, "three lines, not {said}");
    assert!(said.contains(word), "{word} is not in {said}");
}

fn path(place: &Place, name: &str) -> String {
    place.path(name).to_str().unwrap().to_owned()
}

#[test]
fn an_image_in_use_is_not_served_twice() {
    let place = Place::new();
    let image = place.noisy("disk.img", 1 << 20);
    let server = place.serve(&["disk.img"]);
    let other = path(&place, "other.sock");
    for more in [&[][..], &["--read-only"], &["--cache", "direct"]] {
        assert_refused(&place, &[&["disk.img", "--unix", &other], more].concat(), 4, "in use");
    }
    run(tool("nbdinfo").args(["--size", &server.uri()]));
    server.stop();
    assert_eq!(fs::metadata(image).unwrap().len(), 1 << 20);
}

#[test]
fn readers_share_an_image_and_keep_writers_out() {
    let place = Place::new();
    place.noisy("disk.img", 1 << 20);
    let server = place.serve(&["disk.img", "--read-only"]);
    let second = Place::new();
    let image = path(&place, "disk.img");
    let reader = second.serve(&[&image, "--read-only"]);
    let other = path(&place, "other.sock");
    assert_refused(&place, &["disk.img", "--unix", &other], 4, "in use");
    reader.stop();
    server.stop();
    place.serve(&["disk.img"]).stop();
}

#[test]
fn a_missing_file_is_named() {
    let place = Place::new();
    let socket = path(&place, "s");
    assert_refused(&place, &["no.img", "--unix", &socket], 3, "no.img");
    assert!(!place.path("no.img").exists(), "nothing was made");
    assert!(!place.path("s").exists(), "no socket was made");
}

#[test]
fn a_directory_is_no_disk() {
    let place = Place::new();
    fs::create_dir(place.path("dir")).unwrap();
    for more in [&[][..], &["--read-only"], &["--cache", "direct"]] {
        assert_refused(&place, &[&["dir"], more].concat(), 2, "dir");
    }
}

#[test]
fn a_directory_is_no_disk_for_direct_io_either() {
    let place = Place::new();
    fs::create_dir(place.path("dir")).unwrap();
    assert_refused(&place, &["dir", "--cache", "direct", "--read-only"], 2, "neither a file nor");
}

#[test]
fn a_character_device_is_no_disk() {
    let place = Place::new();
    for device in ["/dev/null", "/dev/zero"] {
        assert_refused(&place, &[device], 2, device);
    }
}

#[test]
fn a_socket_with_a_live_server_is_left_alone() {
    let place = Place::new();
    place.noisy("disk.img", 1 << 20);
    place.noisy("other.img", 1 << 20);
    let server = place.serve(&["disk.img"]);
    let socket = server.socket().to_str().unwrap().to_owned();
    assert_refused(&place, &["other.img", "--unix", &socket], 4, "listens");
    run(tool("nbdinfo").args(["--size", &server.uri()]));
}

#[test]
fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let place = Place::new();
    place.noisy("disk.img", 1 << 20);
    drop(UnixListener::bind(place.socket()).unwrap());
    assert!(place.socket().exists());
    let server = place.serve(&["disk.img"]);
    run(tool("nbdinfo").args(["--size", &server.uri()]));
    server.stop();

    fs::write(place.socket(), "precious").unwrap();
    let socket = place.socket().to_str().unwrap().to_owned();
    assert_refused(&place, &["disk.img", "--unix", &socket], 4, &socket);
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "precious");
}

#[test]
fn a_port_in_use_is_named() {
    let place = Place::new();
    place.noisy("disk.img", 1 << 20);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    assert_refused(&place, &["disk.img", "--listen", &address], 4, &address);
}

#[test]
fn an_address_that_others_reach_must_be_asked_for() {
    let place = Place::new();
    place.noisy("disk.img", 1 << 20);
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809"] {
        assert_refused(&place, &["disk.img", "--listen", address], 5, "--insecure-tcp");
    }
    let server = place.serve(&["disk.img", "--listen", "0.0.0.0:0", "--insecure-tcp"]);
    run(tool("nbdinfo").args(["--size", &server.uri()]));
    server.stop();
}

#[test]
fn direct_io_to_an_odd_size_names_the_size_to_truncate_to() {
    let place = Place::new();
    place.sparse("disk.img", 1_000_001);
    assert_refused(&place, &["disk.img", "--cache", "direct"], 1, "truncate -s 100");
    place.serve(&["disk.img"]).stop();
}

#[test]
fn two_exports_of_one_name_are_a_usage_error() {
    let place = Place::new();
    place.sparse("a.img", 4096);
    place.sparse("b.img", 4096);
    let socket = path(&place, "s");
    assert_refused(&place, &["x=a.img", "x=b.img", "--unix", &socket], 2, "x");
}

#[test]
fn no_image_at_all_is_a_usage_error() {
    let (code, said) = Place::new().refused(&[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--help"), "{said}");
}

#[test]
fn only_the_owner_may_connect() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.sparse("disk.img", 4096);
    let server = place.serve(&["disk.img"]);
    let mode = fs::metadata(server.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.stop();
}
