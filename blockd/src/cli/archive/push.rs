//! `blockctl archive push`.
//!
//! The snapshot before it tells which clusters to read: the newest that is in the archive and still on this host, by
//! its hash. The others are not even looked at.

use tokio::sync::mpsc;

use crate::api::client::ClientError;
use crate::api::types::{DiffQuery, Line};
use crate::archive::pack::CHUNK_BYTES;
use crate::archive::root::Root;
use crate::archive::{Archive, ArchiveError, Cluster, Push, Trust, hex, key};
use crate::control::{SnapshotInfo, SnapshotName};
use crate::exit_code;
use crate::failure::Failure;
use crate::size::Size;
use crate::units::{CLUSTER_BYTES, cluster_count};

use super::super::context::{Context, Trying};
use super::super::import::connect;
use super::super::nbd_client::{NbdClient, NbdError, Reply, Request};
use super::super::progress::Progress;
use super::super::volume::{Changed, Plan};
use super::{PushArgs, failure, hash, open_storage};

/// Clusters that are read at a time; twice as many are in memory.
const BATCH_CLUSTERS: usize = 256;

pub(super) async fn run(context: &Context, args: &PushArgs) -> Result<(), Failure> {
    tokio::select! {
        ended = push(context, args) => ended,
        _ = tokio::signal::ctrl_c() => {
            let why = "Ctrl-C; what was sent so far is used by the next push";
            let next = format!("blockctl archive push {} …", args.name);
            Err(Failure::new(exit_code::FAILED, format!("push of {} was interrupted", args.name), why, next))
        }
    }
}

/// A snapshot on its way.
struct Job {
    name: SnapshotName,
    archive: Archive,
    snapshot: SnapshotInfo,
    base: Option<Root>,
    changed: Clusters,
}

async fn push(context: &Context, args: &PushArgs) -> Result<(), Failure> {
    let what = || format!("cannot push {}", args.name);
    let fail = |error| failure(what(), error);
    let secret = key::read_secret(&args.key).map_err(fail)?;
    let name: SnapshotName =
        args.name.parse().map_err(|error| Failure::new(exit_code::USAGE, what(), error, ""))?;
    let storage = open_storage(&args.to, args.transport).map_err(fail)?;
    let archive = Archive::open(storage, Trust::Key(secret.public())).await.map_err(fail)?;
    let snapshot = context.client.snapshot(&args.name).await.trying(what)?;
    // Connected, it cannot be deleted.
    let export = context.client.export(&args.name).await.trying(what)?;
    let client = connect(&export).await?;
    if let Some(root) = find(&archive, &name).await.map_err(fail)? {
        return already_there(context, args, &snapshot, &root).await;
    }
    let base = find_base(context, &archive, &name, &snapshot).await?;
    let changed = changed(context, &name, &snapshot, base.as_ref().map(|base| &base.root)).await?;
    let job = Job { name, archive, snapshot, base: base.map(|base| base.root), changed };
    if args.plan {
        return plan(context, args, &job);
    }
    let hash = hash(context, &args.name).await?;
    send(context, args, job, client, (&secret, hash)).await
}

