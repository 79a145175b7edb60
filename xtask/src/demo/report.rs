//! What the acts measured, and the table at the demo's end.

use std::fmt;
use std::time::Duration;

use super::guests::Finished;
use super::story::written_mib;
use super::words::Sums;

/// A disk image that became a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Import {
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes that the pool holds of it.
    pub(super) used: u64,
    pub(super) took: Duration,
}

/// A snapshot of a disk that was being written to.
#[derive(Debug)]
pub(super) struct Cut {
    /// The round that the guest was writing.
    pub(super) round: u32,
    /// What was durable before.
    pub(super) files: Sums,
    pub(super) took: Duration,
}

/// A clone, and the guest that ran on it beside the first.
#[derive(Debug)]
pub(super) struct Beside {
    /// Making the clone.
    pub(super) took: Duration,
    pub(super) boot: Duration,
    /// Rounds that the first guest began meanwhile.
    pub(super) meanwhile: u32,
    pub(super) guest: Finished,
}

/// A killed daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    /// From the kill until the next daemon answered.
    pub(super) away: Duration,
    /// The longest small durable write in the guest that ended after the kill.
    pub(super) pause: Duration,
    /// The median of those before.
    pub(super) usual: Duration,
}

/// A volume brought to another host for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FirstCopy {
    /// Bytes over the link.
    pub(super) sent: u64,
    pub(super) took: Duration,
}

/// A job while all was well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steady {
    /// Points that the other host has verified.
    pub(super) points: u32,
    /// The greatest lag that was seen.
    pub(super) lag: Duration,
    /// Bytes over the link.
    pub(super) sent: u64,
}

/// A link that was cut, and healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Catch {
    /// How long it was cut.
    pub(super) away: Duration,
    /// What the job said of it.
    pub(super) reason: String,
    /// The lag at the end of that.
    pub(super) lag: Duration,
    /// From the healing until the copy was fresh again.
    pub(super) took: Duration,
    /// Bytes over the link, for that.
    pub(super) sent: u64,
    /// Bytes that differ between the points before and after.
    pub(super) changed: u64,
}

/// How the second host followed the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Follow {
    pub(super) first: FirstCopy,
    pub(super) steady: Steady,
    pub(super) catch: Catch,
}

/// The replica, looked at from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replica {
    /// BLAKE3 of the image; both hosts and who hashed it agree.
    pub(super) hash: String,
    /// Who hashed it.
    pub(super) hasher: &'static str,
    /// Files that were there as the guest saw them.
    pub(super) files: usize,
}

/// Bytes of the pool in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) empty: u64,
    /// Before the first deletion.
    pub(super) most: u64,
    pub(super) after: u64,
    /// From the first deletion until everything was free.
    pub(super) took: Duration,
}

/// All that the demo found.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) accel: &'static str,
    pub(super) import: Import,
    pub(super) boot: Duration,
    pub(super) cut: Cut,
    pub(super) beside: Beside,
    pub(super) outage: Outage,
    pub(super) follow: Follow,
    pub(super) written: Finished,
    pub(super) replica: Replica,
    pub(super) rollback: Duration,
    pub(super) space: Space,
}

/// Bytes, for people.
pub(super) fn bytes(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes.div_ceil(1024)),
        0x10_0000..0x4000_0000 => format!("{mib:.1} MiB"),
        _ => format!("{:.1} GiB", mib / 1024.0),
    }
}

/// A short time, for people.
pub(super) fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (away, pause, usual) = (millis(self.away), millis(self.pause), millis(self.usual));
        write!(f, "blockd away {away}, the guest's longest small write {pause} (usually {usual})")
    }
}

/// A time of some seconds, for people.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl fmt::Display for FirstCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over the link in {}", bytes(self.sent), seconds(self.took))
    }
}

