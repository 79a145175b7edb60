//! What NBD clients can open: volumes, snapshots read-only, and replicas, which show their newest snapshot.

use axum::Json;
use axum::extract::State as Extract;

use super::answer::{Args, Refusal, Segment, check_name};
use super::connections;
use super::replicas::published;
use super::routes::{Context, Reply, State, all_snapshots, all_volumes, find_snapshot, find_volume, page};
use super::types::{ExportInfo, Exports, Kind, PageQuery};
use crate::catalog::format::Role;
use crate::control::{SnapshotInfo, VolumeInfo};
use crate::nbd_door::{Temporaries, TemporaryExport};
use crate::service::NbdAddresses;

fn volume_export(volume: &VolumeInfo, nbd: &NbdAddresses) -> ExportInfo {
    describe(volume.name.clone(), volume.size, false, volume.clients, nbd)
}

fn snapshot_export(snapshot: &SnapshotInfo, nbd: &NbdAddresses) -> ExportInfo {
    let name = format!("{}@{}", snapshot.volume, snapshot.name);
    describe(name, snapshot.size, true, snapshot.clients, nbd)
}

/// A replica's own name stands for that snapshot, and has its clients.
fn replica_export(newest: &SnapshotInfo, nbd: &NbdAddresses) -> ExportInfo {
    describe(newest.volume.clone(), newest.size, true, newest.clients, nbd)
}

fn describe(name: String, size: u64, read_only: bool, clients: u64, nbd: &NbdAddresses) -> ExportInfo {
    let (unix, tcp) = (nbd.unix.clone(), nbd.tcp.clone());
    let uri = nbd.uri(&name);
    ExportInfo { name, size, read_only, clients, unix, tcp, uri, temporary: None, connections: Vec::new() }
}

/// A temporary one, of what it stands for.
fn temporary_export(temporary: TemporaryExport, of: &ExportInfo, state: &State) -> ExportInfo {
    let clients = state.service.door.registry().count(&temporary.name);
    let (name, size) = (temporary.name.clone(), of.size);
    let read_only = of.read_only || temporary.read_only;
    let named = describe(name, size, read_only, clients, &state.service.nbd);
    let uri = named.uri.filter(|_| !temporary.one_use);
    ExportInfo { uri, temporary: Some(temporary), ..named }
}

pub(super) async fn list(Extract(state): Context, Args(query): Args<PageQuery>) -> Reply<Exports> {
    let (service, nbd) = (&state.service, &state.service.nbd);
    let volumes = all_volumes(service).await?;
    let snapshots = all_snapshots(service, None).await?;
    let (replicas, primaries): (Vec<_>, Vec<_>) =
        volumes.iter().partition(|volume| volume.role == Role::Replica);
    let mut all: Vec<ExportInfo> = primaries.into_iter().map(|volume| volume_export(volume, nbd)).collect();
    if !replicas.is_empty() {
        let published = published(service, None).await?;
        let is_newest = |snapshot: &&SnapshotInfo| {
            published.iter().any(|name| name.volume == snapshot.volume && name.snapshot == snapshot.name)
        };
        let newest = snapshots.iter().filter(is_newest);
        all.extend(newest.map(|snapshot| replica_export(snapshot, nbd)));
    }
    all.extend(snapshots.iter().map(|snapshot| snapshot_export(snapshot, nbd)));
    for temporary in state.service.door.temporary().list() {
        let of = all.iter().find(|export| export.name == temporary.of);
        if let Some(shown) = of.map(|of| temporary_export(temporary, of, &state)) {
            all.push(shown);
        }
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let after = query.after.as_deref().unwrap_or_default();
    let (exports, next) = page(all, &query, |export| export.name.as_str() > after, |e| e.name.clone())?;
    Ok(Json(Exports { exports, next }))
}

pub(super) async fn show(Extract(state): Context, Segment(name): Segment) -> Reply<ExportInfo> {
    let connections = connections::of(&state.service.door, Some(&name));
    if !Temporaries::is_name(&name) {
        return Ok(Json(ExportInfo { connections, ..find(&state, name).await? }));
    }
    let all = state.service.door.temporary().list();
    let temporary = all.into_iter().find(|temporary| temporary.name == name);
    let gone = || Refusal::new(Kind::NotFound, format!("there is no temporary export {name:?} any more"));
    let temporary = temporary.ok_or_else(gone)?;
    let of = find(&state, temporary.of.clone()).await?;
    Ok(Json(ExportInfo { connections, ..temporary_export(temporary, &of, &state) }))
}

/// A listed one.
async fn find(state: &State, name: String) -> Result<ExportInfo, Refusal> {
    let (service, nbd) = (&state.service, &state.service.nbd);
    if name.contains('@') {
        let snapshot = find_snapshot(service, &name.parse()?).await?;
        return Ok(snapshot_export(&snapshot, nbd));
    }
    check_name(&name)?;
    let volume = find_volume(service, &name).await?;
    if volume.role == Role::Primary {
        return Ok(volume_export(&volume, nbd));
    }
    let nothing = || {
        let message = format!("the replica {name} has no export: no complete snapshot has come yet");
        Refusal::new(Kind::NotFound, message).with_next(format!("blockctl replica show {name}"))
    };
    let newest = published(service, Some(name.clone())).await?.pop().ok_or_else(nothing)?;
    Ok(replica_export(&find_snapshot(service, &newest).await?, nbd))
}
