//! The story, act by act. Whatever an act claims, it has measured or checked; what is not as claimed is an error.
//!
//! ```text
//!  import ─► web ── guest 1 writes ──┬─────────── kill -9 ── goes on ── off ── check ── roll back to first ── check
//!                                    └ first ─► copy ── guest 2 checks ── off ── check            then delete all
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::daemon::{Daemon, Host};
use super::disk::Disk;
use super::guests::{FILE_MIB, Finished, Machines, Writer};
use super::pair::Pair;
use super::report::{Beside, Cut, Import, Outage, Report, Space, bytes, millis};
use super::words::{self, Sums};
use crate::progress::Progress;

/// The volume, its clone, and the names of snapshots.
pub(super) const VOLUME: &str = "web";
const COPY: &str = "copy";
const FIRST: &str = "web@first";
const ENDS: [&str; 2] = ["web@end", "copy@end"];
const BACK: &str = "web@back";

/// Rounds that the guest writes before the snapshot: something to find in it.
const ROUNDS_BEFORE: u32 = 2;
/// How often the snapshot is tried again because the guest had ended its round meanwhile.
const CUT_TRIES: u32 = 5;

/// Who acts.
pub(super) struct Story<'a> {
    pub(super) host: &'a Host,
    pub(super) machines: &'a Machines,
    pub(super) progress: &'a Progress,
}

impl Story<'_> {
    /// Starts the daemon, then all acts; a daemon that ended by itself is named as the cause.
    pub(super) fn tell(&self, image: &Path) -> Result<Report> {
        self.progress.say("starting blockd on a new store");
        // Before the guests, so that it ends after them: a guest's end flushes its disk.
        let mut daemon = self.host.start()?;
        let report = self.act(&mut daemon, image);
        let ended = daemon.refuse_ended();
        let report = report.map_err(|error| match ended {
            Ok(()) => error,
            Err(cause) => cause.context(error),
        })?;
        let took = daemon.stop()?;
        self.progress.say(&format!("blockd stopped in {}; checking its store", millis(took)));
        self.host.fsck()?;
        Ok(report)
    }

    /// All that happens while the daemon runs.
    fn act(&self, daemon: &mut Daemon, image: &Path) -> Result<Report> {
        let empty = self.host.status()?.used_bytes;
        let import = self.import(image)?;
        let (mut writer, boot) = self.boot()?;
        let cut = self.cut(&mut writer)?;
        let beside = self.clone_beside(&writer, &cut)?;
        let outage = self.kill(daemon, &mut writer)?;
        let mut pair = Pair::start(self.host, self.progress)?;
        let follow = pair.follow(&mut writer)?;
        let written = self.finish(writer)?;
        let replica = pair.verify(&written.sums)?;
        self.check_both(&written, &cut, &beside.guest)?;
        let rollback = self.roll_back(&cut)?;
        let space = self.delete_all(empty)?;
        let accel = self.machines.accel.name();
        Ok(Report { accel, import, boot, cut, beside, outage, follow, written, replica, rollback, space })
    }

    fn import(&self, image: &Path) -> Result<Import> {
        let before = self.host.status()?.used_bytes;
        let name = image.to_str().context("the image's path is no UTF-8")?;
        let took = self.host.ctl(&["volume", "import", VOLUME, name, "--format", "raw"])?;
        let size = image.metadata()?.len();
        let used = self.host.status()?.used_bytes - before;
        let told = format!("{} of {}", bytes(used), bytes(size));
        self.progress.say(&format!("imported the guest's disk as {VOLUME}: {told} in {}", millis(took)));
        Ok(Import { size, used, took })
    }

    fn boot(&self) -> Result<(Writer, Duration)> {
        let accel = self.machines.accel.name();
        self.progress.say(&format!("booting a guest from {VOLUME} over NBD ({accel})"));
        let (mut writer, boot) = self.machines.start_writer(VOLUME)?;
        let seconds = boot.as_secs_f64();
        self.progress.say(&format!("it is up after {seconds:.1} s and writes files, round by round"));
        writer.wait_round(ROUNDS_BEFORE)?;
        Ok((writer, boot))
    }

    /// A snapshot within a round; another try if the round had ended when the snapshot was there.
    fn cut(&self, writer: &mut Writer) -> Result<Cut> {
        for _ in 0..CUT_TRIES {
            let round = writer.next_round()?;
            let files = words::sums(&writer.console()?);
            let took = self.host.ctl(&["snapshot", "create", FIRST])?;
            if writer.is_writing(round)? {
                let count = files.len();
                self.progress.say(&format!(
                    "snapshot {FIRST} in {}, while the guest wrote round {round}; {count} files were durable",
                    millis(took)
                ));
                return Ok(Cut { round, files, took });
            }
            self.host.ctl(&["snapshot", "delete", FIRST])?;
        }
        bail!("the guest ended its round before each of {CUT_TRIES} snapshots: nothing shown, try again")
    }

    /// A clone of the snapshot, and a guest on it that finds what was durable then; the first guest goes on.
    fn clone_beside(&self, writer: &Writer, cut: &Cut) -> Result<Beside> {
        let took = self.host.ctl(&["clone", FIRST, COPY])?;
        self.progress.say(&format!(
            "clone {COPY} in {}; booting a second guest from it, beside the first",
            millis(took)
        ));
        let before = writer.begun()?;
        let (checker, boot) = self.machines.start_checker(COPY, &cut.files, cut.round + 1)?;
        let guest = checker.finish().context("the guest on the clone")?;
        expect("files that the second guest found", guest.verified, cut.files.len())?;
        let meanwhile = writer.begun()? - before;
        if meanwhile == 0 {
            bail!("the first guest did not go on while the second one ran");
        }
        self.progress.say(&format!(
            "it found all {} files as they were, wrote its own, powered off; meanwhile {meanwhile} rounds in the first",
            guest.verified
        ));
        Ok(Beside { took, boot, meanwhile, guest })
    }

    /// Kills the daemon under the writing guest, starts another, and waits until the guest has gone on.
    fn kill(&self, daemon: &mut Daemon, writer: &mut Writer) -> Result<Outage> {
        let round = writer.next_round()?;
        let before = words::beats(&writer.console()?)?;
        let killed = Instant::now();
        daemon.kill()?;
        let when = if writer.is_writing(round)? { "in the middle of" } else { "after" };
        self.progress.say(&format!("kill -9 of blockd, {when} round {round}; starting it again"));
        *daemon = self.host.start()?;
        let away = killed.elapsed();
        writer.wait_round(round + 1).context("the guest did not go on")?;
        let console = writer.console()?;
        words::refuse_complaints(&console)?;
        let across = words::beats(&console)?.split_off(before.len());
        let pause = across.into_iter().max().context("the guest wrote nothing after the kill")?;
        let outage = Outage { away, pause, usual: median(before)? };
        self.progress.say(&format!("the guest goes on and saw no error: {outage}"));
        Ok(outage)
    }

    fn finish(&self, writer: Writer) -> Result<Finished> {
        self.progress.say("the guest reads everything back and powers off");
        let written = writer.finish()?;
        expect("files that the guest read back", written.verified, written.sums.len())?;
        Ok(written)
    }

    /// Both file systems as they are now, from outside.
    fn check_both(&self, written: &Finished, cut: &Cut, copy: &Finished) -> Result<()> {
        self.progress.say("checking both volumes from outside: e2fsck, and every file's checksum");
        self.host.wait_without_clients()?;
        self.host.ctl(&["snapshot", "create", ENDS[0], ENDS[1]])?;
        let found = self.check(ENDS[0], &written.sums)?;
        if let Some(path) = found.keys().find(|path| path.starts_with("/data/own")) {
            bail!("{path}, written on the clone, is in the volume too");
        }
        let mut expected = cut.files.clone();
        expected.extend(copy.sums.clone());
        refuse_later(&self.check(ENDS[1], &expected)?, cut.round)
    }

    /// Checks a file system that was unmounted, and its files.
    fn check(&self, name: &str, expected: &Sums) -> Result<Sums> {
        let disk = Disk::export(self.host, name)?;
        disk.check()?;
        let found = disk.check_files(expected)?;
        disk.remove()?;
        Ok(found)
    }

    /// The volume as it was at the first snapshot: the same bytes, and the files of then.
    fn roll_back(&self, cut: &Cut) -> Result<Duration> {
        let took = self.host.ctl(&["snapshot", "rollback", FIRST, "--yes"])?;
        self.progress.say(&format!("rolled {VOLUME} back to {FIRST} in {}; checking it", millis(took)));
        self.host.ctl(&["snapshot", "create", BACK])?;
        let (first, back) = (Disk::export(self.host, FIRST)?, Disk::export(self.host, BACK)?);
        back.refuse_difference(&first)?;
        first.remove()?;
        // It was cut from a mounted file system: the journal comes first, as at mounting.
        back.replay_journal()?;
        back.check()?;
        refuse_later(&back.check_files(&cut.files)?, cut.round)?;
        back.remove()?;
        Ok(took)
    }

    /// Deletes both volumes and all snapshots; what they used must be free again.
    fn delete_all(&self, empty: u64) -> Result<Space> {
        let most = self.host.status()?.used_bytes;
        self.progress.say(&format!("deleting everything: {} are in use", bytes(most)));
        let began = Instant::now();
        for name in [FIRST, ENDS[0], ENDS[1], BACK] {
            self.host.ctl(&["snapshot", "delete", name])?;
        }
        for name in [COPY, VOLUME] {
            self.host.ctl(&["volume", "delete", name, "--yes"])?;
        }
        let after = self.host.wait_reclaimed(empty)?;
        Ok(Space { empty, most, after, took: began.elapsed() })
    }
}

