//! The simulated [`MetaPort`]: operations wait until the simulator completes one, in any order that the real worker
//! could.
//!
//! A commit takes two steps, the batch and the mark; a read sees some moment between its submission and its
//! completion. Both are drawn at random, so that a completion may be late: a read that completes after a commit may
//! have seen the store before it, or a batch may be seen before its commit completes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use fastrand::Rng;

use super::MemoryMeta;
use crate::catalog::meta::{Batch, MetaAnswer, MetaDone, MetaError, MetaOp, MetaPort};
use crate::catalog::reads;
use crate::map;

/// What strikes the next operation that it can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaFault {
    /// A commit fails, and every later one. Its batch may be seen, or found after a power cut, or both, or neither.
    Io,
    /// As `Io`, with the error `Damaged`.
    Damaged,
    /// A commit finds no room; nothing of it was written. The next may.
    NoSpace,
    /// A `Scan` or `LoadMap` fails with `Io`.
    ReadIo,
    /// A `Scan` or `LoadMap` fails with `Damaged`.
    ReadDamaged,
}

impl MetaFault {
    fn strikes_reads(self) -> bool {
        matches!(self, Self::ReadIo | Self::ReadDamaged)
    }

    fn error(self) -> MetaError {
        match self {
            Self::Io | Self::ReadIo => MetaError::Io("simulated fault".into()),
            Self::Damaged | Self::ReadDamaged => MetaError::Damaged("simulated fault".into()),
            Self::NoSpace => MetaError::NoSpace,
        }
    }
}

/// The simulated port. Clones are the same port: one for the engine, one for the simulator.
#[derive(Clone, Debug)]
pub struct SimMetaPort {
    sim: Rc<RefCell<Sim>>,
}

#[derive(Debug)]
struct Sim {
    /// What reads see. All of it is durable, but for a batch in doubt.
    store: Arc<MemoryMeta>,
    /// In order of submission.
    pending: Vec<Pending>,
    faults: Vec<MetaFault>,
    faults_hit: u64,
    /// Of the commit that failed for good.
    failed: Option<MetaError>,
    doubt: Option<Doubt>,
}

#[derive(Debug)]
struct Pending {
    tag: u64,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// Nothing of it was done.
    Commit { commit: u64, batch: Batch },
    /// The batch is durable, the mark is not.
    Written { commit: u64 },
    /// Nothing of it was done.
    Read(MetaOp),
    /// Done, but nobody was told.
    Done(Result<MetaAnswer, MetaError>),
}

impl Work {
    fn is_commit(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Written { .. })
    }
}

/// A batch of which its writer only knows that it failed.
#[derive(Debug)]
struct Doubt {
    commit: u64,
    batch: Batch,
    /// Reads see it.
    shown: bool,
}

impl MetaPort for SimMetaPort {
    fn submit(&mut self, tag: u64, op: MetaOp) {
        let work = match op {
            MetaOp::Commit { commit, batch } => Work::Commit { commit, batch },
            read => Work::Read(read),
        };
        self.sim.borrow_mut().pending.push(Pending { tag, work });
    }
}

impl SimMetaPort {
    /// A port to a store; what is in the store is durable.
    pub fn new(store: MemoryMeta) -> Self {
        let store = Arc::new(store);
        let sim =
            Sim { store, pending: Vec::new(), faults: Vec::new(), faults_hit: 0, failed: None, doubt: None };
        Self { sim: Rc::new(RefCell::new(sim)) }
    }

    /// Operations that have not completed.
    pub fn pending(&self) -> usize {
        self.sim.borrow().pending.len()
    }

    /// Lets a fault strike the next operation that it can.
    pub fn inject(&self, fault: MetaFault) {
        self.sim.borrow_mut().faults.push(fault);
    }

    /// Faults that have struck, so far.
    pub fn faults_hit(&self) -> u64 {
        self.sim.borrow().faults_hit
    }

    /// Completes some operation that could complete now; `None` if there is none.
    pub fn complete_one(&self, rng: &mut Rng) -> Option<MetaDone> {
        let mut sim = self.sim.borrow_mut();
        sim.work_ahead(rng);
        let at = sim.choose(rng)?;
        let result = sim.finish(at, rng);
        let Pending { tag, .. } = sim.pending.remove(at);
        Some(MetaDone { tag, result })
    }

    /// A copy of what reads see now.
    pub fn snapshot(&self) -> MemoryMeta {
        MemoryMeta::clone(&self.sim.borrow().store)
    }

    /// What other threads read of it: what reads see, at any time.
    pub fn live(&self) -> Arc<MemoryMeta> {
        Arc::clone(&self.sim.borrow().store)
    }

    /// Cuts the power: what a restart finds. Commits that had completed are there; of those under way, any number of
    /// steps in their order. Operations that had not completed are forgotten; the port goes on with what is left.
    pub fn power_cut(&self, rng: &mut Rng) -> MemoryMeta {
        let mut sim = self.sim.borrow_mut();
        sim.settle_doubt(rng);
        sim.settle_commits(rng);
        sim.pending.clear();
        sim.faults.clear();
        sim.failed = None;
        MemoryMeta::clone(&sim.store)
    }
}

