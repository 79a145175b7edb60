//! What a target does for a session: looks up, prepares, judges and writes, compares roots. Blocking; without a network.

use std::collections::BTreeMap;

use super::batch::{self, Batch, Bounds, CopyRun};
use super::wire::{
    Begin, Code, HaveVolume, Mode, NewestSnapshot, OfferedVolume, Ready, Received, Refusal, Values, Wanted,
};
use crate::control::replication::{Incoming, Mark, Patch, ReceiveToken, Replication, VolumeIdentity};
use crate::control::{Answer, Control, ControlError, ErrorKind, Pinned, SnapshotName};
use crate::decompress::Decompress;
use crate::hash::{Value, cluster_value};
use crate::snapshot::{Changes, ClosedReader, Submit, hash, meta_error, recorded_root, with_pin};
use crate::units::{CLUSTER_BYTES, ClusterIndex, HostId, SnapshotUid, cluster_count};

/// Candidates whose roots are told: the best base, and what else may be copied from.
pub const KNOWN_MAX: usize = 16;

/// What the host gives to a session.
pub struct Place<'a> {
    /// Reads closed layers.
    pub reader: &'a ClosedReader,
    /// The store.
    pub submit: &'a Submit<'a>,
    /// Called while layers are being merged, before the next try; `false`: no more tries.
    pub pause: &'a dyn Fn() -> bool,
    /// Who is at the other end.
    pub peer: HostId,
    /// What its batches are decompressed by.
    pub decompress: &'a dyn Decompress,
}

fn answered<T>(answer: Answer) -> T {
    unreachable!("another command's answer: {answer:?}")
}

/// What the other side is told of a failure here.
pub fn refusal(error: &ControlError) -> Refusal {
    let code = match error.kind {
        ErrorKind::Stale if error.message.starts_with("STALE_EPOCH") => Code::StaleEpoch,
        ErrorKind::Stale if error.message.starts_with("STALE_SNAPSHOT") => Code::StaleSnapshot,
        // Another session has taken over.
        ErrorKind::Stale => Code::SessionExists,
        ErrorKind::Refused => Code::NotAReplica,
        ErrorKind::Exists => Code::NameTaken,
        ErrorKind::NotFound => Code::BaseMismatch,
        ErrorKind::NoSpace => Code::NoSpace,
        ErrorKind::Busy => Code::Busy,
        ErrorKind::Stopping => Code::Stopping,
        ErrorKind::BadName => Code::BadId,
        ErrorKind::BadValue => Code::BadManifest,
        ErrorKind::Io | ErrorKind::Damaged => Code::Failed,
    };
    // The code is said once.
    let text = error.message.strip_prefix(code.name()).and_then(|text| text.strip_prefix(": "));
    Refusal::new(code, text.unwrap_or(&error.message))
}

type Outcome<T> = Result<T, Refusal>;

