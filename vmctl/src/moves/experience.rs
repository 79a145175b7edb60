//! What earlier moves have shown: how far off their forecasts were. The parts of a forecast are measured on other machines than
//! these; what is the same in every move between two hosts is seen in the moves before.

use super::record::{MoveRecord, Side};

/// Moves that are looked at, the last ones.
const MOVES_MAX: usize = 5;
/// No forecast is made smaller or larger than that by it.
const LEAST: f64 = 0.5;
/// See [`LEAST`].
const MOST: f64 = 2.0;

/// By what a forecast is to be multiplied: the median of what the last moves to that host took, by what was foreseen of
/// them. `stops_first`: only those count whose guest stood still while its memory was sent, or only the others. 1 if there are
/// none. `records`: oldest first.
pub(super) fn correction(records: &[MoveRecord], host: &str, stops_first: bool) -> f64 {
    let alike = records.iter().rev().filter(|record| record.host == host && record.side == Side::Source);
    let mut ratios: Vec<f64> =
        alike.filter_map(|record| ratio(record, stops_first)).take(MOVES_MAX).collect();
    ratios.sort_by(f64::total_cmp);
    // Of an even number the smaller one of the middle: a forecast that is too high refuses what could be done.
    let middle = ratios.len().saturating_sub(1) / 2;
    ratios.get(middle).map_or(1.0, |ratio| ratio.clamp(LEAST, MOST))
}

fn ratio(record: &MoveRecord, stops_first: bool) -> Option<f64> {
    let told = record.numbers.forecast.filter(|told| told.stops_first == stops_first)?;
    let took = record.numbers.silence_ms.filter(|_| record.has_moved())?;
    let bare = (told.silence_ms - told.wake_ms) / told.correction;
    (bare > 0.0 && took.is_finite()).then(|| took / bare)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::event::DestinationOutcome;
    use crate::cutover::ids::Epoch;
    use crate::moves::record::{Forecast, Options};
    use crate::vm::definition::Definition;

    /// A move to B that was foreseen to take 100 ms, and took so many; 40 ms later the guest is heard.
    fn record(took: f64, correction: f64) -> MoveRecord {
        let text = "name = \"web1\"\nmemory = \"64MiB\"\n";
        let definition = Definition::parse(text, std::path::Path::new("web1.toml")).unwrap();
        let id = "00112233445566778899aabbccddeeff".parse().unwrap();
        let mut record = MoveRecord::new(id, Side::Source, "B", definition, Options::default(), 0);
        record.destination_end =
            Some(DestinationOutcome::Here { epoch: Epoch(2), cold: false, ended: false });
        record.numbers.silence_ms = Some(took);
        let silence_ms = 100.0 * correction + 40.0;
        record.numbers.forecast =
            Some(Forecast { silence_ms, wake_ms: 40.0, correction, ..Forecast::default() });
        record
    }

    #[test]
    fn the_last_five_moves_to_that_host_count_and_their_median() {
        let took = [900.0, 60.0, 80.0, 500.0, 70.0, 75.0];
        let records = took.map(|took| record(took, 1.0));
        assert_eq!(correction(&records, "B", false), 0.75);
        assert_eq!(correction(&records, "C", false), 1.0);
        assert_eq!(correction(&records, "B", true), 1.0, "none of them stood still");
    }

    /// What was corrected before is not corrected by that once more.
    #[test]
    fn a_correction_is_no_part_of_the_next_one() {
        assert_eq!(correction(&[record(80.0, 1.0), record(80.0, 0.8), record(80.0, 0.8)], "B", false), 0.8);
    }

    #[test]
    fn what_is_off_by_more_is_not_believed() {
        assert_eq!(correction(&[record(5.0, 1.0)], "B", false), LEAST);
        assert_eq!(correction(&[record(5000.0, 1.0)], "B", false), MOST);
        let mut failed = record(5000.0, 1.0);
        failed.destination_end = None;
        assert_eq!(correction(&[failed], "B", false), 1.0);
    }
}
