//! Row N9: names are keys. They are never paths, and never come back.

use fixtures::nbd::client::{info, info_data, option, option_message, reply_type};
use nbd_server::server::{Server, ServerConfig, StartError};

use crate::exports::memory;
use crate::harness::TestServer;

fn hostile_names(server: &TestServer) -> Vec<Vec<u8>> {
    let path = server.dir().join("disk.img");
    let mut names: Vec<Vec<u8>> = [
        &b"../disk.img"[..],
        b"./disk",
        b"/",
        b"/etc/passwd",
        b"../../../../etc/passwd",
        b"disk\0",
        b"\0",
        b"disk\n",
        b"disk\r\nINFO forged line",
        b"%s%s%s%n",
        b"%00",
        b"${HOME}",
        b"\xff\xfe\xfd",
        b"disk\xc0\xaf",
        "\u{202e}ksid".as_bytes(),
        b"\x1b[31mred",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    names.push(path.to_string_lossy().into_owned().into_bytes());
    names.push(vec![b'x'; 4096]);
    names
}

fn contains(text: &[u8], name: &[u8]) -> bool {
    name.len() > 1 && text.windows(name.len()).any(|window| window == name)
}

#[test]
fn n9_hostile_names_are_unknown() {
    let server = TestServer::disk(ServerConfig::default());
    for name in hostile_names(&server) {
        let shown = String::from_utf8_lossy(&name).into_owned();
        let mut client = server.negotiation();
        for number in [option::INFO, option::GO] {
            let reply = client.ask_one(number, &info_data(&name, &[info::NAME])).unwrap();
            assert_eq!(reply.kind, reply_type::ERR_UNKNOWN, "{shown:?}");
            assert!(reply.data.len() <= 4096 && !contains(&reply.data, &name), "{shown:?} came back");
        }
        client.wire().send(&option_message(option::EXPORT_NAME, &name)).unwrap();
        assert!(client.wire().receive_to_end().unwrap().is_empty(), "{shown:?}");
    }
    server.assert_healthy();
}

#[test]
fn n9_a_name_beyond_the_protocols_limit_is_too_big() {
    let server = TestServer::disk(ServerConfig::default());
    for bytes in [4097, 5000, 60_000] {
        let mut client = server.negotiation();
        let name = vec![b'x'; bytes];
        for number in [option::INFO, option::GO] {
            let reply = client.ask_one(number, &info_data(&name, &[])).unwrap();
            assert_eq!(reply.kind, reply_type::ERR_TOO_BIG);
            assert!(!contains(&reply.data, &name[..8]), "the name came back");
        }
        assert!(client.go(b"disk").is_ok(), "in step behind {bytes} bytes");
        let mut client = server.negotiation();
        client.wire().send(&option_message(option::EXPORT_NAME, &name)).unwrap();
        server.assert_closes(client.wire());
    }
}

#[test]
fn n9_the_longest_name_works_everywhere() {
    let name = "n".repeat(4096);
    let server = TestServer::of(vec![memory("other", 1 << 20), memory(&name, 2 << 20)]);
    let mut client = server.negotiation();
    let listed = client.ask(option::LIST, &[]).unwrap();
    assert_eq!(listed[1].data[4..], *name.as_bytes());
    let told = client.ask(option::INFO, &info_data(name.as_bytes(), &[info::NAME])).unwrap();
    assert_eq!(told[1].data[2..], *name.as_bytes());
    assert_eq!(client.go(name.as_bytes()).unwrap().size(), 2 << 20);
    assert_eq!(server.negotiation().export_name(name.as_bytes(), false).unwrap().size(), 2 << 20);
}

#[test]
fn n9_names_that_cannot_be_told_are_not_served() {
    for name in ["", "a\0b", &"n".repeat(4097)] {
        let started = Server::start(vec![memory(name, 1 << 20)], ServerConfig::default());
        assert!(matches!(started, Err(StartError::BadName)), "{} bytes", name.len());
    }
    let twins = vec![memory("twin", 1 << 20), memory("twin", 1 << 20)];
    let started = Server::start(twins, ServerConfig::default());
    assert!(matches!(started, Err(StartError::DuplicateName(name)) if name == "twin"));
}

#[test]
fn strange_names_are_served_as_they_are() {
    let names = ["../up", "%s", "a b", "line\nbreak", "ümläut", "/"];
    let server = TestServer::of(names.iter().map(|name| memory(name, 1 << 20)).collect());
    for name in names {
        assert!(server.client_of(name).read(0, 512).is_ok(), "{name:?}");
    }
}
