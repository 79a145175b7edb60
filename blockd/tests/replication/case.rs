//! One case: a writer, snapshots, sessions with trouble, crashes of either side; what the replica shows is held against
//! what the source has shown.

use std::collections::BTreeMap;

use blockd::catalog::format::{Point, Role};
use blockd::control::replication::{Replication, VolumeIdentity};
use blockd::control::{Answer, Control, SnapshotName};
use blockd::sync::offer::{Offer, offer};
use blockd::sync::source::Flow;
use blockd::sync::wire::{Code, Refusal};
use blockd::units::{CLUSTER_BYTES, Lineage, SnapshotUid};
use fastrand::Rng;
use fixtures::sim::Fault;
use fixtures::sim::seeds::Seen;

use sim_hosts::exchange::{Exchange, Trouble, Watched};
use sim_hosts::host::{Host, name};

const BLOCK: u64 = 4096;
/// Snapshots of a volume, about.
const SNAPSHOTS_MAX: usize = 4;
/// Sessions without trouble, within which all must be well.
const TRIES_AT_THE_END: usize = 6;

/// Tells what happens, when one case is looked at.
macro_rules! trace {
    ($case:expr, $($text:tt)*) => {
        if $case.trace {
            eprintln!("{}", format_args!($($text)*));
        }
    };
}

/// What must be seen of many cases.
pub(crate) const EVERYTHING: [&str; 19] = [
    "published",
    "over a base",
    "over nothing",
    "compared",
    "resumed",
    "cut",
    "frozen",
    "source crashed",
    "target crashed",
    "killed at work",
    "target full",
    "base deleted",
    "another volume's base",
    "several volumes",
    "promoted",
    "moved aside",
    "grown",
    "rolled back",
    "out of turn",
];

struct Case {
    hosts: [Host; 2],
    /// Which of them is written to.
    primary: usize,
    volumes: Vec<String>,
    /// What every snapshot showed when it was taken.
    contents: BTreeMap<SnapshotUid, Vec<u8>>,
    /// The newest that was seen at a replica, by who was the primary then.
    shown: BTreeMap<(usize, Lineage), Point>,
    watched: Watched,
    rng: Rng,
    flow: Flow,
    trouble: Trouble,
    kills_per_mille: u32,
    next_name: u32,
    trace: bool,
}

pub(crate) fn run(seed: u64, trace: bool) -> Seen {
    let mut case = Case::new(seed, trace);
    case.create();
    let rounds = case.rng.usize(2..7);
    for _ in 0..rounds {
        case.round();
    }
    case.finish();
    if case.rng.u8(..3) == 0 {
        case.turn_around();
    }
    Seen::from(case.watched.counts)
}

fn refused_for_good(refusal: &Refusal) -> bool {
    // An honest source never sends what is wrong.
    matches!(
        refusal.code,
        Code::BadData | Code::RootMismatch | Code::BadId | Code::VersionMismatch | Code::BadBinding
    )
}

