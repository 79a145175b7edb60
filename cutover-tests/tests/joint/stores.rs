//! Two hosts with blockd's own store, as the simulation of moves has them.

use std::collections::BTreeMap;
use std::ops::Range;

use blockd::api::moves::MoveInfo;
use blockd::catalog::format::Role;
use blockd::control::moves::{Move, MovedVolume};
use blockd::control::replication::{Replication, VolumeIdentity};
use blockd::control::{Answer as Told, Control, SnapshotName};
use blockd::sync::source::Flow;
use blockd::units::{CLUSTER_BYTES, SnapshotUid};
use cutover_sim::blockds::{Blockds, Content, Written};
use cutover_sim::{MS, Micros};
use fastrand::Rng;
use fixtures::sim::seeds::Seen;
use sim_hosts::exchange::Trouble;
use sim_hosts::host::Host;
use vmctl::cutover::event::{Answer, BlockdOp};
use vmctl::cutover::ids::{Epoch, MoveId};
use vmctl::cutover::record::{Record, Stage};
use vmctl::moves::answers::record_of;

use crate::doors::Doors;
use crate::ledger::{BLOCK, Ledger};
use crate::writes::Pending;

/// The volume of all moves.
pub(crate) const VOLUME: &str = "v";
/// The stores are told of time so often.
const TICK: Micros = 20 * MS;
/// Between two looks at all doors, in events, where nothing changes.
const PROBE_EVERY: u32 = 256;

/// What a host's records say, as it was read after the last command.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) volume: Option<VolumeIdentity>,
    pub(crate) moved: Option<(MoveId, Record)>,
}

/// See the module.
pub(crate) struct Stores {
    pub(crate) hosts: [Host; 2],
    pub(crate) shown: [Shown; 2],
    pub(crate) doors: [Doors; 2],
    /// The guest's write at a host that has no answer yet.
    pub(crate) pending: [Option<Pending>; 2],
    /// Writes of QEMUs that are gone, which the store may still do.
    pub(crate) ghosts: [Vec<Pending>; 2],
    pub(crate) ledger: Ledger,
    /// Whose disk the ledger is about.
    pub(crate) writer: usize,
    pub(crate) size: u64,
    pub(crate) flow: Flow,
    pub(crate) trouble: Trouble,
    pub(crate) kills_per_mille: u32,
    /// How often, of a thousand commands, blockd dies right after it has answered.
    deaths_per_mille: u32,
    /// What was shipped is released by its name.
    pub(crate) shipped: BTreeMap<SnapshotUid, SnapshotName>,
    pub(crate) cuts: u32,
    pub(crate) rng: Rng,
    pub(crate) seen: Seen,
    power_gone: Option<usize>,
    /// Who has what role has changed since both were probed.
    changed: bool,
    events: u32,
    told_at: Micros,
}

/// How bad sessions and single steps are in the world of one seed.
fn draw_trouble(rng: &mut Rng) -> (Trouble, u32) {
    let chance = |rng: &mut Rng, most: u32| if rng.u8(..3) > 0 { 0 } else { rng.u32(0..=most) };
    let trouble = Trouble {
        cut: chance(rng, 12),
        freeze: chance(rng, 2),
        duplicate: chance(rng, 20),
        reorder: chance(rng, 20),
        crash_source: chance(rng, 4),
        crash_target: chance(rng, 4),
    };
    (trouble, chance(rng, 40))
}

