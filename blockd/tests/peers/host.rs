//! A host for one test: its directory, its identity, and its port on loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blockd::events::Events;
use blockd::peer::{
    NewToken, PairRequest, PairedHost, PeerError, PeerHandler, PeerLimits, PeerLink, Peers, PeersConfig,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longer than anything takes; a test that fails does so in the end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Sends back what it gets, and tells of every link.
struct Echo(mpsc::UnboundedSender<(String, [u8; 32])>);

impl PeerHandler for Echo {
    fn serve(self: Arc<Self>, mut link: PeerLink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            self.0.send((link.name.clone(), link.exporter)).unwrap();
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = link.stream.read(&mut bytes).await {
                if link.stream.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        })
    }
}

pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) peers: Peers,
    pub(crate) events: Events,
    pub(crate) address: SocketAddr,
    /// Names and exporters of links that were let in.
    pub(crate) served: mpsc::UnboundedReceiver<(String, [u8; 32])>,
    serving: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Host {
    pub(crate) async fn new(name: &str) -> Self {
        Self::with_limits(name, PeerLimits::default()).await
    }

    pub(crate) async fn with_limits(name: &str, limits: PeerLimits) -> Self {
        Self::at(tempfile::tempdir().unwrap(), name, limits).await
    }

    /// In a directory that may have an identity already.
    pub(crate) async fn at(dir: TempDir, name: &str, limits: PeerLimits) -> Self {
        let events = Events::default();
        let config = PeersConfig {
            data: dir.path().to_owned(),
            name: name.to_owned(),
            events: events.clone(),
            limits,
        };
        let peers = Peers::start(config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, served) = mpsc::unbounded_channel();
        let serving = tokio::spawn(peers.serve(listener, Arc::new(Echo(sender))));
        Self { dir, peers, events, address, served, serving }
    }

    /// Ends it; what is left is its directory.
    pub(crate) fn stop(self) -> TempDir {
        let mut this = self;
        this.serving.abort();
        std::mem::replace(&mut this.dir, tempfile::tempdir().unwrap())
    }

    /// A token of this host.
    pub(crate) fn token(&self) -> String {
        self.token_with(NewToken::default())
    }

    pub(crate) fn token_with(&self, terms: NewToken) -> String {
        let time_max = Duration::from_secs(600);
        self.peers.new_token(NewToken { time_max, ..terms }).unwrap().to_text()
    }

    /// Uses a token.
    pub(crate) async fn join(&self, token: &str) -> Result<PairedHost, PeerError> {
        self.peers.pair(PairRequest { token: token.to_owned(), ..PairRequest::default() }).await
    }

    /// Pairs with another host, which gets the token.
    pub(crate) async fn pair_with(&self, other: &Self) {
        self.join(&other.token()).await.unwrap();
    }

    /// Waits for an event of that kind; its message.
    pub(crate) async fn event(&self, kind: &str) -> String {
        let waiting = async {
            let mut after = 0;
            loop {
                let page = self.events.wait_after(after, PATIENCE).await;
                if let Some(event) = page.events.iter().find(|event| event.kind == kind) {
                    return format!("{}: {}", event.subject, event.message);
                }
                after = page.next_after;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no event {kind}"))
    }
}

/// Two hosts that are paired; the first has used the second's token.
pub(crate) async fn pair() -> (Host, Host) {
    let (a, b) = (Host::new("A").await, Host::new("B").await);
    a.pair_with(&b).await;
    (a, b)
}

/// Says something and hears it back.
pub(crate) async fn echo(link: &mut PeerLink) -> std::io::Result<()> {
    link.stream.write_all(b"hello").await?;
    link.stream.flush().await?;
    let mut bytes = [0; 5];
    tokio::time::timeout(PATIENCE, link.stream.read_exact(&mut bytes)).await.unwrap()?;
    assert_eq!(&bytes, b"hello");
    Ok(())
}
