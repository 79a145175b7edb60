//! For trials: the source waits at the beginning of a phase, so that somebody can do something to it just then.
//!
//! `VMCTL_TRIAL_HOLD=switch=800,release=800` makes the agent wait 800 ms in each of the two. Off unless it is set.
//! docs/reliability.md, "The cutover as a whole", says where each phase waits.

use std::time::Duration;

use tokio::time::sleep;

use super::record::Phase;
use crate::error::{Error, Kind};

const VARIABLE: &str = "VMCTL_TRIAL_HOLD";
/// Longest wait: a forgotten variable must not look like a hang.
const HOLD_MS_MAX: u64 = 60_000;
const PHASES: [Phase; 8] = [
    Phase::Check,
    Phase::Prepare,
    Phase::Bulk,
    Phase::Rounds,
    Phase::Gate,
    Phase::Switch,
    Phase::Release,
    Phase::Cleanup,
];

/// Where the source waits, and for how long.
#[derive(Clone, Debug, Default)]
pub(super) struct Trial(Vec<(Phase, Duration)>);

impl Trial {
    /// What the environment says.
    ///
    /// # Errors
    /// It says what cannot be understood.
    pub(super) fn from_environment() -> Result<Self, Error> {
        match std::env::var(VARIABLE) {
            Ok(text) => Self::parse(&text),
            Err(_) => Ok(Self::default()),
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let bad = |part: &str| {
            let message = format!("{VARIABLE}: {part:?} is not PHASE=MILLISECONDS, at most {HOLD_MS_MAX}");
            Error::new(Kind::BadValue, message).with_next(format!("unset {VARIABLE}"))
        };
        let holds = text.split(',').filter(|part| !part.is_empty()).map(|part| {
            let (name, ms) = part.split_once('=').ok_or_else(|| bad(part))?;
            let phase = PHASES.into_iter().find(|phase| phase.name() == name).ok_or_else(|| bad(part))?;
            let ms = ms.parse().ok().filter(|ms| *ms <= HOLD_MS_MAX).ok_or_else(|| bad(part))?;
            Ok((phase, Duration::from_millis(ms)))
        });
        Ok(Self(holds.collect::<Result<_, Error>>()?))
    }

    /// Waits, if it is to be waited in this phase.
    pub(super) async fn hold(&self, phase: Phase) {
        if let Some((_, time)) = self.0.iter().find(|(held, _)| *held == phase) {
            tracing::info!(phase = phase.name(), "held for a trial");
            sleep(*time).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_hold_is_refused() {
        let holds = Trial::parse("switch=800,release=1").unwrap().0;
        assert_eq!(holds[0], (Phase::Switch, Duration::from_millis(800)));
        assert_eq!(holds[1].0, Phase::Release);
        assert!(Trial::parse("").unwrap().0.is_empty());
        for bad in ["switch", "swtich=1", "switch=x", "switch=60001", "switch=-1"] {
            assert!(Trial::parse(bad).is_err(), "{bad}");
        }
    }
}
