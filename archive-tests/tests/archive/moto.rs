//! The same with another server, written by others: moto, if `moto_server` is in the PATH (`pip install moto[server]`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use fixtures::process::{ChildGuard, ProcessError, command, find_program, wait_until};

use crate::host::{Host, Target};

#[test]
fn moto_takes_and_gives_snapshots() {
    if find_program("moto_server").is_none() {
        eprintln!("SKIPPED: no moto_server in the PATH; `pip install 'moto[server]'` brings it");
        return;
    }
    let host = Host::start();
    let log = host.path("moto.log");
    let mut moto = command("moto_server");
    moto.args(["-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let _moto = ChildGuard::spawn(&mut moto).unwrap();
    let address = wait_until("moto's address", Duration::from_secs(60), || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let address = said.split_once("http://").and_then(|(_, rest)| rest.lines().next().map(str::to_owned));
        Ok::<_, ProcessError>(address)
    });
    let address = address.unwrap();
    let mut stream = TcpStream::connect(&address).unwrap();
    let request =
        format!("PUT /vms HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let target = Target {
        url: "s3://vms/prod".to_owned(),
        endpoint: format!("http://{address}"),
        key: host.path("key"),
    };
    host.ok(&target, "archive init");
    host.not_ok(&target, "archive init", 5);
    host.ok(&target, "volume create web --size 64M");
    host.fill("web", &[(0, 20 << 20, 1)]);
    host.ok(&target, "snapshot create web@a");
    host.push(&target, "web@a");
    host.fill("web", &[(30 << 20, 100_000, 2)]);
    host.ok(&target, "snapshot create web@b");
    assert_eq!(host.push(&target, "web@b")["read_bytes"], 2 * 65_536);
    host.ok(&target, "archive verify --read-data");
    host.ok(&target, "archive pull web@b neu");
    assert_eq!(host.hash(&target, "neu@b"), host.hash(&target, "web@b"));
}
