//! Mirrored volumes: a client's change is answered when another host has it, too (docs/replication.md, "Mirroring").
//!
//! ```text
//!  a change ends on the medium ─► parked: its clusters are dirty ─► taken: read, on their way ─► written ─► answered
//!                                          ▲ changed meanwhile ─────────────┘
//! ```
//!
//! What is sent of a block is what it holds when it is read, at or after the instant at which it was taken: whoever changes
//! it later makes it dirty again. A cluster is on its way once at a time, so nothing older can overtake. A parked change counts
//! as one that is under way: a cut waits for it. So when a cut is made, and nothing of the backlog is left, the other host has
//! what the snapshot has, and nothing else.
//!
//! The mirror is in no client's way for good: when nothing has moved for [`MIRROR_STALL_MAX`], it is broken, and who waits is
//! answered. Nothing relies on what it has brought: the root is compared before the other host shows anything.

mod ledger;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use nbd_server::connection::Nanos;
use nbd_server::disk::ExportIndex;
use nbd_server::export::{Extent, Io, Payload};
use nbd_server::wire::Errno;

use super::commands::{Outcome, refuse};
use super::transfer::Job;
use super::{Store, Token};
use crate::control::mirror::{Mirror, MirrorContent, MirrorId, MirrorRun, Mirrored, Mirroring};
use crate::control::{Answer, ControlError, ErrorKind, SnapshotName};
use crate::units::{BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex, SnapshotUid};

use ledger::Ledger;

/// Clusters of one batch: 1 MiB of data.
pub const MIRROR_BATCH_CLUSTERS: usize = 16;
/// Batches that are on their way.
pub const MIRROR_BATCHES_MAX: usize = 4;
/// Clusters that may differ from the base when a mirror begins: 64 GiB of data, some 32 MiB of memory.
pub const MIRROR_BACKLOG_MAX: usize = 1 << 20;
/// When nothing has been written at the other host for so long, clients wait no longer.
pub const MIRROR_STALL_MAX: Duration = Duration::from_secs(4);

/// The mirror of a volume.
pub(super) struct Reflection {
    id: MirrorId,
    ledger: Ledger,
    batches: Vec<Batch>,
    /// Who waits for the next batch.
    taker: Option<Token>,
    /// A snapshot that the other host does not show yet: nothing that comes after it is sent meanwhile.
    cut: Option<SnapshotName>,
    /// Whoever takes knows of the cut.
    told: bool,
    /// When something was last written there, or went on.
    moved: Nanos,
}

/// Clusters on their way.
struct Batch {
    number: u64,
    clusters: Vec<ClusterIndex>,
    /// Who is to get it; nobody any more when it was read.
    taker: Option<Token>,
    /// Parts that are being read.
    reading: usize,
    runs: Vec<MirrorRun>,
    failed: bool,
}

fn ended<T>() -> Outcome<T> {
    refuse(ErrorKind::Stale, "the mirror has ended".to_owned())
}

impl Store {
    /// `Some`: the answer. `None`: it comes later.
    pub(super) fn mirror(
        &mut self,
        token: Token,
        command: Mirror,
        io: &mut Io<'_>,
    ) -> Outcome<Option<Answer>> {
        match command {
            Mirror::Begin { volume, base } => return self.begin_mirror(&volume, base).map(Some),
            Mirror::Take { id } => self.take_mirrored(token, id, io)?,
            Mirror::Written { id, batch } => self.mirror_written(id, batch, io)?,
            Mirror::Cut { names } => {
                self.request_mirrored_cut(token, names, io)?;
                return Ok(None);
            }
            Mirror::GoOn { id } => self.mirror_goes_on(id, io)?,
            Mirror::End { id } => match self.mirrors.get(&id) {
                Some(&export) => self.end_mirror(export, io),
                None => return ended(),
            },
        }
        let takes = matches!(command, Mirror::Take { .. });
        Ok((!takes).then_some(Answer::Done))
    }

