//! Listening, handshakes and stopping, on tokio; transmission is the reactors'.
//!
//! ```text
//!  accept ─ limit ─ handshake, TLS in it (10 s) ─ agreement ─► mailbox of the export's reactor
//! ```
//!
//! The directory may be the caller's and change while the server runs; the stop is the server's own.
//!
//! A client costs a [`Seat`] from its accept until its socket is closed, wherever it is served by then.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::client::{Client, quoted};
use crate::connection::Limits;
use crate::disk::ExportIndex;
use crate::engine::Negotiated;
use crate::export::ExportInfo;
use crate::handshake::{
    Agreement, Directory, ExportAddress, Handshake, HandshakeLimits, Offer, Refusal, Step,
};
use crate::image::Image;
use crate::line::{Line, LineError};
use crate::reactor::{ExportSpec, Mailbox, Reactor, ReactorConfig, ReactorSpec, ReactorStats, Waker};
use crate::registry::{Holder, Registry, Share};
use crate::status::MetaContext;
use crate::tls::{Security, Session};
use crate::wire::MAX_STRING_BYTES;

/// What a Unix socket may hold of replies on their way, as far as the system allows (net.core.wmem_max).
/// With the default, 208 KiB, large reads stop and go: the sender sleeps until three quarters are drained,
/// and the receiver is idle before it has woken up.
const UNIX_SEND_BYTES: usize = 1 << 20;

/// Bytes of a client that was turned away which are thrown away before its socket is closed.
const PARTING_BYTES_MAX: usize = 64 << 10;
/// How long that may take.
const PARTING_TIME_MAX: Duration = Duration::from_secs(1);

/// How it is told in the log that a client has all the connections that it may have.
const TOO_MANY_OF_CLIENT: &str = "TOO_MANY_CONNECTIONS_OF_CLIENT";

/// Longer than a client needs between two requests, also when it must be woken first.
pub const DEFAULT_POLL_WINDOW: Duration = Duration::from_micros(100);

/// Bounds and choices of a server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Bounds of each connection.
    pub limits: Limits,
    /// Connections at once, those in the handshake included.
    pub connections_max: u32,
    /// Connections at once of one identity; over TCP in clear, and until TLS has told who it is, of one address. Clients
    /// over the Unix socket are nobody in particular, and bound by the limit of all only.
    pub connections_per_client_max: u32,
    /// How long a handshake may take as a whole.
    pub handshake_timeout: Duration,
    /// Bounds of the option phase.
    pub handshake_limits: HandshakeLimits,
    /// The book of connections.
    pub registry: Registry,
    /// What clients may agree on.
    pub offer: Offer,
    /// Reactor threads; the exports of [`Server::start`] are spread over them.
    pub reactors: usize,
    /// See [`ReactorConfig::poll_window`].
    pub poll_window: Duration,
    /// Clients over TCP must speak TLS and show a certificate; `None`: they speak in clear.
    pub security: Option<Arc<dyn Security>>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connections_max: 100,
            connections_per_client_max: 64,
            handshake_timeout: Duration::from_secs(10),
            handshake_limits: HandshakeLimits::default(),
            registry: Registry::default(),
            offer: Offer::default(),
            reactors: 1,
            poll_window: DEFAULT_POLL_WINDOW,
            security: None,
        }
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Two exports have one name.
    #[error("two exports are named {0:?}")]
    DuplicateName(String),
    /// A name that the protocol cannot carry.
    #[error("an export's name must have 1 to {MAX_STRING_BYTES} bytes and no NUL, its description no more")]
    BadName,
    /// The kernel refuses io_uring.
    #[error("io_uring cannot be used: {0}")]
    Ring(#[source] io::Error),
    /// The system has no thread or descriptor for us.
    #[error("cannot start a reactor: {0}")]
    Thread(#[source] io::Error),
}

/// Where clients come from.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP port.
    Tcp(TcpListener),
}

/// The exports of a server whose exports are known when it starts.
struct Catalog {
    exports: Vec<(ExportInfo, ExportAddress)>,
    by_name: HashMap<Vec<u8>, usize>,
}

impl Directory for Catalog {
    fn count(&self, _client: &Client) -> usize {
        self.exports.len()
    }

    fn list(&self, _client: &Client) -> Vec<ExportInfo> {
        self.exports.iter().map(|(info, _)| info.clone()).collect()
    }

