//! What is here of clusters that another host asks for, because they are damaged there. Blocking; without a network.
//!
//! Only who may have the snapshot is told anything of it: who has sent it, and to whom it was sent from here. To all
//! others it is as if there were none. What is sent was read and found right.

use super::carry::base;
use super::wire::{Code, Fetch, Found, Refusal};
use super::writing::{Place, refusal};
use crate::catalog::format::Role;
use crate::control::replication::Replication;
use crate::control::{Answer, Control, ControlError, Pinned, SnapshotName};
use crate::hash::{Value, cluster_value};
use crate::snapshot::{Changes, with_pin};
use crate::units::{ClusterIndex, cluster_count};

impl Place<'_> {
    /// What there is of each cluster, in their order. `peer_name` is what the host that asks is called here.
    ///
    /// # Errors
    /// `Busy`, `Failed`, `Stopping`.
    pub fn answer(&self, fetch: &Fetch, peer_name: &str) -> Result<Vec<(u32, Found)>, Refusal> {
        let missing = || fetch.clusters.iter().map(|(cluster, _)| (*cluster, Found::Missing)).collect();
        let Some(name) = self.entitled(fetch, peer_name)? else { return Ok(missing()) };
        let answers = self.patiently(|| {
            with_pin(self.submit, &name, |pinned| {
                let one =
                    |(cluster, value): &(u32, Value)| Ok((*cluster, self.one(pinned, *cluster, value)?));
                fetch.clusters.iter().map(one).collect::<Result<_, ControlError>>()
            })
        });
        match answers {
            // Deleted since.
            Err(refusal) if refusal.code == Code::BaseMismatch => Ok(missing()),
            answers => answers,
        }
    }

    /// The snapshot, if it is here and that host may have it.
    fn entitled(&self, fetch: &Fetch, peer_name: &str) -> Result<Option<SnapshotName>, Refusal> {
        let command = Replication::Find { lineage: fetch.lineage };
        let Answer::Identities(mut found) = self.command(Control::Replication(command))? else {
            return Ok(None);
        };
        let Some(volume) = found.pop() else { return Ok(None) };
        let Some(snapshot) = volume.snapshots.into_iter().find(|snapshot| snapshot.uid == fetch.uid) else {
            return Ok(None);
        };
        let name = SnapshotName { volume: volume.name, snapshot: snapshot.name };
        // It follows that host, or did before it was promoted.
        let command = Replication::Locate { uids: vec![fetch.uid], peer: self.peer };
        if let Answer::Located(located) = self.command(Control::Replication(command))?
            && located.iter().any(|(_, other)| *other == name)
        {
            return Ok(Some(name));
        }
        let brought = volume.role == Role::Primary && self.was_brought(&name.volume, peer_name)?;
        Ok(brought.then_some(name))
    }

    /// Whether a host has confirmed that it has a snapshot of this volume: the newest one that it has is held.
    fn was_brought(&self, volume: &str, peer_name: &str) -> Result<bool, Refusal> {
        let list = Control::ListSnapshots { volume: Some(volume.to_owned()) };
        let Answer::Snapshots(all) = self.command(list)? else { return Ok(false) };
        let base = base(peer_name);
        Ok(all.iter().any(|snapshot| snapshot.holds.contains(&base)))
    }

    fn command(&self, command: Control) -> Result<Answer, Refusal> {
        (self.submit)(command).map_err(|error| refusal(&error))
    }

    fn one(&self, pinned: &Pinned, cluster: u32, wanted: &Value) -> Result<Found, ControlError> {
        let index = ClusterIndex(cluster);
        if u64::from(cluster) >= cluster_count(pinned.size) {
            return Ok(Found::Missing);
        }
        let mut changes = Changes::new(self.reader, None, pinned, index)?;
        let Some(changed) = changes.next().transpose()?.filter(|changed| changed.index == index) else {
            return Ok(Found::Differs);
        };
        let Some(Ok(content)) = self.reader.read_clusters(&[&changed]).pop() else {
            return Ok(Found::Damaged);
        };
        let value = cluster_value(index, &content);
        Ok(if changed.recorded.is_some_and(|recorded| recorded != value) {
            Found::Damaged
        } else if value != *wanted {
            Found::Differs
        } else {
            Found::Here(content.to_vec())
        })
    }
}
