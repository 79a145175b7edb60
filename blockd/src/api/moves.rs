//! Moves of volumes between hosts: bodies and handlers (docs/migration.md, "What blockd records").

use axum::Json;
use axum::extract::State as Extract;
use serde::{Deserialize, Serialize};

use super::answer::{Body, Refusal, Segment, check_name};
use super::replicas::trusted_host;
use super::routes::{Context, Reply, State, change, unexpected};
use super::types::{Done, Kind, hex};
use crate::catalog::format::{Handover, Role, Stage};
use crate::control::moves::{Handed, Move, MovedVolume};
use crate::control::{Answer, Control};
use crate::units::{MoveId, SnapshotUid};

/// `GET /v1/moves`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    /// The last move of each volume, by the volumes' names.
    pub moves: Vec<MoveInfo>,
}

/// `GET /v1/moves/{id}`: what has become of a move on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveInfo {
    /// Which: 32 hexadecimal digits.
    pub id: String,
    /// What the other host is for good: 32 hexadecimal digits.
    pub peer_id: String,
    /// How far it has come, of all its volumes.
    pub stage: Stage,
    /// Those that it is the last move of.
    pub volumes: Vec<VolumeMove>,
}

impl MoveInfo {
    /// Of one move, the volumes of which are `volumes`.
    ///
    /// # Panics
    /// Without any.
    pub fn describe(volumes: &[MovedVolume]) -> Self {
        let first = &volumes[0];
        let volume = |moved: &MovedVolume| VolumeMove {
            name: moved.name.clone(),
            epoch: moved.epoch,
            uid: moved.handover.map(|handover| handover.uid.to_string()),
            root: moved.handover.map(|handover| hex(&handover.root)),
            role: moved.role,
            volume_epoch: moved.volume_epoch,
        };
        let (id, peer_id) = (first.id.to_string(), first.peer.to_string());
        Self { id, peer_id, stage: first.stage, volumes: volumes.iter().map(volume).collect() }
    }
}

/// A volume of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMove {
    /// Its name here.
    pub name: String,
    /// In which it is released, or going to be owned.
    pub epoch: u64,
    /// The snapshot that it has changed hands with: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// BLAKE3 of its content: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Who may write to it now.
    pub role: Role,
    /// The epoch that it is in now.
    pub volume_epoch: u64,
}

/// `POST /v1/moves/{id}/freeze` and `POST /v1/moves/{id}/expect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginMove {
    /// The other host's name here.
    pub peer: String,
    /// By name.
    pub volumes: Vec<String>,
}

/// `POST /v1/moves/{id}/abort`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AbortMove {
    /// The other host's name here, and the volumes: if the move has not begun, it never will.
    pub peer: Option<String>,
    /// By name.
    pub volumes: Vec<String>,
}

/// `POST /v1/moves/{id}/release`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseVolumes {
    /// Of each volume the snapshot that holds all that was ever answered.
    pub snapshots: Vec<ReleasedSnapshot>,
}

/// A snapshot that a volume is released with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleasedSnapshot {
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
    /// BLAKE3 of its content: 64 hexadecimal digits.
    pub root: String,
}

/// `POST /v1/moves/{id}/own`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnVolumes {
    /// What the source has released.
    pub volumes: Vec<HandedVolume>,
}

/// A volume that was released.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandedVolume {
    /// Its name here.
    pub volume: String,
    /// In which it is owned: the one after that in which it was released.
    pub epoch: u64,
    /// The snapshot: 32 hexadecimal digits.
    pub uid: String,
    /// BLAKE3 of its content: 64 hexadecimal digits.
    pub root: String,
}

fn bytes<const N: usize>(text: &str, what: &str) -> Result<[u8; N], Refusal> {
    let digit = |byte: u8| char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
    let pairs = text.as_bytes().chunks_exact(2);
    let decoded: Option<Vec<u8>> = pairs
        .map(|pair| Some(u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).expect("two digits")))
        .collect();
    let whole = decoded.filter(|_| text.len() == 2 * N).and_then(|bytes| bytes.try_into().ok());
    whole.ok_or_else(|| {
        Refusal::new(Kind::BadValue, format!("{what} is {} hexadecimal digits, small letters", 2 * N))
    })
}

fn move_id(text: &str) -> Result<MoveId, Refusal> {
    bytes(text, "the name of a move").map(MoveId)
}

async fn begin(
    state: &State,
    BeginMove { peer, volumes }: BeginMove,
    command: impl FnOnce(crate::units::HostId, Vec<String>) -> Move,
    event: &str,
) -> Reply<Done> {
    volumes.iter().try_for_each(|name| check_name(name))?;
    let host = trusted_host(state, &peer).await?;
    let message = format!("{}, {peer}", volumes.join(" "));
    tell(state, command(host, volumes), event, message).await
}