    fn find(&self, _client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        let index = if name.is_empty() { 0 } else { *self.by_name.get(name)? };
        self.exports.get(index).map(|(info, address)| (*address, info.clone()))
    }
}

/// A directory that closes when the server stops.
struct Reception {
    directory: Arc<dyn Directory>,
    stopping: AtomicBool,
}

impl Directory for Reception {
    fn count(&self, client: &Client) -> usize {
        self.directory.count(client)
    }

    fn list(&self, client: &Client) -> Vec<ExportInfo> {
        self.directory.list(client)
    }

    fn find(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        self.directory.find(client, name)
    }

    fn enter(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        self.directory.enter(client, name)
    }

    fn admits(&self, client: &Client, export: &str) -> bool {
        self.directory.admits(client, export)
    }

    fn contexts(&self, client: &Client, name: &[u8]) -> Vec<MetaContext> {
        self.directory.contexts(client, name)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.directory.stopping()
    }
}

struct RunningReactor {
    mailbox: Mailbox,
    thread: JoinHandle<io::Result<ReactorStats>>,
}

/// A running server: reactor threads, and the state that accept loops share.
pub struct Server {
    shared: Arc<Shared>,
    reactors: Vec<RunningReactor>,
    /// One message for every reactor that has ended.
    ended: mpsc::UnboundedReceiver<()>,
}

struct Shared {
    reception: Arc<Reception>,
    mailboxes: Vec<Mailbox>,
    permits: Arc<Semaphore>,
    config: ServerConfig,
}

impl Server {
    /// Starts reactors that serve `images`. The first is the default export (the empty name).
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(images: Vec<Image>, config: ServerConfig) -> Result<Self, StartError> {
        let count = config.reactors.clamp(1, images.len().max(1));
        let (catalog, specs) = place_exports(images, count)?;
        let specs = specs.into_iter().map(ReactorSpec::separate).collect();
        Self::start_with(specs, Arc::new(catalog), config)
    }

    /// Starts one reactor for each of `specs`, whatever [`ServerConfig::reactors`] says. `directory` tells where
    /// exports live: on which reactor, by its place in `specs`, and under which index.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_with(
        specs: Vec<ReactorSpec>,
        directory: Arc<dyn Directory>,
        config: ServerConfig,
    ) -> Result<Self, StartError> {
        let (end, ended) = mpsc::unbounded_channel();
        let mut reactors = Vec::new();
        for (number, spec) in specs.into_iter().enumerate() {
            reactors.push(start_reactor(number, spec, &config, end.clone())?);
        }
        let mailboxes = reactors.iter().map(|reactor| reactor.mailbox.clone()).collect();
        let permits = Arc::new(Semaphore::new(config.connections_max as usize));
        let reception = Arc::new(Reception { directory, stopping: AtomicBool::new(false) });
        let shared = Arc::new(Shared { reception, mailboxes, permits, config });
        Ok(Self { shared, reactors, ended })
    }

    /// What wakes the backend of each reactor, in their order.
    pub fn wakers(&self) -> Vec<Waker> {
        self.shared.mailboxes.iter().map(Mailbox::waker).collect()
    }

    /// What accept loops need; it may outlive the server, and then finds it stopping.
    pub fn acceptor(&self) -> Acceptor {
        Acceptor { shared: Arc::clone(&self.shared) }
    }

    /// Stops: nothing new is accepted into transmission, what is in flight is finished. Returns within
    /// five seconds.
    ///
    /// # Errors
    /// A reactor had failed.
    pub async fn stop(mut self) -> io::Result<ReactorStats> {
        self.shared.reception.stopping.store(true, Ordering::Release);
        for reactor in &self.reactors {
            reactor.mailbox.send_stop()?;
        }
        let mut total = ReactorStats::default();
        for _ in &self.reactors {
            self.ended.recv().await;
        }
        for reactor in self.reactors {
            // All have said that they are at their end, so a join does not hold the runtime up.
            let stats = join(reactor.thread)?;
            total.connections += stats.connections;
            total.requests += stats.requests;
            total.abandoned += stats.abandoned;
        }
        Ok(total)
    }

    /// Ends when a reactor does, which it should not before [`Self::stop`].
    pub async fn failed(&mut self) -> io::Error {
        self.ended.recv().await;
        let Some(at) = self.reactors.iter().position(|reactor| reactor.thread.is_finished()) else {
            return io::Error::other("a reactor ended");
        };
        match join(self.reactors.swap_remove(at).thread) {
            Ok(_) => io::Error::other("a reactor ended by itself"),
            Err(error) => error,
        }
    }
}

