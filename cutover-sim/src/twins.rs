//! What model and simulation put in the place of blockd.

use std::ops::Range;

use fixtures::sim::seeds::Seen;
use vmctl::cutover::event::{Answer, BlockdKind, BlockdOp};
use vmctl::cutover::ids::{Digest, Epoch, MoveId, Name, Root, SnapshotUid, Text};
use vmctl::cutover::record::{FinalSnapshot, Plan, Record, Setup, Stage};

use crate::blockds::{Blockds, Content, Written};
use crate::chance::{MS, Micros};

/// How long a write of a frozen volume is held.
const HELD_MAX: Micros = 2000 * MS;

/// The setup of move `number`, out of `epoch`.
pub fn setup(number: u8, epoch: Epoch) -> Setup {
    let name = Name::new("v").expect("a name");
    let plan = Plan { vm: name.clone(), digest: Digest([0; 32]), volumes: vec![name], epoch };
    Setup { id: MoveId([number; 16]), plan }
}

/// The snapshot that shows `content`.
pub fn snapshot(content: Content) -> Vec<FinalSnapshot> {
    let mut root = [0; 32];
    root[..4].copy_from_slice(&content.to_be_bytes());
    let mut uid = [0; 16];
    uid[..4].copy_from_slice(&content.to_be_bytes());
    vec![FinalSnapshot { volume: Name::new("v").expect("a name"), uid: SnapshotUid(uid), root: Root(root) }]
}

/// The records of one blockd: durable, changed by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Blockd {
    /// It is not a replica.
    pub primary: bool,
    /// In which the volume is here.
    pub epoch: Epoch,
    /// Primary: what was written. Replica: what is published.
    pub content: Content,
    last: Option<(MoveId, Stage, Option<Content>)>,
    /// Moves that another one has followed: they are over, whatever is still asked of them.
    former: Vec<MoveId>,
}

impl Blockd {
    /// An empty volume, or a replica of it.
    pub fn new(primary: bool) -> Self {
        Self { primary, epoch: Epoch(1), content: 0, last: None, former: Vec::new() }
    }

    /// How far a move is.
    pub fn stage(&self, id: MoveId) -> Stage {
        match self.last {
            Some((last, stage, _)) if last == id => stage,
            _ => Stage::Absent,
        }
    }

    /// Whether a guest's write is taken now.
    pub fn accepts(&self) -> bool {
        self.primary && !matches!(self.last, Some((_, Stage::Frozen, _)))
    }

    /// Whether no move is under way.
    fn is_free(&self) -> bool {
        !matches!(self.last, Some((_, Stage::Frozen | Stage::Expected, _)))
    }

    /// What the record says of a move.
    pub fn record(&self, id: MoveId) -> Record {
        let snapshots = match self.last {
            Some((last, _, Some(content))) if last == id => snapshot(content),
            _ => Vec::new(),
        };
        Record { stage: self.stage(id), epoch: self.epoch, snapshots }
    }

    /// Does everything but `Ship`.
    pub fn apply(&mut self, id: MoveId, op: &BlockdOp) -> Answer {
        let epoch = self.epoch;
        let answer = match op {
            BlockdOp::Query => return Answer::Record(self.record(id)),
            BlockdOp::Freeze => self.begin(id, true, Stage::Frozen),
            BlockdOp::Expect => self.begin(id, false, Stage::Expected),
            BlockdOp::Release(snapshots) => self.release(id, snapshots),
            BlockdOp::Own { epoch, snapshots } => self.own(id, *epoch, snapshots),
            BlockdOp::Abort => self.abort(id),
            BlockdOp::Ship => unreachable!("needs both sides"),
        };
        assert!(self.epoch >= epoch, "an epoch went back");
        if answer { Answer::Done } else { Answer::Refused(self.record(id), Text::new("not in this stage")) }
    }

    fn may_begin(&self, id: MoveId) -> bool {
        self.stage(id) == Stage::Absent && self.is_free() && !self.former.contains(&id)
    }

    fn follow(&mut self, id: MoveId, stage: Stage) {
        self.former.extend(self.last.map(|(before, ..)| before));
        self.last = Some((id, stage, None));
    }

    fn begin(&mut self, id: MoveId, primary: bool, stage: Stage) -> bool {
        if self.may_begin(id) && self.primary == primary {
            self.follow(id, stage);
        }
        self.stage(id) == stage
    }

    fn release(&mut self, id: MoveId, snapshots: &[FinalSnapshot]) -> bool {
        if self.stage(id) == Stage::Frozen {
            self.last = Some((id, Stage::Released, Some(content_of(snapshots))));
            self.primary = false;
        }
        self.stage(id) == Stage::Released
    }

