//! Replicas: volumes that follow another host's (docs/replication.md, "What the store keeps").
//!
//! ```text
//!            Receive             Stage (a cut)           Publish
//!  Idle ───────────────► Receiving ─────────► Staged ───────────────► Idle, a snapshot more
//!   ▲  head: empty over    head: what came      an unseen snapshot,      one commit
//!   │  the base            over the base        its root is compared
//!   └──── Abandon, or another Receive ◄──┴─────────┘
//! ```
//!
//! What clients see of a replica are snapshots that were published. Its head has no clients: a request that reaches
//! it, of one who came by an old listing, is refused.

use std::ops::Range;

use nbd_server::disk::{DiskOp, DiskOpKind, ExportIndex};
use nbd_server::export::{ExportInfo, Io};
use nbd_server::wire::Errno;
use smallvec::SmallVec;

use super::commands::{Outcome, check_name, check_size, refuse};
use super::commit::Bundle;
use super::{Store, Token};
use crate::catalog::format::{
    Change, LINKS_VERSION, LinkRecord, OriginRecord, Point, ReceivingRecord, Role, Stage,
};
use crate::control::replication::{Incoming, Mark, Patch, ReceiveToken, Replication};
use crate::control::{Answer, ControlError, ErrorKind, SnapshotName};
use crate::units::{HostId, LayerId, Lineage, SnapshotId, VolumeId};

/// Pieces of one `Apply`, at most.
pub const PATCHES_MAX: usize = 4096;
/// Written early is what lies closer together than this: further apart, it would be others' data mostly.
const WRITE_SOON_BYTES_MAX: u64 = 64 << 20;
/// Tag of the operation that has what an `Apply` wrote written early.
pub(super) const TAG_WRITE_SOON: u64 = u64::MAX - 3;
/// A source may be so many epochs ahead of what is known here. One that names the last epoch there is would otherwise keep
/// its replica from ever being promoted.
pub(super) const EPOCH_STEP_MAX: u64 = 1 << 32;
/// Epoch of a volume that was never promoted.
pub(super) const FIRST_EPOCH: u64 = 1;

/// An `Apply` some of whose patches are under way.
pub(super) struct Applying {
    token: Token,
    left: usize,
    error: Option<Errno>,
    /// What was written, from the first byte to the last, of each of the pool's files.
    written: SmallVec<[(usize, Range<u64>); 2]>,
}

impl Applying {
    /// A piece is being written.
    pub(super) fn wrote(&mut self, file: usize, range: Range<u64>) {
        match self.written.iter_mut().find(|(known, _)| *known == file) {
            Some((_, all)) => *all = all.start.min(range.start)..all.end.max(range.end),
            None => self.written.push((file, range)),
        }
    }
}

impl Store {
    /// `Some`: the answer. `None`: it comes later.
    pub(super) fn replication(
        &mut self,
        token: Token,
        command: Replication,
        io: &mut Io<'_>,
    ) -> Outcome<Option<Answer>> {
        match command {
            Replication::Identify { volume } => return self.identify(volume.as_deref()).map(Some),
            Replication::Find { lineage } => return Ok(Some(self.find_identity(lineage))),
            Replication::Locate { uids, peer } => return Ok(Some(Answer::Located(self.locate(&uids, peer)))),
            Replication::Receive(incoming) => self.receive(token, incoming)?,
            Replication::ReceiveMirrored(incoming) => self.receive_mirrored(token, incoming)?,
            Replication::Mark { lineage, token: attempt, mark } => {
                self.mark(token, lineage, attempt, mark)?;
            }
            Replication::Apply { lineage, token: attempt, patches } => {
                self.apply(token, lineage, attempt, patches, io)?;
            }
            Replication::Confirm { lineage, token: attempt, cursor } => {
                self.confirm(token, lineage, attempt, cursor)?;
            }
            Replication::Stage { lineage, token: attempt } => {
                return self.stage(token, lineage, attempt, io);
            }
            Replication::PinStaged { lineage, token: attempt } => {
                return self.pin_staged(lineage, attempt).map(Some);
            }
            Replication::Publish { staged } => self.publish_staged(token, &staged)?,
            Replication::Abandon { lineage, token: attempt } => self.abandon(token, lineage, attempt)?,
            Replication::Promote { volume } => self.promote(token, &volume)?,
            Replication::Demote { volume, peer } => self.demote(token, &volume, peer)?,
        }
        Ok(None)
    }

