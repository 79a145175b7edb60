//! Moves of volumes between hosts: who may write (docs/migration.md, "What blockd records").
//!
//! ```text
//!  source:       Frozen ──release──► Released        destination:  Expected ──own──► Owned
//!                   └─────abort────► Aborted                           └────abort──► Aborted
//! ```
//!
//! **Release is the commit record of a move**: one durable change of one store, after which this store takes no write
//! of that volume, and before which the other one takes none. Whoever asks what became of a move is answered when what
//! he is told is durable, so that nobody acts on a record which a crash takes back.
//!
//! What is frozen cannot change: clients' writes are held, and refused after [`FROZEN_HOLD`], so that a client that waits
//! for them learns of it. That time decides nothing else. A snapshot that was cut since then holds all that was ever
//! answered, and only such a one can be released.

use std::collections::VecDeque;
use std::time::Duration;

use nbd_server::connection::Nanos;
use nbd_server::export::Io;
use nbd_server::wire::Errno;

use super::commands::{Outcome, refuse};
use super::commit::Bundle;
use super::{Store, Token};
use crate::catalog::format::{Change, Handover, LinkRecord, MOVES_VERSION, MoveRecord, Role, Stage};
use crate::control::moves::{Handed, MOVE_VOLUMES_MAX, Move, MovedVolume};
use crate::control::{Answer, ErrorKind, SnapshotName};
use crate::units::{HostId, MoveId, SnapshotId, VolumeId};

/// How long clients' changes of a frozen volume are held before they are refused.
pub const FROZEN_HOLD: Duration = Duration::from_secs(2);
/// Moves without a record that are remembered as over.
const FORMER_MOVES_KEPT: usize = 1024;

/// Moves that are over, and no volume's record says so: another one has followed them there, or they were aborted before there
/// was the volume. A freeze or an expectation that is carried out late would begin such a move anew, and nobody would ever
/// end it. They need not be durable: what was asked of a daemon that has ended is not carried out by the next one.
#[derive(Default)]
pub(super) struct FormerMoves(VecDeque<MoveId>);

impl FormerMoves {
    fn add(&mut self, id: MoveId) {
        if self.0.contains(&id) {
            return;
        }
        if self.0.len() == FORMER_MOVES_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(id);
    }

    fn has(&self, id: MoveId) -> bool {
        self.0.contains(&id)
    }
}

impl Store {
    /// The answer comes with a commit.
    pub(super) fn move_volumes(&mut self, token: Token, command: Move, io: &mut Io<'_>) -> Outcome<()> {
        match command {
            Move::Freeze { id, peer, volumes } => self.freeze(token, id, peer, &volumes),
            Move::Release { id, snapshots } => self.release_volumes(token, id, &snapshots, io),
            Move::Expect { id, peer, volumes } => self.expect(token, id, peer, &volumes),
            Move::Own { id, volumes } => self.own(token, id, &volumes),
            Move::Abort { id, of } => self.abort(token, id, of),
            Move::Show { id } => self.show_moves(token, id),
        }
    }

    /// The volumes of a move. All of them are in one stage: they change together.
    fn moved(&self, id: MoveId) -> Outcome<(Stage, Vec<VolumeId>)> {
        let of_move = self.catalog.moves.iter().filter(|(_, record)| record.id == id);
        let (volumes, stages): (Vec<_>, Vec<_>) =
            of_move.map(|(&volume, record)| (volume, record.stage)).unzip();
        match stages.first() {
            Some(&stage) => Ok((stage, volumes)),
            None => refuse(ErrorKind::NotFound, format!("no volume takes part in a move {id}")),
        }
    }

    /// Whoever moves a volume must not be surprised.
    pub(super) fn check_not_moving(&self, volume: VolumeId, name: &str) -> Outcome<()> {
        match self.catalog.moves.get(&volume) {
            Some(record) if matches!(record.stage, Stage::Frozen | Stage::Expected) => {
                refuse(ErrorKind::Busy, format!("{name:?} takes part in the move {}", record.id))
            }
            _ => Ok(()),
        }
    }

