//! Opens the sockets: inherited ones (LISTEN_FDS), a Unix path, a TCP address.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use nbd_server::server::Listener;
use rustix::fs::Mode;
use rustix::process::umask;

use crate::args::Args;
use crate::exit_code;
use crate::failure::Failure;

/// Where clients find us when nothing was said.
const DEFAULT_PORT: u16 = 10_809;

/// The sockets, and what must be cleaned up.
pub(crate) struct Listeners {
    pub(crate) listeners: Vec<Listener>,
    /// How to reach them, for people.
    pub(crate) uris: Vec<String>,
    _socket_file: Option<SocketFile>,
}

/// Removes the Unix socket's file at the end.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, "socket file was gone already");
        }
    }
}

/// Opens everything that was asked for.
pub(crate) fn open(args: &Args) -> Result<Listeners, Failure> {
    let mut found = Listeners { listeners: Vec::new(), uris: Vec::new(), _socket_file: None };
    inherited(&mut found).map_err(|error| socket_failure("the inherited sockets", &error))?;
    if let Some(path) = &args.unix {
        let listener = bind_unix(path)?;
        found._socket_file = Some(SocketFile(path.clone()));
        add_unix(&mut found, listener)
            .map_err(|error| socket_failure(&path.display().to_string(), &error))?;
        found.uris.push(format!("nbd+unix:///?socket={}", path.display()));
    }
    let nothing_yet = found.listeners.is_empty();
    let default = nothing_yet.then(|| SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)));
    if let Some(address) = args.listen.or(default) {
        let tls = args.tls_certificates.is_some();
        let uri = bind_tcp(&mut found.listeners, address, args.insecure_tcp || tls)?;
        found.uris.push(if tls { uri.replacen("nbd", "nbds", 1) } else { uri });
    }
    Ok(found)
}

fn inherited(found: &mut Listeners) -> io::Result<()> {
    let mut fds = ListenFd::from_env();
    for index in 0..fds.len() {
        if let Ok(Some(listener)) = fds.take_unix_listener(index) {
            add_unix(found, listener)?;
        } else if let Some(listener) = fds.take_tcp_listener(index)? {
            listener.set_nonblocking(true)?;
            found.listeners.push(Listener::Tcp(tokio::net::TcpListener::from_std(listener)?));
        }
    }
    if fds.len() > 0 {
        found.uris.push("an inherited socket".to_owned());
    }
    Ok(())
}

fn add_unix(found: &mut Listeners, listener: UnixListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    found.listeners.push(Listener::Unix(tokio::net::UnixListener::from_std(listener)?));
    Ok(())
}

/// Binds a path. A socket that nobody listens on any more is replaced; anything else that stands there
/// is left alone.
fn bind_unix(path: &Path) -> Result<UnixListener, Failure> {
    let what = format!("cannot listen on {}", path.display());
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            let why = "there is a file of another kind in its place";
            return Err(Failure::new(exit_code::BUSY, what, why, format!("ls -l {}", path.display())));
        }
        if UnixStream::connect(path).is_ok() {
            let why = "another server listens on it";
            return Err(Failure::new(exit_code::BUSY, what, why, format!("fuser -v {}", path.display())));
        }
        std::fs::remove_file(path).map_err(|error| socket_failure(&path.display().to_string(), &error))?;
    }
    // Nobody but the owner may connect from the very first moment on: a later chmod would leave a gap.
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    bound.map_err(|error| socket_failure(&path.display().to_string(), &error))
}

fn bind_tcp(listeners: &mut Vec<Listener>, address: SocketAddr, anywhere: bool) -> Result<String, Failure> {
    if !address.ip().is_loopback() && !anywhere {
        let why = "other hosts could reach it, and nothing would be encrypted or authenticated";
        let next = format!(
            "nbd-server … --listen 127.0.0.1:{}    (or --tls-certificates DIR; or --insecure-tcp on a trusted link)",
            address.port()
        );
        return Err(Failure::new(exit_code::REFUSED, format!("will not listen on {address}"), why, next));
    }
    let fail = |error: io::Error| socket_failure(&address.to_string(), &error);
    let listener = TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let uri = format!("nbd://{}", listener.local_addr().map_err(fail)?);
    listeners.push(Listener::Tcp(tokio::net::TcpListener::from_std(listener).map_err(fail)?));
    Ok(uri)
}

fn socket_failure(place: &str, error: &io::Error) -> Failure {
    let (code, next) = match error.kind() {
        io::ErrorKind::AddrInUse => (exit_code::BUSY, "ss -ltnp    (shows who listens where)".to_owned()),
        io::ErrorKind::PermissionDenied => (exit_code::REFUSED, format!("ls -ld $(dirname {place})")),
        io::ErrorKind::NotFound => (exit_code::NOT_FOUND, format!("mkdir -p $(dirname {place})")),
        io::ErrorKind::InvalidInput => {
            (exit_code::USAGE, "choose a shorter path: a Unix socket's has at most 107 bytes".to_owned())
        }
        _ => (exit_code::FAILED, "nbd-server --help".to_owned()),
    };
    Failure::new(code, format!("cannot listen on {place}"), error, next)
}
