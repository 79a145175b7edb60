//! What has changed since a snapshot is asked for, of its volume and of other snapshots: whatever is not marked must be
//! what it was.

use nbd_server::export::{Command, Payload};
use nbd_server::status::Chosen;
use nbd_server::wire::Errno;

use blockd::store::Subject;

use super::{Asked, Case, Kind, Pending};
use crate::reference::{CELL_BYTES, cells};

/// Cells of a block, the unit that is told of.
const BLOCK_CELLS: usize = 4096 / CELL_BYTES as usize;

type Name = (String, String);

/// A question under way.
pub(super) struct Question {
    since: Name,
    /// What that shows.
    before: Vec<u64>,
    /// What is asked about shows, if it is a snapshot.
    shown: Option<Vec<u64>>,
}

impl Case {
    /// Nothing here is drawn from the world's own numbers: what else happens stays the same.
    pub(super) fn question(&mut self) {
        let Some(since) = self.question_about(|_| true) else { return };
        let volume = since.0.clone();
        let other = self.question_about(|name| name.0 == volume).filter(|_| self.fate.bool());
        let (export, shown) = match &other {
            Some(name) => (format!("{}@{}", name.0, name.1), self.reference.snapshots[name].content.clone()),
            None => (volume.clone(), None),
        };
        let text = format!("{}@{}", since.0, since.1);
        let (Some((_, _, Subject::Snapshot(id))), Some((index, size, _))) =
            (self.world.find_export(&text), self.world.find_export(&export))
        else {
            return;
        };
        let key = blockd::store::contexts([("it", id)].into_iter())[2].key;
        let one = self.fate.bool();
        let offset = self.fate.u64(..size / CELL_BYTES) * CELL_BYTES;
        let length = u32::try_from(size - offset).expect("a small volume");
        let before = self.reference.snapshots[&since].content.clone().expect("it is known");
        let issued = self.now();
        let id = self.next_id;
        self.next_id += 1;
        let kind = Kind::Question(Box::new(Question { since, before, shown }));
        let range = cells(offset)..cells(size);
        self.pending.insert(id, Pending { volume: export, kind, cells: range, issued });
        trace!(self, "{id}: what of {offset}+{length} has changed since {text}?");
        let contexts = [Chosen { id: 1, key }].into();
        self.world.start(index, id, offset, length, Command::BlockStatus { contexts, one });
    }

    /// A snapshot whose content is known, and that nobody is about to take away.
    fn question_about(&mut self, wanted: impl Fn(&Name) -> bool) -> Option<Name> {
        let known = self.reference.snapshots.iter().filter(|(_, snapshot)| snapshot.content.is_some());
        let names = known.map(|(name, _)| name).filter(|name| !self.is_changing(&name.0) && wanted(name));
        let names: Vec<Name> = names.filter(|name| !self.is_going(name)).cloned().collect();
        self.fate.choice(names)
    }

    fn is_going(&self, snapshot: &Name) -> bool {
        self.asked.values().chain(&self.doubtful).any(|asked| match asked {
            Asked::DeleteSnapshot { name } => name == snapshot,
            _ => false,
        })
    }

    /// A snapshot that has gone meanwhile, under whatever name, ends the questions about it.
    pub(super) fn excuse_question(&mut self, error: Errno, question: &Question) {
        let gone = !self.reference.snapshots.contains_key(&question.since) || self.is_going(&question.since);
        match error {
            Errno::Io => assert!(self.faults_hit() > 0, "a question fails without cause"),
            Errno::Inval if gone => self.seen.count("question about what is gone"),
            Errno::Shutdown if question.shown.is_some() => {}
            other => panic!("{other:?} to a question about {:?}", question.since),
        }
    }

    pub(super) fn check_question(
        &mut self,
        asked: &Pending,
        question: &Question,
        payload: Payload,
        now: u64,
    ) {
        let Payload::Status(mut told) = payload else { panic!("a question was answered with {payload:?}") };
        let told = told.pop().expect("one context");
        self.seen.count("question");
        let mut at = asked.cells.start;
        for extent in told.as_slice() {
            let end = at + cells(extent.length);
            for cell in (at..end).filter(|_| extent.flags == 0) {
                self.check_unchanged(asked, question, cell, now);
            }
            let unchanged_block = extent.flags == 0 && end - at >= BLOCK_CELLS;
            self.seen.count_many("unchanged block told of", u64::from(unchanged_block));
            at = end;
        }
    }

    /// What has grown since was zero before.
    fn check_unchanged(&self, asked: &Pending, question: &Question, cell: usize, now: u64) {
        let before = question.before.get(cell).copied().unwrap_or(0);
        let since = &question.since;
        if let Some(shown) = &question.shown {
            let shown = shown[cell];
            return assert_eq!(shown, before, "{} since {since:?}, cell {cell}", asked.volume);
        }
        let Some(disk) = self.reference.volumes.get(&asked.volume) else { return };
        let allowed = disk.cells[cell].readable(asked.issued, now);
        assert!(
            allowed.contains(&before),
            "{}, cell {cell}, is said to be as in {since:?}: {before}, but is one of {allowed:?}",
            asked.volume
        );
    }
}
