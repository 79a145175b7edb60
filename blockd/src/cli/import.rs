//! `blockctl volume import`: a volume from an image file.
//!
//! Raw images are written here, as an NBD client of the new volume; others go through `qemu-img convert`. Either
//! the volume is whole and durable at the end, or it is removed again.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::api::client::ClientError;
use crate::api::types::{ExportInfo, Kind};
use crate::exit_code;
use crate::failure::{self, Failure};
use crate::size::Size;
use crate::units::{BLOCK_BYTES, SIZE_UNIT_BYTES};

use super::args::ImportArgs;
use super::context::{Context, Trying};
use super::nbd_client::{NbdClient, NbdError, Reply, Request};
use super::progress::Progress;
use super::qemu_img;
use super::volume::{Changed, Plan, volume_size};

/// Requests that wait to be sent: the file is read so far ahead.
const REQUESTS_WAITING_MAX: usize = 8;
/// How often, and with which pauses, a half-made volume is tried to be deleted: the daemon needs a moment to see
/// that its client is gone.
pub(super) const CLEANUP_TRIES: u32 = 25;
pub(super) const CLEANUP_PAUSE: Duration = Duration::from_millis(200);
/// How other formats begin; used where `qemu-img` cannot be asked.
const MAGICS: [&[u8]; 5] = [b"QFI\xfb", b"KDMV", b"# Disk DescriptorFile", b"vhdxfile", b"conectix"];

/// An image that was looked at.
struct Source {
    path: PathBuf,
    format: String,
    /// Bytes of the disk in it.
    size: u64,
}

pub(super) async fn run(context: &Context, args: &ImportArgs) -> Result<(), Failure> {
    let source = look_at(args).await?;
    let size = volume_size(source.size)?;
    if args.plan {
        return plan(context, args, &source, size).await;
    }
    let name = &args.name;
    context.client.create_volume(name, size).await.trying(|| format!("cannot import {name}"))?;
    let copied = tokio::select! {
        copied = copy(context, name, &source) => copied,
        _ = tokio::signal::ctrl_c() => Err(interrupted(name)),
    };
    match copied {
        Ok(()) => {
            let sentence = format!(
                "imported {name}, {}, from {} ({})",
                Size(size),
                source.path.display(),
                source.format
            );
            Changed::new("imported", name).tell(context, &sentence)
        }
        Err(failure) => Err(clean_up(context, name, failure).await),
    }
}

fn interrupted(name: &str) -> Failure {
    let next = "blockctl volume import …    (begins anew)";
    Failure::new(exit_code::FAILED, format!("import of {name} was interrupted"), "Ctrl-C", next)
}

async fn plan(context: &Context, args: &ImportArgs, source: &Source, size: u64) -> Result<(), Failure> {
    let name = &args.name;
    let taken = match context.client.volume(name).await {
        Ok(_) => true,
        Err(ClientError::Refused(error)) if error.kind == Kind::NotFound => false,
        Err(error) => return Err(failure::of_client(format!("cannot import {name}"), &error)),
    };
    let would =
        format!("would create {name}, {}, from {} ({})", Size(size), source.path.display(), source.format);
    let obstacles = taken.then(|| format!("there is a volume {name} already")).into_iter().collect();
    Plan { action: "imported", name, would, obstacles, blocked_code: exit_code::FAILED }.tell(context)
}

/// Removes the half-made volume, and says in the failure what became of it.
pub(super) async fn clean_up(context: &Context, name: &str, failure: Failure) -> Failure {
    for _ in 0..CLEANUP_TRIES {
        match context.client.delete_volume(name).await {
            Ok(()) => {
                let why = format!("{}; the half-made volume was removed", failure.why);
                return Failure { why, ..failure };
            }
            Err(ClientError::Refused(error)) if error.kind == Kind::Busy => {
                tokio::time::sleep(CLEANUP_PAUSE).await;
            }
            Err(_) => break,
        }
    }
    let why = format!("{}; the half-made volume {name} is still there", failure.why);
    Failure { why, next: format!("blockctl volume delete {name}"), ..failure }
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => exit_code::NOT_FOUND,
        io::ErrorKind::PermissionDenied => exit_code::REFUSED,
        _ => exit_code::FAILED,
    };
    let shown = path.display();
    Failure::new(code, format!("cannot read {shown}"), error, format!("ls -l {shown}"))
}

