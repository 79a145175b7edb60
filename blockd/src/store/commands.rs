//! Commands: volumes, snapshots and clones are made, changed and deleted.
//!
//! A command changes the catalog in memory and goes with the next commit; its answer comes when that is durable. A
//! crash before leaves nothing of it, a crash after all of it.
//!
//! **A cut** (snapshots of several volumes at one instant) first *holds* new changes of its volumes and waits for
//! those under way to end, a few milliseconds. Then, in one step without I/O: what is dirty becomes records of the
//! layers that close, new layers open, and the changes that were held go on, into the new layers. So every change
//! answered before the command came is in, none that began after its answer is, and for changes in between the cut
//! has one instant on all volumes.

use nbd_server::disk::ExportIndex;
use nbd_server::export::Io;

use super::commit::Bundle;
use super::{Store, Token};
use crate::catalog::format::{Change, LayerRecord, Role, RootRecord, SnapshotRecord, VolumeRecord};
use crate::control::{
    Answer, Control, ControlError, ErrorKind, Health, Pinned, SnapshotInfo, SnapshotName, StoreStatus,
    VolumeInfo, is_valid_name,
};
use crate::units::{
    BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex, LayerId, SIZE_UNIT_BYTES, SnapshotId, VOLUME_BYTES_MAX,
    VolumeId, cluster_count,
};

/// Snapshots that wait for the changes under way to end.
pub(super) struct Cut {
    token: Token,
    volumes: Vec<(VolumeId, SnapshotName)>,
    /// Mirrors have what it holds, and nothing else.
    mirrored: bool,
}

impl Cut {
    pub(super) fn is_of(&self, volume: VolumeId) -> bool {
        self.volumes.iter().any(|(other, _)| *other == volume)
    }
}

pub(super) type Outcome<T> = Result<T, ControlError>;

pub(super) fn refuse<T>(kind: ErrorKind, message: String) -> Outcome<T> {
    Err(ControlError::new(kind, message))
}

pub(super) fn check_name(name: &str) -> Outcome<()> {
    if is_valid_name(name) {
        return Ok(());
    }
    let text = format!("{name:?}: names have 1 to 255 of A-Z a-z 0-9 . _ - and begin with none of . -");
    refuse(ErrorKind::BadName, text)
}

pub(super) fn check_size(size: u64) -> Outcome<()> {
    if size > 0 && size <= VOLUME_BYTES_MAX && size.is_multiple_of(SIZE_UNIT_BYTES) {
        return Ok(());
    }
    let text = format!("{size} bytes: a size is a multiple of {SIZE_UNIT_BYTES}, not 0, and at most 256 TiB");
    refuse(ErrorKind::BadValue, text)
}

impl Store {
    /// Carries out a command. Its answer is found among [`Store::take_answers`], now or later.
    pub fn command(&mut self, token: Token, command: Control, io: &mut Io<'_>) {
        if self.stopping {
            return self.answer(token, refuse(ErrorKind::Stopping, "the daemon is stopping".to_owned()));
        }
        self.carry_out_or_defer(token, command, io);
        self.pump(io);
    }

    fn carry_out_or_defer(&mut self, token: Token, command: Control, io: &mut Io<'_>) {
        if self.meets_own_work(&command) {
            return self.deferred.push((token, command));
        }
        match self.carry_out(token, command, io) {
            Ok(None) => {}
            Ok(Some(answer)) => self.answer(token, Ok(answer)),
            Err(error) => self.answer(token, Err(error)),
        }
    }

    /// A volume without clients whose records are being moved: nobody who wants it deleted should be told that it is
    /// in use. The moves of a step end soon.
    fn meets_own_work(&self, command: &Control) -> bool {
        let name = match command {
            Control::DeleteVolume { name } | Control::RenameVolume { from: name, .. } => name,
            Control::Rollback { name } => &name.volume,
            Control::Replication(command) => {
                let export = self.replaces_head_of(command).map(|volume| self.volume_export(volume));
                return export.is_some_and(|export| self.disk(export).jobs > 0);
            }
            _ => return false,
        };
        let export = self.catalog.find_volume(name).map(|volume| self.volume_export(volume));
        export.is_ok_and(|export| self.clients(export) == 0 && self.disk(export).jobs > 0)
    }