async fn find(archive: &Archive, name: &SnapshotName) -> Result<Option<Root>, ArchiveError> {
    match archive.root(name).await {
        Ok(root) => Ok(Some(root)),
        Err(ArchiveError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Pushing the same snapshot again is no error: a job that is tried again must end well.
async fn already_there(
    context: &Context,
    args: &PushArgs,
    snapshot: &SnapshotInfo,
    root: &Root,
) -> Result<(), Failure> {
    let same = (root.size, root.created_ms) == (snapshot.size, snapshot.created_ms);
    if same && hash(context, &args.name).await? == root.hash {
        let sentence = format!("{} is in {} already", args.name, args.to);
        return Changed::new("unchanged", &args.name).tell(context, &sentence);
    }
    let why = "the archive has another snapshot of that name";
    let next = "blockctl archive list --from URL    (then take a snapshot of another name)";
    Err(Failure::new(exit_code::REFUSED, format!("cannot push {}", args.name), why, next))
}

/// The snapshot that a push is based on.
struct FoundBase {
    root: Root,
    /// While it is connected nobody can delete the snapshot and give its name to another one.
    _held: NbdClient,
}

/// The snapshot of the archive that is nearest in time, is on this host, and is the same here as there.
async fn find_base(
    context: &Context,
    archive: &Archive,
    name: &SnapshotName,
    snapshot: &SnapshotInfo,
) -> Result<Option<FoundBase>, Failure> {
    let what = || format!("cannot push {name}");
    let listed = archive.list(Some(&name.volume)).await.map_err(|error| failure(what(), error))?;
    let here = context.client.snapshots(Some(&name.volume)).await.trying(what)?;
    let is_here = |root: &Root| {
        let same = |info: &SnapshotInfo| {
            info.name == root.name.snapshot && (info.size, info.created_ms) == (root.size, root.created_ms)
        };
        root.size <= snapshot.size && here.iter().any(same)
    };
    let mut roots: Vec<Root> =
        listed.into_iter().filter_map(|listed| listed.root.ok()).filter(is_here).collect();
    roots.sort_unstable_by_key(|root| root.created_ms.abs_diff(snapshot.created_ms));
    for root in roots {
        // One that has gone meanwhile, or is damaged here, says nothing: the next one may be whole.
        if let Ok(Some(held)) = hold_same(context, &root).await {
            return Ok(Some(FoundBase { root, _held: held }));
        }
    }
    Ok(None)
}

/// Connects to the snapshot of that name, and compares its hash: the time and the name might be another's.
async fn hold_same(context: &Context, root: &Root) -> Result<Option<NbdClient>, Failure> {
    let name = root.name.to_string();
    let export = context.client.export(&name).await.trying(|| format!("cannot open {name}"))?;
    let client = connect(&export).await?;
    Ok((hash(context, &name).await? == root.hash).then_some(client))
}

/// A set of clusters: a bit each, 2 MiB of memory for a volume of 1 TiB.
struct Clusters {
    bits: Vec<u64>,
    count: u64,
}

impl Clusters {
    fn new(size: u64) -> Self {
        let words = usize::try_from(cluster_count(size).div_ceil(64)).expect("clusters have 32-bit numbers");
        Self { bits: vec![0; words], count: 0 }
    }

    /// Adds all that a range of bytes touches; what passes the end is left out.
    fn add(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).div_ceil(CLUSTER_BYTES).min(self.bits.len() as u64 * 64);
        for cluster in offset / CLUSTER_BYTES..end {
            let (word, bit) = ((cluster / 64) as usize, 1 << (cluster % 64));
            self.count += u64::from(self.bits[word] & bit == 0);
            self.bits[word] |= bit;
        }
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let words = self.bits.iter().enumerate();
        words.filter(|(_, bits)| **bits != 0).flat_map(|(word, bits)| {
            let inside = (0..64).filter(move |bit| bits >> bit & 1 == 1);
            inside.map(move |bit| word as u32 * 64 + bit)
        })
    }
}

async fn changed(
    context: &Context,
    name: &SnapshotName,
    snapshot: &SnapshotInfo,
    base: Option<&Root>,
) -> Result<Clusters, Failure> {
    let query = DiffQuery { from: base.map(|base| base.name.to_string()), to: name.to_string() };
    let mut clusters = Clusters::new(snapshot.size);
    let on_line = |line: Line| {
        if let Line::Extent(extent) = line {
            clusters.add(extent.offset, extent.length);
        }
    };
    let ended: Result<_, ClientError> = context.client.diff(&query, on_line).await;
    ended.trying(|| format!("cannot push {name}"))?;
    Ok(clusters)
}

fn on_top(base: Option<&Root>) -> String {
    base.map_or_else(|| "all that holds data".to_owned(), |base| format!("what differs from {}", base.name))
}

fn plan(context: &Context, args: &PushArgs, job: &Job) -> Result<(), Failure> {
    let read = Size(job.changed.count * CLUSTER_BYTES);
    let would = format!(
        "would push {} to {}: read {read} of {}, {}",
        args.name,
        args.to,
        Size(job.snapshot.size),
        on_top(job.base.as_ref())
    );
    Plan { action: "pushed", name: &args.name, would, obstacles: Vec::new(), blocked_code: exit_code::FAILED }
        .tell(context)
}

async fn send(
    context: &Context,
    args: &PushArgs,
    job: Job,
    client: NbdClient,
    (secret, hash): (&key::SecretKey, [u8; 32]),
) -> Result<(), Failure> {
    let fail = |error| failure(format!("cannot push {}", args.name), error);
    let loaded = job.archive.load_index().await.map_err(fail)?;
    for damage in &loaded.damage {
        super::super::progress::note(&format!(
            "note: {}: {}; it is not relied on",
            damage.object, damage.why
        ))?;
    }
    let base = on_top(job.base.as_ref());
    let push = Push::begin(&job.archive, loaded, job.name, job.snapshot.size, job.base).await;
    let mut push = push.map_err(fail)?;
    let mut progress = Progress::new(context.format);
    progress.phase(format!("pushing {}", args.name), job.changed.count * CLUSTER_BYTES)?;
    let mut reader = Reader { client, size: job.snapshot.size, clusters: job.changed.iter() };
    let mut done = 0;
    let mut batch = reader.next(&args.name).await?;
    while !batch.is_empty() {
        let count = batch.len() as u64;
        let (added, next) = tokio::join!(push.add(batch), reader.next(&args.name));
        added.map_err(fail)?;
        batch = next?;
        done += count;
        progress.done(done * CLUSTER_BYTES)?;
    }
    let report = push.finish(job.snapshot.created_ms, hash, secret).await.map_err(fail)?;
    drop(progress);
    let sentence = format!(
        "pushed {} to {}: read {} ({base}), sent {} in {} objects; BLAKE3 {}",
        args.name,
        args.to,
        Size(done * CLUSTER_BYTES),
        Size(report.uploaded_bytes),
        report.objects,
        hex(&hash),
    );
    if context.for_people() {
        return super::super::output::line(sentence);
    }
    super::super::output::object(&Pushed {
        action: "pushed",
        name: &args.name,
        done: true,
        read_bytes: done * CLUSTER_BYTES,
        new_chunks: report.new_chunks,
        objects: report.objects,
        uploaded_bytes: report.uploaded_bytes,
        hash: hex(&hash),
    })
}

/// What `push` prints for scripts.
#[derive(serde::Serialize)]
struct Pushed<'a> {
    action: &'static str,
    name: &'a str,
    done: bool,
    read_bytes: u64,
    new_chunks: u64,
    objects: u64,
    uploaded_bytes: u64,
    hash: String,
}

/// Reads clusters of an export, some hundred at a time.
struct Reader<I> {
    client: NbdClient,
    size: u64,
    clusters: I,
}

impl<I: Iterator<Item = u32>> Reader<I> {
    /// The next clusters; none at the end.
    async fn next(&mut self, name: &str) -> Result<Vec<Cluster>, Failure> {
        let mut batch: Vec<Cluster> =
            self.clusters.by_ref().take(BATCH_CLUSTERS).map(|cluster| (cluster, None)).collect();
        if batch.is_empty() {
            return Ok(batch);
        }
        let ranges = self.ranges(&batch);
        let (sender, requests) = mpsc::channel(ranges.len());
        for (offset, length) in ranges {
            let request = Request::Read { offset, length };
            sender.try_send(request).map_err(|error| read_failure(name, &error))?;
        }
        drop(sender);
        let taken = self.client.run(requests, |reply| take(&mut batch, reply)).await;
        taken.map_err(|error: NbdError| read_failure(name, &error))?;
        Ok(batch)
    }

    /// What to ask for: neighbours together, as far as a request goes.
    fn ranges(&self, batch: &[Cluster]) -> Vec<(u64, u32)> {
        let max = u64::from(self.client.request_bytes_max());
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (cluster, _) in batch {
            let start = u64::from(*cluster) * CLUSTER_BYTES;
            let end = (start + CLUSTER_BYTES).min(self.size);
            match ranges.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => ranges.push((start, end)),
            }
        }
        let cut = |(start, end): (u64, u64)| {
            (start..end).step_by(max as usize).map(move |at| (at, (end - at).min(max) as u32))
        };
        ranges.into_iter().flat_map(cut).collect()
    }
}

