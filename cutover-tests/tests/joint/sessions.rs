//! Replication between the two hosts: a snapshot is cut, and blockd's own machines bring it.

use blockd::control::{Answer as Told, Control, ControlError, ErrorKind, SnapshotName};
use blockd::snapshot::hash;
use blockd::sync::offer::offer;
use blockd::units::SnapshotUid;
use cutover_sim::blockds::Blockds;
use sim_hosts::exchange::{Exchange, Trouble, Watched};
use sim_hosts::host::{Host, name};
use sim_hosts::sides::{blocking, pin};
use vmctl::cutover::event::{Answer, BlockdKind};
use vmctl::cutover::ids::{MoveId, Name, Root};
use vmctl::cutover::record::FinalSnapshot;

use crate::stores::{Stores, VOLUME};

/// Snapshots that are kept at each host.
const SNAPSHOTS_MAX: usize = 3;
/// Sessions without trouble, within which the newest snapshot comes.
const TRIES_AT_THE_END: usize = 3;

/// BLAKE3 of a snapshot's content, as the host has it.
fn root(host: &mut Host, snapshot: &SnapshotName) -> Result<[u8; 32], ControlError> {
    let pinned = pin(host, snapshot)?;
    let reader = host.reader();
    let root = blocking(host, |submit| hash(&reader, &pinned, submit, &mut |_, _| true));
    host.must(Control::Unpin { pin: pinned.pin });
    root
}

impl Stores {
    /// The difference since the last one, while the guest stands still.
    pub(crate) fn ship_last(&mut self, host: usize, id: MoveId, link: bool) -> Answer {
        let trouble = if link { self.trouble } else { Trouble { cut: 1000, ..Trouble::default() } };
        let starts = self.starts(host);
        let shipped = self.bring(host, trouble).and_then(|(uid, snapshot)| {
            let root = root(&mut self.hosts[host], &snapshot)?;
            self.shipped.insert(uid, snapshot);
            Ok((uid, root))
        });
        match shipped {
            Ok((uid, root)) => Answer::Shipped(vec![FinalSnapshot {
                volume: Name::new(VOLUME).expect("a name"),
                uid: vmctl::cutover::ids::SnapshotUid(uid.0),
                root: Root(root),
            }]),
            // Nobody is there who could answer.
            Err(_) if self.starts(host) != starts => Answer::Unavailable,
            Err(error) => {
                self.seen.count("ships that failed");
                self.not_done(host, id, BlockdKind::Ship, &error)
            }
        }
    }

    /// Cuts a snapshot at `from` and brings it to the other host.
    pub(crate) fn bring(
        &mut self,
        from: usize,
        trouble: Trouble,
    ) -> Result<(SnapshotUid, SnapshotName), ControlError> {
        let snapshot = self.cut(from)?;
        let all = self.identities(from);
        let offer = offer(&all, &snapshot, None)?;
        let uid = offer.brought.offer.uid;
        let powers = [self.hosts[0].power_cuts, self.hosts[1].power_cuts];
        let mut watched = Watched::default();
        let seed = self.rng.u64(..);
        for host in &mut self.hosts {
            host.kills_per_mille = self.kills_per_mille / 4;
        }
        let [a, b] = &mut self.hosts;
        let (source, target) = if from == 0 { (a, b) } else { (b, a) };
        let ended = Exchange::new(source, target, vec![offer], self.flow, trouble, &mut watched, seed).run();
        self.after_session(powers, &watched, ended.is_ok());
        ended.map_err(|refusal| ControlError::new(ErrorKind::Io, refusal.to_string()))?;
        Ok((uid, snapshot))
    }

    fn after_session(&mut self, powers: [u64; 2], watched: &Watched, well: bool) {
        let crashed = self.hosts.iter().any(|host| host.down);
        self.seen.count(match well {
            true => "sessions that ended well",
            false if watched.counts.contains_key("cut") => "sessions that were cut midway",
            false if crashed => "sessions that a crash ended",
            false => "sessions that failed otherwise",
        });
        for (host, power) in powers.into_iter().enumerate() {
            self.hosts[host].kills_per_mille = 0;
            if self.hosts[host].down {
                self.started_again(host, power);
            } else {
                self.look(host);
            }
        }
    }

    fn cut(&mut self, host: usize) -> Result<SnapshotName, ControlError> {
        self.cuts += 1;
        let snapshot = name(VOLUME, &format!("s{}", self.cuts));
        match self.ask(host, Control::CreateSnapshots { names: vec![snapshot.clone()] })? {
            Told::Done => {}
            other => panic!("a cut is answered with {other:?}"),
        }
        if host == self.writer {
            self.ledger.all_is_durable();
        }
        Ok(snapshot)
    }

    /// Old snapshots go.
    pub(crate) fn prune(&mut self) {
        for host in 0..2 {
            let Some(volume) = &self.shown[host].volume else { continue };
            let extra = volume.snapshots.len().saturating_sub(SNAPSHOTS_MAX);
            let old: Vec<_> = volume.snapshots[..extra].iter().map(|old| name(VOLUME, &old.name)).collect();
            for snapshot in old {
                if self.ask(host, Control::DeleteSnapshot { name: snapshot }).is_err() {
                    self.seen.count("snapshots that could not be deleted");
                }
            }
        }
    }

    /// When all is over: the host that is not the owner can be brought what the owner has.
    pub(crate) fn the_other_host_can_follow(&mut self, owner: usize) {
        for _ in 0..TRIES_AT_THE_END {
            let Ok((_, snapshot)) = self.bring(owner, Trouble::default()) else { continue };
            let own = root(&mut self.hosts[owner], &snapshot).expect("it is there");
            let (size, shown) = (self.size, snapshot.to_string());
            let content = self.hosts[1 - owner].read(&shown, size);
            assert_eq!(*blake3::hash(&content).as_bytes(), own, "the replica is not what was sent");
            self.hold_against(owner, &content);
            return;
        }
        panic!("the other host cannot be brought anything: {:?}", self.shown);
    }
}
