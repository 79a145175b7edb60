//! What the scenarios found: series of values by round, and the rows of the report that come of them.

use serde::Serialize;

use crate::results::{Spread, ratio};
use crate::trouble::Trouble;

/// What a value is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Which scenario.
    pub scenario: &'static str,
    /// Which disk, size or pair of them.
    pub subject: String,
    /// What was measured of it.
    pub measure: String,
    /// In which unit; `x` is a ratio.
    pub unit: &'static str,
}

/// A row of the report: all rounds of one key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Which scenario.
    pub scenario: &'static str,
    /// Which disk, size or pair of them.
    pub subject: String,
    /// What was measured of it.
    pub measure: String,
    /// In which unit; `x` is a ratio, of values of the same round.
    pub unit: &'static str,
    /// By round.
    pub values: Vec<f64>,
    /// Their middle and their ends.
    #[serde(flatten)]
    pub spread: Spread,
}

/// Something that could not be measured.
#[derive(Debug, Clone, Serialize)]
pub struct FailedScenario {
    /// Which scenario.
    pub scenario: &'static str,
    /// Of which disk or size.
    pub subject: String,
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
}

/// Gathers values, failures and notices.
#[derive(Debug, Default)]
pub struct Recorder {
    series: Vec<(Key, Vec<(u32, f64)>)>,
    /// What could not be measured.
    pub failures: Vec<FailedScenario>,
    /// What a reader has to know.
    pub notices: Vec<String>,
}

impl Recorder {
    /// Takes a value, and says it aloud.
    pub fn put(&mut self, key: Key, round: u32, value: f64) {
        let Key { scenario, subject, measure, unit } = &key;
        eprintln!("{scenario:<15} round {round} {subject:<36} {measure:<36} {value:12.2} {unit}");
        match self.series.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push((round, value)),
            None => self.series.push((key, vec![(round, value)])),
        }
    }

    /// Takes many values at once, and says only their median aloud.
    pub fn put_all(&mut self, key: Key, values: &[f64]) {
        let Some(spread) = Spread::of(values) else { return };
        let Key { scenario, subject, measure, unit } = &key;
        let median = spread.median;
        eprintln!("{scenario:<15} median  {subject:<36} {measure:<36} {median:12.2} {unit}");
        self.series.push((key, (1..).zip(values.iter().copied()).collect()));
    }

    /// A ratio of two measures, round by round; rounds that lack one of them have none.
    pub fn put_ratios(&mut self, key: &Key, value: (&str, &str), base: (&str, &str)) {
        let of = |(subject, measure): (&str, &str)| self.values(key.scenario, subject, measure).to_vec();
        let bases = of(base);
        for (round, value) in of(value) {
            let base = bases.iter().find(|(other, _)| *other == round);
            if let Some(ratio) = base.and_then(|(_, base)| ratio(value, *base)) {
                self.put(key.clone(), round, ratio);
            }
        }
    }

    /// Notes that something could not be measured.
    pub fn fail(&mut self, scenario: &'static str, subject: &str, trouble: &Trouble) {
        eprintln!("{scenario}, {subject}\n{trouble}");
        let (what, why) = (trouble.what.clone(), trouble.why.clone());
        self.failures.push(FailedScenario { scenario, subject: subject.to_owned(), what, why });
    }

    /// Notes what a reader has to know, once.
    pub fn note(&mut self, notice: String) {
        if !self.notices.contains(&notice) {
            eprintln!("note: {notice}");
            self.notices.push(notice);
        }
    }

    /// All rows, in the order of their first value.
    pub fn rows(&self) -> Vec<Row> {
        let row = |(key, values): &(Key, Vec<(u32, f64)>)| {
            let values: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
            let Key { scenario, subject, measure, unit } = key.clone();
            Some(Row { scenario, subject, measure, unit, spread: Spread::of(&values)?, values })
        };
        self.series.iter().filter_map(row).collect()
    }

    fn values(&self, scenario: &str, subject: &str, measure: &str) -> &[(u32, f64)] {
        let is_it = |key: &Key| key.scenario == scenario && key.subject == subject && key.measure == measure;
        self.series.iter().find(|(key, _)| is_it(key)).map_or(&[], |(_, values)| values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(subject: &str, measure: &str, unit: &'static str) -> Key {
        Key { scenario: "s", subject: subject.into(), measure: measure.into(), unit }
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        let mut recorder = Recorder::default();
        for (round, before, after) in [(1, 100.0, 50.0), (3, 10.0, 20.0)] {
            recorder.put(key("v", "before", "IOPS"), round, before);
            recorder.put(key("v", "after", "IOPS"), round, after);
        }
        recorder.put(key("v", "before", "IOPS"), 2, 1.0);
        recorder.put_ratios(&key("v", "after / before", "x"), ("v", "after"), ("v", "before"));
        let rows = recorder.rows();
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[2].values.as_slice(), rows[2].spread.median), ([0.5, 2.0].as_slice(), 1.25));
    }

    #[test]
    fn without_a_base_there_is_no_row() {
        let mut recorder = Recorder::default();
        recorder.put(key("v", "after", "IOPS"), 1, 5.0);
        recorder.put_ratios(&key("v", "r", "x"), ("v", "after"), ("v", "before"));
        assert_eq!(recorder.rows().len(), 1);
    }
}