/// Finds out what the image is, and refuses what it must not be.
async fn look_at(args: &ImportArgs) -> Result<Source, Failure> {
    // Absolute, and without links: what is looked at is what is read.
    let path = std::fs::canonicalize(&args.file).map_err(|error| cannot_read(&args.file, &error))?;
    let size = file_size(&path).map_err(|error| cannot_read(&path, &error))?;
    if let Some(format) = &args.format {
        check_format(&path, format)?;
    }
    let source = match args.format.as_deref() {
        Some("raw") => Source { path, format: "raw".to_owned(), size },
        format => detect(path, size, format, args.allow_backing).await?,
    };
    if source.size == 0 {
        let next = format!("qemu-img info {}", source.path.display());
        return Err(Failure::new(exit_code::USAGE, "cannot import it", "the image is empty", next));
    }
    Ok(source)
}

fn check_format(path: &Path, format: &str) -> Result<(), Failure> {
    if qemu_img::FORMATS.contains(&format) {
        return Ok(());
    }
    let why = format!("{format} is none of the formats of image files");
    let next = format!("--format {}", qemu_img::FORMATS.join("|"));
    Err(Failure::new(exit_code::USAGE, format!("cannot import {}", path.display()), why, next))
}

/// Bytes of a file or block device; other things (a pipe would block for ever) are refused.
fn file_size(path: &Path) -> io::Result<u64> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    if metadata.file_type().is_block_device() {
        return File::open(path)?.seek(io::SeekFrom::End(0));
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device"))
}

async fn detect(
    path: PathBuf,
    size: u64,
    format: Option<&str>,
    allow_backing: bool,
) -> Result<Source, Failure> {
    let info = match qemu_img::info(&path, format).await {
        Ok(info) => info,
        // Without qemu-img, what does not look like another format is raw.
        Err(failure) if failure.why.contains("not installed") && format.is_none() => {
            let known = looks_like_another(&path).map_err(|error| cannot_read(&path, &error))?;
            return if known { Err(failure) } else { Ok(Source { path, format: "raw".to_owned(), size }) };
        }
        Err(failure) => return Err(failure),
    };
    check_format(&path, &info.format)?;
    if !info.references.is_empty() && !allow_backing {
        let why = format!("it names other files of this host: {}", info.references.join(", "));
        let next = "--allow-backing if you trust the image, or --format raw if it is a guest's raw disk";
        let what = format!("will not import {}", path.display());
        return Err(Failure::new(exit_code::REFUSED, what, why, next));
    }
    Ok(Source { path, format: info.format, size: info.virtual_size })
}

fn looks_like_another(path: &Path) -> io::Result<bool> {
    let mut head = [0; 32];
    let count = File::open(path)?.read_at(&mut head, 0)?;
    Ok(MAGICS.iter().any(|magic| head[..count].starts_with(magic)))
}

/// Copies the image onto the volume's export, and makes it durable.
async fn copy(context: &Context, name: &str, source: &Source) -> Result<(), Failure> {
    let export = context.client.export(name).await.trying(|| format!("cannot import {name}"))?;
    let mut progress = Progress::new(context.format);
    progress.phase(format!("importing {name}"), source.size)?;
    let mut client = connect(&export).await?;
    let fail = |error: NbdError| copy_failure(name, &error);
    if source.format == "raw" {
        copy_raw(&mut client, source, &mut progress).await?;
    } else {
        let uri = export.uri.clone().unwrap_or_default();
        qemu_img::convert(&source.path, &source.format, &uri, |percent| {
            progress.done((source.size as f64 * percent / 100.0) as u64)
        })
        .await?;
    }
    // Also after qemu-img, which does not tell whether its own last flush succeeded. A flush on one connection
    // covers what was answered on all.
    client.flush().await.map_err(fail)?;
    client.disconnect().await.map_err(fail)
}

/// Opens an export on the daemon's NBD socket.
pub(super) async fn connect(export: &ExportInfo) -> Result<NbdClient, Failure> {
    let Some(socket) = &export.unix else {
        let why = "the daemon has no Unix socket for NBD";
        let what = format!("cannot open export {}", export.name);
        return Err(Failure::new(exit_code::UNREACHABLE, what, why, "blockd serve --nbd-unix PATH …"));
    };
    let client = NbdClient::connect(Path::new(socket), &export.name).await;
    let client = client.map_err(|error| {
        let code = match &error {
            NbdError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => exit_code::REFUSED,
            NbdError::Io(_) => exit_code::UNREACHABLE,
            _ => exit_code::FAILED,
        };
        Failure::new(code, format!("cannot open export {}", export.name), error, format!("ls -l {socket}"))
    })?;
    if client.size() == export.size {
        return Ok(client);
    }
    let why = format!("it has {} bytes, the daemon said {}", client.size(), export.size);
    Err(Failure::new(
        exit_code::FAILED,
        format!("export {} is another", export.name),
        why,
        "blockctl export list",
    ))
}

