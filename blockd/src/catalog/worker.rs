//! The real [`MetaPort`]: a thread that commits, and one that reads, so that a long scan delays no commit.
//!
//! ```text
//!             submit                       commit thread: store.write, mark.advance ─┐
//!   reactor ─────────▶ bounded channels ─▶ read thread: load map, scan ──────────────┼─▶ done, then the waker
//!      ▲                                                                             │
//!      └───────────────────────────── take_done ◀───────────────────────────────────┘
//! ```
//!
//! A read that is submitted after a commit completed sees it: the batch was in the store before its completion was
//! queued.
//!
//! **Without room** a commit gives the [`Ballast`] up and goes on. If that is not enough, it waits for room, for a time
//! that ends: whoever asked for a FLUSH waits rather than fails.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::catalog::ballast::Ballast;
use crate::catalog::mark::Mark;
use crate::catalog::meta::{Batch, MetaAnswer, MetaDone, MetaError, MetaOp, MetaPort, MetaStore};
use crate::catalog::reads;
use crate::rebuild;

/// Operations that wait for one thread; one more fails. The engine has one commit under way and a few reads.
pub const QUEUE_OPS_MAX: usize = 1024;

/// How long a commit waits for room, and how often it looks.
const ROOM_TIME_MAX: Duration = Duration::from_secs(30);
const ROOM_PAUSE: Duration = Duration::from_secs(1);
/// How often a ballast that was given up is tried again.
const BALLAST_PAUSE: Duration = Duration::from_secs(10);

/// Called on the worker's threads after a completion was queued; must not block.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// The port and its threads. Dropping it ends them, after all that was submitted is done.
pub struct MetaWorker {
    commits: Option<SyncSender<(u64, MetaOp)>>,
    reads: Option<SyncSender<(u64, MetaOp)>>,
    done: Arc<Done>,
    ending: Arc<Ending>,
    threads: Vec<JoinHandle<()>>,
}

/// Whether the worker is to end: then nothing is waited for any more.
#[derive(Default)]
struct Ending {
    ends: Mutex<bool>,
    changed: Condvar,
}

impl Ending {
    fn begin(&self) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits so long, unless the end comes first; tells whether it has.
    fn wait(&self, time: Duration) -> bool {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let (ends, _) = self
            .changed
            .wait_timeout_while(ends, time, |ends| !*ends)
            .unwrap_or_else(PoisonError::into_inner);
        *ends
    }
}

impl std::fmt::Debug for MetaWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetaWorker").finish_non_exhaustive()
    }
}

/// Completions that nobody has taken yet.
struct Done {
    queue: Mutex<VecDeque<MetaDone>>,
    waker: Waker,
}

impl Done {
    fn push(&self, tag: u64, result: Result<MetaAnswer, MetaError>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(MetaDone { tag, result });
        (self.waker)();
    }
}

impl MetaWorker {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system has no thread for us.
    pub fn start(store: Arc<dyn MetaStore>, mark: Mark, ballast: Ballast, waker: Waker) -> io::Result<Self> {
        let done = Arc::new(Done { queue: Mutex::default(), waker });
        let (commits, commit_ops) = sync_channel(QUEUE_OPS_MAX);
        let (reads, read_ops) = sync_channel(QUEUE_OPS_MAX);
        let mut worker = Self {
            commits: Some(commits),
            reads: Some(reads),
            done: Arc::clone(&done),
            ending: Arc::default(),
            threads: Vec::with_capacity(2),
        };
        let ending = Arc::clone(&worker.ending);
        let committer =
            Committer { store: Arc::clone(&store), mark, ballast, ending, failed: None, restore_at: None };
        let committed = Arc::clone(&done);
        worker.spawn("meta-commit", move || committer.run(&commit_ops, &committed))?;
        worker.spawn("meta-read", move || run_reads(&*store, &read_ops, &done))?;
        Ok(worker)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }

    /// The next completion, if there is one.
    pub fn take_done(&mut self) -> Option<MetaDone> {
        self.done.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Does what was submitted, ends the threads, and gives the completions that nobody has taken.
    pub fn stop(mut self) -> Vec<MetaDone> {
        self.join();
        std::iter::from_fn(|| self.take_done()).collect()
    }

    fn join(&mut self) {
        self.ending.begin();
        // Without senders the threads' loops end.
        self.commits = None;
        self.reads = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a metadata thread has panicked");
            }
        }
    }
}

