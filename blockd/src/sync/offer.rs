//! What a source offers of its volumes.

use super::source::Brought;
use super::wire::{CANDIDATES_MAX, OfferedVolume};
use crate::control::replication::{SnapshotIdentity, VolumeIdentity};
use crate::control::{ControlError, ErrorKind, SnapshotName};
use crate::units::SnapshotUid;

/// Snapshots of other volumes that may be copied from.
const TWINS_MAX: usize = 16;

/// A volume to be offered, and the names of what is offered with it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// For the session.
    pub brought: Brought,
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The candidates, in their order.
    pub candidates: Vec<SnapshotName>,
}

impl Offer {
    /// The name of a candidate.
    pub fn candidate(&self, uid: SnapshotUid) -> Option<&SnapshotName> {
        let place = self.brought.offer.candidates.iter().position(|candidate| *candidate == uid)?;
        self.candidates.get(place)
    }
}

/// Offers a snapshot of a volume, to be called `target` where it does not exist yet. `all` are the store's volumes.
///
/// The differences may be against the volume's own snapshots, the latest first, and those that it was cloned from; the
/// newest ones of other volumes are named to be copied from.
///
/// # Errors
/// `NotFound`.
pub fn offer(
    all: &[VolumeIdentity],
    snapshot: &SnapshotName,
    target: Option<&str>,
) -> Result<Offer, ControlError> {
    let missing = || ControlError::new(ErrorKind::NotFound, format!("there is no snapshot {snapshot}"));
    let volume = all.iter().find(|volume| volume.name == snapshot.volume).ok_or_else(missing)?;
    let named = volume.snapshots.iter().find(|other| other.name == snapshot.snapshot);
    let this = named.ok_or_else(missing)?;
    let name =
        |other: &SnapshotIdentity| SnapshotName { volume: volume.name.clone(), snapshot: other.name.clone() };
    let mut own: Vec<&SnapshotIdentity> =
        volume.snapshots.iter().filter(|other| other.uid != this.uid && other.size <= this.size).collect();
    // A rollback may have left later ones; what was taken last is likely to be nearest.
    own.sort_by_key(|other| std::cmp::Reverse(other.point));
    let own = own.into_iter().map(|other| (other.uid, name(other)));
    let ancestors = volume.ancestors.iter().cloned();
    let mut candidates: Vec<_> = own.take(CANDIDATES_MAX / 2).chain(ancestors).collect();
    let bases = candidates.len();
    candidates.extend(twins(all, volume, &candidates));
    let (uids, candidates) = candidates.into_iter().unzip();
    let offer = OfferedVolume {
        lineage: volume.lineage,
        volume: target.unwrap_or(&volume.name).to_owned(),
        uid: this.uid,
        point: this.point,
        name: this.name.clone(),
        size: this.size,
        created_ms: this.created_ms,
        candidates: uids,
    };
    Ok(Offer { brought: Brought { offer, bases }, snapshot: snapshot.clone(), candidates })
}

/// The newest snapshots of other volumes.
fn twins(
    all: &[VolumeIdentity],
    volume: &VolumeIdentity,
    named: &[(SnapshotUid, SnapshotName)],
) -> Vec<(SnapshotUid, SnapshotName)> {
    let others = all.iter().filter(|other| other.lineage != volume.lineage);
    let newest = others.filter_map(|other| {
        let newest = other.snapshots.iter().max_by_key(|snapshot| snapshot.point)?;
        let name = SnapshotName { volume: other.name.clone(), snapshot: newest.name.clone() };
        Some((newest.uid, name))
    });
    newest.filter(|(uid, _)| named.iter().all(|(known, _)| known != uid)).take(TWINS_MAX).collect()
}
