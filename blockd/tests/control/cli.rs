//! `blockctl` as people and scripts see it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::engine::TestEngine;
use crate::harness::{Daemon, outcome};

fn populated() -> Daemon {
    let daemon = Daemon::start(TestEngine::default());
    daemon.ok("volume create web --size 64GiB");
    daemon.ok("volume create db --size 1T");
    daemon.ok("snapshot create web@monday db@monday");
    daemon.ok("clone web@monday web2");
    daemon
}

#[test]
fn volumes_are_listed_and_shown() {
    let daemon = populated();
    assert_eq!(
        daemon.ok("volume list"),
        "NAME    SIZE  DATA  OWN  SNAPSHOTS  CLIENTS  ORIGIN      HEALTH  ROLE
db     1 TiB   0 B    –          1        0  –           ok      primary
web   64 GiB   0 B    –          1        0  –           ok      primary
web2  64 GiB   0 B    –          0        0  web@monday  ok      primary
"
    );
    assert_eq!(
        daemon.ok("volume show web"),
        "name       web
size       64 GiB  (68719476736 bytes)
data       0 B
own        –  (freed if it were deleted)
snapshots  1
clients    0
origin     –
created    2026-11-20 14:03:30
health     ok
role       primary
"
    );
}

#[test]
fn scripts_get_versioned_objects() {
    let daemon = populated();
    let list: serde_json::Value = serde_json::from_str(&daemon.ok("volume list -o json")).unwrap();
    assert_eq!((&list["v"], &list["volumes"][1]["name"]), (&1.into(), &"web".into()));
    for words in [
        "volume list",
        "snapshot list",
        "export list",
        "events",
        "volume show web",
        "status",
        "export show web",
    ] {
        for line in daemon.ok(&format!("{words} -o jsonl")).lines() {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(object["v"], 1, "{words}: {line}");
        }
    }
    assert_eq!(
        daemon.ok("snapshot hold web@monday audit -o json"),
        "{\"action\":\"held\",\"done\":true,\"name\":\"web@monday\",\"v\":1}\n"
    );
}

#[test]
fn snapshots_are_listed_held_and_deleted() {
    let daemon = populated();
    daemon.ok("snapshot hold web@monday audit");
    assert_eq!(
        daemon.ok("snapshot list web"),
        "NAME        CREATED (UTC)          SIZE  CLIENTS  HOLDS  CLONES
web@monday  2026-11-20 14:03:30  64 GiB        0  audit  –
"
    );
    let (code, _, stderr) = daemon.run("snapshot delete web@monday");
    assert_eq!(code, 5);
    assert_eq!(
        stderr,
        "error: cannot delete web@monday
why:   web@monday is held
next:  blockctl snapshot list    (shows snapshots, holds and clones)
"
    );
    let (code, stdout, _) = daemon.run("snapshot delete web@monday --plan");
    assert_eq!(code, 5);
    assert_eq!(
        stdout,
        "would delete web@monday, made 2026-11-20 14:03:30
  ✗ it is held: audit
Nothing was changed. Run without --plan to do it.
"
    );
    daemon.ok("snapshot release web@monday audit");
    assert_eq!(
        daemon.ok("snapshot delete web@monday"),
        "deleted web@monday; its space is freed in the background\n"
    );
}