fn read_failure(name: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        exit_code::FAILED,
        format!("cannot read {name}"),
        error,
        "journalctl -u blockd -n 20; blockctl status",
    )
}

/// Puts what was read where it belongs. Holes stay nothing.
fn take(batch: &mut [Cluster], reply: Reply) -> Result<(), String> {
    let Reply::Data { offset, data } = reply else { return Ok(()) };
    let (mut offset, mut data) = (offset, &data[..]);
    while !data.is_empty() {
        let (cluster, from) = ((offset / CLUSTER_BYTES) as u32, (offset % CLUSTER_BYTES) as usize);
        let (now, rest) = data.split_at(data.len().min(CHUNK_BYTES - from));
        let at = batch.binary_search_by_key(&cluster, |(cluster, _)| *cluster);
        let at = at.map_err(|_| format!("the daemon sent cluster {cluster}, which was not asked for"))?;
        let content = batch[at].1.get_or_insert_with(|| vec![0; CHUNK_BYTES]);
        content[from..from + now.len()].copy_from_slice(now);
        offset += now.len() as u64;
        data = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_a_set() {
        let mut clusters = Clusters::new(200 * CLUSTER_BYTES);
        clusters.add(0, 1);
        clusters.add(63 * CLUSTER_BYTES + 5, CLUSTER_BYTES);
        clusters.add(64 * CLUSTER_BYTES, 4096);
        clusters.add(199 * CLUSTER_BYTES, u64::MAX);
        assert_eq!(clusters.iter().take(4).collect::<Vec<_>>(), [0, 63, 64, 199]);
        assert_eq!(clusters.count, clusters.iter().count() as u64);
    }

    #[test]
    fn what_was_read_is_put_where_it_belongs() {
        let mut batch = vec![(3, None), (4, None), (9, None)];
        let data = vec![7; 8192];
        take(&mut batch, Reply::Data { offset: 4 * CLUSTER_BYTES - 4096, data }).unwrap();
        take(&mut batch, Reply::Hole { offset: 9 * CLUSTER_BYTES, length: 65_536 }).unwrap();
        let filled =
            |at: usize| batch[at].1.as_ref().map(|content| content.iter().filter(|byte| **byte == 7).count());
        assert_eq!([filled(0), filled(1), filled(2)], [Some(4096), Some(4096), None]);
        assert_eq!(batch[0].1.as_ref().unwrap()[CHUNK_BYTES - 4096], 7);
        assert!(take(&mut batch, Reply::Data { offset: 5 * CLUSTER_BYTES, data: vec![1] }).is_err());
    }
}