/// A connection's place: among all, and among those of its holder.
pub struct Seat {
    _all: OwnedSemaphorePermit,
    share: Option<Share>,
}

impl Shared {
    /// A place for a client that nothing is known of but where it comes from.
    fn seat(&self, client: &Client) -> Result<Seat, &'static str> {
        let all = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| "TOO_MANY_CONNECTIONS")?;
        let share = match client.address {
            None => None,
            Some(address) => {
                let holder = Holder::Address(address.ip().to_canonical());
                Some(self.share(holder).ok_or(TOO_MANY_OF_CLIENT)?)
            }
        };
        Ok(Seat { _all: all, share })
    }

    fn share(&self, holder: Holder) -> Option<Share> {
        self.config.registry.share(holder, self.config.connections_per_client_max)
    }

    /// The place is its identity's from now on, wherever it comes from.
    fn seat_by_identity(&self, seat: &mut Seat, identity: String) -> Result<(), NotAdmitted> {
        let share = self.share(Holder::Identity(identity.clone()));
        seat.share = Some(share.ok_or(NotAdmitted::TooMany(identity))?);
        Ok(())
    }
}

/// Accepts clients for a server.
#[derive(Clone)]
pub struct Acceptor {
    shared: Arc<Shared>,
}

impl Acceptor {
    /// Accepts clients until the future is dropped.
    ///
    /// # Errors
    /// The listener is broken. Failures of single clients, and passing ones (no descriptors left), are
    /// logged and survived.
    pub async fn serve(&self, listener: Listener) -> io::Result<()> {
        loop {
            match &listener {
                Listener::Unix(listener) => match listener.accept().await {
                    Ok((stream, _)) => self.spawn(stream, Client::unix(), |stream| {
                        let stream = stream.into_std()?;
                        set_socket_send_buffer_size(&stream, UNIX_SEND_BYTES)?;
                        stream.set_nonblocking(false)?;
                        Ok(stream.into())
                    }),
                    Err(error) => survive(error).await?,
                },
                Listener::Tcp(listener) => match listener.accept().await {
                    Ok((stream, from)) => self.spawn(stream, Client::tcp(from), |stream| {
                        stream.set_nodelay(true)?;
                        let stream = stream.into_std()?;
                        stream.set_nonblocking(false)?;
                        Ok(stream.into())
                    }),
                    Err(error) => survive(error).await?,
                },
            }
        }
    }

    /// Disconnects the clients in transmission that the directory does not admit any more, whichever reactor serves
    /// them. Those in the handshake are looked at when they leave it.
    ///
    /// # Errors
    /// A reactor cannot be reached.
    pub fn review(&self) -> io::Result<()> {
        let reception = &self.shared.reception;
        self.shared.mailboxes.iter().try_for_each(|mailbox| {
            let reception = Arc::clone(reception);
            mailbox.send_review(Box::new(move |client, export| reception.admits(client, export)))
        })
    }

    fn spawn<S>(
        &self,
        stream: S,
        client: Client,
        into_fd: impl FnOnce(S) -> io::Result<OwnedFd> + Send + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = client.place();
        let seat = match self.shared.seat(&client) {
            Ok(seat) => seat,
            Err(code) => return tracing::warn!(code, peer, "client turned away"),
        };
        let acceptor = self.clone();
        tokio::spawn(async move {
            match acceptor.admit(stream, client, seat, into_fd).await {
                Ok(()) => {}
                Err(NotAdmitted::Refused(Refusal::Aborted)) => {
                    tracing::debug!(code = "ABORTED", "handshake ended");
                }
                Err(NotAdmitted::Refused(refusal)) => {
                    tracing::info!(code = code(refusal), peer, "client turned away");
                }
                Err(NotAdmitted::Tls(why)) => {
                    tracing::info!(
                        code = "TLS_CLIENT_REJECTED",
                        peer,
                        why = quoted(&why),
                        "client turned away"
                    );
                }
                Err(NotAdmitted::TooMany(identity)) => {
                    let identity = quoted(&identity);
                    tracing::warn!(code = TOO_MANY_OF_CLIENT, peer, identity, "client turned away");
                }
                Err(NotAdmitted::TimedOut) => {
                    tracing::info!(code = "HANDSHAKE_TIMEOUT", peer, "client turned away");
                }
                Err(NotAdmitted::Failed(error)) => tracing::debug!(%error, peer, "handshake failed"),
            }
        });
    }