    /// The volumes that a move begins with: named once each, and free for it, or in it already.
    fn volumes_for(&self, id: MoveId, names: &[String], first: Stage) -> Outcome<Vec<VolumeId>> {
        if names.is_empty() || names.len() > MOVE_VOLUMES_MAX {
            return refuse(ErrorKind::BadValue, format!("a move of {} volumes", names.len()));
        }
        let mut volumes = Vec::new();
        for name in names {
            let volume = self.catalog.find_volume(name)?;
            if volumes.contains(&volume) {
                return refuse(ErrorKind::BadValue, format!("{name:?} is named twice"));
            }
            self.check_durable(Some(volume))?;
            match self.catalog.moves.get(&volume).filter(|record| record.id == id) {
                None if self.former_moves.has(id) => {
                    let text = format!("the move {id} of {name:?} is over");
                    return refuse(ErrorKind::Stale, text);
                }
                None => self.check_not_moving(volume, name)?,
                Some(record) if record.stage == first => {}
                Some(record) => return ended(id, record.stage),
            }
            volumes.push(volume);
        }
        if let Ok((_, mut known)) = self.moved(id) {
            let mut named = volumes.clone();
            known.sort_unstable();
            named.sort_unstable();
            if known != named {
                return refuse(ErrorKind::BadValue, format!("the move {id} is one of other volumes"));
            }
        }
        Ok(volumes)
    }

    fn set_move(&mut self, volume: VolumeId, record: MoveRecord, bundle: &mut Bundle) {
        bundle.changes.push(Change::Move(volume, Some(Box::new(record.clone()))));
        bundle.changes.extend(self.raise_version(MOVES_VERSION));
        let id = record.id;
        if let Some(before) = self.catalog.moves.insert(volume, record).filter(|before| before.id != id) {
            self.former_moves.add(before.id);
        }
    }

