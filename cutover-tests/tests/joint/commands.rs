//! What agents ask of blockd, as commands of the store; what it answers is read with vmctl's own code.

use blockd::catalog::format::Handover;
use blockd::control::moves::{Handed, Move};
use blockd::control::{Answer as Told, Control, ControlError, ErrorKind};
use blockd::units;
use cutover_sim::blockds::Blockds;
use sim_hosts::host::name;
use vmctl::cutover::event::{Answer, BlockdKind, BlockdOp};
use vmctl::cutover::ids::{MoveId, Text};
use vmctl::cutover::record::{FinalSnapshot, Record, Stage};
use vmctl::moves::answers::{is_nothing_to_abort, is_unavailable};

use crate::stores::{Stores, VOLUME, told};

impl Stores {
    /// Everything but `Ship`.
    pub(crate) fn command(&mut self, host: usize, id: MoveId, op: &BlockdOp) -> Answer {
        let id_there = units::MoveId(id.0);
        self.ask_for_the_wrong_one(host, id, op);
        let (peer, volumes) = (self.hosts[1 - host].id, vec![VOLUME.to_owned()]);
        let asked = match op {
            BlockdOp::Query => return self.query(host, id).map_or(Answer::Unavailable, Answer::Record),
            BlockdOp::Freeze => Ok(Move::Freeze { id: id_there, peer, volumes }),
            BlockdOp::Expect => Ok(Move::Expect { id: id_there, peer, volumes }),
            BlockdOp::Abort => Ok(Move::Abort { id: id_there, of: Some((peer, volumes)) }),
            BlockdOp::Release(snapshots) => self.release(id_there, snapshots),
            BlockdOp::Own { snapshots, .. } => self.own(host, id_there, snapshots),
            BlockdOp::Ship => unreachable!("needs both hosts"),
        };
        match asked.and_then(|asked| self.ask(host, Control::Move(asked))) {
            Ok(Told::Done) => Answer::Done,
            Ok(other) => panic!("{op:?} is answered with {other:?}"),
            Err(error) => self.not_done(host, id, op.kind(), &error),
        }
    }

    /// Another snapshot than the last one is neither released nor owned, whoever asks for it.
    fn ask_for_the_wrong_one(&mut self, host: usize, id: MoveId, op: &BlockdOp) {
        let (stage, id) = (self.stage(host, id), units::MoveId(id.0));
        let last = match (op, stage) {
            (BlockdOp::Release(snapshots), Stage::Frozen) => units::SnapshotUid(snapshots[0].uid.0),
            (BlockdOp::Own { snapshots, .. }, Stage::Expected) => units::SnapshotUid(snapshots[0].uid.0),
            _ => return,
        };
        let Some(volume) = &self.shown[host].volume else { return };
        // A ship of a move that is over was done late, and has cut another one since: then that is the last.
        if volume.snapshots.last().is_none_or(|newest| newest.uid != last) {
            return;
        }
        let mut others = volume.snapshots.iter().rev().filter(|snapshot| snapshot.uid != last);
        let Some((uid, other)) = others.next().map(|other| (other.uid, other.name.clone())) else { return };
        let root = [0; 32];
        let asked = if stage == Stage::Frozen {
            Move::Release { id, snapshots: vec![(name(VOLUME, &other), root)] }
        } else {
            let (epoch, handover) = (volume.epoch + 1, Handover { uid, root });
            Move::Own { id, volumes: vec![Handed { volume: VOLUME.to_owned(), epoch, handover }] }
        };
        let answer = self.hosts[host].ask(Control::Move(asked.clone()));
        assert!(answer.is_err(), "{asked:?} was done, {last} is the last one");
        self.seen.count("wrong snapshots that were refused");
    }

    /// As an agent takes an error.
    pub(crate) fn not_done(
        &mut self,
        host: usize,
        id: MoveId,
        asked: BlockdKind,
        error: &ControlError,
    ) -> Answer {
        if is_nothing_to_abort(asked, error.kind.into()) {
            return Answer::Done;
        }
        if is_unavailable(asked, error.kind.into()) {
            return Answer::Unavailable;
        }
        let text = Text::new(&error.message);
        self.query(host, id).map_or(Answer::Unavailable, |record| Answer::Refused(record, text))
    }

