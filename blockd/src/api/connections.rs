//! Who is connected over NBD, as the API shows it.

use std::time::UNIX_EPOCH;

use nbd_server::registry::{BUCKETS_US, Connected, Counts, Latency};
use serde::{Deserialize, Serialize};

use crate::nbd_door::{NbdDoor, listed_name};

/// Connections in one answer; of more, the first to have come.
const CONNECTIONS_SHOWN_MAX: usize = 1000;

/// A connection in transmission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Counted from 1 since the daemon started.
    pub number: u64,
    /// `ADDR:PORT`, or `unix`.
    pub peer: String,
    /// Whom its certificate names, `client:NAME`, `host:NAME` or `cert:NAME`; missing without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The export, as it was told: `VOLUME`, `VOLUME@SNAPSHOT`, `VOLUME:EPOCH`, `VOLUME:tmp-ID`.
    pub export: String,
    /// It may only read.
    pub read_only: bool,
    /// Milliseconds since 1970, UTC: when it came.
    pub since_ms: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Those of them that were answered with an error.
    pub errors: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// 99 of 100 requests took no longer, microseconds, as exactly as their classes tell it (doubles); missing when
    /// there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

/// The connections to an export, its epochs' doors and its temporary exports; or to all.
pub(super) fn of(door: &NbdDoor, export: Option<&str>) -> Vec<ConnectionInfo> {
    let is_meant = |one: &Connected| {
        export.is_none_or(|export| one.export == export || listed_name(&one.export) == export)
    };
    let connected = door.registry().connected().into_iter().filter(is_meant);
    connected.take(CONNECTIONS_SHOWN_MAX).map(shown).collect()
}

fn shown(one: Connected) -> ConnectionInfo {
    // Before 1970 only where the clock was; then nothing better is known.
    let since = one.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    ConnectionInfo {
        number: one.number,
        peer: one.client.place(),
        identity: one.client.identity,
        export: one.export,
        read_only: one.read_only,
        since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        requests: one.counts.requests(),
        errors: one.counts.errors,
        read_bytes: one.counts.read_bytes,
        written_bytes: one.counts.written_bytes,
        p99_us: p99_us(&one.counts),
    }
}

/// The bound of the class that the 99th of 100 requests is in.
fn p99_us(counts: &Counts) -> Option<u64> {
    let mut all = Latency::default();
    for latency in &counts.latencies {
        for (sum, count) in all.buckets.iter_mut().zip(latency.buckets) {
            *sum += count;
        }
    }
    let total = all.count();
    let wanted = total - total / 100;
    let mut seen = 0;
    let class = all.buckets.iter().position(|count| {
        seen += count;
        total > 0 && seen >= wanted
    })?;
    Some(BUCKETS_US.get(class).copied().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_server::connection::Nanos;
    use nbd_server::registry::{Class, Meter};

    #[test]
    fn the_99th_of_100_is_told() {
        let meter = Meter::default();
        assert_eq!(p99_us(&meter.counts()), None);
        let answer = |us: u64| meter.answered(Class::Read, Nanos(0), Nanos(us * 1000), Ok(1));
        answer(5000);
        assert_eq!(p99_us(&meter.counts()), Some(8192));
        (0..98).for_each(|_| answer(3));
        assert_eq!(p99_us(&meter.counts()), Some(8192), "of 99 the slowest counts");
        answer(3);
        assert_eq!(p99_us(&meter.counts()), Some(16), "of 100 it does not");
        (0..10).for_each(|_| answer(1 << 40));
        assert_eq!(p99_us(&meter.counts()), Some(u64::MAX));
    }
}