    /// The volume whose head a command is about to replace: what is still being written to it must have ended.
    pub(super) fn replaces_head_of(&self, command: &Replication) -> Option<VolumeId> {
        match command {
            Replication::Receive(Incoming { lineage, .. })
            | Replication::ReceiveMirrored(Incoming { lineage, .. })
            | Replication::Abandon { lineage, .. } => self.catalog.find_lineage(*lineage),
            Replication::Promote { volume } => self.catalog.find_volume(volume).ok(),
            _ => None,
        }
    }

    /// The record, changed; and that change.
    pub(super) fn link_changes(&mut self, volume: VolumeId) -> Vec<Change> {
        let link = self.catalog.links.get(&volume).cloned().map(Box::new);
        let mut changes = vec![Change::Link(volume, link)];
        changes.extend(self.raise_version(LINKS_VERSION));
        changes
    }

    /// A store that gets its first record of a kind is of the version that such records came with, from now on.
    pub(super) fn raise_version(&mut self, version: u32) -> Option<Change> {
        let raised = self.catalog.store.version < version;
        self.catalog.store.version = self.catalog.store.version.max(version);
        raised.then(|| self.store_change())
    }

    fn receive(&mut self, token: Token, incoming: Incoming) -> Outcome<()> {
        check_size(incoming.size)?;
        check_name(&incoming.name)?;
        check_name(&incoming.volume)?;
        let volume = self.catalog.find_lineage(incoming.lineage);
        if let Some(volume) = volume {
            self.check_may_receive(volume, &incoming)?;
            self.check_expected_epoch(volume, &incoming)?;
        }
        self.check_epoch_step(&incoming)?;
        let base = self.find_base(&incoming)?;
        match volume {
            Some(volume) => self.receive_next(token, volume, incoming, base),
            None => self.receive_first(token, incoming, base),
        }
    }

    /// Writes of another host are mirrored to a volume that is expected from it, over the snapshot that is shown: nobody who is
    /// not about to give the volume away may write here as he likes.
    fn receive_mirrored(&mut self, token: Token, incoming: Incoming) -> Outcome<()> {
        let volume = self.catalog.find_lineage(incoming.lineage);
        let record = volume.and_then(|volume| self.catalog.moves.get(&volume));
        if record.is_none_or(|record| record.stage != Stage::Expected || record.peer != incoming.peer) {
            return refuse(ErrorKind::Refused, "this volume is not expected from you".to_owned());
        }
        let published = volume.and_then(|volume| self.catalog.links.get(&volume)?.published);
        let shown = published.map(|id| self.catalog.uid(id));
        if shown.is_none() || shown != incoming.base {
            return refuse(ErrorKind::NotFound, "the base of a mirror is what is shown here".to_owned());
        }
        self.receive(token, incoming)
    }

    /// What was mirrored is a snapshot.
    fn mark(&mut self, token: Token, lineage: Lineage, attempt: ReceiveToken, mark: Mark) -> Outcome<()> {
        let (volume, receiving) = self.attempt(lineage, attempt)?;
        check_name(&mark.name)?;
        let (same_epoch, size) = (mark.point.epoch == receiving.point.epoch, receiving.size);
        if receiving.staged.is_some() || !same_epoch || mark.size != size {
            return refuse(ErrorKind::BadValue, "that is not what was mirrored".to_owned());
        }
        let incoming = Incoming {
            lineage,
            peer: self.catalog.links[&volume].peer,
            volume: self.catalog.volumes[&volume].name.clone(),
            uid: mark.uid,
            point: mark.point,
            name: mark.name,
            size,
            created_ms: mark.created_ms,
            base: None,
            token: attempt,
        };
        self.check_may_receive(volume, &incoming)?;
        self.check_durable(Some(volume))?;
        let name = self.free_snapshot_name(volume, &incoming);
        let link = self.catalog.links.get_mut(&volume).expect("an attempt has a link");
        let receiving = link.receiving.as_mut().expect("an attempt");
        (receiving.uid, receiving.point, receiving.name) = (incoming.uid, incoming.point, name);
        (receiving.created_ms, receiving.cursor) = (incoming.created_ms, crate::units::cluster_count(size));
        let changes = self.link_changes(volume);
        self.commit_changes(token, vec![volume], changes);
        Ok(())
    }

