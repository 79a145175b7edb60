//! What the cutover asks of this host's blockd, done through its API.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use super::answers::{is_nothing_to_abort, is_unavailable, record_of};
use super::record::Round;
use crate::blockd::{Blockd, MirrorStage};
use crate::cutover::event::{Answer, BlockdOp};
use crate::cutover::ids::{Epoch, MoveId, Name, Root, SnapshotUid, Text};
use crate::cutover::record::{FinalSnapshot, Plan, Record, Stage};
use crate::error::{Error, Kind};

/// Between two looks at a mirror.
const MIRROR_LOOK: Duration = Duration::from_millis(50);
/// A host that is further away is not mirrored to, unless that is asked for: each write of the guest would take so long.
const NEAR: Duration = Duration::from_millis(20);
/// Times that the last difference is brought again because a run under way was joined, whose cut came before.
const SHIP_TRIES: u32 = 3;

/// What a round has brought: one snapshot of each volume.
pub(super) struct Brought {
    snapshot: String,
    /// What both hosts have found it to be, if that was told.
    root: Option<String>,
}

/// The volumes of a move, at this host's blockd.
#[derive(Clone)]
pub(super) struct Disk {
    blockd: Blockd,
    id: MoveId,
    host: String,
    volumes: Vec<String>,
    /// Names of the snapshots that were shipped: the cutover knows uids.
    shipped: Arc<Mutex<BTreeMap<SnapshotUid, String>>>,
    last_round: Arc<Mutex<Option<Round>>>,
}

impl Disk {
    pub(super) fn new(blockd: Blockd, id: MoveId, host: &str, volumes: Vec<String>) -> Self {
        let (shipped, last_round) = (Arc::default(), Arc::default());
        Self { blockd, id, host: host.to_owned(), volumes, shipped, last_round }
    }

