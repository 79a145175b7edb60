//! NBD over TCP: certificates of `blockctl client create` in the hands of real clients, who sees what, and what becomes
//! of those that lose their rights.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fixtures::nbd::certificates::{Authority, Wanted};
use fixtures::nbd::client::{Client, ClientError, Negotiation, Wire, info_data, option, reply_type};
use fixtures::nbd::tls::{client_from, client_of};
use fixtures::process::{self, ProcessError};

use crate::hosts::json;
use crate::place::Place;
use crate::tools::{noise, run, tool};

/// How a daemon of these tests is called by its clients.
const NAME: &str = "localhost";

/// A daemon's directory with NBD over TCP, and its port.
fn place(name: &str) -> (Place, String) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut place = Place::new();
    place.arguments.extend(["--name", name, "--nbd-listen", &free].map(str::to_owned));
    (place, free)
}

/// Adds keys that are only in a file.
fn configure(place: &mut Place, text: &str) {
    let file = place.path("blockd.toml");
    fs::write(&file, text).unwrap();
    place.arguments.extend(["--config".to_owned(), file.display().to_string()]);
}

/// Certificate and key of a new client.
fn client(place: &Place, name: &str) -> PathBuf {
    let dir = place.path(&format!("{name}-pki"));
    place.ok(&format!("client create {name} --out {}", dir.display()));
    dir
}

fn secured(address: &str, dir: &Path) -> Result<Negotiation, ClientError> {
    let mut clear = Negotiation::begin(Wire::tcp(address.parse().unwrap())?)?;
    assert_eq!(clear.ask_one(option::LIST, &[])?.kind, reply_type::ERR_TLS_REQD);
    clear.start_tls(client_from(dir), NAME)
}

fn opened(address: &str, dir: &Path, export: &str) -> Result<Client, ClientError> {
    secured(address, dir)?.go(export.as_bytes())
}

fn listed(address: &str, dir: &Path) -> Vec<String> {
    let replies = secured(address, dir).unwrap().ask(option::LIST, &[]).unwrap();
    let names = replies.iter().filter(|reply| reply.kind == reply_type::SERVER);
    names.map(|reply| String::from_utf8(reply.data[4..].to_vec()).unwrap()).collect()
}

/// A command that must fail: what it said.
fn failing(command: &mut Command) -> String {
    match process::run(command) {
        Ok(_) => panic!("`{}` succeeded", process::describe(command)),
        Err(ProcessError::Failed { output, .. }) => output,
        Err(error) => panic!("{error}"),
    }
}

fn nbds(address: &str, export: &str, dir: &Path) -> String {
    let port = address.rsplit_once(':').unwrap().1;
    format!("nbds://{NAME}:{port}/{export}?tls-certificates={}", dir.display())
}

fn tls_object(dir: &Path) -> String {
    format!("tls-creds-x509,id=tls0,dir={},endpoint=client", dir.display())
}

fn image(address: &str, export: &str) -> String {
    let port = address.rsplit_once(':').unwrap().1;
    format!(
        "driver=nbd,server.type=inet,server.host={NAME},server.port={port},export={export},tls-creds=tls0"
    )
}

