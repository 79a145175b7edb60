//! `blockctl volume export-file`: a snapshot's content as a sparse raw file.
//!
//! It is written beside the target under another name, synced, and renamed: the target is whole or not there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::exit_code;
use crate::failure::Failure;
use crate::size::Size;

use super::args::ExportFileArgs;
use super::context::{Context, Trying};
use super::import::{connect, data_runs};
use super::nbd_client::{NbdClient, Reply, Request};
use super::progress::Progress;
use super::volume::Changed;

/// Requests that wait to be sent.
const REQUESTS_WAITING_MAX: usize = 16;

pub(super) async fn run(context: &Context, args: &ExportFileArgs) -> Result<(), Failure> {
    refuse_existing(args)?;
    let size = tokio::select! {
        size = write(context, args) => size?,
        _ = tokio::signal::ctrl_c() => return Err(interrupted(args)),
    };
    let sentence = format!("wrote {} to {}, {}", args.name, args.file.display(), Size(size));
    Changed::new("exported", &args.name).tell(context, &sentence)
}

fn interrupted(args: &ExportFileArgs) -> Failure {
    let what = format!("export of {} was interrupted", args.name);
    Failure::new(exit_code::FAILED, what, "Ctrl-C; nothing was left behind", "blockctl volume export-file …")
}

fn refuse_existing(args: &ExportFileArgs) -> Result<(), Failure> {
    if args.force || std::fs::symlink_metadata(&args.file).is_err() {
        return Ok(());
    }
    let what = format!("will not write {}", args.file.display());
    let next = format!("blockctl volume export-file {} {} --force", args.name, args.file.display());
    Err(Failure::new(exit_code::REFUSED, what, "it exists", next))
}

async fn write(context: &Context, args: &ExportFileArgs) -> Result<u64, Failure> {
    let what = || format!("cannot export {}", args.name);
    let export = context.client.export(&args.name).await.trying(what)?;
    let mut client = connect(&export).await?;
    let directory = directory_of(&args.file);
    let fail = |error: io::Error| file_failure(&args.file, &error);
    let mut file = tempfile::Builder::new().prefix(".blockctl-").tempfile_in(&directory).map_err(fail)?;
    file.as_file().set_len(export.size).map_err(fail)?;
    let mut progress = Progress::new(context.format);
    progress.phase(format!("exporting {}", args.name), export.size)?;
    receive(&mut client, file.as_file(), export.size, &mut progress).await.map_err(|error| {
        Failure::new(exit_code::FAILED, what(), error, "journalctl -u blockd -n 20; df -h .")
    })?;
    let force = args.force;
    let target = args.file.clone();
    let publishing = tokio::task::spawn_blocking(move || {
        file.as_file_mut().sync_all()?;
        publish(file, &target, force)?;
        File::open(directory)?.sync_all()
    });
    publishing.await.map_err(|error| fail(io::Error::other(error)))?.map_err(fail)?;
    Ok(export.size)
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn publish(file: NamedTempFile, target: &Path, force: bool) -> io::Result<()> {
    let persisted = if force { file.persist(target) } else { file.persist_noclobber(target) };
    persisted.map(drop).map_err(|error| error.error)
}

fn file_failure(file: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => exit_code::NOT_FOUND,
        io::ErrorKind::PermissionDenied | io::ErrorKind::AlreadyExists => exit_code::REFUSED,
        _ => exit_code::FAILED,
    };
    let what = format!("cannot write {}", file.display());
    Failure::new(code, what, error, format!("df -h {0}; ls -ld {0}", directory_of(file).display()))
}

async fn receive(
    client: &mut NbdClient,
    file: &File,
    size: u64,
    progress: &mut Progress,
) -> Result<(), String> {
    let (sender, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
    let step = client.request_bytes_max();
    let asking = async move {
        let mut offset = 0;
        while offset < size {
            let length = step.min(u32::try_from(size - offset).unwrap_or(step));
            // A closed channel means that the transfer has failed, which the other side tells.
            if sender.send(Request::Read { offset, length }).await.is_err() {
                break;
            }
            offset += u64::from(length);
        }
    };
    let mut done = 0;
    let receiving = client.run(requests, |reply| {
        done += take(file, reply)?;
        progress.done(done).map_err(|failure| failure.why)
    });
    let ((), received) = tokio::join!(asking, receiving);
    received.map_err(|error| error.to_string())
}

/// Writes what is not zero; the file is a hole everywhere else.
fn take(file: &File, reply: Reply) -> Result<u64, String> {
    match reply {
        Reply::Data { offset, data } => {
            for (at, run) in data_runs(offset, &data) {
                file.write_all_at(run, at).map_err(|error| format!("cannot write the file: {error}"))?;
            }
            Ok(data.len() as u64)
        }
        Reply::Hole { length, .. } => Ok(u64::from(length)),
        Reply::Written { .. } | Reply::Flushed => Ok(0),
    }
}