    fn own(&mut self, id: MoveId, epoch: Epoch, snapshots: &[FinalSnapshot]) -> bool {
        if self.stage(id) == Stage::Expected && snapshots == snapshot(self.content) {
            self.last = Some((id, Stage::Owned, Some(self.content)));
            self.primary = true;
            self.epoch = self.epoch.max(epoch);
        }
        self.stage(id) == Stage::Owned
    }

    /// Also of a move that is not known: what comes later of it is refused then.
    fn abort(&mut self, id: MoveId) -> bool {
        match self.stage(id) {
            Stage::Frozen | Stage::Expected => self.last = Some((id, Stage::Aborted, None)),
            Stage::Absent if self.may_begin(id) => self.follow(id, Stage::Aborted),
            _ => {}
        }
        self.stage(id) == Stage::Aborted
    }
}

/// The one operation that both blockds have a part in.
pub fn ship(id: MoveId, from: &Blockd, to: &mut Blockd) -> Answer {
    if from.stage(id) != Stage::Frozen || to.primary {
        return Answer::Refused(from.record(id), Text::new("nothing to ship"));
    }
    to.content = from.content;
    to.epoch = to.epoch.max(from.epoch);
    Answer::Shipped(snapshot(from.content))
}

fn content_of(snapshots: &[FinalSnapshot]) -> Content {
    let root = snapshots[0].root.0;
    u32::from_be_bytes([root[0], root[1], root[2], root[3]])
}

/// Two of them, as the simulation has them.
#[derive(Debug)]
pub struct Twins {
    blockds: [Blockd; 2],
    starts: [u64; 2],
    now: Micros,
    /// Since when a write is held.
    held: [Option<Micros>; 2],
}

impl Default for Twins {
    fn default() -> Self {
        let blockds = [Blockd::new(true), Blockd::new(false)];
        Self { blockds, starts: [0; 2], now: 0, held: [None; 2] }
    }
}

impl Blockds for Twins {
    const MOVES_MAX: u8 = 12;
    const WRITE_EVERY: Range<Micros> = MS..10 * MS;

    fn advance(&mut self, now: Micros) {
        self.now = now;
    }

    fn starts(&self, host: usize) -> u64 {
        self.starts[host]
    }

    fn epoch(&self, host: usize) -> Epoch {
        self.blockds[host].epoch
    }

    fn accepts(&self, host: usize) -> bool {
        self.blockds[host].accepts()
    }

    fn record(&self, host: usize, id: MoveId) -> Record {
        self.blockds[host].record(id)
    }

    fn apply(&mut self, host: usize, id: MoveId, op: &BlockdOp) -> Answer {
        let answer = self.blockds[host].apply(id, op);
        let mut again = self.blockds[host].clone();
        assert_eq!(again.apply(id, op), answer, "the same again is answered otherwise");
        assert_eq!(again, self.blockds[host], "the same again changes something");
        if op.kind() == BlockdKind::Own && answer == Answer::Done {
            let (new, old) = (self.epoch(host), self.epoch(1 - host));
            assert!(new > old, "owned in {new:?} after {old:?}");
        }
        answer
    }

    fn ship(&mut self, host: usize, id: MoveId, link: bool) -> Answer {
        if !link {
            return Answer::Unavailable;
        }
        let [a, b] = &mut self.blockds;
        let (from, to) = if host == 0 { (a, b) } else { (b, a) };
        ship(id, from, to)
    }

    fn round(&mut self, _host: usize) {}

    fn calm(&mut self) {}

    fn crash(&mut self, host: usize, _power: bool) {
        self.starts[host] += 1;
    }

    fn take_power_cut(&mut self) -> Option<usize> {
        None
    }

    fn open(&mut self, _host: usize, _epoch: Epoch) {}

    fn close(&mut self, _host: usize, _epoch: Epoch) {}

    fn write(&mut self, host: usize, _epoch: Epoch, number: Content) -> Written {
        let blockd = &mut self.blockds[host];
        if blockd.accepts() {
            self.held[host] = None;
            assert_eq!(blockd.content + 1, number, "the disk has not what was answered");
            blockd.content = number;
            return Written::Done;
        }
        if blockd.primary && self.now - *self.held[host].get_or_insert(self.now) <= HELD_MAX {
            return Written::Waits;
        }
        self.held[host] = None;
        Written::Refused
    }

    fn is_drained(&mut self, _host: usize) -> bool {
        true
    }

    fn verify(&mut self, host: usize, acked: Content) {
        assert_eq!(self.blockds[host].content, acked, "writes that were answered are lost");
    }

    fn check(&mut self) {
        let [a, b] = &self.blockds;
        assert!(!(a.accepts() && b.accepts()), "both hosts accept writes");
    }

    fn check_end(&mut self, owner: usize, acked: Content) {
        assert!(self.accepts(owner), "the owner refuses writes: {:?}", self.blockds);
        self.verify(owner, acked);
    }

    fn take_seen(&mut self) -> Seen {
        Seen::default()
    }
}
