//! Volumes, snapshots and layers as they are: the metadata store's small records, in memory.
//!
//! Changes are made here first and go with the next commit; whoever asked is answered when that is durable.

use std::collections::BTreeMap;

use nbd_server::disk::ExportIndex;

use super::identity::Names;
use crate::catalog::format::{
    LayerRecord, LinkRecord, MoveRecord, OriginRecord, Role, SnapshotRecord, StoreRecord, VolumeRecord,
};
use crate::catalog::load::Loaded;
use crate::control::{ControlError, ErrorKind, SnapshotName};
use crate::units::{LayerId, SnapshotId, VolumeId};

/// See the module.
pub(super) struct Catalog {
    pub(super) names: Names,
    pub(super) store: StoreRecord,
    pub(super) volumes: BTreeMap<VolumeId, VolumeRecord>,
    pub(super) snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
    pub(super) layers: BTreeMap<LayerId, LayerRecord>,
    pub(super) links: BTreeMap<VolumeId, LinkRecord>,
    pub(super) origins: BTreeMap<SnapshotId, OriginRecord>,
    pub(super) moves: BTreeMap<VolumeId, MoveRecord>,
    /// Where each is served.
    pub(super) volume_exports: BTreeMap<VolumeId, ExportIndex>,
    pub(super) snapshot_exports: BTreeMap<SnapshotId, ExportIndex>,
}

impl Catalog {
    pub(super) fn new(loaded: Loaded) -> Self {
        Self {
            names: Names::new(loaded.store.identity, &loaded.origins),
            store: loaded.store,
            volumes: loaded.volumes,
            snapshots: loaded.snapshots,
            layers: loaded.layers,
            links: loaded.links,
            origins: loaded.origins,
            moves: loaded.moves,
            volume_exports: BTreeMap::new(),
            snapshot_exports: BTreeMap::new(),
        }
    }

    pub(super) fn find_volume(&self, name: &str) -> Result<VolumeId, ControlError> {
        let found = self.volumes.iter().find(|(_, record)| record.name == name);
        found
            .map(|(&id, _)| id)
            .ok_or_else(|| ControlError::new(ErrorKind::NotFound, format!("there is no volume {name:?}")))
    }

    pub(super) fn find_snapshot(&self, name: &SnapshotName) -> Result<SnapshotId, ControlError> {
        let volume = self.find_volume(&name.volume)?;
        let found = self.snapshots_of(volume).find(|(_, r)| r.name == name.snapshot);
        found
            .map(|(id, _)| id)
            .ok_or_else(|| ControlError::new(ErrorKind::NotFound, format!("there is no snapshot {name}")))
    }

    /// A layer and its ancestors, newest first.
    pub(super) fn chain(&self, top: LayerId) -> Vec<LayerId> {
        let mut chain = vec![top];
        while let Some(parent) = self.layers.get(chain.last().expect("not empty")).and_then(|l| l.parent) {
            chain.push(parent);
        }
        chain
    }

    pub(super) fn is_head(&self, layer: LayerId) -> Option<VolumeId> {
        self.volumes.iter().find(|(_, record)| record.head == layer).map(|(&id, _)| id)
    }

    /// Those that there are for anybody else: what was staged is not.
    pub(super) fn snapshots_of(
        &self,
        volume: VolumeId,
    ) -> impl Iterator<Item = (SnapshotId, &SnapshotRecord)> {
        let staged = self.staged_of(volume);
        let own = self.snapshots.iter().filter(move |(_, r)| r.volume == volume).map(|(&id, r)| (id, r));
        own.filter(move |(id, _)| Some(*id) != staged)
    }

    /// What has come and whose root was not compared yet.
    pub(super) fn staged_of(&self, volume: VolumeId) -> Option<SnapshotId> {
        self.links.get(&volume)?.receiving.as_ref()?.staged
    }

    pub(super) fn is_replica(&self, volume: VolumeId) -> bool {
        self.links.get(&volume).is_some_and(|link| link.role == Role::Replica)
    }

    pub(super) fn new_volume(&mut self) -> VolumeId {
        let id = self.store.next_volume;
        self.store.next_volume = VolumeId(id.0.checked_add(1).expect("fewer volumes than 2^32"));
        id
    }

    pub(super) fn new_layer(&mut self) -> LayerId {
        let id = self.store.next_layer;
        self.store.next_layer = LayerId(id.0.checked_add(1).expect("fewer layers than 2^32"));
        id
    }

    pub(super) fn new_snapshot(&mut self) -> SnapshotId {
        let id = self.store.next_snapshot;
        self.store.next_snapshot = SnapshotId(id.0.checked_add(1).expect("fewer snapshots than 2^32"));
        id
    }

    pub(super) fn snapshot_name(&self, record: &SnapshotRecord) -> SnapshotName {
        let volume = self.volumes.get(&record.volume).map_or_else(String::new, |volume| volume.name.clone());
        SnapshotName { volume, snapshot: record.name.clone() }
    }

    /// The snapshot whose layer is nearest below the volume's head and was not taken of the volume itself, or was
    /// before a rollback: where its data come from.
    pub(super) fn origin(&self, volume: VolumeId) -> Option<SnapshotId> {
        let head = self.volumes.get(&volume)?.head;
        let foreign = |layer: &LayerId| self.layers.get(layer).is_some_and(|record| record.volume != volume);
        let base = self.chain(head).into_iter().find(foreign)?;
        self.snapshots.iter().find(|(_, record)| record.layer == base).map(|(&id, _)| id)
    }
}