#[test]
fn real_clients_come_in_with_what_client_create_makes() {
    let (place, address) = place("A");
    let daemon = place.serve();
    place.ok("volume create web --size 64M");
    let dir = client(&place, "web1");
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("client-key.pem"), fs::metadata(&dir).unwrap().permissions().mode() & 0o777),
        (0o600, 0o700)
    );

    let info = run(tool("nbdinfo").args(["--json", &nbds(&address, "web", &dir)])).stdout;
    assert!(info.contains("\"TLS\": true") && info.contains("\"export-size\": 67108864"), "{info}");
    let source = place.path("source");
    fs::write(&source, noise(1, 64 << 20)).unwrap();
    run(tool("nbdcopy").arg("--connections=4").arg(&source).arg(nbds(&address, "web", &dir)));
    let back = place.path("back");
    run(tool("nbdcopy").arg(nbds(&address, "web", &dir)).arg(&back));
    assert!(fs::read(&back).unwrap() == fs::read(&source).unwrap(), "nbdcopy brings other bytes back");

    let mut compare = tool("qemu-img");
    compare.args(["compare", "--object", &tls_object(&dir), "--image-opts"]);
    let local = format!("driver=raw,file.filename={}", source.display());
    run(compare.arg(&local).arg(image(&address, "web")));
    let mut io = tool("qemu-io");
    io.args(["--object", &tls_object(&dir), "--image-opts", &image(&address, "web")]);
    run(io.args(["-c", "write -P 7 -f 1M 3M", "-c", "read -P 7 1M 3M", "-c", "flush"]));

    // The kernel's client, as far as it goes without the kernel.
    let port = address.rsplit_once(':').unwrap().1;
    let mut list = tool("nbd-client");
    list.args(["-l", NAME, port, "-tlshostname", NAME]);
    for (option, file) in
        [("-certfile", "client-cert.pem"), ("-keyfile", "client-key.pem"), ("-cacertfile", "ca-cert.pem")]
    {
        list.arg(option).arg(dir.join(file));
    }
    assert!(run(&mut list).stdout.lines().any(|line| line == "web"));

    // Without a certificate of ours, all of them stay outside.
    let other = Authority::new("other");
    let foreign = place.path("foreign");
    fs::create_dir(&foreign).unwrap();
    other.make(&Wanted::client("web1")).write(&foreign, "client").unwrap();
    fs::copy(dir.join("ca-cert.pem"), foreign.join("ca-cert.pem")).unwrap();
    failing(tool("nbdinfo").arg(nbds(&address, "web", &foreign)));
    let mut info = tool("qemu-img");
    failing(info.args(["info", "--object", &tls_object(&foreign), "--image-opts", &image(&address, "web")]));
    failing(tool("nbdinfo").arg(format!("nbd://{address}/web")));
    // And they refuse a server that is not ours: L9.
    other.write(&dir).unwrap();
    failing(tool("nbdinfo").arg(nbds(&address, "web", &dir)));
    daemon.stop();
    assert!(place.log().contains("TLS_CLIENT_REJECTED"), "{}", place.log());
}

/// L9: a client that insists on TLS does not talk to a server without.
#[test]
fn l9_a_server_in_clear_is_refused_by_real_clients() {
    let (mut place, address) = place("A");
    place.arguments.push("--insecure-tcp".to_owned());
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    let dir = place.path("web1-pki");
    let said = place.ok(&format!("client create web1 --out {}", dir.display()));
    assert!(said.contains("lets nobody in with it"), "{said}");
    failing(tool("nbdinfo").arg(nbds(&address, "web", &dir)));
    let mut info = tool("qemu-img");
    failing(info.args(["info", "--object", &tls_object(&dir), "--image-opts", &image(&address, "web")]));
    assert!(run(tool("nbdinfo").arg(format!("nbd://{address}/web"))).stdout.contains("1048576"));
}

#[test]
fn nothing_is_said_about_a_client_that_exists() {
    let (place, _) = place("A");
    let _daemon = place.serve();
    let dir = client(&place, "web1");
    let before = fs::read(dir.join("client-key.pem")).unwrap();
    let stderr = place.not_ok(&format!("client create web1 --out {}", dir.display()), 1);
    assert!(stderr.contains("cannot write certificates"), "{stderr}");
    assert_eq!(fs::read(dir.join("client-key.pem")).unwrap(), before, "the old files are left alone");
    assert_eq!(json(&place.ok("client list -o json"))["clients"].as_array().unwrap().len(), 1);
    place.not_ok("client revoke nobody --yes", 3);
    let unmade = place.path("unmade");
    place.not_ok(&format!("client create ../x --out {}", unmade.display()), 2);
    place.not_ok(&format!("client create x --days 0 --out {}", unmade.display()), 2);
    assert!(!unmade.exists());
}

