//! `blockctl archive pull`.
//!
//! The volume is made under another name and gets its own when its hash is the signed one: nobody can take a volume
//! that is half-made or wrong for the one that was asked for.

use tokio::sync::mpsc;

use crate::api::client::ClientError;
use crate::api::types::Kind;
use crate::archive::root::Root;
use crate::archive::{Archive, ArchiveError, FETCH_CLUSTERS_WAITING_MAX, Piece, fetch, hex};
use crate::control::{NAME_BYTES_MAX, SnapshotName};
use crate::exit_code;
use crate::failure::{self, Failure};
use crate::size::Size;
use crate::units::CLUSTER_BYTES;

use super::super::context::{Context, Trying};
use super::super::import::{CLEANUP_PAUSE, CLEANUP_TRIES, clean_up, connect};
use super::super::nbd_client::{NbdClient, Reply, Request};
use super::super::progress::Progress;
use super::super::volume::{Changed, Plan};
use super::{PullArgs, failure, hash};

/// Requests that wait to be sent.
const REQUESTS_WAITING_MAX: usize = 16;

pub(super) async fn run(context: &Context, args: &PullArgs) -> Result<(), Failure> {
    let what = format!("cannot pull {}", args.name);
    let name: SnapshotName =
        args.name.parse().map_err(|error| Failure::new(exit_code::USAGE, what.as_str(), error, ""))?;
    let archive = args.source.open(&what).await?;
    let root = archive.root(&name).await.map_err(|error| failure(&what, error))?;
    let taken = is_taken(context, &args.to).await?;
    if args.plan {
        return plan(context, args, &root, taken);
    }
    if taken {
        let why = format!("there is a volume {} already", args.to);
        return Err(Failure::new(
            exit_code::FAILED,
            what,
            why,
            "blockctl volume list    (choose another name)",
        ));
    }
    let draft = draft_name(&args.to)?;
    context.client.create_volume(&draft, root.size).await.trying(|| what.clone())?;
    let restored = tokio::select! {
        restored = restore(context, args, &archive, &root, &draft) => restored,
        _ = tokio::signal::ctrl_c() => {
            let what = format!("pull of {} was interrupted", args.name);
            Err(Failure::new(exit_code::FAILED, what, "Ctrl-C", "blockctl archive pull …    (begins anew)"))
        }
    };
    if let Err(failure) = restored {
        return Err(give_up(context, &draft, &name, failure).await);
    }
    let sentence = format!(
        "pulled {} as {}, {}, with its snapshot {}@{}; BLAKE3 {}, as signed",
        args.name,
        args.to,
        Size(root.size),
        args.to,
        name.snapshot,
        hex(&root.hash)
    );
    Changed::new("pulled", &args.to).tell(context, &sentence)
}

async fn is_taken(context: &Context, name: &str) -> Result<bool, Failure> {
    match context.client.volume(name).await {
        Ok(_) => Ok(true),
        Err(ClientError::Refused(error)) if error.kind == Kind::NotFound => Ok(false),
        Err(error) => Err(failure::of_client(format!("cannot look for {name}"), &error)),
    }
}

fn plan(context: &Context, args: &PullArgs, root: &Root, taken: bool) -> Result<(), Failure> {
    let data = Size(root.clusters * CLUSTER_BYTES);
    let would =
        format!("would create {}, {}, {data} of it data, from {}", args.to, Size(root.size), args.name);
    let obstacles = taken.then(|| format!("there is a volume {} already", args.to)).into_iter().collect();
    Plan { action: "pulled", name: &args.to, would, obstacles, blocked_code: exit_code::FAILED }.tell(context)
}

/// What the volume is called until it is known to be right.
fn draft_name(name: &str) -> Result<String, Failure> {
    let draft = format!("{name}.pulling-{:08x}", fastrand::u32(..));
    if draft.len() <= NAME_BYTES_MAX {
        return Ok(draft);
    }
    let why = format!("while it is pulled it is called {draft}, which has more than {NAME_BYTES_MAX} bytes");
    Err(Failure::new(exit_code::USAGE, format!("cannot pull to {name}"), why, "choose a shorter name"))
}

