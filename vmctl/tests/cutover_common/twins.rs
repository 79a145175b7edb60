//! What model and simulation put in the place of blockd and QEMU.

use vmctl::cutover::event::{Answer, BlockdOp, DestinationQemu, DestinationQemuOp, SourceQemu, SourceQemuOp};
use vmctl::cutover::ids::{Digest, Epoch, MoveId, Name, Root, SnapshotUid, Text};
use vmctl::cutover::record::{FinalSnapshot, Plan, Record, Setup, Stage};

/// The only volume, as numbered writes that were accepted, one after the other: its content is how many.
pub(crate) type Content = u32;

/// The setup of move `number`, out of `epoch`.
pub(crate) fn setup(number: u8, epoch: Epoch) -> Setup {
    let name = Name::new("v").expect("a name");
    let plan = Plan { vm: name.clone(), digest: Digest([0; 32]), volumes: vec![name], epoch };
    Setup { id: MoveId([number; 16]), plan }
}

/// The snapshot that shows `content`.
pub(crate) fn snapshot(content: Content) -> Vec<FinalSnapshot> {
    let mut root = [0; 32];
    root[..4].copy_from_slice(&content.to_be_bytes());
    let mut uid = [0; 16];
    uid[..4].copy_from_slice(&content.to_be_bytes());
    vec![FinalSnapshot { volume: Name::new("v").expect("a name"), uid: SnapshotUid(uid), root: Root(root) }]
}

/// The records of one blockd: durable, changed by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Blockd {
    pub(crate) primary: bool,
    pub(crate) epoch: Epoch,
    /// Primary: what was written. Replica: what is published.
    pub(crate) content: Content,
    last: Option<(MoveId, Stage, Option<Content>)>,
}

impl Blockd {
    pub(crate) fn new(primary: bool) -> Self {
        Self { primary, epoch: Epoch(1), content: 0, last: None }
    }

    pub(crate) fn stage(&self, id: MoveId) -> Stage {
        match self.last {
            Some((last, stage, _)) if last == id => stage,
            _ => Stage::Absent,
        }
    }

    /// Whether a guest's write is taken now.
    pub(crate) fn accepts(&self) -> bool {
        self.primary && !matches!(self.last, Some((_, Stage::Frozen, _)))
    }

    /// Whether no move is under way.
    fn is_free(&self) -> bool {
        !matches!(self.last, Some((_, Stage::Frozen | Stage::Expected, _)))
    }

    pub(crate) fn record(&self, id: MoveId) -> Record {
        let snapshots = match self.last {
            Some((last, _, Some(content))) if last == id => snapshot(content),
            _ => Vec::new(),
        };
        Record { stage: self.stage(id), epoch: self.epoch, snapshots }
    }

    /// Does everything but `Ship`.
    pub(crate) fn apply(&mut self, id: MoveId, op: &BlockdOp) -> Answer {
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

    fn begin(&mut self, id: MoveId, primary: bool, stage: Stage) -> bool {
        if self.stage(id) == Stage::Absent && self.is_free() && self.primary == primary {
            self.last = Some((id, stage, None));
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
            Stage::Absent if self.is_free() => self.last = Some((id, Stage::Aborted, None)),
            _ => {}
        }
        self.stage(id) == Stage::Aborted
    }
}

/// The one operation that both blockds have a part in.
pub(crate) fn ship(id: MoveId, from: &Blockd, to: &mut Blockd) -> Answer {
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

/// The two QEMUs and the stream between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Qemus {
    pub(crate) s: SourceQemu,
    pub(crate) t: DestinationQemu,
    /// Everything that T needs is on its way, whatever S does then (D.4: T may complete though S was cancelled or failed).
    pub(crate) sent: bool,
    /// The guest was started at the destination without its memory.
    pub(crate) cold: bool,
}

/// What the two QEMUs may do by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Alone {
    /// Nothing is left to copy: S stops the guest.
    SStops,
    /// S learns that T has everything.
    SCompletes,
    /// S fails and resumes the guest; also where T has everything and only its last message was lost.
    SFails,
    /// The guest writes while blockd refuses.
    SIoError,
    /// T gets everything.
    TLoads,
    /// T loses the stream, or cannot load, and exits.
    TExits,
}

impl Qemus {
    pub(crate) fn new() -> Self {
        Self { s: SourceQemu::Running, t: DestinationQemu::Gone, sent: false, cold: false }
    }

    pub(crate) fn s_runs(&self) -> bool {
        matches!(self.s, SourceQemu::Running | SourceQemu::Precopy)
    }

    /// The driver's `migrate`.
    pub(crate) fn migrate(&mut self) {
        if self.s == SourceQemu::Running && self.t == DestinationQemu::Incoming {
            self.s = SourceQemu::Precopy;
        }
    }

    pub(crate) fn s_does(&mut self, op: SourceQemuOp) {
        self.s = match (op, self.s) {
            (SourceQemuOp::Continue, SourceQemu::PreSwitchover) => {
                self.sent = self.t == DestinationQemu::Incoming;
                SourceQemu::Device
            }
            (SourceQemuOp::Cancel, SourceQemu::Precopy | SourceQemu::PreSwitchover | SourceQemu::Device) => {
                SourceQemu::Running
            }
            (SourceQemuOp::Yank, SourceQemu::Precopy | SourceQemu::Device) => SourceQemu::Running,
            (SourceQemuOp::Resume, SourceQemu::Completed | SourceQemu::Paused) => SourceQemu::Running,
            (SourceQemuOp::Quit, _) => SourceQemu::Gone,
            (_, s) => s,
        };
    }

    pub(crate) fn t_does(&mut self, op: DestinationQemuOp) {
        self.t = match (op, self.t) {
            (DestinationQemuOp::Start, DestinationQemu::Gone) => DestinationQemu::Incoming,
            (DestinationQemuOp::Cont, DestinationQemu::Loaded | DestinationQemu::Paused) => {
                DestinationQemu::Running
            }
            (DestinationQemuOp::StartCold, DestinationQemu::Gone) => {
                self.cold = true;
                DestinationQemu::Running
            }
            (DestinationQemuOp::Kill, _) => DestinationQemu::Gone,
            (_, t) => t,
        };
    }

    /// Whether it may happen. `stream`: the connection between the two still is the one of this migration.
    pub(crate) fn may(&self, alone: Alone, stream: bool, accepts: bool) -> bool {
        let sending = matches!(self.s, SourceQemu::Precopy | SourceQemu::PreSwitchover | SourceQemu::Device);
        match alone {
            Alone::SStops => self.s == SourceQemu::Precopy,
            Alone::SCompletes => stream && self.s == SourceQemu::Device && self.t == DestinationQemu::Loaded,
            Alone::SFails => match self.s {
                SourceQemu::Precopy => !stream || self.t != DestinationQemu::Incoming,
                SourceQemu::Device => true,
                _ => false,
            },
            Alone::SIoError => self.s == SourceQemu::Running && !accepts,
            Alone::TLoads => self.t == DestinationQemu::Incoming && self.sent,
            Alone::TExits => self.t == DestinationQemu::Incoming && (self.sent || !stream || !sending),
        }
    }

    pub(crate) fn happens(&mut self, alone: Alone) {
        match alone {
            Alone::SStops => self.s = SourceQemu::PreSwitchover,
            Alone::SCompletes => self.s = SourceQemu::Completed,
            Alone::SFails => self.s = SourceQemu::Running,
            Alone::SIoError => self.s = SourceQemu::Paused,
            Alone::TLoads => self.t = DestinationQemu::Loaded,
            Alone::TExits => self.t = DestinationQemu::Gone,
        }
    }
}