    /// Takes a client through the handshake and hands it to its reactor.
    async fn admit<S>(
        &self,
        mut stream: S,
        client: Client,
        mut seat: Seat,
        into_fd: impl FnOnce(S) -> io::Result<OwnedFd>,
    ) -> Result<(), NotAdmitted>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shared = &self.shared;
        let handshake = negotiate(shared, &mut stream, client, &mut seat);
        let entered = tokio::time::timeout(shared.config.handshake_timeout, handshake).await;
        let entered = entered.unwrap_or(Err(NotAdmitted::TimedOut));
        if let Err(NotAdmitted::Tls(_)) = &entered {
            part(&mut stream).await;
        }
        let Entered { agreement, session, client } = entered?;
        let Agreement { address, rules, leftover } = agreement;
        let (known, export) = (client.clone(), rules.export.name.clone());
        tracing::debug!(replies = ?rules.form(), contexts = rules.contexts.len(), "client enters transmission");
        let entry = Some(shared.config.registry.enter(known.clone(), &export, rules.export.read_only));
        let client = Negotiated { export: address.index, rules, leftover, session, client, entry };
        let mailbox = shared.mailboxes.get(address.reactor);
        let mailbox =
            mailbox.ok_or_else(|| io::Error::other("the directory named a reactor that is not there"))?;
        mailbox.send_client(into_fd(stream)?, client, seat)?;
        // After it was handed over: whoever changes his mind later finds it there.
        if !shared.reception.admits(&known, &export) {
            self.review()?;
        }
        Ok(())
    }
}

/// Why a client does not come in.
enum NotAdmitted {
    Refused(Refusal),
    /// What was wrong with its TLS or its certificate.
    Tls(String),
    /// That identity has as many connections as it may.
    TooMany(String),
    TimedOut,
    Failed(io::Error),
}

impl From<io::Error> for NotAdmitted {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<LineError> for NotAdmitted {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Io(error) => Self::Failed(error),
            LineError::Tls(error) => Self::Tls(error.to_string()),
        }
    }
}

fn join(thread: JoinHandle<io::Result<ReactorStats>>) -> io::Result<ReactorStats> {
    thread.join().map_err(|_| io::Error::other("a reactor panicked"))?
}

/// Gives every export a name, a reactor and a place.
fn place_exports(images: Vec<Image>, reactors: usize) -> Result<(Catalog, Vec<Vec<ExportSpec>>), StartError> {
    let mut specs: Vec<Vec<ExportSpec>> = (0..reactors).map(|_| Vec::new()).collect();
    let (mut exports, mut by_name) = (Vec::new(), HashMap::new());
    for (number, image) in images.into_iter().enumerate() {
        let name = image.info.name.as_bytes();
        let too_long = name.len().max(image.info.description.len()) > MAX_STRING_BYTES;
        if name.is_empty() || too_long || name.contains(&0) {
            return Err(StartError::BadName);
        }
        if by_name.insert(name.to_vec(), number).is_some() {
            return Err(StartError::DuplicateName(image.info.name));
        }
        let reactor = number % reactors;
        // A command line does not hold 2^32 exports.
        let index = ExportIndex(u32::try_from(specs[reactor].len()).expect("few exports"));
        exports.push((image.info, ExportAddress { reactor, index }));
        specs[reactor].push(image.spec);
    }
    Ok((Catalog { exports, by_name }, specs))
}

fn start_reactor(
    number: usize,
    spec: ReactorSpec,
    config: &ServerConfig,
    end: mpsc::UnboundedSender<()>,
) -> Result<RunningReactor, StartError> {
    let config = ReactorConfig {
        limits: config.limits.clone(),
        connections_max: config.connections_max,
        poll_window: config.poll_window,
    };
    let reactor = Reactor::new(spec, config).map_err(StartError::Thread)?;
    let mailbox = reactor.mailbox();
    let (started, standing) = std::sync::mpsc::channel();
    let body = move || {
        // Whoever waits has gone only if the start was given up; then the result does not matter.
        // A receiver that is gone means that the start, or the server, was given up: nobody to tell.
        let result = reactor.run(|| started.send(()).unwrap_or(()));
        end.send(()).unwrap_or(());
        result
    };
    let thread = std::thread::Builder::new().name(format!("reactor-{number}"));
    let thread = thread.spawn(body).map_err(StartError::Thread)?;
    match standing.recv() {
        Ok(()) => Ok(RunningReactor { mailbox, thread }),
        Err(_) => Err(StartError::Ring(join(thread).err().unwrap_or_else(|| io::Error::other("ended")))),
    }
}

