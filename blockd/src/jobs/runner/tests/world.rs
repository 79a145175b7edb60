//! A runner with a scripted carrier, a clock that can be set, and a store of snapshots in memory. Tokio's time is paused:
//! it passes when nobody has anything to do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::super::{Setup, start};
use crate::control::{Answer, Control, ControlError, ErrorKind, SnapshotInfo, SnapshotName};
use crate::events::Events;
use crate::jobs::carrier::{
    Carrier, Carrying, FoundPoint, Outcome, Phase, RunError, RunErrorKind, RunOrder, RunReport, RunWatch,
};
use crate::jobs::clock::{Clock, Now};
use crate::jobs::desk::Jobs;
use crate::jobs::files::JobFiles;
use crate::jobs::job::Job;
use crate::jobs::view::TargetView;
use crate::service::{DiffExtent, Engine, NbdAddresses, Recomputed, Service, VerifyReport};

/// 2026-11-20 14:03:30.
pub(super) const BEGIN_MS: u64 = 1_795_183_410_000;

pub(super) struct TestClock {
    begin: Instant,
    set: AtomicI64,
}

impl TestClock {
    /// Sets the system's clock, by so many milliseconds.
    pub(super) fn set_by(&self, ms: i64) {
        self.set.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        let passed = u64::try_from(self.begin.elapsed().as_millis()).unwrap();
        let wall_ms = (BEGIN_MS + passed).saturating_add_signed(self.set.load(Ordering::Relaxed));
        Now { wall_ms, mono_ms: i64::try_from(passed).unwrap() + 77_000 }
    }

    fn boot(&self) -> String {
        "boot".to_owned()
    }
}

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Succeeds after so many milliseconds.
    Ok(u64),
    /// Fails at once.
    Fail(RunErrorKind),
    /// Ends when it is cancelled.
    Hang,
    /// Ends never, whatever it is told.
    Deaf,
    Panic,
}