impl Drop for MetaWorker {
    fn drop(&mut self) {
        self.join();
    }
}

impl MetaPort for MetaWorker {
    fn submit(&mut self, tag: u64, op: MetaOp) {
        let queue = if matches!(op, MetaOp::Commit { .. }) { &self.commits } else { &self.reads };
        let refusal = match queue.as_ref().map(|queue| queue.try_send((tag, op))) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(_))) => format!("more than {QUEUE_OPS_MAX} operations wait"),
            Some(Err(TrySendError::Disconnected(_))) | None => "the metadata thread has ended".to_owned(),
        };
        self.done.push(tag, Err(MetaError::Io(refusal)));
    }
}

struct Committer {
    store: Arc<dyn MetaStore>,
    mark: Mark,
    ballast: Ballast,
    ending: Arc<Ending>,
    /// Why no commit is taken any more.
    failed: Option<MetaError>,
    /// Not before then is the ballast tried again.
    restore_at: Option<Instant>,
}

impl Committer {
    fn run(mut self, ops: &Receiver<(u64, MetaOp)>, done: &Done) {
        for (tag, op) in ops {
            let result = match op {
                MetaOp::Commit { commit, batch } => self.commit(commit, &batch),
                MetaOp::LoadMap { .. } | MetaOp::Scan { .. } | MetaOp::Touched { .. } => {
                    unreachable!("reads have their own thread")
                }
            };
            let room = result.is_ok();
            done.push(tag, result.map(|()| MetaAnswer::Committed));
            if room && !self.ballast.is_held() {
                self.restore_ballast();
            }
        }
    }

    /// At most once a while: where it cannot be, it is not tried with every commit.
    fn restore_ballast(&mut self) {
        if self.restore_at.is_none_or(|at| Instant::now() >= at) {
            self.ballast.restore();
            self.restore_at = Some(Instant::now() + BALLAST_PAUSE);
        }
    }

    /// After an error other than `NoSpace` the store may or may not hold the batch: a later one, built on either
    /// belief, could be wrong. So there is none.
    fn commit(&mut self, commit: u64, batch: &Batch) -> Result<(), MetaError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.write(commit, batch);
        if let Err(error) = &result
            && *error != MetaError::NoSpace
        {
            self.failed = Some(error.clone());
        }
        result
    }

    fn write(&mut self, commit: u64, batch: &Batch) -> Result<(), MetaError> {
        self.write_with_room(batch)?;
        self.mark.advance(commit).map_err(|error| MetaError::Io(error.to_string()))
    }

    /// Of a batch that was refused without room nothing was seen, so it may be tried again.
    fn write_with_room(&mut self, batch: &Batch) -> Result<(), MetaError> {
        let began = Instant::now();
        loop {
            match self.store.write(batch) {
                Err(MetaError::NoSpace) => {}
                result => return result,
            }
            if self.ballast.give_up() {
                self.restore_at = Some(Instant::now() + BALLAST_PAUSE);
                continue;
            }
            if began.elapsed() >= ROOM_TIME_MAX {
                return Err(MetaError::NoSpace);
            }
            tracing::warn!("the file system is full: a commit waits for room");
            if self.ending.wait(ROOM_PAUSE) {
                return self.store.write(batch);
            }
        }
    }
}