/// Fills the volume, checks it, and gives it its name.
async fn restore(
    context: &Context,
    args: &PullArgs,
    archive: &Archive,
    root: &Root,
    draft: &str,
) -> Result<(), Failure> {
    let what = || format!("cannot pull {}", args.name);
    let index = archive.load_index().await.map_err(|error| failure(what(), error))?.index;
    let export = context.client.export(draft).await.trying(what)?;
    let mut client = connect(&export).await?;
    let mut progress = Progress::new(context.format);
    progress.phase(format!("pulling {}", args.name), root.clusters * CLUSTER_BYTES)?;
    let (sender, pieces) = mpsc::channel(FETCH_CLUSTERS_WAITING_MAX);
    // It owns the sending end, which ends the others with it.
    let fetching = async move { fetch(archive, &index, root, &sender).await };
    let (fetched, written) =
        tokio::join!(fetching, write(&mut client, root.size, pieces, &mut progress, args));
    // When the writing failed, the fetching has failed for want of a receiver.
    written?;
    fetched.map_err(|error| failure(what(), error))?;
    let local = |error: &dyn std::fmt::Display| write_failure(args, error);
    client.flush().await.map_err(|error| local(&error))?;
    client.disconnect().await.map_err(|error| local(&error))?;
    drop(progress);
    check(context, args, root, draft).await?;
    rename(context, draft, &args.to).await
}

async fn write(
    client: &mut NbdClient,
    size: u64,
    pieces: mpsc::Receiver<Piece>,
    progress: &mut Progress,
    args: &PullArgs,
) -> Result<(), Failure> {
    let (sender, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
    let mut done = 0;
    let writing = client.run(requests, |reply| {
        if let Reply::Written { length, .. } = reply {
            done += u64::from(length);
            progress.done(done).map_err(|failure| failure.why)?;
        }
        Ok(())
    });
    let (asked, written) = tokio::join!(ask(pieces, size, sender), writing);
    written.map_err(|error| write_failure(args, &error))?;
    asked.map_err(|error| failure(format!("cannot pull {}", args.name), error))
}

/// Makes requests of what was fetched; damage ends it.
async fn ask(
    mut pieces: mpsc::Receiver<Piece>,
    size: u64,
    requests: mpsc::Sender<Request>,
) -> Result<(), ArchiveError> {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Done { .. } => {}
            Piece::Damaged(damage) => return Err(ArchiveError::damaged(damage.object, damage.why)),
            Piece::Data { clusters, content } => {
                for cluster in clusters {
                    let offset = u64::from(cluster) * CLUSTER_BYTES;
                    let length = (size - offset).min(CLUSTER_BYTES) as usize;
                    let data = content[..length].to_vec();
                    // A closed channel means that the writing has failed, which the other side tells.
                    if requests.send(Request::Write { offset, data }).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

fn write_failure(args: &PullArgs, error: &dyn std::fmt::Display) -> Failure {
    let next = "blockctl status    (is there room?); journalctl -u blockd -n 20";
    Failure::new(exit_code::FAILED, format!("cannot write {}", args.to), error, next)
}

/// Takes the snapshot, and compares its hash with the signed one.
async fn check(context: &Context, args: &PullArgs, root: &Root, draft: &str) -> Result<(), Failure> {
    let what = || format!("cannot check {}", args.name);
    let snapshot = format!("{draft}@{}", root.name.snapshot);
    context.client.create_snapshots(std::slice::from_ref(&snapshot)).await.trying(what)?;
    let found = hash(context, &snapshot).await?;
    if found == root.hash {
        return Ok(());
    }
    let why = format!("the image has BLAKE3 {}, the archive signed {}", hex(&found), hex(&root.hash));
    let next = "blockctl archive verify --from URL --key FILE.pub --read-data";
    Err(Failure::new(
        exit_code::VERIFICATION_FAILED,
        format!("{} is not what was pushed", args.name),
        why,
        next,
    ))
}

/// The daemon needs a moment to see that its client is gone.
async fn rename(context: &Context, draft: &str, name: &str) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        match context.client.rename_volume(draft, name).await {
            Err(ClientError::Refused(error)) if error.kind == Kind::Busy && tries < CLEANUP_TRIES => {
                tries += 1;
                tokio::time::sleep(CLEANUP_PAUSE).await;
            }
            renamed => return renamed.trying(|| format!("cannot rename {draft} to {name}")),
        }
    }
}

/// Removes what was made, and says in the failure what became of it.
async fn give_up(context: &Context, draft: &str, name: &SnapshotName, failure: Failure) -> Failure {
    let snapshot = format!("{draft}@{}", name.snapshot);
    match context.client.delete_snapshot(&snapshot).await {
        Ok(()) => {}
        Err(ClientError::Refused(error)) if error.kind == Kind::NotFound => {}
        Err(error) => tracing::debug!(%error, snapshot, "the volume's deletion will tell"),
    }
    clean_up(context, draft, failure).await
}