    fn begin_mirror(&mut self, name: &str, base: SnapshotUid) -> Outcome<Answer> {
        let volume = self.catalog.find_volume(name)?;
        self.check_primary(volume, name)?;
        self.check_durable(Some(volume))?;
        let export = self.volume_export(volume);
        let disk = self.disk(export);
        if disk.mirror.is_some() || disk.holds > 0 {
            return refuse(ErrorKind::Busy, format!("{name:?} is mirrored already, or is being cut"));
        }
        let parent = self.catalog.layers.get(&disk.top).and_then(|layer| layer.parent);
        let mut snapshots = self.catalog.snapshots_of(volume);
        let newest = snapshots.find(|(id, _)| self.catalog.uid(*id) == base).map(|(_, record)| record.layer);
        drop(snapshots);
        if newest.is_none() || newest != parent {
            return refuse(ErrorKind::Refused, format!("{base} is not the newest snapshot of {name:?}"));
        }
        if disk.loaded().is_none() {
            self.load_map(export);
            return refuse(ErrorKind::Busy, format!("the map of {name:?} is being loaded"));
        }
        let backlog = self.changed_clusters(export);
        if backlog.len() > MIRROR_BACKLOG_MAX {
            let text = format!("{} clusters of {name:?} have changed: replicate it first", backlog.len());
            return refuse(ErrorKind::Refused, text);
        }
        self.last_mirror.0 += 1;
        let (id, clusters) = (self.last_mirror, backlog.len() as u64);
        let reflection = Reflection {
            id,
            ledger: Ledger::new(backlog),
            batches: Vec::new(),
            taker: None,
            cut: None,
            told: false,
            moved: self.now,
        };
        self.disk_mut(export).mirror = Some(Box::new(reflection));
        self.mirrors.insert(id, export);
        Ok(Answer::Mirroring(Mirroring { id, backlog: clusters }))
    }

    /// What the open layer holds.
    fn changed_clusters(&self, export: ExportIndex) -> BTreeMap<ClusterIndex, crate::units::Mask> {
        let map = self.disk(export).map();
        let head = |cluster| map.get(cluster).head.map(|head| (cluster, head.data.with(head.zero)));
        map.mapped_from(0).filter_map(head).filter(|(_, blocks)| !blocks.is_empty()).collect()
    }

    fn reflection(&mut self, id: MirrorId) -> Outcome<(ExportIndex, &mut Reflection)> {
        let Some(&export) = self.mirrors.get(&id) else { return ended() };
        let disk = self.served[export.0 as usize].as_mut().and_then(|disk| disk.mirror.as_mut());
        Ok((export, disk.expect("a mirror that is listed")))
    }

    fn take_mirrored(&mut self, token: Token, id: MirrorId, io: &mut Io<'_>) -> Outcome<()> {
        let (export, reflection) = self.reflection(id)?;
        if reflection.taker.is_some() || reflection.batches.len() >= MIRROR_BATCHES_MAX {
            return refuse(ErrorKind::Busy, "too much is on its way".to_owned());
        }
        reflection.taker = Some(token);
        self.feed_taker(export, io);
        Ok(())
    }

    /// Whoever waits for the next batch gets it, if there is anything to be sent.
    fn feed_taker(&mut self, export: ExportIndex, io: &mut Io<'_>) {
        let now = self.now;
        let Some(reflection) = self.find_disk(export).and_then(|disk| disk.mirror.as_mut()) else { return };
        let Some(token) = reflection.taker else { return };
        if let Some(name) = reflection.cut.clone() {
            if !std::mem::replace(&mut reflection.told, true) {
                reflection.taker = None;
                let last = self.disk(export).frozen_until.is_some();
                self.answer(token, Ok(Answer::Mirrored(Mirrored::Cut { name, last })));
            }
            return;
        }
        let taken = reflection.ledger.take(MIRROR_BATCH_CLUSTERS);
        if taken.is_empty() {
            return;
        }
        reflection.taker = None;
        if reflection.batches.is_empty() {
            // There was nothing to wait for until now.
            reflection.moved = now;
        }
        self.last_batch += 1;
        let number = self.last_batch;
        let parts: Vec<Range<u64>> = taken
            .iter()
            .flat_map(|(cluster, blocks)| {
                let at = |block: u32| cluster.start() + u64::from(block) * BLOCK_BYTES;
                blocks.runs().map(move |run| at(run.start)..at(run.end)).collect::<Vec<_>>()
            })
            .collect();
        // One more than there are: it is not whole before all of them have begun.
        let reading = parts.len() + 1;
        let clusters = taken.into_iter().map(|(cluster, _)| cluster).collect();
        let batch = Batch { number, clusters, taker: Some(token), reading, runs: Vec::new(), failed: false };
        let reflection = self.disk_mut(export).mirror.as_mut().expect("looked at above");
        reflection.batches.push(batch);
        for part in parts {
            let buf = io.pool().take(usize::try_from(part.end - part.start).expect("within a cluster"));
            self.add_job(Job::mirrored(export, part, buf, number), io);
        }
        self.mirror_part_read(export, number, Ok(Vec::new()));
    }