async fn tell(state: &State, command: Move, event: &str, message: String) -> Reply<Done> {
    let subject = command.id().map_or_else(String::new, |id| id.to_string());
    change(&state.service, Control::Move(command), (event, subject, message)).await
}

pub(super) async fn freeze(
    Extract(state): Context,
    Segment(id): Segment,
    Body(body): Body<BeginMove>,
) -> Reply<Done> {
    let id = move_id(&id)?;
    begin(&state, body, |peer, volumes| Move::Freeze { id, peer, volumes }, "volumes_frozen").await
}

pub(super) async fn expect(
    Extract(state): Context,
    Segment(id): Segment,
    Body(body): Body<BeginMove>,
) -> Reply<Done> {
    let id = move_id(&id)?;
    begin(&state, body, |peer, volumes| Move::Expect { id, peer, volumes }, "volumes_expected").await
}

pub(super) async fn release(
    Extract(state): Context,
    Segment(id): Segment,
    Body(ReleaseVolumes { snapshots }): Body<ReleaseVolumes>,
) -> Reply<Done> {
    let id = move_id(&id)?;
    let names: Vec<_> = snapshots.iter().map(|snapshot| snapshot.name.clone()).collect();
    let snapshots = snapshots
        .into_iter()
        .map(|ReleasedSnapshot { name, root }| Ok((name.parse()?, bytes(&root, "a root")?)));
    let snapshots = snapshots.collect::<Result<Vec<_>, Refusal>>()?;
    tell(&state, Move::Release { id, snapshots }, "volumes_released", names.join(" ")).await
}

pub(super) async fn own(
    Extract(state): Context,
    Segment(id): Segment,
    Body(OwnVolumes { volumes }): Body<OwnVolumes>,
) -> Reply<Done> {
    let id = move_id(&id)?;
    let names: Vec<_> = volumes.iter().map(|handed| format!("{}:{}", handed.volume, handed.epoch)).collect();
    let volumes = volumes.into_iter().map(|HandedVolume { volume, epoch, uid, root }| {
        check_name(&volume)?;
        let uid = SnapshotUid(bytes(&uid, "a snapshot's uid")?);
        Ok(Handed { volume, epoch, handover: Handover { uid, root: bytes(&root, "a root")? } })
    });
    let volumes = volumes.collect::<Result<Vec<_>, Refusal>>()?;
    tell(&state, Move::Own { id, volumes }, "volumes_owned", names.join(" ")).await
}

pub(super) async fn abort(
    Extract(state): Context,
    Segment(id): Segment,
    Body(body): Body<AbortMove>,
) -> Reply<Done> {
    let id = move_id(&id)?;
    let AbortMove { peer: Some(peer), volumes } = body else {
        return tell(&state, Move::Abort { id, of: None }, "move_aborted", String::new()).await;
    };
    let abort = |peer, volumes| Move::Abort { id, of: Some((peer, volumes)) };
    begin(&state, BeginMove { peer, volumes }, abort, "move_aborted").await
}

pub(super) async fn show(Extract(state): Context, Segment(id): Segment) -> Reply<MoveInfo> {
    let id = move_id(&id)?;
    let mut moves = moved(&state, Some(id)).await?;
    let missing = || Refusal::new(Kind::NotFound, format!("no volume takes part in a move {id}"));
    Ok(Json(moves.pop().ok_or_else(missing)?))
}

pub(super) async fn list(Extract(state): Context) -> Reply<Moves> {
    Ok(Json(Moves { moves: moved(&state, None).await? }))
}

/// Volumes by their moves.
async fn moved(state: &State, id: Option<MoveId>) -> Result<Vec<MoveInfo>, Refusal> {
    let mut volumes = match state.service.call(Control::Move(Move::Show { id })).await? {
        Answer::Moved(volumes) => volumes,
        other => return Err(unexpected(&other)),
    };
    volumes.sort_by(|a, b| (a.id, &a.name).cmp(&(b.id, &b.name)));
    let of_one = volumes.chunk_by(|a, b| a.id == b.id);
    let mut moves: Vec<MoveInfo> = of_one.map(MoveInfo::describe).collect();
    moves.sort_by(|a, b| a.volumes[0].name.cmp(&b.volumes[0].name));
    Ok(moves)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_has_one_name() {
        let name = "00112233445566778899aabbccddeeff";
        assert_eq!(move_id(name).expect("a name").to_string(), name);
        let bad = ["", &name[1..], &name.to_uppercase(), &format!("{name}00"), &name.replace('0', "g"), "é"];
        for text in bad {
            assert_eq!(move_id(text).expect_err("no name").0.kind, Kind::BadValue, "{text}");
        }
    }
}