impl Stores {
    /// Host 0 has the volume, host 1 nothing.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x6A6F_696E_7400);
        let mut hosts = [Host::new(1, rng.u64(..)), Host::new(2, rng.u64(..))];
        for host in &mut hosts {
            host.drift_ms = 0;
        }
        let size = rng.u64(2..=8) * CLUSTER_BYTES;
        hosts[0].must(Control::CreateVolume { name: VOLUME.to_owned(), size });
        let (trouble, kills_per_mille) =
            if rng.u8(..3) == 0 { Default::default() } else { draw_trouble(&mut rng) };
        let deaths_per_mille = rng.choice([0, 0, 20, 100]).expect("not empty");
        let batch_bytes = rng.usize(1..4) * CLUSTER_BYTES as usize;
        let flow = Flow { window_bytes: batch_bytes * rng.usize(1..5), batch_bytes };
        // The last block is for probes.
        let blocks = usize::try_from(size).expect("small") / BLOCK - 1;
        let mut stores = Self {
            hosts,
            shown: Default::default(),
            doors: Default::default(),
            pending: [None, None],
            ghosts: [Vec::new(), Vec::new()],
            ledger: Ledger::new(blocks),
            writer: 0,
            size,
            flow,
            trouble,
            kills_per_mille,
            deaths_per_mille,
            shipped: BTreeMap::new(),
            cuts: 0,
            rng,
            seen: Seen::default(),
            power_gone: None,
            changed: false,
            events: 0,
            told_at: 0,
        };
        stores.look(0);
        stores
    }

    /// Asks a host; it may be killed, or lose its power, meanwhile.
    pub(crate) fn ask(
        &mut self,
        host: usize,
        command: Control,
    ) -> Result<Told, blockd::control::ControlError> {
        let before = self.hosts[host].power_cuts;
        self.hosts[host].kills_per_mille = self.kills_per_mille;
        let answer = self.hosts[host].ask(command);
        self.hosts[host].kills_per_mille = 0;
        if self.hosts[host].down {
            self.seen.count("blockd died in a command");
            self.started_again(host, before);
        }
        answer
    }

    /// A blockd has died, and has been started again at once.
    pub(crate) fn started_again(&mut self, host: usize, power_cuts_before: u64) {
        self.hosts[host].down = false;
        self.doors[host].forget();
        if let Some(pending) = &mut self.pending[host] {
            pending.request = None;
        }
        self.ghosts[host].clear();
        if self.hosts[host].power_cuts > power_cuts_before {
            self.seen.count("power was gone in a command or session");
            self.power_cut(host);
            self.power_gone = Some(host);
        }
        self.look(host);
    }

    /// What it has answered must be so when it is back.
    fn dies_after_answer(&mut self, host: usize) {
        self.seen.count("blockd died after an answer");
        let (before, power) = (self.hosts[host].power_cuts, self.rng.bool());
        self.hosts[host].crash(power);
        self.started_again(host, before);
    }

    fn power_cut(&mut self, host: usize) {
        self.pending[host] = None;
        if self.writer == host && self.ledger.power_cut() {
            self.seen.count("answered writes that a power cut took");
        }
    }

    /// Reads what a host's records say.
    pub(crate) fn look(&mut self, host: usize) {
        let shown = Shown { volume: self.identity(host), moved: self.last_move(host) };
        let role = |shown: &Shown| shown.volume.as_ref().map(|volume| (volume.role, volume.epoch));
        let stage = |shown: &Shown| shown.moved.as_ref().map(|(id, record)| (*id, record.stage));
        let before = &self.shown[host];
        self.changed |= role(before) != role(&shown) || stage(before) != stage(&shown);
        self.shown[host] = shown;
    }

    fn identity(&mut self, host: usize) -> Option<VolumeIdentity> {
        self.identities(host).into_iter().find(|volume| volume.name == VOLUME)
    }

    pub(crate) fn identities(&mut self, host: usize) -> Vec<VolumeIdentity> {
        match self.hosts[host].must(Control::Replication(Replication::Identify { volume: None })) {
            Told::Identities(all) => all,
            other => panic!("{other:?}"),
        }
    }

    fn last_move(&mut self, host: usize) -> Option<(MoveId, Record)> {
        let Told::Moved(moved) = self.hosts[host].must(Control::Move(Move::Show { id: None })) else {
            panic!("no answer to what was asked")
        };
        let first = moved.first()?;
        Some((MoveId(first.id.0), told(&moved)))
    }

    pub(crate) fn role(&self, host: usize) -> Option<Role> {
        self.shown[host].volume.as_ref().map(|volume| volume.role)
    }
}

/// As an agent reads it: out of the JSON that the daemon writes.
pub(crate) fn told(moved: &[MovedVolume]) -> Record {
    let json = serde_json::to_vec(&MoveInfo::describe(moved)).expect("plain values");
    let read = serde_json::from_slice(&json).expect("what an agent reads");
    record_of(&read).expect("what an agent understands")
}

