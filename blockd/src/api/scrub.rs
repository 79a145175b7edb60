//! `POST /v1/scrub`: verifies snapshots, and has what is damaged repaired if that is asked for.

use std::sync::Arc;

use axum::extract::State as Extract;
use axum::response::Response;

use super::answer::{Body, Refusal, check_name};
use super::long::{self, Sink};
use super::routes::{State, all_snapshots};
use super::types::{End, ErrorBody, Kind, Line, Scrub, Scrubbed};
use crate::control::{ControlError, ErrorKind, SnapshotName};
use crate::events::Events;
use crate::service::{Engine, RepairReport, Repairer, VerifyReport};

/// A repair that was asked for.
pub(super) struct Repair {
    repairer: Arc<dyn Repairer>,
    from: Option<String>,
    events: Events,
}

impl Repair {
    /// `None`: it was not asked for.
    ///
    /// # Errors
    /// The host is none that is paired, or not trusted; nobody can repair here.
    pub(super) async fn asked(
        state: &State,
        repair: bool,
        from: Option<String>,
    ) -> Result<Option<Self>, Refusal> {
        if !repair {
            let refusal =
                || Refusal::new(Kind::BadRequest, "a host to repair from, and nothing to be repaired");
            return from.map_or(Ok(None), |_| Err(refusal()));
        }
        let nobody = || Refusal::new(Kind::Refused, "this daemon has no replication: nobody can be asked");
        let repairer = state.service.repairer.clone().ok_or_else(nobody)?;
        if let Some(name) = &from {
            super::replicas::trusted_host(state, name).await?;
        }
        Ok(Some(Self { repairer, from, events: state.service.events.clone() }))
    }

    /// Repairs what a report says is damaged, and tells of it.
    pub(super) fn repair(
        &self,
        name: &SnapshotName,
        report: &VerifyReport,
        sink: &mut Sink,
    ) -> Result<RepairReport, ControlError> {
        let total: u64 = report.damaged.iter().map(|extent| extent.length).sum();
        let mut go_on = |done| sink.progress(name, done, total);
        let repair = self.repairer.repair(name, &report.damaged, self.from.as_deref(), &mut go_on)?;
        if repair.repaired_bytes > 0 {
            let text = format!("{} bytes from {}", repair.repaired_bytes, repair.from.join(", "));
            self.events.record("snapshot_repaired", name.to_string(), text);
        }
        Ok(repair)
    }
}

pub(super) async fn scrub(
    Extract(state): Extract<State>,
    Body(Scrub { volume, repair, from }): Body<Scrub>,
) -> Result<Response, Refusal> {
    if let Some(volume) = &volume {
        check_name(volume)?;
    }
    let repair = Repair::asked(&state, repair, from).await?;
    let snapshots = all_snapshots(&state.service, volume).await?;
    let names = snapshots.into_iter().map(|info| SnapshotName { volume: info.volume, snapshot: info.name });
    let (names, events) = (names.collect::<Vec<_>>(), state.service.events.clone());
    long::stream(&state, move |engine, sink| {
        let end = End { count: Some(0), failed: Some(0), ..End::default() };
        let mut scrubbing = Scrubbing { engine, sink, repair, events, end };
        let mut put_off = Vec::new();
        for name in names {
            let scrubbed = scrubbing.one(&name);
            let is_unrepaired = scrubbed.repair.as_ref().is_some_and(|repair| !repair.failed.is_empty());
            if is_unrepaired {
                put_off.push((name, scrubbed, scrubbing.end.repaired_bytes));
            } else {
                scrubbing.tell(scrubbed)?;
            }
        }
        for (name, scrubbed, repaired_bytes) in put_off {
            // A layer that they share may have been repaired under a later snapshot's name.
            let again = scrubbing.end.repaired_bytes != repaired_bytes;
            let scrubbed = if again { scrubbing.once_more(&name, scrubbed) } else { scrubbed };
            scrubbing.tell(scrubbed)?;
        }
        Ok(scrubbing.end)
    })
}

struct Scrubbing<'a> {
    engine: &'a dyn Engine,
    sink: &'a mut Sink,
    repair: Option<Repair>,
    events: Events,
    end: End,
}

impl Scrubbing<'_> {
    /// Verifies a snapshot, and repairs it.
    fn one(&mut self, name: &SnapshotName) -> Scrubbed {
        let mut scrubbed = self.look(name);
        if let Some(problem) = problem(&scrubbed) {
            self.events.record("snapshot_damaged", name.to_string(), problem);
        }
        self.mend(name, &mut scrubbed);
        scrubbed
    }

    fn look(&mut self, name: &SnapshotName) -> Scrubbed {
        let sink = &mut *self.sink;
        let found = self.engine.verify(name, &mut |done, total| sink.progress(name, done, total));
        let (report, error) = match found {
            Ok(report) => (Some(report), None),
            Err(error) => (None, Some(ErrorBody::from(error))),
        };
        Scrubbed { name: name.to_string(), report, error, repair: None }
    }

    fn mend(&mut self, name: &SnapshotName, scrubbed: &mut Scrubbed) {
        let damaged = scrubbed.report.as_ref().filter(|report| !report.damaged.is_empty());
        let (Some(repair), Some(report)) = (&self.repair, damaged) else { return };
        match repair.repair(name, report, self.sink) {
            Ok(done) => {
                *self.end.repaired_bytes.get_or_insert_default() += done.repaired_bytes;
                scrubbed.repair = Some(done);
            }
            Err(error) => scrubbed.error = Some(ErrorBody::from(error)),
        }
    }

    /// Of what is left: what was found and done before is told as well.
    fn once_more(&mut self, name: &SnapshotName, before: Scrubbed) -> Scrubbed {
        let mut now = self.look(name);
        if now.report.is_none() {
            return now;
        }
        self.mend(name, &mut now);
        let mut repair = before.repair.unwrap_or_default();
        let done = now.repair.take().unwrap_or_default();
        repair.repaired_bytes += done.repaired_bytes;
        repair
            .from
            .extend(done.from.into_iter().filter(|host| !repair.from.contains(host)).collect::<Vec<_>>());
        repair.failed = done.failed;
        Scrubbed { report: before.report, repair: Some(repair), ..now }
    }

    fn tell(&mut self, scrubbed: Scrubbed) -> Result<(), ControlError> {
        *self.end.failed.get_or_insert_default() += u64::from(!scrubbed.is_sound());
        *self.end.count.get_or_insert_default() += 1;
        if self.sink.line(&Line::Scrubbed(scrubbed)) && self.sink.flush() {
            return Ok(());
        }
        Err(ControlError::new(ErrorKind::Stopping, "the client has left"))
    }
}

fn problem(scrubbed: &Scrubbed) -> Option<String> {
    match (&scrubbed.error, &scrubbed.report) {
        (Some(error), _) => Some(error.message.clone()),
        (None, Some(report)) if !report.damaged.is_empty() => Some(long::damage(report)),
        _ => None,
    }
}