#[test]
fn hashes_look_like_those_of_b3sum() {
    let daemon = populated();
    assert_eq!(daemon.ok("snapshot hash web@monday"), format!("{}  web@monday\n", "a7".repeat(32)));
    let lines = daemon.ok("snapshot hash web@monday -o jsonl");
    assert!(lines.lines().any(|line| line.contains(r#""event":"progress""#)), "{lines}");
    assert!(
        lines.ends_with(&format!("{{\"hash\":\"{}\",\"name\":\"web@monday\",\"v\":1}}\n", "a7".repeat(32))),
        "{lines}"
    );
}

#[test]
fn damage_ends_with_its_own_exit_code() {
    let daemon = populated();
    assert_eq!(
        daemon.ok("scrub"),
        "web@monday  ok  1 MiB checked\ndb@monday  ok  1 MiB checked\n2 snapshots ok\n"
    );
    daemon.ok("snapshot create web@bad db@worse");
    let (code, stdout, stderr) = daemon.run("snapshot verify web@bad");
    assert_eq!(
        (code, stdout.as_str()),
        (8, "web@bad  DAMAGED  1 MiB checked\n  damaged: 4096 bytes at 65536\n")
    );
    assert!(stderr.contains("error: web@bad is not what was written\n"), "{stderr}");
    let (code, stdout, stderr) = daemon.run("scrub");
    assert_eq!(code, 8, "{stdout}");
    assert!(stdout.contains("db@worse  UNREADABLE  the medium failed\n"), "{stdout}");
    assert!(stderr.contains("2 snapshots failed"), "{stderr}");
    assert!(daemon.ok("events").contains("snapshot_damaged  web@bad  4096 bytes in 1 places"));
}

#[test]
fn diffs_are_lines() {
    let daemon = populated();
    assert_eq!(
        daemon.ok("snapshot diff web@monday"),
        "               0         4096 data\n            8192         4096 zero\n"
    );
    assert_eq!(daemon.ok("snapshot diff web@monday -o jsonl").lines().count(), 2);
    let diff: serde_json::Value =
        serde_json::from_str(&daemon.ok("snapshot diff web@monday -o json")).unwrap();
    assert_eq!((&diff["bytes"], &diff["extents"][1]["kind"]), (&8192.into(), &"zero".into()));
}

#[test]
fn errors_have_three_lines_and_the_codes_of_the_contract() {
    let daemon = populated();
    daemon.engine.connect_clients("db", 2);
    let cases = [
        ("volume show nothing", 3),
        ("volume create web --size 1G", 1),
        ("volume resize web --size 1G", 2),
        ("volume rename db other", 4),
        ("volume delete web --yes", 5),
        ("snapshot rollback db@monday --yes", 4),
        ("snapshot hash web@nothing", 3),
        ("snapshot diff db@monday web@monday", 2),
        ("export show nothing", 3),
    ];
    for (words, expected) in cases {
        let (code, stdout, stderr) = daemon.run(words);
        assert_eq!(code, expected, "{words}: {stderr}");
        let starts: Vec<&str> =
            stderr.lines().map(|line| line.split(':').next().unwrap_or_default()).collect();
        assert_eq!(starts, ["error", "why", "next"], "{words}: {stderr}");
        assert!(stdout.is_empty(), "{words}: {stdout}");
    }
    for words in [
        "volume",
        "volume create web",
        "volume create ../web --size 1G",
        "volume create web --size 1Q",
        "nonsense",
    ] {
        assert_eq!(daemon.run(words).0, 2, "{words}");
    }
}

#[test]
fn without_a_daemon_it_is_unreachable() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
    let (code, _, stderr) =
        outcome(command.args(["--socket", "/nonexistent/s", "volume", "list"]).output().unwrap());
    assert_eq!(code, 7);
    assert_eq!(
        stderr,
        "error: cannot list volumes
why:   /nonexistent/s: No such file or directory (os error 2)
next:  systemctl start blockd    (or name its socket: --socket PATH, $BLOCKD_SOCKET)
"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
    let (code, stdout, _) =
        outcome(command.env("BLOCKD_SOCKET", "/nonexistent/s").arg("check").output().unwrap());
    assert_eq!(
        (code, stdout.as_str()),
        (2, "CRITICAL - /nonexistent/s: No such file or directory (os error 2)\n")
    );
}

#[test]
fn what_cannot_be_undone_is_not_done_without_a_word() {
    let daemon = populated();
    let (code, _, stderr) = daemon.run("volume delete web2");
    assert_eq!(code, 5);
    assert_eq!(
        stderr,
        "error: volume delete web2: not done
why:   all of its data will be lost for ever; there is no terminal to ask at
next:  blockctl volume delete web2 --yes    (or --plan to look first)
"
    );
    assert_eq!(
        daemon.ok("volume delete web2 --plan"),
        "would delete web2: all of its data will be lost for ever
Nothing was changed. Run without --plan to do it.
"
    );
    assert_eq!(daemon.run("volume delete web --plan").0, 5, "it has a snapshot");
    assert!(daemon.ok("volume list").contains("web2"));
    daemon.ok("volume delete web2 --yes");
    assert!(!daemon.ok("volume list").contains("web2"));
    assert_eq!(daemon.run("snapshot rollback web@monday").0, 5);
    daemon.ok("snapshot rollback web@monday --plan");
    daemon.ok("snapshot rollback web@monday --yes");
}

#[test]
fn plans_say_what_stands_in_the_way() {
    let daemon = populated();
    daemon.engine.connect_clients("web", 1);
    let (code, stdout, _) = daemon.run("volume rename web db --plan");
    assert_eq!(code, 1);
    assert_eq!(
        stdout,
        "would rename web to db; clients must use the new name
  ✗ 1 client connected to web
  ✗ there is a volume db already
Nothing was changed. Run without --plan to do it.
"
    );
    assert_eq!(daemon.run("snapshot rollback web@monday --plan").0, 4);
}

/// At a terminal the name is asked for; `script` gives the program one.
#[test]
fn at_a_terminal_the_name_must_be_typed() {
    let daemon = populated();
    let ask = |typed: &str| {
        let program = env!("CARGO_BIN_EXE_blockctl");
        let line = format!("{program} --socket {} volume delete web2", daemon.socket.display());
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), format!("{typed}\n").as_bytes()).unwrap();
        outcome(child.wait_with_output().unwrap())
    };
    let (code, stdout, _) = ask("web");
    assert_eq!(code, 5, "{stdout}");
    assert!(stdout.contains("Type web2 to go on:"), "{stdout}");
    let (code, stdout, _) = ask("web2");
    assert_eq!(code, 0, "{stdout}");
    assert!(!daemon.ok("volume list").contains("web2"));
}

#[test]
fn status_check_and_top() {
    let daemon = populated();
    let status = daemon.ok("status");
    assert!(status.contains("pool     10 GiB of 100 GiB used (10 %)"), "{status}");
    assert!(status.contains("objects  3 volumes, 2 snapshots, 0 clients"), "{status}");
    assert_eq!(daemon.ok("check"), "OK - 3 volumes, 2 snapshots, pool 90 % free\n");
    let top = daemon.ok("top --once");
    assert!(top.contains("now      0 reads/s") && !top.contains('\x1b'), "{top}");
    let rates: serde_json::Value = serde_json::from_str(&daemon.ok("top --once -o jsonl")).unwrap();
    assert_eq!((&rates["v"], &rates["reads_per_s"]), (&1.into(), &0.into()));
}

/// `script` gives the program a terminal; its Ctrl-C becomes a signal there.
#[test]
fn top_gives_the_terminal_back() {
    let daemon = populated();
    // `exec`: a shell that waits would take the signal for its own end (dash, exit code 130).
    let line = format!("exec {} --socket {} top", env!("CARGO_BIN_EXE_blockctl"), daemon.socket.display());
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut shown) = (child.stdout.take().unwrap(), Vec::new());
    while !String::from_utf8_lossy(&shown).contains("VOLUME") {
        let mut bytes = [0; 4096];
        let count = std::io::Read::read(&mut stdout, &mut bytes).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&shown));
        shown.extend_from_slice(&bytes[..count]);
    }
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"\x03").unwrap();
    std::io::Read::read_to_end(&mut stdout, &mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(shown.contains("\x1b[?1049h\x1b[?25l") && shown.ends_with("\x1b[?25h\x1b[?1049l"), "{shown:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn events_are_told_and_followed() {
    let daemon = populated();
    let told = daemon.ok("events");
    let kinds: Vec<&str> = told.lines().filter_map(|line| line.split("  ").nth(1)).collect();
    assert_eq!(kinds, ["volume_created", "volume_created", "snapshot_created", "volume_cloned"]);
    let mut child = daemon.command("events --follow --after 4").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    daemon.ok("volume resize web --size 128GiB");
    let line = lines.next().unwrap().unwrap();
    assert!(line.ends_with("volume_resized  web  137438953472 bytes"), "{line}");
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "Ctrl-C is how following ends");
}

