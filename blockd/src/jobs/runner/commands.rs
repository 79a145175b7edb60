//! What the runner is told, one function a command.

use std::collections::VecDeque;

use super::super::desk::{Change, Command, Overview, Protection, Reply, Started};
use super::super::entry::Entry;
use super::super::files::JobFiles;
use super::super::job::{JOBS_MAX, Job};
use super::super::record::JobState;
use super::{Runner, blocking, cancelled, not_found, tell};
use crate::control::{ControlError, ErrorKind};

type Outcome<T> = Result<T, ControlError>;

fn refuse<T>(kind: ErrorKind, message: impl Into<String>) -> Outcome<T> {
    Err(ControlError::new(kind, message))
}

impl Runner {
    pub(super) async fn command(&mut self, command: Command) {
        match command {
            Command::List(reply) => tell(reply, Ok(self.overview())),
            Command::Show(name, reply) => {
                let now = self.clock.now();
                tell(reply, self.entry(&name).map(|entry| entry.view(now)));
            }
            Command::Add(job, reply) => {
                let done = self.add(*job).await;
                tell(reply, done);
            }
            Command::Once(job, reply) => self.once(*job, reply),
            Command::Run(name, reply) => {
                let started = self.run_now(&name);
                tell(reply, started);
            }
            Command::Cancel(name, reply) => tell(reply, self.cancel(&name)),
            Command::Pause(name, paused, reply) => {
                let done = self.pause(&name, paused).await;
                tell(reply, done);
            }
            Command::Change(name, change, reply) => {
                let done = self.change(&name, change).await;
                tell(reply, done);
            }
            Command::Delete(name, reply) => {
                let done = self.delete(&name).await;
                tell(reply, done);
            }
            Command::Guards(volume, reply) => tell(reply, Ok(self.protection(&volume))),
            // Taken by the loop.
            Command::Stop(done) => tell(done, ()),
        }
    }

    fn entry(&mut self, name: &str) -> Outcome<&mut Entry> {
        self.entries.get_mut(name).ok_or_else(|| not_found(name))
    }

    fn overview(&mut self) -> Overview {
        let now = self.clock.now();
        let jobs = self.entries.values_mut().map(|entry| entry.view(now)).collect();
        Overview { jobs, problem: self.damaged.clone().or_else(|| self.unwritten.clone()) }
    }

    /// The definitions on disk are what they would be with this change; durable when this returns.
    async fn write_jobs(&self, change: impl FnOnce(&mut Vec<Job>)) -> Outcome<()> {
        if let Some(why) = &self.damaged {
            return refuse(
                ErrorKind::Damaged,
                format!("{why}; put it right or away, and restart the daemon"),
            );
        }
        let stored = self.entries.values().filter(|entry| !entry.once && !entry.job.from_config);
        let mut jobs: Vec<Job> = stored.map(|entry| entry.job.clone()).collect();
        change(&mut jobs);
        let files: JobFiles = self.files.clone();
        let written = blocking(move || files.write_jobs(&jobs)).await;
        written.map_err(|why| ControlError::new(ErrorKind::Io, why))
    }

    async fn add(&mut self, mut job: Job) -> Outcome<()> {
        job.from_config = false;
        job.check().map_err(|why| ControlError::new(ErrorKind::BadValue, why))?;
        let mut state = self.make_room(&job)?;
        state.added = Some(self.clock.now().into());
        let added = job.clone();
        self.write_jobs(|jobs| jobs.push(added)).await?;
        self.service.events.record(
            "job_added",
            job.name.clone(),
            format!("{} to {}", job.schedule, job.to.join(" ")),
        );
        let name = job.name.clone();
        self.adopt(job, false, state);
        self.write_state(&name).await;
        Ok(())
    }

    /// Whether there may be a new job of that name; what is on record of it, if it ran once before.
    fn make_room(&mut self, job: &Job) -> Outcome<JobState> {
        match self.entries.get(&job.name) {
            None if self.entries.len() >= JOBS_MAX => {
                refuse(ErrorKind::Refused, format!("there are {JOBS_MAX} jobs already"))
            }
            None => Ok(JobState::default()),
            Some(entry) if !entry.once => {
                let place = if entry.job.from_config { " in the configuration file" } else { "" };
                refuse(ErrorKind::Exists, format!("there is a job {}{place} already", job.name))
            }
            Some(entry) if entry.plans.values().any(|plan| plan.run.is_some()) => {
                refuse(ErrorKind::Busy, format!("{} is running once; wait for its end", job.name))
            }
            // The record is of these volumes, or of no use.
            Some(entry) if entry.job.volumes == job.volumes => Ok(entry.state.clone()),
            Some(_) => Ok(JobState::default()),
        }
    }

    fn once(&mut self, job: Job, reply: Reply<Vec<Started>>) {
        tell(reply, self.run_once(job));
    }

