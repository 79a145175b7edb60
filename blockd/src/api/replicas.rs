//! Replicas: bodies, handlers, and the client's side of them (docs/operating.md, "Replicas").

use axum::Json;
use axum::extract::State as Extract;
use axum::response::Response;
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::answer::{Args, Body, Refusal, VolumeName};
use super::client::{Client, ClientError, escape, further, paged};
use super::long;
use super::routes::{Context, Reply, State, change, page, unexpected};
use super::scrub::Repair;
use super::types::{Done, End, ErrorBody, Kind, Line, PageQuery};
use crate::catalog::format::{ReceivingRecord, Role};
use crate::control::replication::{Replication, VolumeIdentity};
use crate::control::{Answer, Control, SnapshotName};
use crate::events::now_ms;
use crate::peer::Peers;
use crate::service::{Recomputed, Service, Verdict};
use crate::units::{CLUSTER_BYTES, HostId, cluster_count};

/// `GET /v1/replicas`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// By name: replicas, and volumes that were promoted.
    pub replicas: Vec<ReplicaInfo>,
    /// Ask for `after=` this for more; missing on the last page.
    pub next: Option<String>,
}

/// `GET /v1/replicas/{name}`: what a volume is to other hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// The volume's name here.
    pub name: String,
    /// Who may write to it.
    pub role: Role,
    /// Counts promotions; 1: never.
    pub epoch: u64,
    /// Shared with the volume on other hosts, and with nothing else: 32 hexadecimal digits.
    pub lineage: String,
    /// The host that a replica follows.
    pub peer: Option<FollowedHost>,
    /// Bytes.
    pub size: u64,
    /// What a replica shows.
    pub newest: Option<NewestSnapshot>,
    /// What is on its way to a replica.
    pub receiving: Option<Receiving>,
    /// A replica that holds what was written here before it was demoted, and was sent nothing since.
    pub diverged: bool,
    /// Snapshots that it has.
    pub snapshots: u64,
}

/// A host that a replica follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowedHost {
    /// What it is for good: 32 hexadecimal digits.
    pub id: String,
    /// What it is called here, if it is paired.
    pub name: Option<String>,
}

/// The newest snapshot that came and was found right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestSnapshot {
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Milliseconds since 1970, UTC: when it was taken, by the clock of the host that took it.
    pub created_ms: u64,
    /// Milliseconds since then, by this host's clock; never negative.
    pub lag_ms: u64,
}

/// A snapshot that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// What it will be called, without the volume's name.
    pub snapshot: String,
    /// Clusters of 64 KiB that are complete and durable.
    pub cursor: u64,
    /// Clusters that it has.
    pub total: u64,
    /// Bytes of the volume up to the cursor, whether they had to be sent or not.
    pub bytes: u64,
    /// All has come, and is being compared.
    pub staged: bool,
}

/// `POST /v1/replicas/{name}/demote`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demote {
    /// Name of the paired host that it follows from now on.
    pub peer: String,
}

/// Query of `POST /v1/replicas/{name}/verify`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyQuery {
    /// What is damaged is repaired with what paired hosts have of it.
    #[serde(default)]
    pub repair: bool,
    /// Only that host is asked; if missing, those that are known to have it.
    pub from: Option<String>,
}

/// What volumes are, all or one.
async fn identities(service: &Service, volume: Option<String>) -> Result<Vec<VolumeIdentity>, Refusal> {
    match service.call(Control::Replication(Replication::Identify { volume })).await? {
        Answer::Identities(identities) => Ok(identities),
        other => Err(unexpected(&other)),
    }
}

/// The snapshots that replicas show under their own names; of one volume or of all.
pub(super) async fn published(
    service: &Service,
    volume: Option<String>,
) -> Result<Vec<SnapshotName>, Refusal> {
    Ok(identities(service, volume).await?.into_iter().filter_map(|volume| volume.published).collect())
}

/// The other hosts' names. A list of replicas is of use without them: what is wrong with the hosts is only logged.
async fn known_hosts(state: &State, volumes: &[VolumeIdentity]) -> Option<Peers> {
    // Whoever follows nobody needs no identity among hosts.
    if volumes.iter().all(|volume| volume.peer.is_none()) {
        return None;
    }
    match state.service.peers.as_ref()?.get().await {
        Ok(peers) => Some(peers.clone()),
        Err(error) => {
            tracing::warn!(%error, "the names of other hosts are not known");
            None
        }
    }
}