impl Place<'_> {
    fn ask(&self, command: Replication) -> Outcome<Answer> {
        (self.submit)(Control::Replication(command)).map_err(|error| refusal(&error))
    }

    /// Tries again while layers are being merged or packed.
    pub(super) fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, ControlError>) -> Outcome<T> {
        loop {
            match attempt() {
                Err(error) if error.kind == ErrorKind::Busy && (self.pause)() => {}
                other => return other.map_err(|error| refusal(&error)),
            }
        }
    }

    fn find(&self, volume: &OfferedVolume) -> Outcome<Option<VolumeIdentity>> {
        match self.ask(Replication::Find { lineage: volume.lineage })? {
            Answer::Identities(mut found) => Ok(found.pop()),
            other => answered(other),
        }
    }

    /// Those of the snapshots that are here, and that the peer may know of.
    fn locate(&self, uids: Vec<SnapshotUid>) -> Outcome<Vec<(SnapshotUid, SnapshotName)>> {
        match self.ask(Replication::Locate { uids, peer: self.peer })? {
            Answer::Located(found) => Ok(found),
            other => answered(other),
        }
    }

    /// The root that is recorded of a snapshot, else, if it must be, the one that is computed.
    fn root(&self, name: &SnapshotName, compute: bool) -> Outcome<Option<(Value, u64)>> {
        self.patiently(|| {
            with_pin(self.submit, name, |pinned| {
                let (top, size) = (pinned.chain[0], pinned.size);
                let recorded = recorded_root(self.reader.meta(), top, size).map_err(meta_error)?;
                if recorded.is_some() || !compute {
                    return Ok(recorded.map(|root| (root, size)));
                }
                let root = hash(self.reader, pinned, self.submit, &mut |_, _| true)?;
                Ok(Some((root, size)))
            })
        })
    }

    /// What there is of a volume that is offered.
    ///
    /// # Errors
    /// `Failed`, `Stopping`, `Busy`.
    pub fn look(&self, volume: &OfferedVolume) -> Outcome<HaveVolume> {
        let mut have = HaveVolume { known: self.known(volume)?, ..HaveVolume::default() };
        let Some(identity) = self.find(volume)? else { return Ok(have) };
        if identity.peer != Some(self.peer) {
            // It is told that when it begins.
            return Ok(have);
        }
        if let Some(name) = &identity.published
            && let Some((root, size)) = self.root(name, true)?
        {
            let newest = identity.snapshots.iter().find(|snapshot| snapshot.name == name.snapshot);
            have.newest = newest.map(|newest| NewestSnapshot { uid: newest.uid, root, size });
        }
        let receiving = identity.receiving.filter(|receiving| receiving.uid == volume.uid);
        have.received = receiving.map(|receiving| {
            let clusters = cluster_count(receiving.size);
            let cursor = if receiving.staged.is_some() { clusters } else { receiving.cursor };
            Received { token: receiving.token, base: identity.receiving_base, cursor }
        });
        Ok(have)
    }

    /// Candidates that are here, and their roots. That of the best is computed, if it has to be.
    fn known(&self, volume: &OfferedVolume) -> Outcome<Vec<(u16, Value)>> {
        let mut known = Vec::new();
        for (uid, name) in self.locate(volume.candidates.clone())? {
            let place = volume.candidates.iter().position(|candidate| *candidate == uid);
            let Some(place) = place.and_then(|place| u16::try_from(place).ok()) else { continue };
            let root = match self.root(&name, known.is_empty()) {
                // Deleted since.
                Err(refusal) if refusal.code == Code::BaseMismatch => None,
                root => root?,
            };
            known.extend(root.map(|(root, _)| (place, root)));
            if known.len() == KNOWN_MAX {
                break;
            }
        }
        Ok(known)
    }

    /// Prepares the volume for what is to come.
    ///
    /// # Errors
    /// `BaseMismatch`, `BadResume`; what the store says.
    pub fn prepare(&self, volume: &OfferedVolume, begin: &Begin, token: ReceiveToken) -> Outcome<Ready> {
        if let Some((uid, root)) = begin.base {
            self.check_base(uid, root)?;
        }
        if let Some((claimed, cursor)) = begin.resume {
            self.check_resume(volume, begin, claimed, cursor)?;
        }
        let incoming = Incoming {
            lineage: volume.lineage,
            peer: self.peer,
            volume: volume.volume.clone(),
            uid: volume.uid,
            point: volume.point,
            name: volume.name.clone(),
            size: volume.size,
            created_ms: volume.created_ms,
            base: begin.base.map(|(uid, _)| uid),
            token,
        };
        let receive = match begin.mode {
            Mode::Mirror => Replication::ReceiveMirrored(incoming),
            Mode::Changes | Mode::Compare => Replication::Receive(incoming),
        };
        match self.ask(receive)? {
            Answer::Receiving(record) => {
                let complete = record.staged.is_some();
                let cursor = if complete { cluster_count(record.size) } else { record.cursor };
                Ok(Ready { token: record.token, cursor, complete })
            }
            other => answered(other),
        }
    }

    /// What was mirrored is that snapshot, cut and unseen.
    ///
    /// # Errors
    /// `StaleSnapshot`, `BadManifest`; what the store says.
    pub fn mark(&self, snapshot: OfferedVolume, token: ReceiveToken) -> Outcome<()> {
        let OfferedVolume { lineage, uid, point, name, size, created_ms, .. } = snapshot;
        let mark = Mark { uid, point, name, size, created_ms };
        self.ask(Replication::Mark { lineage, token, mark })?;
        self.stage(lineage, token)
    }

    fn stage(&self, lineage: crate::units::Lineage, token: ReceiveToken) -> Outcome<()> {
        let stage = || (self.submit)(Control::Replication(Replication::Stage { lineage, token }));
        self.patiently(|| stage().map(drop))
    }

    /// R5: the id alone is not enough.
    fn check_base(&self, uid: SnapshotUid, root: Value) -> Outcome<()> {
        let found = self.locate(vec![uid])?.pop();
        let Some((_, name)) = found else {
            return Err(Refusal::new(Code::BaseMismatch, format!("snapshot {uid} is not here")));
        };
        match self.root(&name, true)? {
            Some((found, _)) if found == root => Ok(()),
            _ => Err(Refusal::new(Code::BaseMismatch, format!("{name} has another root"))),
        }
    }

    fn check_resume(
        &self,
        volume: &OfferedVolume,
        begin: &Begin,
        claimed: ReceiveToken,
        cursor: u64,
    ) -> Outcome<()> {
        let identity = self.find(volume)?;
        let base = identity.as_ref().and_then(|identity| identity.receiving_base);
        let receiving = identity.and_then(|identity| identity.receiving);
        let matches = receiving.is_some_and(|receiving| {
            let clusters = cluster_count(receiving.size);
            let confirmed = if receiving.staged.is_some() { clusters } else { receiving.cursor };
            receiving.uid == volume.uid
                && receiving.token == claimed
                && cursor <= confirmed
                && base == begin.base.map(|(uid, _)| uid)
        });
        if matches {
            return Ok(());
        }
        Err(Refusal::new(Code::BadResume, "there is no such attempt to go on with: begin anew"))
    }

    /// What a batch writes: all of it was found right.
    ///
    /// # Errors
    /// `BadManifest`, `BadData`; `BaseMismatch`: what is to be copied is not here; `Failed`.
    pub fn patches(&self, volume: &OfferedVolume, bounds: &Bounds, batch: &[u8]) -> Outcome<Vec<Patch>> {
        let Batch { mut patches, copies, .. } = batch::decode(batch, bounds, self.decompress)?;
        let mut by_candidate: BTreeMap<u16, Vec<CopyRun>> = BTreeMap::new();
        for copy in copies {
            by_candidate.entry(copy.candidate).or_default().push(copy);
        }
        for (candidate, copies) in by_candidate {
            let uid = volume.candidates[usize::from(candidate)];
            let Some((_, name)) = self.locate(vec![uid])?.pop() else {
                return Err(Refusal::new(Code::BaseMismatch, format!("snapshot {uid} is not here")));
            };
            patches.extend(self.copy(&name, &copies, volume.size)?);
        }
        Ok(patches)
    }

    fn copy(&self, name: &SnapshotName, copies: &[CopyRun], size: u64) -> Outcome<Vec<Patch>> {
        self.patiently(|| {
            with_pin(self.submit, name, |pinned| {
                copies.iter().map(|copy| self.copy_one(pinned, copy, size)).collect()
            })
        })
    }

    fn copy_one(&self, pinned: &Pinned, copy: &CopyRun, size: u64) -> Result<Patch, ControlError> {
        let content = self.cluster(pinned, copy.from)?;
        let content = content.as_deref().unwrap_or(&ZEROES);
        if cluster_value(copy.cluster, content) != copy.value {
            let text = format!("cluster {} is not what is to be copied", copy.from);
            return Err(ControlError::new(ErrorKind::NotFound, text));
        }
        let offset = copy.cluster.start();
        let length = usize::try_from((size - offset).min(CLUSTER_BYTES)).expect("a cluster's");
        Ok(Patch::Data { offset, bytes: content[..length].to_vec() })
    }

    /// A cluster's content; `None`: zeroes.
    fn cluster(
        &self,
        pinned: &Pinned,
        index: ClusterIndex,
    ) -> Result<Option<crate::snapshot::Content>, ControlError> {
        let mut changes = Changes::new(self.reader, None, pinned, index)?;
        let Some(changed) = changes.next().transpose()?.filter(|changed| changed.index == index) else {
            return Ok(None);
        };
        let content = self.reader.read_clusters(&[&changed]).pop().expect("one was asked for");
        content.map(Some).map_err(|error| ControlError::new(ErrorKind::Io, error.to_string()))
    }

    /// Which of the other side's clusters differ from those of a snapshot here.
    ///
    /// # Errors
    /// `BaseMismatch`, `Failed`.
    pub fn compare(&self, base: SnapshotUid, values: &Values) -> Outcome<Wanted> {
        let Some((_, name)) = self.locate(vec![base])?.pop() else {
            return Err(Refusal::new(Code::BaseMismatch, format!("snapshot {base} is not here")));
        };
        let own =
            self.patiently(|| with_pin(self.submit, &name, |pinned| self.own_values(pinned, values)))?;
        let differs = own.iter().zip(&values.values).map(|(own, theirs)| own != theirs).collect();
        Ok(Wanted { first: values.first, differs })
    }

    fn own_values(&self, pinned: &Pinned, values: &Values) -> Result<Vec<Option<Value>>, ControlError> {
        let end = values.first + values.values.len() as u64;
        let mut own = vec![None; values.values.len()];
        if values.first >= cluster_count(pinned.size) {
            return Ok(own);
        }
        let start = ClusterIndex(u32::try_from(values.first).expect("a cluster of the snapshot"));
        for changed in Changes::new(self.reader, None, pinned, start)? {
            let changed = changed?;
            if u64::from(changed.index.0) >= end {
                break;
            }
            let value = match changed.recorded {
                Some(recorded) => recorded,
                None => {
                    let content = self.reader.read_clusters(&[&changed]).pop().expect("one was asked for");
                    let content =
                        content.map_err(|error| ControlError::new(ErrorKind::Io, error.to_string()))?;
                    cluster_value(changed.index, &content)
                }
            };
            own[usize::try_from(u64::from(changed.index.0) - values.first).expect("few")] = Some(value);
        }
        Ok(own)
    }

    /// Closes what has come, and compares its root. What is wrong is thrown away. `progress` gets bytes done and in all.
    ///
    /// # Errors
    /// `RootMismatch`; what the store says.
    pub fn verify(
        &self,
        volume: &OfferedVolume,
        token: ReceiveToken,
        root: Value,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Outcome<()> {
        let lineage = volume.lineage;
        self.stage(lineage, token)?;
        let found = self.patiently(|| {
            let pin = Control::Replication(Replication::PinStaged { lineage, token });
            let pinned = match (self.submit)(pin)? {
                Answer::Pinned(pinned) => pinned,
                other => answered(other),
            };
            let found = hash(self.reader, &pinned, self.submit, progress);
            (self.submit)(Control::Unpin { pin: pinned.pin })?;
            found
        })?;
        if found == root {
            return Ok(());
        }
        self.ask(Replication::Abandon { lineage, token })?;
        let text = format!("{} has another root than it was sent with: it is thrown away", volume.name);
        Err(Refusal::new(Code::RootMismatch, text))
    }

    /// Shows what was verified, all at one instant.
    ///
    /// # Errors
    /// What the store says.
    pub fn publish(&self, staged: Vec<(crate::units::Lineage, ReceiveToken)>) -> Outcome<()> {
        if staged.is_empty() {
            return Ok(());
        }
        self.ask(Replication::Publish { staged }).map(drop)
    }
}

static ZEROES: [u8; CLUSTER_BYTES as usize] = [0; CLUSTER_BYTES as usize];