/// Rows I1, I6, L6 and N12.
#[test]
fn i1_i6_identities_see_their_own_exports() {
    let (mut place, address) = place("A");
    configure(
        &mut place,
        "[[nbd_access]]\nidentity = 'web*'\nexports = ['shared']\nmode = 'read'\n\
         [[nbd_access]]\nidentity = 'client:web1'\nexports = ['web1', 'web1@*']\nmode = 'write'\n\
         [[nbd_access]]\nidentity = 'web2'\nexports = ['web2*', 'x-*']\nmode = 'write'\n",
    );
    let _daemon = place.serve();
    for volume in ["web1", "web2", "x-1", "shared", "secret"] {
        place.ok(&format!("volume create {volume} --size 1M"));
    }
    place.ok("snapshot create web1@a");
    place.ok("snapshot create web2@a");
    let (one, two, none) = (client(&place, "web1"), client(&place, "web2"), client(&place, "other"));
    assert_eq!(listed(&address, &one), ["shared", "web1", "web1@a"]);
    assert_eq!(listed(&address, &two), ["shared", "web2", "web2@a", "x-1"]);
    assert_eq!(listed(&address, &none), Vec::<String>::new());

    // What one may not see is as if it were not there, byte for byte.
    let mut asking = secured(&address, &one).unwrap();
    for number in [option::INFO, option::GO] {
        let missing = asking.ask(number, &info_data(b"missing", &[])).unwrap();
        assert_eq!(missing[0].kind, reply_type::ERR_UNKNOWN);
        for hidden in ["web2", "web2@a", "x-1", "secret", "web2:1", ""] {
            let answer = asking.ask(number, &info_data(hidden.as_bytes(), &[])).unwrap();
            assert_eq!(answer, missing, "{hidden}");
        }
    }
    assert!(matches!(secured(&address, &one).unwrap().export_name(b"web2", false), Err(ClientError::Closed)));

    let mut own = opened(&address, &one, "web1").unwrap();
    own.write(0, &[7; 4096]).unwrap();
    // Renaming does not lead into somebody else's: names are looked at when a client comes.
    place.ok("volume rename x-1 web1x");
    assert_eq!(listed(&address, &one), ["shared", "web1", "web1@a"]);
    for dir in [&one, &two] {
        let mut shared = opened(&address, dir, "shared").unwrap();
        assert_eq!(shared.flags() & 2, 2, "read-only");
        assert!(matches!(shared.write(0, &[1; 512]), Err(ClientError::Failed(1))));
        assert_eq!(shared.read(0, 512).unwrap(), [0; 512]);
    }
    assert_eq!(own.read(0, 512).unwrap(), [7; 512]);
    let mut local = place.client("shared");
    local.write(0, &[5; 512]).expect("the Unix socket is for everything");
}

#[test]
fn a_revoked_client_is_disconnected_and_stays_outside() {
    let (place, address) = place("A");
    let daemon = place.serve();
    place.ok("volume create web --size 1M");
    let (gone, stays) = (client(&place, "gone"), client(&place, "stays"));
    let mut first = opened(&address, &gone, "web").unwrap();
    let mut idle = opened(&address, &gone, "web").unwrap();
    let mut other = opened(&address, &stays, "web").unwrap();
    assert!(first.write(0, &[3; 512]).is_ok() && idle.read(0, 512).is_ok());
    assert!(place.ok("client revoke gone --plan").contains("would let client gone in no more"));
    assert!(first.read(0, 512).is_ok(), "only planned");
    place.ok("client revoke gone --yes");
    for client in [&mut first, &mut idle] {
        assert!(client.wire().receive_to_end().unwrap().is_empty());
    }
    assert!(matches!(opened(&address, &gone, "web"), Err(ClientError::Tls(_))));
    assert_eq!(other.read(0, 512).unwrap(), [3; 512]);
    let listed = json(&place.ok("client list -o json"));
    assert!(listed["clients"][0]["revoked_ms"].is_u64() && listed["clients"][1]["revoked_ms"].is_null());
    drop(other);
    daemon.stop();

    // It is written down: the next daemon knows.
    let _daemon = place.serve();
    assert!(matches!(opened(&address, &gone, "web"), Err(ClientError::Tls(_))));
    assert!(opened(&address, &stays, "web").is_ok());
    let again = place.path("again");
    place.ok(&format!("client create gone --out {}", again.display()));
    assert!(opened(&address, &again, "web").is_ok());
    assert!(matches!(opened(&address, &gone, "web"), Err(ClientError::Tls(_))), "the old one stays outside");
}