    /// Commands that met the store's own work are tried again, in order of arrival.
    pub(super) fn retry_deferred(&mut self, io: &mut Io<'_>) {
        for (token, command) in std::mem::take(&mut self.deferred) {
            if self.stopping {
                self.answer(token, refuse(ErrorKind::Stopping, "the daemon is stopping".to_owned()));
            } else {
                self.carry_out_or_defer(token, command, io);
            }
        }
    }

    /// `Some`: the answer. `None`: it comes with a commit.
    fn carry_out(&mut self, token: Token, command: Control, io: &mut Io<'_>) -> Outcome<Option<Answer>> {
        match command {
            Control::CreateVolume { name, size } => self.create_volume(token, &name, size)?,
            Control::ResizeVolume { name, size } => self.resize_volume(token, &name, size)?,
            Control::RenameVolume { from, to } => self.rename_volume(token, &from, &to)?,
            Control::DeleteVolume { name } => self.delete_volume(token, &name)?,
            Control::CreateSnapshots { names } => self.request_cut(token, names, false, io)?,
            Control::DeleteSnapshot { name } => self.delete_snapshot(token, &name)?,
            Control::Rollback { name } => self.rollback(token, &name)?,
            Control::Clone { from, to } => self.clone_snapshot(token, &from, &to)?,
            Control::Hold { name, reason } => self.hold(token, &name, reason)?,
            Control::Release { name, reason } => self.release(token, &name, &reason)?,
            Control::ListVolumes => return Ok(Some(Answer::Volumes(self.list_volumes()))),
            Control::ListSnapshots { volume } => return self.list_snapshots(volume).map(Some),
            Control::Status => return Ok(Some(Answer::Status(Box::new(self.status())))),
            Control::Pin { name } => return self.pin(&name).map(Some),
            Control::KeepHashes { pin, hashes, roots } => self.keep_hashes(token, pin, hashes, roots)?,
            Control::Replication(command) => return self.replication(token, command, io),
            Control::Move(command) => self.move_volumes(token, command, io)?,
            Control::Mirror(command) => return self.mirror(token, command, io),
            Control::Unpin { pin } => {
                self.unpin(pin);
                return Ok(Some(Answer::Done));
            }
        }
        Ok(None)
    }

    pub(super) fn check_durable(&self, volume: Option<VolumeId>) -> Outcome<()> {
        if self.commits.meta_failed || volume.is_some_and(|volume| self.volume_failed(volume)) {
            let text =
                "an earlier sync has failed: nothing can be made durable until the daemon was restarted";
            return refuse(ErrorKind::Io, text.to_owned());
        }
        Ok(())
    }

    /// What follows another host changes with it only.
    pub(super) fn check_primary(&self, volume: VolumeId, name: &str) -> Outcome<()> {
        if self.catalog.is_replica(volume) {
            return refuse(
                ErrorKind::Refused,
                format!("{name:?} is a replica: promote it, or clone a snapshot"),
            );
        }
        Ok(())
    }