fn copy_failure(name: &str, error: &NbdError) -> Failure {
    Failure::new(
        exit_code::FAILED,
        format!("cannot copy {name}"),
        error,
        "journalctl -u blockd -n 20; blockctl status",
    )
}

async fn copy_raw(client: &mut NbdClient, source: &Source, progress: &mut Progress) -> Result<(), Failure> {
    let (sender, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
    let (path, size, chunk) = (source.path.clone(), source.size, client.request_bytes_max() as usize);
    let reading = tokio::task::spawn_blocking(move || read_image(&path, size, chunk, &sender));
    let mut furthest = 0;
    let mut shown = Ok(());
    let sent = client
        .run(requests, |reply| {
            if let Reply::Written { offset, length } = reply {
                furthest = furthest.max(offset + u64::from(length));
                shown = progress.done(furthest.min(size));
            }
            Ok(())
        })
        .await;
    sent.map_err(|error| copy_failure(&source.path.display().to_string(), &error))?;
    shown?;
    let read = reading.await.map_err(|error| cannot_read(&source.path, &io::Error::other(error)))?;
    read.map_err(|error| cannot_read(&source.path, &error))
}

/// Reads what has data and is not zero; runs on a thread of its own, ends early when nobody takes the requests.
fn read_image(path: &Path, size: u64, chunk: usize, requests: &mpsc::Sender<Request>) -> io::Result<()> {
    let file = File::open(path)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&file, at, size)? {
        at = start;
        while at < end {
            let length = chunk.min(usize::try_from(end - at).unwrap_or(chunk));
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at)?;
            // The volume's size is a multiple of the sector; what the file lacks is zero.
            bytes.resize(length.next_multiple_of(SIZE_UNIT_BYTES as usize), 0);
            for (offset, data) in data_runs(at, &bytes) {
                if requests.blocking_send(Request::Write { offset, data: data.to_vec() }).is_err() {
                    return Ok(());
                }
            }
            at += length as u64;
        }
    }
    Ok(())
}

/// The next range that is no hole, from a whole block on; where holes are unknown, all the rest.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.max(at) / BLOCK_BYTES * BLOCK_BYTES,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(error) => return Err(error.into()),
    };
    let end = match seek(file, SeekFrom::Hole(start.max(at))) {
        Ok(end) => end.next_multiple_of(BLOCK_BYTES).min(size),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
        Err(error) => return Err(error.into()),
    };
    Ok((start < end && start < size).then_some((start.max(at), end)))
}

/// The runs of blocks that are not all zero.
pub(super) fn data_runs(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    const ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    let is_zero = |block: &[u8]| block == &ZEROES[..block.len()];
    let blocks: Vec<&[u8]> = bytes.chunks(ZEROES.len()).collect();
    let mut index = 0;
    std::iter::from_fn(move || {
        while index < blocks.len() && is_zero(blocks[index]) {
            index += 1;
        }
        let first = index;
        while index < blocks.len() && !is_zero(blocks[index]) {
            index += 1;
        }
        let range = first * ZEROES.len()..(index * ZEROES.len()).min(bytes.len());
        (first < index).then(|| (offset + range.start as u64, &bytes[range]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_left_out() {
        let mut bytes = vec![0; 4 * 4096 + 512];
        bytes[4096] = 1;
        bytes[3 * 4096 + 5] = 1;
        bytes[4 * 4096 + 511] = 1;
        let runs: Vec<_> =
            data_runs(1 << 20, &bytes).map(|(offset, data)| (offset - (1 << 20), data.len())).collect();
        assert_eq!(runs, [(4096, 4096), (3 * 4096, 4096 + 512)]);
        assert_eq!(data_runs(0, &[0; 8192]).count(), 0);
    }

    #[test]
    fn holes_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 100], 300_000).unwrap();
        let (start, end) = next_data(&file, 0, 1 << 20).unwrap().unwrap();
        assert!(start <= 300_000 && 300_100 <= end && start.is_multiple_of(BLOCK_BYTES), "{start}..{end}");
        assert!(end == 1 << 20 || next_data(&file, end, 1 << 20).unwrap().is_none());
    }
}
