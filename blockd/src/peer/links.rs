//! Links that stand: what their users hold, how many there may be, and how they end when a host is not trusted any more.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::host_id::HostId;

/// A stream in both directions.
pub trait LinkIo: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> LinkIo for T {}

/// What a link is for; agreed upon in the TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Replication.
    Sync,
    /// What the hosts' agents have to say to each other.
    Agent,
}

/// A connection with a paired host. Whoever holds it knows that the host is the one named: both sides have shown
/// certificates of exactly the CA that the other had stored.
pub struct PeerLink {
    /// The other host.
    pub host: HostId,
    /// What it is called here.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// A secret of this connection that both ends know and nobody else (RFC 5705, `EXPORTER-blockd-peer-1`): bind to it
    /// what must not be carried to another connection.
    pub exporter: [u8; 32],
    /// The bytes. When the host is removed or not trusted any more, reading and writing fail with `ConnectionAborted`.
    pub stream: Box<dyn LinkIo>,
    /// Fires when the host is removed, not trusted any more, or has got another CA.
    pub closed: Closed,
}

impl fmt::Debug for PeerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLink").field("host", &self.host).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Serves the links that other hosts open.
pub trait PeerHandler: Send + Sync {
    /// Serves one link until it ends; dropped when the host is not trusted any more, or the daemon stops. A link that
    /// ends before its first byte is a look whether we are here.
    fn serve(self: Arc<Self>, link: PeerLink) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Has nothing to say: closes every link at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloseAtOnce;

impl PeerHandler for CloseAtOnce {
    fn serve(self: Arc<Self>, link: PeerLink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        drop(link);
        Box::pin(std::future::ready(()))
    }
}

/// Tells when a link must end.
#[derive(Clone, Debug)]
pub struct Closed(watch::Receiver<bool>);

/// Makes a [`Closed`] fire; dropped, it fires as well.
#[derive(Debug)]
pub struct Closer(watch::Sender<bool>);

impl Closer {
    /// A closer and what it closes.
    pub fn new() -> (Self, Closed) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Closed(receiver))
    }

    /// Another one that hears of it.
    pub fn closed(&self) -> Closed {
        Closed(self.0.subscribe())
    }
}

impl Closed {
    /// Waits until the link must end.
    pub async fn wait(&mut self) {
        // An error says that the closer was dropped, which is its way of firing.
        if self.0.wait_for(|&closed| closed).await.is_err() {
            tracing::trace!("links of a host are closed");
        }
    }

    /// Whether it must end already.
    pub fn is_closed(&self) -> bool {
        self.0.has_changed().is_err() || *self.0.borrow()
    }
}

/// The links with all hosts.
#[derive(Debug)]
pub(super) struct Links {
    accepted: Arc<Semaphore>,
    per_host: usize,
    hosts: HashMap<HostId, HostLinks>,
}

/// The links with one host, since it was paired or trusted last.
#[derive(Debug)]
struct HostLinks {
    accepted: Arc<Semaphore>,
    alive: Arc<()>,
    closer: Closer,
}

/// A link's place among the others, given back when it is dropped.
#[derive(Debug)]
pub(super) struct LinkPlace {
    _accepted: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    _alive: Arc<()>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too many links: {0}")]
pub(super) struct NoPlace(&'static str);

impl Links {
    /// None yet; so many may be accepted in all and from each host.
    pub(super) fn new(accepted: usize, per_host: usize) -> Self {
        Self { accepted: Arc::new(Semaphore::new(accepted)), per_host, hosts: HashMap::new() }
    }

    /// A place for a link that the host has opened.
    pub(super) fn accept(&mut self, host: HostId) -> Result<(LinkPlace, Closed), NoPlace> {
        let in_all = Arc::clone(&self.accepted);
        let links = self.of(host);
        let of_host = Arc::clone(&links.accepted).try_acquire_owned();
        let of_host = of_host.map_err(|_| NoPlace("this host has as many as one may have"))?;
        let in_all = in_all.try_acquire_owned();
        let in_all = in_all.map_err(|_| NoPlace("all hosts together have as many as may be"))?;
        let place = LinkPlace { _accepted: Some((of_host, in_all)), _alive: Arc::clone(&links.alive) };
        Ok((place, links.closer.closed()))
    }

    /// A place for a link that we have opened: as many as our own work opens.
    pub(super) fn open(&mut self, host: HostId) -> (LinkPlace, Closed) {
        let links = self.of(host);
        (LinkPlace { _accepted: None, _alive: Arc::clone(&links.alive) }, links.closer.closed())
    }

    /// Ends all links with a host.
    pub(super) fn close(&mut self, host: HostId) {
        // With its sender, and so the closer fires.
        self.hosts.remove(&host);
    }

    /// How many there are with a host.
    pub(super) fn count(&self, host: HostId) -> usize {
        self.hosts.get(&host).map_or(0, |links| Arc::strong_count(&links.alive) - 1)
    }

    fn of(&mut self, host: HostId) -> &mut HostLinks {
        self.hosts.entry(host).or_insert_with(|| HostLinks {
            accepted: Arc::new(Semaphore::new(self.per_host)),
            alive: Arc::default(),
            closer: Closer::new().0,
        })
    }
}

/// A stream that ends when the host is not trusted any more, whoever holds it and whatever that one waits for.
pub(super) struct LinkStream<S> {
    inner: S,
    // One for each direction: the two may be waited for by different tasks, and each must be woken.
    reading: End,
    writing: End,
    _place: LinkPlace,
}

struct End {
    closed: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
}

impl End {
    fn of(mut closed: Closed) -> Self {
        Self { closed: Box::pin(async move { closed.wait().await }), is_over: false }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_over = self.is_over || self.closed.as_mut().poll(context).is_ready();
        if self.is_over {
            return Err(io::Error::new(ErrorKind::ConnectionAborted, "the host is not trusted any more"));
        }
        Ok(())
    }
}

impl<S> LinkStream<S> {
    /// That stream in that place, until it is closed.
    pub(super) fn new(inner: S, place: LinkPlace, closed: &Closed) -> Self {
        Self { inner, reading: End::of(closed.clone()), writing: End::of(closed.clone()), _place: place }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LinkStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reading.check(context)?;
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LinkStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writing.check(context)?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writing.check(context)?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