#[test]
fn a_reader_that_leaves_is_no_error_message() {
    let daemon = Daemon::start(TestEngine::with_volumes(5000));
    let mut child =
        daemon.command("volume list -o jsonl").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let (_, _, stderr) = outcome(child.wait_with_output().unwrap());
    assert_eq!(stderr, "");
}

#[test]
fn completions_are_written() {
    let daemon = Daemon::start(TestEngine::default());
    for shell in ["bash", "zsh", "fish"] {
        assert!(daemon.ok(&format!("completion {shell}")).contains("export-file"), "{shell}");
    }
}

#[test]
fn exports_tell_how_to_open_them() {
    let daemon = populated();
    let nbd = daemon.dir.path().join("nbd.sock").display().to_string();
    let show = daemon.ok("export show web@monday");
    assert!(
        show.contains("access   read-only")
            && show.contains(&format!("uri      nbd+unix:///web@monday?socket={nbd}")),
        "{show}"
    );
    let libvirt = daemon.ok("export show web --libvirt");
    assert!(libvirt.contains(&format!("<host transport='unix' socket='{nbd}'/>")), "{libvirt}");
    let qemu = daemon.ok("export show web --qemu");
    assert!(qemu.contains("reconnect-delay") && qemu.contains("werror=stop,rerror=stop"), "{qemu}");
}

#[test]
fn the_daemon_checks_its_configuration() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/blockd.toml");
    let check = |file: &str| {
        outcome(Command::new(env!("CARGO_BIN_EXE_blockd")).args(["check-config", file]).output().unwrap())
    };
    let (code, stdout, stderr) = check(example);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let (code, _, stderr) = check("/nonexistent/blockd.toml");
    assert_eq!(code, 2);
    assert!(
        stderr.starts_with("error: the configuration is refused\nwhy:   /nonexistent/blockd.toml: "),
        "{stderr}"
    );
}

/// The example file explains every key: one that is missing there would be found by nobody.
#[test]
fn the_example_configuration_names_every_key() {
    let example = include_str!("../../../packaging/blockd.toml");
    let help = Command::new(env!("CARGO_BIN_EXE_blockd")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let names = flags.filter_map(|flag| flag.split([' ', '[', '=']).next());
    for name in names.filter(|name| !["config", "help"].contains(name)) {
        let key = name.replace('-', "_");
        let named =
            example.lines().any(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key} = ")));
        assert!(named, "packaging/blockd.toml lacks {key}");
    }
}