impl Case {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let calm = rng.u8(..6) == 0;
        let chance = |rng: &mut Rng, max: u32| if calm || rng.bool() { 0 } else { rng.u32(0..max) };
        let trouble = Trouble {
            cut: chance(&mut rng, 12),
            freeze: chance(&mut rng, 4),
            duplicate: chance(&mut rng, 60) / 2,
            reorder: chance(&mut rng, 60) / 2,
            crash_source: chance(&mut rng, 6),
            crash_target: chance(&mut rng, 8),
        };
        let kills_per_mille = chance(&mut rng, 4);
        let batch_bytes = rng.usize(1..4) * CLUSTER_BYTES as usize;
        let flow = Flow { window_bytes: batch_bytes * rng.usize(1..5), batch_bytes };
        Self {
            hosts: [Host::new(1, rng.u64(..)), Host::new(2, rng.u64(..))],
            primary: 0,
            volumes: Vec::new(),
            contents: BTreeMap::new(),
            shown: BTreeMap::new(),
            watched: Watched::default(),
            rng,
            flow,
            trouble,
            kills_per_mille,
            next_name: 0,
            trace,
        }
    }

    fn source(&mut self) -> &mut Host {
        &mut self.hosts[self.primary]
    }

    fn target(&mut self) -> &mut Host {
        &mut self.hosts[1 - self.primary]
    }

    fn new_name(&mut self, stem: &str) -> String {
        self.next_name += 1;
        format!("{stem}{}", self.next_name)
    }

    fn identities(&mut self, host: usize) -> Vec<VolumeIdentity> {
        let command = Control::Replication(Replication::Identify { volume: None });
        match self.hosts[host].must(command) {
            Answer::Identities(all) => all,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self) {
        let size = self.rng.u64(1..10) * CLUSTER_BYTES + self.rng.u64(0..3) * 2560;
        self.source().must(Control::CreateVolume { name: "v".to_owned(), size });
        self.volumes.push("v".to_owned());
        if self.rng.bool() {
            let size = self.rng.u64(1..40) * BLOCK;
            self.source().must(Control::CreateVolume { name: "w".to_owned(), size });
            self.volumes.push("w".to_owned());
        }
    }

    fn size(&mut self, volume: &str) -> u64 {
        let all = self.identities(self.primary);
        all.iter().find(|found| found.name == volume).expect("it exists").size
    }

    /// Some writes; what they do is seen in the next snapshot.
    fn write(&mut self) {
        for volume in self.volumes.clone() {
            let size = self.size(&volume);
            for _ in 0..self.rng.usize(0..8) {
                let offset = self.rng.u64(..size) / 512 * 512;
                let longest = if self.rng.bool() { 2 * BLOCK } else { 3 * CLUSTER_BYTES };
                let length = (self.rng.u64(1..=longest / 512) * 512).min(size - offset);
                // Whole blocks, as a guest mostly writes them; sometimes zeroes, sometimes what was there.
                let offset = if self.rng.u8(..4) > 0 { offset / BLOCK * BLOCK } else { offset };
                let length = length.min(size - offset);
                let kind = self.rng.u8(..10);
                let seed = if kind == 0 { 7 } else { self.rng.u64(..) };
                let host = self.source();
                let done = if kind == 1 {
                    host.zero(&volume, offset, length)
                } else {
                    let mut bytes = vec![0; usize::try_from(length).expect("short")];
                    if kind != 2 {
                        Rng::with_seed(seed).fill(&mut bytes);
                    }
                    host.write(&volume, offset, &bytes)
                };
                done.expect("a write on a sound disk");
            }
        }
    }

    /// All volumes at one instant.
    fn cut(&mut self) -> String {
        let snapshot = self.new_name("s");
        let names: Vec<SnapshotName> = self.volumes.iter().map(|volume| name(volume, &snapshot)).collect();
        self.source().must(Control::CreateSnapshots { names: names.clone() });
        let all = self.identities(self.primary);
        for taken in names {
            let volume = all.iter().find(|found| found.name == taken.volume).expect("it exists");
            let found = volume.snapshots.iter().find(|found| found.name == taken.snapshot).expect("taken");
            let content = self.source().read(&taken.to_string(), found.size);
            self.contents.insert(found.uid, content);
        }
        trace!(self, "cut {snapshot}");
        snapshot
    }

    fn round(&mut self) {
        self.change_volumes();
        self.write();
        let snapshot = self.cut();
        for _ in 0..self.rng.usize(0..6) {
            self.maybe_fill_target();
            let result = self.session(&snapshot, self.trouble, self.kills_per_mille);
            self.hosts[1 - self.primary].disk.heal();
            self.repair();
            self.check();
            if result.is_ok() {
                break;
            }
        }
        self.prune();
    }

    fn change_volumes(&mut self) {
        match self.rng.u8(..12) {
            0 => {
                let size = self.size("v") + self.rng.u64(1..20) * BLOCK;
                if size < 16 * CLUSTER_BYTES {
                    self.source().must(Control::ResizeVolume { name: "v".to_owned(), size });
                    self.watched.count("grown");
                }
            }
            1 => self.clone_volume(),
            2 => self.roll_back(),
            3 => {
                let power = self.rng.bool();
                self.source().crash(power);
                self.source().down = false;
            }
            _ => {}
        }
    }

    /// A clone of what was sent already.
    fn clone_volume(&mut self) {
        if self.volumes.len() > 2 {
            return;
        }
        let all = self.identities(self.primary);
        let Some(origin) = all.iter().find(|volume| volume.name == "v") else { return };
        let Some(snapshot) = origin.snapshots.last() else { return };
        let (from, to) = (name("v", &snapshot.name), self.new_name("c"));
        self.source().must(Control::Clone { from, to: to.clone() });
        self.volumes.push(to);
    }

    fn roll_back(&mut self) {
        let all = self.identities(self.primary);
        let Some(volume) = all.iter().find(|volume| volume.name == "v") else { return };
        // What was sent may be larger, and a replica does not shrink.
        let same = volume.snapshots.iter().filter(|snapshot| snapshot.size == volume.size);
        let Some(snapshot) = same.map(|snapshot| snapshot.name.clone()).next() else { return };
        self.source().must(Control::Rollback { name: name("v", &snapshot) });
        self.watched.count("rolled back");
    }

    fn maybe_fill_target(&mut self) {
        if self.trouble.cut > 0 && self.rng.u8(..5) == 0 {
            let room = self.rng.usize(0..40);
            self.target().disk.fill_up_to(room);
        }
        if self.trouble.crash_target > 0 && self.rng.u8(..12) == 0 {
            let fault = [Fault::WriteError, Fault::SyncError, Fault::Short][self.rng.usize(..3)];
            self.target().inject(fault);
        }
    }

    fn offers(&mut self, snapshot: &str) -> Vec<Offer> {
        let all = self.identities(self.primary);
        let mut volumes = self.volumes.clone();
        // Those that were there when the snapshot was taken.
        volumes.retain(|volume| {
            let found = all.iter().find(|found| found.name == *volume);
            found.is_some_and(|found| found.snapshots.iter().any(|taken| taken.name == snapshot))
        });
        let offers = volumes.iter().map(|volume| offer(&all, &name(volume, snapshot), None));
        offers.map(|offer| offer.expect("it exists")).collect()
    }

    fn session(&mut self, snapshot: &str, trouble: Trouble, kills_per_mille: u32) -> Result<(), Refusal> {
        let offers = self.offers(snapshot);
        if offers.len() > 1 {
            self.watched.count("several volumes");
        }
        let foreign = |offer: &Offer| {
            let own = |other: &SnapshotName| other.volume == offer.snapshot.volume;
            offer.candidates.iter().take(offer.brought.bases).any(|other| !own(other))
        };
        if offers.iter().any(foreign) {
            self.watched.count("another volume's base");
        }
        let starts = [self.hosts[0].starts, self.hosts[1].starts];
        for host in &mut self.hosts {
            host.kills_per_mille = kills_per_mille;
        }
        let seed = self.rng.u64(..);
        let [a, b] = &mut self.hosts;
        let (from, to) = if self.primary == 0 { (a, b) } else { (b, a) };
        let result = Exchange::new(from, to, offers, self.flow, trouble, &mut self.watched, seed).run();
        trace!(self, "session for {snapshot}: {result:?}");
        for (host, before) in self.hosts.iter_mut().zip(starts) {
            host.kills_per_mille = 0;
            if host.starts != before {
                self.watched.count("killed at work");
            }
            host.down = false;
        }
        self.judge(&result, trouble);
        result
    }

    fn judge(&mut self, result: &Result<(), Refusal>, trouble: Trouble) {
        let Err(refusal) = result else {
            self.watched.count("published");
            return;
        };
        assert!(!refused_for_good(refusal), "{refusal}");
        match refusal.code {
            Code::NoSpace => self.watched.count("target full"),
            Code::BadFrame | Code::BadManifest => {
                self.watched.count("out of turn");
                assert!(trouble.duplicate + trouble.reorder > 0, "{refusal}");
            }
            _ => {}
        }
    }

    /// A host that has had a failed sync is started again, as its operator would.
    fn repair(&mut self) {
        for host in &mut self.hosts {
            host.disk.heal();
            if host.is_failed() {
                host.crash(true);
                host.down = false;
            }
            // A pool that was full is looked at again after a while.
            host.tick(6_000);
        }
    }

    /// Whatever the replica shows is one complete snapshot, and no older than what it has shown. All of it is read now and
    /// then, the newest always.
    fn check(&mut self) {
        let all = self.identities(1 - self.primary);
        let everything = self.rng.u8(..4) == 0;
        for volume in all.iter().filter(|volume| volume.role == Role::Replica) {
            let first = if everything { 0 } else { volume.snapshots.len().saturating_sub(1) };
            for snapshot in &volume.snapshots[first..] {
                let Some(expected) = self.contents.get(&snapshot.uid).cloned() else {
                    panic!("{} is nothing that was taken", snapshot.uid)
                };
                let shown = name(&volume.name, &snapshot.name).to_string();
                let found = self.target().read(&shown, snapshot.size);
                assert!(found == expected, "{shown} is not what was sent");
            }
            self.check_newest(volume);
        }
    }

    /// What is shown under the volume's own name never goes back, whatever happens.
    fn check_newest(&mut self, volume: &VolumeIdentity) {
        let shown = volume.published.as_ref().map(|shown| shown.snapshot.as_str());
        let newest = volume.snapshots.iter().find(|snapshot| Some(snapshot.name.as_str()) == shown);
        let before = self.shown.entry((self.primary, volume.lineage)).or_default();
        let point = newest.map(|newest| newest.point).unwrap_or_default();
        assert!(point >= *before, "{} has gone back from {before:?} to {point:?}", volume.name);
        *before = point;
        let alias = self.hosts[1 - self.primary].store.replicas().any(|(_, info)| info.name == volume.name);
        assert_eq!(alias, newest.is_some(), "{} is shown as its newest snapshot", volume.name);
    }

    fn delete(&mut self, host: usize, volume: &str, snapshot: &str) -> bool {
        let command = Control::DeleteSnapshot { name: name(volume, snapshot) };
        let deleted = self.hosts[host].ask(command).is_ok();
        trace!(self, "delete {volume}@{snapshot} at {host}: {deleted}");
        deleted
    }

    /// Old snapshots go, on both sides; sometimes the common one.
    fn prune(&mut self) {
        for host in 0..2 {
            for volume in self.identities(host) {
                let most = if self.rng.u8(..8) == 0 { 1 } else { SNAPSHOTS_MAX };
                while_more(&volume, most, |snapshot| {
                    if self.delete(host, &volume.name, snapshot) && most == 1 && host == self.primary {
                        self.watched.count("base deleted");
                    }
                });
            }
        }
    }

    /// Without trouble: the newest snapshot comes.
    fn finish(&mut self) {
        self.write();
        let snapshot = self.cut();
        for _ in 0..TRIES_AT_THE_END {
            self.repair();
            let result = self.session(&snapshot, Trouble::default(), 0);
            self.check();
            if result.is_ok() {
                return self.is_there(&snapshot);
            }
        }
        panic!("{snapshot} does not come");
    }

    fn is_there(&mut self, snapshot: &str) {
        let volumes: Vec<String> =
            self.offers(snapshot).into_iter().map(|offer| offer.snapshot.volume).collect();
        let all = self.identities(1 - self.primary);
        for volume in volumes {
            let found = all.iter().find(|found| found.name == volume).expect("it has come");
            assert!(found.published.as_ref().is_some_and(|shown| shown.snapshot.starts_with(snapshot)));
        }
    }

    /// The replica takes over, and the old primary follows; what only that one had is kept.
    fn turn_around(&mut self) {
        self.write();
        let old = self.primary;
        let mut alone = BTreeMap::new();
        for volume in self.volumes.clone() {
            let size = self.size(&volume);
            alone.insert(volume.clone(), self.hosts[old].read(&volume, size));
        }
        let peer = self.hosts[1 - old].id;
        for volume in self.volumes.clone() {
            self.hosts[1 - old].must(Control::Replication(Replication::Promote { volume: volume.clone() }));
            self.hosts[old].must(Control::Replication(Replication::Demote { volume, peer }));
        }
        self.watched.count("promoted");
        self.primary = 1 - old;
        self.finish();
        self.kept_aside(old, &alone);
        self.round();
        self.finish();
    }

    fn kept_aside(&mut self, old: usize, alone: &BTreeMap<String, Vec<u8>>) {
        let all = self.identities(old);
        for (volume, content) in alone {
            let stem = format!("{volume}-diverged-");
            let branch = all.iter().find(|found| found.name.starts_with(&stem)).expect("it was moved aside");
            let found = self.hosts[old].read(&branch.name, branch.size);
            assert!(found == *content, "{}: what was written alone is not all there", branch.name);
            self.watched.count("moved aside");
        }
    }
}

/// Deletes the oldest snapshots of a volume until so many are left.
fn while_more(volume: &VolumeIdentity, most: usize, mut delete: impl FnMut(&str)) {
    let extra = volume.snapshots.len().saturating_sub(most);
    for snapshot in volume.snapshots.iter().take(extra) {
        delete(&snapshot.name);
    }
}
