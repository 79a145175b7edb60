//! What volumes and snapshots are called on every host.
//!
//! What was made here is named by the store and a number, which needs no record; what came from elsewhere keeps its name.

use std::collections::{BTreeMap, BTreeSet};

use super::Store;
use super::catalog::Catalog;
use super::commands::Outcome;
use super::replica::FIRST_EPOCH;
use crate::catalog::format::{LinkRecord, OriginRecord, Point, Role};
use crate::control::replication::{SnapshotIdentity, VolumeIdentity};
use crate::control::{Answer, SnapshotName};
use crate::units::{HostId, LayerId, Lineage, SnapshotId, SnapshotUid, VolumeId};

/// Ancestors of a volume that are told of.
const ANCESTORS_MAX: usize = 64;

/// The names that this store gives, and those that came with what it received.
pub(super) struct Names {
    prefix: [u8; 12],
    /// Two hosts may have sent snapshots of the same name, if one of them lies.
    received: BTreeSet<(SnapshotUid, SnapshotId)>,
}

impl Names {
    pub(super) fn new(store: [u8; 16], origins: &BTreeMap<SnapshotId, OriginRecord>) -> Self {
        let hash = blake3::derive_key("blockd 2026 names of volumes and snapshots", &store);
        let prefix = *hash.first_chunk().expect("32 bytes have 12");
        Self { prefix, received: origins.iter().map(|(&id, origin)| (origin.uid, id)).collect() }
    }

    fn own(&self, number: u32) -> [u8; 16] {
        let mut name = [0; 16];
        name[..12].copy_from_slice(&self.prefix);
        name[12..].copy_from_slice(&number.to_be_bytes());
        name
    }

    fn own_number(&self, name: [u8; 16]) -> Option<u32> {
        let (prefix, number) = name.split_first_chunk()?;
        let number = u32::from_be_bytes(number.try_into().ok()?);
        (*prefix == self.prefix).then_some(number)
    }
}

impl Catalog {
    pub(super) fn lineage(&self, volume: VolumeId) -> Lineage {
        self.links.get(&volume).map_or_else(|| Lineage(self.names.own(volume.0)), |link| link.lineage)
    }

    pub(super) fn epoch(&self, volume: VolumeId) -> u64 {
        self.links.get(&volume).map_or(FIRST_EPOCH, |link| link.epoch)
    }

    pub(super) fn find_lineage(&self, lineage: Lineage) -> Option<VolumeId> {
        let linked = self.links.iter().find(|(_, link)| link.lineage == lineage).map(|(&id, _)| id);
        let own = || self.names.own_number(lineage.0).map(VolumeId);
        let is_own = |id: &VolumeId| self.volumes.contains_key(id) && !self.links.contains_key(id);
        linked.or_else(|| own().filter(is_own))
    }

    /// What a volume is that has no record of it.
    pub(super) fn first_link(&self, volume: VolumeId, peer: HostId) -> LinkRecord {
        LinkRecord {
            lineage: self.lineage(volume),
            epoch: FIRST_EPOCH,
            role: Role::Primary,
            peer,
            diverged: false,
            published: None,
            point: Point::default(),
            receiving: None,
        }
    }

    pub(super) fn uid(&self, id: SnapshotId) -> SnapshotUid {
        self.origins.get(&id).map_or_else(|| SnapshotUid(self.names.own(id.0)), |origin| origin.uid)
    }

    /// A snapshot that is shown, of a volume that this peer has to do with. What other hosts call by the same name is not
    /// looked at: nobody can put his own snapshot in the place of theirs.
    pub(super) fn find_uid(&self, uid: SnapshotUid, peer: HostId) -> Option<SnapshotId> {
        let of_uid = (uid, SnapshotId(0))..=(uid, SnapshotId(u32::MAX));
        let received = self.names.received.range(of_uid).map(|(_, id)| *id);
        let own = self.names.own_number(uid.0).map(SnapshotId).filter(|id| !self.origins.contains_key(id));
        received.chain(own).find(|id| {
            self.snapshots.get(id).is_some_and(|record| {
                let link = self.links.get(&record.volume);
                link.is_some_and(|link| link.peer == peer) && self.staged_of(record.volume) != Some(*id)
            })
        })
    }

    pub(super) fn add_origin(&mut self, id: SnapshotId, origin: OriginRecord) {
        self.names.received.insert((origin.uid, id));
        self.origins.insert(id, origin);
    }