    fn query(&mut self, host: usize, id: MoveId) -> Option<Record> {
        match self.ask(host, Control::Move(Move::Show { id: Some(units::MoveId(id.0)) })) {
            Ok(Told::Moved(moved)) => Some(told(&moved)),
            Err(error) if error.kind == ErrorKind::NotFound => {
                Some(Record { stage: Stage::Absent, epoch: self.epoch(host), snapshots: Vec::new() })
            }
            Err(_) => None,
            Ok(other) => panic!("{other:?}"),
        }
    }

    fn release(&self, id: units::MoveId, snapshots: &[FinalSnapshot]) -> Result<Move, ControlError> {
        let name = |last: &FinalSnapshot| {
            let name = self.shipped.get(&units::SnapshotUid(last.uid.0))?;
            Some((name.clone(), last.root.0))
        };
        let unknown = || ControlError::new(ErrorKind::Refused, "that was not shipped");
        let snapshots = snapshots.iter().map(name).collect::<Option<_>>().ok_or_else(unknown)?;
        Ok(Move::Release { id, snapshots })
    }

    /// In the epoch that blockd expects, as an agent does.
    fn own(
        &mut self,
        host: usize,
        id: units::MoveId,
        snapshots: &[FinalSnapshot],
    ) -> Result<Move, ControlError> {
        let Told::Moved(moved) = self.ask(host, Control::Move(Move::Show { id: Some(id) }))? else {
            panic!("no answer to what was asked")
        };
        let handed = snapshots.iter().zip(&moved).map(|(last, volume)| Handed {
            volume: last.volume.to_string(),
            epoch: volume.epoch,
            handover: Handover { uid: units::SnapshotUid(last.uid.0), root: last.root.0 },
        });
        Ok(Move::Own { id, volumes: handed.collect() })
    }

    /// What was answered is what the records say, and the same again changes nothing.
    pub(crate) fn is_as_answered(
        &mut self,
        host: usize,
        id: MoveId,
        asked: BlockdKind,
        before: Stage,
        answer: &Answer,
    ) {
        let stage = self.stage(host, id);
        match (asked, answer) {
            (BlockdKind::Query, Answer::Record(record)) => assert_eq!(*record, self.record(host, id)),
            (BlockdKind::Freeze, Answer::Done) => assert_eq!(stage, Stage::Frozen),
            (BlockdKind::Release, Answer::Done) => assert_eq!(stage, Stage::Released),
            (BlockdKind::Expect, Answer::Done) => assert_eq!(stage, Stage::Expected),
            (BlockdKind::Own, Answer::Done) => {
                assert_eq!(stage, Stage::Owned);
                if before != Stage::Owned {
                    self.is_what_was_released(host, id);
                }
            }
            (BlockdKind::Abort, Answer::Done) if self.shown[host].volume.is_none() => {}
            // Others have followed it: the record is theirs.
            (BlockdKind::Abort, Answer::Done) if stage == Stage::Absent => assert_eq!(before, Stage::Absent),
            (BlockdKind::Abort, Answer::Done) => assert_eq!(stage, Stage::Aborted),
            _ => assert_eq!(stage, before, "{asked:?} was answered with {answer:?}"),
        }
    }

    /// Before anybody writes to it: what is owned is what the other host's record names, in a later epoch.
    fn is_what_was_released(&mut self, host: usize, id: MoveId) {
        let (here, there) = (self.record(host, id), self.record(1 - host, id));
        assert_eq!(there.stage, Stage::Released, "owned before it was released");
        assert_eq!(here.snapshots, there.snapshots, "owned with another snapshot than was released");
        assert!(here.epoch > there.epoch, "owned in {:?} after {:?}", here.epoch, there.epoch);
        let content = self.read(host, here.epoch);
        let root = blake3::hash(&content);
        assert_eq!(*root.as_bytes(), here.snapshots[0].root.0, "what is shown is not what was released");
        self.hold_against(host, &content);
    }
}
