//! The load generator: fio's command line, running it, and reading its JSON.
//!
//! Every server sees the same client, fio's nbd engine on libnbd; [`crate::client`] has another. Known limits of that client: one connection
//! a job, no FUA, four receive calls a structured read; so the class *ceiling* shows how much it can carry.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::interrupt::Interrupt;
use crate::jobs::Job;
use crate::process::{last_words, run_to_end};
use crate::trouble::Trouble;

/// How long a client may take beyond its run time: to connect, to flush and to end.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
/// How long filling a memory server may take.
const FILL_WITHIN: Duration = Duration::from_secs(600);

/// What the load goes to.
#[derive(Debug, Clone, Copy)]
pub enum Aim<'a> {
    /// A server, by its URI.
    Uri(&'a str),
    /// A file, past the page cache.
    File(&'a Path),
    /// A guest's disk, as the guest calls it, past the guest's page cache.
    Device(&'a str),
}

impl Aim<'_> {
    fn arguments(self) -> Vec<String> {
        match self {
            Self::Uri(uri) => vec!["--ioengine=nbd".into(), format!("--uri={uri}")],
            Self::File(path) => vec![
                "--ioengine=io_uring".into(),
                "--direct=1".into(),
                "--registerfiles=1".into(),
                "--fixedbufs=1".into(),
                format!("--filename={}", path.display()),
            ],
            Self::Device(path) => {
                vec!["--ioengine=libaio".into(), "--direct=1".into(), format!("--filename={path}")]
            }
        }
    }
}

/// The URI of an export on a Unix socket.
///
/// Bytes of the path that a URI gives a meaning of its own are percent-encoded.
pub fn uri(export: &str, socket: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let path: String = socket.to_string_lossy().bytes().map(encode).collect();
    format!("nbd+unix:///{export}?socket={path}")
}

/// The complete command of one job.
///
/// No ramp time: the server's CPU time is sampled around the whole of fio, and its I/Os are counted likewise.
/// Other offsets in every run (`randrepeat=0`), so that no server finds the host's cache warmed by the one
/// before. Threads, not processes: stopping fio then stops all of it.
pub fn command(job: &Job, aim: Aim<'_>, runtime_s: u32) -> Vec<String> {
    let mut line: Vec<String> = vec!["fio".into(), format!("--name={}", job.name)];
    line.extend(aim.arguments());
    line.push(format!("--rw={}", job.rw));
    line.push(format!("--bs={}", job.bs));
    line.push(format!("--iodepth={}", job.iodepth));
    line.push(format!("--numjobs={}", job.numjobs));
    line.extend(job.rwmixread.map(|percent| format!("--rwmixread={percent}")));
    line.extend(job.fsync.map(|writes| format!("--fsync={writes}")));
    line.extend(job.rate_iops.map(|most| format!("--rate_iops={most}")));
    line.push(format!("--runtime={runtime_s}"));
    line.extend(["--time_based", "--ramp_time=0", "--norandommap", "--randrepeat=0"].map(str::to_owned));
    line.extend(reporting());
    line
}

/// How much of a load there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many seconds, blocks drawn again and again.
    Seconds(u32),
    /// So many blocks, each at most once, or as many of them as can be done in the time.
    Blocks {
        /// How many.
        count: u64,
        /// The time.
        seconds_max: u32,
    },
}

/// A load that is no [`Job`]: limited in blocks or in the range it goes to.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    /// fio's `rw`.
    pub rw: &'static str,
    /// Block size, bytes.
    pub block_bytes: u64,
    /// Requests in flight.
    pub iodepth: u32,
    /// How much, on each connection.
    pub amount: Amount,
    /// Connections.
    pub jobs: u32,
    /// Only so many bytes from the beginning of the export; with several connections each has as many, one after the
    /// other, so that no two of them draw the same block.
    pub range_bytes: Option<u64>,
    /// A flush after so many writes.
    pub flush_every: Option<u32>,
    /// Where the latency of every request goes, as fio writes it; fio adds `_lat.1.log`.
    pub latency_log: Option<&'a Path>,
}

