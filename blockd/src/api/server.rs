//! The API behind its socket.

use std::os::unix::net::UnixListener;

use local_api::server::Api;
pub use local_api::server::{ApiServer, BindError, BoundSocket, CONNECTIONS_MAX_DEFAULT, SocketFile, bind};

use super::routes::router;
use crate::service::Service;

/// Starts to accept clients, in a tokio runtime.
///
/// # Errors
/// The group is not known, or a listener cannot be used.
pub fn start(
    listeners: Vec<UnixListener>,
    service: Service,
    group: Option<&str>,
    connections_max: usize,
) -> Result<ApiServer, BindError> {
    let events = service.events.clone();
    let api = Api { router: router(service), events, called: "daemon" };
    ApiServer::start(listeners, api, group, connections_max)
}
