//! What happens while the guest still runs: differences of the disks, again and again, and the memory.
//!
//! ```text
//!  bulk ─► round … round ─ small, or not getting smaller ─► gate ─ within the bound ─► Begin ─► migrate ─► rounds meanwhile
//! ```
//!
//! QEMU stops the guest by itself once its memory is nearly sent and cannot be told to wait, so the disks are nearly equal before
//! its migration begins, and are kept so.

use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::disk::Disk;
use super::forecast::{Known, forecast};
use super::quiet::{Activity, Meter, QUIET_TIME_MAX};
use super::record::{Forecast, Options, Phase, Round, Strategy, When};
use super::stair::Stair;
use super::trial::Trial;
use crate::error::{Error, Kind};
use crate::qmp::Client;
use crate::qmp::types::{MigrationInfo, MigrationParameters, MigrationStatus};

/// A difference of so few bytes is brought in no time.
const SMALL_BYTES: u64 = 2 << 20;
/// Rounds after a mirror has come into sync.
const MIRRORED_ROUNDS: usize = 3;
/// Rounds before the memory, at most.
const BEFORE_MEMORY_MAX: usize = 12;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(200);
/// While QEMU needs longer than that for the rest of the memory, another round of the disks is worth it.
const ROUND_WORTH_MS: f64 = 1500.0;
/// How long it is waited for the forecast to come within the bound.
const GATE_TIME_MAX: Duration = Duration::from_secs(60);
/// As fast as it goes.
const BANDWIDTH_MAX: u64 = 100 << 30;

/// What is told meanwhile.
#[derive(Debug)]
pub(super) enum Told {
    /// How far it is.
    Phase(Phase),
    /// A difference was brought.
    Round(Round),
    /// What the guest writes is mirrored; so many bytes have crossed the link, in so many milliseconds.
    Mirrored(u64, f64),
    /// What a person should know.
    Note(String),
    /// How the memory stands.
    Memory(Box<MigrationInfo>),
    /// What the switch would cost.
    Forecast(Forecast),
    /// The guest may be stopped from now on, once this was heard.
    Begin(oneshot::Sender<()>),
    /// The guest stands still from now on: see [`Rounds::stops_first`].
    Stopped,
    /// It cannot be done.
    Failed(Error),
}

/// What rounds need.
pub(super) struct Rounds {
    pub(super) disk: Disk,
    pub(super) client: Client,
    pub(super) options: Options,
    /// QEMU's name of where its stream goes.
    pub(super) uri: String,
    pub(super) told: mpsc::Sender<Told>,
    /// Brought before.
    pub(super) rounds: Vec<Round>,
    /// Where it waits, for trials.
    pub(super) trial: Trial,
    /// The guest is stopped before its memory is sent, because its processors are translated: QEMU before 2024 takes the marks
    /// of written pages and forgets to take its translator's permission to write there without asking; what is written then
    /// is never sent (docs/migration.md, "Without KVM").
    pub(super) stops_first: bool,
    /// Bytes of the guest's memory.
    pub(super) memory_bytes: u64,
    /// The guest's writes are mirrored.
    pub(super) mirrored: bool,
    /// The guest's processors are translated.
    pub(super) translated: bool,
    /// What earlier moves to that host took, by what was foreseen of them.
    pub(super) correction: f64,
}

