//! What takes the place of the two QEMUs of a move.

use vmctl::cutover::event::{DestinationQemu, DestinationQemuOp, SourceQemu, SourceQemuOp};

/// The two QEMUs and the stream between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Qemus {
    /// At the source.
    pub s: SourceQemu,
    /// At the destination.
    pub t: DestinationQemu,
    /// Everything that T needs is on its way, whatever S does then (D.4: T may complete though S was cancelled or failed).
    pub sent: bool,
    /// The guest was started at the destination without its memory.
    pub cold: bool,
}

/// What the two QEMUs may do by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alone {
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

impl Default for Qemus {
    fn default() -> Self {
        Self::new()
    }
}

impl Qemus {
    /// The guest runs at the source.
    pub fn new() -> Self {
        Self { s: SourceQemu::Running, t: DestinationQemu::Gone, sent: false, cold: false }
    }

    /// S may run guest code.
    pub fn s_runs(&self) -> bool {
        matches!(self.s, SourceQemu::Running | SourceQemu::Precopy)
    }

    /// The driver's `migrate`.
    pub fn migrate(&mut self) {
        if self.s == SourceQemu::Running && self.t == DestinationQemu::Incoming {
            self.s = SourceQemu::Precopy;
        }
    }

    /// S is asked for it.
    pub fn s_does(&mut self, op: SourceQemuOp) {
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

    /// T is asked for it.
    pub fn t_does(&mut self, op: DestinationQemuOp) {
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
    pub fn may(&self, alone: Alone, stream: bool, accepts: bool) -> bool {
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

    /// It happens.
    pub fn happens(&mut self, alone: Alone) {
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
