//! Identity and paired hosts, opened when somebody needs them: a host that knows no others has none.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::OnceCell;

use super::error::PeerError;
use super::{Inner, Peers, PeersConfig};

/// How often is looked whether the certificate is to be renewed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(12 * 60 * 60);

/// See the module. Clones are handles to the same.
#[derive(Clone)]
pub struct LazyPeers(Arc<(PeersConfig, OnceCell<Peers>)>);

impl LazyPeers {
    /// Nothing is opened yet.
    pub fn new(config: PeersConfig) -> Self {
        Self(Arc::new((config, OnceCell::new())))
    }

    /// Opens them at first, and renews the certificate from then on. Needs a tokio runtime.
    ///
    /// # Errors
    /// As [`Peers::start`]; the next call tries again.
    pub async fn get(&self) -> Result<&Peers, PeerError> {
        let (config, cell) = &*self.0;
        let config = config.clone();
        cell.get_or_try_init(async move || {
            let peers = blocking(move || Peers::start(config)).await?;
            drop(tokio::spawn(keep_renewed(Arc::downgrade(&peers.0))));
            Ok(peers)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PeerError> + Send + 'static,
) -> Result<T, PeerError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| PeerError::io("the host's identity", error))?
}

/// Until the last handle is gone.
async fn keep_renewed(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(RENEWAL_PAUSE).await;
        let Some(inner) = inner.upgrade() else { return };
        let peers = Peers(inner);
        let renewing = peers.clone();
        if let Err(error) = blocking(move || renewing.renew_if_due(SystemTime::now())).await {
            peers.0.teller.tell("host_certificate_not_renewed", peers.name(), error.message);
        }
    }
}