impl Rounds {
    /// Until the guest is stopped, or it cannot be done. Ended by being dropped.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.go().await {
            self.tell(Told::Failed(error)).await;
        }
    }

    /// Nobody listens only when the move is over.
    async fn tell(&self, told: Told) {
        if self.told.send(told).await.is_err() {
            tracing::debug!("rounds of a move that is over");
        }
    }

    async fn go(&mut self) -> Result<(), Error> {
        self.tell(Told::Phase(Phase::Rounds)).await;
        self.trial.hold(Phase::Rounds).await;
        self.before_memory().await?;
        self.tell(Told::Phase(Phase::Gate)).await;
        self.trial.hold(Phase::Gate).await;
        if self.options.when == When::Quiet {
            self.wait_for_quiet().await?;
        }
        self.wait_at_gate().await?;
        let stair = self.set_up().await?;
        let (heard, hearing) = oneshot::channel();
        self.tell(Told::Begin(heard)).await;
        hearing.await.map_err(|_| Error::one_line(Kind::Stopping, "the move is over"))?;
        if self.stops_first {
            self.client.stop().await?;
            self.tell(Told::Stopped).await;
        }
        self.client.migrate(&self.uri).await?;
        self.beside_memory(stair).await
    }

    async fn round(&mut self) -> Result<Round, Error> {
        let (_, round) = self.disk.round().await?;
        self.rounds.push(round);
        self.tell(Told::Round(round)).await;
        Ok(round)
    }

    /// Until the difference is small, or gets no smaller.
    async fn before_memory(&mut self) -> Result<(), Error> {
        let mut before = u64::MAX;
        for _ in 0..BEFORE_MEMORY_MAX {
            let Round { bytes_changed, .. } = self.round().await?;
            if bytes_changed <= SMALL_BYTES || bytes_changed >= before.saturating_sub(before / 8) {
                break;
            }
            before = bytes_changed;
        }
        let small = self.rounds.last().is_some_and(|round| round.bytes_changed <= SMALL_BYTES);
        match self.options.strategy {
            Strategy::Mirror if !self.mirrored => self.mirror().await,
            Strategy::Auto if !small => self.mirror_if_near().await,
            Strategy::Auto | Strategy::Mirror | Strategy::Rounds => Ok(()),
        }
    }

    /// What the guest writes is at the other host before it is answered. Then a round has only a root to compare.
    async fn mirror(&mut self) -> Result<(), Error> {
        let began = std::time::Instant::now();
        let bytes = self.disk.mirror().await?;
        self.mirrored = true;
        self.tell(Told::Mirrored(bytes, began.elapsed().as_secs_f64() * 1e3)).await;
        // So many make a forecast.
        for _ in 0..MIRRORED_ROUNDS {
            self.round().await?;
        }
        Ok(())
    }

    /// Without it the move goes on as it can.
    async fn mirror_if_near(&mut self) -> Result<(), Error> {
        if self.mirrored || !self.disk.is_near().await {
            return Ok(());
        }
        if let Err(error) = self.mirror().await {
            self.tell(Told::Note(error.message)).await;
            self.disk.end_mirrors().await;
        }
        Ok(())
    }

    fn known(&self) -> Known<'_> {
        let correction = Some(self.correction);
        Known { rounds: &self.rounds, translated: self.translated, correction, ..Known::default() }
    }

    /// What a switch would cost now.
    fn foresee(&self) -> Forecast {
        let stopped = if self.stops_first { self.memory_bytes } else { 0 };
        forecast(&Known { stopped, ..self.known() })
    }

    /// Above the bound the guest is not stopped: it is waited for a better moment, or given up.
    async fn wait_at_gate(&mut self) -> Result<(), Error> {
        let began = std::time::Instant::now();
        loop {
            let told = self.foresee();
            self.tell(Told::Forecast(told)).await;
            let Some(bound) = self.options.silence_ms else { return Ok(()) };
            if told.silence_ms <= bound as f64 {
                return Ok(());
            }
            // Less than that it never is: to wait for it would be of no use.
            let least_ms = (told.memory_ms + told.fixed_ms) * told.correction;
            if began.elapsed() >= GATE_TIME_MAX || least_ms > bound as f64 {
                let message = format!(
                    "the guest would be silent for {:.0} ms, {bound} ms are allowed: the last differences took {:.0} ms",
                    told.silence_ms, told.disk_ms
                );
                let next = "vmctl migrate … --silence LONGER    (or when the guest writes less)";
                return Err(Error::one_line(Kind::Refused, message).with_next(next));
            }
            if self.options.strategy == Strategy::Auto && !self.mirrored {
                self.mirror_if_near().await?;
            }
            self.round().await?;
        }
    }

    /// Until the guest changes less than it usually does, or it was waited long enough; then the disks are made nearly equal
    /// again.
    async fn wait_for_quiet(&mut self) -> Result<(), Error> {
        let (began, mut activity) = (std::time::Instant::now(), Activity::default());
        let client = self.client.clone();
        let mut meter = Meter::new(&client);
        self.tell(Told::Note("it waits for a quiet moment of the guest".to_owned())).await;
        while began.elapsed() < QUIET_TIME_MAX && !activity.is_quiet() {
            activity.push(meter.second().await?);
        }
        let waited = began.elapsed().as_secs_f64();
        let (now, usual) = (activity.now() >> 20, activity.usual() >> 20);
        let found = if activity.is_quiet() { "quiet" } else { "no quieter moment" };
        self.tell(Told::Note(format!("{found} after {waited:.0} s: {now} MiB/s changed, usually {usual}")))
            .await;
        self.before_memory().await
    }

    async fn set_up(&self) -> Result<Stair, Error> {
        // Also what is not wanted: an earlier move may have wanted it.
        let capabilities = [
            ("events", true),
            ("return-path", true),
            ("pause-before-switchover", true),
            ("auto-converge", self.options.auto_converge),
            ("multifd", self.options.multifd.is_some()),
        ];
        self.client.migrate_set_capabilities(&capabilities).await?;
        let told = self.foresee();
        let all_but_memory = (told.silence_ms - told.memory_ms.max(told.disk_ms) * told.correction) as u64;
        let bound = self.options.silence_ms.map(|bound| bound.saturating_sub(all_but_memory) / 2);
        let stair = Stair::new(bound, self.translated);
        let mut parameters = MigrationParameters::from([
            downtime_limit(stair),
            ("max-bandwidth".to_owned(), json!(self.options.bandwidth.unwrap_or(BANDWIDTH_MAX))),
        ]);
        parameters.extend(self.options.multifd.map(multifd_channels));
        self.client.migrate_set_parameters(parameters).await?;
        Ok(stair)
    }

    /// Keeps the disks nearly equal while the memory is on its way.
    async fn beside_memory(&mut self, mut stair: Stair) -> Result<(), Error> {
        loop {
            sleep(LOOK).await;
            let info = self.client.query_migrate().await?;
            let going = matches!(info.status, Some(MigrationStatus::Setup | MigrationStatus::Active));
            let told = forecast(&Known { memory: Some(&info), limit_ms: stair.ms(), ..self.known() });
            let rest_ms = told.rest_ms;
            let passes = info.ram.map_or(0, |ram| ram.passes);
            let failure = failure_of(&info);
            self.tell(Told::Memory(Box::new(info))).await;
            if let Some(error) = failure {
                return Err(error);
            }
            if !going {
                return Ok(());
            }
            // A guest that stands still: what was foreseen before holds, and its disks do not change.
            if self.stops_first {
                continue;
            }
            self.tell(Told::Forecast(told)).await;
            if stair.climb(passes) {
                self.client
                    .migrate_set_parameters(MigrationParameters::from([downtime_limit(stair)]))
                    .await?;
            }
            if rest_ms > ROUND_WORTH_MS {
                self.round().await?;
            }
        }
    }
}