impl fmt::Display for Steady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (points, lag, sent) = (self.points, seconds(self.lag), bytes(self.sent));
        write!(f, "{points} verified points, lag {lag} at most, {sent} over the link")
    }
}

impl fmt::Display for Catch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (took, sent, changed) = (seconds(self.took), bytes(self.sent), bytes(self.changed));
        write!(f, "after {took}; {sent} over the link, {changed} had changed")
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.hash.get(..12).unwrap_or(&self.hash);
        let (hasher, files) = (self.hasher, self.files);
        write!(f, "{short}… say A, B and {hasher}; e2fsck clean, {files} files as the guest saw them")
    }
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of a {} disk in {}", bytes(self.used), bytes(self.size), millis(self.took))
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (empty, most, after) = (bytes(self.empty), bytes(self.most), bytes(self.after));
        write!(f, "{most} in use, {after} after deleting ({}), {empty} at the start", millis(self.took))
    }
}

impl Report {
    /// Names and values, in the order of the story.
    fn rows(&self) -> [(&'static str, String); 17] {
        [
            ("import", self.import.to_string()),
            ("power-on to script", self.boots()),
            (
                "snapshot",
                format!("{}, while the guest wrote round {}", millis(self.cut.took), self.cut.round),
            ),
            ("clone", millis(self.beside.took)),
            ("guest on the clone", self.found()),
            ("the first meanwhile", format!("wrote on, {} more rounds begun", self.beside.meanwhile)),
            ("kill -9 of blockd", format!("the next one answered after {}", millis(self.outage.away))),
            ("as the guest saw it", self.seen()),
            ("first copy to host B", format!("{}, while the guest wrote", self.follow.first)),
            ("synced every 2 s", self.follow.steady.to_string()),
            ("link cut", self.cut_off()),
            ("caught up", format!("{}, of {}", self.follow.catch, bytes(self.import.size))),
            ("replica", self.replica.to_string()),
            ("checked from outside", self.checked()),
            ("rollback", self.rolled_back()),
            ("space", self.space.to_string()),
            ("blockd fsck", "clean".to_owned()),
        ]
    }

    fn boots(&self) -> String {
        let (first, second) = (self.boot.as_secs_f64(), self.beside.boot.as_secs_f64());
        format!("{first:.1} s ({}); the second guest {second:.1} s", self.accel)
    }

    fn found(&self) -> String {
        let (found, files) = (self.beside.guest.verified, self.cut.files.len());
        format!("found {found} of {files} files that were durable at the snapshot")
    }

    fn seen(&self) -> String {
        let Outage { pause, usual, .. } = self.outage;
        format!("a small durable write took {}, usually {}; no error", millis(pause), millis(usual))
    }

    fn cut_off(&self) -> String {
        let Catch { away, reason, lag, .. } = &self.follow.catch;
        format!("for {}: behind by {}, {reason}", seconds(*away), seconds(*lag))
    }

    fn checked(&self) -> String {
        let (written, clone) = (&self.written, self.cut.files.len() + self.beside.guest.sums.len());
        let (files, mib) = (written.sums.len(), written_mib(written));
        format!(
            "e2fsck clean; {files} files ({mib} MiB written), {clone} on the clone, as the guests saw them"
        )
    }

    fn rolled_back(&self) -> String {
        let files = self.cut.files.len();
        format!("{}; the snapshot byte for byte, {files} files of then, none of later", millis(self.rollback))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows().iter().try_for_each(|(name, value)| writeln!(f, "  {name:<22}{value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(bytes(65536), "64 KiB");
        assert_eq!((bytes(1 << 30).as_str(), bytes(3 << 19).as_str()), ("1.0 GiB", "1.5 MiB"));
        let ms = Duration::from_millis;
        let outage = Outage { away: ms(80), pause: ms(1020), usual: ms(30) };
        assert_eq!(
            outage.to_string(),
            "blockd away 80 ms, the guest's longest small write 1020 ms (usually 30 ms)"
        );
    }
}