    fn freeze(&mut self, token: Token, id: MoveId, peer: HostId, names: &[String]) -> Outcome<()> {
        let volumes = self.volumes_for(id, names, Stage::Frozen)?;
        for (&volume, name) in volumes.iter().zip(names) {
            if self.catalog.is_replica(volume) {
                return refuse(
                    ErrorKind::Refused,
                    format!("{name:?} is a replica: it is not this host's to give"),
                );
            }
        }
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), volumes.clone()) };
        for volume in volumes {
            let since = self.catalog.store.next_snapshot;
            let epoch = self.catalog.epoch(volume);
            let frozen = MoveRecord { id, peer, stage: Stage::Frozen, epoch, since, handover: None };
            let known = self.catalog.moves.get(&volume).filter(|record| record.id == id).cloned();
            self.set_move(volume, known.unwrap_or(frozen), &mut bundle);
            let export = self.volume_export(volume);
            let until = self.now.after(FROZEN_HOLD);
            self.disk_mut(export).frozen_until.get_or_insert(until);
        }
        self.commit_bundle(bundle);
        Ok(())
    }

    fn release_volumes(
        &mut self,
        token: Token,
        id: MoveId,
        snapshots: &[(SnapshotName, [u8; 32])],
        io: &mut Io<'_>,
    ) -> Outcome<()> {
        let (stage, volumes) = self.moved(id)?;
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), volumes.clone()) };
        match stage {
            Stage::Frozen => {}
            Stage::Released => {
                self.check_all_durable(&volumes)?;
                self.commit_bundle(bundle);
                return Ok(());
            }
            other => return ended(id, other),
        }
        let last = self.last_snapshots(id, &volumes, snapshots)?;
        for (volume, snapshot, root) in last {
            self.release_one(volume, snapshot, root, &mut bundle, io);
        }
        self.commit_bundle(bundle);
        Ok(())
    }

    fn check_all_durable(&self, volumes: &[VolumeId]) -> Outcome<()> {
        volumes.iter().try_for_each(|volume| self.check_durable(Some(*volume)))
    }

    /// What is released, judged: of each volume of the move the snapshot that holds all that was ever answered.
    fn last_snapshots(
        &self,
        id: MoveId,
        volumes: &[VolumeId],
        snapshots: &[(SnapshotName, [u8; 32])],
    ) -> Outcome<Vec<(VolumeId, SnapshotId, [u8; 32])>> {
        let mut last = Vec::<(VolumeId, _, _)>::new();
        for (name, root) in snapshots {
            let snapshot = self.catalog.find_snapshot(name)?;
            let volume = self.catalog.snapshots[&snapshot].volume;
            let named = last.iter().any(|(other, ..)| *other == volume);
            if !volumes.contains(&volume) || named {
                return refuse(ErrorKind::BadValue, format!("{name} is not what the move {id} waits for"));
            }
            self.check_is_last(volume, snapshot, name)?;
            last.push((volume, snapshot, *root));
        }
        if last.len() != volumes.len() {
            let text =
                format!("{} volumes take part in the move {id}, {} are named", volumes.len(), last.len());
            return refuse(ErrorKind::BadValue, text);
        }
        Ok(last)
    }

    fn check_is_last(&self, volume: VolumeId, snapshot: SnapshotId, name: &SnapshotName) -> Outcome<()> {
        self.check_durable(Some(volume))?;
        let export = self.volume_export(volume);
        let (disk, record) = (self.disk(export), &self.catalog.moves[&volume]);
        let head = self.catalog.volumes[&volume].head;
        let parent = self.catalog.layers.get(&head).and_then(|layer| layer.parent);
        let is_last = parent == Some(self.catalog.snapshots[&snapshot].layer) && snapshot >= record.since;
        // By what is written above the second never happens; were it to, a write would be lost.
        if !is_last || disk.is_changing() || !disk.dirty.is_empty() {
            let text =
                format!("{name} does not hold all of the volume: one taken since it was frozen is needed");
            return refuse(ErrorKind::Refused, text);
        }
        Ok(())
    }

    fn release_one(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
        root: [u8; 32],
        bundle: &mut Bundle,
        io: &mut Io<'_>,
    ) {
        let handover = Handover { uid: self.catalog.uid(snapshot), root };
        let record = self.catalog.moves[&volume].clone();
        let peer = record.peer;
        let released = MoveRecord { stage: Stage::Released, handover: Some(handover), ..record };
        self.set_move(volume, released, bundle);
        let point = self.catalog.point(snapshot, volume);
        let link = self.catalog.links.remove(&volume);
        let link = link.unwrap_or_else(|| self.catalog.first_link(volume, peer));
        let published = Some(snapshot);
        let link = LinkRecord {
            role: Role::Replica,
            peer,
            diverged: false,
            published,
            point,
            receiving: None,
            ..link
        };
        self.catalog.links.insert(volume, link);
        bundle.changes.extend(self.link_changes(volume));
        let export = self.volume_export(volume);
        let disk = self.disk_mut(export);
        (disk.hidden, disk.shows) = (true, published);
        self.version += 1;
        self.close_doors(volume);
        self.refuse_held(volume, io);
        self.end_mirror(export, io);
        self.disk_mut(export).frozen_until = None;
    }

    /// Changes that wait for the end of a move are refused.
    fn refuse_held(&mut self, volume: VolumeId, io: &mut Io<'_>) {
        let export = self.volume_export(volume);
        let of_clients = |key: &usize| self.jobs[*key].client.is_some() && self.jobs[*key].changes();
        let held: Vec<usize> = self.disk(export).waiting.iter().copied().filter(of_clients).collect();
        self.disk_mut(export).waiting.retain(|key| !held.contains(key));
        for key in held {
            self.end_job(key, Err(Errno::Perm), io);
        }
    }

    fn expect(&mut self, token: Token, id: MoveId, peer: HostId, names: &[String]) -> Outcome<()> {
        let volumes = self.volumes_for(id, names, Stage::Expected)?;
        for (&volume, name) in volumes.iter().zip(names) {
            self.check_follows(volume, name, peer)?;
        }
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), volumes.clone()) };
        for volume in volumes {
            let epoch = self.catalog.epoch(volume) + 1;
            let (stage, since) = (Stage::Expected, SnapshotId(0));
            self.set_move(volume, MoveRecord { id, peer, stage, epoch, since, handover: None }, &mut bundle);
            bundle.publishes.push(self.make_door(volume, epoch));
        }
        self.commit_bundle(bundle);
        Ok(())
    }

    fn check_follows(&self, volume: VolumeId, name: &str, peer: HostId) -> Outcome<()> {
        let link = self.catalog.links.get(&volume).filter(|link| link.role == Role::Replica);
        let Some(link) = link.filter(|link| link.peer == peer && !link.diverged) else {
            return refuse(ErrorKind::Refused, format!("{name:?} is no replica of what host {peer} has"));
        };
        if link.published.is_none() {
            return refuse(ErrorKind::Refused, format!("{name:?}: no complete snapshot has come yet"));
        }
        Ok(())
    }

    fn own(&mut self, token: Token, id: MoveId, handed: &[Handed]) -> Outcome<()> {
        let (stage, volumes) = self.moved(id)?;
        self.check_all_durable(&volumes)?;
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), volumes.clone()) };
        match stage {
            Stage::Expected => {}
            Stage::Owned => {
                self.commit_bundle(bundle);
                return Ok(());
            }
            other => return ended(id, other),
        }
        let mut found = Vec::new();
        for handed in handed {
            let volume = self.check_handed(id, handed)?;
            if found.iter().any(|(other, _)| *other == volume) {
                return refuse(ErrorKind::BadValue, format!("{:?} is named twice", handed.volume));
            }
            found.push((volume, handed));
        }
        if found.len() != volumes.len() {
            let text =
                format!("{} volumes take part in the move {id}, {} are named", volumes.len(), found.len());
            return refuse(ErrorKind::BadValue, text);
        }
        for (volume, handed) in found {
            self.own_one(volume, handed, &mut bundle);
        }
        self.commit_bundle(bundle);
        self.reclaim_later();
        Ok(())
    }

    /// What was released is what is shown here.
    fn check_handed(&self, id: MoveId, handed: &Handed) -> Outcome<VolumeId> {
        let volume = self.catalog.find_volume(&handed.volume)?;
        let record = self.catalog.moves.get(&volume).filter(|record| record.id == id);
        let link = self.catalog.links.get(&volume).filter(|link| link.role == Role::Replica);
        let (Some(record), Some(link)) = (record, link) else {
            return refuse(
                ErrorKind::BadValue,
                format!("{:?} does not take part in the move {id}", handed.volume),
            );
        };
        if handed.epoch != record.epoch || link.epoch.checked_add(1) != Some(handed.epoch) {
            let text = format!("epoch {} is given, {} follows", handed.epoch, link.epoch + 1);
            return refuse(ErrorKind::Stale, text);
        }
        let shown = link.published.map(|snapshot| self.catalog.uid(snapshot));
        if shown != Some(handed.handover.uid) || link.receiving.is_some() {
            let text = format!("{:?} does not hold the snapshot {} yet", handed.volume, handed.handover.uid);
            return refuse(ErrorKind::Refused, text);
        }
        Ok(volume)
    }

    fn own_one(&mut self, volume: VolumeId, handed: &Handed, bundle: &mut Bundle) {
        let record = self.catalog.moves[&volume].clone();
        let owned = MoveRecord { stage: Stage::Owned, handover: Some(handed.handover), ..record };
        self.set_move(volume, owned, bundle);
        let link = self.catalog.links.get_mut(&volume).expect("checked");
        (link.role, link.epoch) = (Role::Primary, handed.epoch);
        let published = link.published;
        let export = self.volume_export(volume);
        // A client that opened this head itself did so in an epoch that is over, and has not gone since.
        if self.disk(export).clients > 0 || !self.is_empty_over(volume, published) {
            self.reset_head(volume, published, None, bundle);
        } else {
            let disk = self.disk_mut(export);
            (disk.hidden, disk.published) = (false, false);
            bundle.publishes.push(export);
        }
        bundle.changes.extend(self.link_changes(volume));
        self.open_door(volume);
    }

    /// Whether the head of a replica is as it was made over a snapshot: nothing was written to it.
    pub(super) fn is_empty_over(&self, volume: VolumeId, snapshot: Option<SnapshotId>) -> bool {
        let layer = snapshot.map(|id| self.catalog.snapshots[&id].layer);
        let head = self.catalog.volumes[&volume].head;
        let parent = self.catalog.layers.get(&head).and_then(|layer| layer.parent);
        let idle =
            self.catalog.links.get(&volume).is_some_and(|link| link.receiving.is_none() && !link.diverged);
        idle && layer.is_some() && parent == layer
    }

    fn abort(&mut self, token: Token, id: MoveId, of: Option<(HostId, Vec<String>)>) -> Outcome<()> {
        if let (Some((peer, names)), Err(_), false) = (&of, self.moved(id), self.former_moves.has(id)) {
            return self.abort_before_it_begins(token, id, *peer, names);
        }
        let (stage, volumes) = self.moved(id)?;
        self.check_all_durable(&volumes)?;
        if matches!(stage, Stage::Released | Stage::Owned) {
            return ended(id, stage);
        }
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), volumes.clone()) };
        for volume in volumes {
            let record = self.catalog.moves[&volume].clone();
            self.set_move(volume, MoveRecord { stage: Stage::Aborted, ..record }, &mut bundle);
            match stage {
                // Not before that is durable: a crash would leave a frozen volume that was written to.
                Stage::Frozen => bundle.thaws.push(volume),
                Stage::Expected => self.close_doors(volume),
                // Asked for again: the doors there are now are those of whoever has the volume.
                _ => {}
            }
        }
        self.commit_bundle(bundle);
        Ok(())
    }

    /// What is still on its way to begin it comes too late.
    fn abort_before_it_begins(
        &mut self,
        token: Token,
        id: MoveId,
        peer: HostId,
        names: &[String],
    ) -> Outcome<()> {
        let volumes = match self.volumes_for(id, names, Stage::Aborted) {
            Err(error) if error.kind == ErrorKind::NotFound => {
                // No volume, no record: the volume may come before what is still on its way.
                self.former_moves.add(id);
                return Err(error);
            }
            judged => judged?,
        };
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), volumes.clone()) };
        for volume in volumes {
            let (epoch, since) = (self.catalog.epoch(volume), SnapshotId(0));
            let aborted = MoveRecord { id, peer, stage: Stage::Aborted, epoch, since, handover: None };
            self.set_move(volume, aborted, &mut bundle);
        }
        self.commit_bundle(bundle);
        Ok(())
    }

    /// The move has ended and the volume has stayed: what was held goes on.
    pub(super) fn thaw(&mut self, volume: VolumeId, io: &mut Io<'_>) {
        let still = self.catalog.moves.get(&volume).is_some_and(|record| record.stage == Stage::Frozen);
        let export = self.catalog.volume_exports.get(&volume).copied().filter(|_| !still);
        if let Some(export) = export {
            self.disk_mut(export).frozen_until = None;
            self.admit(export, io);
        }
    }

    /// When it is all durable.
    fn show_moves(&mut self, token: Token, id: Option<MoveId>) -> Outcome<()> {
        let wanted = self.catalog.moves.iter().filter(|(_, record)| id.is_none_or(|id| record.id == id));
        let volumes: Vec<VolumeId> = wanted.map(|(&volume, _)| volume).collect();
        if volumes.is_empty()
            && let Some(id) = id
        {
            return refuse(ErrorKind::NotFound, format!("no volume takes part in a move {id}"));
        }
        self.check_all_durable(&volumes)?;
        let answer = Answer::Moved(volumes.iter().map(|&volume| self.moved_volume(volume)).collect());
        self.commit_bundle(Bundle { token: Some(token), answer, ..Bundle::new(Vec::new(), volumes) });
        Ok(())
    }

    fn moved_volume(&self, volume: VolumeId) -> MovedVolume {
        let record = &self.catalog.moves[&volume];
        MovedVolume {
            name: self.catalog.volumes[&volume].name.clone(),
            id: record.id,
            peer: record.peer,
            stage: record.stage,
            epoch: record.epoch,
            handover: record.handover,
            role: self.catalog.links.get(&volume).map_or(Role::Primary, |link| link.role),
            volume_epoch: self.catalog.epoch(volume),
        }
    }

    /// Clients that have waited long enough learn that they wait in vain. Returns when to look again.
    pub(super) fn refuse_held_too_long(&mut self, now: Nanos, io: &mut Io<'_>) -> Option<Nanos> {
        let frozen = self
            .catalog
            .volume_exports
            .iter()
            .filter_map(|(&volume, &export)| self.disk(export).frozen_until.map(|until| (volume, until)));
        let (late, waiting): (Vec<_>, Vec<_>) = frozen.partition(|(_, until)| now >= *until);
        for (volume, _) in late {
            self.refuse_held(volume, io);
        }
        waiting.into_iter().map(|(_, until)| until).min()
    }

    /// What was frozen when the daemon ended still is.
    pub(super) fn freeze_again(&mut self) {
        for volume in self.in_stage(Stage::Frozen) {
            let (export, until) = (self.volume_export(volume), self.now.after(FROZEN_HOLD));
            self.disk_mut(export).frozen_until = Some(until);
        }
    }

    /// What was expected when the daemon ended still is.
    pub(super) fn expect_again(&mut self) {
        for volume in self.in_stage(Stage::Expected) {
            let door = self.make_door(volume, self.catalog.moves[&volume].epoch);
            self.publish(door);
        }
    }

    fn in_stage(&self, stage: Stage) -> Vec<VolumeId> {
        let found = self.catalog.moves.iter().filter(|(_, record)| record.stage == stage);
        found.map(|(&volume, _)| volume).collect()
    }
}

/// The move has ended on this host, and not so.
fn ended<T>(id: MoveId, stage: Stage) -> Outcome<T> {
    let stage = match stage {
        Stage::Frozen => "FROZEN",
        Stage::Released => "RELEASED",
        Stage::Expected => "EXPECTED",
        Stage::Owned => "OWNED",
        Stage::Aborted => "ABORTED",
    };
    refuse(ErrorKind::Refused, format!("{stage}: that is what the move {id} is on this host"))
}
