//! `nbd-server`: plain files, block devices or memory over NBD, in one command.
#![forbid(unsafe_code)]

mod args;
mod exit_code;
mod failure;
mod listeners;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use nbd_server::export::ExportInfo;
use nbd_server::handshake::Offer;
use nbd_server::image::{CacheMode, Image, ImageOptions, open_image};
use nbd_server::memory_export::MemoryExport;
use nbd_server::reactor::{ExportSpec, ReactorStats};
use nbd_server::server::{Server, ServerConfig};
use nbd_server::tls::{CertificateFiles, Security};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use args::{Args, Cache};
use failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::from(exit_code::OK),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn start(args: &Args) -> Result<(), Failure> {
    start_log(&args.log)?;
    let images = open_images(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let fail = |error| Failure::new(exit_code::FAILED, "cannot start", error, "ulimit -a    (descriptors)");
    runtime.map_err(fail)?.block_on(run(args, images))
}

fn start_log(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(exit_code::USAGE, "the log filter is wrong", error, "nbd-server --log debug …")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

fn open_images(args: &Args) -> Result<Vec<Image>, Failure> {
    let mut images = Vec::new();
    for argument in &args.images {
        let (name, path) = name_and_path(argument);
        let cache = match args.cache {
            Cache::Writeback => CacheMode::Writeback,
            Cache::Direct => CacheMode::Direct,
        };
        let options =
            ImageOptions { path, name, read_only: args.read_only, cache, rotational: args.rotational };
        images.push(open_image(&options)?);
    }
    if let Some(size) = args.memory {
        images.push(memory_image(size, args.read_only)?);
    }
    Ok(images)
}

/// `NAME=FILE`, unless a file of that whole name exists; else the file's own name is the export's.
fn name_and_path(argument: &str) -> (String, PathBuf) {
    match argument.split_once('=') {
        Some((name, path)) if !Path::new(argument).exists() => (name.to_owned(), PathBuf::from(path)),
        _ => {
            let path = PathBuf::from(argument);
            let name =
                path.file_name().map_or_else(|| argument.to_owned(), |n| n.to_string_lossy().into_owned());
            (name, path)
        }
    }
}

fn memory_image(size: u64, read_only: bool) -> Result<Image, Failure> {
    let memory = MemoryExport::new(size).map_err(|error| {
        let next = "nbd-server --memory 1G …    (a size that fits)";
        Failure::new(exit_code::FAILED, format!("cannot serve {size} bytes of memory"), error, next)
    })?;
    let info =
        ExportInfo { read_only, fast_zero: true, tells_allocation: true, ..ExportInfo::new("memory", size) };
    let spec = ExportSpec { files: Vec::new(), build: Box::new(move |_| Box::new(memory)) };
    Ok(Image { info, spec })
}

async fn run(args: &Args, images: Vec<Image>) -> Result<(), Failure> {
    let fail = |error: std::io::Error| {
        Failure::new(exit_code::FAILED, "the server failed", error, "nbd-server --log debug …")
    };
    // Before the sockets: a client that finds one may send SIGTERM as soon as it is done.
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let found = listeners::open(args)?;
    let names: Vec<String> = images.iter().map(describe).collect();
    let mut server = Server::start(images, config(args)?)?;
    for name in names {
        tracing::info!("serving {name}");
    }
    for uri in &found.uris {
        tracing::info!("listening on {uri}");
    }
    let mut accepting = tokio::task::JoinSet::new();
    for listener in found.listeners {
        let acceptor = server.acceptor();
        accepting.spawn(async move { acceptor.serve(listener).await });
    }
    notify(NotifyState::Ready);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = server.failed() => return Err(fail(error)),
        Some(ended) = accepting.join_next() => {
            let error = ended.map_or_else(std::io::Error::other, |result| result.err().unwrap_or_else(|| std::io::Error::other("it ended")));
            return Err(Failure::new(exit_code::FAILED, "cannot accept clients", error, "nbd-server --log debug …"));
        }
    }
    notify(NotifyState::Stopping);
    accepting.abort_all();
    report(server.stop().await.map_err(fail)?)
}

fn config(args: &Args) -> Result<ServerConfig, Failure> {
    let security = args.tls_certificates.as_deref().map(certificates).transpose()?;
    Ok(ServerConfig {
        connections_max: args.max_connections,
        connections_per_client_max: args.max_connections_per_client,
        offer: Offer {
            structured_replies: !args.no_structured_replies,
            meta_contexts: !args.no_meta_contexts,
            extended_headers: !args.no_extended_headers && !args.no_structured_replies,
        },
        reactors: usize::from(args.threads),
        poll_window: Duration::from_micros(u64::from(args.poll_us)),
        security,
        ..ServerConfig::default()
    })
}

fn certificates(dir: &Path) -> Result<Arc<dyn Security>, Failure> {
    match CertificateFiles::open(dir) {
        Ok(files) => Ok(Arc::new(files)),
        Err(error) => {
            let next = format!("ls -l {}    (server-cert.pem, server-key.pem, ca-cert.pem)", dir.display());
            Err(Failure::new(exit_code::FAILED, "the certificates cannot be used", error, next))
        }
    }
}

fn describe(image: &Image) -> String {
    let info = &image.info;
    let access = if info.read_only { "read-only" } else { "writable" };
    format!("{:?}: {} bytes, {access}", info.name, info.size)
}

/// Without systemd there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd not notified");
    }
}

fn report(stats: ReactorStats) -> Result<(), Failure> {
    tracing::info!("stopped after {} connections and {} requests", stats.connections, stats.requests);
    if stats.abandoned == 0 {
        return Ok(());
    }
    let why = format!("{} disk operations had not ended when the time was up", stats.abandoned);
    Err(Failure::new(
        exit_code::FAILED,
        "stopped with requests unanswered",
        why,
        "dmesg | tail    (is the disk well?)",
    ))
}
