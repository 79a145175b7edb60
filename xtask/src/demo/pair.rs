//! The second host: paired with the first over a link that can be cut, it follows the guest's disk every two seconds.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use fixtures::process::{self, find_program, wait_until};
use serde_json::Value;

use super::daemon::{Daemon, Host};
use super::disk::Disk;
use super::guests::Writer;
use super::job::Standing;
use super::relay::Relay;
use super::report::{Catch, FirstCopy, Follow, Replica, Steady, bytes, millis, seconds};
use super::story::VOLUME;
use super::words::Sums;
use crate::progress::Progress;

/// The second host, what `sync` calls its job, and how often that runs.
const NAME: &str = "B";
const JOB: &str = "web-B";
const EVERY: &str = "2s";
/// How the names of its snapshots begin.
const SNAPSHOTS: &str = "web@auto-web-B-";
/// Under what name the story keeps snapshots that it still wants to compare.
const HOLD: &str = "demo";

/// Points that are watched while all is well.
const POINTS: u32 = 3;
/// A copy no older than this is fresh: two intervals, and a second for a busy machine.
const FRESH: Duration = Duration::from_secs(5);
/// How long anything may take that the job does by itself.
const JOB_TIMEOUT: Duration = Duration::from_secs(60);
/// What TLS, greetings and offers may add to the bytes that a job counts: a part of them, and so much.
const OVERHEAD_PART: u64 = 50;
const OVERHEAD_BYTES: u64 = 256 << 10;

/// Two hosts that know each other, and the link between them.
pub(super) struct Pair<'a> {
    a: &'a Host,
    b: Host,
    daemon: Daemon,
    relay: Relay,
    progress: &'a Progress,
}

impl<'a> Pair<'a> {
    /// Starts the second host beside the first, and pairs them.
    pub(super) fn start(a: &'a Host, progress: &'a Progress) -> Result<Self> {
        progress.say("starting a second blockd, host B; pairing the two over a link that can be cut");
        let dir = a.dir.join(NAME);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let log = a.dir.join(format!("blockd-{NAME}.log"));
        let b = Host { name: NAME, listens: true, programs: a.programs.clone(), dir, log };
        let daemon = b.start()?;
        let relay = Relay::start(listens(&b.ask(&["host", "show"])?)?)?;
        let address = relay.address().to_string();
        a.pair(&b.said(&["host", "pair", "--new", "--address", &address])?)?;
        Ok(Self { a, b, daemon, relay, progress })
    }

    /// First copy, then every two seconds; a link that is cut and healed. The guest writes all the time.
    pub(super) fn follow(&mut self, writer: &mut Writer) -> Result<Follow> {
        writer.slow_down()?;
        let first = self.first_copy()?;
        let steady = self.keep_up()?;
        let catch = self.cut_and_heal(writer)?;
        Ok(Follow { first, steady, catch })
    }

    fn first_copy(&mut self) -> Result<FirstCopy> {
        let before = self.relay.carried();
        let took = self.a.ctl(&["sync", VOLUME, "--to", NAME])?;
        let sent = self.relay.carried() - before;
        refuse_wrong_count(self.standing()?.shipped, sent)?;
        let first = FirstCopy { sent, took };
        self.progress.say(&format!("blockctl sync {VOLUME} --to {NAME}, while the guest writes: {first}"));
        Ok(first)
    }

    /// Begins the job and watches some of its points.
    fn keep_up(&mut self) -> Result<Steady> {
        let (mut last, before) = (self.standing()?.snapshot, self.relay.carried());
        self.a.ctl(&["sync", VOLUME, "--to", NAME, "--every", EVERY])?;
        let (mut points, mut lag) = (0, Duration::ZERO);
        while points < POINTS {
            let now =
                self.wait_standing("the next point", |now| now.state == "ok" && now.snapshot != last)?;
            // The first one ends what was before the job.
            lag = if points == 0 { now.lag } else { lag.max(now.lag) };
            (last, points) = (now.snapshot, points + 1);
        }
        let steady = Steady { points, lag, sent: self.relay.carried() - before };
        self.progress.say(&format!("blockctl sync {VOLUME} --to {NAME} --every {EVERY}: {steady}"));
        self.show_jobs("ok")?;
        Ok(steady)
    }

