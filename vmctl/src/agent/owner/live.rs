//! A QEMU that is there, and the connection to its monitor.

use std::future::pending;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind};
use crate::qmp::{Client, Connection, Event, Events, Greeting, Limits, QmpError};
use crate::vm::process::Process;

/// How long a monitor may take to greet. The owner waits for it, so not for long.
const GREETING_TIME_MAX: Duration = Duration::from_secs(3);
/// How long its commands may take: more than QEMU's reconnect-delay, while which the monitor is blocked.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(8);

/// A QEMU.
pub(super) struct Live {
    /// Its process.
    pub(super) process: Process,
    /// Its monitor; `None`: not connected.
    pub(super) link: Option<Link>,
    /// When to try to connect again.
    pub(super) connect_at: Instant,
    /// The guest has powered off, or QEMU said otherwise why it ends.
    pub(super) said: Option<String>,
}

/// A connection.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) events: Events,
    pub(super) greeting: Greeting,
}

impl Live {
    pub(super) fn new(process: Process, link: Option<Link>) -> Self {
        Self { process, link, connect_at: Instant::now(), said: None }
    }
}

/// Connects to the monitor of that process, and of no other: a socket's path says nothing about who listens.
pub(super) async fn connect(socket: &Path, process: &Process) -> Result<Link, Error> {
    let limits = Limits { greeting: GREETING_TIME_MAX, command: COMMAND_TIME_MAX };
    let Connection { client, events, greeting } = Client::connect(socket, limits).await?;
    if greeting.pid != Some(process.id.pid) {
        let who = greeting.pid.map_or_else(|| "nobody known".to_owned(), |pid| format!("process {pid}"));
        let message = format!("{}: {who} listens there, not {}", socket.display(), process.id.pid);
        return Err(Error::one_line(Kind::Refused, message));
    }
    Ok(Link { client, events, greeting })
}

/// The next event; never, without a connection.
pub(super) async fn next_event(link: Option<&mut Link>) -> Result<Event, QmpError> {
    match link {
        Some(link) => link.events.next().await,
        None => pending().await,
    }
}

/// The end of the process; never, without one.
pub(super) async fn ended(process: Option<&Process>) {
    let Some(process) = process else { return pending().await };
    if let Err(error) = process.ended().await {
        tracing::error!(pid = process.id.pid, %error, "the end of a process cannot be waited for");
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    use super::*;

    /// A monitor of this process, at the place where another process' is expected.
    #[tokio::test]
    async fn a_monitor_of_another_process_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let greeting =
                r#"{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}"#;
            let answer = r#"{"return": {}, "id": 1}"#;
            stream.write_all(format!("{greeting}\n{answer}\n").as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let process = Process::of_pid(i32::try_from(child.id().unwrap()).unwrap()).unwrap().unwrap();
        let error = connect(&socket, &process).await.err().unwrap();
        assert!(error.message.contains("listens there, not"), "{error}");
        child.kill().await.unwrap();
    }
}
