//! A QEMU that agrees on extended headers (8.2 and later), where one can be had: Debian's backport, unpacked beside the
//! machine's own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use fixtures::guest::{OtherQemu, default_cache};

use crate::server::{Place, Server};
use crate::tools::tool;

const MIB: u64 = 1 << 20;

/// The other QEMU, if it is new enough; if not, why is told.
fn newer(test: &str) -> Option<PathBuf> {
    let other = match OtherQemu::fetch(&default_cache()) {
        Ok(other) => other,
        Err(error) => {
            eprintln!("SKIPPED {test}: no second QEMU: {error:#}");
            return None;
        }
    };
    let number = other.version.split_whitespace().nth(3).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let new_enough = (parts.next(), parts.next()) >= (Some(8), Some(2));
    if !new_enough {
        eprintln!("SKIPPED {test}: {} has no extended headers", other.version);
    }
    new_enough.then_some(other.program)
}

/// Opens the disk in a QEMU without a machine, and has it do these commands of `qemu-io`; what it said. One that hangs is
/// ended after a while.
fn qemu_io(qemu: &Path, server: &Server, commands: &[&str]) -> String {
    let socket = server.socket().display();
    let disk = format!("driver=nbd,node-name=d,discard=unmap,server.type=unix,server.path={socket}");
    let mut command = tool("timeout");
    command.arg("60").arg(qemu).args(["-machine", "none", "-nodefaults", "-display", "none"]);
    command.args(["-monitor", "stdio", "-blockdev"]).arg(disk);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut words = child.stdin.take().unwrap();
    for command in commands {
        writeln!(words, "qemu-io d \"{command}\"").unwrap();
    }
    writeln!(words, "quit").unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}");
    said
}

/// How the server says that a client came in.
fn entered(server: &Server, form: &str) -> bool {
    server.log().lines().any(|line| line.contains("client enters transmission") && line.contains(form))
}

#[test]
fn a_newer_qemu_agrees_on_extended_headers() {
    let Some(qemu) = newer("a_newer_qemu_agrees_on_extended_headers") else { return };
    let place = Place::new();
    place.islands("disk.img", 6 << 30, &[2 * MIB, 5 << 30]);
    let commands = [
        "write -P 7 8M 64k",
        "read -P 7 8M 64k",
        "write -z 8M 32k",
        "read -P 0 8M 32k",
        "discard 0 1G",
        "flush",
        "read -P 0 0 16M",
        "write -P 9 5G 1M",
        // Asks for block status.
        "map",
    ];
    for (arguments, form) in [
        (&[][..], "replies=Extended contexts=1"),
        (&["--no-eh"], "replies=Structured contexts=1"),
        (&["--no-meta"], "replies=Extended contexts=0"),
        (&["--no-sr"], "replies=Simple contexts=0"),
    ] {
        let server = place.serve(&[&["disk.img", "--log", "debug"], arguments].concat());
        let said = qemu_io(&qemu, &server, &commands);
        assert!(entered(&server, form), "{form}: {}", server.log());
        assert!(!said.contains("failed") && !said.contains("error"), "{form}: {said}");
        assert!(said.contains("read 16777216/16777216 bytes"), "{form}: {said}");
        server.stop();
    }
}
