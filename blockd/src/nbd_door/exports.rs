//! What handshakes look into: exports by name, as each client may see them.
//!
//! The reactor's thread brings it up to date; a handshake finds what was there when it looked.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use nbd_server::client::Client;
use nbd_server::export::ExportInfo;
use nbd_server::handshake::{Directory, ExportAddress};
use nbd_server::status::MetaContext;

use super::temporary::{Found, Target};
use super::{AccessMode, NbdDoor};
use crate::store::{self, Store};
use crate::units::SnapshotId;

/// See the module.
pub(crate) struct Exports {
    names: RwLock<Names>,
    door: NbdDoor,
}

type ByName = BTreeMap<String, Shown>;

/// An export, and of what snapshots its changes can be asked for: those of its volume, but for its own.
struct Shown {
    address: ExportAddress,
    info: ExportInfo,
    snapshots: Arc<[(String, SnapshotId)]>,
    own: Option<SnapshotId>,
}

#[derive(Default)]
struct Names {
    listed: ByName,
    /// Found, but not listed: they are the listed ones again, in one epoch.
    doors: ByName,
}

/// The listed export that a name with something behind it belongs to: an epoch's door, a temporary export.
pub(crate) fn listed_name(export: &str) -> &str {
    export.split_once(':').map_or(export, |(listed, _)| listed)
}

/// The volume that an export shows, now or at a snapshot.
fn volume_name(export: &str) -> &str {
    export.split_once([':', '@']).map_or(export, |(volume, _)| volume)
}

impl Exports {
    pub(crate) fn new(door: NbdDoor) -> Self {
        Self { names: RwLock::default(), door }
    }

    fn names(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// An export as a client sees it, if it does.
    fn shown(&self, client: &Client, info: &ExportInfo) -> Option<ExportInfo> {
        // A door is its volume in one epoch, and for the same eyes.
        let mode = self.door.mode(client, listed_name(&info.name))?;
        Some(ExportInfo { read_only: info.read_only || mode == AccessMode::Read, ..info.clone() })
    }

    /// Brings it up to date.
    pub(crate) fn publish(&self, store: &Store) {
        let snapshots = store.snapshots_by_volume();
        let listed = |index, info: ExportInfo| {
            let (volume, own) = store.shows(index);
            let snapshots = volume.and_then(|volume| snapshots.get(&volume)).cloned();
            let snapshots = snapshots.unwrap_or_else(|| Arc::new([]));
            (info.name.clone(), Shown { address: ExportAddress { reactor: 0, index }, info, snapshots, own })
        };
        let exports = store.exports().map(|(index, served)| listed(index, served.info()));
        let mut exports: BTreeMap<_, _> = exports.collect();
        // A replica's own name stands for its newest snapshot. Who has opened it stays with the one that it was then.
        exports.extend(store.replicas().map(|(index, info)| listed(index, info)));
        let doors = store.doors().map(|(index, info)| listed(index, info)).collect();
        let names = Names { listed: exports, doors };
        self.door.registry().retain(|export| names.listed.contains_key(export));
        let gone = self.door.temporary().retain(|target| names.target(target).is_some());
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
        if gone {
            self.door.review();
        }
    }

    /// What a temporary export of that name would stand for, and whether that is read-only. A replica's own name goes on
    /// to its next snapshot: a temporary export stays with the one that it shows now.
    pub(super) fn target(&self, name: &str) -> Option<(Target, bool)> {
        let names = self.names();
        let Shown { address: ExportAddress { index, .. }, info, .. } = names.listed.get(name)?;
        let same = |(_, shown): &(&String, &Shown)| shown.address.index == *index;
        let snapshot = names.listed.iter().filter(same).map(|(name, _)| name).find(|name| name.contains('@'));
        let name = snapshot.map_or(name, String::as_str).to_owned();
        Some((Target { name, index: *index }, info.read_only))
    }

    /// A temporary export as a client sees it, if it does.
    fn temporary(&self, client: &Client, found: Found) -> Option<(ExportAddress, ExportInfo)> {
        let names = self.names();
        let shown = names.target(&found.target)?;
        let info = match found.by_token {
            // Whoever knows the secret was meant.
            true => shown.info.clone(),
            false => self.shown(client, &shown.info)?,
        };
        let (read_only, multi_conn) = (info.read_only || !found.write, !found.by_token);
        Some((shown.address, ExportInfo { name: found.label, read_only, multi_conn, ..info }))
    }

    fn contexts_of(&self, client: &Client, shown: &Shown) -> Vec<MetaContext> {
        let volume = volume_name(&shown.info.name);
        // A snapshot that a client may not see does not exist for it, under no name.
        let others = shown.snapshots.iter().filter(|(snapshot, id)| {
            Some(*id) != shown.own && self.door.mode(client, &format!("{volume}@{snapshot}")).is_some()
        });
        store::contexts(others.map(|(name, id)| (name.as_str(), *id)))
    }
}

impl Directory for Exports {
    fn count(&self, client: &Client) -> usize {
        let names = self.names();
        match client.identity {
            None => names.listed.len(),
            Some(_) => names.listed.values().filter_map(|shown| self.shown(client, &shown.info)).count(),
        }
    }

    fn list(&self, client: &Client) -> Vec<ExportInfo> {
        self.names().listed.values().filter_map(|shown| self.shown(client, &shown.info)).collect()
    }

    fn find(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        let name = std::str::from_utf8(name).ok()?;
        if let Some(found) = self.door.temporary().find(name) {
            return self.temporary(client, found);
        }
        let names = self.names();
        let shown = names.find(name)?;
        Some((shown.address, self.shown(client, &shown.info)?))
    }

    fn enter(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        // Who may not enter does not use it up.
        let entered = self.find(client, name)?;
        let name = std::str::from_utf8(name).ok()?;
        self.door.temporary().take(name).then_some(entered)
    }

    fn contexts(&self, client: &Client, name: &[u8]) -> Vec<MetaContext> {
        let Ok(name) = std::str::from_utf8(name) else { return Vec::new() };
        let temporary = self.door.temporary().find(name);
        let names = self.names();
        let shown = match &temporary {
            Some(found) => names.target(&found.target),
            None => names.find(name),
        };
        shown.map(|shown| self.contexts_of(client, shown)).unwrap_or_default()
    }

    fn admits(&self, client: &Client, export: &str) -> bool {
        self.door.admits(client, export)
    }
}

impl Names {
    fn find(&self, name: &str) -> Option<&Shown> {
        self.listed.get(name).or_else(|| self.doors.get(name))
    }

    /// What a temporary export stands for, if it is still there.
    fn target(&self, target: &Target) -> Option<&Shown> {
        self.listed.get(&target.name).filter(|shown| shown.address.index == target.index)
    }
}