/// Does what it is told, in order; then succeeds at once.
pub(super) struct Script {
    steps: Mutex<VecDeque<Step>>,
    /// Orders, and when they came: seconds since the beginning.
    begun: Mutex<Vec<(RunOrder, u64)>>,
    pub(super) at_once: AtomicUsize,
    pub(super) at_once_max: AtomicUsize,
    pub(super) found: Mutex<Option<FoundPoint>>,
    store: Arc<Store>,
    clock: Arc<TestClock>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// Counts the runs under way.
struct Count(Arc<Script>);

impl Count {
    fn new(script: &Arc<Script>) -> Self {
        let now = script.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        script.at_once_max.fetch_max(now, Ordering::Relaxed);
        Self(Arc::clone(script))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct Scripted(pub(super) Arc<Script>);

impl Carrier for Scripted {
    fn run(&self, order: RunOrder, watch: Arc<RunWatch>) -> Carrying<Outcome> {
        let script = Arc::clone(&self.0);
        let step = lock(&script.steps).pop_front().unwrap_or(Step::Ok(0));
        lock(&script.begun).push((order.clone(), script.clock.begin.elapsed().as_secs()));
        Box::pin(async move {
            let _count = Count::new(&script);
            match step {
                Step::Fail(kind) => Err(RunError::new(kind, format!("{kind}"))),
                Step::Panic => panic!("as the script says"),
                Step::Deaf => std::future::pending().await,
                Step::Hang => {
                    watch.cancelled().await;
                    Err(RunError::new(RunErrorKind::Stopping, "told to"))
                }
                Step::Ok(ms) => {
                    watch.about_to_cut();
                    let point_ms = script.clock.now().wall_ms;
                    script.store.cut(&order.volumes, &order.snapshot, point_ms);
                    watch.phase(Phase::Sending);
                    sleep(Duration::from_millis(ms)).await;
                    let report = RunReport {
                        point_ms,
                        snapshot: order.snapshot,
                        bytes_sent: 1000,
                        ..RunReport::default()
                    };
                    Ok(report)
                }
            }
        })
    }

    fn last_point(&self, _volumes: Vec<String>, _to: String) -> Carrying<Option<FoundPoint>> {
        let found = lock(&self.0.found).clone();
        Box::pin(std::future::ready(found))
    }
}

#[derive(Default)]
pub(super) struct Store {
    pub(super) snapshots: Mutex<Vec<SnapshotInfo>>,
    sequence: AtomicUsize,
}

impl Store {
    pub(super) fn cut(&self, volumes: &[String], name: &str, created_ms: u64) {
        for volume in volumes {
            lock(&self.snapshots).push(SnapshotInfo {
                volume: volume.clone(),
                name: name.to_owned(),
                sequence: self.sequence.fetch_add(1, Ordering::Relaxed) as u64,
                size: 4096,
                created_ms,
                holds: Vec::new(),
                clones: Vec::new(),
                clients: 0,
                uid: String::new(),
            });
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        lock(&self.snapshots).iter().map(|snapshot| snapshot.name.clone()).collect()
    }

    fn delete(&self, name: &SnapshotName) -> Answer {
        lock(&self.snapshots).retain(|one| one.volume != name.volume || one.name != name.snapshot);
        Answer::Done
    }
}

impl Engine for Store {
    fn submit(&self, command: Control, answer: oneshot::Sender<Result<Answer, ControlError>>) {
        let result = match command {
            Control::ListSnapshots { volume } => {
                let all = lock(&self.snapshots).clone();
                Ok(Answer::Snapshots(
                    all.into_iter().filter(|one| Some(&one.volume) == volume.as_ref()).collect(),
                ))
            }
            Control::DeleteSnapshot { name } => Ok(self.delete(&name)),
            other => Err(ControlError::new(ErrorKind::Io, format!("{other:?}"))),
        };
        drop(answer.send(result));
    }

    fn diff(
        &self,
        _: Option<&SnapshotName>,
        _: &SnapshotName,
        _: &mut dyn FnMut(DiffExtent) -> bool,
    ) -> Result<(), ControlError> {
        Ok(())
    }

    fn hash(&self, _: &SnapshotName, _: &mut dyn FnMut(u64, u64) -> bool) -> Result<[u8; 32], ControlError> {
        Ok([0; 32])
    }

    fn verify(
        &self,
        _: &SnapshotName,
        _: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<VerifyReport, ControlError> {
        Ok(VerifyReport::default())
    }

    fn recompute(
        &self,
        _: &SnapshotName,
        _: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Recomputed, ControlError> {
        Ok(Recomputed { report: VerifyReport::default(), root: None, recorded: None })
    }
}

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) jobs: Jobs,
    pub(super) script: Arc<Script>,
    pub(super) store: Arc<Store>,
    pub(super) clock: Arc<TestClock>,
    pub(super) events: Events,
}

pub(super) fn job(name: &str, schedule: &str) -> Job {
    let mut job = Job::new(name, vec!["web".to_owned()], vec!["B".to_owned()]);
    job.schedule = schedule.parse().unwrap();
    job
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(tempfile::tempdir().unwrap(), Vec::new(), &[])
    }

    pub(super) fn scripted(steps: &[Step]) -> Self {
        Self::with(tempfile::tempdir().unwrap(), Vec::new(), steps)
    }

    pub(super) fn with(dir: TempDir, configured: Vec<Job>, steps: &[Step]) -> Self {
        let clock = Arc::new(TestClock { begin: Instant::now(), set: AtomicI64::new(0) });
        Self::on(dir, configured, steps, clock, Arc::default())
    }

    fn on(
        dir: TempDir,
        configured: Vec<Job>,
        steps: &[Step],
        clock: Arc<TestClock>,
        store: Arc<Store>,
    ) -> Self {
        let script = Arc::new(Script {
            steps: Mutex::new(steps.iter().copied().collect()),
            begun: Mutex::default(),
            at_once: AtomicUsize::new(0),
            at_once_max: AtomicUsize::new(0),
            found: Mutex::default(),
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
        });
        let events = Events::default();
        let engine: Arc<dyn Engine> = Arc::<Store>::clone(&store);
        let setup = Setup {
            files: JobFiles::new(dir.path()),
            configured,
            service: Service::new(engine, events.clone(), NbdAddresses::default()),
            carrier: Arc::new(Scripted(Arc::clone(&script))),
            clock: Arc::<TestClock>::clone(&clock),
        };
        Self { dir, jobs: start(setup), script, store, clock, events }
    }

    /// The daemon stops and starts again.
    pub(super) async fn restarted(self, steps: &[Step]) -> Self {
        self.jobs.stop().await;
        Self::on(self.dir, Vec::new(), steps, self.clock, self.store)
    }

    /// Lets so many seconds pass.
    pub(super) async fn pass(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    pub(super) fn then(&self, steps: &[Step]) {
        lock(&self.script.steps).extend(steps);
    }

    /// When runs began, in seconds since the beginning.
    pub(super) fn begun(&self) -> Vec<u64> {
        lock(&self.script.begun).iter().map(|(_, at)| *at).collect()
    }

    pub(super) fn orders(&self) -> Vec<RunOrder> {
        lock(&self.script.begun).iter().map(|(order, _)| order.clone()).collect()
    }

    pub(super) async fn target(&self, job: &str) -> TargetView {
        self.jobs.show(job).await.unwrap().targets.remove(0)
    }

    pub(super) fn told(&self) -> Vec<String> {
        self.events.after(0).events.into_iter().map(|event| event.kind).collect()
    }
}