    fn check_epoch_step(&self, incoming: &Incoming) -> Outcome<()> {
        let known = self.catalog.find_lineage(incoming.lineage).map_or(0, |id| self.catalog.epoch(id));
        let epoch = incoming.point.epoch;
        if epoch.saturating_sub(known) > EPOCH_STEP_MAX {
            let text = format!("epoch {epoch} is sent, {known} is known: nobody was promoted so often");
            return refuse(ErrorKind::BadValue, text);
        }
        Ok(())
    }

    /// The door of the epoch in which a volume will be owned is made, and used, when it is expected. A move that began over a
    /// replica of an earlier epoch must end before the source releases what could not be owned here.
    fn check_expected_epoch(&self, volume: VolumeId, incoming: &Incoming) -> Outcome<()> {
        let record = self.catalog.moves.get(&volume).filter(|record| record.stage == Stage::Expected);
        let Some(record) = record else { return Ok(()) };
        let epoch = incoming.point.epoch;
        if epoch.checked_add(1) != Some(record.epoch) {
            let text = format!(
                "epoch {epoch} is sent, the move {} is to end in epoch {}: it began with an older replica",
                record.id, record.epoch
            );
            return refuse(ErrorKind::Refused, text);
        }
        Ok(())
    }

    fn find_base(&self, incoming: &Incoming) -> Outcome<Option<SnapshotId>> {
        let Some(uid) = incoming.base else { return Ok(None) };
        let Some(id) = self.catalog.find_uid(uid, incoming.peer) else {
            return refuse(ErrorKind::NotFound, format!("there is no snapshot {uid} to build on"));
        };
        let size = self.catalog.snapshots[&id].size;
        if size > incoming.size {
            let text = format!("{} bytes on a base of {size}: a volume does not shrink", incoming.size);
            return refuse(ErrorKind::BadValue, text);
        }
        Ok(Some(id))
    }

    fn receive_first(&mut self, token: Token, incoming: Incoming, base: Option<SnapshotId>) -> Outcome<()> {
        self.check_free_name(&incoming.volume)?;
        self.check_durable(base.map(|id| self.catalog.snapshots[&id].volume))?;
        let parent = base.map(|id| self.catalog.snapshots[&id].layer);
        let volume = self.catalog.store.next_volume;
        let name = incoming.name.clone();
        let link = LinkRecord {
            lineage: incoming.lineage,
            epoch: incoming.point.epoch,
            role: Role::Replica,
            peer: incoming.peer,
            diverged: false,
            published: None,
            point: Point::default(),
            receiving: Some(receiving_record(&incoming, base, name)),
        };
        // Before the volume is served: a replica's head is not shown.
        self.catalog.links.insert(volume, link);
        let (export, mut changes) = self.add_volume(&incoming.volume, incoming.size, parent);
        changes.extend(self.link_changes(volume));
        let answer = self.receiving_answer(volume);
        let bundle = Bundle {
            token: Some(token),
            publishes: vec![export],
            answer,
            ..Bundle::new(changes, Vec::new())
        };
        self.commit_bundle(bundle);
        Ok(())
    }

    fn receiving_answer(&self, volume: VolumeId) -> Answer {
        let receiving = self.catalog.links.get(&volume).and_then(|link| link.receiving.clone());
        Answer::Receiving(Box::new(receiving.expect("it was just set")))
    }