    fn run_once(&mut self, mut job: Job) -> Outcome<Vec<Started>> {
        job.check().map_err(|why| ControlError::new(ErrorKind::BadValue, why))?;
        let same = self.entries.get(&job.name).map(|entry| (&entry.job, entry.once));
        match same {
            Some((there, _)) if there.volumes == job.volumes && there.to == job.to => {
                if job.rate.is_some() {
                    self.set_rate(&job.name, job.rate)?;
                }
            }
            Some((_, false)) => {
                return refuse(
                    ErrorKind::Exists,
                    format!("there is a job {} of other volumes or targets", job.name),
                );
            }
            _ => {
                let state = self.make_room(&job)?;
                job.from_config = false;
                self.adopt(job.clone(), true, state);
            }
        }
        self.run_now(&job.name)
    }

    fn run_now(&mut self, name: &str) -> Outcome<Vec<Started>> {
        let entry = self.entry(name)?;
        if entry.is_paused() {
            return refuse(ErrorKind::Refused, format!("job {name} is paused"));
        }
        let targets = entry.job.to.clone();
        let watches = self.enqueue(name, &targets);
        let started = |(to, watch)| Started { job: name.to_owned(), to, watch };
        Ok(targets.into_iter().zip(watches).map(started).collect())
    }

    /// Asks the runs under way to end, and takes those that wait out of the queue.
    fn cancel(&mut self, name: &str) -> Outcome<()> {
        let entry = self.entries.get_mut(name).ok_or_else(|| not_found(name))?;
        entry.plans.values().filter_map(|plan| plan.run.as_ref()).for_each(|watch| watch.cancel());
        let serial = entry.serial;
        let (gone, left): (VecDeque<_>, _) =
            self.ready.drain(..).partition(|waiting| waiting.serial == serial);
        self.ready = left;
        for waiting in gone {
            entry.plan(&waiting.to).run = None;
            waiting.watch.finish(Err(cancelled()));
        }
        Ok(())
    }

    async fn pause(&mut self, name: &str, paused: bool) -> Outcome<()> {
        let entry = self.entry(name)?;
        if entry.once || entry.job.from_config {
            // Its definition is not ours to write.
            entry.state.paused = paused;
            self.write_state(name).await;
        } else {
            self.write_jobs(|jobs| each(jobs, name, |job| job.paused = paused)).await?;
            self.entry(name)?.job.paused = paused;
        }
        if paused {
            self.cancel(name)?;
        }
        self.service.events.record(if paused { "job_paused" } else { "job_resumed" }, name, "");
        Ok(())
    }

    async fn change(&mut self, name: &str, change: Change) -> Outcome<()> {
        let apply = |job: &mut Job| {
            job.rate = change.rate.unwrap_or(job.rate);
            job.rpo = change.rpo.unwrap_or(job.rpo);
        };
        let entry = self.entry(name)?;
        let mut changed = entry.job.clone();
        apply(&mut changed);
        changed.check().map_err(|why| ControlError::new(ErrorKind::BadValue, why))?;
        // A job of the configuration file is what it was after the next start.
        if !entry.once && !entry.job.from_config {
            self.write_jobs(|jobs| each(jobs, name, apply)).await?;
        }
        let rate = changed.rate;
        self.entry(name)?.job = changed;
        self.set_rate(name, rate)
    }

    /// Also for the runs that wait or are under way.
    fn set_rate(&mut self, name: &str, rate: Option<u64>) -> Outcome<()> {
        let entry = self.entry(name)?;
        entry.job.rate = rate;
        entry.plans.values().filter_map(|plan| plan.run.as_ref()).for_each(|watch| watch.set_rate(rate));
        Ok(())
    }

    async fn delete(&mut self, name: &str) -> Outcome<()> {
        let entry = self.entry(name)?;
        if entry.job.from_config {
            let why = format!("job {name} stands in the configuration file: take it out there, or pause it");
            return refuse(ErrorKind::Refused, why);
        }
        if !entry.once {
            self.write_jobs(|jobs| jobs.retain(|job| job.name != name)).await?;
        }
        self.cancel(name)?;
        self.entries.remove(name);
        let (files, owned) = (self.files.clone(), name.to_owned());
        let removed = blocking(move || files.remove_state(&owned)).await;
        removed.map_err(|why| ControlError::new(ErrorKind::Io, why))?;
        self.service.events.record("job_deleted", name, "");
        Ok(())
    }

    fn protection(&self, volume: &str) -> Protection {
        let concerned =
            self.entries.values().filter(|entry| entry.job.volumes.iter().any(|name| name == volume));
        // With a damaged file one that seems to have run once may be a job whose rules cannot be read.
        let known = concerned.filter(|entry| !entry.once || self.damaged.is_none());
        let policies = known.map(|entry| (entry.job.name.clone(), entry.job.keep)).collect();
        Protection { guards: self.guards(volume), policies }
    }
}

fn each(jobs: &mut [Job], name: &str, change: impl Fn(&mut Job)) {
    jobs.iter_mut().filter(|job| job.name == name).for_each(change);
}