    pub(super) fn check_free_name(&self, name: &str) -> Outcome<()> {
        check_name(name)?;
        match self.catalog.find_volume(name) {
            Ok(_) => refuse(ErrorKind::Exists, format!("there is a volume {name:?} already")),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn volume_export(&self, volume: VolumeId) -> ExportIndex {
        self.catalog.volume_exports[&volume]
    }

    /// The export of a volume that nobody uses.
    pub(super) fn unused_volume(&self, volume: VolumeId, name: &str) -> Outcome<ExportIndex> {
        let export = self.volume_export(volume);
        self.check_not_moving(volume, name)?;
        let clients = self.clients(export);
        if clients > 0 || self.disk(export).jobs > 0 {
            return refuse(ErrorKind::Busy, format!("{name:?} has {clients} clients"));
        }
        Ok(export)
    }

    pub(super) fn store_change(&self) -> Change {
        Change::Store(self.catalog.store.clone())
    }

    pub(super) fn volume_change(&self, volume: VolumeId) -> Change {
        Change::Volume(volume, self.catalog.volumes.get(&volume).cloned())
    }

    pub(super) fn commit_changes(&mut self, token: Token, volumes: Vec<VolumeId>, changes: Vec<Change>) {
        self.commit_bundle(Bundle { token: Some(token), ..Bundle::new(changes, volumes) });
    }

    pub(super) fn new_head(&mut self, volume: VolumeId, parent: Option<LayerId>) -> (LayerId, Change) {
        let head = self.catalog.new_layer();
        let record = LayerRecord { parent, volume };
        self.catalog.layers.insert(head, record);
        (head, Change::Layer(head, Some(record)))
    }

    pub(super) fn add_volume(
        &mut self,
        name: &str,
        size: u64,
        parent: Option<LayerId>,
    ) -> (ExportIndex, Vec<Change>) {
        let volume = self.catalog.new_volume();
        let (head, layer) = self.new_head(volume, parent);
        let record = VolumeRecord { name: name.to_owned(), size, head, created_ms: self.wall_ms() };
        self.catalog.volumes.insert(volume, record);
        let export = self.serve_volume(volume);
        (export, vec![self.store_change(), layer, self.volume_change(volume)])
    }

    fn create_volume(&mut self, token: Token, name: &str, size: u64) -> Outcome<()> {
        self.check_free_name(name)?;
        check_size(size)?;
        self.check_durable(None)?;
        let (export, changes) = self.add_volume(name, size, None);
        let bundle =
            Bundle { token: Some(token), publishes: vec![export], ..Bundle::new(changes, Vec::new()) };
        self.commit_bundle(bundle);
        Ok(())
    }

    fn resize_volume(&mut self, token: Token, name: &str, size: u64) -> Outcome<()> {
        let volume = self.catalog.find_volume(name)?;
        check_size(size)?;
        self.check_primary(volume, name)?;
        self.check_not_moving(volume, name)?;
        self.check_durable(Some(volume))?;
        let record = self.catalog.volumes.get_mut(&volume).expect("found");
        if size < record.size {
            let text = format!("{name:?} has {} bytes: volumes grow, they do not shrink", record.size);
            return refuse(ErrorKind::BadValue, text);
        }
        record.size = size;
        let export = self.volume_export(volume);
        let disk = self.disk_mut(export);
        disk.size = size;
        if disk.loaded().is_some() {
            disk.map_mut().grow(cluster_count(size));
        }
        self.version += 1;
        let change = self.volume_change(volume);
        self.commit_changes(token, vec![volume], vec![change]);
        Ok(())
    }

    fn rename_volume(&mut self, token: Token, from: &str, to: &str) -> Outcome<()> {
        let volume = self.catalog.find_volume(from)?;
        self.check_free_name(to)?;
        self.check_durable(Some(volume))?;
        let export = self.unused_volume(volume, from)?;
        self.catalog.volumes.get_mut(&volume).expect("found").name = to.to_owned();
        self.disk_mut(export).name = to.to_owned();
        let snapshots: Vec<SnapshotId> = self.catalog.snapshots_of(volume).map(|(id, _)| id).collect();
        for snapshot in snapshots {
            let name = self.catalog.snapshot_name(&self.catalog.snapshots[&snapshot]).to_string();
            let export = self.catalog.snapshot_exports[&snapshot];
            self.disk_mut(export).name = name;
        }
        self.version += 1;
        let change = self.volume_change(volume);
        self.commit_changes(token, vec![volume], vec![change]);
        Ok(())
    }

    /// What of the head is not committed becomes part of the changes: afterwards its records are complete.
    pub(super) fn seal(&mut self, export: ExportIndex) -> Vec<Change> {
        let disk = self.disk_mut(export);
        if disk.dirty.is_empty() { Vec::new() } else { disk.take_dirty() }
    }

    fn delete_volume(&mut self, token: Token, name: &str) -> Outcome<()> {
        let volume = self.catalog.find_volume(name)?;
        let export = self.unused_volume(volume, name)?;
        let snapshots = self.catalog.snapshots_of(volume).count();
        if snapshots > 0 {
            return refuse(ErrorKind::Refused, format!("{name:?} has {snapshots} snapshots"));
        }
        self.check_durable(Some(volume))?;
        let mut changes = self.seal(export);
        let mut bundle = Bundle::new(Vec::new(), Vec::new());
        self.drop_staged(volume, &mut bundle);
        if self.catalog.links.remove(&volume).is_some() {
            changes.push(Change::Link(volume, None));
        }
        if self.catalog.moves.remove(&volume).is_some() {
            changes.push(Change::Move(volume, None));
        }
        let head = self.catalog.volumes.remove(&volume).expect("found").head;
        self.catalog.volume_exports.remove(&volume);
        self.unserve(export);
        self.close_doors(volume);
        changes.push(self.volume_change(volume));
        bundle.changes.append(&mut changes);
        bundle.settles.push(head);
        self.commit_bundle(Bundle { token: Some(token), ..bundle });
        self.reclaim_later();
        Ok(())
    }

    pub(super) fn request_cut(
        &mut self,
        token: Token,
        names: Vec<SnapshotName>,
        mirrored: bool,
        io: &mut Io<'_>,
    ) -> Outcome<()> {
        if names.is_empty() {
            return refuse(ErrorKind::BadValue, "no snapshot is named".to_owned());
        }
        let mut volumes: Vec<(VolumeId, SnapshotName)> = Vec::new();
        for name in names {
            let volume = self.check_new_snapshot(&name)?;
            if volumes.iter().any(|(other, _)| *other == volume) {
                return refuse(ErrorKind::BadValue, format!("{:?} is named twice", name.volume));
            }
            volumes.push((volume, name));
        }
        self.begin_cut(token, volumes, mirrored, io);
        Ok(())
    }

    /// The names are free, and nothing forbids it.
    pub(super) fn begin_cut(
        &mut self,
        token: Token,
        volumes: Vec<(VolumeId, SnapshotName)>,
        mirrored: bool,
        io: &mut Io<'_>,
    ) {
        for (volume, _) in &volumes {
            let export = self.volume_export(*volume);
            self.disk_mut(export).holds += 1;
        }
        self.cuts.push(Cut { token, volumes, mirrored });
        self.perform_cuts(io);
    }

    fn check_new_snapshot(&self, name: &SnapshotName) -> Outcome<VolumeId> {
        check_name(&name.snapshot)?;
        let volume = self.catalog.find_volume(&name.volume)?;
        self.check_primary(volume, &name.volume)?;
        self.check_durable(Some(volume))?;
        let pending = self.cuts.iter().flat_map(|cut| &cut.volumes).any(|(_, other)| other == name);
        if pending || self.catalog.find_snapshot(name).is_ok() {
            return refuse(ErrorKind::Exists, format!("there is a snapshot {name} already"));
        }
        Ok(volume)
    }

    /// Cuts whose volumes have nothing under way are made.
    pub(super) fn perform_cuts(&mut self, io: &mut Io<'_>) {
        let mut at = 0;
        while at < self.cuts.len() {
            let exports: Vec<ExportIndex> =
                self.cuts[at].volumes.iter().map(|(volume, _)| self.volume_export(*volume)).collect();
            let mirrored = self.cuts[at].mirrored;
            let reflected: Vec<_> = exports.iter().map(|&export| self.is_reflected(export)).collect();
            let behind = mirrored && reflected.contains(&Some(false));
            if behind || exports.iter().any(|&export| self.disk(export).is_changing()) {
                at += 1;
                continue;
            }
            let cut = self.cuts.remove(at);
            if mirrored && reflected.contains(&None) {
                self.answer(cut.token, refuse(ErrorKind::Stale, "the mirror has ended".to_owned()));
            } else {
                self.perform_cut(&cut, io);
            }
            for export in exports {
                self.disk_mut(export).holds -= 1;
                self.admit(export, io);
            }
        }
    }

    fn perform_cut(&mut self, cut: &Cut, io: &mut Io<'_>) {
        if let Some(Err(error)) =
            cut.volumes.iter().map(|(volume, _)| self.check_durable(Some(*volume))).find(Result::is_err)
        {
            return self.answer(cut.token, Err(error));
        }
        let volumes = cut.volumes.iter().map(|(volume, _)| *volume).collect();
        let mut bundle = Bundle { token: Some(cut.token), ..Bundle::new(Vec::new(), volumes) };
        for (volume, name) in &cut.volumes {
            self.close_layer(*volume, name, &mut bundle);
            self.foresight.cut(*volume, self.now);
        }
        bundle.changes.push(self.store_change());
        self.commit_bundle(bundle);
        if cut.mirrored {
            for (volume, name) in &cut.volumes {
                self.mirrored_cut(self.volume_export(*volume), name, io);
            }
        }
    }

    /// The head layer of a volume is closed under a snapshot's name, and a new one opened over it.
    fn close_layer(&mut self, volume: VolumeId, name: &SnapshotName, bundle: &mut Bundle) {
        let export = self.volume_export(volume);
        bundle.changes.append(&mut self.seal(export));
        let record = &self.catalog.volumes[&volume];
        let (closed, size) = (record.head, record.size);
        let (head, layer) = self.new_head(volume, Some(closed));
        self.catalog.volumes.get_mut(&volume).expect("it is being cut").head = head;
        let id = self.catalog.new_snapshot();
        let created_ms = self.staging(volume, id, bundle).unwrap_or_else(|| self.wall_ms());
        let name = name.snapshot.clone();
        let snapshot = SnapshotRecord { volume, name, layer: closed, size, created_ms, holds: Vec::new() };
        self.catalog.snapshots.insert(id, snapshot.clone());
        bundle.publishes.push(self.serve_snapshot(id));
        bundle.settles.push(closed);
        let disk = self.disk_mut(export);
        (disk.top, disk.has_parent) = (head, true);
        if disk.loaded().is_some() {
            disk.map_mut().cut();
        }
        bundle.changes.extend([layer, self.volume_change(volume), Change::Snapshot(id, Some(snapshot))]);
    }

    fn delete_snapshot(&mut self, token: Token, name: &SnapshotName) -> Outcome<()> {
        let id = self.catalog.find_snapshot(name)?;
        let record = &self.catalog.snapshots[&id];
        if !record.holds.is_empty() {
            return refuse(ErrorKind::Refused, format!("{name} is held: {}", record.holds.join(", ")));
        }
        let export = self.catalog.snapshot_exports[&id];
        if self.disk(export).clients > 0 || self.disk(export).jobs > 0 {
            return refuse(ErrorKind::Busy, format!("{name} has {} clients", self.disk(export).clients));
        }
        self.check_not_needed(id, name)?;
        self.check_durable(None)?;
        let layer = self.catalog.snapshots.remove(&id).expect("found").layer;
        self.catalog.snapshot_exports.remove(&id);
        self.unserve(export);
        // Until that is durable the layer must stay as it is: a crash would bring the snapshot back.
        let mut bundle = Bundle::new(vec![Change::Snapshot(id, None)], Vec::new());
        self.forget_received(id, &mut bundle);
        self.commit_bundle(Bundle { token: Some(token), settles: vec![layer], ..bundle });
        self.reclaim_later();
        Ok(())
    }

    fn rollback(&mut self, token: Token, name: &SnapshotName) -> Outcome<()> {
        let snapshot = self.catalog.find_snapshot(name)?;
        let record = self.catalog.snapshots[&snapshot].clone();
        let volume = record.volume;
        self.check_primary(volume, &name.volume)?;
        let old = self.unused_volume(volume, &name.volume)?;
        self.check_durable(Some(volume))?;
        let mut changes = self.seal(old);
        let (head, layer) = self.new_head(volume, Some(record.layer));
        let entry = self.catalog.volumes.get_mut(&volume).expect("found");
        (entry.head, entry.size) = (head, record.size);
        // Under a new index: the old map is of the old head.
        let dropped = self.disk(old).top;
        self.unserve(old);
        let export = self.serve_volume(volume);
        changes.extend([self.store_change(), layer, self.volume_change(volume)]);
        let bundle = Bundle::new(changes, Vec::new());
        let (token, publishes, settles) = (Some(token), vec![export], vec![dropped]);
        self.commit_bundle(Bundle { token, publishes, settles, ..bundle });
        self.reclaim_later();
        Ok(())
    }

    fn clone_snapshot(&mut self, token: Token, from: &SnapshotName, to: &str) -> Outcome<()> {
        let snapshot = self.catalog.find_snapshot(from)?;
        self.check_free_name(to)?;
        let record = self.catalog.snapshots[&snapshot].clone();
        self.check_durable(Some(record.volume))?;
        let (export, changes) = self.add_volume(to, record.size, Some(record.layer));
        let bundle = Bundle::new(changes, vec![record.volume]);
        self.commit_bundle(Bundle { token: Some(token), publishes: vec![export], ..bundle });
        Ok(())
    }

    fn hold(&mut self, token: Token, name: &SnapshotName, reason: String) -> Outcome<()> {
        check_name(&reason)?;
        let id = self.catalog.find_snapshot(name)?;
        self.check_durable(None)?;
        let record = self.catalog.snapshots.get_mut(&id).expect("found");
        if !record.holds.contains(&reason) {
            record.holds.push(reason);
        }
        let change = Change::Snapshot(id, Some(record.clone()));
        self.commit_changes(token, Vec::new(), vec![change]);
        Ok(())
    }

    fn release(&mut self, token: Token, name: &SnapshotName, reason: &str) -> Outcome<()> {
        let id = self.catalog.find_snapshot(name)?;
        self.check_durable(None)?;
        let record = self.catalog.snapshots.get_mut(&id).expect("found");
        let Some(at) = record.holds.iter().position(|hold| hold == reason) else {
            return refuse(ErrorKind::NotFound, format!("{name} is not held for {reason:?}"));
        };
        record.holds.remove(at);
        let change = Change::Snapshot(id, Some(record.clone()));
        self.commit_changes(token, Vec::new(), vec![change]);
        Ok(())
    }

    fn list_volumes(&self) -> Vec<VolumeInfo> {
        let mut volumes: Vec<VolumeInfo> =
            self.catalog.volumes.keys().map(|&id| self.volume_info(id)).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    fn volume_info(&self, id: VolumeId) -> VolumeInfo {
        let record = &self.catalog.volumes[&id];
        let disk = self.disk(self.volume_export(id));
        let origin = self.catalog.origin(id).map(|id| &self.catalog.snapshots[&id]);
        VolumeInfo {
            name: record.name.clone(),
            size: record.size,
            mapped_bytes: disk.loaded().map(|map| map.visible_blocks() * BLOCK_BYTES),
            own_bytes: disk.loaded().map(|map| map.head_clusters() * CLUSTER_BYTES),
            snapshots: self.catalog.snapshots_of(id).count() as u64,
            clients: self.clients(self.volume_export(id)),
            origin: origin.map(|record| self.catalog.snapshot_name(record).to_string()),
            created_ms: record.created_ms,
            health: if self.commits.meta_failed { Health::SyncFailed } else { disk.health() },
            role: self.catalog.links.get(&id).map_or(Role::Primary, |link| link.role),
            epoch: self.catalog.epoch(id),
        }
    }

    fn list_snapshots(&self, volume: Option<String>) -> Outcome<Answer> {
        let volume = volume.map(|name| self.catalog.find_volume(&name)).transpose()?;
        let wanted = |id: SnapshotId, record: &SnapshotRecord| {
            volume.is_none_or(|volume| record.volume == volume)
                && self.catalog.staged_of(record.volume) != Some(id)
        };
        let found = self.catalog.snapshots.iter().filter(|(id, record)| wanted(**id, record));
        Ok(Answer::Snapshots(found.map(|(&id, record)| self.snapshot_info(id, record)).collect()))
    }

    fn snapshot_info(&self, id: SnapshotId, record: &SnapshotRecord) -> SnapshotInfo {
        let name = self.catalog.snapshot_name(record);
        let clones = self
            .catalog
            .volumes
            .iter()
            .filter(|(volume, _)| **volume != record.volume && self.catalog.origin(**volume) == Some(id));
        SnapshotInfo {
            volume: name.volume,
            name: name.snapshot,
            sequence: u64::from(id.0),
            size: record.size,
            created_ms: record.created_ms,
            holds: record.holds.clone(),
            clones: clones.map(|(_, volume)| volume.name.clone()).collect(),
            clients: u64::from(self.disk(self.catalog.snapshot_exports[&id]).clients),
            uid: self.catalog.uid(id).to_string(),
        }
    }

    fn status(&self) -> StoreStatus {
        let mut counters = self.counters;
        (counters.commits, counters.syncs) = (self.commits.durable_count, self.commits.syncs);
        StoreStatus {
            pool_bytes: self.pool.capacity() * CLUSTER_BYTES,
            used_bytes: self.pool.used() * CLUSTER_BYTES,
            pending_free_bytes: self.pool.pending_free() * CLUSTER_BYTES,
            commit: self.commits.last(),
            uncommitted: self.dirty_records() as u64,
            layers_to_reclaim: self.reclaimable().len() as u64,
            volumes: self.catalog.volumes.len() as u64,
            snapshots: self.catalog.snapshots.len() as u64,
            clients: self.served.iter().flatten().map(|disk| u64::from(disk.clients)).sum(),
            counters,
            recent_log: self.recent.is_kept(),
            health: self.health(),
        }
    }

    fn pin(&mut self, name: &SnapshotName) -> Outcome<Answer> {
        self.pin_snapshot(self.catalog.find_snapshot(name)?)
    }

    pub(super) fn pin_snapshot(&mut self, id: SnapshotId) -> Outcome<Answer> {
        let record = &self.catalog.snapshots[&id];
        let name = self.catalog.snapshot_name(record);
        let (size, chain) = (record.size, self.catalog.chain(record.layer));
        let published = self.disk(self.catalog.snapshot_exports[&id]).published;
        // Being packed, or merged when a sync failed and gave that up: some of the records are still to come.
        let unsettled = chain.iter().any(|layer| self.commits.is_unsettled(*layer));
        let moved = self.reclaim.touches(&chain);
        if moved {
            self.reclaim.yield_at(self.now);
        }
        if !published || unsettled || moved {
            return refuse(
                ErrorKind::Busy,
                format!("layers of {name} are being merged or packed: try again"),
            );
        }
        let pin = self.pins.insert(chain.clone()) as u64;
        Ok(Answer::Pinned(Pinned { pin, chain, size }))
    }

    fn keep_hashes(
        &mut self,
        token: Token,
        pin: u64,
        hashes: Vec<(LayerId, ClusterIndex, [u8; 32])>,
        roots: Vec<(LayerId, RootRecord)>,
    ) -> Outcome<()> {
        let pinned = usize::try_from(pin).ok().and_then(|pin| self.pins.get(pin));
        let is_pinned = |layer: &LayerId| pinned.is_some_and(|chain| chain.contains(layer));
        let layers = hashes.iter().map(|(layer, ..)| layer).chain(roots.iter().map(|(layer, _)| layer));
        if !layers.into_iter().all(is_pinned) {
            return refuse(ErrorKind::BadValue, "hashes of layers that are not pinned".to_owned());
        }
        self.check_durable(None)?;
        let clusters = hashes.into_iter().map(|(layer, at, hash)| Change::Hash(layer, at, Some(hash)));
        let roots = roots.into_iter().map(|(layer, root)| Change::Root(layer, Some(root)));
        self.commit_changes(token, Vec::new(), clusters.chain(roots).collect());
        Ok(())
    }

    fn unpin(&mut self, pin: u64) {
        if let Some(pin) = usize::try_from(pin).ok().filter(|&pin| self.pins.contains(pin)) {
            self.pins.remove(pin);
            self.reclaim_later();
        }
    }
}
