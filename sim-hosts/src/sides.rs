//! What a source and a target do for a session on a simulated host: actions go in, the state machine hears what came of
//! them.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use blockd::control::replication::{ReceiveToken, Replication};
use blockd::control::{Answer, Control, ControlError, ErrorKind, Pinned, SnapshotName};
use blockd::decompress::InProcess;
use blockd::snapshot::hash;
use blockd::store::Token;
use blockd::sync::offer::Offer;
use blockd::sync::reading::{Reading, Twin};
use blockd::sync::session::Link;
use blockd::sync::source::{self, Flow, Plan, Source};
use blockd::sync::target::{self, Target};
use blockd::sync::wire::{KeepWish, OfferedVolume, Refusal};
use blockd::sync::writing::{Place, refusal};
use blockd::units::{HostId, SnapshotUid};

use crate::host::Host;

/// A snapshot whose layers are being merged is asked for again so often.
const BUSY_TRIES: usize = 400;

/// The source of a session, and what it has under way.
pub struct SourceSide {
    /// The state machine.
    pub source: Source,
    /// What it offers.
    pub offers: Vec<Offer>,
    /// How much may be on its way.
    pub flow: Flow,
    /// What is to be done, in order.
    pub todo: VecDeque<source::Do>,
    /// What is being read.
    pub reading: Option<Reading>,
    /// The snapshot that is being sent.
    pub pinned: Option<Pinned>,
    /// What the differences are against.
    pub base: Option<SnapshotUid>,
    /// How it ended.
    pub over: Option<Result<(), Refusal>>,
}

/// The target of a session, and what it has under way.
pub struct TargetSide {
    /// The state machine.
    pub target: Target,
    /// Who sends.
    pub peer: HostId,
    /// What was offered.
    pub volumes: Vec<OfferedVolume>,
    /// By the volumes' places in the session.
    pub attempts: BTreeMap<usize, ReceiveToken>,
    /// What the differences are against.
    pub base: Option<SnapshotUid>,
    /// What is to be done, in order.
    pub todo: VecDeque<target::Do>,
    /// Writes under way, with the cluster up to which they are.
    pub applying: Vec<(Token, u64)>,
    /// A confirmation under way.
    pub confirming: Option<(Token, u64)>,
    /// Why it ended.
    pub over: Option<Refusal>,
}

/// A command that waits while layers are being merged.
fn patient(host: &mut Host, command: &Control) -> Result<Answer, ControlError> {
    for _ in 0..BUSY_TRIES {
        match host.ask(command.clone()) {
            Err(error) if error.kind == ErrorKind::Busy => {
                host.tick(100);
                host.step();
            }
            other => return other,
        }
    }
    panic!("busy for ever: {command:?}");
}

/// Pins a snapshot; waits while its layers are being merged.
///
/// # Errors
/// What the store answers.
pub fn pin(host: &mut Host, name: &SnapshotName) -> Result<Pinned, ControlError> {
    match patient(host, &Control::Pin { name: name.clone() })? {
        Answer::Pinned(pinned) => Ok(pinned),
        other => panic!("{other:?}"),
    }
}

/// Something that blocks, on a host that goes on meanwhile.
pub fn blocking<T>(
    host: &mut Host,
    work: impl FnOnce(&dyn Fn(Control) -> Result<Answer, ControlError>) -> T,
) -> T {
    let shared = RefCell::new(host);
    work(&|command| shared.borrow_mut().ask(command))
}

impl SourceSide {
    /// The beginning.
    pub fn start(link: Link, offers: Vec<Offer>, flow: Flow) -> Self {
        let brought = offers.iter().map(|offer| offer.brought.clone()).collect();
        Self {
            source: Source::start(link, brought, flow, 0).with_keep(KeepWish::default()),
            offers,
            flow,
            todo: VecDeque::new(),
            reading: None,
            pinned: None,
            base: None,
            over: None,
        }
    }

    /// Does what the machine asks for, and tells it what came of that. `now`: milliseconds of the session.
    pub fn act(&mut self, host: &mut Host, action: source::Do, now: u64) {
        let did = self.perform(host, action).unwrap_or_else(|error| source::Did::Failed(refusal(&error)));
        if !host.down {
            self.source.did(did, now);
        }
    }

    fn perform(&mut self, host: &mut Host, action: source::Do) -> Result<source::Did, ControlError> {
        Ok(match action {
            source::Do::Open(plan) => {
                self.open(host, &plan)?;
                source::Did::Opened
            }
            source::Do::Read => {
                let batch = self.reading.as_mut().expect("it is open").batch()?;
                self.keep(host)?;
                source::Did::Batch(batch)
            }
            source::Do::ReadValues => {
                let values = self.reading.as_mut().expect("it is open").values()?;
                self.keep(host)?;
                source::Did::Values(values)
            }
            source::Do::Select(wanted) => {
                self.reading.as_mut().expect("it is open").select(&wanted);
                source::Did::Opened
            }
            source::Do::Root => {
                let (reader, pinned) = (host.reader(), self.pinned.clone().expect("it is open"));
                let root = blocking(host, |submit| hash(&reader, &pinned, submit, &mut |_, _| true))?;
                source::Did::Root(root)
            }
            source::Do::Send(_) | source::Do::Over(_) => unreachable!("done at once"),
        })
    }