fn host_name(peers: Option<&Peers>, id: HostId) -> Option<String> {
    let hosts = peers?.list();
    hosts.into_iter().find(|(host, _)| host.id.0 == id.0).map(|(host, _)| host.name)
}

/// As it is at that time.
fn describe(volume: VolumeIdentity, peers: Option<&Peers>, now_ms: u64) -> ReplicaInfo {
    let newest = newest(&volume, now_ms);
    let peer = volume.peer.map(|id| FollowedHost { id: id.to_string(), name: host_name(peers, id) });
    ReplicaInfo {
        role: volume.role,
        epoch: volume.epoch,
        lineage: volume.lineage.to_string(),
        peer,
        size: volume.size,
        newest,
        receiving: volume.receiving.map(receiving),
        diverged: volume.diverged,
        snapshots: volume.snapshots.len() as u64,
        name: volume.name,
    }
}

fn newest(volume: &VolumeIdentity, now_ms: u64) -> Option<NewestSnapshot> {
    let name = volume.published.as_ref()?;
    let created_ms = volume.snapshots.iter().find(|other| other.name == name.snapshot)?.created_ms;
    // The source's clock may be ahead of ours.
    Some(NewestSnapshot { name: name.to_string(), created_ms, lag_ms: now_ms.saturating_sub(created_ms) })
}

fn receiving(record: ReceivingRecord) -> Receiving {
    let (staged, total) = (record.staged.is_some(), cluster_count(record.size));
    let cursor = if staged { total } else { record.cursor.min(total) };
    let bytes = (cursor * CLUSTER_BYTES).min(record.size);
    Receiving { snapshot: record.name, cursor, total, bytes, staged }
}

pub(super) async fn list(Extract(state): Context, Args(query): Args<PageQuery>) -> Reply<Replicas> {
    let mut volumes = identities(&state.service, None).await?;
    // A volume has a place among hosts' volumes if it follows one, or followed one and was promoted.
    volumes.retain(|volume| volume.role == Role::Replica || volume.epoch > 1);
    volumes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let after = query.after.as_deref().unwrap_or_default();
    let (volumes, next) = page(volumes, &query, |volume| volume.name.as_str() > after, |v| v.name.clone())?;
    let (peers, now) = (known_hosts(&state, &volumes).await, now_ms());
    let replicas = volumes.into_iter().map(|volume| describe(volume, peers.as_ref(), now)).collect();
    Ok(Json(Replicas { replicas, next }))
}

async fn identity(service: &Service, name: &str) -> Result<VolumeIdentity, Refusal> {
    let missing = || Refusal::new(Kind::NotFound, format!("there is no volume {name}"));
    let found = identities(service, Some(name.to_owned())).await.map_err(next_is("blockctl volume list"))?;
    found.into_iter().next().ok_or_else(missing)
}