impl Load<'_> {
    /// Random 4 KiB requests on the whole export.
    pub fn random_4k(rw: &'static str, iodepth: u32, amount: Amount) -> Self {
        Self {
            rw,
            block_bytes: 4096,
            iodepth,
            amount,
            jobs: 1,
            range_bytes: None,
            flush_every: None,
            latency_log: None,
        }
    }

    fn seconds_max(&self) -> u32 {
        match self.amount {
            Amount::Seconds(seconds) | Amount::Blocks { seconds_max: seconds, .. } => seconds,
        }
    }

    /// The complete command on an export.
    pub fn command(&self, uri: &str) -> Vec<String> {
        let mut line: Vec<String> = vec!["fio".into(), "--name=load".into()];
        line.extend(Aim::Uri(uri).arguments());
        line.extend([
            format!("--rw={}", self.rw),
            format!("--bs={}", self.block_bytes),
            format!("--iodepth={}", self.iodepth),
            format!("--numjobs={}", self.jobs),
            format!("--runtime={}", self.seconds_max()),
            "--randrepeat=0".into(),
        ]);
        line.extend(self.flush_every.map(|writes| format!("--fsync={writes}")));
        if let Some(bytes) = self.range_bytes {
            line.extend([format!("--size={bytes}"), format!("--offset_increment={bytes}")]);
        }
        match self.amount {
            Amount::Seconds(_) => line.extend(["--time_based", "--norandommap"].map(str::to_owned)),
            // With fio's map of what was done, no block is drawn twice.
            Amount::Blocks { count, .. } => line.push(format!("--io_size={}", count * self.block_bytes)),
        }
        if let Some(prefix) = self.latency_log {
            line.push(format!("--write_lat_log={}", prefix.display()));
            line.push("--log_unix_epoch=1".into());
        }
        line.extend(reporting());
        line
    }
}

/// Writes the whole of an export once.
fn fill_command(uri: &str) -> Vec<String> {
    let mut line: Vec<String> = vec!["fio".into(), "--name=fill".into()];
    line.extend(Aim::Uri(uri).arguments());
    line.extend(["--rw=write", "--bs=1m", "--iodepth=8"].map(str::to_owned));
    line.extend(reporting());
    line
}

/// One group, reads and writes also as one side, and the whole latency instead of the completion's part.
fn reporting() -> [String; 6] {
    [
        "--thread",
        "--group_reporting",
        "--unified_rw_reporting=both",
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        "--output-format=json",
    ]
    .map(str::to_owned)
}

/// What fio measured. Latencies from queueing to completion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Reads, writes and trims a second.
    pub iops: f64,
    /// MiB a second.
    pub mib_per_s: f64,
    /// Median latency, microseconds.
    pub p50_us: f64,
    /// 99th percentile, microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, microseconds.
    pub p999_us: f64,
    /// The longest, microseconds.
    pub max_us: f64,
    /// Reads, writes and trims in total.
    pub ios: u64,
    /// Flushes in total.
    pub flushes: u64,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<JobOutput>,
}

#[derive(Deserialize)]
struct JobOutput {
    error: i32,
    mixed: Side,
    sync: SyncSide,
}

#[derive(Deserialize)]
struct Side {
    iops: f64,
    bw_bytes: f64,
    total_ios: u64,
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct SyncSide {
    total_ios: u64,
}

#[derive(Deserialize)]
struct Latency {
    max: f64,
    percentile: Option<Percentiles>,
}

#[derive(Deserialize)]
struct Percentiles {
    #[serde(rename = "50.000000")]
    p50: f64,
    #[serde(rename = "99.000000")]
    p99: f64,
    #[serde(rename = "99.900000")]
    p999: f64,
}

/// Reads fio's JSON. Lines before it, which fio uses for remarks, are skipped.
///
/// # Errors
/// It is no JSON of fio's, has not exactly one group, or the job failed or did nothing.
pub fn parse(text: &str) -> Result<Measurement, Trouble> {
    let broken =
        |why: String| Trouble::new("read fio's result", why, "use fio 3.33 or later (fio --version)");
    let json = text.find("{\n").and_then(|start| text.get(start..)).unwrap_or(text);
    let output: Output = serde_json::from_str(json).map_err(|error| broken(error.to_string()))?;
    let [job] = output.jobs.as_slice() else {
        return Err(broken(format!("{} groups instead of one", output.jobs.len())));
    };
    if job.error != 0 {
        return Err(broken(format!("the job failed with errno {}", job.error)));
    }
    let percentile = job.mixed.lat_ns.percentile.as_ref();
    let percentile = percentile.ok_or_else(|| broken("not one I/O was done".to_owned()))?;
    Ok(measurement(job, percentile))
}

fn measurement(job: &JobOutput, percentile: &Percentiles) -> Measurement {
    Measurement {
        iops: job.mixed.iops,
        mib_per_s: job.mixed.bw_bytes / f64::from(1 << 20),
        p50_us: percentile.p50 / 1e3,
        p99_us: percentile.p99 / 1e3,
        p999_us: percentile.p999 / 1e3,
        max_us: job.mixed.lat_ns.max / 1e3,
        ios: job.mixed.total_ios,
        flushes: job.sync.total_ios,
    }
}

/// fio, with a place for its files.
#[derive(Debug)]
pub struct Fio<'a> {
    /// Directory for its output.
    pub dir: &'a Path,
    /// The CPU it is tied to.
    pub cpu: Option<u32>,
    /// Ends it early.
    pub interrupt: &'a Interrupt,
}

