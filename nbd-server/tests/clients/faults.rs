//! Negative control: with a proxy in between that makes errors, the very commands that our tests trust must
//! fail. A copy tool that ignored errors would let every other test here pass (CVE-2022-0485 was one).

use std::path::PathBuf;

use fixtures::process::{self, ChildGuard};

use crate::server::{Place, Server};
use crate::tools::{assert_same_content, run, run_failing, tool};

/// nbdkit between a client and our server.
struct Proxy {
    _nbdkit: ChildGuard,
    socket: PathBuf,
}

impl Proxy {
    fn start(place: &Place, server: &Server, fault: &str) -> Self {
        let socket = server.socket().with_file_name(fault);
        let mut command = tool("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--filter=error", "--unix"]).arg(&socket);
        command.arg("nbd").arg(format!("uri={}", server.uri()));
        command.args(["error=EIO", &format!("error-{fault}-rate=100%")]);
        let mut nbdkit = ChildGuard::spawn(&mut command).unwrap();
        let connected = process::wait_for_socket(&socket, &mut nbdkit, std::time::Duration::from_secs(10));
        drop(connected.unwrap_or_else(|error| panic!("{}: {error}", place.path("").display())));
        Self { _nbdkit: nbdkit, socket }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

#[test]
fn errors_on_the_way_make_the_copying_programs_fail() {
    let place = Place::new();
    let source = place.noisy("source", 4 << 20);
    place.sparse("disk.img", 4 << 20);
    let server = place.serve(&["disk.img"]);
    let back = place.path("back");
    let proxies = ["cache", "pread", "pwrite"].map(|fault| Proxy::start(&place, &server, fault));
    // None of them prefetches, so the first proxy proves that a proxy as such does no harm.
    let [harmless, reads, writes] = proxies.each_ref().map(Proxy::uri);

    run(tool("nbdcopy").arg("--flush").arg(&source).arg(&harmless));
    run(tool("nbdcopy").arg(&harmless).arg(&back));
    assert_same_content(&source, &back);
    run_failing(tool("nbdcopy").arg(&source).arg(&writes));
    run_failing(tool("nbdcopy").arg(&reads).arg(&back));

    let convert = || {
        let mut command = tool("qemu-img");
        command.args(["convert", "-n", "-f", "raw", "-O", "raw"]);
        command
    };
    run(convert().arg(&source).arg(&harmless));
    run_failing(convert().arg(&source).arg(&writes));
    run_failing(convert().arg(&reads).arg(&back));
    run_failing(tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(&reads));
}
