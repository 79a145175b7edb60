//! The crate `nbd` 0.3.1: a blocking client of the old days. `EXPORT_NAME` with its 124 zero bytes, no
//! structured replies, one request at a time.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use nbd::Export;
use nbd::client::{NbdClient, NbdExt, handshake};

use crate::server::{Place, Server};
use crate::tools::noise;

const MIB: usize = 1 << 20;

fn connect(server: &Server, name: &str) -> std::io::Result<(NbdClient<UnixStream>, Export)> {
    let mut stream = UnixStream::connect(server.socket())?;
    let export = handshake(&mut stream, name.as_bytes())?;
    Ok((NbdClient::new(stream, &export), export))
}

#[test]
fn the_handshake_tells_size_and_flags() {
    let place = Place::new();
    place.sparse("disk.img", 5_000_001);
    let server = place.serve(&["one=disk.img"]);
    for name in ["one", ""] {
        let (_, export) = connect(&server, name).unwrap();
        assert_eq!(export.size, 5_000_001);
        assert!(export.send_flush && export.send_trim);
        assert!(!export.readonly && !export.rotational && !export.resizeable);
    }
    assert!(connect(&server, "two").is_err(), "EXPORT_NAME can only be answered by closing");
}

#[test]
fn what_it_writes_is_in_the_file_and_what_it_trims_is_zeroes() {
    let place = Place::new();
    let image = place.sparse("disk.img", 4 * MIB as u64);
    let server = place.serve(&["one=disk.img"]);
    let (mut client, _) = connect(&server, "one").unwrap();
    let mut expected = vec![0; 4 * MIB];
    for (seed, offset, length) in [(1, 0, MIB), (2, 1_500_001, 70_001), (3, 4 * MIB - 4096, 4096)] {
        let data = noise(seed, length);
        client.seek(SeekFrom::Start(offset as u64)).unwrap();
        client.write_all(&data).unwrap();
        expected[offset..offset + length].copy_from_slice(&data);
    }
    client.seek(SeekFrom::Start(8192)).unwrap();
    client.trim(100_001).unwrap();
    expected[8192..8192 + 100_001].fill(0);
    client.flush().unwrap();
    client.seek(SeekFrom::Start(0)).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(back == expected, "read back");
    server.stop();
    assert!(fs::read(image).unwrap() == expected, "in the file");
}

#[test]
fn an_unknown_command_is_an_error_and_not_the_end() {
    let place = Place::new();
    place.noisy("disk.img", MIB);
    let server = place.serve(&["disk.img"]);
    let (mut client, _) = connect(&server, "").unwrap();
    let error = client.resize(1).unwrap_err();
    assert_eq!(error.to_string(), "EINVAL");
    client.seek(SeekFrom::Start(1)).unwrap();
    let mut back = [0; 1000];
    client.read_exact(&mut back).unwrap();
    assert_eq!(back[..], noise(MIB as u64, MIB)[1..1001]);
}

#[test]
fn a_read_only_export_refuses_its_writes() {
    let place = Place::new();
    let image = place.noisy("disk.img", MIB);
    let server = place.serve(&["disk.img", "--read-only"]);
    let (mut client, export) = connect(&server, "").unwrap();
    assert!(export.readonly);
    let error = client.write_all(&[1; 512]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let mut back = [0; 512];
    client.read_exact(&mut back).unwrap();
    assert_eq!(back[..], noise(MIB as u64, MIB)[..512]);
    server.stop();
    assert!(fs::read(image).unwrap() == noise(MIB as u64, MIB));
}
