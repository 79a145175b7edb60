//! What a run has found, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tally::Tally;
use super::{Pattern, Workload};
use crate::fio::Measurement;
use crate::trouble::Trouble;

/// The program that measured, in all output.
const CLIENT: &str = "nbd-load";

/// One run. The JSON of `nbd-load --json`; names are stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always `nbd-load`.
    pub client: String,
    /// What was done where.
    pub rw: Pattern,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests in flight on each connection.
    pub depth: u32,
    /// Connections.
    pub connections: u32,
    /// A flush after so many writes.
    pub fsync: Option<u32>,
    /// Whether structured replies were agreed on, on all connections.
    pub structured: bool,
    /// From the end of the warm-up to the last reply, seconds.
    pub seconds: f64,
    /// What fio's results have, too.
    #[serde(flatten)]
    pub measurement: Measurement,
    /// CPU time of the client by request, flushes included, microseconds. In clock ticks: short runs tell little.
    pub client_cpu_us_per_request: f64,
}

impl Report {
    /// Sums up.
    ///
    /// # Errors
    /// Nothing was answered in the time.
    pub(super) fn new(
        workload: &Workload,
        structured: bool,
        tally: &Tally,
        elapsed: Duration,
        cpu: Duration,
    ) -> Result<Self, Trouble> {
        if tally.ios() == 0 || elapsed.is_zero() {
            let next = "give it more --runtime, or look at the server's log";
            return Err(Trouble::new("measure the server", "no request was answered in the time", next));
        }
        let requests = tally.ios() + tally.flushes;
        Ok(Self {
            client: CLIENT.to_owned(),
            rw: workload.pattern,
            block_bytes: workload.block_bytes,
            depth: workload.depth,
            connections: workload.connections,
            fsync: workload.flush_every,
            structured,
            seconds: elapsed.as_secs_f64(),
            measurement: measurement(workload, tally, elapsed.as_secs_f64()),
            client_cpu_us_per_request: cpu.as_secs_f64() * 1e6 / requests as f64,
        })
    }
}

fn measurement(workload: &Workload, tally: &Tally, seconds: f64) -> Measurement {
    let us = |ns: u64| ns as f64 / 1e3;
    let latency = &tally.latency;
    let iops = tally.ios() as f64 / seconds;
    Measurement {
        iops,
        mib_per_s: iops * f64::from(workload.block_bytes) / f64::from(1 << 20),
        p50_us: us(latency.per_mille(500)),
        p99_us: us(latency.per_mille(990)),
        p999_us: us(latency.per_mille(999)),
        max_us: us(latency.max()),
        ios: tally.ios(),
        flushes: tally.flushes,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { measurement: m, block_bytes, depth, connections, seconds, .. } = self;
        let replies = if self.structured { "structured" } else { "simple" };
        let pattern = format!("{:?}", self.rw).to_lowercase();
        writeln!(
            f,
            "{CLIENT}: {pattern}, {block_bytes} bytes, depth {depth}, {connections} connection(s), {replies} replies"
        )?;
        writeln!(f, "  {:.0} IOPS, {:.1} MiB/s over {seconds:.2} s", m.iops, m.mib_per_s)?;
        writeln!(
            f,
            "  latency us: p50 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}",
            m.p50_us, m.p99_us, m.p999_us, m.max_us
        )?;
        write!(
            f,
            "  {} reads or writes, {} flushes; the client's CPU: {:.2} us a request",
            m.ios, m.flushes, self.client_cpu_us_per_request
        )
    }
}

/// Reads a block size such as `4k`, `256k` or `1m`; no more than a request may carry.
///
/// Units: bytes; suffixes are powers of 1024.
/// # Errors
/// No number, an unknown suffix, nothing, or more than the protocol's 32 MiB.
pub fn block_bytes(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K', 'm', 'M']) {
        Some(digits) if text.ends_with(['k', 'K']) => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (text, 1),
    };
    let number: u32 = digits.parse().map_err(|_| "expected a number, with k or m".to_owned())?;
    let max = nbd_server::wire::MAX_PAYLOAD_BYTES;
    match number.checked_mul(unit) {
        Some(bytes) if (1..=max).contains(&bytes) => Ok(bytes),
        _ => Err(format!("expected 1 to {} MiB", max >> 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_read_as_fio_reads_them() {
        for (text, bytes) in [("512", 512), ("4k", 4096), ("64K", 65_536), ("1m", 1 << 20), ("32M", 32 << 20)]
        {
            assert_eq!(block_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "0", "-4k", "4g", "4kk", "33m", "4294967296", "4194304k"] {
            assert!(block_bytes(text).is_err(), "{text}");
        }
    }

    fn sample() -> Report {
        let mut tally = Tally { flushes: 100, ..Tally::default() };
        (1..=1000).for_each(|us| tally.latency.add(us * 1000));
        let workload = Workload {
            pattern: Pattern::RandWrite,
            block_bytes: 4096,
            depth: 64,
            connections: 2,
            flush_every: Some(10),
            seed: 0,
        };
        Report::new(&workload, true, &tally, Duration::from_secs(2), Duration::from_millis(11)).unwrap()
    }

    #[test]
    fn figures_are_by_second_and_by_request() {
        let report = sample();
        let Measurement { iops, mib_per_s, p50_us, p999_us, max_us, .. } = report.measurement;
        assert_eq!((iops, mib_per_s), (500.0, 500.0 / 256.0));
        assert!((500.0..508.0).contains(&p50_us) && (999.0..=1000.0).contains(&p999_us), "{report}");
        assert_eq!((max_us, report.client_cpu_us_per_request), (1000.0, 10.0));
    }

    #[test]
    fn the_json_is_read_as_it_was_written() {
        let report = sample();
        let json = serde_json::to_value(&report).unwrap();
        for (name, value) in [("client", "nbd-load"), ("rw", "randwrite")] {
            assert_eq!(json[name], value);
        }
        assert_eq!((&json["ios"], &json["flushes"]), (&1000.into(), &100.into()));
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }

    #[test]
    fn nothing_done_is_no_measurement() {
        let workload = Workload {
            pattern: Pattern::Read,
            block_bytes: 1,
            depth: 1,
            connections: 1,
            flush_every: None,
            seed: 0,
        };
        let none = Report::new(&workload, true, &Tally::default(), Duration::from_secs(1), Duration::ZERO);
        assert!(none.unwrap_err().why.contains("no request"));
    }
}