impl Sim {
    /// Takes the first fault that can strike reads, or commits.
    fn fault(&mut self, reads: bool) -> Option<MetaFault> {
        let at = self.faults.iter().position(|fault| fault.strikes_reads() == reads)?;
        self.faults_hit += 1;
        Some(self.faults.remove(at))
    }

    fn first_commit(&self) -> Option<usize> {
        self.pending.iter().position(|pending| pending.work.is_commit())
    }

    /// Does some of the work without telling anybody.
    fn work_ahead(&mut self, rng: &mut Rng) {
        for at in 0..self.pending.len() {
            if matches!(self.pending[at].work, Work::Read(_)) && rng.u8(..4) == 0 {
                let result = self.finish(at, rng);
                self.pending[at].work = Work::Done(result);
            }
        }
        // A fault needs the commit whole.
        let may_fail = self.failed.is_some() || self.faults.iter().any(|fault| !fault.strikes_reads());
        if let Some(at) = self.first_commit()
            && !may_fail
            && rng.u8(..4) == 0
        {
            self.write(at);
        }
    }

    /// An operation that could complete: the first commit, or any read.
    fn choose(&self, rng: &mut Rng) -> Option<usize> {
        let first = self.first_commit();
        let ready = |at: &usize| !self.pending[*at].work.is_commit() || Some(*at) == first;
        let ready: Vec<usize> = (0..self.pending.len()).filter(ready).collect();
        rng.choice(ready)
    }

    /// Does what is left of an operation. Its entry is of no more use.
    fn finish(&mut self, at: usize, rng: &mut Rng) -> Result<MetaAnswer, MetaError> {
        let done = Work::Done(Ok(MetaAnswer::Committed));
        match std::mem::replace(&mut self.pending[at].work, done) {
            Work::Commit { commit, batch } => self.commit(commit, batch, rng),
            Work::Written { commit } => {
                self.store.set_mark(commit);
                Ok(MetaAnswer::Committed)
            }
            Work::Read(op) => self.read(op),
            Work::Done(result) => result,
        }
    }

    /// Makes the batch of a commit durable, if it was not.
    fn write(&mut self, at: usize) {
        let work = &mut self.pending[at].work;
        if let Work::Commit { commit, batch } = work {
            self.store.state().write(batch);
            *work = Work::Written { commit: *commit };
        }
    }

    fn commit(&mut self, commit: u64, batch: Batch, rng: &mut Rng) -> Result<MetaAnswer, MetaError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Some(fault) = self.fault(false) else {
            self.store.state().write(&batch);
            self.store.set_mark(commit);
            return Ok(MetaAnswer::Committed);
        };
        if fault != MetaFault::NoSpace {
            let shown = rng.bool();
            if shown {
                self.store.state().write(&batch);
            }
            self.doubt = Some(Doubt { commit, batch, shown });
            self.failed = Some(fault.error());
        }
        Err(fault.error())
    }

    fn read(&mut self, op: MetaOp) -> Result<MetaAnswer, MetaError> {
        if let Some(fault) = self.fault(true) {
            return Err(fault.error());
        }
        match op {
            MetaOp::LoadMap { chain, clusters } => {
                map::load(&*self.store, &chain, clusters).map(|map| MetaAnswer::Map(Box::new(map)))
            }
            MetaOp::Scan { layer, from, limit } => {
                reads::scan_layer(&*self.store, layer, from, limit).map(MetaAnswer::Records)
            }
            MetaOp::Touched { layers, clusters } => {
                reads::touched(&*self.store, &layers, &clusters).map(MetaAnswer::Touched)
            }
            // `submit` takes commits apart.
            MetaOp::Commit { .. } => unreachable!("a commit is no read"),
        }
    }

    /// Decides what became of a batch that had failed.
    fn settle_doubt(&mut self, rng: &mut Rng) {
        let Some(Doubt { commit, batch, shown }) = self.doubt.take() else { return };
        match (shown, rng.bool()) {
            (true, false) => {
                self.store.drop_last_commits(1);
            }
            (false, true) => self.store.state().write(&batch),
            (true, true) => {}
            (false, false) => return,
        }
        // It may have been the mark that failed, after it was written.
        if self.store.commit() == commit && rng.bool() {
            self.store.set_mark(commit);
        }
    }

    /// Takes a random number of the steps that the commits under way have left.
    fn settle_commits(&mut self, rng: &mut Rng) {
        if self.failed.is_some() {
            return;
        }
        while let Some(at) = self.first_commit() {
            for _step in 0..2 {
                if rng.bool() {
                    return;
                }
                match self.pending[at].work {
                    Work::Commit { .. } => self.write(at),
                    Work::Written { commit } => self.store.set_mark(commit),
                    _ => {}
                }
            }
            self.pending.remove(at);
        }
    }
}