pub(super) async fn show(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<ReplicaInfo> {
    let volume = identity(&state.service, &name).await?;
    let peers = known_hosts(&state, std::slice::from_ref(&volume)).await;
    Ok(Json(describe(volume, peers.as_ref(), now_ms())))
}

/// What the store would advise for a refusal is about snapshots, and of no help here.
fn next_is(next: &str) -> impl FnOnce(Refusal) -> Refusal {
    let next = next.to_owned();
    move |refusal| match refusal.0.kind {
        Kind::Refused | Kind::NotFound => refusal.with_next(next),
        _ => refusal,
    }
}

pub(super) async fn promote(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    let volume = identity(&state.service, &name).await?;
    let (from, to) = (volume.epoch, volume.epoch + 1);
    let event = ("replica_promoted", name.clone(), format!("epoch {from} to {to}"));
    let command = Control::Replication(Replication::Promote { volume: name.clone() });
    let next = format!("blockctl replica show {name}");
    change(&state.service, command, event).await.map_err(next_is(&next))
}

pub(super) async fn demote(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Body(Demote { peer }): Body<Demote>,
) -> Reply<Done> {
    let volume = identity(&state.service, &name).await?;
    let id = trusted_host(&state, &peer).await?;
    let event = ("volume_demoted", name.clone(), format!("epoch {}, follows {peer}", volume.epoch));
    let command = Control::Replication(Replication::Demote { volume: name.clone(), peer: id });
    let next = format!("blockctl replica show {name}");
    change(&state.service, command, event).await.map_err(next_is(&next))
}

/// Nothing would ever come from a host that is not let in.
pub(super) async fn trusted_host(state: &State, name: &str) -> Result<HostId, Refusal> {
    let (host, _) = super::hosts::peers(state).await?.show(name)?;
    if host.trusted {
        return Ok(HostId(host.id.0));
    }
    let refusal =
        Refusal::new(Kind::Refused, format!("host {name} is not trusted: nothing would come from it"));
    Err(refusal.with_next(format!("blockctl host trust {name}")))
}

/// Reads all of the newest snapshot and makes its root of what was read. It is told unless anything is damaged.
pub(super) async fn verify(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Args(VerifyQuery { repair, from }): Args<VerifyQuery>,
) -> Result<Response, Refusal> {
    let volume = identity(&state.service, &name).await?;
    let next = format!("blockctl replica show {name}");
    if volume.role == Role::Primary {
        let message = format!("{name} is no replica: name one of its snapshots");
        return Err(Refusal::new(Kind::Refused, message).with_next("blockctl snapshot verify NAME@SNAP"));
    }
    let nothing = || {
        let message = format!("nothing to verify: no complete snapshot of {name} has come yet");
        Refusal::new(Kind::NotFound, message).with_next(next)
    };
    let newest = volume.published.ok_or_else(nothing)?;
    let repair = Repair::asked(&state, repair, from).await?;
    let events = state.service.events.clone();
    long::stream(&state, move |engine, sink| {
        let mut found = engine.recompute(&newest, &mut |done, total| sink.progress(&newest, done, total))?;
        if found.verdict() == Verdict::Damaged {
            events.record("snapshot_damaged", newest.to_string(), damage(&found));
        }
        let mut end = End { name: Some(newest.to_string()), ..End::default() };
        if let Some(repair) = repair.filter(|_| !found.report.damaged.is_empty()) {
            end.repair = Some(repair.repair(&newest, &found.report, sink)?);
            // All of it once more: the verdict is on what is there now.
            found = engine.recompute(&newest, &mut |done, total| sink.progress(&newest, done, total))?;
        }
        end.verdict = Some(found.verdict());
        let root = found.root.filter(|_| found.verdict() != Verdict::Damaged);
        end.hash = root.as_ref().map(super::types::hex);
        end.report = Some(found.report);
        Ok(end)
    })
}

fn damage(found: &Recomputed) -> String {
    if found.report.damaged.is_empty() {
        return "the root of what was read is not the recorded one".to_owned();
    }
    long::damage(&found.report)
}

impl Client {
    /// All replicas, and volumes that were promoted, by name.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub async fn replicas(&self) -> Result<Vec<ReplicaInfo>, ClientError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page: Replicas = self.get(&paged("/v1/replicas", None, after.as_deref())).await?;
            all.extend(page.replicas);
            after = further(after.as_deref(), page.next)?;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// What one volume is to other hosts, replica or not.
    pub async fn replica(&self, name: &str) -> Result<ReplicaInfo, ClientError> {
        self.get(&format!("/v1/replicas/{}", escape(name))).await
    }

    /// A replica becomes a volume that clients write to.
    pub async fn promote(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/replicas/{}/promote", escape(name));
        self.ask::<Done>(Method::POST, &path, Vec::new()).await.map(drop)
    }

    /// A volume becomes a replica of what a paired host has of it.
    pub async fn demote(&self, name: &str, peer: &str) -> Result<(), ClientError> {
        let body = Demote { peer: peer.to_owned() };
        self.post(&format!("/v1/replicas/{}/demote", escape(name)), &body).await
    }

    /// Reads the newest snapshot of a replica, and repairs it if asked to; `End` has its name, the report, the verdict, and
    /// the root if nothing is damaged.
    pub async fn verify_replica(
        &self,
        name: &str,
        query: &VerifyQuery,
        on_line: impl FnMut(Line),
    ) -> Result<End, ClientError> {
        let from = query.from.as_ref().map(|from| format!("&from={}", escape(from))).unwrap_or_default();
        let path = format!("/v1/replicas/{}/verify?repair={}{from}", escape(name), query.repair);
        self.lines(Method::POST, &path, Vec::new(), on_line).await
    }

    /// The same as [`Client::replicas`]; none of a daemon of a version that does not know them.
    pub async fn replicas_if_any(&self) -> Result<Vec<ReplicaInfo>, ClientError> {
        match self.replicas().await {
            Err(ClientError::Refused(ErrorBody { kind: Kind::BadRequest, .. })) => Ok(Vec::new()),
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::format::Point;
    use crate::control::replication::SnapshotIdentity;
    use crate::units::{Lineage, SnapshotUid};

    fn replica() -> VolumeIdentity {
        let snapshot = |name: &str, number| SnapshotIdentity {
            name: name.to_owned(),
            uid: SnapshotUid([number; 16]),
            point: Point { epoch: 1, sequence: u64::from(number) },
            size: 1 << 20,
            created_ms: u64::from(number) * 1000,
        };
        let published = SnapshotName { volume: "web".to_owned(), snapshot: "b".to_owned() };
        VolumeIdentity {
            name: "web".to_owned(),
            lineage: Lineage([0xa7; 16]),
            epoch: 3,
            role: Role::Replica,
            peer: Some(HostId([9; 16])),
            size: 1 << 20,
            published: Some(published),
            point: Point { epoch: 1, sequence: 2 },
            diverged: false,
            receiving: None,
            receiving_base: None,
            snapshots: vec![snapshot("a", 1), snapshot("b", 2)],
            ancestors: Vec::new(),
        }
    }

    fn record(cursor: u64, staged: bool) -> ReceivingRecord {
        ReceivingRecord {
            uid: SnapshotUid([3; 16]),
            token: [1; 16],
            point: Point::default(),
            base: None,
            size: (1 << 20) + 512,
            created_ms: 3000,
            name: "c".to_owned(),
            cursor,
            staged: staged.then_some(crate::units::SnapshotId(7)),
        }
    }

    #[test]
    fn the_lag_is_that_of_the_snapshot_that_is_shown_and_never_negative() {
        let lag = |now| describe(replica(), None, now).newest.map(|newest| newest.lag_ms);
        assert_eq!((lag(5000), lag(2000), lag(1999)), (Some(3000), Some(0), Some(0)));
        let nothing = VolumeIdentity { published: None, ..replica() };
        assert_eq!(describe(nothing, None, 5000).newest, None, "an age of nothing would be made up");
    }

    #[test]
    fn what_has_come_ends_with_the_volume() {
        let of = |cursor, staged| {
            let Receiving { cursor, total, bytes, staged, .. } = receiving(record(cursor, staged));
            (cursor, total, bytes, staged)
        };
        assert_eq!(of(0, false), (0, 17, 0, false));
        assert_eq!(of(16, false), (16, 17, 1 << 20, false));
        assert_eq!(of(17, false), (17, 17, (1 << 20) + 512, false));
        assert_eq!(of(3, true), (17, 17, (1 << 20) + 512, true), "all has come");
        assert_eq!(of(99, false).0, 17);
    }

    /// Scripts depend on it.
    #[test]
    fn the_fields_are_a_contract() {
        let web = VolumeIdentity { receiving: Some(record(16, false)), ..replica() };
        let json = serde_json::to_string(&describe(web, None, 2500)).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"name":"web","role":"replica","epoch":3,"lineage":"a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7","#,
                r#""peer":{"id":"09090909090909090909090909090909","name":null},"size":1048576,"#,
                r#""newest":{"name":"web@b","created_ms":2000,"lag_ms":500},"#,
                r#""receiving":{"snapshot":"c","cursor":16,"total":17,"bytes":1048576,"staged":false},"#,
                r#""diverged":false,"snapshots":2}"#
            )
        );
    }
}
