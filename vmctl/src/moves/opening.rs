//! What comes before the cutover, at the source: check, prepare, bulk. Nothing of it has to be undone.

use std::time::Duration;

use super::disk::plan_of;
use super::judge::{Judgement, Offer, Question, refusal};
use super::record::Phase;
use super::source::SourceMove;
use super::stream;
use crate::agent::events::now_ms;
use crate::agent::view::VmState;
use crate::cutover::record::Setup;
use crate::error::{Error, Kind};

/// How long the other side may take to judge.
const JUDGE_TIME_MAX: Duration = Duration::from_secs(30);

impl SourceMove {
    /// Everything before the cutover: nothing of it has to be undone.
    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        self.vm.hold(self.holder()).await?;
        self.phase(Phase::Check);
        self.hub.trial.hold(Phase::Check).await;
        let view = self.vm.view();
        if view.state != VmState::Running {
            let message = format!("{} is {}: only a running VM is moved", self.record.vm, view.state.name());
            return Err(Error::one_line(Kind::Refused, message)
                .with_next(format!("vmctl vm start {}", self.record.vm)));
        }
        let process = view.process.ok_or_else(|| Error::one_line(Kind::Refused, "it has no QEMU"))?;
        if let Some(unfit) = view.adopted.as_ref().and_then(|adopted| adopted.unfit.first()) {
            return Err(Error::one_line(
                Kind::Refused,
                format!("{} cannot be moved: {unfit}", self.record.vm),
            ));
        }
        let (plan, facts) = plan_of(&self.hub.host.blockd, &self.record.definition).await?;
        if let Some(volume) = facts.iter().find(|volume| volume.role != "primary") {
            return Err(Error::one_line(Kind::Refused, format!("volume {} is not this host's", volume.name)));
        }
        self.phase(Phase::Prepare);
        self.hub.trial.hold(Phase::Prepare).await;
        let offer = Offer {
            id: Some(self.record.id),
            definition: self.record.definition.clone(),
            volumes: facts,
            qemu: process.qemu,
            accel: process.accel,
            options: self.record.options.clone(),
        };
        self.offer(offer).await?;
        self.phase(Phase::Bulk);
        self.hub.trial.hold(Phase::Bulk).await;
        let disk = self.disk();
        let (_, round) = disk.round().await?;
        self.record.numbers.rounds.push(round);
        // Said anew: a first copy may have taken longer than an offer holds.
        self.record.setup = Some(Setup::new(self.record.id, plan));
        Ok(())
    }

    async fn offer(&self, offer: Offer) -> Result<(), Error> {
        let blockd = self.hub.host.blockd.socket();
        let question = Question::Judge(Box::new(offer));
        let judged: Judgement = stream::ask(blockd, &self.record.host, question, JUDGE_TIME_MAX).await?;
        refusal(&self.record.vm, &self.record.host, &judged.checks)
    }

    /// It did not come to a cutover.
    pub(super) async fn fail(&mut self, error: &Error) {
        tracing::warn!(id = %self.record.id, vm = %self.record.vm, %error, "a move has failed before its cutover");
        self.record.failure = Some(error.clone());
        self.record.setup = None;
        self.record.ended_ms = Some(now_ms());
        let message = format!("to {}: {error}", self.record.host);
        self.hub.host.events.record("move_failed", self.record.vm.as_str(), message);
        self.let_go().await;
        self.write_end();
    }
}
