//! What a move leaves where its VM came from: the volumes, as replicas that nobody brings up to date. They are what makes the
//! way back short. With `--keep-source TIME` they are deleted when that time is over.
//!
//! ```text
//!  moved, former_until_ms = end + TIME ─► that time ─► still as the move left them? ─ yes ─► snapshots, then volumes deleted
//!                                                                 └─ no ──► kept for good; the record's notes tell why
//! ```
//!
//! The record is written after the deletion: a crash in between finds nothing left to delete.

use std::time::Duration;

use tokio::time::timeout;

use super::hub::Moves;
use super::record::{MoveRecord, Side};
use crate::agent::events::now_ms;
use crate::agent::view::VmState;
use crate::blockd::SnapshotInfo;
use crate::cutover::record::Stage;
use crate::error::{Error, Kind};

/// Least time between two looks for what is over: who lingers, or a blockd that is not there, is looked at again.
const LOOK: Duration = Duration::from_secs(5);

/// What is to be done about a former copy.
enum Found {
    /// Delete these snapshots, then the volumes.
    AsLeft(Vec<SnapshotInfo>),
    /// Somebody needs it.
    InUse(String),
}

impl Moves {
    /// Deletes former copies whose time is over, until it is dropped. Woken when a move leaves one.
    pub(super) async fn sweep_former(&self) {
        loop {
            let next = self.sweep_once().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "former copies cannot be looked for");
                Some(LOOK)
            });
            match next {
                Some(time) => {
                    if timeout(time, self.0.former.notified()).await.is_err() {
                        tracing::trace!("a former copy is due");
                    }
                }
                None => self.0.former.notified().await,
            }
        }
    }

    /// When to look again; `None`: nothing is left that has a time.
    async fn sweep_once(&self) -> Result<Option<Duration>, Error> {
        let now = now_ms();
        for record in self.list(None)? {
            // One that lingers writes its own record still.
            if record.former_until_ms.is_some_and(|until| until <= now) && self.watch(record.id).is_none() {
                self.give_up_former(record).await;
            }
        }
        let due = self.list(None)?.iter().filter_map(|record| record.former_until_ms).min();
        Ok(due.map(|due| Duration::from_millis(due.saturating_sub(now_ms())).max(LOOK)))
    }

    async fn give_up_former(&self, mut record: MoveRecord) {
        let text = match self.delete_former(&record).await {
            Ok(None) => "the volumes that it left here were deleted".to_owned(),
            Ok(Some(why)) => format!("the volumes that it left here stay: {why}"),
            Err(error)
                if matches!(
                    error.kind,
                    Kind::Unreachable | Kind::Timeout | Kind::Overloaded | Kind::Stopping
                ) =>
            {
                return tracing::debug!(%error, id = %record.id, "a former copy is looked at again");
            }
            Err(error) => format!("the volumes that it left here stay: {error}"),
        };
        self.0.host.events.record("former_copy", record.vm.as_str(), text.clone());
        record.former_until_ms = None;
        record.note(text);
        if let Err(error) = self.0.files.write(&record) {
            tracing::warn!(%error, "what became of a former copy cannot be written down");
        }
    }

    /// `Some`: why they stay.
    async fn delete_former(&self, record: &MoveRecord) -> Result<Option<String>, Error> {
        let blockd = &self.0.host.blockd;
        let snapshots = match self.look_at_former(record).await? {
            Found::AsLeft(snapshots) => snapshots,
            Found::InUse(why) => return Ok(Some(why)),
        };
        let base = base(&record.host);
        for snapshot in &snapshots {
            let name = format!("{}@{}", snapshot.volume, snapshot.name);
            if snapshot.holds.contains(&base) {
                blockd.release_hold(&name, &base).await?;
            }
            blockd.delete_snapshot(&name).await?;
        }
        for volume in record.definition.volumes() {
            blockd.delete_volume(volume).await?;
        }
        Ok(None)
    }

    async fn look_at_former(&self, record: &MoveRecord) -> Result<Found, Error> {
        if let Ok(view) = self.0.registry.view(&record.vm)
            && (view.state != VmState::Stopped || view.held_by.is_some())
        {
            return Ok(Found::InUse(format!("{} is {} here", record.vm, view.state.name())));
        }
        let blockd = &self.0.host.blockd;
        // Of a volume that has been moved again, blockd has another record.
        let moved = blockd.moved(record.id).await?;
        if moved.stage != Stage::Released {
            return Ok(Found::InUse(format!("blockd says that its move is {:?}", moved.stage)));
        }
        let mut all = Vec::new();
        for volume in record.definition.volumes() {
            let Some(left) = moved.volumes.iter().find(|one| one.name == volume) else {
                return Ok(Found::InUse(format!("{volume} has been moved again")));
            };
            let info = blockd.volume(volume).await?;
            let snapshots = blockd.snapshots(volume).await?;
            if let Some(why) =
                need_of(volume, &info.role, left.uid.as_deref(), &snapshots, &base(&record.host))
            {
                return Ok(Found::InUse(why));
            }
            all.extend(snapshots);
        }
        Ok(Found::AsLeft(all))
    }
}

/// The hold that blockd's replication gives to what it has brought to a host.
fn base(host: &str) -> String {
    format!("base-{host}")
}

/// Who needs a volume that a move has left with the snapshot `uid`. `base`: what the move itself was brought from.
fn need_of(
    volume: &str,
    role: &str,
    uid: Option<&str>,
    snapshots: &[SnapshotInfo],
    base: &str,
) -> Option<String> {
    if role != "replica" {
        return Some(format!("{volume} is written to here"));
    }
    // Something has come since: it is somebody's replica now.
    if snapshots.last().map(|newest| newest.uid.as_str()) != uid {
        return Some(format!("{volume} is kept up to date"));
    }
    let is_held = |one: &SnapshotInfo| one.holds.iter().any(|hold| hold != base);
    let needed = |one: &&SnapshotInfo| is_held(one) || !one.clones.is_empty() || one.clients > 0;
    let one = snapshots.iter().find(needed)?;
    Some(format!("{volume}@{} is held, cloned or read", one.name))
}

/// When the volumes that a move leaves are deleted, in milliseconds since 1970.
pub(super) fn former_until(record: &MoveRecord) -> Option<u64> {
    let kept = record.options.keep_source_ms.filter(|_| record.side == Side::Source && record.has_moved())?;
    Some(record.ended_ms?.saturating_add(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(uid: &str, holds: &[&str]) -> SnapshotInfo {
        SnapshotInfo {
            volume: "v".to_owned(),
            name: "s".to_owned(),
            size: 0,
            created_ms: 0,
            sequence: 0,
            uid: uid.to_owned(),
            holds: holds.iter().map(|hold| (*hold).to_owned()).collect(),
            clones: Vec::new(),
            clients: 0,
        }
    }

    #[test]
    fn only_what_is_as_the_move_left_it_is_deleted() {
        let need = |role: &str, uid: &str, all: &[SnapshotInfo]| need_of("v", role, Some(uid), all, "base-B");
        let left = [snapshot("1", &[]), snapshot("2", &["base-B"])];
        assert_eq!(need("replica", "2", &left), None);
        assert!(need("primary", "2", &left).is_some());
        assert!(need("replica", "1", &left).is_some(), "something has come since");
        assert!(need("replica", "2", &[]).is_some(), "somebody has deleted from it");
        for hold in ["mine", "base-C"] {
            assert!(need("replica", "2", &[snapshot("1", &[hold]), snapshot("2", &[])]).is_some(), "{hold}");
        }
    }
}
