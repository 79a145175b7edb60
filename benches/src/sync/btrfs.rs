//! `btrfs send | btrfs receive` between two file systems, each in a file behind a loop device.
//!
//! Like our run it takes the snapshot, sends what differs from the last one, and ends durable (`btrfs filesystem sync`).
//! Bytes are counted in the pipe. What the kernel's own threads do for it – checksums, writing, the loop devices – is not
//! in its processor time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use super::Bench;
use super::content::{BLOCK, Layout, Plain};
use super::increment::{NAME, seed};
use super::meter::{Cost, measure};
use super::wire::Wire;
use crate::plan::need_in_path;
use crate::process::{Guarded, last_words};
use crate::store::loop_fs::{Kind, LoopFs};
use crate::store::room::text_of;
use crate::trouble::{OrTrouble, Trouble};

/// Its name in the rows.
pub const SUBJECT: &str = "btrfs send, receive";
/// Size of a file system by that of the file: metadata, and the changes that snapshots keep.
const FS_PERCENT: u64 = 150;
const FS_BYTES_MIN: u64 = 1 << 30;
/// Bytes between two looks at the interrupt.
const PIECE: u64 = 8 << 20;
const NEXT: &str = "leave it out, by uninstalling btrfs-progs";

/// Measures it where such file systems can be made.
///
/// # Errors
/// It fails, or somebody asked to stop.
pub fn run(bench: &mut Bench<'_>, wire: &Wire) -> Result<(), Trouble> {
    if let Err(trouble) = need_in_path("mkfs.btrfs", "apt install btrfs-progs") {
        bench.recorder.note(format!("{SUBJECT} left out: {}", trouble.why));
        return Ok(());
    }
    let bytes = (bench.plan.bytes * FS_PERCENT / 100).max(FS_BYTES_MIN);
    let make = || LoopFs::make(bench.room, Kind::Btrfs, bytes);
    let (from, to) = match make().and_then(|from| Ok((from, make()?))) {
        Ok(both) => both,
        Err(trouble) => {
            bench.room.interrupt.check()?;
            bench.recorder.note(format!("{SUBJECT} left out: {}: {}", trouble.what, trouble.why));
            return Ok(());
        }
    };
    let ends = Ends { from: from.point(), to: to.point() };
    let layout = Layout::contiguous(bench.plan.bytes);
    bench.room.run(&["btrfs", "subvolume", "create", &text_of(&ends.live())])?;
    layout.fill(&mut Plain::open(&ends.file(&ends.live()))?, 1, bench.room.interrupt)?;
    ends.send(bench, 0)?;
    for round in 1..=bench.plan.runs {
        let mut file = Plain::open(&ends.file(&ends.live()))?;
        layout.change(&mut file, bench.plan.changes(), seed(round), bench.room.interrupt)?;
        bench.settle()?;
        let (pipe_bytes, cost) = measure(wire, || ends.send(bench, round))?;
        let cost = Cost { wire_bytes: pipe_bytes, ..cost };
        bench.put_cost(NAME, SUBJECT, round, &cost, Some(bench.plan.changes() * BLOCK));
        ends.compare(bench, round)?;
    }
    Ok(())
}

/// Two mounted file systems.
struct Ends<'a> {
    from: &'a Path,
    to: &'a Path,
}

impl Ends<'_> {
    fn live(&self) -> PathBuf {
        self.from.join("live")
    }

    fn file(&self, subvolume: &Path) -> PathBuf {
        subvolume.join("file")
    }

    /// Takes a snapshot and brings it over, after the first one only what differs; returns the bytes in the pipe.
    fn send(&self, bench: &Bench<'_>, number: u32) -> Result<u64, Trouble> {
        let (live, snapshot) = (text_of(&self.live()), text_of(&self.from.join(number.to_string())));
        bench.room.run(&["btrfs", "subvolume", "snapshot", "-r", &live, &snapshot])?;
        let mut send = Command::new("btrfs");
        send.args(["send", "--quiet"]);
        if number > 0 {
            send.arg("-p").arg(self.from.join((number - 1).to_string()));
        }
        let mut receive = Command::new("btrfs");
        receive.args(["receive", "--quiet"]).arg(self.to);
        let bytes = pipe(bench, send.arg(snapshot), &mut receive)?;
        bench.room.run(&["btrfs", "filesystem", "sync", &text_of(self.to)])?;
        Ok(bytes)
    }

    fn compare(&self, bench: &Bench<'_>, number: u32) -> Result<(), Trouble> {
        let [from, to] = [self.from, self.to].map(|end| text_of(&self.file(&end.join(number.to_string()))));
        bench.room.run(&["cmp", &from, &to]).map(drop)
    }
}

/// Runs both, carries what the one says to the other, and counts it.
fn pipe(bench: &Bench<'_>, send: &mut Command, receive: &mut Command) -> Result<u64, Trouble> {
    let what = || SUBJECT.to_owned();
    let logs = [bench.room.new_short("log"), bench.room.new_short("log")];
    let log = |path: &PathBuf| File::create(path).map(Stdio::from).or_trouble(what, NEXT);
    let mut send = send
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log(&logs[0])?)
        .spawn()
        .or_trouble(what, NEXT)?;
    let output = send.stdout.take();
    let mut send = Guarded::child(send);
    let mut receive = receive
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log(&logs[1])?)
        .spawn()
        .or_trouble(what, NEXT)?;
    let input = receive.stdin.take();
    let mut receive = Guarded::child(receive);
    let (Some(output), Some(input)) = (output, input) else {
        return Err(Trouble::new(what(), "a pipe is missing", NEXT));
    };
    let carried = carry(bench, output, input);
    for (end, log) in [(&mut send, &logs[0]), (&mut receive, &logs[1])] {
        end_well(bench, end, log)?;
    }
    carried
}

fn carry(bench: &Bench<'_>, mut output: ChildStdout, mut input: ChildStdin) -> Result<u64, Trouble> {
    let mut bytes = 0;
    loop {
        bench.room.interrupt.check()?;
        let now = io::copy(&mut output.by_ref().take(PIECE), &mut input);
        match now.or_trouble(|| SUBJECT.into(), NEXT)? {
            0 => break,
            now => bytes += now,
        }
    }
    input.flush().or_trouble(|| SUBJECT.into(), NEXT)?;
    Ok(bytes)
}

/// Waits for its end, which must be a good one.
fn end_well(bench: &Bench<'_>, process: &mut Guarded, log: &Path) -> Result<(), Trouble> {
    let what = || SUBJECT.to_owned();
    loop {
        if let Some(how) = process.ended().or_trouble(what, NEXT)? {
            let is_good = how == std::process::ExitStatus::default().to_string();
            return if is_good {
                Ok(())
            } else {
                Err(Trouble::new(what(), format!("{how}: {}", last_words(log)), NEXT))
            };
        }
        bench.room.pause(LOOK_EVERY)?;
    }
}

/// Pause between two looks at a process that is about to end.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(2);