fn downtime_limit(stair: Stair) -> (String, serde_json::Value) {
    ("downtime-limit".to_owned(), json!(stair.ms()))
}

/// The parameter of QEMU that says over how many connections memory is spread; the same on both sides.
pub(super) fn multifd_channels(channels: u8) -> (String, serde_json::Value) {
    ("multifd-channels".to_owned(), json!(channels))
}

/// A migration that has ended while the guest runs on: nothing more comes of it, and nobody else tells of it.
fn failure_of(info: &MigrationInfo) -> Option<Error> {
    let ended = matches!(
        info.status,
        None | Some(MigrationStatus::None | MigrationStatus::Failed | MigrationStatus::Cancelled)
    );
    let why = info.error.as_deref().unwrap_or("its connection to the other host ended").escape_debug();
    ended.then(|| Error::new(Kind::Io, format!("QEMU cannot send the memory: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_that_failed_while_the_guest_runs_is_told() {
        let failure = |status: &str| {
            let info = serde_json::from_value::<MigrationInfo>(json!({ "status": status })).unwrap();
            failure_of(&info)
        };
        assert!(failure("failed").is_some());
        assert!(failure("cancelled").is_some());
        for status in ["setup", "active", "pre-switchover", "device", "completed"] {
            assert!(failure(status).is_none(), "{status}");
        }
    }
}
