//! Peers that bring a raw file up to date: rsync, and whole copies over NBD.
//!
//! All end with the copy durable: rsync with `--fsync`, nbdcopy with `--flush`, qemu-img by the flush at its end. rsync
//! speaks to its own daemon, so no ssh takes time; nothing is encrypted for any of them, as it is for us. A whole copy
//! reads the source on its own host, through a Unix socket, and writes over the wire.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Bench;
use super::content::{BLOCK, Layout, Plain};
use super::increment::{NAME, seed};
use super::meter::measure;
use super::wire::Wire;
use crate::plan::need_in_path;
use crate::process::{Guarded, spawn};
use crate::store::room::text_of;
use crate::trouble::{OrTrouble, Trouble};

/// Who is on record when the files cannot be made.
pub const SUBJECT: &str = "files";
/// rsync as it comes.
pub const RSYNC: &str = "rsync --inplace";
/// rsync told what the changes look like.
pub const RSYNC_4K: &str = "rsync --inplace --block-size=4096";
const NBDCOPY: &str = "nbdcopy, whole";
const QEMU_IMG: &str = "qemu-img convert, whole";
/// In the order of running.
pub const ALL: [&str; 4] = [RSYNC, RSYNC_4K, NBDCOPY, QEMU_IMG];
/// How long a server may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const NEXT: &str = "leave it out, by uninstalling it";

/// Source and copy.
struct Files {
    from: PathBuf,
    /// The copy is the only file of its directory: that is what rsync's daemon serves.
    to_dir: PathBuf,
    layout: Layout,
}

impl Files {
    fn make(bench: &Bench<'_>) -> Result<Self, Trouble> {
        let (from, to_dir) = (bench.room.new_image("from"), bench.room.new_image("to"));
        let layout = Layout::contiguous(bench.plan.bytes);
        fs::create_dir(&to_dir).or_trouble(|| "make a directory".into(), NEXT)?;
        let files = Self { from, to_dir, layout };
        for path in [&files.from, &files.to()] {
            layout.fill(&mut Plain::open(path)?, 1, bench.room.interrupt)?;
        }
        Ok(files)
    }

    fn to(&self) -> PathBuf {
        self.to_dir.join("copy")
    }

    fn change(&self, bench: &Bench<'_>, seed: u64) -> Result<(), Trouble> {
        let changes = bench.plan.changes();
        self.layout.change(&mut Plain::open(&self.from)?, changes, seed, bench.room.interrupt)?;
        bench.settle()
    }

    /// A copy that is wrong has no speed.
    fn compare(&self, bench: &Bench<'_>) -> Result<(), Trouble> {
        bench.room.run(&["cmp", &text_of(&self.from), &text_of(&self.to())]).map(drop)
    }
}

/// Measures those that are installed.
///
/// # Errors
/// The files cannot be made, or somebody asked to stop; what fails of one peer is on record.
pub fn run(bench: &mut Bench<'_>, wire: &Wire) -> Result<(), Trouble> {
    let files = Files::make(bench)?;
    let mut there: Vec<&'static str> = Vec::new();
    for (peer, programs) in ALL.into_iter().zip(PROGRAMS) {
        match programs
            .iter()
            .try_for_each(|(name, package)| need_in_path(name, &format!("apt install {package}")))
        {
            Ok(()) => there.push(peer),
            Err(trouble) => bench.recorder.note(format!("{peer} left out: {}", trouble.why)),
        }
    }
    for round in 1..=bench.plan.runs {
        for (turn, peer) in (0..).zip(there.clone()) {
            // Each its own changes: what one has brought is no work for the next.
            files.change(bench, seed(round * 10 + turn))?;
            let measured = one(bench, wire, &files, peer, round).and_then(|()| files.compare(bench));
            if let Err(trouble) = measured {
                bench.room.interrupt.check()?;
                bench.recorder.fail(NAME, peer, &trouble);
                there.retain(|one| *one != peer);
            }
        }
    }
    Ok(())
}

/// What [`ALL`] need, with the packages that have it.
const PROGRAMS: [&[(&str, &str)]; 4] = [
    &[("rsync", "rsync")],
    &[("rsync", "rsync")],
    &[("nbdkit", "nbdkit"), ("nbdcopy", "libnbd-bin")],
    &[("nbdkit", "nbdkit"), ("qemu-img", "qemu-utils")],
];

fn one(bench: &mut Bench<'_>, wire: &Wire, files: &Files, peer: &str, round: u32) -> Result<(), Trouble> {
    let port = free_port()?;
    let (_servers, line) = match peer {
        RSYNC => rsync(bench, wire, files, port, &[])?,
        RSYNC_4K => rsync(bench, wire, files, port, &["--block-size=4096"])?,
        _ => whole(bench, wire, files, port, peer)?,
    };
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let room = bench.room;
    let (_, cost) = measure(wire, || room.run(&line))?;
    bench.put_cost(NAME, peer, round, &cost, Some(bench.plan.changes() * BLOCK));
    Ok(())
}