    fn receive_next(
        &mut self,
        token: Token,
        volume: VolumeId,
        incoming: Incoming,
        base: Option<SnapshotId>,
    ) -> Outcome<()> {
        self.check_durable(Some(volume))?;
        let link = self.catalog.links.get_mut(&volume).expect("checked");
        let goes_on = link.receiving.as_mut().filter(|r| r.uid == incoming.uid && r.base == base);
        if let Some(receiving) = goes_on {
            receiving.token = incoming.token;
            let (changes, answer) = (self.link_changes(volume), self.receiving_answer(volume));
            let bundle = Bundle::new(changes, vec![volume]);
            self.commit_bundle(Bundle { token: Some(token), answer, ..bundle });
            return Ok(());
        }
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), Vec::new()) };
        let diverged = link.diverged;
        // Before anything is moved aside: what is there then is not empty, and not the volume's any more.
        let is_empty = self.is_empty_over(volume, base);
        if diverged {
            self.move_aside(volume, base, &mut bundle);
        }
        if is_empty {
            self.keep_head(volume, incoming.size, &mut bundle);
        } else {
            self.reset_head(volume, base, Some(incoming.size), &mut bundle);
        }
        let name = self.free_snapshot_name(volume, &incoming);
        let receiving = receiving_record(&incoming, base, name);
        let link = self.catalog.links.get_mut(&volume).expect("checked");
        (link.receiving, link.epoch) = (Some(receiving), incoming.point.epoch);
        bundle.changes.extend(self.link_changes(volume));
        bundle.answer = self.receiving_answer(volume);
        self.commit_bundle(bundle);
        self.reclaim_later();
        Ok(())
    }

    fn check_may_receive(&self, volume: VolumeId, incoming: &Incoming) -> Outcome<()> {
        let name = &self.catalog.volumes[&volume].name;
        let link = self.catalog.links.get(&volume).filter(|link| link.role == Role::Replica);
        let Some(link) = link else {
            let text = format!("NOT_A_REPLICA: {name:?} is written to on this host");
            return refuse(ErrorKind::Refused, text);
        };
        if link.peer != incoming.peer {
            let text = format!("NOT_A_REPLICA: {name:?} follows host {}", link.peer);
            return refuse(ErrorKind::Refused, text);
        }
        let epoch = incoming.point.epoch;
        if epoch < link.epoch || (link.diverged && epoch == link.epoch) {
            let text = format!("STALE_EPOCH: epoch {epoch} is sent, {name:?} is in epoch {}", link.epoch);
            return refuse(ErrorKind::Stale, text);
        }
        if incoming.point <= link.point {
            let (sent, here) = (incoming.point.sequence, link.point.sequence);
            let text = format!("STALE_SNAPSHOT: snapshot {sent} is sent, {name:?} shows {here} already");
            return refuse(ErrorKind::Stale, text);
        }
        Ok(())
    }

    /// Snapshots of the same name may have come before.
    fn free_snapshot_name(&self, volume: VolumeId, incoming: &Incoming) -> String {
        let taken = self.catalog.snapshots_of(volume).any(|(_, record)| record.name == incoming.name);
        if !taken {
            return incoming.name.clone();
        }
        let uid = incoming.uid.to_string();
        let room = crate::control::NAME_BYTES_MAX - uid.len() - 1;
        format!("{}-{uid}", &incoming.name[..incoming.name.len().min(room)])
    }

    /// The head is empty over the base as it is, and its map is there: a round that follows another begins at once.
    fn keep_head(&mut self, volume: VolumeId, size: u64, bundle: &mut Bundle) {
        let export = self.volume_export(volume);
        let entry = self.catalog.volumes.get_mut(&volume).expect("it exists");
        if entry.size == size {
            return;
        }
        entry.size = size;
        let disk = self.disk_mut(export);
        disk.size = size;
        if disk.loaded().is_some() {
            disk.map_mut().grow(crate::units::cluster_count(size));
        }
        bundle.changes.push(self.volume_change(volume));
    }

    /// A new, empty head over a snapshot; what the old one held is gone.
    pub(super) fn reset_head(
        &mut self,
        volume: VolumeId,
        base: Option<SnapshotId>,
        size: Option<u64>,
        bundle: &mut Bundle,
    ) {
        self.drop_staged(volume, bundle);
        let old = self.volume_export(volume);
        bundle.changes.append(&mut self.seal(old));
        bundle.settles.push(self.disk(old).top);
        let record = base.map(|id| &self.catalog.snapshots[&id]);
        let (parent, base_size) = (record.map(|record| record.layer), record.map(|record| record.size));
        self.replace_head(volume, parent, size.or(base_size), bundle);
        self.unserve(old);
    }

    fn replace_head(
        &mut self,
        volume: VolumeId,
        parent: Option<LayerId>,
        size: Option<u64>,
        bundle: &mut Bundle,
    ) {
        let (head, layer) = self.new_head(volume, parent);
        let entry = self.catalog.volumes.get_mut(&volume).expect("it exists");
        entry.head = head;
        entry.size = size.unwrap_or(entry.size);
        bundle.publishes.push(self.serve_volume(volume));
        bundle.changes.extend([self.store_change(), layer, self.volume_change(volume)]);
    }

    /// What was staged and will never be shown.
    pub(super) fn drop_staged(&mut self, volume: VolumeId, bundle: &mut Bundle) {
        let link = self.catalog.links.get_mut(&volume);
        let Some(id) = link.and_then(|link| link.receiving.take()).and_then(|r| r.staged) else { return };
        let layer = self.catalog.snapshots.remove(&id).expect("staged").layer;
        let export = self.catalog.snapshot_exports.remove(&id).expect("staged");
        self.unserve(export);
        bundle.changes.push(Change::Snapshot(id, None));
        bundle.settles.push(layer);
    }

    /// What this host alone has written becomes a volume of its own: the head, and the snapshots that the base does not
    /// descend from.
    fn move_aside(&mut self, volume: VolumeId, base: Option<SnapshotId>, bundle: &mut Bundle) {
        let old = self.volume_export(volume);
        bundle.changes.append(&mut self.seal(old));
        let record = self.catalog.volumes[&volume].clone();
        let name = self.free_branch_name(volume, &record.name);
        let branch = self.catalog.new_volume();
        self.catalog.volumes.insert(branch, crate::catalog::format::VolumeRecord { name, ..record.clone() });
        self.give_layer(record.head, branch, bundle);
        bundle.publishes.push(self.serve_volume(branch));
        bundle.changes.push(self.volume_change(branch));
        bundle.settles.push(record.head);
        let kept = base.map(|id| self.catalog.chain(self.catalog.snapshots[&id].layer)).unwrap_or_default();
        let own: Vec<SnapshotId> = self.catalog.snapshots_of(volume).map(|(id, _)| id).collect();
        for id in own {
            if !kept.contains(&self.catalog.snapshots[&id].layer) {
                self.give_snapshot(id, branch, bundle);
            }
        }
        let link = self.catalog.links.get_mut(&volume).expect("a replica");
        link.diverged = false;
        let moved = |id: &SnapshotId| self.catalog.snapshots[id].volume == branch;
        link.published = link.published.filter(|id| !moved(id));
    }

    fn give_layer(&mut self, layer: LayerId, to: VolumeId, bundle: &mut Bundle) {
        let record = self.catalog.layers.get_mut(&layer).expect("a head");
        record.volume = to;
        bundle.changes.push(Change::Layer(layer, Some(*record)));
    }

    fn give_snapshot(&mut self, id: SnapshotId, to: VolumeId, bundle: &mut Bundle) {
        let record = self.catalog.snapshots.get_mut(&id).expect("listed");
        record.volume = to;
        bundle.changes.push(Change::Snapshot(id, Some(record.clone())));
        let name = self.catalog.snapshot_name(&self.catalog.snapshots[&id]).to_string();
        let export = self.catalog.snapshot_exports[&id];
        self.disk_mut(export).name = name;
    }

    fn free_branch_name(&self, volume: VolumeId, name: &str) -> String {
        let epoch = self.catalog.epoch(volume);
        let room = name.len().min(crate::control::NAME_BYTES_MAX - 48);
        let stem = format!("{}-diverged-{epoch}", &name[..room]);
        let numbered = (2_u64..).map(|n| format!("{stem}-{n}"));
        let mut names = std::iter::once(stem.clone()).chain(numbered);
        names.find(|name| self.catalog.find_volume(name).is_err()).expect("there are many numbers")
    }

    /// The attempt that a command is of.
    fn attempt(&self, lineage: Lineage, token: ReceiveToken) -> Outcome<(VolumeId, &ReceivingRecord)> {
        let volume = self.catalog.find_lineage(lineage);
        let found = volume.and_then(|volume| {
            let receiving = self.catalog.links.get(&volume)?.receiving.as_ref()?;
            (receiving.token == token).then_some((volume, receiving))
        });
        found.ok_or_else(|| {
            ControlError::new(ErrorKind::Stale, "another session has taken over, or this one was given up")
        })
    }

    fn apply(
        &mut self,
        token: Token,
        lineage: Lineage,
        attempt: ReceiveToken,
        patches: Vec<Patch>,
        io: &mut Io<'_>,
    ) -> Outcome<()> {
        let (volume, receiving) = self.attempt(lineage, attempt)?;
        if receiving.staged.is_some() {
            return refuse(ErrorKind::BadValue, "all has come already".to_owned());
        }
        check_patches(&patches, receiving.size)?;
        self.check_durable(Some(volume))?;
        let export = self.volume_export(volume);
        let applying = Applying { token, left: patches.len(), error: None, written: SmallVec::new() };
        let key = self.applying.insert(applying);
        for patch in patches {
            self.apply_patch(export, key, patch, io);
        }
        Ok(())
    }

    /// A patch of an `Apply` has ended.
    pub(super) fn applied(&mut self, key: usize, error: Option<Errno>, io: &mut Io<'_>) {
        let applying = &mut self.applying[key];
        applying.error = applying.error.or(error);
        applying.left -= 1;
        if applying.left > 0 {
            return;
        }
        let Applying { token, error, written, .. } = self.applying.remove(key);
        // A confirmation comes soon. The disk would wait for it, and what comes meanwhile for the disk.
        for (file, range) in written {
            let length = range.end - range.start;
            if length <= WRITE_SOON_BYTES_MAX {
                self.writes_soon += 1;
                let kind = DiskOpKind::WriteSoon { offset: range.start, length };
                let file = self.pool.files()[file].file;
                io.submit(DiskOp { tag: TAG_WRITE_SOON, file, kind });
            }
        }
        self.answer(token, error.map_or(Ok(Answer::Done), |error| Err(apply_error(error))));
    }

    fn confirm(&mut self, token: Token, lineage: Lineage, attempt: ReceiveToken, cursor: u64) -> Outcome<()> {
        let (volume, receiving) = self.attempt(lineage, attempt)?;
        if cursor < receiving.cursor {
            let text = format!("the cursor goes back from {} to {cursor}", receiving.cursor);
            return refuse(ErrorKind::BadValue, text);
        }
        self.check_durable(Some(volume))?;
        let link = self.catalog.links.get_mut(&volume).expect("an attempt has a link");
        link.receiving.as_mut().expect("an attempt").cursor = cursor;
        let changes = self.link_changes(volume);
        self.commit_changes(token, vec![volume], changes);
        Ok(())
    }

    fn stage(
        &mut self,
        token: Token,
        lineage: Lineage,
        attempt: ReceiveToken,
        io: &mut Io<'_>,
    ) -> Outcome<Option<Answer>> {
        let (volume, receiving) = self.attempt(lineage, attempt)?;
        let staged = receiving.staged;
        self.check_durable(Some(volume))?;
        let snapshot = SnapshotName {
            volume: self.catalog.volumes[&volume].name.clone(),
            snapshot: receiving_name(&self.catalog.links[&volume]),
        };
        match staged {
            Some(id) if self.disk(self.catalog.snapshot_exports[&id]).published => Ok(Some(Answer::Done)),
            Some(_) => refuse(ErrorKind::Busy, "it is being staged".to_owned()),
            None if self.cuts.iter().any(|cut| cut.is_of(volume)) => {
                refuse(ErrorKind::Busy, "it is being staged".to_owned())
            }
            None => {
                self.begin_cut(token, vec![(volume, snapshot)], false, io);
                Ok(None)
            }
        }
    }

    /// A volume is being cut. If it is a replica, all has come: the snapshot stays unseen. Returns when it was taken.
    pub(super) fn staging(&mut self, volume: VolumeId, id: SnapshotId, bundle: &mut Bundle) -> Option<u64> {
        let receiving = self.catalog.links.get_mut(&volume)?.receiving.as_mut()?;
        receiving.staged = Some(id);
        let created_ms = receiving.created_ms;
        bundle.changes.extend(self.link_changes(volume));
        Some(created_ms)
    }

    fn pin_staged(&mut self, lineage: Lineage, attempt: ReceiveToken) -> Outcome<Answer> {
        let (_, receiving) = self.attempt(lineage, attempt)?;
        match receiving.staged {
            Some(id) => self.pin_snapshot(id),
            None => refuse(ErrorKind::BadValue, "nothing was staged".to_owned()),
        }
    }

    fn publish_staged(&mut self, token: Token, staged: &[(Lineage, ReceiveToken)]) -> Outcome<()> {
        let mut volumes = Vec::new();
        for &(lineage, attempt) in staged {
            let (volume, receiving) = self.attempt(lineage, attempt)?;
            let Some(id) = receiving.staged else {
                return refuse(ErrorKind::BadValue, "nothing was staged".to_owned());
            };
            self.check_durable(Some(volume))?;
            if volumes.contains(&(volume, id)) {
                return refuse(ErrorKind::BadValue, "a volume is named twice".to_owned());
            }
            volumes.push((volume, id));
        }
        let names = volumes.iter().map(|(volume, _)| *volume).collect();
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), names) };
        for (volume, id) in volumes {
            self.publish_one(volume, id, &mut bundle);
        }
        self.commit_bundle(bundle);
        Ok(())
    }

    fn publish_one(&mut self, volume: VolumeId, id: SnapshotId, bundle: &mut Bundle) {
        let link = self.catalog.links.get_mut(&volume).expect("an attempt has a link");
        let receiving = link.receiving.take().expect("staged");
        link.published = Some(id);
        link.point = receiving.point;
        let origin = OriginRecord { uid: receiving.uid, point: receiving.point };
        self.catalog.add_origin(id, origin);
        bundle.changes.push(Change::Origin(id, Some(origin)));
        bundle.changes.extend(self.link_changes(volume));
        // It is seen when that is durable, not before.
        let export = self.catalog.snapshot_exports[&id];
        let name = self.catalog.snapshot_name(&self.catalog.snapshots[&id]).to_string();
        let disk = self.disk_mut(export);
        (disk.hidden, disk.published, disk.name) = (false, false, name);
        bundle.publishes.push(export);
    }

    fn abandon(&mut self, token: Token, lineage: Lineage, attempt: ReceiveToken) -> Outcome<()> {
        let (volume, _) = self.attempt(lineage, attempt)?;
        self.check_durable(Some(volume))?;
        let published = self.catalog.links[&volume].published;
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), Vec::new()) };
        self.reset_head(volume, published, None, &mut bundle);
        bundle.changes.extend(self.link_changes(volume));
        self.commit_bundle(bundle);
        self.reclaim_later();
        Ok(())
    }

    fn promote(&mut self, token: Token, name: &str) -> Outcome<()> {
        let volume = self.catalog.find_volume(name)?;
        if !self.catalog.is_replica(volume) {
            return refuse(ErrorKind::Refused, format!("{name:?} is no replica"));
        }
        self.check_durable(Some(volume))?;
        self.check_not_moving(volume, name)?;
        let link = self.catalog.links.get_mut(&volume).expect("a replica");
        // What was demoted and has not been sent anything is what it was.
        let diverged = std::mem::take(&mut link.diverged);
        let Some(published) = link.published.map(Some).or(diverged.then_some(None)) else {
            return refuse(ErrorKind::Refused, format!("{name:?}: no complete snapshot has come yet"));
        };
        (link.role, link.epoch) = (Role::Primary, link.epoch + 1);
        let mut bundle = Bundle { token: Some(token), ..Bundle::new(Vec::new(), Vec::new()) };
        if diverged {
            let export = self.volume_export(volume);
            let disk = self.disk_mut(export);
            (disk.hidden, disk.published) = (false, false);
            bundle.publishes.push(export);
            self.open_door(volume);
        } else {
            self.reset_head(volume, published, None, &mut bundle);
        }
        bundle.changes.extend(self.link_changes(volume));
        self.commit_bundle(bundle);
        self.reclaim_later();
        Ok(())
    }

    fn demote(&mut self, token: Token, name: &str, peer: HostId) -> Outcome<()> {
        let volume = self.catalog.find_volume(name)?;
        let export = self.unused_volume(volume, name)?;
        self.check_durable(Some(volume))?;
        if self.catalog.is_replica(volume) {
            return refuse(ErrorKind::Refused, format!("{name:?} is a replica already"));
        }
        let link = self.catalog.links.remove(&volume);
        let link = link.unwrap_or_else(|| self.catalog.first_link(volume, peer));
        let link = LinkRecord { role: Role::Replica, peer, diverged: true, ..link };
        self.catalog.links.insert(volume, link);
        self.forget_mirror(export);
        self.disk_mut(export).hidden = true;
        self.version += 1;
        self.close_doors(volume);
        let changes = self.link_changes(volume);
        self.commit_changes(token, vec![volume], changes);
        Ok(())
    }

    /// What is being received builds on some snapshots, and a replica shows its newest one.
    pub(super) fn check_not_needed(&self, id: SnapshotId, name: &SnapshotName) -> Outcome<()> {
        let mut receiving = self.catalog.links.values().filter_map(|link| link.receiving.as_ref());
        if receiving.any(|receiving| receiving.base == Some(id)) {
            return refuse(ErrorKind::Busy, format!("what is being received builds on {name}"));
        }
        let volume = self.catalog.snapshots[&id].volume;
        let newest = self.catalog.is_replica(volume) && self.catalog.links[&volume].published == Some(id);
        if newest && self.catalog.snapshots_of(volume).count() > 1 {
            // An older one would be shown instead.
            return refuse(ErrorKind::Refused, format!("{name} is the newest that the replica has"));
        }
        Ok(())
    }

    /// A snapshot is deleted: what is known of where it came from goes with it.
    pub(super) fn forget_received(&mut self, id: SnapshotId, bundle: &mut Bundle) {
        if self.catalog.remove_origin(id) {
            bundle.changes.push(Change::Origin(id, None));
        }
        let named = self.catalog.links.iter().find(|(_, link)| link.published == Some(id));
        if let Some(volume) = named.map(|(&volume, _)| volume) {
            self.catalog.links.get_mut(&volume).expect("found").published = None;
            bundle.changes.extend(self.link_changes(volume));
        }
    }

    /// What clients find under the volume's own name: its newest snapshot.
    pub fn replicas(&self) -> impl Iterator<Item = (ExportIndex, ExportInfo)> {
        let shown = self.served.iter().flatten().filter(|disk| disk.hidden && disk.is_volume());
        shown.filter_map(|disk| {
            let export = *self.catalog.snapshot_exports.get(&disk.shows?)?;
            Some((export, ExportInfo { name: disk.name.clone(), ..self.disk(export).info() }))
        })
    }
}