    fn cut_and_heal(&mut self, writer: &mut Writer) -> Result<Catch> {
        // Between two runs: what an interrupted one had sent would not be sent again, and blur the count.
        self.wait_standing("a pause between two runs", |now| !now.is_running)?;
        let cut = Instant::now();
        self.relay.cut();
        self.progress.say("cutting the link; the guest writes on");
        let round = writer.begun()? + 1;
        writer.wait_round(round)?;
        let behind =
            self.wait_standing("the job to be behind", |now| now.state == "behind" && now.failures > 0)?;
        self.show_jobs("behind")?;
        let before = self.hold(&behind.snapshot)?;
        let (away, sent, healed) = (cut.elapsed(), self.relay.carried(), Instant::now());
        self.relay.heal();
        self.progress.say(&format!("healing the link after {}", seconds(away)));
        let fresh = |now: &Standing| now.is_fresh(FRESH) && now.snapshot != behind.snapshot;
        let fresh = self.wait_standing("a fresh copy after the link was healed", fresh)?;
        let (took, sent) = (healed.elapsed(), self.relay.carried() - sent);
        let after = self.hold(&fresh.snapshot)?;
        let changed = differing(&self.a.ask(&["snapshot", "diff", &before, &after])?)?;
        refuse_too_much(sent, changed)?;
        let reason = behind.reason.context("the job was behind without a reason")?;
        let catch = Catch { away, reason, lag: behind.lag, took, sent, changed };
        self.progress.say(&format!("caught up {catch}"));
        self.show_jobs("ok")?;
        Ok(catch)
    }

    /// The guest is off: what the second host has now must be what the guest has left. Ends the second host.
    pub(super) fn verify(mut self, sums: &Sums) -> Result<Replica> {
        let off = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let last = self.wait_standing("a point after the guest's end", |now| now.point_ms >= off)?;
        // A run that the pause ends may have cut one more snapshot.
        self.a.ctl(&["job", "pause", JOB])?;
        self.wait_standing("the job to rest", |now| !now.is_running)?;
        let name = format!("{VOLUME}@{}", last.snapshot);
        let disk = Disk::export(&self.b, &name)?;
        let (hash, hasher) = self.verify_hashes(&name, disk.file())?;
        disk.check()?;
        disk.check_files(sums)?;
        disk.remove()?;
        let replica = Replica { hash, hasher, files: sums.len() };
        self.progress.say(&format!("the replica at B: {replica}"));
        self.tidy_up()?;
        self.end()?;
        Ok(replica)
    }

    /// Both hosts, and who hashes the image as B serves it over NBD, must say the same.
    fn verify_hashes(&self, name: &str, image: &Path) -> Result<(String, &'static str)> {
        let hash = |host: &Host| first_word(&host.said(&["snapshot", "hash", name])?);
        let (image, hasher) = b3sum(image)?;
        let hash = all_equal([("A", hash(self.a)?), ("B", hash(&self.b)?), (hasher, image)])?;
        Ok((hash, hasher))
    }

