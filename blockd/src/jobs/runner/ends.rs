//! What follows a run's end: records, history, pruning, and the word to monitors.

use std::collections::BTreeSet;

use tokio::task::{Id, JoinError};

use super::super::carrier::{FoundPoint, Outcome, RunError, RunErrorKind};
use super::super::clock::Now;
use super::super::prune::{Guard, Policy, prune};
use super::super::view::{RunRecord, State};
use super::{PRUNES_MAX, Runner, Running, blocking};

impl Runner {
    pub(super) async fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => {
                tracing::error!(%error, "a run has panicked");
                let outcome = Err(RunError::new(RunErrorKind::Io, "the transfer has failed within itself"));
                (error.id(), outcome)
            }
        };
        let running = self.running.remove(&id).expect("every run that ends was started");
        let now = self.clock.now();
        if self.note_end(&running, &outcome, now) {
            self.write_end(&running, &outcome, now).await;
            if outcome.is_ok() && !self.stopping {
                self.prune_after(&running.waiting.job);
            }
        }
        self.tell_news();
        // Last: who waits for the end finds it on record.
        running.waiting.watch.finish(outcome);
    }

    /// Whether the job is still there afterwards.
    fn note_end(&mut self, running: &Running, outcome: &Outcome, now: Now) -> bool {
        let waiting = &running.waiting;
        let entry = self.entries.get_mut(&waiting.job).filter(|entry| entry.serial == waiting.serial);
        let Some(entry) = entry else { return false };
        entry.plan(&waiting.to).run = None;
        match outcome {
            Ok(report) => entry.record(&waiting.to).succeed(report, waiting.watch.cut_at(), now),
            Err(_) if waiting.watch.is_cancelled() => {
                // Whoever has ended it knows, and nothing is wrong.
                if self.stopping || entry.is_paused() {
                    entry.interrupt(&waiting.to, now);
                }
            }
            Err(error) => entry.fail(&waiting.to, error.clone(), now),
        }
        let void = entry.is_void();
        if void {
            self.entries.remove(&waiting.job);
        }
        !void
    }

    async fn write_end(&mut self, running: &Running, outcome: &Outcome, now: Now) {
        let job = running.waiting.job.clone();
        let record = RunRecord {
            run: running.run,
            to: running.waiting.to.clone(),
            began_ms: running.began.wall_ms,
            duration_ms: now.since(running.began),
            report: outcome.as_ref().ok().cloned(),
            error: outcome.as_ref().err().cloned(),
        };
        let files = self.files.clone();
        let name = job.clone();
        let appended = blocking(move || files.append_run(&name, &record)).await;
        if let Err(error) = appended {
            tracing::warn!(job, error, "a run is missing from the history");
        }
        self.write_state(&job).await;
    }

    /// Writes down how far a job is. A failure is told in the list of jobs, and tried again after the next run.
    pub(super) async fn write_state(&mut self, job: &str) {
        let now = self.clock.now();
        let Some(entry) = self.entries.get_mut(job) else { return };
        entry.state.note_ages(now);
        entry.state.volumes.clone_from(&entry.job.volumes);
        let (files, state, name) = (self.files.clone(), entry.state.clone(), job.to_owned());
        self.unwritten = blocking(move || files.write_state(&name, &state)).await.err();
        if let Some(error) = &self.unwritten {
            tracing::error!(job, error, "what is on record of a job was not written");
        }
    }

    /// Lets go what the job's rules do not keep.
    fn prune_after(&mut self, job: &str) {
        let Some(entry) = self.entries.get(job) else { return };
        if entry.once && self.damaged.is_some() {
            return tracing::warn!(job, "not pruned: its rules may be in the file that is damaged");
        }
        if self.prunes.len() >= PRUNES_MAX {
            return tracing::debug!(job, "pruned after its next run");
        }
        let policy = Policy::Jobs(vec![(job.to_owned(), entry.job.keep)]);
        let volumes: Vec<(String, Vec<Guard>)> =
            entry.job.volumes.iter().map(|volume| (volume.clone(), self.guards(volume))).collect();
        let (service, job) = (self.service.clone(), job.to_owned());
        self.prunes.spawn(async move {
            for (volume, guards) in volumes {
                match prune(&service, &volume, &policy, &guards, true).await {
                    Ok(pruned) => tracing::debug!(job, volume, ?pruned.refused, "pruned"),
                    Err(error) => tracing::warn!(job, volume, %error, "snapshots were not pruned"),
                }
            }
        });
    }

    /// What must stay of a volume because of targets.
    pub(super) fn guards(&self, volume: &str) -> Vec<Guard> {
        let concerned =
            self.entries.values().filter(|entry| entry.job.volumes.iter().any(|name| name == volume));
        let guards = concerned.flat_map(|entry| {
            entry.state.targets.iter().map(|(to, record)| Guard {
                job: entry.job.name.clone(),
                to: to.clone(),
                base: record.point.as_ref().map(|point| point.snapshot.clone()),
            })
        });
        guards.collect()
    }

    pub(super) async fn point_found(
        &mut self,
        found: Result<(String, String, Option<FoundPoint>), JoinError>,
    ) {
        let (name, to, Some(point)) = (match found {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "asking a target for its last point has panicked"),
        }) else {
            return;
        };
        let now = self.clock.now();
        if let Some(entry) = self.entries.get_mut(&name)
            && entry.plans.contains_key(&to)
        {
            entry.record(&to).find(point, now);
            self.write_state(&name).await;
        }
    }

    /// Tells of jobs whose state is another one than before.
    pub(super) fn tell_news(&mut self) {
        let now = self.clock.now();
        for (name, entry) in &mut self.entries {
            let targets: BTreeSet<String> = entry.plans.keys().cloned().collect();
            for to in targets {
                let Some((state, reason)) = entry.news(&to, now) else { continue };
                let message = match (state, reason.as_str()) {
                    (State::Ok, _) => format!("to {to}: ok"),
                    (_, "") => format!("to {to}: {state}"),
                    (_, reason) => format!("to {to}: {state}, {reason}"),
                };
                self.service.events.record(&format!("job_{state}"), name.clone(), message);
            }
        }
    }
}