/// Files of rounds that began after a snapshot must not be in it.
fn refuse_later(found: &Sums, round: u32) -> Result<()> {
    let number = |path: &str| path.strip_prefix("/data/round-")?.split('/').next()?.parse::<u32>().ok();
    match found.keys().find(|path| number(path).is_some_and(|number| number > round)) {
        Some(path) => bail!("{path} is of a later round than the snapshot, which was made in round {round}"),
        None => Ok(()),
    }
}

fn expect(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { bail!("{what}: {found} instead of {expected}") }
}

fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("the guest measured nothing before the kill")
}

/// What the rounds wrote, rewritten file included.
pub(super) fn written_mib(written: &Finished) -> u64 {
    let files = u64::from(written.rounds) * u64::from(super::guests::FILES + 1);
    files * u64::from(FILE_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_rounds_are_refused() {
        let sums = |path: &str| Sums::from([(path.to_owned(), String::new())]);
        refuse_later(&sums("/data/round-3/file-1"), 3).unwrap();
        refuse_later(&sums("/data/rewritten"), 3).unwrap();
        assert!(refuse_later(&sums("/data/round-10/file-1"), 3).is_err());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let times = [5, 1, 9].map(Duration::from_millis).to_vec();
        assert_eq!(median(times).unwrap(), Duration::from_millis(5));
        assert!(median(Vec::new()).is_err());
    }
}