/// An accept that failed for want of descriptors or memory is tried again a little later; the clients we
/// have keep being served.
async fn survive(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => Err(error),
        _ => {
            tracing::warn!(%error, "accept failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        }
    }
}

/// A client that may enter transmission.
struct Entered {
    agreement: Agreement,
    session: Option<Box<Session>>,
    client: Client,
}

async fn negotiate<S>(
    shared: &Shared,
    stream: &mut S,
    client: Client,
    seat: &mut Seat,
) -> Result<Entered, NotAdmitted>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let directory: Arc<dyn Directory> = Arc::<Reception>::clone(&shared.reception);
    let security = shared.config.security.as_deref().filter(|_| client.address.is_some());
    let config = &shared.config;
    let mut handshake =
        Handshake::new(directory, config.offer).with_client(client).within(config.handshake_limits);
    if security.is_some() {
        handshake = handshake.requiring_tls();
    }
    let mut line = Line::new(stream);
    line.send(&Handshake::greeting()).await?;
    loop {
        let step = handshake.advance();
        let output = handshake.take_output();
        let sent = line.send(&output).await;
        match (step, security) {
            // A client that aborts need not wait for the answer.
            (Step::Close(refusal), _) => return Err(NotAdmitted::Refused(refusal)),
            (Step::Done(agreement), _) => {
                sent?;
                let client = handshake.client().clone();
                return Ok(Entered { agreement, session: line.into_session(), client });
            }
            (Step::Again, _) => sent?,
            (Step::NeedInput, _) => {
                sent?;
                handshake.receive(&line.receive().await?);
            }
            (Step::StartTls, Some(security)) => {
                sent?;
                start_tls(&mut handshake, &mut line, security).await?;
                if let Some(identity) = handshake.client().identity.clone() {
                    shared.seat_by_identity(seat, identity)?;
                }
            }
            (Step::StartTls, None) => {
                return Err(io::Error::other("TLS is begun where none is spoken").into());
            }
        }
    }
}

/// Lets a client read why it is turned away: a socket that is closed while bytes of the client wait in it is reset, and
/// what we have sent is lost.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let mut waste = [0; 4096];
    let drain = async {
        stream.shutdown().await?;
        let mut left = PARTING_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut waste).await? {
                0 => break,
                bytes => left = left.saturating_sub(bytes),
            }
        }
        io::Result::Ok(())
    };
    match tokio::time::timeout(PARTING_TIME_MAX, drain).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::trace!(%error, "the client has gone first"),
        Err(_) => tracing::trace!("the client stays"),
    }
}

/// Carries the TLS handshake out, and finds out who is there.
async fn start_tls<S>(
    handshake: &mut Handshake,
    line: &mut Line<'_, S>,
    security: &dyn Security,
) -> Result<(), NotAdmitted>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = security.config().map_err(NotAdmitted::Tls)?;
    let behind = line.start_tls(config).await?;
    let chain = line.session().map(Session::chain).unwrap_or_default();
    let identity = security.identify(chain).map_err(NotAdmitted::Tls)?;
    handshake.secured(Client { identity, verified: true, ..handshake.client().clone() });
    handshake.receive(&behind);
    Ok(())
}

fn code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Aborted => "ABORTED",
        Refusal::UnknownClientFlags => "UNKNOWN_CLIENT_FLAGS",
        Refusal::BadOptionMagic => "BAD_OPTION_MAGIC",
        Refusal::OptionTooLarge => "OPTION_TOO_LARGE",
        Refusal::TooManyOptions => "TOO_MANY_OPTIONS",
        Refusal::UnknownExport => "UNKNOWN_EXPORT",
        Refusal::ExportNameAfterExtendedHeaders => "EXPORT_NAME_AFTER_EXTENDED_HEADERS",
        Refusal::Stopping => "STOPPING",
        Refusal::TlsRequired => "TLS_REQUIRED",
        Refusal::PlaintextAfterStarttls => "PLAINTEXT_AFTER_STARTTLS",
    }
}