fn run_reads(store: &dyn MetaStore, ops: &Receiver<(u64, MetaOp)>, done: &Done) {
    for (tag, op) in ops {
        let result = match op {
            MetaOp::LoadMap { chain, clusters } => {
                let map = rebuild::load_map(store, &chain, clusters, rebuild::threads_while_serving());
                map.map(|map| MetaAnswer::Map(Box::new(map)))
            }
            MetaOp::Scan { layer, from, limit } => {
                reads::scan_layer(store, layer, from, limit).map(MetaAnswer::Records)
            }
            MetaOp::Touched { layers, clusters } => {
                reads::touched(store, &layers, &clusters).map(MetaAnswer::Touched)
            }
            MetaOp::Commit { .. } => unreachable!("commits have their own thread"),
        };
        done.push(tag, result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::catalog::format::{Change, MapRecord};
    use crate::catalog::mark::Slots;
    use crate::catalog::memory::MemoryMeta;
    use crate::catalog::meta::Visit;
    use crate::units::{ClusterIndex, LayerId, Mask};

    const IDENTITY: [u8; 16] = [7; 16];

    /// A store whose writes fail with what the test sends, and whose scans wait for it.
    #[derive(Default)]
    struct Faulty {
        memory: MemoryMeta,
        errors: Mutex<VecDeque<Option<MetaError>>>,
        hold_scans: Mutex<Option<Receiver<()>>>,
    }

    impl MetaStore for Faulty {
        fn write(&self, batch: &[Change]) -> Result<(), MetaError> {
            match self.errors.lock().unwrap().pop_front().flatten() {
                Some(error) => Err(error),
                None => self.memory.write(batch),
            }
        }

        fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError> {
            if let Some(hold) = &*self.hold_scans.lock().unwrap() {
                hold.recv().unwrap();
            }
            self.memory.scan(from, to, visit)
        }

        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
            self.memory.get(key)
        }
    }

    struct Fixture {
        data: tempfile::TempDir,
        store: Arc<Faulty>,
        worker: MetaWorker,
        woken: Receiver<()>,
    }

    fn start(errors: Vec<Option<MetaError>>) -> Fixture {
        let data = tempfile::tempdir().unwrap();
        let mark = Mark::create(data.path(), IDENTITY).unwrap();
        let store = Arc::new(Faulty { errors: Mutex::new(errors.into()), ..Faulty::default() });
        let (wake, woken) = mpsc::channel();
        let waker: Waker = Arc::new(move || wake.send(()).unwrap());
        let ballast = Ballast::hold(data.path(), 1 << 16);
        let worker =
            MetaWorker::start(Arc::clone(&store) as Arc<dyn MetaStore>, mark, ballast, waker).unwrap();
        Fixture { data, store, worker, woken }
    }

    impl Fixture {
        fn commit(&mut self, commit: u64) {
            let record = MapRecord { zero: Mask::ALL, ..MapRecord::default() };
            let map = Change::Map(LayerId(1), ClusterIndex(commit as u32), Some(record));
            let batch = vec![Change::Commit(commit), map];
            self.worker.submit(commit, MetaOp::Commit { commit, batch });
        }

        fn scan(&mut self, tag: u64) {
            let op = MetaOp::Scan { layer: LayerId(1), from: ClusterIndex(0), limit: 1000 };
            self.worker.submit(tag, op);
        }

        fn next(&mut self) -> MetaDone {
            self.woken.recv_timeout(Duration::from_secs(10)).unwrap();
            self.worker.take_done().unwrap()
        }

        fn mark(&self) -> u64 {
            Slots::read(self.data.path()).unwrap().newest().unwrap().1
        }
    }

    #[test]
    fn commits_complete_in_order_with_their_mark() {
        let mut fixture = start(vec![]);
        (1..=20).for_each(|commit| fixture.commit(commit));
        for commit in 1..=20 {
            let done = fixture.next();
            assert!(matches!(done, MetaDone { tag, result: Ok(MetaAnswer::Committed) } if tag == commit));
            assert!(fixture.mark() >= commit);
        }
        assert_eq!(fixture.store.memory.commit(), 20);
    }

    #[test]
    fn a_scan_sees_what_had_completed() {
        let mut fixture = start(vec![]);
        for commit in 1..=50 {
            fixture.commit(commit);
            assert_eq!(fixture.next().tag, commit);
            fixture.scan(1000);
            let Ok(MetaAnswer::Records(records)) = fixture.next().result else { panic!() };
            assert_eq!(records.len() as u64, commit);
        }
        fixture.worker.submit(7, MetaOp::LoadMap { chain: vec![LayerId(1)], clusters: 100 });
        assert!(matches!(fixture.next().result, Ok(MetaAnswer::Map(_))));
    }

    #[test]
    fn a_scan_that_takes_long_delays_no_commit() {
        let mut fixture = start(vec![]);
        let (release, hold) = mpsc::channel();
        *fixture.store.hold_scans.lock().unwrap() = Some(hold);
        fixture.scan(100);
        fixture.commit(1);
        assert_eq!(fixture.next().tag, 1);
        release.send(()).unwrap();
        assert_eq!(fixture.next().tag, 100);
    }

    #[test]
    fn without_room_the_ballast_goes_and_the_commit_succeeds() {
        let mut fixture = start(vec![Some(MetaError::NoSpace), None]);
        let ballast = fixture.data.path().join("ballast");
        assert!(ballast.exists());
        fixture.commit(1);
        assert!(fixture.next().result.is_ok());
        assert!(!ballast.exists(), "given up, and not at once taken back");
        assert_eq!(fixture.mark(), 1);
    }

    #[test]
    fn a_commit_waits_for_room() {
        let mut fixture = start(vec![Some(MetaError::NoSpace); 3]);
        let began = Instant::now();
        (1..=2).for_each(|commit| fixture.commit(commit));
        assert!(fixture.next().result.is_ok() && fixture.next().result.is_ok());
        assert!(began.elapsed() >= ROOM_PAUSE);
        assert_eq!((fixture.mark(), fixture.store.memory.commit()), (2, 2));
    }

    #[test]
    fn the_end_waits_for_no_room() {
        let mut fixture = start(vec![Some(MetaError::NoSpace); 1000]);
        fixture.commit(1);
        let began = Instant::now();
        let done = fixture.worker.stop();
        assert!(matches!(done[..], [MetaDone { result: Err(MetaError::NoSpace), .. }]), "{done:?}");
        assert!(began.elapsed() < ROOM_TIME_MAX / 2);
        assert_eq!(Slots::read(fixture.data.path()).unwrap().newest().unwrap().1, 0);
    }

    #[test]
    fn after_any_other_failure_nothing_is_committed() {
        let failure = MetaError::Io("gone".into());
        let mut fixture = start(vec![None, Some(failure.clone())]);
        (1..=3).for_each(|commit| fixture.commit(commit));
        assert!(fixture.next().result.is_ok());
        for _ in 2..=3 {
            assert_eq!(fixture.next().result.unwrap_err(), failure);
        }
        assert_eq!((fixture.mark(), fixture.store.memory.commit()), (1, 1));
    }

    #[test]
    fn a_mark_that_cannot_be_written_is_a_failed_commit() {
        let data = tempfile::tempdir().unwrap();
        drop(Mark::create(data.path(), IDENTITY).unwrap());
        let mark = Mark::read_only_for_tests(data.path(), IDENTITY);
        let store = Arc::new(MemoryMeta::new());
        let ballast = Ballast::hold(data.path(), 0);
        let mut worker = MetaWorker::start(store, mark, ballast, Arc::new(|| ())).unwrap();
        for commit in 1..=2 {
            worker.submit(commit, MetaOp::Commit { commit, batch: vec![Change::Commit(commit)] });
        }
        let done = worker.stop();
        assert!(done.iter().all(|done| matches!(done.result, Err(MetaError::Io(_)))));
        assert_eq!(done.len(), 2);
    }

    #[test]
    fn stopping_does_what_was_submitted() {
        let mut fixture = start(vec![]);
        (1..=100).for_each(|commit| fixture.commit(commit));
        fixture.scan(1000);
        let done = fixture.worker.stop();
        assert_eq!(done.len(), 101);
        assert_eq!(fixture.store.memory.commit(), 100);
    }

    #[test]
    fn a_full_queue_refuses_instead_of_blocking() {
        let mut fixture = start(vec![]);
        let (release, hold) = mpsc::channel();
        *fixture.store.hold_scans.lock().unwrap() = Some(hold);
        // One may be in the thread's hands.
        let submitted = QUEUE_OPS_MAX as u64 + 10;
        (0..submitted).for_each(|tag| fixture.scan(tag));
        assert!(matches!(fixture.next().result, Err(MetaError::Io(_))));
        (0..submitted).for_each(|_| release.send(()).unwrap());
        assert_eq!(fixture.worker.stop().len() as u64, submitted - 1);
    }
}