impl Blockds for Stores {
    const MOVES_MAX: u8 = 5;
    const WRITE_EVERY: Range<Micros> = 2 * MS..40 * MS;

    fn advance(&mut self, now: Micros) {
        let passed = (now - self.told_at) / MS;
        if now - self.told_at >= TICK {
            self.told_at += passed * MS;
            self.hosts.iter_mut().for_each(|host| host.tick(passed));
        }
    }

    fn starts(&self, host: usize) -> u64 {
        self.hosts[host].starts
    }

    fn epoch(&self, host: usize) -> Epoch {
        Epoch(self.shown[host].volume.as_ref().map_or(0, |volume| volume.epoch))
    }

    fn accepts(&self, host: usize) -> bool {
        let frozen = self.shown[host].moved.as_ref().is_some_and(|(_, record)| record.stage == Stage::Frozen);
        self.role(host) == Some(Role::Primary) && !frozen
    }

    fn record(&self, host: usize, id: MoveId) -> Record {
        match &self.shown[host].moved {
            Some((last, record)) if *last == id => record.clone(),
            _ => Record { stage: Stage::Absent, epoch: self.epoch(host), snapshots: Vec::new() },
        }
    }

    fn apply(&mut self, host: usize, id: MoveId, op: &BlockdOp) -> Answer {
        let before = self.stage(host, id);
        let starts = self.starts(host);
        let answer = self.command(host, id, op);
        let died = self.starts(host) != starts;
        if !died && self.rng.u32(..1000) < self.deaths_per_mille {
            self.dies_after_answer(host);
        }
        self.look(host);
        if !died {
            self.is_as_answered(host, id, op.kind(), before, &answer);
        }
        answer
    }

    fn ship(&mut self, host: usize, id: MoveId, link: bool) -> Answer {
        self.ship_last(host, id, link)
    }

    fn round(&mut self, host: usize) {
        self.prune();
        let well = self.bring(host, self.trouble).is_ok();
        self.seen.count(if well { "rounds that ended well" } else { "rounds that failed" });
    }

    fn calm(&mut self) {
        (self.trouble, self.kills_per_mille, self.deaths_per_mille) = (Trouble::default(), 0, 0);
    }

    fn crash(&mut self, host: usize, power: bool) {
        let before = self.hosts[host].power_cuts + u64::from(power);
        self.hosts[host].crash(power);
        self.started_again(host, before);
        if power {
            self.power_cut(host);
        }
    }

    fn take_power_cut(&mut self) -> Option<usize> {
        self.power_gone.take()
    }

    fn open(&mut self, host: usize, epoch: Epoch) {
        self.door(host, epoch);
    }

    fn close(&mut self, host: usize, epoch: Epoch) {
        self.leave(host, epoch);
    }

    fn write(&mut self, host: usize, epoch: Epoch, number: Content) -> Written {
        self.guest_writes(host, epoch, number)
    }

    fn is_drained(&mut self, host: usize) -> bool {
        self.pending[host].is_none()
    }

    fn verify(&mut self, host: usize, _acked: Content) {
        let content = self.read(host, self.epoch(host));
        self.hold_against(host, &content);
    }

    fn check(&mut self) {
        let accepting = (0..2).filter(|host| self.accepts(*host)).count();
        assert!(accepting <= 1, "both hosts' records say that they take writes");
        self.events += 1;
        if std::mem::take(&mut self.changed) || self.events.is_multiple_of(PROBE_EVERY) {
            self.probe();
        }
    }

    fn check_end(&mut self, owner: usize, acked: Content) {
        self.calm();
        for host in 0..2 {
            let stage = self.shown[host].moved.as_ref().map(|(_, record)| record.stage);
            let over = !matches!(stage, Some(Stage::Frozen | Stage::Expected));
            assert!(over, "host {host} is left {stage:?}");
        }
        assert!(self.accepts(owner), "the owner refuses writes: {:?}", self.shown);
        self.verify(owner, acked);
        self.the_other_host_can_follow(owner);
    }

    fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }
}