    /// Job and snapshots of the first host go: the story there goes on without them.
    fn tidy_up(&self) -> Result<()> {
        self.a.ctl(&["job", "delete", JOB])?;
        let all = snapshots(&self.a.ask(&["snapshot", "list", VOLUME])?)?;
        for (name, holds) in all.into_iter().filter(|(name, _)| name.starts_with(SNAPSHOTS)) {
            for hold in holds {
                self.a.ctl(&["snapshot", "release", &name, &hold])?;
            }
            self.a.ctl(&["snapshot", "delete", &name])?;
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        let Self { b, daemon, progress, .. } = self;
        let took = daemon.stop()?;
        progress.say(&format!("host B stopped in {}; checking its store", millis(took)));
        b.fsck()
    }

    /// Keeps a snapshot of the first host, whatever the job's rules say; returns its whole name.
    fn hold(&self, snapshot: &str) -> Result<String> {
        let name = format!("{VOLUME}@{snapshot}");
        self.a.ctl(&["snapshot", "hold", &name, HOLD])?;
        Ok(name)
    }

    fn standing(&self) -> Result<Standing> {
        Standing::read(&self.a.ask(&["job", "show", JOB])?)
    }

    fn wait_standing(&mut self, what: &str, is_it: impl Fn(&Standing) -> bool) -> Result<Standing> {
        let mut last = None;
        let found: Result<Standing> = wait_until(what, JOB_TIMEOUT, || {
            self.daemon.refuse_ended().context("host B")?;
            let standing = self.standing()?;
            last = Some(standing.clone());
            Ok(is_it(&standing).then_some(standing))
        });
        found.with_context(|| format!("job {JOB} is not as expected: {last:?}"))
    }

    /// Shows what `job list` says, at a moment when it says this state: a run under way stands in its place.
    fn show_jobs(&self, state: &str) -> Result<()> {
        let listed: Result<String> = wait_until(&format!("{state} in the list of jobs"), JOB_TIMEOUT, || {
            let listed = self.a.said(&["job", "list"])?;
            Ok(has_state(&listed, state).then_some(listed))
        });
        listed?.lines().for_each(|line| self.progress.show(line));
        Ok(())
    }
}

/// Whether the job is in this state; the state's column is the last one.
fn has_state(listed: &str, state: &str) -> bool {
    let row = listed.lines().find(|line| line.starts_with(JOB));
    let last = row.and_then(|row| row.trim_end().rsplit("  ").next());
    last.and_then(|last| last.trim().strip_prefix(state))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(" ("))
}

/// Where a host listens for others, out of `host show`.
fn listens(answer: &Value) -> Result<SocketAddr> {
    let listens = answer.get("listen").and_then(Value::as_str).context("host B does not listen")?;
    listens.parse().with_context(|| format!("host B listens at {listens:?}, which is no address"))
}

/// Bytes that differ, out of `snapshot diff`.
fn differing(answer: &Value) -> Result<u64> {
    answer.get("bytes").and_then(Value::as_u64).context("blockctl snapshot diff said no number of bytes")
}

/// Snapshots and why they are held, out of `snapshot list`.
fn snapshots(answer: &Value) -> Result<Vec<(String, Vec<String>)>> {
    let snapshot = |value: &Value| {
        let text = |key: &str| value.get(key)?.as_str();
        let holds = value.get("holds")?.as_array()?.iter();
        let holds: Option<Vec<String>> = holds.map(|hold| hold.as_str().map(str::to_owned)).collect();
        Some((format!("{}@{}", text("volume")?, text("name")?), holds?))
    };
    let all = answer.get("snapshots").and_then(Value::as_array);
    let all = all.and_then(|all| all.iter().map(snapshot).collect());
    all.with_context(|| format!("blockctl snapshot list said {answer}"))
}

/// What a job says of its bytes must be what the link has carried.
fn refuse_wrong_count(told: u64, carried: u64) -> Result<()> {
    let most = told + told / OVERHEAD_PART + OVERHEAD_BYTES;
    ensure!(
        (told..=most).contains(&carried),
        "the job says that it has sent {told} bytes, the link has carried {carried}"
    );
    Ok(())
}

/// Only what has changed is sent, and what was written while that was under way: twice as much at most.
fn refuse_too_much(sent: u64, changed: u64) -> Result<()> {
    let most = 2 * changed + OVERHEAD_BYTES;
    ensure!(sent <= most, "{} were sent, and only {} had changed", bytes(sent), bytes(changed));
    Ok(())
}