/// Started servers, and the command that makes the copy.
type Ready = (Vec<Guarded>, Vec<String>);

fn rsync(bench: &Bench<'_>, wire: &Wire, files: &Files, port: u16, more: &[&str]) -> Result<Ready, Trouble> {
    let config = bench.room.new_short("conf");
    let user = rustix::process::getuid().as_raw();
    fs::write(&config, rsync_config(&files.to_dir, user))
        .or_trouble(|| "write a configuration".into(), NEXT)?;
    let config = format!("--config={}", config.display());
    let port_option = format!("--port={port}");
    let daemon = ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", &port_option, &config];
    let url = format!("rsync://127.0.0.1:{port}/to/");
    let mut daemon = start(bench, &wire.inside(&daemon))?;
    ready(bench, &mut daemon, || bench.room.run(&as_text(&wire.inside(&["rsync", &url]))).is_ok())?;
    let from = text_of(&files.from);
    // The changes keep the size, and a clock that is coarse enough could keep the time.
    let how = ["rsync", "--inplace", "--no-whole-file", "--ignore-times", "--fsync"];
    let to = format!("{url}copy");
    let line = [how.as_slice(), more, &[&from, &to]].concat();
    Ok((vec![daemon], wire.inside(&line)))
}

fn rsync_config(dir: &Path, user: u32) -> String {
    let dir = dir.display();
    // Root's daemon would become nobody, and could not write.
    let owner = if user == 0 { "uid = 0\ngid = 0\n" } else { "" };
    format!("use chroot = no\n{owner}[to]\npath = {dir}\nread only = no\n")
}

fn whole(bench: &Bench<'_>, wire: &Wire, files: &Files, port: u16, peer: &str) -> Result<Ready, Trouble> {
    let socket = bench.room.new_short("nbd");
    let (from, to, unix) = (text_of(&files.from), text_of(&files.to()), text_of(&socket));
    let pids = [bench.room.new_short("pid"), bench.room.new_short("pid")];
    let port_text = port.to_string();
    let serve = |place: &[&str], pid: &Path, file: &str| {
        let pid = text_of(pid);
        let line = [&["nbdkit", "-f", "-P", &pid], place, &["file", file]].concat();
        start(bench, &wire.inside(&line))
    };
    let mut servers = vec![
        serve(&["-r", "-U", &unix], &pids[0], &from)?,
        serve(&["-i", "127.0.0.1", "-p", &port_text], &pids[1], &to)?,
    ];
    for (server, pid) in servers.iter_mut().zip(&pids) {
        // It writes its process id when it accepts connections.
        ready(bench, server, || pid.exists())?;
    }
    let (from, to) = (crate::fio::uri("", &socket), format!("nbd://127.0.0.1:{port}/"));
    let line = match peer {
        NBDCOPY => wire.inside(&["nbdcopy", "--flush", &from, &to]),
        // Without `-t` it would not flush at all.
        _ => wire.inside(&[
            "qemu-img",
            "convert",
            "-n",
            "-W",
            "-m",
            "8",
            "-t",
            "writeback",
            "-f",
            "raw",
            "-O",
            "raw",
            &from,
            &to,
        ]),
    };
    Ok((servers, line))
}

fn start(bench: &Bench<'_>, line: &[String]) -> Result<Guarded, Trouble> {
    spawn(line, &bench.room.new_short("log"), None).map(Guarded::child)
}

fn ready(bench: &Bench<'_>, server: &mut Guarded, is_ready: impl Fn() -> bool) -> Result<(), Trouble> {
    let until = Instant::now() + READY_WITHIN;
    while !is_ready() {
        let what = || "start a peer's server".to_owned();
        if let Some(how) = server.ended().or_trouble(what, NEXT)? {
            return Err(Trouble::new(what(), how, NEXT));
        }
        if Instant::now() > until {
            return Err(Trouble::new(what(), format!("it is not ready within {READY_WITHIN:?}"), NEXT));
        }
        bench.room.pause(LOOK_EVERY)?;
    }
    Ok(())
}

fn as_text(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

/// A port that was free just now; inside our own network all are.
fn free_port() -> Result<u16, Trouble> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).or_trouble(|| "find a free port".into(), NEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_of_root_stays_root() {
        let of = |user| rsync_config(Path::new("/d"), user);
        assert!(of(0).contains("uid = 0"));
        assert!(!of(1000).contains("uid"));
        assert!(of(1000).ends_with("[to]\npath = /d\nread only = no\n"));
    }
}
