//! The other end of a tunnel: what another host's agent has to say is handed to this host's.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::UnixStream;

use super::host_id::HostId;
use super::{PeerHandler, PeerLink, Purpose};

/// Bytes on their way in each direction of a tunnel. A machine's memory goes through it: large, so that it is not the
/// tunnel that limits it.
pub const TUNNEL_BUFFER_BYTES: usize = 256 << 10;

/// What the agent is told first, as one line of JSON: who is there, as mutual TLS has proved it.
#[derive(Serialize)]
struct Introduction<'a> {
    v: u32,
    /// What the other host is called here.
    host: &'a str,
    host_id: HostId,
}

/// Hands links to whom they are for: replication to one handler, agents' to the agent's socket.
pub struct Reception {
    /// Serves replication.
    pub sync: Arc<dyn PeerHandler>,
    /// Where this host's agent listens.
    pub agent_socket: PathBuf,
}

impl PeerHandler for Reception {
    fn serve(self: Arc<Self>, link: PeerLink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match link.purpose {
            Purpose::Sync => Arc::clone(&self.sync).serve(link),
            Purpose::Agent => Box::pin(async move { self.hand_over(link).await }),
        }
    }
}

impl Reception {
    async fn hand_over(&self, mut link: PeerLink) {
        let mut agent = match UnixStream::connect(&self.agent_socket).await {
            Ok(agent) => agent,
            Err(error) => {
                let socket = self.agent_socket.display();
                return tracing::warn!(host = link.name, %socket, %error, "another host's agent finds none here");
            }
        };
        let introduction = Introduction { v: 1, host: &link.name, host_id: link.host };
        let mut line = serde_json::to_vec(&introduction).expect("a name and a number are JSON");
        line.push(b'\n');
        let size = TUNNEL_BUFFER_BYTES;
        let carried = async {
            agent.write_all(&line).await?;
            copy_bidirectional_with_sizes(&mut agent, &mut link.stream, size, size).await
        };
        match carried.await {
            Ok((sent, received)) => tracing::debug!(host = link.name, sent, received, "a tunnel was closed"),
            Err(error) => tracing::debug!(host = link.name, %error, "a tunnel broke off"),
        }
    }
}
