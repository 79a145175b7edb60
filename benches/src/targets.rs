//! What we want to reach, and whether a comparison shows that we do.

pub mod servers;

use serde::Serialize;

use crate::goals::Goal;
use crate::results::Spread;
use crate::servers::ServerId;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// I/Os a second.
    Iops,
    /// The server's CPU time a request.
    CpuPerRequest,
}

impl Measure {
    /// Its key in the results.
    pub fn key(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::CpuPerRequest => "cpu-per-request",
        }
    }

    /// What a table says for a key.
    pub fn text_of(key: &str) -> &str {
        match key {
            "iops" => "IOPS",
            "cpu-per-request" => "CPU a request",
            other => other,
        }
    }
}

/// Which way a demand goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// More is better.
    AtLeast,
    /// Less is better.
    AtMost,
}

impl Direction {
    /// Whether a value is good enough.
    pub fn is_met(self, value: f64, bound: f64) -> bool {
        match self {
            Self::AtLeast => value >= bound,
            Self::AtMost => value <= bound,
        }
    }

    /// How it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Self::AtLeast => ">=",
            Self::AtMost => "<=",
        }
    }

    /// A value with two digits, rounded to the side that flatters nobody.
    pub fn shown(self, value: f64) -> String {
        let hundredths = value * 100.0;
        // So little that it only undoes what binary fractions add: 0.29 is 28.999… hundredths.
        let slack = 1e-9 * hundredths.abs();
        let rounded = match self {
            Self::AtLeast => (hundredths + slack).floor(),
            Self::AtMost => (hundredths - slack).ceil(),
        };
        format!("{:.2}", rounded / 100.0)
    }
}

/// Met, not met, or not measured.
pub fn verdict(measured: Option<f64>, direction: Direction, bound: f64) -> Verdict {
    match measured {
        None => Verdict::NotMeasured,
        Some(value) if direction.is_met(value, bound) => Verdict::Met,
        Some(_) => Verdict::NotMet,
    }
}

/// By how much of its bound a value misses it.
///
/// Units: a fraction; 0.23 is 23 % less than the least, or more than the most.
pub fn short_by(measured: Option<f64>, direction: Direction, bound: f64) -> Option<f64> {
    measured.filter(|value| !direction.is_met(*value, bound)).map(|value| (value - bound).abs() / bound)
}

/// Whether a target is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The ratio is as wanted.
    Met,
    /// It is not.
    NotMet,
    /// One of the two was not measured.
    NotMeasured,
}

/// A target and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Which row of the table of goals it belongs to, if any.
    pub goal: Option<Goal>,
    /// Class of both; `store` for the store's scenarios.
    pub class: &'static str,
    /// Which server of ours; none in scenarios.
    pub server: Option<ServerId>,
    /// Job or scenario, by name.
    pub job: &'static str,
    /// `iops`, `cpu-per-request`, or what the scenario measured of whom.
    pub measure: String,
    /// What is wanted, in words.
    pub demand: String,
    /// The ratio of the medians; in scenarios the median, in the unit of the demand.
    pub measured: Option<f64>,
    /// How far what was measured lies apart; of a ratio that of the rounds.
    pub spread: Option<Spread>,
    /// Which way the demand goes.
    #[serde(skip)]
    pub direction: Direction,
    /// Whether it is met.
    pub verdict: Verdict,
    /// How much of the bound is missing, or is too much; none unless it is missed.
    pub short_by: Option<f64>,
}

impl Outcome {
    /// The verdict in words; what is missing is rounded up.
    pub fn verdict_text(&self) -> String {
        verdict_text(self.verdict, self.short_by)
    }
}

fn verdict_text(verdict: Verdict, short_by: Option<f64>) -> String {
    match (verdict, short_by) {
        (Verdict::Met, _) => "met".to_owned(),
        (Verdict::NotMet, Some(part)) => format!("short by {:.0} %", percent_up(part)),
        (Verdict::NotMet, None) => "NOT MET".to_owned(),
        (Verdict::NotMeasured, _) => "not measured".to_owned(),
    }
}

/// Whole percent. So little is taken off that it only undoes what binary fractions add.
fn percent_up(part: f64) -> f64 {
    let percent = part * 100.0;
    (percent - 1e-9 * percent).ceil()
}

/// Whether all targets that could be measured are met, and at least one could.
pub fn all_met(outcomes: &[Outcome]) -> bool {
    let count = |verdict| outcomes.iter().filter(|outcome| outcome.verdict == verdict).count();
    count(Verdict::NotMet) == 0 && count(Verdict::Met) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_part_of_the_bound_and_rounded_up() {
        let text = |measured, direction, bound| {
            let verdict = verdict(Some(measured), direction, bound);
            let short_by = short_by(Some(measured), direction, bound);
            verdict_text(verdict, short_by)
        };
        assert_eq!(text(0.75, Direction::AtLeast, 1.0), "short by 25 %");
        assert_eq!(text(0.71, Direction::AtLeast, 1.0), "short by 29 %", "not 30: binary fractions");
        assert_eq!(text(0.8999, Direction::AtLeast, 0.9), "short by 1 %");
        assert_eq!(text(0.7, Direction::AtMost, 0.35), "short by 100 %");
        assert_eq!(text(1.4, Direction::AtLeast, 1.4), "met");
        assert_eq!(short_by(Some(1.4), Direction::AtLeast, 1.4), None);
        assert_eq!(short_by(None, Direction::AtLeast, 1.4), None);
    }

    #[test]
    fn no_figure_is_rounded_in_our_favour() {
        assert_eq!(Direction::AtLeast.shown(0.8999), "0.89");
        assert_eq!(Direction::AtMost.shown(140.001), "140.01");
        assert_eq!(Direction::AtLeast.shown(0.29), "0.29");
        assert_eq!(verdict(Some(0.8999), Direction::AtLeast, 0.9), Verdict::NotMet);
    }
}