    /// The difference that was brought while the guest stood still.
    pub(super) fn last_round(&self) -> Option<Round> {
        *self.last_round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it; every operation has one answer.
    pub(super) async fn answer(&self, op: BlockdOp) -> Answer {
        let done = match &op {
            BlockdOp::Query => return self.query().await.map_or(Answer::Unavailable, Answer::Record),
            BlockdOp::Ship => match self.ship().await {
                Ok(snapshots) => return Answer::Shipped(snapshots),
                Err(error) => Err(error),
            },
            BlockdOp::Freeze => self.blockd.freeze(self.id, &self.host, &self.volumes).await,
            BlockdOp::Expect => self.blockd.expect(self.id, &self.host, &self.volumes).await,
            BlockdOp::Abort => {
                self.end_mirrors().await;
                self.blockd.abort(self.id, &self.host, &self.volumes).await
            }
            BlockdOp::Release(snapshots) => self.release(snapshots).await,
            BlockdOp::Own { snapshots, .. } => self.own(snapshots).await,
        };
        match done {
            Ok(()) => Answer::Done,
            Err(error) => self.not_done(&op, &error).await,
        }
    }

    /// Refused, by what the record says; or nobody knows.
    async fn not_done(&self, op: &BlockdOp, error: &Error) -> Answer {
        tracing::warn!(id = %self.id, ?op, %error, "blockd did not do it");
        if is_nothing_to_abort(op.kind(), error.kind) {
            return Answer::Done;
        }
        if is_unavailable(op.kind(), error.kind) {
            return Answer::Unavailable;
        }
        let text = Text::new(&error.message);
        self.query().await.map_or(Answer::Unavailable, |record| Answer::Refused(record, text))
    }

    /// What blockd's record says; `None`: it does not answer.
    pub(super) async fn query(&self) -> Option<Record> {
        match self.blockd.moved(self.id).await {
            Ok(moved) => record_of(&moved),
            Err(error) if error.kind == Kind::NotFound => {
                let mut epoch = 0;
                for volume in &self.volumes {
                    match self.blockd.volume(volume).await {
                        Ok(info) => epoch = epoch.max(info.epoch),
                        // It was deleted: that is an answer, and the move cannot go on.
                        Err(error) if error.kind == Kind::NotFound => {}
                        Err(_) => return None,
                    }
                }
                Some(Record { stage: Stage::Absent, epoch: Epoch(epoch), snapshots: Vec::new() })
            }
            Err(error) => {
                tracing::debug!(%error, "blockd does not say how a move is");
                None
            }
        }
    }

    /// Brings what is different now.
    pub(super) async fn round(&self) -> Result<(Brought, Round), Error> {
        let began = std::time::Instant::now();
        let ended = self.blockd.sync(&self.volumes, &self.host, |_| {}).await?;
        let missing = || Error::one_line(Kind::Io, "blockd tells nothing of a run that has ended");
        let report = ended.into_iter().find_map(|end| end.report).ok_or_else(missing)?;
        let number = |key: &str| report.get(key).and_then(serde_json::Value::as_u64).unwrap_or_default();
        let round = Round {
            bytes_changed: number("bytes_changed"),
            bytes_sent: number("bytes_sent"),
            ms: began.elapsed().as_secs_f64() * 1e3,
        };
        let text = |key: &str| report.get(key).and_then(serde_json::Value::as_str);
        let snapshot = text("snapshot").ok_or_else(missing)?.to_owned();
        // Of several volumes it has the roots of all, in an order that is blockd's.
        let root = text("root").filter(|_| self.volumes.len() == 1).map(str::to_owned);
        Ok((Brought { snapshot, root }, round))
    }

    /// Has what the guest writes mirrored, and waits until the other host has all that was answered.
    pub(super) async fn mirror(&self) -> Result<u64, Error> {
        for volume in &self.volumes {
            self.blockd.mirror(volume, &self.host).await?;
        }
        loop {
            let all = self.blockd.mirrors().await?;
            let own: Vec<_> = all.iter().filter(|mirror| self.volumes.contains(&mirror.volume)).collect();
            if let Some(ended) = own.iter().find(|mirror| mirror.stage == MirrorStage::Ended) {
                let why = ended.reason.as_deref().unwrap_or("it ended").escape_debug();
                let message = format!("{} cannot be mirrored to {}: {why}", ended.volume, self.host);
                return Err(Error::one_line(Kind::Io, message));
            }
            let in_sync = own.iter().filter(|mirror| mirror.stage == MirrorStage::InSync).count();
            if in_sync == self.volumes.len() {
                return Ok(own.iter().map(|mirror| mirror.sent_bytes).sum());
            }
            sleep(MIRROR_LOOK).await;
        }
    }

    /// Nobody waits for the other host any more. A mirror that cannot be ended breaks by itself, when the other host is gone.
    pub(super) async fn end_mirrors(&self) {
        for volume in &self.volumes {
            if let Err(error) = self.blockd.end_mirror(volume).await {
                tracing::warn!(%error, volume, "a mirror is not ended");
            }
        }
    }

    /// Whether a write can be waited for until the other host has it.
    pub(super) async fn is_near(&self) -> bool {
        let distance = self.blockd.distance(&self.host).await;
        distance.is_ok_and(|distance| Duration::from_micros(distance.round_trip_us) <= NEAR)
    }

    /// The last difference: what is frozen is brought, and its root was compared by blockd before it was shown there.
    async fn ship(&self) -> Result<Vec<FinalSnapshot>, Error> {
        let known = self.newest().await?;
        for _ in 0..SHIP_TRIES {
            let (brought, round) = self.round().await?;
            let found = self.finals(&brought).await?;
            // A run that was joined has cut before the freeze.
            if found.iter().all(|(sequence, _)| *sequence > known) {
                *self.last_round.lock().unwrap_or_else(PoisonError::into_inner) = Some(round);
                let mut shipped = self.shipped.lock().unwrap_or_else(PoisonError::into_inner);
                let finals: Vec<FinalSnapshot> = found.into_iter().map(|(_, last)| last).collect();
                shipped.extend(
                    finals.iter().map(|last| (last.uid, format!("{}@{}", last.volume, brought.snapshot))),
                );
                return Ok(finals);
            }
        }
        Err(Error::one_line(Kind::Busy, "other runs of these volumes are under way again and again"))
    }

    /// The number of the newest snapshot of any volume of the move.
    async fn newest(&self) -> Result<u64, Error> {
        let mut newest = 0;
        for volume in &self.volumes {
            newest = newest.max(self.blockd.newest_snapshot(volume).await?.map_or(0, |info| info.sequence));
        }
        Ok(newest)
    }

    async fn finals(&self, brought: &Brought) -> Result<Vec<(u64, FinalSnapshot)>, Error> {
        let mut finals = Vec::new();
        for volume in &self.volumes {
            let name = format!("{volume}@{}", brought.snapshot);
            let info = self.blockd.snapshot(&name).await?;
            let root = match &brought.root {
                Some(root) => root.clone(),
                None => self.blockd.hash(&name).await?,
            };
            let bad = |what: &str| Error::one_line(Kind::Io, format!("blockd's {what} of {name} is none"));
            let last = FinalSnapshot {
                volume: Name::new(volume).map_err(|error| Error::one_line(Kind::BadName, error))?,
                uid: info.uid.parse::<SnapshotUid>().map_err(|_| bad("uid"))?,
                root: root.parse::<Root>().map_err(|_| bad("root"))?,
            };
            finals.push((info.sequence, last));
        }
        Ok(finals)
    }

    async fn release(&self, snapshots: &[FinalSnapshot]) -> Result<(), Error> {
        let named: Option<Vec<(String, String)>> = {
            let shipped = self.shipped.lock().unwrap_or_else(PoisonError::into_inner);
            snapshots
                .iter()
                .map(|last| Some((shipped.get(&last.uid)?.clone(), last.root.to_string())))
                .collect()
        };
        let unknown =
            || Error::one_line(Kind::Refused, "what is to be released was not shipped by this agent");
        self.blockd.release(self.id, &named.ok_or_else(unknown)?).await
    }

    /// In the epochs that blockd expects: volumes of a VM may have changed hosts a different number of times.
    async fn own(&self, snapshots: &[FinalSnapshot]) -> Result<(), Error> {
        let moved = self.blockd.moved(self.id).await?;
        let of = |name: &Name| moved.volumes.iter().find(|volume| volume.name == name.as_str());
        let mut handed = Vec::new();
        for last in snapshots {
            let missing =
                || Error::one_line(Kind::Refused, format!("volume {} is not expected", last.volume));
            let epoch = of(&last.volume).ok_or_else(missing)?.epoch;
            handed.push((last.volume.to_string(), epoch, last.uid.to_string(), last.root.to_string()));
        }
        self.blockd.own(self.id, &handed).await
    }
}

/// What is planned: the VM's epoch is the highest of its volumes'.
pub(super) async fn plan_of(
    blockd: &Blockd,
    definition: &crate::vm::definition::Definition,
) -> Result<(Plan, Vec<super::judge::VolumeFacts>), Error> {
    let mut facts = Vec::new();
    for volume in definition.volumes() {
        let info = blockd.volume(volume).await?;
        facts.push(super::judge::VolumeFacts {
            name: volume.to_owned(),
            size: info.size,
            epoch: info.epoch,
            role: info.role,
        });
    }
    let epoch = facts.iter().map(|facts| facts.epoch).max().unwrap_or(1);
    let name = |text: &str| Name::new(text).map_err(|error| Error::one_line(Kind::BadName, error));
    let volumes = definition.volumes().map(name).collect::<Result<Vec<_>, _>>()?;
    let plan = Plan {
        vm: name(definition.name.as_str())?,
        digest: super::judge::digest(definition)?,
        volumes,
        epoch: Epoch(epoch),
    };
    Ok((plan, facts))
}