fn receiving_record(incoming: &Incoming, base: Option<SnapshotId>, name: String) -> ReceivingRecord {
    ReceivingRecord {
        uid: incoming.uid,
        token: incoming.token,
        point: incoming.point,
        base,
        size: incoming.size,
        created_ms: incoming.created_ms,
        name,
        cursor: 0,
        staged: None,
    }
}

fn receiving_name(link: &LinkRecord) -> String {
    link.receiving.as_ref().map_or_else(String::new, |receiving| receiving.name.clone())
}

fn check_patches(patches: &[Patch], size: u64) -> Outcome<()> {
    if patches.is_empty() || patches.len() > PATCHES_MAX {
        return refuse(ErrorKind::BadValue, format!("{} patches", patches.len()));
    }
    let sound =
        |patch: &Patch| patch.range().is_some_and(|range| range.start < range.end && range.end <= size);
    if !patches.iter().all(sound) {
        return refuse(ErrorKind::BadValue, format!("a patch outside of {size} bytes"));
    }
    Ok(())
}

fn apply_error(error: Errno) -> ControlError {
    match error {
        Errno::NoSpace => ControlError::new(ErrorKind::NoSpace, "the pool is full"),
        other => ControlError::new(ErrorKind::Io, format!("the pool cannot be written: {other:?}")),
    }
}