/// What all of them say, or who says what.
fn all_equal(said: [(&str, String); 3]) -> Result<String> {
    let [(_, first), ..] = &said;
    if said.iter().all(|(_, hash)| hash == first) {
        return Ok(first.clone());
    }
    bail!("the replica's hashes differ: {}", said.map(|(who, hash)| format!("{who}: {hash}")).join(", "));
}

fn first_word(text: &str) -> Result<String> {
    Ok(text.split_whitespace().next().context("no hash was printed")?.to_owned())
}

/// BLAKE3 of a file, and who says so: the program where there is one, else the library that it is made of.
fn b3sum(file: &Path) -> Result<(String, &'static str)> {
    if find_program("b3sum").is_some() {
        let said = process::run(process::command("b3sum").arg(file))?.stdout;
        return Ok((first_word(&said)?, "b3sum"));
    }
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(opened).with_context(|| format!("cannot read {}", file.display()))?;
    Ok((hasher.finalize().to_hex().to_string(), "b3sum (the crate blake3)"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_that_counts_wrongly_is_refused() {
        let mib = |mib: u64| mib << 20;
        refuse_wrong_count(mib(100), mib(101)).unwrap();
        assert!(refuse_wrong_count(mib(100), mib(99)).is_err(), "less than it says");
        assert!(refuse_wrong_count(mib(100), mib(110)).is_err(), "more than it says");
    }

    #[test]
    fn everything_instead_of_what_has_changed_is_refused() {
        let mib = |mib: u64| mib << 20;
        refuse_too_much(mib(70), mib(40)).unwrap();
        let error = refuse_too_much(mib(200), mib(40)).unwrap_err().to_string();
        assert_eq!(error, "200.0 MiB were sent, and only 40.0 MiB had changed");
    }

    #[test]
    fn hashes_must_all_be_equal() {
        let said =
            |image: &str| [("A", "aa".to_owned()), ("B", "aa".to_owned()), ("b3sum", image.to_owned())];
        assert_eq!(all_equal(said("aa")).unwrap(), "aa");
        let error = all_equal(said("bb")).unwrap_err().to_string();
        assert_eq!(error, "the replica's hashes differ: A: aa, B: aa, b3sum: bb");
    }

    #[test]
    fn files_are_hashed_as_b3sum_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("empty");
        fs::write(&file, "").unwrap();
        // BLAKE3's own test vector for no input.
        let expected = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(b3sum(&file).unwrap().0, expected);
    }

    #[test]
    fn states_are_found_in_the_list_of_jobs() {
        let list = |state: &str| {
            format!(
                "JOB    FROM→TO  EVERY  LAG  SHIPPED  STATE\nweb-B  A→B      2s     14s  1.4 KiB  {state}\n"
            )
        };
        assert!(has_state(&list("ok"), "ok") && has_state(&list("behind (broke off, for 1s)"), "behind"));
        assert!(
            !has_state(&list("behind (broke off, for 1s)"), "ok") && !has_state(&list("sending 3 %"), "ok")
        );
        assert!(!has_state("no jobs\n", "ok"));
    }

    #[test]
    fn answers_are_read() {
        let list = json!({"snapshots": [{"volume": "web", "name": "s", "holds": ["demo", "base-B"]}]});
        let holds = vec!["demo".to_owned(), "base-B".to_owned()];
        assert_eq!(snapshots(&list).unwrap(), [("web@s".to_owned(), holds)]);
        assert!(snapshots(&json!({"snapshots": [{"volume": "web", "name": "s"}]})).is_err());
        assert_eq!(listens(&json!({"listen": "127.0.0.1:7"})).unwrap(), "127.0.0.1:7".parse().unwrap());
        assert!(listens(&json!({"listen": null})).is_err());
        assert_eq!(differing(&json!({"bytes": 4096})).unwrap(), 4096);
    }
}