    /// Whether there was one.
    pub(super) fn remove_origin(&mut self, id: SnapshotId) -> bool {
        let removed = self.origins.remove(&id);
        if let Some(origin) = removed {
            self.names.received.remove(&(origin.uid, id));
        }
        removed.is_some()
    }

    pub(super) fn point(&self, id: SnapshotId, volume: VolumeId) -> Point {
        let own = || Point { epoch: self.epoch(volume), sequence: u64::from(id.0) };
        self.origins.get(&id).map_or_else(own, |origin| origin.point)
    }
}

impl Store {
    pub(super) fn identify(&self, name: Option<&str>) -> Outcome<Answer> {
        let volumes = match name {
            Some(name) => vec![self.catalog.find_volume(name)?],
            None => self.catalog.volumes.keys().copied().collect(),
        };
        let named = self.named_layers();
        let mut identities: Vec<_> = volumes.into_iter().map(|id| self.identity(id, &named)).collect();
        identities.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Answer::Identities(identities))
    }

    /// Snapshots by their layers.
    fn named_layers(&self) -> BTreeMap<LayerId, SnapshotId> {
        let seen = |(id, record): &(&SnapshotId, &crate::catalog::format::SnapshotRecord)| {
            self.catalog.staged_of(record.volume) != Some(**id)
        };
        self.catalog.snapshots.iter().filter(seen).map(|(&id, record)| (record.layer, id)).collect()
    }

    fn identity(&self, id: VolumeId, named: &BTreeMap<LayerId, SnapshotId>) -> VolumeIdentity {
        let catalog = &self.catalog;
        let record = &catalog.volumes[&id];
        let link = catalog.links.get(&id);
        let receiving = link.and_then(|link| link.receiving.clone());
        let replica = link.filter(|link| link.role == Role::Replica);
        let name = |id: SnapshotId| catalog.snapshot_name(&catalog.snapshots[&id]);
        VolumeIdentity {
            name: record.name.clone(),
            lineage: catalog.lineage(id),
            epoch: catalog.epoch(id),
            role: link.map_or(Role::Primary, |link| link.role),
            peer: replica.map(|link| link.peer),
            size: record.size,
            published: replica.and_then(|link| link.published).map(name),
            point: link.map_or_else(Point::default, |link| link.point),
            diverged: link.is_some_and(|link| link.diverged),
            receiving_base: receiving.as_ref().and_then(|r| r.base).map(|id| catalog.uid(id)),
            receiving,
            snapshots: catalog
                .snapshots_of(id)
                .map(|(snapshot, _)| self.snapshot_identity(snapshot))
                .collect(),
            ancestors: self.ancestors(id, named),
        }
    }

    fn snapshot_identity(&self, id: SnapshotId) -> SnapshotIdentity {
        let record = &self.catalog.snapshots[&id];
        SnapshotIdentity {
            name: record.name.clone(),
            uid: self.catalog.uid(id),
            point: self.catalog.point(id, record.volume),
            size: record.size,
            created_ms: record.created_ms,
        }
    }

    fn ancestors(
        &self,
        volume: VolumeId,
        named: &BTreeMap<LayerId, SnapshotId>,
    ) -> Vec<(SnapshotUid, SnapshotName)> {
        let chain = self.catalog.chain(self.catalog.volumes[&volume].head);
        let snapshots = chain.iter().filter_map(|layer| named.get(layer));
        let foreign = snapshots.filter(|id| self.catalog.snapshots[id].volume != volume);
        let name = |id: &SnapshotId| {
            (self.catalog.uid(*id), self.catalog.snapshot_name(&self.catalog.snapshots[id]))
        };
        foreign.take(ANCESTORS_MAX).map(name).collect()
    }

    pub(super) fn find_identity(&self, lineage: Lineage) -> Answer {
        let found = self.catalog.find_lineage(lineage);
        Answer::Identities(found.map(|id| self.identity(id, &BTreeMap::new())).into_iter().collect())
    }

    pub(super) fn locate(&self, uids: &[SnapshotUid], peer: HostId) -> Vec<(SnapshotUid, SnapshotName)> {
        let found = uids.iter().filter_map(|&uid| {
            let id = self.catalog.find_uid(uid, peer)?;
            Some((uid, self.catalog.snapshot_name(&self.catalog.snapshots[&id])))
        });
        found.collect()
    }
}