#[test]
fn a_paired_host_comes_in_where_a_rule_says_so() {
    let (mut a, address) = place("A");
    a.arguments.extend(["--peer-listen", "127.0.0.1:0"].map(str::to_owned));
    let without = a.arguments.clone();
    let mut b = Place::new();
    b.arguments.extend(["--name", "B", "--peer-listen", "127.0.0.1:0"].map(str::to_owned));
    let (running, _b) = (a.serve(), b.serve());
    a.ok("volume create web --size 1M");
    let token = b.ok("host pair --new");
    a.ok(&format!("host pair {}", token.trim()));
    // B's own certificate, under the names that clients look for; it trusts A's CA, and QEMU looks for its own there.
    let dir = b.path("pki");
    fs::create_dir(&dir).unwrap();
    let of = |place: &Place, name: &str| place.data().join("peer").join(name);
    fs::copy(of(&b, "host.crt"), dir.join("client-cert.pem")).unwrap();
    fs::copy(of(&b, "host.key"), dir.join("client-key.pem")).unwrap();
    let authorities = [&a, &b].map(|place| fs::read_to_string(of(place, "ca.crt")).unwrap());
    fs::write(dir.join("ca-cert.pem"), authorities.concat()).unwrap();
    assert_eq!(listed(&address, &dir), Vec::<String>::new(), "let in, but without a rule it sees nothing");
    running.stop();

    a.arguments = without;
    configure(&mut a, "[[nbd_access]]\nidentity = 'host:B'\nexports = ['*']\nmode = 'write'\n");
    let _a = a.serve();
    assert_eq!(listed(&address, &dir), ["web"]);
    let mut client = opened(&address, &dir, "web").unwrap();
    client.write(0, &[9; 512]).unwrap();
    let info = run(tool("nbdinfo").args(["--json", &nbds(&address, "web", &dir)])).stdout;
    assert!(info.contains("\"TLS\": true"), "{info}");
    let mut io = tool("qemu-io");
    io.args(["--object", &tls_object(&dir), "--image-opts", &image(&address, "web")]);
    run(io.args(["-c", "read -P 9 0 512"]));
    a.ok("host trust B --revoke");
    assert!(client.wire().receive_to_end().unwrap().is_empty());
    assert!(matches!(opened(&address, &dir, "web"), Err(ClientError::Tls(_))));
    a.ok("host trust B");
    assert!(opened(&address, &dir, "web").is_ok());
}

/// Row L8, with the daemon: other people's certificates, replaced while clients read and write.
#[test]
fn l8_files_are_replaced_under_load() {
    let (mut place, address) = place("A");
    let dir = place.path("server-pki");
    fs::create_dir(&dir).unwrap();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let install = |authority: &Authority| {
        authority.make(&Wanted::server()).write(&dir, "server").unwrap();
        authority.write(&dir).unwrap();
    };
    install(&old);
    place.arguments.extend(["--nbd-tls-dir".to_owned(), dir.display().to_string()]);
    configure(&mut place, "[[nbd_access]]\nidentity = 'cert:alice'\nexports = ['web']\nmode = 'write'\n");
    let daemon = place.serve();
    place.ok("volume create web --size 16M");
    let connect = |authority: &Authority, name: &str| {
        let config = client_of(authority, &authority.make(&Wanted::client(name)));
        let clear = Negotiation::begin(Wire::tcp(address.parse().unwrap())?)?;
        clear.start_tls(config, NAME)?.go(b"web")
    };
    assert!(matches!(connect(&old, "bob"), Err(ClientError::Refused(reply_type::ERR_UNKNOWN))));
    let mut early = connect(&old, "alice").unwrap();
    let mut load = connect(&old, "alice").unwrap();
    let loaded = std::thread::spawn(move || {
        for round in 0..400_u64 {
            let data = noise(round, 64 << 10);
            load.write(round % 100 * 65_536, &data).unwrap();
            assert!(load.read(round % 100 * 65_536, 64 << 10).unwrap() == data);
        }
    });
    fs::write(dir.join("ca-cert.pem"), "nothing").unwrap();
    assert!(connect(&old, "alice").is_ok(), "the last good set stays");
    assert!(place.ok("status").contains("ca-cert.pem: there is no certificate in it"));
    assert!(json(&place.ok("status -o json"))["nbd_tls_trouble"].is_string());
    install(&new);
    let mut late = connect(&new, "alice").unwrap();
    assert!(matches!(connect(&old, "alice"), Err(ClientError::Tls(_))));
    assert!(!place.ok("status").contains("NBD TLS"));
    for client in [&mut early, &mut late] {
        client.write(15 << 20, &[4; 4096]).unwrap();
    }
    loaded.join().unwrap();
    for client in [early, late] {
        client.leave().unwrap();
    }
    // The daemon has told of the set that it could not use.
    assert_eq!(daemon.stop_anyhow(), 0);
    assert!(place.log().contains("the new certificates cannot be used"), "{}", place.log());
}

#[test]
fn certificates_that_cannot_be_used_stop_the_start() {
    let (mut place, _) = place("A");
    place.arguments.extend(["--nbd-tls-dir", "/nonexistent"].map(str::to_owned));
    let (code, log) = place.refused();
    assert!(code == 1 && log.contains("the certificates for NBD clients cannot be used"), "{log}");
}
