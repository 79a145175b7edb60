//! Two `blockd` that are paired over the wire, as black boxes behind `blockctl`.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::Bench;
use super::content::Served;
use super::wire::Wire;
use crate::process::{Launch, Server};
use crate::store::room::{Room, text_of};
use crate::trouble::{OrTrouble, Trouble};

/// How long a start may take, and a clean stop.
const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(120);
const NEXT: &str = "look at blockd's log";
/// The source and the target.
const SOURCE: &str = "A";
/// What the source calls the target.
pub const TARGET: &str = "B";

/// A daemon and its data. Dropping it stops it.
#[derive(Debug)]
pub struct Host {
    server: Server,
    data: PathBuf,
    nbd: PathBuf,
    api: PathBuf,
    blockctl: PathBuf,
}

impl Host {
    /// Starts a daemon with a new store.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(bench: &Bench<'_>, wire: &Wire, name: &str, pool_bytes: u64) -> Result<Self, Trouble> {
        let room = bench.room;
        let (data, nbd, api) = (room.new_image("host"), room.new_short("nbd"), room.new_short("api"));
        let line = [
            text_of(&room.plan.blockd),
            "serve".to_owned(),
            format!("--data={}", data.display()),
            format!("--nbd-unix={}", nbd.display()),
            format!("--socket={}", api.display()),
            format!("--name={name}"),
            format!("--pool-size={pool_bytes}"),
            "--peer-listen=127.0.0.1:0".to_owned(),
        ];
        let line = wire.inside(&line.each_ref().map(String::as_str));
        let (socket, log) = (nbd.clone(), room.new_short("log"));
        let ready_within = START_WITHIN;
        let launch = Launch { name: "blockd", line, socket, pid_file: None, log, cpu: None, ready_within };
        let server = Server::start(&launch, room.interrupt)?;
        let blockctl = room.plan.blockd.with_file_name("blockctl");
        Ok(Self { server, data, nbd, api, blockctl })
    }

    /// What `blockctl` says.
    ///
    /// # Errors
    /// It fails.
    pub fn ctl(&self, room: &Room<'_>, words: &[&str]) -> Result<String, Trouble> {
        let (blockctl, api) = (text_of(&self.blockctl), text_of(&self.api));
        room.run(&[&[blockctl.as_str(), "--socket", &api], words].concat())
    }

    /// What it says to programs.
    ///
    /// # Errors
    /// It fails, or says something else.
    pub fn json(&self, room: &Room<'_>, words: &[&str]) -> Result<Value, Trouble> {
        let said = self.ctl(room, &[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&said)
            .or_trouble(|| format!("read what blockctl {} says", words.join(" ")), NEXT)
    }

    /// A new volume.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn create_volume(&self, room: &Room<'_>, name: &str, bytes: u64) -> Result<Served, Trouble> {
        self.ctl(room, &["volume", "create", name, "--size", &bytes.to_string()])?;
        self.open(name)
    }

    /// A volume as its clients see it.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(&self, volume: &str) -> Result<Served, Trouble> {
        Served::connect(&self.nbd, volume)
    }

    /// CPU time spent so far.
    ///
    /// # Errors
    /// The daemon is gone.
    pub fn cpu_spent(&self) -> Result<Duration, Trouble> {
        self.server.cpu_spent()
    }

    /// Uses a token, which is a secret: no command line shows it.
    fn pair(&self, room: &Room<'_>, token: &str) -> Result<(), Trouble> {
        let what = || "pair two hosts".to_owned();
        let log = File::create(room.new_short("log")).or_trouble(what, NEXT)?;
        let errors = log.try_clone().or_trouble(what, NEXT)?;
        let mut command = Command::new(&self.blockctl);
        command.arg("--socket").arg(&self.api).args(["host", "pair", "-"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(log).stderr(errors).spawn().or_trouble(what, NEXT)?;
        // Closed at the end of this statement: then it goes on.
        let written = child.stdin.take().map(|mut input| input.write_all(token.as_bytes()));
        let status = child.wait().or_trouble(what, NEXT)?;
        written.transpose().or_trouble(what, NEXT)?;
        if status.success() { Ok(()) } else { Err(Trouble::new(what(), status, NEXT)) }
    }

    /// Stops it and removes its data.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(self) -> Result<(), Trouble> {
        self.server.stop_cleanly(STOP_WITHIN)?;
        fs::remove_dir_all(&self.data).or_trouble(|| format!("remove {}", self.data.display()), "remove it")
    }
}

/// A source and its target.
#[derive(Debug)]
pub struct Pair {
    /// Has the volumes.
    pub source: Host,
    /// Gets the copies.
    pub target: Host,
}

/// What a run says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Bytes that differ.
    pub changed: u64,
    /// Bytes that went over the wire.
    pub sent: u64,
}

impl Pair {
    /// Starts both, with new stores, and makes them known to each other.
    ///
    /// # Errors
    /// One does not start, or they do not pair.
    pub fn start(bench: &Bench<'_>, wire: &Wire, pool_bytes: u64) -> Result<Self, Trouble> {
        let source = Host::start(bench, wire, SOURCE, pool_bytes)?;
        let target = Host::start(bench, wire, TARGET, pool_bytes)?;
        let listens = target.json(bench.room, &["host", "show"])?;
        let nowhere =
            || Trouble::new("pair two daemons", "the target does not listen", "report it, with its log");
        let address = listens["listen"].as_str().ok_or_else(nowhere)?;
        let token = target.ctl(bench.room, &["host", "pair", "--new", "--address", address])?;
        source.pair(bench.room, &token)?;
        Ok(Self { source, target })
    }

    /// Brings a volume to the target: one run of `blockctl sync`.
    ///
    /// # Errors
    /// It fails.
    pub fn sync(&self, room: &Room<'_>, volume: &str) -> Result<(), Trouble> {
        self.source.ctl(room, &["sync", volume, "--to", TARGET]).map(drop)
    }

    /// What the last run of a volume says of itself.
    ///
    /// # Errors
    /// There is none.
    pub fn told(&self, room: &Room<'_>, volume: &str) -> Result<Told, Trouble> {
        let shown = self.source.json(room, &["job", "show", &format!("{volume}-{TARGET}")])?;
        told(&shown).ok_or_else(|| Trouble::new("read a run's report", "it has none", NEXT))
    }

    /// Ends both and removes their data.
    ///
    /// # Errors
    /// One does not end.
    pub fn end(self) -> Result<(), Trouble> {
        self.source.end()?;
        self.target.end()
    }
}

fn told(shown: &Value) -> Option<Told> {
    let report = &shown["runs"].as_array()?.last()?["report"];
    let number = |key: &str| report[key].as_u64();
    Some(Told { changed: number("bytes_changed")?, sent: number("bytes_sent")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_run_is_told() {
        let run = |sent: u64| json!({ "run": 1, "report": { "bytes_changed": 8, "bytes_sent": sent } });
        let told_of = |runs: Value| told(&json!({ "v": 1, "runs": runs }));
        assert_eq!(told_of(json!([run(9), run(10)])), Some(Told { changed: 8, sent: 10 }));
        assert_eq!(told_of(json!([run(9), { "run": 2, "error": {} }])), None, "a failed run has no report");
        assert_eq!(told_of(json!([])), None);
    }
}
