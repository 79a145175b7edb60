//! The thread that reads for one session of a source: files and metadata block, the network must not wait for them.
//!
//! It does what the session asks, one thing after the other, and reads the next batch ahead while the last one travels.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::offer::Offer;
use super::reading::{Kept, ReadStats, Reading, Twin};
use super::source::{Did, Do, Plan, Read};
use super::together::{Got, Key, SharedReads};
use super::wire::Mode;
use super::writing::refusal;
use crate::control::{Answer, Control, ControlError, ErrorKind, Pinned, SnapshotName};
use crate::service::Engine;
use crate::snapshot::{Changes, ClosedReader, Wanted, hash};
use crate::units::{BLOCK_BYTES, ClusterIndex};

/// Values that are kept with one command.
const KEPT_MAX: usize = 4096;
/// A snapshot whose layers are being merged is waited for: so often, and so long each time.
const BUSY_TRIES: u32 = 600;
const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// What the thread tells.
pub(super) enum Told {
    /// What was asked for is done.
    Did(Did),
    /// What was read so far.
    Stats(ReadStats),
    /// Bytes of a volume that will be looked at, about.
    Total(u64),
}

/// Hands a command to the store and waits, on a thread that may block.
pub(super) fn ask(engine: &dyn Engine, command: Control) -> Result<Answer, ControlError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    engine.submit(command, sender);
    let gone = |_| ControlError::new(ErrorKind::Stopping, "the daemon is stopping");
    receiver.blocking_recv().map_err(gone)?
}

/// A snapshot that is unpinned when nobody needs it any more.
pub(super) struct Pin {
    engine: Arc<dyn Engine>,
    /// Its layers.
    pub(super) pinned: Pinned,
}