impl Fio<'_> {
    /// Runs one job.
    ///
    /// # Errors
    /// fio cannot be started, fails, does not end in time, or somebody asked to stop.
    pub fn run(&self, job: &Job, aim: Aim<'_>, runtime_s: u32) -> Result<Measurement, Trouble> {
        let limit = Duration::from_secs(runtime_s.into()) + GRACE;
        parse(&self.output_of(command(job, aim, runtime_s), limit)?)
    }

    /// Runs a load on an export.
    ///
    /// # Errors
    /// As of [`Self::run`].
    pub fn load(&self, load: &Load<'_>, uri: &str) -> Result<Measurement, Trouble> {
        let limit = Duration::from_secs(load.seconds_max().into()) + GRACE;
        parse(&self.output_of(load.command(uri), limit)?)
    }

    /// Writes the whole of an export once.
    ///
    /// # Errors
    /// As of [`Self::run`].
    pub fn fill(&self, uri: &str) -> Result<(), Trouble> {
        parse(&self.output_of(fill_command(uri), FILL_WITHIN)?).map(|_| ())
    }

    fn output_of(&self, mut line: Vec<String>, limit: Duration) -> Result<String, Trouble> {
        let (output, log) = (self.dir.join("fio.json"), self.dir.join("fio.log"));
        line.push(format!("--output={}", output.display()));
        let status = run_to_end(&line, &log, self.cpu, limit, self.interrupt)?;
        let failed =
            |why: String| Trouble::new("run fio", why, format!("try it by hand: {}", line.join(" ")));
        if !status.success() {
            return Err(failed(last_words(&log)));
        }
        fs::read_to_string(&output).map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs;

    const SAMPLE: &str = include_str!("../tests/fio-3.33-randrw.json");

    #[test]
    fn a_captured_result_is_read() {
        let got = parse(SAMPLE).unwrap();
        assert!((got.iops - 77_630.369_63).abs() < 0.01, "{got:?}");
        assert_eq!((got.ios, got.flushes), (77_708, 4_306));
        assert!((got.mib_per_s - got.iops / 256.0).abs() < 0.1, "{got:?}");
        assert!(got.p50_us > 1.0 && got.p50_us < got.p99_us && got.p99_us < got.p999_us, "{got:?}");
    }

    #[test]
    fn remarks_before_the_json_are_skipped() {
        let with_remark = format!("note: something {{odd}}\n{SAMPLE}");
        assert_eq!(parse(&with_remark), parse(SAMPLE));
    }

    #[test]
    fn a_failed_job_is_no_measurement() {
        let failed = SAMPLE.replace("\"error\" : 0", "\"error\" : 5");
        assert!(parse(&failed).unwrap_err().why.contains("errno 5"));
        assert!(parse("{}").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn the_command_carries_the_whole_job() {
        let job = jobs::find("randwrite-4k-qd8-jobs4-fsync32").unwrap();
        let line = command(job, Aim::Uri("nbd+unix:///?socket=/s"), 3).join(" ");
        for part in ["--rw=randwrite", "--bs=4k", "--iodepth=8", "--numjobs=4", "--fsync=32", "--runtime=3"] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
        assert!(!line.contains("rwmixread"));
    }

    #[test]
    fn a_load_limited_in_blocks_takes_none_twice() {
        let blocks = Load::random_4k("randwrite", 64, Amount::Blocks { count: 1000, seconds_max: 5 });
        let line = blocks.command("nbd+unix:///v?socket=/s").join(" ");
        assert!(line.contains("--io_size=4096000") && line.contains("--runtime=5"), "{line}");
        assert!(!line.contains("norandommap") && !line.contains("time_based"), "{line}");
        let seconds = Load::random_4k("randread", 64, Amount::Seconds(3)).command("u").join(" ");
        assert!(seconds.contains("--time_based --norandommap"), "{seconds}");
    }

    #[test]
    fn connections_have_parts_of_their_own() {
        let amount = Amount::Blocks { count: 8, seconds_max: 5 };
        let load = Load { jobs: 4, range_bytes: Some(1 << 20), ..Load::random_4k("randwrite", 8, amount) };
        let line = load.command("u").join(" ");
        for part in ["--numjobs=4", "--size=1048576", "--offset_increment=1048576"] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }

    #[test]
    fn a_socket_path_survives_the_uri() {
        assert_eq!(uri("bench", Path::new("/t/a b?c")), "nbd+unix:///bench?socket=/t/a%20b%3Fc");
    }
}