    fn open(&mut self, host: &mut Host, plan: &Plan) -> Result<(), ControlError> {
        let offer = self.offers[plan.volume].clone();
        let to = pin(host, &offer.snapshot)?;
        let from = plan.base.map(|uid| pin(host, offer.candidate(uid).expect("offered"))).transpose()?;
        let mut twins = Vec::new();
        if plan.base.is_none() {
            for &place in plan.known.iter().filter(|place| usize::from(**place) >= offer.brought.bases) {
                let pinned = pin(host, &offer.candidates[usize::from(place)])?;
                twins.push(Twin { place, pinned });
            }
        }
        let reader = host.reader();
        self.reading =
            Some(Reading::open(&reader, plan, to.clone(), from.as_ref(), twins, self.flow.batch_bytes)?);
        self.pinned = Some(to);
        Ok(())
    }

    /// Values that were computed are for the root, and for the next time.
    fn keep(&mut self, host: &mut Host) -> Result<(), ControlError> {
        let hashes = self.reading.as_mut().expect("it is open").take_kept();
        if hashes.is_empty() {
            return Ok(());
        }
        let pin = self.pinned.as_ref().expect("it is open").pin;
        host.ask(Control::KeepHashes { pin, hashes, roots: Vec::new() }).map(drop)
    }
}

impl TargetSide {
    /// The beginning.
    pub fn start(link: Link) -> Self {
        let peer = link.peer;
        Self {
            target: Target::start(link, 0),
            peer,
            volumes: Vec::new(),
            attempts: BTreeMap::new(),
            base: None,
            todo: VecDeque::new(),
            applying: Vec::new(),
            confirming: None,
            over: None,
        }
    }

    /// Does what the machine asks for, and tells it what came of that. `now`: milliseconds of the session.
    pub fn act(&mut self, host: &mut Host, action: target::Do, now: u64) {
        if let Some(did) = self.perform(host, action).unwrap_or_else(|r| Some(target::Did::Failed(r)))
            && !host.down
        {
            self.target.did(did, now);
        }
    }

    fn place<T>(
        &self,
        host: &mut Host,
        work: impl FnOnce(&Place<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let (reader, peer) = (host.reader(), self.peer);
        let shared = RefCell::new(host);
        let submit = |command| shared.borrow_mut().ask(command);
        let pause = || {
            let mut host = shared.borrow_mut();
            host.tick(100);
            host.step();
            true
        };
        work(&Place { reader: &reader, submit: &submit, pause: &pause, peer, decompress: &InProcess })
    }

    /// `None`: it ends later.
    fn perform(&mut self, host: &mut Host, action: target::Do) -> Result<Option<target::Did>, Refusal> {
        Ok(Some(match action {
            target::Do::Look(volumes) => {
                let mut have = Vec::new();
                for volume in &volumes {
                    have.push(self.place(host, |place| place.look(volume))?);
                }
                self.volumes = volumes;
                self.attempts.clear();
                target::Did::Looked(have)
            }
            target::Do::Prepare { volume, begin } => {
                let token = host.rng.u128(..).to_be_bytes();
                let offered = self.volumes[volume].clone();
                let ready = self.place(host, |place| place.prepare(&offered, &begin, token))?;
                self.attempts.insert(volume, ready.token);
                self.base = begin.base.map(|(uid, _)| uid);
                target::Did::Ready(ready)
            }
            target::Do::Apply { volume, bounds, cursor, batch } => {
                let offered = self.volumes[volume].clone();
                let patches = self.place(host, |place| place.patches(&offered, &bounds, &batch))?;
                let (lineage, token) = (offered.lineage, self.attempts[&volume]);
                let command = Control::Replication(Replication::Apply { lineage, token, patches });
                self.applying.push((host.command(command), cursor));
                return Ok(None);
            }
            target::Do::Confirm { volume, cursor } => {
                let (lineage, token) = (self.volumes[volume].lineage, self.attempts[&volume]);
                let command = Control::Replication(Replication::Confirm { lineage, token, cursor });
                self.confirming = Some((host.command(command), cursor));
                return Ok(None);
            }
            target::Do::Compare { values, .. } => {
                let base = self.base.expect("compared with something");
                target::Did::Compared(self.place(host, |place| place.compare(base, &values))?)
            }
            target::Do::Verify { volume, root } => {
                let (offered, token) = (self.volumes[volume].clone(), self.attempts[&volume]);
                self.place(host, |place| place.verify(&offered, token, root, &mut |_, _| true))?;
                target::Did::Verified
            }
            target::Do::Mark { volume, snapshot } => {
                let token = self.attempts[&volume];
                self.place(host, |place| place.mark(snapshot, token))?;
                target::Did::Marked
            }
            target::Do::Publish => {
                let staged = self.attempts.iter().map(|(at, token)| (self.volumes[*at].lineage, *token));
                let staged = staged.collect();
                self.place(host, |place| place.publish(staged))?;
                target::Did::Published
            }
            target::Do::Fetch(fetch) => {
                target::Did::Fetched(self.place(host, |place| place.answer(&fetch, "PEER"))?)
            }
            target::Do::Send(_) | target::Do::Over(_) | target::Do::Keep(_) => {
                unreachable!("done at once")
            }
        }))
    }

    /// Writes and confirmations that have ended.
    pub fn poll(&mut self, host: &mut Host, now: u64) {
        let mut at = 0;
        while at < self.applying.len() {
            let (token, cursor) = self.applying[at];
            let Some(answer) = host.answer(token) else {
                at += 1;
                continue;
            };
            self.applying.remove(at);
            let did = answer
                .map_or_else(|error| target::Did::Failed(refusal(&error)), |_| target::Did::Applied(cursor));
            self.target.did(did, now);
        }
        if let Some((token, cursor)) = self.confirming
            && let Some(answer) = host.answer(token)
        {
            self.confirming = None;
            let did = answer.map_or_else(
                |error| target::Did::Failed(refusal(&error)),
                |_| target::Did::Confirmed(cursor),
            );
            self.target.did(did, now);
        }
    }
}
