//! What the guest printed, read; and the table at the demo's end.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

const MIB: f64 = (1 << 20) as f64;

/// What the guest measured and saw.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GuestWords {
    pub(crate) write: Transfer,
    pub(crate) read: Transfer,
    pub(crate) disk: DiskRequests,
    pub(crate) sums: Vec<FileSum>,
}

/// Bytes moved in a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Transfer {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// Requests that the guest's disk completed since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskRequests {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
}

/// A file in the guest and the checksum that the guest saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileSum {
    pub(crate) path: String,
    pub(crate) md5: String,
}

/// What the server used from its start to just before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerUse {
    pub(crate) cpu: Duration,
    pub(crate) memory_peak_kib: u64,
}

/// All that the demo found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) accel: &'static str,
    pub(crate) boot: Duration,
    pub(crate) guest: GuestWords,
    pub(crate) server: ServerUse,
    pub(crate) stop: Duration,
}

impl GuestWords {
    /// Finds the lines of `guest.sh` on the console.
    pub(crate) fn parse(console: &str) -> Result<Self> {
        Ok(Self {
            write: Transfer::parse(line(console, "DEMO-WRITE")?)?,
            read: Transfer::parse(line(console, "DEMO-READ")?)?,
            disk: DiskRequests::parse(line(console, "DEMO-DISK")?)?,
            sums: console.lines().filter_map(FileSum::parse).collect(),
        })
    }
}

impl Transfer {
    fn parse(text: &str) -> Result<Self> {
        let field = |key: &str| {
            let value = text.split_whitespace().find_map(|word| word.strip_prefix(key));
            value.with_context(|| format!("the guest printed no {key} in {text:?}"))
        };
        let (from, to): (f64, f64) = (field("from=")?.parse()?, field("to=")?.parse()?);
        // The guest's clock shows hundredths: a shorter transfer counts as one.
        Ok(Self { bytes: field("bytes=")?.parse()?, seconds: (to - from).max(0.01) })
    }
}

impl DiskRequests {
    /// From the numbers of `/sys/block/*/stat`: reads are the first, writes the fifth, flushes the sixteenth.
    fn parse(text: &str) -> Result<Self> {
        let numbers: Vec<&str> = text.split_whitespace().collect();
        let number = |at: usize| -> Result<u64> {
            let text =
                numbers.get(at).with_context(|| format!("the guest printed {} numbers", numbers.len()))?;
            Ok(text.parse()?)
        };
        Ok(Self { reads: number(0)?, writes: number(4)?, flushes: number(15)? })
    }
}

impl FileSum {
    fn parse(line: &str) -> Option<Self> {
        let (md5, path) = line.trim().strip_prefix("DEMO-SUM ")?.split_once(' ')?;
        Some(Self { path: path.to_owned(), md5: md5.to_owned() })
    }
}

/// What follows `marker` on its line.
fn line<'a>(console: &'a str, marker: &str) -> Result<&'a str> {
    let found = console.lines().find_map(|line| line.trim().strip_prefix(marker));
    found.with_context(|| format!("the guest never printed {marker}"))
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes as f64 / MIB;
        write!(f, "{mib:.0} MiB in {:.2} s: {:.0} MiB/s", self.seconds, mib / self.seconds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (guest, disk, server) = (&self.guest, &self.guest.disk, &self.server);
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<24}{value}");
        row("accelerator", self.accel.to_owned())?;
        row("power-on to script", format!("{:.1} s", self.boot.as_secs_f64()))?;
        row("guest wrote, with sync", guest.write.to_string())?;
        row("guest read back", guest.read.to_string())?;
        let requests = format!("{} reads, {} writes, {} flushes", disk.reads, disk.writes, disk.flushes);
        row("guest's disk requests", requests)?;
        let memory = server.memory_peak_kib / 1024;
        row("server used", format!("{:.2} s CPU, {memory} MiB at most", server.cpu.as_secs_f64()))?;
        row("server stopped", format!("exit 0, {:.2} s after SIGTERM", self.stop.as_secs_f64()))?;
        row("e2fsck -fn", "clean".to_owned())?;
        let files = guest.sums.len();
        row("checksums from outside", format!("{files} of {files} files as the guest saw them"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "GUEST-READY up=1\nDEMO-WRITE bytes=2097152 from=0.95 to=1.45\n\
        DEMO-READ bytes=2097152 from=2.00 to=2.00\nDEMO-SUM abc /data/file-1\nDEMO-SUM def /data/file-2\n\
        DEMO-DISK      10 0 0 0 20 0 0 0 0 0 0 0 0 0 0 3 0\nGUEST-DONE rc=0\n";

    #[test]
    fn the_guests_words_are_read() {
        let words = GuestWords::parse(CONSOLE).unwrap();
        assert_eq!(words.write.to_string(), "2 MiB in 0.50 s: 4 MiB/s");
        assert_eq!(words.read.seconds, 0.01, "never a division by zero");
        assert_eq!(words.disk, DiskRequests { reads: 10, writes: 20, flushes: 3 });
        assert_eq!(words.sums[1], FileSum { path: "/data/file-2".into(), md5: "def".into() });
    }

    #[test]
    fn a_missing_line_is_named() {
        let error = GuestWords::parse("GUEST-DONE rc=0\n").unwrap_err().to_string();
        assert_eq!(error, "the guest never printed DEMO-WRITE");
    }
}