impl Pin {
    /// Pins a snapshot; while its layers are being merged it waits.
    ///
    /// # Errors
    /// `NotFound`; `Busy`; `Stopping`.
    pub(super) fn take(engine: &Arc<dyn Engine>, name: &SnapshotName) -> Result<Self, ControlError> {
        for _ in 0..BUSY_TRIES {
            match ask(&**engine, Control::Pin { name: name.clone() }) {
                Ok(Answer::Pinned(pinned)) => return Ok(Self { engine: Arc::clone(engine), pinned }),
                Ok(other) => unreachable!("the answer to `Pin` is `Pinned`: {other:?}"),
                Err(error) if error.kind == ErrorKind::Busy => thread::sleep(BUSY_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Err(ControlError::new(ErrorKind::Busy, format!("layers of {name} are being merged")))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Err(error) = ask(&*self.engine, Control::Unpin { pin: self.pinned.pin }) {
            tracing::debug!(%error, "a pin ends with the daemon");
        }
    }
}

/// See the module. Ends when it is dropped.
pub(super) struct ReaderThread {
    asked: mpsc::Sender<Do>,
}

impl ReaderThread {
    /// Starts it; what it has done comes through `told`.
    ///
    /// # Errors
    /// The system has no thread for us.
    pub(super) fn start(
        engine: Arc<dyn Engine>,
        reader: ClosedReader,
        offers: Vec<Offer>,
        batch_bytes: usize,
        shared: Option<Arc<SharedReads>>,
        told: tokio::sync::mpsc::UnboundedSender<Told>,
    ) -> std::io::Result<Self> {
        let (asked, work) = mpsc::channel();
        let mut worker =
            Worker { engine, reader, offers, batch_bytes, shared, open: None, ahead: None, told };
        thread::Builder::new().name("sync-reader".to_owned()).spawn(move || {
            while let Ok(action) = work.recv() {
                worker.act(action);
            }
        })?;
        Ok(Self { asked })
    }

    /// Has it do something. One thing at a time: what it did comes before the next is asked for.
    pub(super) fn ask(&self, action: Do) {
        if self.asked.send(action).is_err() {
            tracing::error!("the thread that reads for a session has ended");
        }
    }
}

/// A volume that is being read.
struct Open {
    reading: Reading,
    /// Where that goes on; it is opened anew where another session has read meanwhile.
    reading_at: u64,
    plan: Plan,
    key: Arc<Key>,
    /// The root will be wanted, and values are recorded on the way: the idle hasher would do the same once more.
    _wanted: Option<Wanted>,
    pin: Pin,
    base: Option<Pin>,
    twins: Vec<(u16, Pin)>,
    kept: Vec<Kept>,
    /// Of readings before this one, and of other sessions.
    stats: ReadStats,
}

impl Open {
    fn stats(&self) -> ReadStats {
        self.stats.and(self.reading.stats())
    }

    /// The batch at the plan's cluster, read here.
    fn read(&mut self, reader: &ClosedReader, batch_bytes: usize) -> Result<Got, ControlError> {
        // What is compared is read in one go.
        if self.plan.mode == Mode::Changes && self.reading_at != self.plan.from {
            self.stats = self.stats();
            self.kept.append(&mut self.reading.take_kept());
            self.reading =
                open_reading(reader, &self.plan, &self.pin, self.base.as_ref(), &self.twins, batch_bytes)?;
            self.reading_at = self.plan.from;
        }
        let before = self.reading.stats();
        let read = self.reading.batch()?;
        if let Some(read) = &read {
            self.reading_at = read.cursor;
        }
        Ok(Got { read, stats: self.reading.stats().since(before) })
    }
}

fn open_reading(
    reader: &ClosedReader,
    plan: &Plan,
    pin: &Pin,
    base: Option<&Pin>,
    twins: &[(u16, Pin)],
    batch_bytes: usize,
) -> Result<Reading, ControlError> {
    let twin = |(place, pin): &(u16, Pin)| Twin { place: *place, pinned: pin.pinned.clone() };
    let (to, twins) = (pin.pinned.clone(), twins.iter().map(twin).collect());
    Reading::open(reader, plan, to, base.map(|base| &base.pinned), twins, batch_bytes)
}

struct Worker {
    engine: Arc<dyn Engine>,
    reader: ClosedReader,
    offers: Vec<Offer>,
    batch_bytes: usize,
    /// Of runs to other targets that began at the same time.
    shared: Option<Arc<SharedReads>>,
    open: Option<Open>,
    /// The next batch, read while nobody had asked for it.
    ahead: Option<Result<Option<Read>, ControlError>>,
    told: tokio::sync::mpsc::UnboundedSender<Told>,
}

impl Worker {
    fn act(&mut self, action: Do) {
        let is_read = action == Do::Read;
        let did = self.perform(action).unwrap_or_else(|error| Did::Failed(refusal(&error)));
        let more = is_read && matches!(did, Did::Batch(Some(_)));
        self.tell(Told::Did(did));
        if let Some(open) = self.open.as_ref().filter(|open| more && open.plan.mode == Mode::Changes) {
            let stats = open.stats();
            self.ahead = Some(self.read());
            self.tell(Told::Stats(stats));
        }
    }

    fn tell(&self, told: Told) {
        if self.told.send(told).is_err() {
            tracing::debug!("the session is over");
        }
    }

    fn perform(&mut self, action: Do) -> Result<Did, ControlError> {
        Ok(match action {
            Do::Open(plan) => {
                self.open(&plan)?;
                Did::Opened
            }
            Do::Read => {
                let read = match self.ahead.take() {
                    Some(read) => read,
                    None => self.read(),
                };
                Did::Batch(read?)
            }
            Do::ReadValues => {
                let open = self.open.as_mut().expect("a session opens before it reads");
                let values = open.reading.values()?;
                self.keep(KEPT_MAX)?;
                Did::Values(values)
            }
            Do::Select(wanted) => {
                self.open.as_mut().expect("a session opens before it reads").reading.select(&wanted);
                Did::Opened
            }
            Do::Root => Did::Root(self.root()?),
            Do::Send(_) | Do::Over(_) => unreachable!("not for this thread"),
        })
    }

    fn open(&mut self, plan: &Plan) -> Result<(), ControlError> {
        (self.open, self.ahead) = (None, None);
        let offer = &self.offers[plan.volume];
        let missing = || ControlError::new(ErrorKind::NotFound, "the base is gone");
        let pin = Pin::take(&self.engine, &offer.snapshot)?;
        let base = match plan.base {
            Some(uid) => Some(Pin::take(&self.engine, offer.candidate(uid).ok_or_else(missing)?)?),
            None => None,
        };
        let mut twins = Vec::new();
        // Over a base there is little that is new: what could be copied was changed elsewhere, too.
        for &place in plan.known.iter().filter(|_| plan.base.is_none() && plan.mode == Mode::Changes) {
            let place_index = usize::from(place);
            if place_index >= offer.brought.bases
                && let Some(name) = offer.candidates.get(place_index)
            {
                twins.push((place, Pin::take(&self.engine, name)?));
            }
        }
        let reading = open_reading(&self.reader, plan, &pin, base.as_ref(), &twins, self.batch_bytes)?;
        self.tell(Told::Total(count(
            &self.reader,
            plan,
            &pin.pinned,
            base.as_ref().map(|base| &base.pinned),
        )?));
        let offered = &offer.brought.offer;
        let places: Vec<u16> = twins.iter().map(|(place, _)| *place).collect();
        let known = if places.is_empty() { Vec::new() } else { offered.candidates.clone() };
        let key = Key { snapshot: offered.uid, base: plan.base, known: (known, places), zstd: plan.zstd };
        let wanted = self.reader.want(&pin.pinned)?;
        self.open = Some(Open {
            _wanted: wanted,
            reading,
            reading_at: plan.from,
            plan: plan.clone(),
            key: Arc::new(key),
            pin,
            base,
            twins,
            kept: Vec::new(),
            stats: ReadStats::default(),
        });
        Ok(())
    }

    fn read(&mut self) -> Result<Option<Read>, ControlError> {
        let open = self.open.as_mut().expect("a session opens before it reads");
        // What is compared is what this target wants, and nobody else.
        let shared = self.shared.as_ref().filter(|_| open.plan.mode == Mode::Changes);
        let (key, from) = (Arc::clone(&open.key), open.plan.from);
        let mut own = || open.read(&self.reader, self.batch_bytes);
        let (got, is_shared) = match shared {
            Some(shared) => shared.batch(&key, from, &mut own)?,
            None => (own()?, false),
        };
        if is_shared {
            open.stats = open.stats.and(ReadStats { shared: got.stats.looked_at, ..got.stats });
        }
        if let Some(read) = got.read.as_ref().filter(|_| open.plan.mode == Mode::Changes) {
            open.plan.from = read.cursor;
        }
        self.keep(KEPT_MAX)?;
        Ok(got.read)
    }

    /// Values that were computed are recorded, when there are so many.
    fn keep(&mut self, most: usize) -> Result<(), ControlError> {
        let open = self.open.as_mut().expect("it is open");
        open.kept.append(&mut open.reading.take_kept());
        if open.kept.len() < most.max(1) {
            return Ok(());
        }
        let hashes = std::mem::take(&mut open.kept);
        let pin = open.pin.pinned.pin;
        ask(&*self.engine, Control::KeepHashes { pin, hashes, roots: Vec::new() }).map(drop)
    }

    fn root(&mut self) -> Result<[u8; 32], ControlError> {
        self.keep(0)?;
        let open = self.open.as_ref().expect("a session opens before it ends");
        self.tell(Told::Stats(open.stats()));
        let submit = |command| ask(&*self.engine, command);
        // The session may be over before it is found.
        let told = &self.told;
        hash(&self.reader, &open.pin.pinned, &submit, &mut |_, _| !told.is_closed())
    }
}

/// Bytes of the blocks that may differ: by the records, without reading any of them.
fn count(
    reader: &ClosedReader,
    plan: &Plan,
    to: &Pinned,
    from: Option<&Pinned>,
) -> Result<u64, ControlError> {
    let from_cluster = ClusterIndex(u32::try_from(plan.from).unwrap_or(u32::MAX));
    let mut blocks = 0;
    for changed in Changes::new(reader, from, to, from_cluster)? {
        let changed = changed?;
        blocks += u64::from(changed.data.with(changed.zero).count());
    }
    Ok(blocks * BLOCK_BYTES)
}