    /// A part of a batch was read.
    pub(super) fn mirror_read(
        &mut self,
        export: ExportIndex,
        number: u64,
        at: u64,
        outcome: Result<Payload, Errno>,
    ) {
        let runs = outcome.map(|payload| mirrored_runs(at, payload));
        self.mirror_part_read(export, number, runs);
    }

    fn mirror_part_read(&mut self, export: ExportIndex, number: u64, runs: Result<Vec<MirrorRun>, Errno>) {
        let reflection = self.find_disk(export).and_then(|disk| disk.mirror.as_mut());
        let Some(reflection) = reflection else { return };
        let backlog = reflection.ledger.backlog();
        let Some(batch) = reflection.batches.iter_mut().find(|batch| batch.number == number) else { return };
        batch.reading -= 1;
        match runs {
            Ok(runs) => batch.runs.extend(runs),
            Err(_) => batch.failed = true,
        }
        if batch.reading > 0 {
            return;
        }
        let Some(token) = batch.taker.take() else { return };
        let mut runs = std::mem::take(&mut batch.runs);
        runs.sort_unstable_by_key(|run| (run.cluster, run.first));
        let answer = if batch.failed {
            Err(ControlError::new(ErrorKind::Io, "what is to be mirrored cannot be read"))
        } else {
            Ok(Answer::Mirrored(Mirrored::Batch { batch: number, runs, backlog }))
        };
        self.answer(token, answer);
    }

    fn mirror_written(&mut self, id: MirrorId, number: u64, io: &mut Io<'_>) -> Outcome<()> {
        let now = self.now;
        let (export, reflection) = self.reflection(id)?;
        let read = |batch: &Batch| batch.number == number && batch.taker.is_none();
        let Some(at) = reflection.batches.iter().position(read) else {
            return refuse(ErrorKind::BadValue, format!("batch {number} is not on its way"));
        };
        let batch = reflection.batches.remove(at);
        reflection.moved = now;
        let answered = reflection.ledger.written(&batch.clusters);
        for (key, fua) in answered {
            self.end_mirrored_change(key, fua, io);
        }
        self.feed_taker(export, io);
        Ok(())
    }

    /// A client's change has ended here. Whether it waits for the other host: then it is parked.
    pub(super) fn park(&mut self, key: usize, fua: bool, io: &mut Io<'_>) -> bool {
        let job = &mut self.jobs[key];
        let (export, range) = (job.export, job.range.clone());
        let Some(disk) = self.served.get_mut(export.0 as usize).and_then(Option::as_mut) else {
            return false;
        };
        let Some(reflection) = disk.mirror.as_mut().filter(|_| job.client.is_some()) else { return false };
        if !reflection.ledger.is_waited_for() && reflection.batches.is_empty() {
            reflection.moved = self.now;
        }
        reflection.ledger.park(key, &range, fua);
        // It touches no cluster any more: what is freed need not wait for it.
        if let Some(era) = job.era.take() {
            self.pool.operation_ended(era);
        }
        self.feed_taker(export, io);
        true
    }

    fn request_mirrored_cut(
        &mut self,
        token: Token,
        names: Vec<SnapshotName>,
        io: &mut Io<'_>,
    ) -> Outcome<()> {
        for name in &names {
            let volume = self.catalog.find_volume(&name.volume)?;
            let reflection = self.disk(self.volume_export(volume)).mirror.as_ref();
            if reflection.is_none_or(|it| it.cut.is_some() || it.ledger.backlog() > 0) {
                return refuse(ErrorKind::Stale, format!("{:?} is not in sync", name.volume));
            }
        }
        self.request_cut(token, names, true, io)
    }

