//! What a switch would cost, from what the rounds have shown (docs/migration.md, "Forecast").

use super::record::{Forecast, Round};
use crate::qmp::types::MigrationInfo;

/// The records of two hosts, and starting to run: milliseconds, measured.
const FIXED_MS: f64 = 15.0;
/// What QEMU needs for its last pass and its devices besides the memory that is left: milliseconds, measured.
const DEVICES_MS: f64 = 12.0;
/// A guest whose processors are translated begins at the other host with nothing translated: milliseconds until it is heard,
/// measured.
const WAKE_MS: f64 = 40.0;
/// A round of so many bytes says how long the last one will take, be it the first one or not.
const ALIKE_BYTES: u64 = 8 << 20;

/// What is known when the guest is about to be stopped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known<'a> {
    /// Disk differences so far.
    pub(super) rounds: &'a [Round],
    /// QEMU's own numbers.
    pub(super) memory: Option<&'a MigrationInfo>,
    /// Bytes of memory that are sent while the guest stands still.
    pub(super) stopped: u64,
    /// How long QEMU may take for the memory that is left when it stops the guest.
    pub(super) limit_ms: u64,
    /// The guest's processors are translated.
    pub(super) translated: bool,
    /// What earlier moves teach, if there were any (`experience`).
    pub(super) correction: Option<f64>,
}

/// What a link carries of a guest's memory of which nothing is known yet, in bytes a millisecond: pages of zeroes, which cost
/// nothing, among them. Measured.
const LINK_UNKNOWN: f64 = 300.0 * 1024.0;

/// The forecast.
pub(super) fn forecast(known: &Known<'_>) -> Forecast {
    let disk = disk(known.rounds);
    let memory_bytes = known.memory.and_then(|info| info.ram).map_or(0, |ram| ram.remaining);
    let link = link_bytes_per_ms(known);
    let rest_ms = if link > 0.0 { memory_bytes as f64 / link } else { 0.0 };
    let whole_ms = known.stopped as f64 / link.max(LINK_UNKNOWN);
    // With more left QEMU goes over it again, and then anything below the limit may be left: half of it, in the mean.
    let limit_ms = known.limit_ms as f64;
    let left_ms = if rest_ms <= limit_ms { rest_ms } else { limit_ms / 2.0 };
    let memory_ms = DEVICES_MS + whole_ms + left_ms;
    let wake_ms = if known.translated { WAKE_MS } else { 0.0 };
    let correction = known.correction.unwrap_or(1.0);
    let pressure = if link > 0.0 { dirty_bytes_per_ms(known) / link } else { 0.0 };
    Forecast {
        // Disk and memory go at the same time.
        silence_ms: (disk.0.max(memory_ms) + FIXED_MS) * correction + wake_ms,
        disk_ms: disk.0,
        memory_ms,
        rest_ms,
        fixed_ms: FIXED_MS,
        wake_ms,
        correction,
        stops_first: known.stopped > 0,
        pressure,
        disk_bytes: disk.1,
        memory_bytes,
    }
}

/// The median of the last rounds: milliseconds, and bytes. A bulk among them says nothing about the last one, unless there is
/// nothing else.
fn disk(rounds: &[Round]) -> (f64, u64) {
    // Without any nothing is known, and nothing is to be brought that anybody knows of.
    let Some(last) = rounds.last() else { return (0.0, 0) };
    let alike = rounds.iter().filter(|round| round.bytes_changed <= ALIKE_BYTES.max(last.bytes_changed));
    let mut times: Vec<f64> = alike.rev().take(3).map(|round| round.ms).collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], last.bytes_changed)
}

/// What the link has carried: QEMU's throughput, or the fastest round's.
fn link_bytes_per_ms(known: &Known<'_>) -> f64 {
    let of_qemu = known.memory.and_then(|info| info.ram).map_or(0.0, |ram| ram.mbps * 125.0);
    let of = |round: &Round| if round.ms > 0.0 { round.bytes_sent as f64 / round.ms } else { 0.0 };
    known.rounds.iter().map(of).fold(of_qemu, f64::max)
}

/// How fast disk and memory change.
fn dirty_bytes_per_ms(known: &Known<'_>) -> f64 {
    let memory = known
        .memory
        .and_then(|info| info.ram)
        .map_or(0.0, |ram| ram.dirty_pages_rate as f64 * ram.page_size as f64 / 1e3);
    // What one round found came up while the one before ran.
    let disk =
        known.rounds.windows(2).last().map_or(0.0, |pair| {
            if pair[0].ms > 0.0 { pair[1].bytes_changed as f64 / pair[0].ms } else { 0.0 }
        });
    memory + disk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_disk_and_memory_is_the_silence() {
        let round = |ms, bytes_changed| Round { bytes_changed, bytes_sent: bytes_changed, ms };
        let rounds = [round(1000.0, 1 << 30), round(40.0, 1 << 20), round(20.0, 4096), round(30.0, 8192)];
        let told = forecast(&Known { rounds: &rounds, ..Known::default() });
        assert_eq!((told.disk_ms, told.disk_bytes), (30.0, 8192));
        assert_eq!(told.silence_ms, 30.0 + FIXED_MS);
        assert!(told.pressure < 0.01, "{}", told.pressure);
        let told = forecast(&Known { rounds: &rounds, translated: true, ..Known::default() });
        assert_eq!(told.silence_ms, 30.0 + FIXED_MS + WAKE_MS);
        let learnt = Known { rounds: &rounds, translated: true, correction: Some(0.5), ..Known::default() };
        assert_eq!(forecast(&learnt).silence_ms, (30.0 + FIXED_MS) / 2.0 + WAKE_MS);
    }

    #[test]
    fn a_first_difference_that_is_small_counts() {
        let round = |ms| Round { bytes_changed: 1 << 20, bytes_sent: 1 << 20, ms };
        let told = forecast(&Known { rounds: &[round(40.0), round(20.0), round(25.0)], ..Known::default() });
        assert_eq!(told.disk_ms, 25.0);
    }

    #[test]
    fn nothing_known_is_no_division_by_zero() {
        let told = forecast(&Known::default());
        assert!(told.silence_ms.is_finite() && told.pressure == 0.0);
    }
}