    /// Whether the other host has all that a cut would hold; `None`: there is no mirror.
    pub(super) fn is_reflected(&self, export: ExportIndex) -> Option<bool> {
        let reflection = self.disk(export).mirror.as_ref()?;
        Some(reflection.ledger.is_clean() && reflection.batches.is_empty())
    }

    /// A snapshot was cut, and the other host has what it holds.
    pub(super) fn mirrored_cut(&mut self, export: ExportIndex, name: &SnapshotName, io: &mut Io<'_>) {
        let now = self.now;
        let Some(reflection) = self.disk_mut(export).mirror.as_mut() else { return };
        (reflection.cut, reflection.told, reflection.moved) = (Some(name.clone()), false, now);
        self.feed_taker(export, io);
    }

    fn mirror_goes_on(&mut self, id: MirrorId, io: &mut Io<'_>) -> Outcome<()> {
        let now = self.now;
        let (export, reflection) = self.reflection(id)?;
        (reflection.cut, reflection.told, reflection.moved) = (None, false, now);
        self.feed_taker(export, io);
        Ok(())
    }

    /// Nobody waits for the other host any more.
    pub(super) fn end_mirror(&mut self, export: ExportIndex, io: &mut Io<'_>) {
        let Some(mut reflection) = self.forget_mirror(export) else { return };
        for (key, fua) in reflection.ledger.end() {
            self.end_mirrored_change(key, fua, io);
        }
    }

    /// Of an export that goes, or whose clients are answered by whoever calls.
    pub(super) fn forget_mirror(&mut self, export: ExportIndex) -> Option<Box<Reflection>> {
        let reflection = self.find_disk(export)?.mirror.take()?;
        self.mirrors.remove(&reflection.id);
        let takers = reflection.batches.iter().filter_map(|batch| batch.taker);
        for token in takers.chain(reflection.taker) {
            self.answer(token, ended());
        }
        Some(reflection)
    }

    pub(super) fn end_all_mirrors(&mut self, io: &mut Io<'_>) {
        let exports: Vec<_> = self.mirrors.values().copied().collect();
        for export in exports {
            self.end_mirror(export, io);
        }
    }

    /// Mirrors that do not move are in nobody's way any more. Returns when to look again.
    pub(super) fn break_stalled_mirrors(&mut self, now: Nanos, io: &mut Io<'_>) -> Option<Nanos> {
        let due = |export: &ExportIndex| {
            let reflection = self.disk(*export).mirror.as_ref()?;
            let waits = reflection.ledger.is_waited_for() || !reflection.batches.is_empty();
            waits.then(|| (*export, reflection.moved.after(MIRROR_STALL_MAX)))
        };
        let (late, waiting): (Vec<_>, Vec<_>) =
            self.mirrors.values().filter_map(due).partition(|(_, due)| now >= *due);
        for (export, _) in late {
            tracing::warn!(
                volume = self.disk(export).name,
                "the other host does not answer: it is no mirror any more"
            );
            self.end_mirror(export, io);
        }
        waiting.into_iter().map(|(_, due)| due).min()
    }
}

/// What was read, from a byte of the volume on; all of it lies in one cluster.
fn mirrored_runs(at: u64, payload: Payload) -> Vec<MirrorRun> {
    let extents = match payload {
        Payload::None | Payload::Status(_) => Vec::new(),
        Payload::Data(buf) => vec![Extent::Data(buf)],
        Payload::Extents(extents) => extents,
    };
    let cluster = ClusterIndex(u32::try_from(at / CLUSTER_BYTES).expect("a cluster of a volume"));
    let mut offset = at % CLUSTER_BYTES;
    let mut run = |bytes: u64, content| {
        let first = u8::try_from(offset / BLOCK_BYTES).expect("a block of a cluster");
        offset += bytes;
        MirrorRun { cluster, first, content }
    };
    let blocks = |bytes: u32| bytes / u32::try_from(BLOCK_BYTES).expect("fits");
    let runs = extents.into_iter().map(|extent| match extent {
        Extent::Data(buf) => run(buf.len() as u64, MirrorContent::Data(buf.to_vec())),
        Extent::Hole(bytes) => run(u64::from(bytes), MirrorContent::Zero(blocks(bytes))),
    });
    runs.collect()
}
